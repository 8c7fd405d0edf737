"""Untrusted text (names in Consul and DNS, replies of servers, typed input) made safe to print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

_USER_INFO: Final = re.compile(r"//[^/\s\"'@]*@")


def printable(text: str) -> str:
    """Return the text with control characters and invisible characters escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def without_passwords(text: str) -> str:
    """Return the text without the `user:password@` of every URL (RFC 3986 section 3.2.1)."""
    return _USER_INFO.sub("//***@", text)


def some_of(names: Sequence[str], most: int) -> list[str]:
    """Return the first `most` names, then `and N more` if there are more."""
    return [*names[:most], f"and {len(names) - most} more"] if len(names) > most else list(names)


def timestamp(moment: datetime | None) -> str | None:
    """Return RFC 3339 text in UTC, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None
