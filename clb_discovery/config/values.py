"""Read the values that operators write: services as `NAME[=VIP]`, durations and shares.

Every function raises ValueError with a message that names the value and how to fix it. The caller adds the option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from clb_discovery.model.address import is_ipv4, parse_address
from clb_discovery.model.servers import MAX_NAME, MAX_PORT, Protocol, Vip
from clb_discovery.model.service import CONSUL, DNS, SRV, Service
from clb_discovery.model.text_forms import parse_duration, parse_limit, parse_vip

_LONGEST_TEXT: Final = 4096
_SHOWN: Final = 200
_HOST_NAME: Final = re.compile(r"(?=[^:]*[A-Za-z])[A-Za-z0-9_.-]+(?::[0-9]*)?")


def parse_assignment(text: str, default: Protocol = Protocol.TCP) -> tuple[str, tuple[Vip, ...]]:
    """Read `NAME=VIP[,VIP...]`, or `NAME` for automatic VIPs; return the name and the given VIPs."""
    name, equals, vips = text.rpartition("=") if "=" in text else (text, "", "")
    if not name or len(name.encode()) > MAX_NAME or not name.isprintable():
        raise ValueError(
            f"{text!r} has no name of 1 to {MAX_NAME} bytes of printable text: write NAME or NAME=VIP, such as "
            "redis=10.64.0.1"
        )
    return name, tuple(parse_vip(vip, default) for vip in vips.split(",")) if equals else ()


def srv_protocol(record: str) -> Protocol:
    """Return the protocol in the name of an SRV record (RFC 2782): UDP for `_dns._udp.example`, else TCP."""
    labels = record.lower().split(".")
    return Protocol.UDP if "_udp" in labels[1:2] else Protocol.TCP


def srv_service(record: str) -> str:
    """Return the service in the name of an SRV record (RFC 2782): `redis` for `_redis._tcp.example`."""
    return record.split(".", 1)[0].removeprefix("_") or record


def parse_name_and_port(text: str) -> tuple[str, int]:
    """Read a name in DNS and the port of its servers, `db.example.com:5432`."""
    form = "write NAME:PORT, such as db.example.com:5432"
    name, _, port = text.rpartition(":")
    if not name:
        raise ValueError(f"{text!r} has no port for the servers: {form}")
    number = _port(port)
    if not number:
        raise ValueError(f"{text!r} has a port that is not 1 to {MAX_PORT}: {form}")
    return name, number


def dns_source(text: str) -> tuple[str, str]:
    """Read `NAME:PORT`; return the service, which is the first label of the name, and the source."""
    name, port = parse_name_and_port(text)
    return name.split(".", 1)[0] or name, f"{DNS}{name}:{port}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A service, and its own settings."""

    service: Service
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of options that replace the general ones, by the names of their fields in `Options`."""
    place: str = field(default="", compare=False)
    """Where it is written, for messages: `--service redis=10.64.0.1`, `[[service]] 'redis'`."""


def consul_entry(text: str) -> Entry:
    """Read the value of `--service`: `NAME[=VIP,...]`."""
    name, vips = parse_assignment(text)
    service = Service(name, CONSUL + name, vips, automatic=None if vips else Protocol.TCP)
    return Entry(service, place=f"--service {text}")


def srv_entry(text: str) -> Entry:
    """Read the value of `--srv`: `NAME[=VIP,...]`."""
    protocol = srv_protocol(text.rpartition("=")[0] or text)
    record, vips = parse_assignment(text, protocol)
    service = Service(srv_service(record), SRV + record, vips, automatic=None if vips else protocol)
    return Entry(service, place=f"--srv {text}")


def dns_entry(text: str) -> Entry:
    """Read the value of `--dns`: `NAME:PORT[=VIP,...]`."""
    target, vips = parse_assignment(text)
    name, source = dns_source(target)
    return Entry(Service(name, source, vips, automatic=None if vips else Protocol.TCP), place=f"--dns {text}")


def parse_text(text: str) -> str:
    """Read a text that is used as it is; an empty one would set nothing, in silence."""
    if not 1 <= len(text) <= _LONGEST_TEXT or not text.isprintable():
        raise ValueError(f"{text[:_SHOWN]!r}: write 1 to {_LONGEST_TEXT} printable characters")
    return text


def parse_listener(text: str) -> tuple[str, int]:
    """Read `127.0.0.1:17100` or `[::1]:17100`; return address and port."""
    found = _endpoint(text)
    if found is None:
        raise ValueError(f"{text!r} is not ADDR:PORT; write 127.0.0.1:17100 or [::1]:17100")
    return found


def parse_real_server(text: str) -> tuple[str, int]:
    """Read the address and the port of a real server, `10.0.0.7:6379`."""
    found = _endpoint(text)
    if found is None and _HOST_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is a host name; give an IP address, or use `dns` for names")
    if found is None:
        raise ValueError(f"{text!r} is not ADDR:PORT; write 10.0.0.7:6379 or [fd00::7]:6379")
    return found


def _endpoint(text: str) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    number = _port(port) if colon else 0
    try:
        family_fits = is_ipv4(parse_address(bare)) is not bracketed
    except ValueError:
        family_fits = False
    return (bare, number) if family_fits and number else None


def _port(text: str) -> int:
    """Return a port, or 0 if the text is none."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PORT)) else 0
    return number if number <= MAX_PORT else 0


def parse_consul_wait(text: str) -> float:
    """Read how long a query to Consul waits for a change, 1 s to 10 min; return seconds."""
    seconds = parse_duration(text)
    if not 1 <= seconds <= 600:
        raise ValueError(f"{text!r} is outside 1s to 10m")
    return seconds


def parse_dead_after(text: str) -> int:
    """Read a duration of 3 s to 10 min, or `off`; return milliseconds, 0 for `off`."""
    return 0 if text == "off" else parse_limit(text, "3s", "10m")


def parse_share(text: str) -> float:
    """Read a share from 0 to 1."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is not a share: write a number from 0 to 1, such as 0.5")
    return share
