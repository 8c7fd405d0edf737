"""Errors by whose fault they are; each carries the exit code of the contract.

Every message is one line that names the thing, the cause and the way out, because `cli.main` prints it as it
stands and an operator reads it at three in the morning.
"""

from __future__ import annotations

import errno
import traceback
from typing import ClassVar, Final

SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Errors of a host that has too little at the moment, which say nothing of what was tried."""


class ClbError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code: ClassVar[int] = 1


class SourceError(ClbError):
    """Discovery did not answer, or answered nonsense. Never means "there are no real servers"."""


class UnusableError(SourceError):
    """Discovery answered for one name with what cannot be used, and will do so again until somebody mends it."""


class UsageError(ClbError):
    """The command line or a configured value is wrong (exit code 2)."""

    exit_code = 2


class HostError(ClbError):
    """The kernel, a file system or a privilege is missing (exit code 3)."""

    exit_code = 3


class RemovedError(HostError):
    """What is mounted for this process was removed; another one would see what is there now."""


class BusyError(ClbError):
    """Another sidecar holds this instance (exit code 4)."""

    exit_code = 4


def described(error: BaseException) -> str:
    """Return what went wrong and where in the code, in one line: for errors that nobody foresaw."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{error!r}{where}"
