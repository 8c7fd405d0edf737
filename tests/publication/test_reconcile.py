"""From answers to steps: the work that an earlier publication saves, with the same result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout import address_filter
from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.servers import Algorithm, Pools, RealServer, pools
from clb_discovery.model.service import Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.reconcile import Publication, Wanted, publication
from tests.support.simulator import EMPTY, apply, read
from tests.support.strategies import FEW_VIPS, few_real_servers
from tests.support.work import work

Known = dict[str, Pools]

SERVICES: Final = tuple(Service(f"service-{number}", f"srv:{number}", (vip,)) for number, vip in enumerate(FEW_VIPS))
OTHERS: Final = (*SERVICES[:3], Service("another", "srv:3", FEW_VIPS[3:], Algorithm.LEAST_CONN))
SERVERS: Final = st.lists(few_real_servers(ipv4=True) | few_real_servers(ipv4=False), max_size=4).map(pools)


class Round(NamedTuple):
    """One publication, by its differences from the previous one."""

    services: tuple[Service, ...]
    answers: Known
    """New answers of sources; the others keep the same object."""
    forgotten: frozenset[str]
    narrow: bool
    """Whether there is a `--real-range`, so that some real servers are rejected."""
    complete: bool
    heard: frozenset[str]
    failed: bool
    """Whether the kernel refused the previous publication, so that the maps were read again."""


ROUND: Final = st.builds(
    Round,
    services=st.sampled_from([SERVICES, SERVICES, SERVICES, OTHERS]),
    answers=st.dictionaries(st.sampled_from([service.source for service in SERVICES]), SERVERS, max_size=3),
    forgotten=st.frozensets(st.sampled_from([service.source for service in SERVICES]), max_size=1)
    | st.just(frozenset()),
    narrow=st.sampled_from([False, False, True]),
    complete=st.sampled_from([True, True, True, False]),
    heard=st.frozensets(st.sampled_from([service.source for service in SERVICES])),
    failed=st.sampled_from([False, False, False, True]),
)


def wanted(known: Mapping[str, Pools], one: Round) -> Wanted:
    """Return the inputs of a round."""
    ranges = [parse_network("10.0.0.0/31"), parse_network("fd00::/127")] if one.narrow else []
    return Wanted(one.services, (), known, {}, (), ranges, one.complete, one.heard)


@given(st.lists(ROUND, min_size=1, max_size=8))
def test_what_was_published_before_spares_work_and_changes_nothing(rounds: list[Round]) -> None:
    """In every round, the result is the same as that of a publication without memory."""
    state, installed, before = EMPTY, Installed(), None
    known: Known = {}
    for one in rounds:
        known = {source: found for source, found in {**known, **one.answers}.items() if source not in one.forgotten}
        asked = wanted(known, one)
        if one.failed:
            installed = read(state)
        found, plain = publication(installed, asked, before), publication(installed, asked)
        assert dict(found.desired.virtual) == dict(plain.desired.virtual)
        assert found.desired.rejected == plain.desired.rejected
        assert set(found.plan.changed) == set(plain.plan.changed)
        assert found.plan.removed == plain.plan.removed
        state = apply(state, found.plan.steps)
        installed, before = found.plan.result, found
        decoded = read(state)
        assert decoded.virtual == installed.virtual
        virtual = found.desired.virtual
        assert {vip: decoded.virtual[vip].pool for vip in virtual} == {vip: one.pool for vip, one in virtual.items()}
        claimed = {vip for service in one.services for vip in service.vips}
        for vip in decoded.virtual.keys() - claimed:
            label = decoded.virtual[vip].label
            assert label is not None
            assert label.source not in one.heard, "what a service that was heard does not claim has gone"
        if one.complete:
            assert decoded.virtual.keys() == virtual.keys()
            assert decoded.filter == address_filter.elements(frozenset(vip.address for vip in decoded.virtual))
            assert not decoded.orphans


def test_what_nobody_claims_goes_although_another_service_never_answers() -> None:
    """What an unheard service may still claim stays, and so does what an unheard service has."""
    services = [Service(name, f"srv:{name}", (vip,)) for name, vip in zip("abc", FEW_VIPS, strict=False)]
    known = {service.source: pools([RealServer(0, parse_address("10.0.0.1"), 80, 1)]) for service in services}
    installed = publication(Installed(), Wanted(services, (), known, {}, (), (), complete=True)).plan.result
    silent = Service("silent", "srv:silent", (FEW_VIPS[1],))
    for heard, stays in ((set[str](), (0, 1, 2)), ({"srv:a", "srv:b"}, (1, 2)), ({"srv:a", "srv:c"}, (1,))):
        asked = Wanted([silent], (), {}, {}, (), (), complete=False, heard=frozenset(heard))
        assert publication(installed, asked).plan.result.virtual.keys() == {FEW_VIPS[number] for number in stays}


def test_only_what_has_changed_is_rebuilt() -> None:
    """With many services, the work for one that changes does not grow with the others."""
    one = Round(SERVICES, {}, frozenset(), narrow=False, complete=True, heard=frozenset(), failed=False)
    servers = pools([RealServer(0, FEW_VIPS[0].address, 80, 1)])  # a VIP, which is rejected
    first = publication(Installed(), wanted({service.source: servers for service in SERVICES}, one))
    known = {service.source: servers for service in SERVICES[1:]} | {SERVICES[0].source: Pools()}
    second: Publication = publication(first.plan.result, wanted(known, one), first)
    rebuilt = [vip for vip, server in second.desired.virtual.items() if server is not first.desired.virtual[vip]]
    assert rebuilt == [FEW_VIPS[0]]
    assert second.desired.rejected.keys() == first.desired.rejected.keys() - {SERVICES[0].source}


def many(number: int) -> tuple[Wanted, Wanted]:
    """Return so many services of one real server each, before and after a change of one of them."""
    vips = [parse_vip(f"10.64.{one >> 8}.{one & 255}:80") for one in range(number)]
    services = [Service(f"service-{one}", f"srv:{one}", (vip,)) for one, vip in enumerate(vips)]
    some, others = (pools([RealServer(0, parse_address("10.0.0.1"), port, 1)]) for port in (80, 81))
    known = {service.source: some for service in services}
    before, after = (
        Wanted(services, (), one, {}, (), (), complete=True) for one in (known, {**known, "srv:0": others})
    )
    return before, after


def test_work_is_in_proportion_to_what_is_published() -> None:
    """Four times as many services take four times as much work, and a change of one as much as among few others."""
    first, change = [], []
    for number in (100, 400):
        before, after = many(number)
        found = publication(Installed(), before)
        first.append(work(partial(publication, Installed(), before)))
        change.append(work(partial(publication, found.plan.result, after, found)))
    assert first[1] < 4.4 * first[0]
    assert change[1] < 1.1 * change[0]


@given(st.lists(ROUND, min_size=1, max_size=6), st.integers(1, 30))
def test_rounds_come_to_what_one_publication_comes_to(rounds: list[Round], budget: int) -> None:
    """For any size of rounds and any interruption, the desired state is installed in the end."""
    state, installed, before = EMPTY, Installed(), None
    known: Known = {}
    for one in rounds:
        known = {source: found for source, found in {**known, **one.answers}.items() if source not in one.forgotten}
        asked = wanted(known, one._replace(complete=True))
        for _ in range(2):  # then the next publication interrupts
            before = publication(installed, asked, before, budget=budget)
            state, installed = apply(state, before.plan.steps), before.plan.result
    while before is not None and before.goes_on:
        before = publication(installed, asked, before, budget=budget)
        state, installed = apply(state, before.plan.steps), before.plan.result
    assert before is not None
    assert not before.left
    decoded, virtual = read(state), before.desired.virtual
    assert {vip: one.pool for vip, one in decoded.virtual.items()} == {vip: one.pool for vip, one in virtual.items()}
    assert not decoded.orphans


def test_what_is_set_aside_is_tried_again_when_it_is_another() -> None:
    """A virtual server without room stays as installed until another state is desired, or until its pause is over."""
    one = Round(SERVICES, {}, frozenset(), narrow=False, complete=True, heard=frozenset(), failed=False)
    known: Known = {service.source: Pools() for service in SERVICES}
    first = publication(Installed(), wanted(known, one))
    changed = {**known, SERVICES[0].source: pools([RealServer(0, parse_address("10.0.0.1"), 80, 1)])}
    asked = wanted(changed, one)
    wish = publication(first.plan.result, asked).desired.virtual[FEW_VIPS[0]]
    aside = publication(first.plan.result, asked, first, {FEW_VIPS[0]: wish})
    assert (aside.plan.changed, aside.left, aside.goes_on, aside.pending()) == (
        (),
        {FEW_VIPS[0]: 0},
        False,
        frozenset(),
    )
    again = publication(aside.plan.result, wanted(changed, one), aside, {})
    assert again.plan.changed == (FEW_VIPS[0],)
    other = {**changed, SERVICES[0].source: pools([RealServer(0, parse_address("10.0.0.1"), 80, 2)])}
    rebuilt = publication(aside.plan.result, wanted(other, one), aside, {FEW_VIPS[0]: wish})
    assert rebuilt.plan.changed == (FEW_VIPS[0],)


def test_what_is_replaced_stays_until_there_is_room_for_its_successor() -> None:
    """A service that moves to a VIP without room keeps the VIP that it has."""
    one = Round(SERVICES, {}, frozenset(), narrow=False, complete=True, heard=frozenset(), failed=False)
    here, there = Service("web", "srv:web", (FEW_VIPS[4],)), Service("web", "srv:web", (FEW_VIPS[1],))
    known: Known = {"srv:web": Pools()}
    first = publication(Installed(), wanted(known, one._replace(services=(here,))))
    asked = wanted(known, one._replace(services=(there,)))
    wish = publication(first.plan.result, asked).desired.virtual[FEW_VIPS[1]]
    aside = publication(first.plan.result, asked, None, {FEW_VIPS[1]: wish})
    assert (aside.plan.changed, aside.plan.removed) == ((), ())
    later = publication(aside.plan.result, asked, aside, {})
    assert (later.plan.changed, later.plan.removed) == ((FEW_VIPS[1],), (FEW_VIPS[4],))
