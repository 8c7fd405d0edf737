"""The table of all services: which outcomes change something, and the summary line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.answer import Answer, Failure, Listing, OptIn, Refusal
from clb_discovery.model.servers import Pools, Protocol, RealServer, Unread, Vip, pools
from clb_discovery.model.service import CATALOG, RemovalPolicy, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.model.zones import Places, ZoneRule
from clb_discovery.state.last_good import LastGood, decode, encode
from clb_discovery.state.services import Change, ServiceTable
from tests.support.work import work

SERVERS: Final = tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in range(1, 4))
AT: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOTHING, CONTENT, BOTH, HEALTH = (False, False), (True, False), (True, True), (False, True)
"""Whether a change counts, and whether it shows."""


def service(source: str) -> Service:
    """Return a service with a hold of 30 s."""
    return Service(source.partition(":")[2], source, (parse_vip("10.64.0.1:80"),), policy=RemovalPolicy(hold=30))


def news(change: Change | None) -> tuple[bool, bool]:
    """Return whether a change counts, and whether it shows."""
    return (change.counts, change.shows) if change else NOTHING


def knowledge(*sources: str) -> ServiceTable:
    """Return the table at the start."""
    return ServiceTable([service(source) for source in sources])


def test_equal_content_is_no_news() -> None:
    """The same set in any order changes nothing, even before it is published."""
    found = knowledge("srv:web")
    assert news(found.hear("srv:web", Answer(SERVERS[:2]), 0, AT)) == BOTH
    assert news(found.hear("srv:web", Answer(SERVERS[:2]), 1, AT)) == NOTHING
    assert news(found.hear("srv:web", Answer(SERVERS), 2, AT)) == CONTENT
    for answer in (SERVERS, SERVERS[::-1]):
        assert news(found.hear("srv:web", Answer(answer), 3, AT)) == NOTHING


def test_an_answer_takes_as_much_work_among_many_services_as_among_few() -> None:
    """To hear it and to find what is known then does not grow with the others."""
    found = []
    for number in (10, 400):
        table = knowledge(*(f"srv:{one}" for one in range(number)))
        for source in table.sources:
            table.hear(source, Answer(SERVERS), 0, AT)
        table.apply(table.known, ())

        def answer(table: ServiceTable = table) -> object:
            return news(table.hear("srv:0", Answer(SERVERS[:2]), 1, AT)), table.known, table.is_complete, table.is_tried

        found.append(work(answer))
    assert found[1] < 1.1 * found[0]


def test_first_answer_is_news_though_it_says_what_was_known() -> None:
    """Once every source has answered, virtual servers without a source may go."""
    found = knowledge("srv:web")
    found.seed(["srv:web"], {"srv:web": pools(SERVERS)}, {})
    assert news(found.hear("srv:web", Answer(SERVERS), 0, AT)) == BOTH


def test_failure_is_news_for_people_alone() -> None:
    """An error shows when it begins, changes and ends, and not while it goes on."""
    found = knowledge("srv:web")
    found.hear("srv:web", Answer(SERVERS), 0, AT)
    assert news(found.hear("srv:web", Failure("SERVFAIL"), 1, AT)) == HEALTH
    assert news(found.hear("srv:web", Failure("SERVFAIL"), 2, AT)) == NOTHING
    assert news(found.hear("srv:web", Failure("REFUSED"), 3, AT)) == HEALTH
    assert news(found.hear("srv:web", Answer(SERVERS), 4, AT)) == HEALTH


def test_removal_is_confirmed_by_an_answer_that_is_asked_for() -> None:
    """A held removal shows at once and gives a deadline; its source is due once, and its answer counts."""
    found = knowledge("srv:web")
    found.hear("srv:web", Answer(SERVERS), 0, AT)
    assert news(found.hear("srv:web", Answer(SERVERS[:1]), 1, AT)) == HEALTH
    assert news(found.hear("srv:web", Answer(SERVERS[:1]), 2, AT)) == NOTHING
    assert list(found.deadlines) == [31]
    assert not found.due(30.9)
    assert found.due(31) == ["srv:web"]
    assert (list(found.deadlines), found.due(32)) == ([], [])
    assert found.known == {"srv:web": LastGood(pools(SERVERS))}
    assert news(found.hear("srv:web", Answer(SERVERS[:1]), 32, AT)) == BOTH
    assert (list(found.deadlines), found.known) == ([], {"srv:web": LastGood(pools(SERVERS[:1]))})


def test_source_that_fails_is_not_due() -> None:
    """Its next answer comes anyway, and confirms the removal or gives the next deadline."""
    found = knowledge("srv:web")
    found.hear("srv:web", Answer(SERVERS), 0, AT)
    found.hear("srv:web", Answer(()), 1, AT)
    found.hear("srv:web", Failure("SERVFAIL"), 2, AT)
    assert (list(found.deadlines), found.due(100)) == ([], [])
    found.hear("srv:web", Answer(SERVERS[:1]), 3, AT)
    assert list(found.deadlines) == [31]
    assert found.due(31) == ["srv:web"]
    found.hear("srv:web", Failure("SERVFAIL"), 31.1, AT)
    assert found.due(40) == []
    assert news(found.hear("srv:web", Answer(SERVERS[:1]), 41, AT))[0]


def test_one_that_may_not_be_a_real_server_is_not_there() -> None:
    """If all others are critical they stay, whatever the reason why the remaining one is rejected."""
    link_local, far, vip, other = (
        RealServer(0, parse_address(text), 80, 1) for text in ("169.254.0.1", "10.9.9.9", "10.64.0.1", "10.64.0.2")
    )
    out = tuple((server.address, server.port) for server in SERVERS)
    for bad in (link_local, far, vip, other):
        found = ServiceTable([service("srv:web")], real_ranges=[parse_network("10.0.0.0/16")])
        found.hear("srv:web", Answer(SERVERS), 0, AT)
        found.refuse({}, {"srv:web": [Refusal(other, "it is a VIP")]})
        found.hear("srv:web", Answer((bad,), out=out), 1, AT)
        assert [following.guarded.withheld[0] for following in found] == [3]


def test_identities_are_known_last() -> None:
    """They come from the answer, else from the disk, and a change of them counts."""
    ends = [(server.address, server.port) for server in SERVERS]
    disk = {"srv:web": LastGood(pools(SERVERS), 99, None, {ends[0]: "a", ends[2]: "c"})}
    found = knowledge("srv:web")
    found.seed(["srv:web"], {"srv:web": pools(SERVERS[:2])}, disk)
    assert found.known == {"srv:web": LastGood(pools(SERVERS[:2]), None, None, {ends[0]: "a"})}
    before = found.known["srv:web"].servers
    assert news(found.hear("srv:web", Answer(SERVERS[:2], identities={ends[0]: "b"}), 1, AT))[0]
    assert found.known["srv:web"].identities == {ends[0]: "b"}
    assert found.known["srv:web"].servers is before
    assert news(found.hear("srv:web", Answer(SERVERS[1:], identities={ends[2]: "b"}), 2, AT))[0]
    assert tuple(found.known["srv:web"].servers) == SERVERS[1:]


def test_what_the_kernel_holds_goes_before_the_disk() -> None:
    """The disk is for sets that the kernel has lost."""
    found = knowledge("srv:a", "srv:b", "srv:c")
    disk = {"srv:a": LastGood(pools(SERVERS[:1]), 99), "srv:b": LastGood(pools(SERVERS[:2]), 100)}
    assert not knowledge("srv:a").seed(["srv:a"], {"srv:a": pools(SERVERS)}, disk)
    assert found.seed(["srv:a", "srv:b", "srv:c"], {"srv:a": pools(SERVERS)}, disk)
    assert found.known == {"srv:a": LastGood(pools(SERVERS)), "srv:b": LastGood(pools(SERVERS[:2]))}
    assert [following.answered_at for following in found] == [99, 100, None]
    assert not found.is_complete
    found.apply(found.known, {"srv:a"})
    assert found.last_good == {"srv:b": LastGood(pools(SERVERS[:2]), 100)}


def test_complete_is_more_than_tried() -> None:
    """A failure counts as a try; complete takes an answer of every source."""
    found = knowledge("srv:a", "srv:b")
    found.hear("srv:a", Answer(SERVERS), 0, AT)
    assert (found.is_tried, found.is_complete) == (False, False)
    found.hear("srv:b", Failure("SERVFAIL"), 1, AT)
    assert (found.is_tried, found.is_complete) == (True, False)
    found.hear("srv:b", Answer(()), 2, AT)
    assert (found.is_tried, found.is_complete) == (True, True)


def test_other_services_keep_what_is_known_of_those_that_stay() -> None:
    """Services that stay go on under their new settings; new ones start empty; the others are forgotten."""
    found = knowledge("srv:a", "srv:b")
    found.hear("srv:a", Answer(SERVERS), 0, AT)
    assert found.adopt([service("srv:a"), service("srv:c")]) == {"srv:c"}
    assert found.known == {"srv:a": LastGood(pools(SERVERS))}
    assert [following.service.source for following in found] == ["srv:a", "srv:c"]


def test_summary_is_one_short_line() -> None:
    """It stays one line for any number of sources and any characters in their names."""
    found = knowledge(*(f"srv:{number}" for number in range(6)), "srv:evil\nMAINPID=1" + "x" * 1000)
    assert found.summary == "7 of 7 without any answer: srv:0, srv:1, srv:2, srv:3, and 3 more"
    for number in range(6):
        found.hear(f"srv:{number}", Answer(SERVERS), 0, AT)
    found.hear("srv:0", Failure("SERVFAIL"), 1, AT)
    waiting, stale = found.summary.split("; ")
    assert waiting.startswith(r"1 of 7 without any answer: srv:evil\nMAINPID=1xxx")
    assert len(waiting) < 120
    assert stale == "1 of 7 served from the last known set: srv:0"
    assert knowledge().summary == "following 0, all answered"


OPT_IN: Final = OptIn((parse_vip("10.64.0.7:80"),))


def of_catalog(*names: str) -> ServiceTable:
    """Return the table after a catalog has listed these."""
    found = ServiceTable([Service("catalog", CATALOG, (), policy=RemovalPolicy(hold=30))])
    found.hear(CATALOG, Listing(frozenset(names)), 0, AT)
    return found


def test_what_a_catalog_lists_is_followed() -> None:
    """An equal list changes nothing; another list only shows, until its services have answered."""
    found = of_catalog("a")
    assert (set(found.sources), found.is_complete, found.is_tried) == ({CATALOG, "consul:a"}, False, False)
    assert news(found.hear(CATALOG, Listing(frozenset({"a"})), 1, AT)) == NOTHING
    assert news(found.hear("consul:a", Answer(SERVERS, OPT_IN), 1, AT)) == BOTH
    assert (found.is_complete, found.is_tried) == (True, True)
    assert found.known == {CATALOG: LastGood(Pools()), "consul:a": LastGood(pools(SERVERS), None, OPT_IN)}
    assert [claim.opt_in for claim in found.claims] == [OPT_IN]
    assert news(found.hear(CATALOG, Listing(frozenset({"a", "b"})), 2, AT)) == HEALTH
    assert set(found.sources) == {CATALOG, "consul:a", "consul:b"}


def test_names_that_differ_in_case_are_one_service() -> None:
    """Consul returns the instances of all of them for each. The one that is followed stays, else the lowest is new."""
    found = of_catalog("redis", "Web", "web", "WEB")
    assert set(found.sources) == {CATALOG, "consul:redis", "consul:WEB"}
    assert found.too_many is None
    found.hear(CATALOG, Listing(frozenset({"redis", "REDIS", "web"})), 1, AT)
    assert set(found.sources) == {CATALOG, "consul:redis", "consul:WEB"}
    for now in (2, 60):
        found.hear("consul:WEB", Answer(()), now, AT)
    assert not found.leave()
    found.hear(CATALOG, Listing(frozenset({"redis"})), 61, AT)
    assert found.leave()
    assert set(found.sources) == {CATALOG, "consul:redis"}


def test_configured_service_in_another_case_is_no_second_one() -> None:
    """Its VIPs are those of the configuration. A part with a selection of its own is another source."""
    catalog = Service("catalog", CATALOG, ())
    found = ServiceTable([catalog, service("consul:REDIS"), service("consul:web?dc=dc2")])
    found.hear(CATALOG, Listing(frozenset({"Redis", "redis", "web"})), 0, AT)
    assert set(found.sources) == {CATALOG, "consul:REDIS", "consul:web?dc=dc2", "consul:web"}
    found.adopt([catalog, service("consul:WEB")])
    found.hear(CATALOG, Listing(frozenset({"Redis", "redis", "web"})), 1, AT)
    assert set(found.sources) == {CATALOG, "consul:WEB", "consul:Redis"}


def test_service_that_opts_in_anew_is_news() -> None:
    """Another opt-in of the same servers has to be published; the same opt-in has not."""
    found = of_catalog("a")
    first, other = (OptIn((parse_vip(vip),), instances=frozenset({"n/1"})) for vip in ("10.64.0.7:80", "10.64.0.8:80"))
    found.hear("consul:a", Answer(SERVERS, first), 1, AT)
    assert news(found.hear("consul:a", Answer(SERVERS[::-1], first), 2, AT)) == NOTHING
    assert news(found.hear("consul:a", Answer(SERVERS, other), 3, AT)) == CONTENT


def test_service_that_has_left_is_forgotten() -> None:
    """It is followed until it opts out and is not listed; a late outcome of it is ignored."""
    found = of_catalog("a")
    found.hear("consul:a", Answer(SERVERS, OPT_IN), 1, AT)
    found.hear(CATALOG, Listing(frozenset()), 2, AT)
    assert news(found.hear("consul:a", Answer(()), 2, AT)) == HEALTH
    assert not found.leave()
    assert found.due(32) == ["consul:a"]
    assert not found.leave()
    found.hear("consul:a", Answer(()), 32, AT)
    assert found.leave()
    assert set(found.sources) == {CATALOG}
    assert news(found.hear("consul:a", Answer(SERVERS), 33, AT)) == NOTHING


def test_who_has_answered_or_left_claims_nothing_more() -> None:
    """Not before the catalog has answered, and until nobody has to be waited for."""
    catalog, silent = Service("catalog", CATALOG, (), policy=RemovalPolicy(hold=30)), service("srv:silent")
    found = ServiceTable([catalog, silent])
    found.hear(CATALOG, Failure("refused"), 0, AT)
    assert found.heard == frozenset()
    found.hear(CATALOG, Listing(frozenset({"a"})), 1, AT)
    found.hear("consul:a", Answer(SERVERS, OPT_IN), 2, AT)
    assert found.heard == {CATALOG, "consul:a"}
    found.hear(CATALOG, Listing(frozenset()), 3, AT)
    for now in (3, 60):
        found.hear("consul:a", Answer(()), now, AT)
    assert found.leave()
    assert found.heard == {CATALOG, "consul:a"}
    found.hear(CATALOG, Listing(frozenset({"a"})), 61, AT)
    assert found.heard == {CATALOG}
    found.hear("srv:silent", Answer(SERVERS), 62, AT)
    found.adopt([catalog])
    assert found.heard == {CATALOG, "srv:silent"}
    found.hear("consul:a", Answer(SERVERS, OPT_IN), 63, AT)
    found.apply(found.known, ())
    assert found.heard == {CATALOG, "consul:a"}


def test_service_without_usable_servers_is_forgotten_after_the_hold() -> None:
    """It keeps its claims as any other that leaves, and its source is queried when the time is over."""
    found = of_catalog("a")
    found.hear("consul:a", Answer((), OPT_IN), 1, AT)
    found.hear(CATALOG, Listing(frozenset()), 2, AT)
    found.hear("consul:a", Answer(()), 2, AT)
    assert not found.leave()
    assert [claim.opt_in for claim in found.claims] == [OPT_IN]
    assert list(found.deadlines) == [32]
    assert found.due(32) == ["consul:a"]
    assert news(found.hear("consul:a", Answer((), asked=32), 33, AT)) == BOTH
    assert (found.claims, found.leave()) == ([], True)


def test_catalog_is_served_but_for_what_nobody_could_serve() -> None:
    """Readiness does not wait for a service whose answer is unusable; it waits for one without an answer."""
    found = of_catalog("a", "b")
    found.hear("consul:a", Answer(SERVERS, OPT_IN), 1, AT)
    found.apply(found.known, {"consul:a"})
    assert not found.is_served
    found.hear("consul:b", Failure("the port is 0", unusable=True), 1, AT)
    assert (found.is_served, found.is_complete) == (False, True)
    found.apply(found.known, ())
    assert found.is_served
    assert found.summary == "1 of 3 with answers of no use: consul:b"
    found.hear("consul:b", Failure("refused"), 2, AT)
    assert found.is_served


def test_nobody_waits_for_what_is_registered_later() -> None:
    """One new service after the other without an answer delays neither readiness nor removals."""
    found = of_catalog("a")
    found.hear(CATALOG, Listing(frozenset({"a", "b"})), 1, AT)
    assert not found.is_complete
    found.apply(found.known, ())
    assert not found.is_served
    found.hear("consul:a", Answer(SERVERS, OPT_IN), 2, AT)
    assert found.is_complete
    found.apply(found.known, ())
    assert found.is_served
    found.adopt([service("consul:b"), service(CATALOG)])
    assert not found.is_complete  # since it is a service of the configuration now


def test_catalog_is_known_last_with_its_services() -> None:
    """The disk also restores an empty catalog, so that a start without discovery has its list."""
    disk = {"consul:a": LastGood(pools(SERVERS), 99, OPT_IN)}
    for stored in (disk, {CATALOG: LastGood(Pools(), 98)}, disk | {CATALOG: LastGood(Pools(), 98)}):
        found = ServiceTable([Service("catalog", CATALOG, ())])
        found.recall([CATALOG], Installed(), stored)
        assert found.known == {source: one._replace(answered=None) for source, one in stored.items()} | {
            CATALOG: LastGood(Pools())
        }
        assert all(following.stale for following in found)
        assert [following.answered_at for following in found if CATALOG in stored][:1] in ([], [98])
    unknown = ServiceTable([Service("catalog", CATALOG, ())])
    unknown.recall([CATALOG], Installed(), {})
    assert unknown.known == {}


def test_the_disk_knows_who_had_a_vip_until_the_first_publication() -> None:
    """After a reboot a service has no VIP that it was refused, and one that registers nonsense keeps its own."""
    (vip,), other = OPT_IN.vips, parse_vip("10.64.0.8:80")
    running = of_catalog("a", "b", "c", "d")
    nonsense = OptIn(refused=(Refusal("clb-vip 'x'", "is not a VIP"),))
    automatic = OptIn((vip,), (Protocol.TCP,))
    for name, opt_in in {"a": OPT_IN, "b": OPT_IN, "c": nonsense, "d": automatic}.items():
        running.hear(f"consul:{name}", Answer(SERVERS, opt_in), 1, AT)
    published = {"consul:a": (), "consul:c": (other,), "consul:d": (parse_vip("10.64.0.9"),)}
    running.apply(running.known, (), published)
    stored = decode(encode(running.last_good)).sets
    found = ServiceTable([Service("catalog", CATALOG, (), policy=RemovalPolicy(hold=0))])
    found.recall([CATALOG], Installed(), stored)
    names = {claim.service.name: (claim.opt_in.vips, claim.held) for claim in found.claims}
    assert names == {"a": ((), ()), "b": ((vip,), (vip,)), "c": ((other,), (other,)), "d": ((), ())}
    found.hear("consul:a", Answer(SERVERS, OPT_IN), 1, AT)
    found.hear("consul:c", Answer(SERVERS, nonsense), 1, AT)
    names = {claim.service.name: (claim.opt_in.vips, claim.held) for claim in found.claims}
    assert (names["a"], names["c"]) == (((vip,), ()), ((), (other,)))
    found.apply(found.known, {"consul:b"})
    assert any(claim.held for claim in found.claims)
    found.apply(found.known, ())
    assert not any(claim.held for claim in found.claims)


def test_refusals_are_known_of_their_sources() -> None:
    """Rejected registrations and real servers are noted, and gone after the next publication without them."""
    found = of_catalog("a")
    clash = Refusal("VIP 10.64.0.7:80", "belongs to consul:b")
    rejected = Refusal(SERVERS[0], "it is a VIP")
    found.refuse({"consul:a": (clash,)}, {"consul:a": (rejected,)})
    assert [(one.refused, one.rejected) for one in found] == [((), ()), ((clash,), (rejected,))]
    found.refuse({}, {})
    assert [(one.refused, one.rejected) for one in found] == [((), ()), ((), ())]


def test_other_settings_of_a_catalog_are_taken_by_its_services() -> None:
    """Their state stays; without the catalog they are left, except those that are configured now."""
    found = of_catalog("a", "b")
    for name in ("a", "b"):
        found.hear(f"consul:{name}", Answer(SERVERS, OPT_IN), 1, AT)
    assert found.adopt([Service("catalog", CATALOG, (), policy=RemovalPolicy(hold=5))]) == set()
    assert [following.service.policy.hold for following in found] == [5, 5, 5]
    assert len(found.claims) == 2
    assert found.adopt([service("consul:a")]) == set()
    assert found.known == {"consul:a": LastGood(pools(SERVERS))}


def test_what_is_told_is_what_is_known() -> None:
    """After every kind of event, documents and known sets follow from the current states."""
    found = knowledge("srv:a", "srv:b", "srv:c")

    def assert_up_to_date() -> None:
        assert found.documents == [one.document for one in found]
        assert found.known == {
            one.service.source: LastGood(one.guarded.good, None, one.opt_in) for one in found if one.known
        }
        assert set(found.deadlines) == {one.deadline for one in found if one.deadline is not None}

    assert_up_to_date()
    found.seed(["srv:c"], {"srv:c": pools(SERVERS)}, {})
    assert_up_to_date()
    for source in ("srv:a", "srv:b"):
        found.hear(source, Answer(SERVERS), 0, AT)
        assert_up_to_date()
    before = found.known["srv:a"]
    found.hear("srv:b", Answer(()), 1, AT)
    assert_up_to_date()
    found.hear("srv:c", Failure("SERVFAIL"), 2, AT)
    assert_up_to_date()
    assert found.due(31) == ["srv:b"]
    assert_up_to_date()
    found.hear("srv:b", Answer(()), 31, AT)
    assert_up_to_date()
    found.refuse({}, {"srv:b": [Refusal(SERVERS[0], "it is a VIP")]})
    assert_up_to_date()
    found.refuse({}, {})
    assert_up_to_date()
    found.adopt([service("srv:a"), service("srv:d")])
    assert_up_to_date()
    assert found.known["srv:a"] is before


ZONED: Final = Service(
    "web", "consul:web", (parse_vip("10.64.0.1:80"),), policy=RemovalPolicy(hold=30), zones=ZoneRule()
)
ENDS: Final = tuple(one.endpoint for one in SERVERS)


def zoned(*hosts: int, out: Mapping[int, int] = MappingProxyType({}), zone: str = "a") -> Answer:
    """Return an answer with these servers, and with others that are out, all in one zone."""
    named = dict.fromkeys([ENDS[host] for host in (*hosts, *out)], zone)
    places = Places(named, {ENDS[host]: weight for host, weight in out.items()})
    return Answer(tuple(SERVERS[host] for host in hosts), out=tuple(ENDS[host] for host in out), places=places)


def test_zones_and_weights_of_members_that_are_out_count() -> None:
    """A change of either is published, and an equal answer is none; they are the same object then."""
    found = ServiceTable([ZONED])
    found.hear("consul:web", zoned(0, 1, out={2: 5}), 0, AT)
    before = found.places(found.known)["consul:web"]
    assert before == Places(dict.fromkeys(ENDS, "a"), {ENDS[2]: 5})
    assert news(found.hear("consul:web", zoned(1, 0, out={2: 5}), 1, AT)) == NOTHING
    assert found.places(found.known)["consul:web"] is before
    assert news(found.hear("consul:web", zoned(0, 1, out={2: 6}), 2, AT)) == CONTENT
    assert news(found.hear("consul:web", zoned(0, 1, out={2: 6}, zone="b"), 3, AT)) == CONTENT


def test_members_that_stay_keep_their_zones() -> None:
    """An absent one until its removal; one that an answer names without a zone has none any more."""
    found = ServiceTable([ZONED])
    found.hear("consul:web", zoned(0, 1, 2), 0, AT)
    found.hear("consul:web", zoned(0), 1, AT)
    assert found.places(found.known)["consul:web"].zones == dict.fromkeys(ENDS, "a")
    found.hear("consul:web", Answer(SERVERS[:1]), 2, AT)
    assert found.places(found.known)["consul:web"].zones == dict.fromkeys(ENDS[1:], "a")
    found.hear("consul:web", zoned(0), 40, AT)
    assert found.places(found.known)["consul:web"].zones == {ENDS[0]: "a"}


def test_a_member_that_stays_has_an_address() -> None:
    """It counts once, as a real server, although its source does not know its address; without one it counts apart."""
    found = ServiceTable([ZONED])
    unlocated = {"n0/web": ("a", 3), "n2/web": ("a", 3)}
    places = Places({ENDS[1]: "a"}, unlocated=unlocated)
    found.hear("consul:web", Answer(SERVERS[:2], identities={ENDS[0]: "n0/web"}), 0, AT)
    found.hear("consul:web", Answer(SERVERS[1:2], unread=(Unread("n0/web"),), places=places), 1, AT)
    assert found.places(found.known)["consul:web"].unlocated == {"n2/web": ("a", 3)}
    found.hear("consul:web", Answer(SERVERS[1:2], out_members=("n0/web",), places=places), 2, AT)
    assert found.places(found.known)["consul:web"].unlocated == unlocated


def test_without_zones_places_are_not_passed_on() -> None:
    """Then nothing about the pools depends on them."""
    found = knowledge("consul:web")
    found.hear("consul:web", zoned(0), 0, AT)
    assert found.places(found.known) == {}


def test_a_start_takes_zones_and_weights_from_the_disk() -> None:
    """The kernel has tiers and scaled weights: they stay if the disk has other servers than it."""
    places = Places(dict.fromkeys(ENDS, "a"), {ENDS[2]: 5})
    scaled = pools(one._replace(priority=3, weight=7) for one in SERVERS[:2])
    for stored in (SERVERS[:2], SERVERS, SERVERS[:1], SERVERS[1:]):
        found = ServiceTable([ZONED])
        disk = {"consul:web": LastGood(pools(stored), 99, places=places)}
        found.seed(["consul:web"], {"consul:web": scaled}, disk)
        is_same = stored == SERVERS[:2]
        assert found.known["consul:web"].servers == (pools(stored) if is_same else scaled)
        assert found.divided == (frozenset() if is_same else {"consul:web"})
        assert found.places(found.known) == {"consul:web": places}
        found.hear("consul:web", Answer(SERVERS[:2]), 0, AT)
        assert found.known["consul:web"].servers == pools(SERVERS[:2])
        assert not found.divided
    plain = knowledge("consul:web")
    plain.seed(["consul:web"], {"consul:web": scaled}, {"consul:web": LastGood(pools(SERVERS[:2]))})
    assert plain.known["consul:web"].servers == scaled


AT_VIP: Final = RealServer(0, OPT_IN.vips[0].address, 80, 1)


def registered(*servers: RealServer) -> Answer:
    """Return an answer in which these are the places of one instance each, `n/0` and so on."""
    identities = {one.endpoint: f"n/{number}" for number, one in enumerate(servers)}
    return Answer(servers, OPT_IN, identities=identities)


def published(found: ServiceTable) -> None:
    """Note a publication in which all services of the catalog have got what they claim."""
    found.apply(found.known, (), addresses=frozenset(vip.address for one in found.claims for vip in one.opt_in.vips))


def test_instance_that_registers_a_vip_replaces_none() -> None:
    """The VIP of any service is no real server, whether it was published by this sidecar or before its start."""
    running = of_catalog("a", "b")
    running.hear("consul:a", registered(SERVERS[0]), 1, AT)
    running.hear("consul:b", Answer(SERVERS, OptIn((parse_vip("10.64.0.8:80"),))), 1, AT)
    published(running)
    started = ServiceTable([Service("catalog", CATALOG, (), policy=RemovalPolicy(hold=30))])
    started.recall([CATALOG], Installed(), decode(encode(running.last_good)).sets)
    reloaded = of_catalog("a", "b")
    reloaded.hear("consul:a", registered(SERVERS[0]), 1, AT)
    published(reloaded)
    reloaded.adopt([Service("catalog", CATALOG, (), policy=RemovalPolicy(hold=30))])
    for found in (running, started, reloaded):
        change = found.hear("consul:a", registered(AT_VIP), 2, AT)
        assert change
        assert set(change.now.guarded.good.ipv4) == {SERVERS[0], AT_VIP}
        assert change.now.held
    other = running.hear("consul:b", Answer((AT_VIP,), OptIn((parse_vip("10.64.0.8:80"),))), 2, AT)
    assert other
    assert other.now.guarded.withheld == (3, 4)


def test_claim_that_is_not_published_concerns_no_other_service() -> None:
    """A service that claims the addresses of real servers does not end the holds of their removals."""
    found = of_catalog("a", "b")
    found.hear("consul:b", Answer(SERVERS, OptIn((parse_vip("10.64.0.8:80"),))), 1, AT)
    found.hear("consul:a", Answer((), OptIn(tuple(Vip(one.address, 80, Protocol.TCP) for one in SERVERS))), 1, AT)
    found.apply(found.known, (), {"consul:a": ()}, frozenset({parse_address("10.64.0.8")}))
    change = found.hear("consul:b", Answer((), OptIn((parse_vip("10.64.0.8:80"),))), 2, AT)
    assert change
    assert change.now.guarded.withheld == (3, 3)
