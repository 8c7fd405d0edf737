"""Errors by whose fault they are; each carries the exit code of the contract.

Every message is one line that names the thing, the cause and the fix: `cli.main` prints it as it is.
"""

from __future__ import annotations

from typing import ClassVar


class ClbError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code: ClassVar[int] = 1


class SourceError(ClbError):
    """Discovery did not answer, or answered nonsense. Never means "there are no real servers"."""


class UnusableError(SourceError):
    """Discovery gave an answer for one name that cannot be used, and will do so until the entry is fixed."""


class UsageError(ClbError):
    """The command line or a configured value is wrong (exit code 2)."""

    exit_code = 2


class HostError(ClbError):
    """The kernel, a file system or a privilege is missing (exit code 3)."""

    exit_code = 3


class RemovedError(HostError):
    """A mount that this process sees was removed; a new process would see the present one."""


class BusyError(ClbError):
    """Another sidecar holds this instance (exit code 4)."""

    exit_code = 4
