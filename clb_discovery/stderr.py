"""Lines on standard error: their levels, forms and priorities.

Apart from `log`, because structlog loads asyncio, which is half of the time that a command without a log takes.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "console", "json")

_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


def priority(level: str) -> str:
    """Return the prefix of a line of this level: `<3>` in the journal, else nothing.

    With it, as sd-daemon(3) describes, `journalctl --priority` works.
    """
    # Compared, because a child whose stderr is redirected inherits the variable (systemd.exec(5)).
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except OSError:
        return ""
    in_journal = os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
    return f"<{_PRIORITIES[level]}>" if in_journal else ""


def described(error: BaseException) -> str:
    """Return an unexpected error and its place in the code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{error!r}{where}"


def internal_error(error: BaseException) -> str:
    """Return the reason to report for a bug, in one line."""
    return f"internal error: {described(error)}; please report it"
