"""Read the values that operators write for active checks.

Every function raises ValueError with a message that names the value and how to fix it. The caller adds the option.
"""

from __future__ import annotations

import re
from typing import Final

from clb_discovery.model.address import parse_address
from clb_discovery.model.check import Request
from clb_discovery.model.servers import MAX_PORT
from clb_discovery.model.text_forms import parse_duration

_LONGEST: Final = 1024
_URL: Final = re.compile(
    r"""(?P<scheme> https? ) ://
    (?: \[ (?P<ipv6> [0-9A-Fa-f:.]+ ) \] | (?P<name> [A-Za-z0-9] [A-Za-z0-9_.-]{0,252} ) )
    (?: : (?P<port> [0-9]{1,5} ) )?
    (?P<target> [/?] [!-~]* )?""",
    re.VERBOSE,
)
_FORMS: Final = "write tcp, http://NAME/PATH, https://NAME/PATH or off; in a PATH, write other than ASCII as %XX"
_LEAST_INTERVAL: Final = 0.1
_LONGEST_LABEL: Final = 63  # RFC 1035, section 2.3.4
_LONGEST_ROW: Final = 100


def parse_check(text: str) -> Request | None:
    """Read `tcp`, `http://NAME[:PORT][/PATH]`, `https://NAME[:PORT][/PATH]`, or `off`, which is None."""
    if text == "off":
        return None
    if text == "tcp":
        return Request()
    match = _URL.fullmatch(text)
    if match is None or len(text) > _LONGEST or "#" in text:
        raise ValueError(f"{text[:_LONGEST]!r} is not a check: {_FORMS}")
    port = int(match["port"] or 0)
    if match["port"] and not 1 <= port <= MAX_PORT:
        raise ValueError(f"{text!r} has a port outside 1 to {MAX_PORT}; omit it for the port of each server")
    if match["ipv6"]:
        try:
            parse_address(match["ipv6"])
        except ValueError:
            raise ValueError(
                f"{text!r} has no IPv6 address in its brackets; write a name, or such as [fd00::7]"
            ) from None
    name = (match["name"] or "").removesuffix(".")  # as HTTP clients do: no certificate has it
    if not match["ipv6"] and not all(1 <= len(label) <= _LONGEST_LABEL for label in name.split(".")):
        raise ValueError(f"{text!r} has a name with an empty label, or one above {_LONGEST_LABEL} characters")
    target = match["target"] or "/"
    target = target if target.startswith("/") else f"/{target}"
    return Request(match["scheme"], match["ipv6"] or name, port, target)


def parse_interval(text: str) -> float:
    """Read a duration of 100 ms to 1 h; return seconds."""
    seconds = parse_duration(text)
    if not _LEAST_INTERVAL <= seconds <= 3600:
        raise ValueError(f"{text!r} is outside 100ms to 1h")
    return seconds


def parse_row(text: str) -> int:
    """Read how many checks in a row count, 1 to 100."""
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= _LONGEST_ROW):
        raise ValueError(f"{text!r} is not a number from 1 to {_LONGEST_ROW}")
    return int(text)
