"""Tests of the pure parts of datapath."""
