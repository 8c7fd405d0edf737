"""Measurements that a person runs; nothing here passes or fails."""
