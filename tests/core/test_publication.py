"""From what discovery says to steps: what an earlier publication spares, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.core import address_filter
from clb_discovery.core.address import parse_network
from clb_discovery.core.held import Held
from clb_discovery.core.model import Algorithm, RealServer, Service
from clb_discovery.core.publication import Publication, Wanted, publication
from tests.core.simulator import EMPTY, apply, read
from tests.core.strategies import FEW_VIPS, few_real_servers

Known = dict[str, tuple[RealServer, ...]]

SERVICES: Final = tuple(Service(f"service-{number}", f"srv:{number}", (vip,)) for number, vip in enumerate(FEW_VIPS))
OTHERS: Final = (*SERVICES[:3], Service("another", "srv:3", FEW_VIPS[3:], Algorithm.LEAST_CONN))
SERVERS: Final = st.lists(few_real_servers(ipv4=True) | few_real_servers(ipv4=False), max_size=4).map(tuple)


class Round(NamedTuple):
    """One publication, by what is different from the last."""

    services: tuple[Service, ...]
    answers: Known
    """What sources say anew; the others say what they said, in the same object."""
    forgotten: frozenset[str]
    narrow: bool
    """Whether there is a `--real-range`, so that some are refused."""
    complete: bool
    failed: bool
    """Whether the kernel refused the last one, so that the maps have been read again."""


ROUND: Final = st.builds(
    Round,
    services=st.sampled_from([SERVICES, SERVICES, SERVICES, OTHERS]),
    answers=st.dictionaries(st.sampled_from([service.source for service in SERVICES]), SERVERS, max_size=3),
    forgotten=st.frozensets(st.sampled_from([service.source for service in SERVICES]), max_size=1)
    | st.just(frozenset()),
    narrow=st.sampled_from([False, False, True]),
    complete=st.sampled_from([True, True, True, False]),
    failed=st.sampled_from([False, False, False, True]),
)


def wanted(known: Mapping[str, tuple[RealServer, ...]], one: Round) -> Wanted:
    """Return what is to be published in a round."""
    ranges = [parse_network("10.0.0.0/31"), parse_network("fd00::/127")] if one.narrow else []
    return Wanted(one.services, (), dict(known), {}, (), ranges, one.complete)


@given(st.lists(ROUND, min_size=1, max_size=8))
def test_what_was_published_before_spares_work_and_changes_nothing(rounds: list[Round]) -> None:
    """Round after round, the kernel comes to hold what a publication that remembers nothing would have it hold."""
    state, held, before = EMPTY, Held(), None
    known: Known = {}
    for one in rounds:
        known = {source: found for source, found in {**known, **one.answers}.items() if source not in one.forgotten}
        asked = wanted(known, one)
        if one.failed:
            held = read(state)
        found, plain = publication(held, asked, before), publication(held, asked)
        assert dict(found.desired.virtual) == dict(plain.desired.virtual)
        assert sorted(found.desired.rejected) == sorted(plain.desired.rejected)
        assert set(found.plan.changed) == set(plain.plan.changed)
        assert found.plan.removed == plain.plan.removed
        state = apply(state, found.plan.steps)
        held, before = found.plan.result, found
        decoded = read(state)
        assert decoded.virtual == held.virtual
        virtual = found.desired.virtual
        assert {vip: decoded.virtual[vip].pool for vip in virtual} == {vip: one.pool for vip, one in virtual.items()}
        if one.complete:
            assert decoded.virtual.keys() == virtual.keys()
            assert decoded.filter == address_filter.elements(frozenset(vip.address for vip in decoded.virtual))
            assert not decoded.orphans


def test_only_what_has_changed_is_made_anew() -> None:
    """With many services, the work for one that changes does not grow with the others."""
    one = Round(SERVICES, {}, frozenset(), narrow=False, complete=True, failed=False)
    servers = (RealServer(0, FEW_VIPS[0].address, 80, 1),)  # a VIP, which is refused
    first = publication(Held(), wanted({service.source: servers for service in SERVICES}, one))
    known = {service.source: servers for service in SERVICES[1:]} | {SERVICES[0].source: ()}
    second: Publication = publication(first.plan.result, wanted(known, one), first)
    anew = [vip for vip, server in second.desired.virtual.items() if server is not first.desired.virtual[vip]]
    assert anew == [FEW_VIPS[0]]
    assert len(second.desired.rejected) == len(first.desired.rejected) - 1
