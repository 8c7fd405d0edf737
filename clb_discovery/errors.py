"""Errors, grouped by cause; each has its documented exit code.

Every message is one line that names the object, the cause and the fix, because `cli.main` prints it unchanged and an
operator reads it at three in the morning.
"""

from __future__ import annotations

from typing import ClassVar


class ClbError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code: ClassVar[int] = 1


class SourceError(ClbError):
    """Discovery did not answer, or its answer was malformed. It never means "there are no real servers"."""


class UnusableError(SourceError):
    """The answer for one name cannot be used, and a retry does not help until the registration is corrected."""


class UsageError(ClbError):
    """The command line or a configured value is wrong (exit code 2)."""

    exit_code = 2


class HostError(ClbError):
    """The kernel, a file system or a privilege is missing (exit code 3)."""

    exit_code = 3


class RemovedError(HostError):
    """A directory that is mounted for this process was removed; a new process would see the present one."""


class BusyError(ClbError):
    """Another sidecar holds this instance (exit code 4)."""

    exit_code = 4
