"""Untrusted text (names in Consul and DNS, replies of servers, typed input) made safe to print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from difflib import SequenceMatcher, get_close_matches
from heapq import nlargest
from itertools import islice
from typing import Final

_COMPARED: Final = 10_000  # at most so many names,
_LONGEST: Final = 128  # of at most so many characters,
_LIKELY: Final = 50  # and so many of them exactly, which takes quadratic time
_USER_INFO: Final = re.compile(r"//[^/\s\"'@]*@")


def printable(text: str) -> str:
    """Return the text with control characters and invisible characters escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def without_passwords(text: str) -> str:
    """Return the text without the `user:password@` of every URL (RFC 3986 section 3.2.1)."""
    return _USER_INFO.sub("//***@", text)


def some_of(named: Sequence[object], most: int) -> list[str]:
    """Return the texts of the first `most` ones, then `and N more` if there are more."""
    return [*map(str, named[:most]), *([f"and {len(named) - most} more"] if len(named) > most else [])]


def timestamp(moment: datetime | None) -> str | None:
    """Return RFC 3339 text in UTC, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None


def nearest(wrong: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return at most three of the known names that a mistyped one may mean, the most similar first, as they are."""
    if len(wrong) > _LONGEST:
        return ()
    names = {name.casefold(): name for name in islice(known, _COMPARED) if len(name) <= _LONGEST}
    matcher = SequenceMatcher(b=wrong.casefold(), autojunk=False)

    def shared(name: str) -> float:
        matcher.set_seq1(name)
        return matcher.quick_ratio()

    return tuple(names[name] for name in get_close_matches(wrong.casefold(), nlargest(_LIKELY, names, key=shared)))


def did_you_mean(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of an error about a mistyped name: `; did you mean redis?`, or `; ` and another hint, if any."""
    names = nearest(wrong, known)
    hint = f"did you mean {' or '.join(names)}?" if names else otherwise
    return f"; {hint}" if hint else ""
