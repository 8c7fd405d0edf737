"""Servers in a network namespace behind a link that takes time."""

from __future__ import annotations

import heapq
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.support import namespaces
from tests.support.pace import hurry
from tests.support.tun import ip, open_tun

_CHANCE: Final = random.SystemRandom()
_MTU: Final = 65536
HERE: Final = Path("/proc/self/ns/net")


class Distance:
    """A namespace behind such a link, with some addresses of both families."""

    def __init__(self, namespace: Path, round_trip: float, number: int, count: int) -> None:
        self.namespace = namespace
        self.round_trip = round_trip
        """Seconds; it may change while packets are on their way."""
        self.lost: dict[str, float] = {}
        """The share of packets to a host that are lost, by its address."""
        self.here = f"10.97.{number}.1", f"fd97:{number}::1"
        self.hosts = [f"10.97.{number}.{host}" for host in range(2, count + 2)]
        self.hosts6 = [f"fd97:{number}::{host}" for host in range(2, count + 2)]

    def open_near(self) -> int:
        """Make the end of the link on this side; it is the route to all hosts."""
        four, six = self.here
        return open_tun(f"{four}/24", f"{six}/64")[0]

    def open_far(self) -> int:
        """Make the other end, in the namespace."""
        tun, name = open_tun()
        for host in (*self.hosts, *self.hosts6):
            ip("address", "add", f"{host}/{128 if ':' in host else 32}", "dev", "lo", *["nodad"] * (":" in host))
        for host in self.here:
            ip("route", "add", host, "dev", name)
        return tun

    def carry(self, near: int, far: int, end: int) -> None:
        """Carry packets until the other end of this pipe is closed; those that leave take a whole round trip."""
        hurry()
        on_the_way: list[tuple[float, int, bytes]] = []
        number = 0
        while True:
            wait = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
            ready = select.select([near, far, end], [], [], wait)[0]
            if end in ready:
                return
            if near in ready:
                packet = os.read(near, _MTU)
                if _CHANCE.random() >= self.lost.get(_target(packet), 0.0):
                    number += 1
                    heapq.heappush(on_the_way, (time.monotonic() + self.round_trip, number, packet))
            if far in ready:
                os.write(near, os.read(far, _MTU))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                os.write(far, heapq.heappop(on_the_way)[2])


def _target(packet: bytes) -> str:
    if packet[0] >> 4 == 6:
        return socket.inet_ntop(socket.AF_INET6, packet[24:40])
    return socket.inet_ntop(socket.AF_INET, packet[16:20])


@contextmanager
def distance(round_trip: float, hosts: int, near: Path = HERE) -> Iterator[Distance]:
    """Route to so many hosts of each family that are this far away, in seconds, while the block runs.

    :param near: the namespace that has the routes, by default that of the test.
    """
    with ExitStack() as stack:
        found = Distance(stack.enter_context(namespaces.by_mount()), round_trip, _CHANCE.randrange(1, 255), hosts)
        here = namespaces.inside(near, found.open_near)
        stack.callback(os.close, here)
        far = namespaces.inside(found.namespace, found.open_far)
        stack.callback(os.close, far)
        end, ended = os.pipe()
        stack.callback(os.close, end)
        thread = threading.Thread(target=found.carry, args=(here, far, end))
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.close, ended)
        yield found
