"""VIPs, schedulers and durations as text, in options and registrations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from clb_discovery.model.address import Address, is_ipv4, parse_address
from clb_discovery.model.servers import MAX_PORT, Algorithm, Protocol, Vip
from clb_discovery.model.usable import never_usable

_VIP: Final = re.compile(
    r"""(?: \[ (?P<ipv6> [^][]* ) \] | (?P<ipv4> [^][:/]* ) )
    (?: : (?P<port> [0-9]{1,5} ) )?
    (?: / (?P<protocol> [a-z]+ ) )?""",
    re.VERBOSE,
)
_DURATION: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>ms|s|m|h)?")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FORMS: Final = "write 10.64.0.1:6379, 10.64.0.1 (every port) or [fd00::1]:6379, with /udp for UDP"


def parse_vip(text: str, default: Protocol = Protocol.TCP) -> Vip:
    """Parse one VIP: `10.64.0.1:6379`, `10.64.0.1` (every port), `[fd00::1]:53/udp`.

    :param default: the protocol if the text names none.
    :raises ValueError: with the cause and the fix.
    """
    match = _VIP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a VIP: {_FORMS}")
    address = _vip_address(text, match["ipv4"], match["ipv6"])
    port = int(match["port"]) if match["port"] else 0
    if match["port"] and not 1 <= port <= MAX_PORT:
        raise ValueError(f"{text!r} has a port outside 1 to {MAX_PORT}; omit it for every port")
    protocol = match["protocol"]
    if protocol is not None and protocol.upper() not in Protocol.__members__:
        raise ValueError(f"{text!r} has the protocol {protocol!r}; use /tcp or /udp")
    return Vip(address, port, Protocol[protocol.upper()] if protocol else default)


def parse_algorithm(text: str) -> Algorithm:
    """Parse the name of a scheduler.

    :raises ValueError: with all names.
    """
    for algorithm in Algorithm:
        if str(algorithm) == text:
            return algorithm
    raise ValueError(f"{text!r} is not a scheduler: use {', '.join(map(str, Algorithm))}")


def parse_duration(text: str) -> float:
    """Parse `30s`, `1.5m`, `200ms`, `1h` or a plain number of seconds; return seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 30s, 500ms, 2m or 1h")
    return float(match["number"]) * _UNITS[match["unit"] or "s"]


def parse_connect_timeout(text: str) -> int:
    """Parse a duration of 200 ms to 2 min, or `off`; return milliseconds, 0 for `off`."""
    return 0 if text == "off" else parse_limit(text, "200ms", "2m")


def parse_milliseconds(text: str) -> int:
    """Parse a duration of 1 ms to 24 h; return milliseconds."""
    milliseconds = 1000 * parse_duration(text)
    if not 1 <= milliseconds <= 24 * 3600 * 1000:
        raise ValueError(f"{text!r} is outside 1ms to 24h")
    return round(milliseconds)


def parse_silent_after(text: str) -> int:
    """Parse a duration of 1 ms to 24 h, or `off`; return milliseconds, 0 for `off`."""
    if text == "off":
        return 0
    try:
        return parse_milliseconds(text)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None


def parse_count(text: str) -> int:
    """Parse a number from 0 to 1,000,000."""
    if not text.isascii() or not text.isdigit() or int(text) > 1_000_000:
        raise ValueError(f"{text!r} is not a number from 0 to 1000000")
    return int(text)


def parse_limit(text: str, least: str, most: str) -> int:
    """Parse a duration between these, where `off` may stand, too; return milliseconds."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None
    if not parse_duration(least) <= seconds <= parse_duration(most):
        raise ValueError(f"{text!r} is outside {least} to {most}, or off")
    return round(1000 * seconds)


HEALTH: Final[Mapping[str, Callable[[str], int]]] = MappingProxyType(
    {
        "connect_timeout_ms": parse_connect_timeout,
        "silent_after_ms": parse_silent_after,
        "eject_after": parse_count,
        "eject_first_ms": parse_milliseconds,
        "eject_most_ms": parse_milliseconds,
    }
)
"""How each field of `HealthClaim` is parsed."""


def _vip_address(text: str, ipv4: str | None, ipv6: str | None) -> Address:
    """Parse the address, and check that the brackets match its family and that it can be a VIP."""
    try:
        address = parse_address(ipv4 if ipv6 is None else ipv6)
    except ValueError:
        raise ValueError(f"{text!r} is not a VIP: {_FORMS}") from None
    if is_ipv4(address) is (ipv4 is None):
        raise ValueError(f"{text!r} mixes the families: IPv6 needs brackets, and IPv4 has none")
    reason = never_usable(address)
    if reason:
        raise ValueError(f"{text!r} cannot be a VIP: {reason}; use an unused private address, such as 10.64.0.1")
    return address
