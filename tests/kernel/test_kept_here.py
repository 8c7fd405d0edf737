"""Connects whose SYN stays on this host: a neighbour does not answer, or a route goes away meanwhile.

Both look alike in the kernel's counters. A neighbour is the server, and that it is switched off counts. A route is this
host's own.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import pytest

from clb_discovery.documents.causes import Cause
from clb_discovery.documents.trace import Kind
from clb_discovery.layout.elements import Server
from clb_discovery.model.servers import PassiveHealth
from tests.kernel.test_endings import (
    FOR_GOOD,
    IMPATIENT,
    TELLS_ICMP,
    TIMES,
    assert_failure,
    assert_no_failure,
    has_left_syn_sent,
)
from tests.support.heard import heard
from tests.support.moody import moody_servers
from tests.support.plane import Plane, default_plane, real, virtual_server
from tests.support.process import wait_until
from tests.support.transparency import PORT, SIDES, Side
from tests.support.tun import ip, open_tun

HERE: Final = ("10.96.0.1/24", "fd96::1/64")
SHORT: Final = 1_000
"""A limit of connects, in milliseconds, that comes before the kernel gives up looking for a neighbour, after 3 s."""
LONG: Final = 3_200
"""One with a repetition of the SYN, and a timer after it that is not the last."""
AMPLE: Final = 20_000
"""One with repetitions left after 3 s: before Linux 6.5 the error brings forward the next timer, even the last."""
PAST_A_REPETITION: Final = 1.8
"""Seconds until then, on every kernel."""
_plane_of_module = default_plane


@pytest.fixture(params=SIDES, ids=[side.name for side in SIDES])
def side(request: pytest.FixtureRequest) -> Side:
    """Return each way in which applications address virtual servers."""
    found: Side = request.param
    return found


class Scene(NamedTuple):
    """Connects on their way to a server in a network of this host, which does not answer."""

    device: str
    network: str
    sockets: Sequence[socket.socket]
    undo: ExitStack
    """Ends with it."""

    def wait(self) -> set[str]:
        """Wait until the kernel has ended the connects; return their errors."""
        for sock in self.sockets:
            wait_until(partial(has_left_syn_sent, sock), "the kernel has ended the connect")
        return {errno.errorcode[sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)] for sock in self.sockets}

    def give_up(self) -> None:
        """Close the sockets once a repetition of the SYN was due."""
        time.sleep(PAST_A_REPETITION)
        for sock in self.sockets:
            sock.close()


def end(
    plane: Plane, side: Side, health: PassiveHealth, how: Callable[[Scene], object], *, with_neighbours: bool = False
) -> tuple[Server, Counter[tuple[Kind, int]]]:
    """End connects to one server in this way; return the counts of the kernel, and the reported outcomes.

    :param with_neighbours: whether the kernel looks for a link address before it sends.
    """
    ipv6 = ":" in side.real
    name, network = ("[fd96::9]:80", "fd96::/64") if ipv6 else ("10.96.0.9:80", "10.96.0.0/24")
    with ExitStack() as undo, moody_servers(side.real) as (spare,), heard(plane) as kinds:
        tun, device = open_tun(*HERE, with_neighbours=with_neighbours)
        undo.callback(os.close, tun)
        plane.publish(virtual_server(side.at(PORT), [name, real(spare.name, 1, 1)], health=health))
        how(Scene(device, network, plane.client.begun(side.target(PORT), TIMES), undo))
        counted = plane.servers(side.at(PORT))[name]
    return counted, kinds


def lose_link(scene: Scene) -> None:
    """Set the interface down."""
    ip("link", "set", scene.device, "down")


def lose_route(scene: Scene) -> None:
    """Delete the route."""
    ip("route", "delete", scene.network, "dev", scene.device)


def lose_address(scene: Scene) -> None:
    """Delete the network's addresses, and the routes with them."""
    ip("address", "flush", "dev", scene.device)


def reject(scene: Scene) -> None:
    """Replace the route by one that rejects packets, as a VPN client may do until it is connected."""
    lose_route(scene)
    ip("route", "add", "unreachable", scene.network)
    scene.undo.callback(ip, "route", "delete", "unreachable", scene.network)


def test_neighbour_that_does_not_answer_is_silent(plane: Plane, side: Side) -> None:
    """An application that gives up has waited for it, also after repetitions that the kernel could not send."""
    health = replace(IMPATIENT, connect_timeout_ms=LONG)
    assert_failure(*end(plane, side, health, Scene.give_up, with_neighbours=True), Cause.SILENT)


def test_neighbour_that_does_not_answer_times_out(plane: Plane, side: Side) -> None:
    """So it does at the limit of its connects."""

    def wait(scene: Scene) -> None:
        assert scene.wait() == {"ETIMEDOUT"}

    health = replace(FOR_GOOD, connect_timeout_ms=SHORT)
    assert_failure(*end(plane, side, health, wait, with_neighbours=True), Cause.TIMED_OUT)


def test_neighbour_that_is_not_found_is_unreachable(plane: Plane, side: Side) -> None:
    """The kernel ends its connects as it does for ICMP errors."""

    def wait(scene: Scene) -> None:
        assert scene.wait() == {"EHOSTUNREACH"}

    health = replace(FOR_GOOD, connect_timeout_ms=AMPLE)
    counted, kinds = end(plane, side, health, wait, with_neighbours=True)
    if TELLS_ICMP or counted.failures:
        assert_failure(counted, kinds, Cause.UNREACHABLE)
    else:
        assert_no_failure(counted, kinds)


@pytest.mark.parametrize("lose", [lose_link, lose_route, lose_address, reject])
def test_connect_whose_route_goes_away_is_no_failure(plane: Plane, side: Side, lose: Callable[[Scene], None]) -> None:
    """Its limit says nothing about the server, which got one SYN; programs that cannot see the route count it."""

    def wait(scene: Scene) -> None:
        lose(scene)
        assert scene.wait() & {"ENETUNREACH", "EHOSTUNREACH", "EINVAL"}

    counted, kinds = end(plane, side, replace(FOR_GOOD, connect_timeout_ms=LONG), wait)
    if plane.follows_every_state:
        assert_failure(counted, kinds, Cause.TIMED_OUT)
    else:
        assert_no_failure(counted, kinds)


def test_connect_whose_route_goes_away_is_no_silence(plane: Plane, side: Side) -> None:
    """Nor does it say anything when an application gives up after a repetition that found no route."""

    def give_up(scene: Scene) -> None:
        lose_route(scene)
        scene.give_up()

    counted, kinds = end(plane, side, replace(IMPATIENT, connect_timeout_ms=LONG), give_up)
    if plane.follows_every_state:
        assert_failure(counted, kinds, Cause.SILENT)
    else:
        assert_no_failure(counted, kinds)
