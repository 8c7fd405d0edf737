"""A router that answers each TCP segment with an ICMP error, or drops it, after a delay as real ones do.

It can also play the packet filter of this host, which sends such errors from this host to itself.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from tests.support.tun import open_tun

ERRORS: Final = {"host unreachable": (1, 3), "port unreachable": (3, 4), "prohibited": (13, 1), "nothing": None}
"""Its answers: the code of ICMP's type 3 (RFC 792, RFC 1812) and of ICMPv6's type 1 (RFC 4443)."""

_NETWORKS: Final = tuple(ERRORS)
_DELAY: Final = 0.1
"""Seconds until it answers."""
_TCP, _ICMP, _ICMPV6 = 6, 1, 58
_HERE: Final = "10.99.0.1", "fd99::1"


@contextmanager
def router(*, is_here: bool = False) -> Iterator[None]:
    """Route to the hosts of `host_behind` while the block runs.

    :param is_here: whether this host is the sender of the errors.
    """
    with ExitStack() as stack:
        here, here6 = _HERE
        tun, _ = open_tun(f"{here}/16", f"{here6}/16")
        stack.callback(os.close, tun)
        end, ended = os.pipe()
        stack.callback(os.close, end)
        send = partial(os.write, tun)
        if is_here:
            four = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, _ICMP))
            six = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_RAW, _ICMPV6))
            send = partial(_send_from_here, four, six)
        thread = threading.Thread(target=_serve, args=(tun, end, send))
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.close, ended)
        yield


def host_behind(error: str, *, ipv6: bool) -> str:
    """Return an address that the router answers with one of `ERRORS`."""
    number = _NETWORKS.index(error) + 1
    return f"fd99:{number}::1" if ipv6 else f"10.99.{number}.1"


def _serve(tun: int, end: int, send: Callable[[bytes], int]) -> None:
    while tun in select.select([tun, end], [], [])[0]:
        packet = os.read(tun, 65536)
        answer = _answer6(packet) if packet[0] >> 4 == 6 else _answer4(packet)
        if answer:
            time.sleep(_DELAY)
            send(answer)


def _send_from_here(four: socket.socket, six: socket.socket, answer: bytes) -> int:
    if answer[0] >> 4 == 6:
        return six.sendto(answer[40:], (_HERE[1], 0))
    return four.sendto(answer[20:], (_HERE[0], 0))


def _answer4(packet: bytes) -> bytes | None:
    if packet[9] != _TCP:
        return None
    source, target, error = packet[12:16], packet[16:20], ERRORS[_NETWORKS[packet[18] - 1]]
    if error is None:
        return None
    message = _summed(struct.pack("!BBHI", 3, error[0], 0, 0) + packet[:28], 2)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(message), 0, 0, 64, _ICMP, 0, target, source)
    return _summed(header, 10) + message


def _answer6(packet: bytes) -> bytes | None:
    if packet[6] != _TCP:
        return None
    source, target, error = packet[8:24], packet[24:40], ERRORS[_NETWORKS[packet[27] - 1]]
    if error is None:
        return None
    message = struct.pack("!BBHI", 1, error[1], 0, 0) + packet[:80]
    pseudo = target + source + struct.pack("!II", len(message), _ICMPV6)
    message = _summed(pseudo + message, len(pseudo) + 2)[len(pseudo) :]
    return struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 64) + target + source + message


def _summed(data: bytes, at: int) -> bytes:
    """Return data of even length with its checksum (RFC 1071) in the two bytes at this offset, which are zero."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + struct.pack("!H", total ^ 0xFFFF) + data[at + 2 :]
