"""HAProxy as its documents recommend to follow SRV records.

The times are those of HAProxy's manual (2.6, 5.3.2): it queries each second (`timeout resolve 1s`, the default), and
removes records that an answer lacks at once (`hold obsolete`, by default 0 s; the manual's example waits for 30 s).
`hold valid 5s` and the payload size are those of HashiCorp's guide "Load balance with HAProxy"; by the manual the
former does not matter for servers. The health checks of that guide are left out: they would make HAProxy no faster.
"""

from __future__ import annotations

import csv
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_HEAD: Final = """\
global
    nbthread 1
    maxconn 1000
    stats socket {control} mode 600 level admin expose-fd listeners
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""
_RESOLVERS: Final = """\
resolvers dns
    nameserver dns {nameserver}
    accepted_payload_size 8192
    timeout resolve 1s
    timeout retry 1s
    hold valid 5s
"""
_LISTEN: Final = """\
listen bench
    bind {bind}
    balance random
"""
_CHECKING: Final = """\
    timeout connect 1s
    option redispatch 1
    option allbackups
    option httpchk GET /
    default-server check inter 2s{closing}
"""
_TEMPLATE: Final = """\
    server-template s {slots} {record} resolvers dns resolve-opts allow-dup-ip resolve-prefer ipv4 init-addr none
"""


def following_srv(control: Path, bind: str, nameserver: str, record: str, slots: int) -> str:
    """Return the configuration that follows an SRV record.

    :param control: the path of its control socket.
    :param slots: the maximum number of real servers.
    """
    template = _TEMPLATE.format(slots=slots, record=record)
    return (
        _HEAD.format(control=control) + _RESOLVERS.format(nameserver=nameserver) + _LISTEN.format(bind=bind) + template
    )


def written_out(control: Path, bind: str, servers: dict[str, int]) -> str:
    """Return the configuration with these real servers, each with its weight (1 to 256)."""
    lines = [
        f"    server s{number} {address} weight {weight}\n" for number, (address, weight) in enumerate(servers.items())
    ]
    return _HEAD.format(control=control) + _LISTEN.format(bind=bind) + "".join(lines)


def checking(control: Path, bind: str, first: Sequence[str], further: Sequence[str], *, closes: bool) -> str:
    """Return the configuration that checks its servers by HTTP, and tries another one if a connect fails.

    :param first: addresses and ports; `further` are backups.
    :param closes: close the connections to a server that fails its checks.
    """
    closing = " on-marked-down shutdown-sessions" if closes else ""
    servers = [*first, *(f"{server} backup" for server in further)]
    lines = (f"    server s{number} {server}\n" for number, server in enumerate(servers))
    head = _HEAD.format(control=control) + _LISTEN.format(bind=bind)
    return head + _CHECKING.format(closing=closing) + "".join(lines)


def usable(statistics: str) -> int:
    """Return the number of usable real servers, from the output of `show stat`."""
    rows = csv.DictReader(statistics.removeprefix("# ").splitlines())
    return sum(row["svname"].startswith("s") and row["status"] in {"UP", "no check"} for row in rows)


def ask(control: Path, command: str) -> str:
    """Send a command to a running one; return its output."""
    with socket.socket(socket.AF_UNIX) as conversation:
        conversation.connect(str(control))
        conversation.sendall(command.encode() + b"\n")
        with conversation.makefile("r", encoding="utf-8") as answer:
            return answer.read()
