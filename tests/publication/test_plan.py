"""Plans lead from any state of the maps to the desired one, and every prefix of them is safe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any, Final, NamedTuple, TypeGuard

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.alias import effective_weights
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.elements import Label, Slot, Virtual
from clb_discovery.layout.gaps import Gaps, Range
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.slots import pool_members, pool_slots
from clb_discovery.layout.structs import Map
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import (
    MAX_TIERS,
    Algorithm,
    PassiveHealth,
    Pool,
    Protocol,
    RealServer,
    Vip,
    VirtualServer,
)
from clb_discovery.publication.plan import Plan, observed, plan
from clb_discovery.publication.steps import Delete, GracePeriod, Link, Store, Write
from tests.support.junk import damaged
from tests.support.rfc2782 import shares
from tests.support.simulator import (
    EMPTY,
    PASSES_THROUGH,
    Operation,
    Put,
    Remove,
    State,
    apply,
    carry_out,
    connect,
    connects,
    counted,
    distinct,
    element_at,
    expected,
    failover,
    find,
    history,
    lacking,
    may_be_vip,
    numbered,
    operations,
    reachable,
    read,
    served_by,
    served_in_turn,
    slots_of,
    used_indexes,
    walks,
    with_rows,
    with_slot,
    without_link,
)
from tests.support.strategies import DESIRED, FEW_VIPS, TRACKING, pools

Desired = Mapping[Vip, VirtualServer]

TARGETS: Final = tuple({vip for few in FEW_VIPS for vip in (few, few._replace(port=6379), few._replace(port=9))})
"""Destinations of connects: every virtual server, and ports that only a wildcard serves."""

MAPPED: Final = Vip(parse_address("10.64.0.1"), 6379, Protocol.TCP)
OTHER: Final = Vip(parse_address("fd00:64::1"), 53, Protocol.UDP)
ONE: Final = RealServer(0, parse_address("10.0.0.1"), 31001, 1)
THREE: Final = RealServer(0, parse_address("10.0.0.3"), 31003, 3)
BACKUP: Final = RealServer(7, parse_address("10.0.0.9"), 31009, 5)
NEIGHBOURS: Final = (MAPPED, MAPPED._replace(port=0), MAPPED._replace(port=53, protocol=Protocol.UDP))
"""An exact port, its wildcard, and another protocol that keeps their address in the filter."""
SUBSETS: Final = [vips for size in range(4) for vips in combinations(NEIGHBOURS, size)]


class Publication(NamedTuple):
    """One attempt to reach a desired state, cut off by a crash after a share of its operations (1: no crash)."""

    desired: Desired
    complete: bool
    until: float
    counts: bool = False
    """Whether there are connects afterwards."""


PUBLICATION: Final = st.builds(
    Publication, DESIRED, st.booleans(), st.just(1.0) | st.integers(1, 31).map(lambda part: part / 32), st.booleans()
)


def after(state: State, past: Iterable[Publication]) -> State:
    """Return the state after these publications, each of which starts from the result of the previous one."""
    for publication in past:
        states = history(state, plan(read(state), publication.desired, complete=publication.complete).steps)
        state = states[round(publication.until * (len(states) - 1))]
        state = counted(state) if publication.counts else state
    return state


NEW: Final = st.sampled_from([EMPTY, EMPTY, with_rows(4), with_rows(1)])
"""Maps that were just loaded; some with less room for rows than pools need."""
PRIOR: Final = NEW | st.builds(after, NEW, st.lists(PUBLICATION, min_size=1, max_size=3))
"""All states that publications and crashes can leave."""


def virtual_server(vip: Vip, *pool: RealServer, service: str = "redis") -> VirtualServer:
    """Build a virtual server fed by an SRV source."""
    return VirtualServer(vip, service, "srv:_redis._tcp.example", Algorithm.RANDOM, tuple(sorted(pool)))


def desired_of(*servers: VirtualServer) -> Desired:
    """Build a desired state."""
    return {server.vip: server for server in servers}


def pools_of(desired: Desired) -> dict[Vip, Pool]:
    """Return the pools of a desired state."""
    return {vip: server.pool for vip, server in desired.items()}


def comparable(installed: Installed) -> Installed:
    """Return the installed state without the highest generation, the indexes of removed servers, and free rows.

    Only the process that removed servers knows the former. Rows that two virtual servers referred to are free at the
    next start.
    """
    orphans = {map_: tuple(sorted(keys)) for map_, keys in installed.orphans.items()}
    return replace(installed, orphans=orphans, free_rows=(), last_generation=0, free=(), resting=(), top=0)


def taken(installed: Installed) -> set[int]:
    """Return the indexes that must not be given to new servers."""
    return set(range(installed.top)) - set(installed.free) - set(installed.resting)


def rows_of(gaps: Gaps) -> set[int]:
    """Return the free rows one by one."""
    return {row for start, end in gaps for row in range(start, min(end, 100))}


def shape(state: State) -> dict[Map, object]:
    """Return a state without the numbers of generations and servers, which depend on the history."""
    virtual = {key: elements.unpack_virtual(value) for key, value in reachable(state).items()}
    used = used_indexes(state)
    indexes = {elements.pack_index(index) for _, index in used}
    numbers = {one.generation for one in virtual.values() if one.row == structs.OVERFLOWS}
    return {
        Map.VIRTUAL: {key: value._replace(next=0, generation=0, row=0, refusal=0) for key, value in virtual.items()},
        Map.ROWS: {
            (key, index): slot._replace(server=0)
            for key, value in virtual.items()
            for index, slot in slots_of(state, value.generation).items()
        },
        Map.OVERFLOW: {elements.unpack_place(key)[0] for key in state[Map.OVERFLOW]} - numbers,
        Map.CHAINS: {index for chain in read(state).broken.values() for index in chain},
        Map.SERVERS: ({member for member, _ in used}, len(indexes), state[Map.SERVERS].keys() - indexes),
        Map.LABELS: dict(state[Map.LABELS]),
        Map.FILTER: read(state).filter,
    }


def fresh(desired: Desired) -> State:
    """Return the state after a publication into empty maps."""
    return apply(EMPTY, plan(Installed(), desired, complete=True).steps)


def published_at(state: State, vip: Vip) -> bytes:
    """Return the element of a virtual server that programs find."""
    element = find(state, elements.pack_vip(vip))
    assert element
    return element


def is_of_servers(operation: Operation) -> TypeGuard[Put]:
    """Tell whether an operation is on an element of `clb_servers`."""
    return isinstance(operation, Put) and operation.map is Map.SERVERS


@given(DESIRED)
def test_a_publication_into_empty_maps_serves_what_is_desired(desired: Desired) -> None:
    """Each connect gets exactly the RFC 2782 shares of the desired pools, or passes unchanged."""
    state = fresh(desired)
    for target in TARGETS:
        assert connect(state, target) == expected(pools_of(desired), target)


@given(PRIOR | damaged(PRIOR), DESIRED, st.booleans())
def test_the_result_of_a_plan_is_what_decoding_the_maps_says(state: State, desired: Desired, complete: bool) -> None:
    """The result of a plan is the installed state after it, so that the next plan need not read the maps.

    The exception: if it replaces one of two virtual servers with the same index or row, it does not see that the other
    one becomes valid.
    """
    installed = read(state)
    assume(complete or all(published.servers and published.rows for published in installed.virtual.values()))
    made = plan(installed, desired, complete=complete)
    decoded = read(apply(state, made.steps))
    assert comparable(decoded) == comparable(made.result)
    assert rows_of(made.result.free_rows) <= rows_of(decoded.free_rows)
    assert made.result.free_rows == decoded.free_rows or not all(one.rows for one in installed.virtual.values())
    assert taken(decoded) == taken(made.result)
    assert decoded.last_generation <= made.result.last_generation


@given(PRIOR, DESIRED, st.booleans())
def test_what_a_plan_did_is_found_in_the_maps(state: State, desired: Desired, complete: bool) -> None:
    """The maps show what a plan has changed, removed and dropped, if it is not known how far it went."""
    before, made = read(state), plan(read(state), desired, complete=complete)
    found = observed(before, read(apply(state, made.steps)))
    assert set(found.removed) == set(made.removed)
    assert set(found.dropped) == set(made.dropped)
    assert set(found.changed) >= set(made.changed)
    assert observed(before, before) == Plan((), before, (), (), ())


@given(st.lists(PUBLICATION, max_size=4).map(lambda past: [one.desired for one in past]), st.booleans())
def test_plans_follow_from_results_without_reading_again(past: list[Desired], complete: bool) -> None:
    """A sidecar that never reads the maps again serves the desired state, and leaves the same state as a new start."""
    state, installed = EMPTY, Installed()
    for desired in past:
        made = plan(installed, desired, complete=complete)
        state, installed = counted(apply(state, made.steps)), made.result
        for target in TARGETS if complete else desired:
            assert connect(state, target) == expected(pools_of(desired), target)
    if complete and past:
        assert shape(state) == shape(fresh(past[-1]))


@given(st.lists(PUBLICATION, min_size=1, max_size=3), DESIRED, DESIRED)
def test_a_plan_before_everything_is_known_is_followed_by_a_complete_one(
    past: list[Publication], first: Desired, second: Desired
) -> None:
    """After a crash, an incomplete plan and then a complete one without reading the maps leave no orphans."""
    state = after(EMPTY, past)
    incomplete = plan(read(state), first, complete=False)
    complete = plan(incomplete.result, second, complete=True)
    assert shape(apply(apply(state, incomplete.steps), complete.steps)) == shape(fresh(second))


@given(damaged(PRIOR), DESIRED)
def test_any_state_leads_to_the_desired_one(state: State, desired: Desired) -> None:
    """From any state after crashes and other writers, one complete plan gives exactly the desired state."""
    state = apply(state, plan(read(state), desired, complete=True).steps)
    assert shape(state) == shape(fresh(desired))
    assert plan(read(state), desired, complete=True).steps == ()


@given(damaged(PRIOR), DESIRED)
def test_any_state_leads_to_what_is_known_so_far(state: State, desired: Desired) -> None:
    """From any state, an incomplete plan serves the desired pools, and a second one has nothing to do."""
    state = apply(state, plan(read(state), desired, complete=False).steps)
    for target in desired:
        assert connect(state, target) == expected(pools_of(desired), target)
    assert plan(read(state), desired, complete=False).steps == ()


@given(PRIOR, DESIRED)
def test_nothing_is_taken_away_before_everything_is_known(state: State, desired: Desired) -> None:
    """An incomplete plan leaves all other virtual servers and orphans as they are."""
    installed = read(state)
    states = history(state, plan(installed, desired, complete=False).steps)
    others = set(installed.virtual) - set(desired)
    for later in states:
        bits_of = read(later).filter
        assert all(bits_of.get(index, 0) & bits == bits for index, bits in installed.filter.items())
        assert reachable(state).keys() <= reachable(later).keys()
        assert state[Map.LABELS].keys() <= later[Map.LABELS].keys()
        for map_, keys in installed.orphans.items():
            assert set(keys) <= later[map_].keys()
    result = read(states[-1])
    assert {vip: result.virtual[vip] for vip in others} == {vip: installed.virtual[vip] for vip in others}


@given(PRIOR, DESIRED, st.booleans())
def test_an_unchanged_pool_costs_nothing(state: State, desired: Desired, complete: bool) -> None:
    """A plan for the installed state has no steps, no new generation and the same result."""
    first = plan(read(state), desired, complete=complete)
    again = plan(first.result, desired, complete=complete)
    assert again == Plan((), first.result, (), (), ())
    decoded = read(apply(state, first.steps))
    assert plan(decoded, desired, complete=complete).steps == ()


@given(PRIOR, DESIRED)
def test_only_pools_that_differ_are_written(state: State, desired: Desired) -> None:
    """A virtual server whose pool, scheduler and passive health are installed keeps its generation and its elements."""
    installed = read(state)
    made = plan(installed, desired, complete=True)
    for vip, server in desired.items():
        old = installed.virtual.get(vip)
        wanted = (server.pool, server.algorithm, server.health)
        same = old is not None and (old.pool, old.algorithm, old.health) == wanted
        assert (vip in made.changed) is not same
        if same and old:
            assert made.result.virtual[vip].generation == old.generation
    assert set(made.removed) == set(installed.virtual) - set(desired)
    touched = [
        value for step in made.steps if isinstance(step, Write) for _, value in step.items if step.map is Map.VIRTUAL
    ]
    assert sorted(elements.unpack_virtual(value).vip for value in touched) == sorted(
        map(elements.pack_vip, made.changed)
    )


@given(PRIOR, DESIRED)
def test_records_of_servers_that_stay_are_never_touched(state: State, desired: Desired) -> None:
    """A real server in both the old and the new pool keeps its counters and its ejection."""
    installed = read(state)
    made = plan(installed, desired, complete=True)
    touched = {operation.key for operation in operations(made.steps) if is_of_servers(operation)}
    for vip in desired.keys() & installed.virtual.keys():
        had, has = installed.virtual[vip].servers, made.result.virtual[vip].servers
        for member in had.keys() & has.keys():
            assert had[member] == has[member]
            assert elements.pack_index(had[member]) not in touched


@given(PRIOR, DESIRED, st.booleans())
def test_a_new_server_has_counted_nothing(state: State, desired: Desired, complete: bool) -> None:
    """The counters of a new server begin at zero, whatever had its index before; all others keep theirs."""
    before = used_indexes(state)
    later = apply(state, plan(read(state), desired, complete=complete).steps)
    for member, index in used_indexes(later):
        element = elements.pack_index(index)
        kept = state[Map.SERVERS].get(element) if (member, index) in before else None
        assert later[Map.SERVERS].get(element) == kept


@settings(max_examples=150)
@given(st.lists(DESIRED, max_size=6), st.booleans())
def test_an_index_rests_before_another_server_has_it(past: list[Desired], complete: bool) -> None:
    """It is set to zero a grace period after its removal, and reused after another grace period.

    It never belongs to two members at the same time.
    """
    state, installed, periods = EMPTY, Installed(), 0
    known: dict[int, tuple[bytes, int]] = {}
    zeroed: dict[int, int] = {}
    for desired in past:
        made = plan(installed, desired, complete=complete)
        for operation in operations(made.steps):
            periods += isinstance(operation, GracePeriod)
            state = carry_out(state, operation)
            if is_of_servers(operation) and (index := elements.unpack_index(operation.key)) in known:
                assert operation.value == elements.NEW_SERVER
                assert known[index][1] < periods
                zeroed.setdefault(index, periods)
            used = used_indexes(state)
            assert len({index for _, index in used}) == len(used)
            for member, index in used:
                if index in zeroed:
                    assert zeroed.pop(index) < periods
                elif index in known:
                    assert known[index][0] == member
                known[index] = member, periods
        installed, state = made.result, counted(state)


def test_an_index_is_used_again() -> None:
    """The index of a removed server is given to the next new server after the grace period of the next plan."""
    installed, indexes = Installed(), []
    for server in (ONE, THREE, BACKUP, ONE, THREE):
        installed = plan(installed, desired_of(virtual_server(MAPPED, server)), complete=True).result
        indexes.append(installed.virtual[MAPPED].servers[elements.pack_member(elements.pack_vip(MAPPED), server)])
    assert indexes == [1, 2, 3, 1, 2]
    assert (installed.free, installed.resting, installed.top) == ((3,), (1,), 4)


def test_an_index_may_have_to_rest_first() -> None:
    """If all indexes have been used, a plan waits for those that were set to zero last."""
    installed = Installed(free=(4,), resting=(8, 6, 7), top=structs.MAX_SERVERS)
    made = plan(installed, desired_of(virtual_server(MAPPED, ONE, THREE)), complete=True)
    assert isinstance(made.steps[0], GracePeriod)
    assert sorted(made.result.virtual[MAPPED].servers.values()) == [4, 6, 8]
    assert (made.result.free, made.result.resting, made.result.top) == ((7,), (), structs.MAX_SERVERS)
    assert connect(apply(EMPTY, made.steps), MAPPED) == served_by(MAPPED, (ONE, THREE))


def test_more_servers_than_there_are_indexes_are_for_the_kernel_to_refuse() -> None:
    """A plan for more servers than fit the map fails at its first step, before anything changes."""
    made = plan(Installed(top=structs.MAX_SERVERS - 1), desired_of(virtual_server(MAPPED, ONE)), complete=True)
    assert isinstance(made.steps[0], Write)
    assert made.steps[0].map is Map.SERVERS
    with pytest.raises(ValueError, match="no such element"):
        apply(EMPTY, made.steps)


@given(PRIOR, DESIRED)
def test_generations_are_never_reused(state: State, desired: Desired) -> None:
    """Every change gets a generation above all generations in the maps."""
    installed = read(state)
    made = plan(installed, desired, complete=True)
    new = [made.result.virtual[vip].generation for vip in made.changed]
    assert all(generation > installed.last_generation for generation in new)
    assert len(set(new)) == len(new)
    assert made.result.last_generation == max([installed.last_generation, *new])


@settings(max_examples=150)
@given(PRIOR, DESIRED, st.booleans())
def test_every_prefix_is_safe(state: State, desired: Desired, complete: bool) -> None:
    """After each single operation, a connect has the whole old pool or the whole new one, never a mix, never a hole.

    For a virtual server in only one of the two states, a connect has its whole pool or passes unchanged.
    """
    installed = read(state)
    old = {vip: published.pool for vip, published in installed.virtual.items() if published.pool is not None}
    made = plan(installed, desired, complete=complete)
    states = history(state, made.steps)
    new = pools_of(desired) if complete else {**old, **pools_of(desired)}
    for target in TARGETS:
        before, then = connect(state, target), expected(new, target)
        # An old virtual server that a crash kept hidden may become visible before it is deleted.
        allowed = [before, then, expected(old, target)]
        outcomes = connects(states, target)
        assert all(outcome in allowed for outcome in outcomes)
        assert outcomes[-1] == then
        if PASSES_THROUGH not in (before, then):
            assert PASSES_THROUGH not in outcomes


@settings(max_examples=150)
@given(PRIOR, DESIRED, st.booleans())
def test_a_slow_reader_finds_what_it_was_sent_to(state: State, desired: Desired, complete: bool) -> None:
    """A program that has read an element of `clb_virtual` finds all of its elements until a grace period has passed.

    It may read the link at any point, and the element, slots and servers at any later point before the next grace
    period.
    """
    for run in between_grace_periods(state, plan(read(state), desired, complete=complete)):
        known: set[tuple[int, bytes]] = set()
        for start, first in enumerate(run):
            rows = distinct(run[start:], Map.VIRTUAL, Map.ROWS, Map.OVERFLOW)
            servers = distinct(run[start:], Map.VIRTUAL, Map.ROWS, Map.OVERFLOW, Map.SERVERS)
            for index in (index for chain in read(first).chains.values() for index in chain):
                published = element_at(first, index) or b""
                if (index, without_link(published)) in known:  # compared with all later states before
                    continue
                known.add((index, without_link(published)))
                found = failover(first, published)
                assert all(None not in outcomes for outcomes in found)
                for later in rows:
                    assert without_link(element_at(later, index) or b"") == without_link(published)
                    assert failover(later, published) == found
                assert not any(lacking(later, published) for later in servers)


@settings(max_examples=150)
@given(PRIOR, DESIRED, st.booleans())
def test_a_reader_that_follows_a_chain_while_links_change_finds_what_is_there(
    state: State, desired: Desired, complete: bool
) -> None:
    """A program that reads each link of a chain at another moment finds what it would find at one of these moments."""
    for run in between_grace_periods(state, plan(read(state), desired, complete=complete)):
        for target in TARGETS:
            key = elements.pack_vip(target)
            at_once = {element and without_link(element) for element in (find(one, key) for one in run)}
            assert walks(run, key) <= at_once


@settings(max_examples=150)
@given(PRIOR, DESIRED, st.booleans(), st.floats(0, 1))
def test_nothing_that_a_link_leads_to_is_written(state: State, desired: Desired, complete: bool, until: float) -> None:
    """After a crash at any point, the next plan writes no element and no row that programs can reach."""
    states = history(state, plan(read(state), desired, complete=complete).steps)
    crashed = states[round(until * (len(states) - 1))]
    virtual = [elements.unpack_virtual(element) for element in reachable(crashed).values()]
    reached = {index for chain in read(crashed).chains.values() for index in chain}
    assert len(reached) == len(virtual)
    in_array = [one for one in virtual if one.row != structs.OVERFLOWS]
    rows = {one.row + row for one in in_array for row in range(elements.rows(one.servers))}
    written = {Map.VIRTUAL: reached, Map.ROWS: rows}
    for operation in operations(plan(read(crashed), desired, complete=complete).steps):
        if isinstance(operation, Put) and operation.map in written:
            assert elements.unpack_index(operation.key) not in written[operation.map]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("after", SUBSETS)
@pytest.mark.parametrize("before", SUBSETS)
def test_no_reader_falls_between_exact_port_and_wildcard(
    before: tuple[Vip, ...], after: tuple[Vip, ...], complete: bool
) -> None:
    """A program that misses the exact port early and looks up the wildcard late still finds one of the two.

    This holds for all ports that are served before and after, by the exact port or by the wildcard.
    """
    old = desired_of(*(virtual_server(vip, ONE) for vip in before))
    new = desired_of(*(virtual_server(vip, THREE) for vip in after))
    state = fresh(old)
    made = plan(read(state), new, complete=complete)
    for run in between_grace_periods(state, made):
        for target in NEIGHBOURS:
            if PASSES_THROUGH in (
                expected(pools_of(old), target),
                expected({**pools_of(old), **pools_of(new)}, target),
            ):
                continue
            if complete and expected(pools_of(new), target) == PASSES_THROUGH:
                continue
            exact, wildcard = elements.pack_vip(target), elements.pack_vip(target._replace(port=0))
            assert all(may_be_vip(one, target.address) for one in run)
            missed = [at for at, one in enumerate(run) if not find(one, exact)]
            assert not missed or all(find(one, wildcard) for one in run[missed[0] :])


@pytest.mark.parametrize("after", SUBSETS)
@pytest.mark.parametrize("before", SUBSETS)
def test_a_wildcard_never_serves_an_exact_port_in_passing(before: tuple[Vip, ...], after: tuple[Vip, ...]) -> None:
    """If virtual servers of one address are added and deleted together, no connect gets the pool of another one."""
    old = desired_of(*(virtual_server(vip, ONE) for vip in before))
    new = desired_of(*(virtual_server(vip, THREE) for vip in after))
    state = fresh(old)
    states = history(state, plan(read(state), new, complete=True).steps)
    for target in NEIGHBOURS:
        allowed = [expected(pools_of(old), target), expected(pools_of(new), target)]
        assert all(outcome in allowed for outcome in connects(states, target))


@settings(max_examples=150)
@given(PRIOR, DESIRED, DESIRED, st.floats(0, 1))
def test_a_crash_after_any_prefix_is_repaired(state: State, first: Desired, second: Desired, until: float) -> None:
    """A restart after a crash gives exactly the desired state, and no orphans."""
    crashed = after(state, [Publication(first, complete=True, until=until)])
    for desired in (first, second):
        repaired = apply(crashed, plan(read(crashed), desired, complete=True).steps)
        assert shape(repaired) == shape(fresh(desired))
        assert read(repaired).orphans == {}


def test_a_crash_after_each_operation_in_turn_is_repaired() -> None:
    """A crash at any point of a publication that changes, adds and removes leaves nothing that the next start keeps."""
    before = desired_of(virtual_server(MAPPED, ONE, BACKUP), virtual_server(OTHER._replace(port=9)))
    target = desired_of(virtual_server(MAPPED, ONE, THREE), virtual_server(OTHER))
    start = fresh(before)
    states = history(start, plan(read(start), target, complete=True).steps)
    assert len(states) > 12
    for crashed in states:
        for desired in (before, target):
            assert shape(apply(crashed, plan(read(crashed), desired, complete=True).steps)) == shape(fresh(desired))


@given(PRIOR, DESIRED)
def test_the_order_is_that_of_the_header(state: State, desired: Desired) -> None:
    """All elements are written before the first link, addresses after it; deletions wait for RCU."""
    steps = plan(read(state), desired, complete=True).steps
    waits = [at for at, step in enumerate(steps) if isinstance(step, GracePeriod)]
    collected = steps[waits[-1] + 1 :] if waits else ()
    writes = [step.map for step in steps if isinstance(step, Write) and step not in collected]
    order = [Map.SERVERS, Map.ROWS, Map.OVERFLOW, Map.VIRTUAL, Map.LABELS, Map.FILTER]
    assert list(dict.fromkeys(writes)) == [map_ for map_ in order if map_ in writes]  # bits are set, then cleared
    cleared = [step.map for step in collected if isinstance(step, Write)]
    assert cleared in ([], [Map.STEERING, Map.SERVERS])
    stores = [at for at, step in enumerate(steps) if isinstance(step, Store)]
    for at, step in enumerate(steps):
        if isinstance(step, Delete):
            assert waits
            assert at > waits[-1]
        if isinstance(step, Write) and step.map is not Map.FILTER and step not in collected and stores:
            assert at < stores[0]
    assert not stores or not any(isinstance(step, Store) for step in collected)
    assert all(not isinstance(one, GracePeriod) or not isinstance(other, GracePeriod) for one, other in pairwise(steps))


@given(PRIOR, DESIRED, st.booleans())
def test_no_step_is_empty(state: State, desired: Desired, complete: bool) -> None:
    """Every step of a plan has something to do, and no operation is done twice."""
    steps = plan(read(state), desired, complete=complete).steps
    assert all(step.items for step in steps if isinstance(step, Write))
    assert all(step.keys for step in steps if isinstance(step, Delete))
    done = [operation[:2] for operation in operations(steps) if isinstance(operation, Put | Remove)]
    assert len(set(done)) == len(done)


@given(pools(ipv4=True).filter(bool))
def test_slots_are_a_table_for_each_tier(pool: Pool) -> None:
    """Slots are in the order of the pool; an alias stays in its tier, so that each tier has its own table."""
    key = elements.pack_vip(MAPPED)
    slots = pool_slots(pool, numbered(key, pool).items())
    assert [slot.server for slot in slots] == list(range(1, len(pool) + 1))
    assert [elements.unpack_member(slot.member)[1:] for slot in slots] == [(one.address, one.port) for one in pool]
    assert [(slot.priority, slot.weight) for slot in slots] == [(one.priority, one.weight) for one in pool]
    priorities = sorted({one.priority for one in pool})
    assert [slot.rank for slot in slots] == [priorities.index(one.priority) for one in pool]
    for slot in slots:
        tier = [one.weight for one in pool if one.priority == slot.priority]
        assert Fraction(slot.share, sum(effective_weights(tier))) == shares(tier)[slots.index(slot) - slot.first]
    assert all(slots[slot.alias].priority == slot.priority for slot in slots)
    for index, slot in enumerate(slots):
        own = range(slot.first, slot.first + slot.tier)
        assert index in own
        assert slot.alias in own
        assert [one for one, server in enumerate(pool) if server.priority == slot.priority] == list(own)


@given(pools(ipv4=True))
def test_the_table_of_a_tier_does_not_depend_on_the_others(pool: Pool) -> None:
    """The slots of a tier are the same as those of a pool with this tier alone, at a later position."""
    key = elements.pack_vip(MAPPED)
    indexes = numbered(key, pool)

    def slots_of_some(some: Pool) -> list[Slot]:
        return pool_slots(some, [(member, indexes[member]) for member in pool_members(key, some)])

    alone: list[Slot] = []
    for rank, priority in enumerate(sorted({server.priority for server in pool})):
        first = len(alone)
        tier = slots_of_some(tuple(server for server in pool if server.priority == priority))
        alone += [slot._replace(rank=rank, first=first, alias=first + slot.alias) for slot in tier]
    assert slots_of_some(pool) == (alone or slots_of_some(()))


@given(pools(ipv4=True), st.sampled_from(Algorithm), TRACKING)
def test_tiers_take_over_from_each_other(pool: Pool, algorithm: Algorithm, health: PassiveHealth) -> None:
    """A walk from tier to tier visits each once, by rising priority, with exactly the shares of its servers."""
    server = replace(virtual_server(MAPPED, *pool), algorithm=algorithm, health=health)
    state = fresh({MAPPED: server})
    assert failover(state, published_at(state, MAPPED)) == served_in_turn(MAPPED, pool)


def test_every_tier_of_a_pool_can_take_over() -> None:
    """With the largest number of tiers, programs still find the last one."""
    pool = tuple(ONE._replace(priority=10 * tier, port=1 + tier) for tier in range(MAX_TIERS))
    state, key = fresh(desired_of(virtual_server(MAPPED, *pool))), elements.pack_vip(MAPPED)
    found = failover(state, published_at(state, MAPPED))
    assert found == [{elements.pack_member(key, server): 1} for server in pool]


def test_an_empty_pool_has_one_slot_that_refuses() -> None:
    """The member of its slot is the refusal, and every draw picks it."""
    key = elements.pack_vip(MAPPED)
    refusal = elements.refusal(key)
    assert pool_slots((), [(refusal, 5)]) == [
        Slot(refusal, rank=0, server=5, keep=1, out_of=1, alias=0, first=0, tier=1, share=1, weight=0, priority=0)
    ]
    assert connect(fresh(desired_of(virtual_server(MAPPED))), MAPPED) == {elements.refusal(key): 1}


def test_only_the_lowest_tier_is_used() -> None:
    """A real server with a higher priority number is published, but not picked while the lowest tier exists."""
    state = fresh(desired_of(virtual_server(MAPPED, ONE, THREE, BACKUP)))
    assert len(slots_of(state, 1)) == 3
    assert connect(state, MAPPED) == served_by(MAPPED, (ONE, THREE))


def test_a_pool_without_room_in_the_array_is_in_the_overflow() -> None:
    """It needs consecutive rows; when it is published again and finds some, it moves back."""
    many = tuple(ONE._replace(port=port) for port in range(1, 3 * structs.ROW_SLOTS))
    large, other = virtual_server(OTHER, *many), virtual_server(MAPPED, ONE)
    state, installed = with_rows(5), read(with_rows(5))
    placed = []
    for desired in (
        (other,),
        (other, large),  # three of the four free rows
        (other, replace(large, pool=many[1:])),  # the old pool still has its rows
        (other, replace(large, pool=many)),
        (other, replace(large, pool=many[2:])),
        (replace(other, pool=(THREE,)), large),
    ):
        made = plan(installed, desired_of(*desired), complete=True)
        state, installed = apply(state, made.steps), made.result
        placed.append([installed.virtual[server.vip].row for server in desired])
        assert read(state).free_rows == installed.free_rows
        assert comparable(read(state)) == comparable(installed)
        for server in desired:
            assert connect(state, server.vip) == served_by(server.vip, server.pool)
    out = structs.OVERFLOWS
    assert placed == [[0], [0, 1], [0, out], [0, 1], [0, out], [1, 2]]
    assert read(state).orphans == {}


def test_a_plan_in_full() -> None:
    """Replacing one pool and removing another virtual server gives these steps, in this order."""
    first = plan(Installed(), desired_of(virtual_server(MAPPED, ONE), virtual_server(OTHER)), complete=True)
    made = plan(first.result, desired_of(virtual_server(MAPPED, THREE, service="cache")), complete=True)
    mapped, other = elements.pack_vip(MAPPED), elements.pack_vip(OTHER)
    assert made.changed == (MAPPED,)
    assert made.removed == (OTHER,)
    steps = [(type(step).__name__, getattr(step, "map", None)) for step in made.steps]
    assert steps == [
        ("Write", Map.SERVERS),
        ("Write", Map.ROWS),
        ("Write", Map.VIRTUAL),
        ("Write", Map.LABELS),
        ("Store", None),
        ("Write", Map.FILTER),
        ("Store", None),
        ("GracePeriod", None),
        ("Write", Map.STEERING),
        ("Write", Map.SERVERS),
        ("Delete", Map.LABELS),
    ]
    here, there = chain_of(mapped), chain_of(other)
    assert [step.links for step in made.steps if isinstance(step, Store)] == [
        (Link(Map.CHAINS, here, 3),),
        (Link(Map.CHAINS, there, 0),),
    ]
    assert made.steps[0] == Write(Map.SERVERS, ((elements.pack_index(3), elements.NEW_SERVER),))
    assert made.steps[-3:] == (
        Write(Map.STEERING, tuple((elements.pack_index(index), elements.NO_WORD) for index in (1, 2))),
        Write(Map.SERVERS, tuple((elements.pack_index(index), elements.NEW_SERVER) for index in (1, 2))),
        Delete(Map.LABELS, (other,)),
    )
    assert made.result.virtual == {
        MAPPED: Published(
            generation=3,
            index=3,
            row=2,
            rows=range(1),
            algorithm=Algorithm.RANDOM,
            pool=(THREE,),
            health=PassiveHealth(),
            label=Label("cache", "srv:_redis._tcp.example"),
            servers={elements.refusal(mapped): 0, elements.pack_member(mapped, THREE): 3},
        )
    }
    assert made.dropped == (elements.pack_member(mapped, ONE),)
    assert (made.result.free, made.result.resting, made.result.top) == ((), (1, 2), 4)
    assert made.result.chains == {here: (3,)}
    assert made.result.free_virtual == (Range(1, 3), Range(4, structs.VIRTUAL_ELEMENTS))
    assert made.result.free_rows == (Range(0, 2), Range(3, structs.ROWS))


def test_a_new_name_alone_writes_the_label_alone() -> None:
    """Renaming a service touches neither its pool nor its servers."""
    first = plan(Installed(), desired_of(virtual_server(MAPPED, ONE)), complete=True)
    made = plan(first.result, desired_of(virtual_server(MAPPED, ONE, service="cache")), complete=True)
    (step,) = made.steps
    assert isinstance(step, Write)
    assert step.map is Map.LABELS
    assert made.changed == ()


def test_a_name_too_long_for_the_map_is_no_change_for_ever() -> None:
    """A name is compared in the form that fits the map."""
    desired = desired_of(virtual_server(MAPPED, ONE, service="ü" * 200))
    first = plan(Installed(), desired, complete=True)
    assert plan(first.result, desired, complete=True).steps == ()


def test_a_weight_alone_is_a_new_generation_of_the_same_servers() -> None:
    """Weights are part of the table, so they are published like members; the counters of the servers stay."""
    first = plan(Installed(), desired_of(virtual_server(MAPPED, ONE, THREE)), complete=True)
    made = plan(first.result, desired_of(virtual_server(MAPPED, ONE, THREE._replace(weight=4))), complete=True)
    assert [getattr(step, "map", type(step)) for step in made.steps] == [Map.ROWS, Map.VIRTUAL, Store, GracePeriod]
    assert made.changed == (MAPPED,)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": Algorithm.ROUND_ROBIN},
        {"algorithm": Algorithm.LEAST_CONN},
        {"health": PassiveHealth(active=False)},
        {"health": PassiveHealth(eject_after=0)},
        {"health": PassiveHealth(eject_first_ms=1)},
        {"health": PassiveHealth(eject_most_ms=2**32 - 1)},
        {"pool": (ONE, BACKUP._replace(priority=0), THREE)},
    ],
    ids=str,
)
def test_counters_and_ejections_outlive_a_change_of_how_servers_are_chosen(
    change: dict[str, Any], complete: bool
) -> None:
    """A change of scheduler, passive health or tier gives a new generation of the same members with their counters."""
    before = virtual_server(MAPPED, ONE, THREE, BACKUP)
    after = replace(before, **change)
    state = fresh({MAPPED: before})
    for index in range(4):
        element = elements.pack_index(index)
        state = carry_out(state, Put(Map.SERVERS, element, bytes([index + 1]) * structs.SERVER.size))
    made = plan(read(state), {MAPPED: after}, complete=complete)
    old, new = read(state).virtual[MAPPED], made.result.virtual[MAPPED]
    assert made.changed == (MAPPED,)
    assert new.generation == old.generation + 1
    assert new.servers == old.servers
    assert (new.pool, new.algorithm, new.health) == (after.pool, after.algorithm, after.health)
    later = apply(state, made.steps)
    assert later[Map.SERVERS] == state[Map.SERVERS]
    assert shape(later) == shape(fresh({MAPPED: after}))


def test_an_address_is_there_as_long_as_one_virtual_server_needs_it() -> None:
    """The address is removed with its last virtual server, and not before."""
    wildcard = MAPPED._replace(port=0)
    both = plan(Installed(), desired_of(virtual_server(MAPPED, ONE), virtual_server(wildcard, THREE)), complete=True)
    one = plan(both.result, desired_of(virtual_server(wildcard, THREE)), complete=True)
    assert one.result.filter == address_filter.elements(frozenset({MAPPED.address}))
    assert plan(one.result, {}, complete=True).result.filter == {}


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("newer", [{"algorithm": 99}, {"flags": structs.COUNT_ACTIVE | 1 << 15}], ids=str)
def test_what_a_newer_version_published_is_replaced(newer: dict[str, int], complete: bool) -> None:
    """A virtual server with a scheduler or a flag that this version does not know is republished."""
    desired = desired_of(virtual_server(MAPPED, ONE))
    state = fresh(desired)
    ((key, value),) = state[Map.VIRTUAL].items()
    changed = Virtual(**elements.unpack_virtual(value)._asdict() | newer)
    state = carry_out(state, Put(Map.VIRTUAL, key, elements.pack_virtual(changed)))
    made = plan(read(state), desired, complete=complete)
    assert made.changed == (MAPPED,)
    assert shape(apply(state, made.steps)) == shape(fresh(desired))


def test_the_simulator_sees_what_counts_for_another() -> None:
    """The simulator detects an index that belongs to another member."""
    desired = desired_of(virtual_server(MAPPED, ONE, THREE))
    state = counted(fresh(desired))
    published = published_at(state, MAPPED)
    assert lacking(state, published) == []
    state = with_slot(state, 1, 0, slots_of(state, 1)[0]._replace(server=2))
    assert lacking(state, published) == [(Map.SERVERS, elements.pack_index(2))]


def test_the_simulator_sees_a_mix() -> None:
    """The check of every prefix detects slots that change under their element, and elements without slots."""
    state = fresh(desired_of(virtual_server(MAPPED, ONE, THREE)))
    foreign = slots_of(state, 1)[0]._replace(member=elements.pack_member(elements.pack_vip(MAPPED), BACKUP))
    mixed = connect(with_slot(state, 1, 0, foreign), MAPPED)
    assert mixed not in (served_by(MAPPED, (ONE, THREE)), served_by(MAPPED, (BACKUP, THREE)))
    assert connect(with_slot(state, 1, 0, foreign._replace(out_of=0)), MAPPED).keys() > {None}


def between_grace_periods(state: State, made: Plan) -> list[list[State]]:
    """Return the states of a plan in runs that one program can see."""
    runs: list[list[State]] = [[state]]
    for operation in operations(made.steps):
        if isinstance(operation, GracePeriod):
            runs.append([runs[-1][-1]])
        else:
            runs[-1].append(carry_out(runs[-1][-1], operation))
    return runs
