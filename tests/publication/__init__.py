"""Tests of claims, desired state and plans."""
