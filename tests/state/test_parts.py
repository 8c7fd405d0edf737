"""The parts of a pool: what happens to one of them neither empties nor blocks the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clb_discovery.layout.elements import Label
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.answer import Answer, Failure, Outcome
from clb_discovery.model.servers import Algorithm, Pool, Pools, RealServer, Unpublished, pools
from clb_discovery.model.service import CATALOG, Part, RemovalPolicy, Service, pool_name
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.merge import merge
from clb_discovery.state.last_good import LastGood
from clb_discovery.state.services import ServiceTable

AT: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOLD: Final = 30.0
VIP: Final = parse_vip("10.64.0.1:80")
LOCAL, REMOTE, LAST = "consul:web", "consul:web?dc=dc2", "static:web"
PARTS: Final = (Part(LOCAL), Part(REMOTE, "web", priority=1), Part(LAST, priority=2, hold=0.0))


def service(parts: Sequence[Part] = PARTS) -> Service:
    """Return the service with these parts."""
    return Service("web", pool_name(parts), (VIP,), policy=RemovalPolicy(hold=HOLD), parts=tuple(parts))


def servers(*hosts: int, net: int = 0) -> Pool:
    """Return the real servers 10.0.NET.HOST:80."""
    return tuple(RealServer(0, parse_address(f"10.0.{net}.{host}"), 80, 1) for host in hosts)


def table(parts: Sequence[Part] = PARTS, **answers: Pool) -> ServiceTable:
    """Return the table of one service after these answers of its parts, which are named a, b and c here."""
    found = ServiceTable([service(parts)])
    for name, own in answers.items():
        found.hear(parts["abc".index(name)].source, Answer(own), 0, AT)
    return found


def hosts(found: ServiceTable, source: str) -> list[str]:
    """Return the real servers of a source that count."""
    return [str(one).removesuffix(":80") for one in found.known[source].servers]


def test_an_outage_of_one_part_changes_nothing_in_the_others() -> None:
    """Its error, its age and its last known servers are its own; the service is served and complete without it."""
    found = table(a=servers(1, 2), c=servers(9))
    found.hear(REMOTE, Failure("No path to datacenter"), 1, AT)
    states = {one["name"]: (one["state"], one["error"]) for one in found.documents}
    assert states == {
        LOCAL: ("fresh", None),
        REMOTE: ("retrying", "No path to datacenter"),
        LAST: ("fresh", None),
    }
    assert found.known.keys() == {LOCAL, LAST}
    assert (found.is_complete, found.is_tried, found.is_served) == (True, True, False)
    found.apply(found.known, ())
    assert found.is_served
    found.hear(REMOTE, Answer(servers(5)), 2, AT)
    found.hear(REMOTE, Failure("No path to datacenter"), 3, AT)
    assert hosts(found, REMOTE) == ["10.0.0.5"]
    assert [one["stale"] for one in found.documents] == [False, True, False]


def test_a_last_resort_waits_for_the_parts_before_it() -> None:
    """It is there at once, and has no connects before the others have come back with something, be it a failure."""
    found = table(c=servers(9))
    assert found.known == {}
    found.hear(REMOTE, Answer(servers(5)), 1, AT)
    assert found.known == {}
    found.hear(LOCAL, Failure("refused"), 2, AT)
    assert found.known.keys() == {REMOTE, LAST}
    assert table(a=servers(1), c=servers(9)).known.keys() == {LOCAL}
    turned = table(PARTS[::-1], a=servers(9))
    assert turned.known == {}
    alike = (Part("consul:a", share=9), Part("static:b", share=1))
    assert table(alike, b=servers(9)).known.keys() == {"static:b"}


def test_a_part_that_is_switched_off_waits_for_those_beside_it() -> None:
    """It gets no connects before they have servers or an answer: after a failure, the next priority serves."""
    off = (Part("static:old", share=0), Part("consul:new", share=100), Part("consul:last", share=5, priority=1))
    found = table(off, a=servers(9), c=servers(7))
    assert found.known == {}
    answered = table(off, a=servers(9), b=servers(1))
    assert answered.known.keys() == {"static:old", "consul:new"}
    found.hear("consul:new", Failure("refused"), 1, AT)
    assert found.known.keys() == {"consul:last"}
    found.hear("consul:new", Answer(()), 2, AT)
    assert found.known.keys() == {one.source for one in off}
    assert table(off, a=servers(9), b=servers(1), c=servers(7)).known.keys() == {one.source for one in off}
    served = table(off, a=servers(9), b=servers(1))
    served.apply(served.known, ())
    served.adopt([service((off[0], Part("consul:newer", share=100)))])
    assert served.known == {}


def test_what_is_published_waits_for_nothing() -> None:
    """A reload puts a part before others, or a start finds servers of a later part alone: these stay in the pool."""
    found = table(PARTS[1:], a=servers(5), b=servers(9))
    found.apply(found.known, ())
    found.adopt([service()])
    assert (set(found.known), found.is_complete) == ({REMOTE, LAST}, True)
    started = ServiceTable([service()])
    merged = merge(PARTS, [(), servers(5), servers(9)]).pool
    started.recall(started.sources, installed(merged, service().source), {})
    assert started.known.keys() == {REMOTE, LAST}
    assert not started.is_complete
    started.hear(REMOTE, Answer(servers(5, 6)), 1, AT)
    assert (set(started.known), started.is_complete) == ({REMOTE, LAST}, True)
    assert (table(c=servers(9)).is_complete, table(a=servers(1)).is_complete) == (False, True)


def test_a_service_is_lost_if_each_of_its_parts_fails() -> None:
    """One run of `--once` fails for lost services alone."""
    found = table(c=servers(9))
    for source in (LOCAL, REMOTE):
        found.hear(source, Failure("down"), 1, AT)
    assert found.lost == []
    found.hear(LAST, Failure("down"), 1, AT)
    assert [state.source for state in found.lost] == [LOCAL, REMOTE, LAST]


def test_a_removal_is_not_held_while_another_part_can_serve() -> None:
    """The whole part goes with the answer that lacks it; the last part that serves is held as any pool is."""
    found = table(a=servers(1, 2, 3), b=servers(5, 6))
    change = found.hear(LOCAL, Answer(()), 1, AT)
    assert change
    assert change.counts
    assert (hosts(found, LOCAL), hosts(found, REMOTE)) == ([], ["10.0.0.5", "10.0.0.6"])
    assert found.documents[0]["state"] == "fresh"
    found.hear(REMOTE, Answer(()), 2, AT)
    assert hosts(found, REMOTE) == ["10.0.0.5", "10.0.0.6"]
    assert found.documents[1]["state"] == "held"


def test_a_hold_ends_when_another_part_can_serve() -> None:
    """The answer of the other part ends it, and both changes are reported."""
    found = table(a=servers(1, 2, 3))
    found.hear(LOCAL, Answer(()), 1, AT)
    assert hosts(found, LOCAL) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    change = found.hear(REMOTE, Answer(servers(5)), 2, AT)
    assert change
    assert [one.now.source for one in change.released] == [LOCAL]
    assert hosts(found, LOCAL) == []
    assert (list(found.deadlines), found.documents[0]["state"], found.documents[0]["reason"]) == ([], "fresh", None)


def test_critical_members_are_out_at_once_beside_another_part() -> None:
    """All of a part may be critical: the servers of the next one are better than those, and no hold keeps them."""
    found = table(a=servers(1, 2), b=servers(5))
    out = tuple(one.endpoint for one in servers(1, 2))
    found.hear(LOCAL, Answer((), out=out), 1, AT)
    assert hosts(found, LOCAL) == []
    alone = table(a=servers(1, 2))
    alone.hear(LOCAL, Answer((), out=out), 1, AT)
    assert hosts(alone, LOCAL) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("answer", ["empty", "few", "critical"])
def test_a_part_that_is_switched_off_ends_no_hold(answer: str) -> None:
    """It is no last resort: an answer that is wrong by mistake moves nothing to it before the hold is over."""
    all_of = servers(1, 2, 3, 4)
    parts = (Part("consul:web", share=100), Part("consul:canary", share=0), Part("consul:far", priority=1, share=0))
    critical = Answer((), out=tuple(one.endpoint for one in all_of))
    lacking = {"empty": Answer(()), "few": Answer(servers(1)), "critical": critical}[answer]
    found = table(parts, a=all_of, b=servers(9))
    found.hear("consul:web", lacking, 1, AT)
    found.hear("consul:canary", Answer(servers(8, 9)), 2, AT)
    assert tuple(found.known["consul:web"].servers) == all_of
    change = found.hear("consul:far", Answer(servers(7)), 3, AT)  # alone in its priority, it is the next one
    assert change
    assert [one.now.source for one in change.released] == ["consul:web"]


def test_a_part_that_nothing_can_use_cannot_serve() -> None:
    """Servers at rejected addresses, or of the other family, end no hold."""
    found = ServiceTable([service()], real_ranges=[parse_network("10.0.0.0/24")])
    found.hear(LOCAL, Answer(servers(1, 2)), 0, AT)
    found.hear(REMOTE, Answer(servers(5, net=1)), 0, AT)
    ipv6 = RealServer(0, parse_address("fd00::1"), 80, 1)
    found.hear(LAST, Answer((ipv6,)), 0, AT)
    found.hear(LOCAL, Answer(()), 1, AT)
    assert hosts(found, LOCAL) == ["10.0.0.1", "10.0.0.2"]


def test_a_part_at_the_vips_of_another_service_cannot_serve() -> None:
    """Its first answer ends no hold: none of these servers will be in the pool."""
    other = Service("other", "consul:other", (parse_vip("10.0.1.5:443"),))
    found = ServiceTable([service()])
    found.adopt([service(), other])
    found.hear(LOCAL, Answer(servers(1, 2)), 0, AT)
    found.hear(LOCAL, Answer(()), 1, AT)
    change = found.hear(REMOTE, Answer(servers(5, net=1)), 1, AT)
    assert change
    assert change.released == ()
    assert hosts(found, LOCAL) == ["10.0.0.1", "10.0.0.2"]


def test_no_server_is_replaced_by_a_vip_of_another_service() -> None:
    """A registration that names a VIP as the new address of an instance leaves nothing that serves."""
    web = Service("web", "consul:web", (VIP,), policy=RemovalPolicy(hold=HOLD))
    found = ServiceTable([web, Service("other", "consul:other", (parse_vip("10.0.1.5:443"),))])
    for moment, own in enumerate((servers(1), servers(5, net=1))):
        found.hear("consul:web", Answer(own, identities={own[0].endpoint: "node/web"}), moment, AT)
    assert "10.0.0.1" in hosts(found, "consul:web")
    assert found.documents[0]["state"] == "held"


def test_a_static_part_is_the_operators_own() -> None:
    """A shorter list counts at once after a reload, also where no other part can serve."""
    found = table(c=servers(7, 8, 9))
    for source in (LOCAL, REMOTE):
        found.hear(source, Failure("down"), 1, AT)
    found.hear(LAST, Answer(servers(9)), 1, AT)
    assert hosts(found, LAST) == ["10.0.0.9"]


def test_a_reload_keeps_the_state_of_parts_that_stay() -> None:
    """Also if they have another place, or belong to another service now."""
    found = table(a=servers(1), b=servers(5))
    parts = (Part(REMOTE, "web"), Part("srv:_web._tcp.example", priority=1))
    new = found.adopt([service(parts), Service("own", LOCAL, (parse_vip("10.64.0.2:80"),))])
    assert set(new) == {"srv:_web._tcp.example"}
    assert [(one.service.name, one.source, one.place) for one in found] == [
        ("web", REMOTE, 0),
        ("web", "srv:_web._tcp.example", 1),
        ("own", LOCAL, 0),
    ]
    assert (hosts(found, REMOTE), hosts(found, LOCAL)) == (["10.0.0.5"], ["10.0.0.1"])


def test_a_part_of_a_pool_waits_for_the_next_round_with_the_others() -> None:
    """While a virtual server is not published, the previous sets of all its parts count as applied."""
    found = table(a=servers(1), b=servers(5))
    found.apply(found.known, ())
    before = found.applied
    found.hear(LOCAL, Answer(servers(1, 2)), 1, AT)
    found.apply(found.known, {service().source})
    assert found.applied == before
    lacking = Unpublished(VIP, "web", service().source, "no room")
    changes = found.refuse({}, {}, [lacking], {service().source: "17 tiers"})
    assert [change.now.source for change in changes] == [LOCAL]
    assert [len(one.unpublished) for one in found] == [1, 0, 0]
    assert "17 tiers" in str(found.documents[0]["reason"])
    assert len(found.unpublished) == 1


def installed(pool: Pool, source: str) -> Installed:
    """Return what is installed with this pool."""
    published = Published(1, 1, 0, (), Algorithm.RANDOM, pool, None, Label("web", source), {})
    return Installed({VIP: published})


def test_a_start_gives_installed_servers_to_their_parts() -> None:
    """Parts without installed servers, whose servers may be those of others, come from the disk."""
    merged = merge(PARTS, [servers(1, 2), servers(5), ()]).pool
    stored = {LAST: LastGood(pools(servers(9)), 99), REMOTE: LastGood(Pools(), 99)}
    found = ServiceTable([service()])
    found.recall(found.sources, installed(merged, service().source), stored)
    assert hosts(found, LOCAL) == ["10.0.0.1", "10.0.0.2"]
    assert (hosts(found, REMOTE), hosts(found, LAST)) == (["10.0.0.5"], ["10.0.0.9"])


def test_a_start_does_not_mix_up_the_parts_of_another_configuration() -> None:
    """A pool that was put together from other parts, or in another order, is no answer of these."""
    merged = merge(PARTS, [servers(1, 2), servers(5), ()]).pool
    found = ServiceTable([service(PARTS[::-1])])
    found.recall(found.sources, installed(merged, service().source), {LOCAL: LastGood(pools(servers(3)))})
    assert {source: hosts(found, source) for source in found.known} == {LOCAL: ["10.0.0.3"]}


def test_a_part_that_waits_ends_no_hold() -> None:
    """It is in no pool yet: while the part before it has no outcome, members that are held are all that can serve."""
    found = table(a=servers(1, 2), c=servers(9))
    found.hear(LOCAL, Answer(()), 3, AT)
    assert {source: hosts(found, source) for source in found.known} == {LOCAL: ["10.0.0.1", "10.0.0.2"]}
    change = found.hear(REMOTE, Failure("no answer within 10 s"), 10, AT)
    assert change
    assert change.counts
    assert {source: hosts(found, source) for source in found.known} == {LOCAL: [], LAST: ["10.0.0.9"]}


OLD: Final = (Part("consul:old"), Part("consul:older", priority=1))
NEW: Final = (Part("consul:a"), Part("srv:b"))


@pytest.mark.parametrize("before", [OLD, OLD[:1]], ids=["parts", "one source"])
def test_other_sources_serve_until_those_of_a_new_configuration_can(before: Sequence[Part]) -> None:
    """The first of several new parts replaces nothing; nor do one that fails and one that is empty."""
    old = installed(servers(1, 2), service(before).source)
    empty, full = Answer(()), Answer(servers(5))

    def after(*outcomes: Outcome, pool: Installed = old) -> tuple[list[str], bool]:
        found = table(before, a=servers(1, 2))
        found.apply(found.known, ())
        found.recall(found.adopt([service(NEW)]), pool, {})
        for part, outcome in zip(NEW, outcomes, strict=False):
            found.hear(part.source, outcome, 1, AT)
        known = found.known
        found.apply(known, ())
        assert found.known.keys() >= known.keys()
        return sorted(known), found.is_complete

    assert after() == ([], False)
    assert after(full) == ([], False)
    assert after(empty) == ([], False)
    assert after(empty, Failure("down")) == ([], False)
    assert after(Failure("down"), Failure("down")) == ([], False)
    assert after(full, Failure("down")) == (["consul:a"], True)
    assert after(full, empty) == (["consul:a", "srv:b"], True)
    assert after(empty, empty) == (["consul:a", "srv:b"], True)
    assert after(full, pool=Installed()) == (["consul:a"], True)


def test_a_part_that_stays_serves_at_once_in_a_new_configuration() -> None:
    """It waits for no new part, unless it has nothing to serve: then what is installed goes on."""
    for own, known in ((servers(1), {LOCAL}), ((), set())):
        found = table(OLD[1:] + PARTS[:1], a=servers(2), b=own)
        found.apply(found.known, ())
        old = installed(servers(1, 2), service(OLD[1:] + PARTS[:1]).source)
        found.recall(found.adopt([service((*PARTS[:1], NEW[1]))]), old, {})
        assert found.known.keys() == known
        found.hear("srv:b", Answer(servers(5)), 1, AT)
        assert found.known.keys() == {LOCAL, "srv:b"}


@pytest.mark.parametrize(
    "standby", [Part(REMOTE, "web", priority=1), Part(REMOTE, "web", share=0)], ids=["next", "off"]
)
def test_a_standby_takes_nothing_over_while_a_reload_asks_another_first_part(standby: Part) -> None:
    """Other tags of the first part are another source: what it served goes on until the new one has an outcome."""
    share = None if standby.priority else 100
    before = (Part("consul:web?tag=v1", "web", share=share), standby, PARTS[2])
    after = (Part("consul:web?tag=v2", "web", share=share), standby, PARTS[2])
    old = installed(merge(before, [servers(1, 2), servers(5), servers(9)]).pool, service(before).source)

    def reloaded() -> ServiceTable:
        found = table(before, a=servers(1, 2), b=servers(5), c=servers(9))
        found.apply(found.known, ())
        found.recall(found.adopt([service(after)]), old, {})
        found.hear(REMOTE, Answer(servers(5, 6)), 1, AT)
        return found

    for outcome in (Answer(servers(3, 4)), Answer(()), Failure("down")):
        found = reloaded()
        assert (set(found.known), found.is_complete) == (set(), False)
        found.hear("consul:web?tag=v2", outcome, 2, AT)
        answered = {"consul:web?tag=v2"} if isinstance(outcome, Answer) else set()
        assert found.known.keys() == {LAST} | answered | ({REMOTE} if answered or share is None else set())
        assert found.is_complete


BOTH: Final = (Part("srv:web"), Part("consul:web"))


def test_a_start_knows_the_servers_that_parts_share() -> None:
    """The kernel has each of them once, for the first part, and with the sum of its weights."""
    running = table(BOTH, a=servers(1, 2, 3), b=servers(1, 2, 3, 4))
    merged = merge(BOTH, [servers(1, 2, 3), servers(1, 2, 3, 4)]).pool
    started = ServiceTable([service(BOTH)])
    running.apply(running.known, ())
    started.recall(started.sources, installed(merged, service(BOTH).source), running.last_good)
    assert {source: last.servers for source, last in started.known.items()} == {
        source: last.servers for source, last in running.known.items()
    }
    for found in (running, started):
        found.hear("consul:web", Failure("down"), 1, AT)
        found.hear("srv:web", Answer(()), 2, AT)
        assert hosts(found, "consul:web") == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]


def test_a_start_knows_the_servers_of_a_part_that_is_switched_off() -> None:
    """The kernel has only those that it shares with another part, or whose priority no other part has."""
    off = (Part("srv:web", share=0), Part("consul:web", share=100))
    own = (*servers(1, 5), *(one._replace(priority=10) for one in servers(7)))
    for named in (servers(1, 5), own):
        running = table(off, a=named, b=servers(1, 2))
        running.apply(running.known, ())
        merged = merge(off, [named, servers(1, 2)]).pool
        started = ServiceTable([service(off)])
        restored = started.recall(started.sources, installed(merged, service(off).source), running.last_good)
        assert [state.source for state in restored] == (["srv:web"] if named != own else [])
        assert {source: last.servers for source, last in started.known.items()} == {
            source: last.servers for source, last in running.known.items()
        }


@pytest.mark.parametrize("disk", [False, True])
def test_after_a_start_absent_members_stay_in_the_tier_of_the_others(*, disk: bool) -> None:
    """The kernel has numbers of tiers in place of priorities, which cannot be compared with those of an answer."""
    named = tuple(one._replace(priority=10, weight=5) for one in servers(1, 2, 3, 4, 5))
    parts = (Part("srv:web", share=90), Part("consul:web", share=10))
    merged = merge(parts, [named, servers(9)]).pool
    stored = {"srv:web": LastGood(pools(named), 99)} if disk else {}
    found = ServiceTable([service(parts)])
    found.recall(found.sources, installed(merged, service(parts).source), stored)
    found.hear("consul:web", Answer(()), 1, AT)
    found.hear("srv:web", Answer(()), 2, AT)
    found.hear("srv:web", Answer(named[:2]), 3, AT)
    assert tuple(found.known["srv:web"].servers) == named
    found.hear("srv:web", Answer(named[:2]), 2 + HOLD, AT)
    assert tuple(found.known["srv:web"].servers) == named[:2]


def test_a_configured_part_that_has_gone_is_no_service_of_the_catalog() -> None:
    """The label of its pool is the name of its source, which has what was selected."""
    found = ServiceTable([replace(service((Part(CATALOG),)), source=CATALOG)])
    found.recall(found.sources, installed(servers(1), "consul:web?tag=v1"), {})
    assert list(found.sources) == [CATALOG]
    found.recall(found.sources, installed(servers(1), "consul:web"), {})
    assert list(found.sources) == [CATALOG, "consul:web"]


OUTCOME: Final[st.SearchStrategy[Outcome]] = (
    st.builds(lambda chosen: Answer(servers(*chosen)), st.sets(st.integers(1, 3)))
    | st.builds(
        lambda chosen, out: Answer(servers(*chosen - out), out=tuple(one.endpoint for one in servers(*out))),
        st.sets(st.integers(1, 3)),
        st.sets(st.integers(1, 3)),
    )
    | st.just(Failure("down"))
)
EVENTS: Final = st.lists(
    st.tuples(st.integers(0, 2), OUTCOME, st.sampled_from([0.0, 1.0, 29.0, 40.0])), min_size=1, max_size=30
)


def _in_net(outcome: Outcome, net: int) -> Outcome:
    """Return the outcome with the addresses of a network of its own, so that no server is in two parts."""
    if not isinstance(outcome, Answer):
        return outcome
    moved = {one.endpoint: other for one, other in zip(servers(1, 2, 3), servers(1, 2, 3, net=net), strict=True)}
    return Answer(
        tuple(moved[one.endpoint] for one in outcome.servers), out=tuple(moved[at].endpoint for at in outcome.out)
    )


@given(EVENTS)
@settings(max_examples=300)
def test_no_schedule_of_faults_empties_a_pool_before_it_is_confirmed(events: list[tuple[int, Outcome, float]]) -> None:
    """A member counts if its part's last answer has it. If no part has any, some stay until a hold has run."""
    parts = (Part("consul:a"), Part("consul:b", priority=1), Part("srv:c", priority=1))
    found, now = ServiceTable([service(parts)]), 0.0
    for part in parts:
        found.hear(part.source, Failure("not up yet"), 0, AT)
    named: dict[int, Pool] = {}
    empty_since: float | None = None
    for place, outcome, pause in events:
        now += pause
        source, heard = parts[place].source, _in_net(outcome, place)
        served_before = bool(sum(len(one.servers) for one in found.known.values()))
        failed = found.hear(source, heard, now, AT)
        assert failed
        if isinstance(heard, Answer):
            named[place] = heard.servers
        known = {number: found.known.get(part.source, LastGood(Pools())).servers for number, part in enumerate(parts)}
        for number, own in named.items():
            assert set(own) <= set(known[number])
        if any(named.values()):
            empty_since = None
            serving = {number for number, own in named.items() if own}
            for number in known.keys() - serving:
                assert not known[number]  # nothing absent stays in a part beside others that serve
            if len(serving) > 1:
                assert all(set(known[number]) == set(named[number]) for number in serving)
        else:
            empty_since = now if empty_since is None else empty_since
            if served_before and now < empty_since + HOLD:
                assert any(known.values())


