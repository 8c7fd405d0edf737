"""Having sockets of removed real servers closed by a process that may, for a sidecar that may not.

Closing a socket of somebody else takes CAP_NET_ADMIN, with which one can also change routes, addresses and firewalls:
too much for who talks to the network. So the units of systemd have a service of its own for it, which is started for
each question (`Accept=yes`), and closes by the rule of `datapath.sockets` and no other: record and peer have to agree.

Both sides send one JSON object and then no more.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Final

from clb_discovery.core import layout
from clb_discovery.core.model import Protocol
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets import Destroyed, close_sockets
from clb_discovery.errors import UsageError

SOCKET: Final = Path("/run/clb-discovery-close.sock")
"""Where the service listens, for the sidecar's group."""
_PATIENCE: Final = 60.0
_BUFFER: Final = 1 << 16
_MOST: Final = 64 << 20
"""Bytes of a question; every member that the maps have room for fits."""


def ask(instance: str, members: Collection[bytes], protocols: Collection[Protocol]) -> Destroyed:
    """Have sockets closed, and wait for it; nothing is raised, as by `close_sockets`.

    :param members: packed `struct clb_member` of each removed real server.
    """
    question = {
        "instance": instance,
        "members": [member.hex() for member in members],
        "protocols": sorted(protocols),
    }
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(str(SOCKET))
            sock.sendall(json.dumps(question).encode())
            sock.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: sock.recv(_BUFFER), b""))
        found = json.loads(said)
        return Destroyed(int(found["count"]), frozenset(map(str, found["failures"])), int(found["hidden"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{SOCKET}: {error or type(error).__name__}; see: systemctl status 'clb-discovery-close*'"
        return Destroyed(0, frozenset({reason}), 0)


def serve(question: IO[bytes], answer: IO[bytes]) -> int:
    """Answer one question.

    :returns: the exit code.
    :raises UsageError: if it is none.
    :raises HostError: if the maps are not there.
    """
    instance, members, protocols = _read(question)
    with Maps(Pins(instance), handed_over=True) as maps:
        closed = close_sockets(members, maps.records(), protocols=protocols, pinned=maps.record_iterators())
    document = {"count": closed.count, "failures": sorted(closed.failures), "hidden": closed.hidden}
    answer.write(json.dumps(document).encode())
    answer.flush()
    return 0


def _read(question: IO[bytes]) -> tuple[str, list[bytes], list[Protocol]]:
    try:
        asked: dict[str, Any] = json.loads(question.read(_MOST))
        members = [bytes.fromhex(member) for member in asked["members"]]
        for member in members:
            layout.unpack_member(member)  # is it one?
        return str(asked["instance"]), members, [Protocol(number) for number in asked["protocols"]]
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise UsageError(f"no question to close sockets: {error!r}; the sidecar asks it by {SOCKET}") from None
