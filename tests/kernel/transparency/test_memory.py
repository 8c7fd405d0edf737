"""Sockets without kernel memory for their record: they are balanced as others are, and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from clb_discovery.datapath.maps import Maps
from clb_discovery.model.servers import Algorithm
from tests.support.chisquare import p_value
from tests.support.namespaces import inside
from tests.support.plane import Plane, real, virtual_server
from tests.support.recorder import all_places_taken
from tests.support.sidecar import clb
from tests.support.tellers import tellers
from tests.support.transparency import PORT, WATCHED, Side, as_seen_by, ask, ask_at, ask_at_peer, names, peer

OPTMEM: Final = Path("/proc/sys/net/core/optmem_max")
"""Bytes of option memory per socket; one setting per network namespace since 6.7."""
HOST: Final = Path("/proc/1/ns/net")


@contextmanager
def no_memory() -> Iterator[None]:
    """Let no socket have memory for its record while the block runs; passing descriptors fails meanwhile, too."""
    if OPTMEM.exists():
        before = OPTMEM.read_text()
        OPTMEM.write_text("0")
    else:
        before = inside(HOST, OPTMEM.read_text)
        inside(HOST, lambda: OPTMEM.write_text("0"))
    try:
        yield
    finally:
        if OPTMEM.exists():
            OPTMEM.write_text(before)
        else:
            inside(HOST, lambda: OPTMEM.write_text(before))


def lost(plane: Plane) -> int:
    """Return how many records the programs could not store."""
    with Maps(plane.pins) as maps:
        return maps.records_lost()


def test_datagrams_without_a_record_stay_with_their_server(plane: Plane, side: Side) -> None:
    """Without memory a socket's datagrams still reach one server; sockets are spread by weight, and each is counted.

    The source of answers is then the real server, because the VIP is only in the record.
    """
    with tellers(*[side.real] * 3, udp=True) as servers:
        pool = [real(server.name, weight) for weight, server in enumerate(servers, 1)]
        plane.publish(virtual_server(side.at(PORT, udp=True), pool))
        before, counts = lost(plane), Counter[str]()
        sockets = plane.client.make(side.target(PORT), 300, udp=True)
        with no_memory():
            for sock in sockets:
                ((server, source),) = {ask_at(sock, side.target(PORT)) for _ in range(3)}
                assert source == as_seen_by(side, next(one.target for one in servers if one.name == server))
                counts[server] += 1
        assert lost(plane) == before + 900
        assert plane.connects(side.at(PORT, udp=True)) == {name: 3 * count for name, count in counts.items()}
    assert p_value([counts[server.name] for server in servers], [1, 2, 3]) > 0.001, counts


def test_datagrams_without_a_record_use_the_lowest_tier(plane: Plane, side: Side) -> None:
    """Without memory, too, another tier is used only if the first one has no usable server."""
    with tellers(*[side.real] * 4, udp=True) as servers:
        pool = [real(server.name, 1, number // 2) for number, server in enumerate(servers)]
        plane.publish(virtual_server(side.at(PORT, udp=True), pool))
        sockets = plane.client.make(side.target(PORT), 30, udp=True)
        with no_memory():
            assert {ask_at(sock, side.target(PORT))[0] for sock in sockets} == set(names(servers[:2]))


def test_datagrams_without_a_record_take_no_turns(plane: Plane, side: Side) -> None:
    """A socket without memory does not use turns of round-robin, so those of others stay exact."""
    target = side.target(PORT)
    with tellers(*[side.real] * 2, udp=True) as servers:
        plane.publish(virtual_server(side.at(PORT, udp=True), names(servers), Algorithm.ROUND_ROBIN))
        forgotten, *others = plane.client.make(target, 21, udp=True)
        counts = Counter[str]()
        for sock in others:
            with no_memory():
                ask_at(forgotten, target)
            counts[ask_at(sock, target)[0]] += 1
    assert sorted(counts.values()) == [10, 10]


def test_connect_without_a_record_is_balanced(plane: Plane, side: Side, udp: bool) -> None:
    """Without memory a connect reaches a server, sees its address as the peer, and is counted as lost."""
    with tellers(side.real, udp=udp) as (server,), Maps(plane.pins) as maps:
        plane.publish(virtual_server(side.at(PORT, udp=udp), [server.name], health=WATCHED))
        before = lost(plane)
        remembered, sock = plane.client.make(side.target(PORT), 2, udp=udp)
        with no_memory():
            remembered.connect(side.target(PORT))  # its record is in the array, without such memory
        assert (peer(remembered), lost(plane)) == (side.target(PORT), before)
        with all_places_taken(maps.records()):
            with no_memory():
                sock.connect(side.target(PORT))
            assert peer(sock) == as_seen_by(side, server.target)
            assert (ask_at_peer(sock)[0] if udp else ask(sock)) == server.name
        assert lost(plane) == before + 1


def test_lost_records_are_in_the_status(plane: Plane) -> None:
    """`status` reports how many records were lost."""
    with tellers("127.0.0.1", udp=True) as (server,):
        plane.publish(virtual_server("10.64.0.1:53/udp", [server.name]))
        (sock,) = plane.client.make(("10.64.0.1", 53), udp=True)
        with no_memory():
            ask_at(sock, ("10.64.0.1", 53))
        found = json.loads(clb("status", "--json", "--instance", plane.instance).stdout)
        assert found["datapath"]["records_lost"] == lost(plane) >= 1