@given(EVENTS, st.integers(0, 30))
def test_what_few_parts_have_is_found(events: list[tuple[int, Outcome, float]], reload: int) -> None:
    """Whatever a table remembers about all of its states, it is what they have, also after a reload."""
    parts: tuple[Part, ...] = (Part("consul:a"), Part("consul:b", priority=1), Part("srv:c", priority=1))
    found, now = ServiceTable([service(parts)]), 0.0
    for number, (place, outcome, pause) in enumerate(events):
        if number == reload:
            parts = parts[1:]
            found.adopt([service(parts)])
        now += pause
        source = parts[place % len(parts)].source
        found.hear(source, _in_net(outcome, place), now, AT)
        found.refuse({}, {}, [Unpublished(VIP, "web", service(parts).source, "no room")] if place == 1 else [])
        states = [*found]
        assert [*found.deadlines] == [one.deadline for one in states if one.deadline is not None]
        assert found.is_tried == all(one.answered or one.error is not None for one in states)
        failing = [one for one in states if one.error is not None]
        assert found.lost == (failing if len(failing) == len(states) else [])
        assert len(found.unpublished) == sum(bool(one.unpublished) for one in states)
        assert found.composed == [states[0].service]
        stale = sum(one.stale for one in states)
        assert (f"{stale} of {len(states)} served from the last known set" in found.summary) is (stale > 0)
