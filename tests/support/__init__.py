"""Shared parts of tests: real servers, statistics, and fakes as classes."""
