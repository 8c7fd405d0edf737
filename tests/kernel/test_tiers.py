"""The server that programs choose, compared with the model, for any pool: tiers, weights, ejected servers, loads.

No server listens: a UDP connect or a first datagram is counted at its destination, and the tests need only that.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from random import Random
from typing import Final

import pytest

from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Slot
from clb_discovery.layout.slots import pool_slots
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import MAX_TIERS, Algorithm, PassiveHealth, RealServer
from clb_discovery.model.text_forms import parse_vip
from tests.support.chisquare import p_value
from tests.support.listeners import listening
from tests.support.loading import loader_of_tests
from tests.support.pace import effort
from tests.support.plane import HOST, VIP4, Plane, target_of, virtual_server
from tests.support.scheduler import chances_of
from tests.support.simulator import numbered

FOR_GOOD: Final = PassiveHealth(eject_first_ms=3_600_000, eject_most_ms=3_600_000)
VIP: Final = f"{VIP4}/udp"
TARGET: Final = target_of(VIP)


def pool_of(*tiers: Sequence[int]) -> list[RealServer]:
    """Return a pool with these weights, tier by tier, in the order of its slots."""
    weighted = [(tier, weight) for tier, weights in enumerate(tiers) for weight in weights]
    host = [parse_address(f"127.1.{place >> 8}.{place & 255}") for place in range(len(weighted))]
    return [RealServer(10 * tier, host[place], 9, weight) for place, (tier, weight) in enumerate(weighted)]


def slots_of(pool: Sequence[RealServer]) -> list[Slot]:
    """Return the slots that a plan writes for the pool."""
    key = elements.pack_vip(parse_vip(VIP))
    return pool_slots(tuple(pool), numbered(key, tuple(pool)).items())


def connects(plane: Plane, times: int) -> Counter[str]:
    """Connect a UDP socket many times; return how often each server was chosen."""
    before = plane.connects(VIP)
    (sock,) = plane.client.make(TARGET, udp=True)
    for _ in range(times):
        sock.connect(TARGET)
    sock.close()
    return Counter({name: count - before[name] for name, count in plane.connects(VIP).items()})


def sends(plane: Plane, times: int) -> Counter[str]:
    """Send a datagram from so many sockets; return how often each server was chosen."""
    before = plane.connects(VIP)
    for sock in plane.client.make(TARGET, times, udp=True):
        sock.sendto(b"", TARGET)
        sock.close()
    return Counter({name: count - before[name] for name, count in plane.connects(VIP).items()})


def assert_follows(found: Counter[str], chances: dict[str, Fraction]) -> None:
    """Compare choices with the chances: no other server, and by weight (chi-square, p > 0.00001, for many tests)."""
    assert {name for name, count in found.items() if count} <= chances.keys()
    rare = {name for name, chance in chances.items() if chance * found.total() < 5}
    likely = [name for name in chances if name not in rare]
    counts = [found[name] for name in likely] + ([sum(found[name] for name in rare)] if rare else [])
    weights = [float(chances[name]) for name in likely] + ([float(sum(chances[name] for name in rare))] if rare else [])
    if rare and weights[-1] * found.total() < 5:
        counts, weights = counts[:-1], weights[:-1]
    if len(counts) >= 3:
        assert p_value(counts, weights) > 0.00001, (counts, weights)


def named(pool: Sequence[RealServer], slots: Iterable[int]) -> list[str]:
    """Return the names of the servers in these slots."""
    return [str(pool[slot]) for slot in slots]


def any_pool(dice: Random) -> tuple[list[RealServer], set[int]]:
    """Return a pool of any number of tiers, and the slots of the ejected servers."""
    most = dice.choice([2, 9, 20])
    tiers = [
        [dice.choice([0, 1, 1, 2, 5, 9]) for _ in range(dice.randint(1, most))]
        for _ in range(dice.choice([1, 2, 3, dice.randint(1, MAX_TIERS), MAX_TIERS]))
    ]
    pool = pool_of(*tiers)
    gone = dice.randint(0, len(tiers))
    out = dice.choice([0.0, 0.3, 0.8, 1.0])
    return pool, {slot for slot, one in enumerate(pool) if one.priority < 10 * gone or dice.random() < out}


@pytest.mark.parametrize("seed", range(effort(30, least=10)))
def test_choices_are_those_of_the_model(plane: Plane, seed: int) -> None:
    """The lowest tier with a usable server serves, by weight among its usable servers, with any others ejected."""
    dice = Random(seed)  # noqa: S311
    pool, ejected = any_pool(dice)
    chances = {str(pool[slot]): chance for slot, chance in chances_of(slots_of(pool), ejected).items()}
    for algorithm in Algorithm:
        plane.publish(virtual_server(VIP, pool, algorithm, FOR_GOOD))
        plane.mark(VIP, named(pool, ejected))
        assert_follows(connects(plane, 600), chances)
        if algorithm is Algorithm.RANDOM:
            assert_follows(sends(plane, 300), chances)
        else:
            assert {name for name, count in sends(plane, 100).items() if count} <= chances.keys()


@pytest.mark.parametrize("seed", range(effort(30, least=10)))
def test_least_conn_chooses_the_least_of_few(plane: Plane, seed: int) -> None:
    """The server with the fewest connections per weight is chosen, without ejected ones; equal ones by weight."""
    dice = Random(seed)  # noqa: S311
    before = dice.randint(0, 9)
    weights = [dice.randint(1, 4) for _ in range(dice.randint(1, 8))]
    pool = pool_of(*([1] * before, weights) if before else [weights])
    own = range(before, len(pool))
    ejected = {slot for slot in own if dice.random() < 0.3}
    if len(ejected) == len(own):
        ejected.pop()
    active = {slot: pool[slot].weight * dice.choice([0, 1, 1, 2]) + dice.choice([0, 0, 1]) for slot in own}
    load = {slot: Fraction(active[slot], pool[slot].weight) for slot in own if slot not in ejected}
    least = [slot for slot in load if load[slot] == min(load.values())]
    total = sum(pool[slot].weight for slot in least)
    plane.publish(virtual_server(VIP, pool, Algorithm.LEAST_CONN, FOR_GOOD))
    plane.mark(
        VIP,
        named(pool, {*range(before), *ejected}),
        active={str(pool[slot]): count for slot, count in active.items()},
    )
    assert_follows(sends(plane, 400), {str(pool[slot]): Fraction(pool[slot].weight, total) for slot in least})


def test_least_conn_of_many_compares_two_servers(plane: Plane) -> None:
    """In a tier of nine the only busy server is never chosen, and each of the others is (chi-square)."""
    pool = pool_of([1] * 9)
    plane.publish(virtual_server(VIP, pool, Algorithm.LEAST_CONN, FOR_GOOD))
    plane.mark(VIP, [], active={str(pool[4]): 1})
    assert_follows(sends(plane, 900), {str(one): Fraction(1, 8) for one in pool if one is not pool[4]})


@pytest.mark.parametrize("weights", [[0, 100], [0, 0, 3, 5], [0, 50, 50, 50]], ids=str)
def test_least_conn_hardly_uses_an_idle_server_of_weight_0(plane: Plane, weights: list[int]) -> None:
    """Beside busy servers with a weight it gets no more than its very small share (RFC 2782)."""
    pool = pool_of(weights)
    plane.publish(virtual_server(VIP, pool, Algorithm.LEAST_CONN, FOR_GOOD))
    plane.mark(VIP, [], active={str(one): 3 for one in pool if one.weight})
    found = sends(plane, 1000)
    zeros = [one for one in pool if not one.weight]
    assert sum(found[str(one)] for one in zeros) <= 1000 / (sum(weights) + 1) * 1.5 + 10
    assert sum(found.values()) == 1000


def test_least_conn_uses_a_server_of_weight_0_when_all_others_are_ejected(plane: Plane) -> None:
    """Its share is small only while other servers are usable."""
    pool = pool_of([0, 9, 9], [1])
    plane.publish(virtual_server(VIP, pool, Algorithm.LEAST_CONN, FOR_GOOD))
    plane.mark(VIP, named(pool, [1, 2]))
    assert sends(plane, 100)[str(pool[0])] == 100


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_the_last_usable_server_of_a_large_tier_serves(plane: Plane, algorithm: Algorithm, place: float) -> None:
    """If all servers of a tier but one are ejected, that one gets all connects in any slot, and the next tier none."""
    many = 380 if loader_of_tests() is Loader.BCC else 800
    usable = round(place * (many - 1))
    pool = pool_of([1] * many, [1])
    plane.publish(virtual_server(VIP, pool, algorithm, FOR_GOOD))
    plane.mark(VIP, named(pool, set(range(many)) - {usable}))
    assert sends(plane, 20)[str(pool[usable])] == 20
    assert connects(plane, 20)[str(pool[usable])] == 20


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize(("many", "out"), [(100, 90), (200, 100), (1000, 500)])
def test_neighbours_of_servers_that_fail_together_take_over_alike(
    plane: Plane, algorithm: Algorithm, many: int, out: int
) -> None:
    """Slots are in the order of addresses, so a rack that fails is a run of them; not the next one alone takes over."""
    pool = pool_of([1] * many)
    plane.publish(virtual_server(VIP, pool, algorithm, FOR_GOOD))
    plane.mark(VIP, named(pool, range(out)))
    times = effort(20_000, least=5_000)
    fair = times / (many - out)
    ((busiest, count),) = connects(plane, times).most_common(1)
    assert count < 2 * fair + 5 * fair**0.5, busiest


def test_no_connect_is_lost_in_a_very_large_pool(plane: Plane) -> None:
    """In 16 tiers with 3,200 servers each connect reaches a usable server, also if only the last tier has one."""
    pool = pool_of(*[[1] * 200] * MAX_TIERS)
    plane.publish(virtual_server(VIP, pool, health=FOR_GOOD))
    last = range(15 * 200, 16 * 200)
    plane.mark(VIP, named(pool, [*range(15 * 200), *last[:100]]))
    found = {name for name, count in connects(plane, 300).items() if count}
    assert found <= set(named(pool, last[100:]))
    assert len(found) > 30


@pytest.mark.parametrize("algorithm", [Algorithm.ROUND_ROBIN, Algorithm.LEAST_CONN])
@pytest.mark.parametrize("kinds", [2, 3])
def test_connects_that_send_nothing_take_no_turns(plane: Plane, algorithm: Algorithm, kinds: int) -> None:
    """getaddrinfo(3) connects a UDP socket to each address; such connects do not count as turns of others."""
    with listening(HOST[VIP4], HOST[VIP4]) as servers, ExitStack() as stack:
        names = [server.name for server in servers]
        plane.publish(
            virtual_server(VIP, names, algorithm, PassiveHealth()),
            virtual_server(VIP4, names, algorithm, PassiveHealth()),
        )
        receivers = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in servers]
        for name, receiver in zip(names, receivers, strict=True):
            host, _, port = name.rpartition(":")
            receiver.bind((host, int(port)))
            receiver.setblocking(False)
        for _ in range(40):
            connects(plane, kinds - 1)
            sends(plane, 1)
            assert plane.client.dial(TARGET) == ["ok"]
        received = [how_many(receiver) for receiver in receivers]
    if algorithm is Algorithm.ROUND_ROBIN:
        assert received == [20, 20]
        assert sorted(plane.connects(VIP4).values()) == [20, 20]
    counts = plane.connects(VIP)
    assert sum(counts.values()) == 40 * kinds
    by_chance = counts[names[0]] - received[0]
    assert 0.1 < by_chance / (40 * (kinds - 1)) < 0.9  # a fair choice is outside once in ten million runs


def how_many(receiver: socket.socket) -> int:
    """Return how many datagrams have arrived."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            receiver.recv(16)
            count += 1
    return count
