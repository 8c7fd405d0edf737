"""Errors outside of a machine."""

from __future__ import annotations


class VmError(Exception):
    """A machine cannot be made or run here; the message is for people."""
