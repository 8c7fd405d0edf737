"""The sidecar's log lines: one for each change; a trouble that goes on is logged less and less often."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from structlog.testing import capture_logs

from clb_discovery.datapath.sockets.closing import Destroyed
from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer, Failure, Refusal
from clb_discovery.model.servers import (
    ALL_MEMBERS,
    Algorithm,
    PassiveHealth,
    RealServer,
    Unpublished,
    Unread,
    Vip,
    VirtualServer,
)
from clb_discovery.model.service import Part, RemovalPolicy, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.state.service import ServiceState

VIP = parse_vip("10.64.0.1:80")
SERVICE = Service("web", "srv:web", (VIP,))
AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def said(announcer: Announcer, clock: Clock, following: ServiceState, *outcomes: tuple[float, str | None]) -> list[Any]:
    """Return event, error and times of the lines for outcomes of a source: when, and the error or None."""
    with capture_logs() as lines:
        for moment, error in outcomes:
            clock.now = moment
            before, following = following, following.after(Failure(error) if error else Answer(()), moment, AT)
            announcer.heard(before, following)
    return [(line["event"], line.get("error"), line.get("times")) for line in lines]


def test_error_that_goes_on_is_counted() -> None:
    """The first error is logged at once, repeats at growing intervals with a count, and the recovery once."""
    clock, following = Clock(), ServiceState(SERVICE)
    announcer = Announcer(clock)
    outcomes: list[tuple[float, str | None]] = [(second, "SERVFAIL") for second in range(40)]
    assert said(announcer, clock, following, *outcomes, (40, None), (41, None)) == [
        ("source fails", "SERVFAIL", None),
        ("source fails", "SERVFAIL", 10),
        ("source fails", "SERVFAIL", 20),
        ("source answers again", None, None),
    ]


def test_errors_that_alternate_do_not_flood() -> None:
    """Two errors that follow each other all the time are each logged once."""
    clock, following = Clock(), ServiceState(SERVICE)
    outcomes: list[tuple[float, str | None]] = [(second / 10, "one" if second % 2 else "two") for second in range(90)]
    assert said(Announcer(clock), clock, following, *outcomes) == [
        ("source fails", "two", None),
        ("source fails", "one", None),
    ]


def test_source_that_comes_and_goes_does_not_flood() -> None:
    """A recovery is logged only after a logged failure, and the last line is true within seconds."""
    clock, following = Clock(), ServiceState(SERVICE)
    outcomes = [(second / 2, "down" if second % 2 else None) for second in range(1, 30)]
    found = said(Announcer(clock), clock, following, *outcomes)
    assert found == [
        ("source fails", "down", None),
        ("source answers again", None, None),
        ("source fails", "down", 10),
        ("source answers again", None, None),
    ]


def test_a_source_that_is_down_after_it_came_and_went_is_logged_within_two_tries() -> None:
    """Failures of a moment are rare lines; when one lasts, the last line does not say for an hour that it answers."""
    for hours in range(1, 4):
        for down in (0, 20, 40, 60 * 17):
            clock, following = Clock(), ServiceState(SERVICE)
            announcer = Announcer(clock)
            end = hours * 3600 + down
            flapping = [(float(second), "down" if second % 60 == 0 else None) for second in range(0, end, 20)]
            came_and_went = said(announcer, clock, following, *flapping)
            assert len(came_and_went) <= 2 * 14
            following = following.after(Answer(()), end, AT)
            lasting = said(announcer, clock, following, (end, "down"), (end + 20.0, "down"))
            assert [event for event, _, _ in lasting] == ["source fails"]
            more = said(announcer, clock, following.after(Failure("down"), end, AT), (end + 40.0, "down"))
            assert more == []


def test_failures_in_pairs_do_not_flood() -> None:
    """A source that fails twice between answers is logged every ten seconds at most."""
    clock, following = Clock(), ServiceState(SERVICE)
    outcomes = [(float(second), None if second % 3 == 0 else "down") for second in range(600)]
    assert len(said(Announcer(clock), clock, following, *outcomes)) <= 2 * 60


def test_what_is_unpublished_again_is_logged_again() -> None:
    """It has the same rule: the last line is the end only for as long as that is true."""
    clock = Clock()
    announcer, lacking = Announcer(clock), [Unpublished(VIP, "web", "srv:web", "no room")]
    with capture_logs() as lines:
        for clock.now in range(0, 7200, 60):
            announcer.unpublished(lacking if clock.now % 120 else [])
        before = len(lines)
        for clock.now in (7200, 7260, 7320):
            announcer.unpublished(lacking)
    assert before <= 2 * 14
    assert [line["event"] for line in lines[before - 1 :]][-1] == "not published"


def test_an_outage_of_many_sources_does_not_flood() -> None:
    """Each wave of lines has the first few sources and the number of the others, and waves become rare."""
    clock = Clock()
    announcer, states = Announcer(clock), [ServiceState(Service(f"s{n}", f"srv:s{n}", (VIP,))) for n in range(2000)]
    with capture_logs() as lines:
        for clock.now in range(0, 1800, 30):
            for error in ("one", "two"):
                after = [state.after(Failure(error), clock.now, AT) for state in states]
                for before, now in zip(states, after, strict=True):
                    announcer.heard(before, now)
                states = after
            announcer.flush()
    assert len(lines) < 33 * 10
    assert lines[32] == {"event": "more lines left out", "log_level": "warning", "of": "source fails", "count": 3968}


def test_trouble_is_repeated_with_a_count() -> None:
    """Trouble at each tick is logged at growing intervals; after its end it may begin again."""
    clock = Clock()
    announcer = Announcer(clock)
    with capture_logs() as lines:
        for second in range(15):
            clock.now = float(second)
            announcer.trouble("cannot publish", "no memory")
        announcer.trouble("cannot publish", None)
        clock.now = 100.0
        announcer.trouble("cannot publish", "no memory")
    assert [(line["event"], line.get("times")) for line in lines] == [
        ("cannot publish", None),
        ("cannot publish", 10),
        ("cannot publish", 5),
    ]


def published(*ports: int, weight: int = 1, priority: int = 0, **settings: Any) -> dict[Vip, VirtualServer]:  # noqa: ANN401 - what a virtual server has
    """Return a virtual server whose real servers have these ports."""
    pool = tuple(RealServer(priority, parse_address("10.0.0.1"), port, weight) for port in ports)
    return {VIP: replace(VirtualServer(VIP, "web", "srv:web", Algorithm.RANDOM, pool), **settings)}


def test_a_change_is_one_line_that_says_what_changed() -> None:
    """The line has how many servers were added, removed and changed, and the names of a few."""
    before = plan(Installed(), published(1, 2), complete=True).result
    after = plan(before, published(2, *range(10, 30)), complete=True)
    gone = plan(after.result, {}, complete=True)
    with capture_logs() as lines:
        Announcer().published(before, after)
        Announcer().published(after.result, gone)
    change, removal = lines
    assert (change["event"], change["change"], change["service"]) == ("pool published", "+20 -1 ~0", "web")
    assert change["removed"] == ["10.0.0.1:1"]
    assert len(change["added"]) == 9
    assert change["added"][-1] == "and 12 more"
    assert (removal["event"], removal["service"], removal["vip"]) == ("virtual server removed", "web", "10.64.0.1:80")


def test_what_changed_is_told_from_what_to_what() -> None:
    """A line has old and new weight and priority of a few real servers, and each changed setting."""
    before = plan(Installed(), published(*range(1, 12)), complete=True).result
    health = PassiveHealth(eject_after=5, eject_first_ms=1_000)
    weights = plan(before, published(*range(1, 12), weight=40, priority=2), complete=True)
    settings = published(*range(1, 12), weight=40, priority=2, algorithm=Algorithm.LEAST_CONN, health=health)
    with capture_logs() as lines:
        Announcer().published(before, weights)
        Announcer().published(weights.result, plan(weights.result, settings, complete=True))
    first, second = lines
    assert (first["change"], first["settings"], len(first["changed"])) == ("+0 -0 ~11", [], 9)
    assert first["changed"][0] == "10.0.0.1:1 weight 1 -> 40 priority 0 -> 2"
    assert (second["change"], second["changed"]) == ("+0 -0 ~0", [])
    assert second["settings"] == ["algorithm random -> least-conn", "eject-after 3 -> 5", "eject-time 5000ms -> 1000ms"]


def test_a_pool_that_loses_its_last_server_is_a_warning() -> None:
    """It refuses every connect from then on; a pool that begins empty, stays empty or fills is no warning."""
    empty = plan(Installed(), published(), complete=True)
    still = plan(empty.result, published(algorithm=Algorithm.LEAST_CONN), complete=True)
    full = plan(still.result, published(1, 2), complete=True)
    emptied = plan(full.result, published(), complete=True)
    with capture_logs() as lines:
        for before, after in (
            (Installed(), empty),
            (empty.result, still),
            (still.result, full),
            (full.result, emptied),
        ):
            Announcer().published(before, after)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        *[("pool published", "info")] * 3,
        ("pool published", "warning"),
    ]


def test_servers_that_are_refused_are_bounded() -> None:
    """An answer full of forbidden servers takes one line for each reason, and only once."""
    rejected = [Refusal(RealServer(0, parse_address("224.0.0.1"), port, 1), "no") for port in range(1, 1001)]
    announcer = Announcer()
    with capture_logs() as lines:
        announcer.rejected({SERVICE.source: rejected}, {SERVICE.source: SERVICE})
        announcer.rejected({SERVICE.source: rejected}, {SERVICE.source: SERVICE})
    assert [(line["event"], line["reason"]) for line in lines] == [("real servers rejected", "no")]
    assert lines[0]["servers"] == [*(f"224.0.0.1:{port}" for port in range(1, 9)), "and 992 more"]


def test_reasons_of_refusals_are_bounded() -> None:
    """If each server has a reason of its own, some are named and the others counted."""
    rejected = [Refusal(RealServer(0, parse_address("224.0.0.1"), port, 1), f"no {port}") for port in range(1, 101)]
    with capture_logs() as lines:
        Announcer().rejected({SERVICE.source: rejected}, {SERVICE.source: SERVICE})
    assert [line["event"] for line in lines] == ["real servers rejected"] * 32 + ["more real servers rejected"]
    assert lines[-1]["count"] == 68


def test_refused_words_of_a_catalog_are_said_when_they_appear() -> None:
    """The line has the service, the value and the fix."""
    old, new = Refusal("VIP 10.64.0.1", "belongs to consul:a"), Refusal("clb-vip 'x'", "is not a VIP")
    with capture_logs() as logs:
        Announcer().refused("web", [old], [old, new])
    assert [(line["service"], line["value"], line["reason"]) for line in logs] == [("web", *new)]


def test_what_is_refused_again_and_again_does_not_fill_the_log() -> None:
    """A registration that is wrong every other second is logged at once, and then at growing intervals."""
    clock = iter(range(10_000))
    announcer = Announcer(lambda: next(clock))
    word = Refusal("VIP 10.64.0.1", "belongs to consul:a")
    server = Refusal(RealServer(0, parse_address("224.0.0.1"), 80, 1), "no")
    with capture_logs() as lines:
        for _ in range(1800):
            announcer.refused("web", [], [word])
            announcer.rejected({SERVICE.source: [server]}, {SERVICE.source: SERVICE})
            announcer.rejected({}, {})
    events = [line["event"] for line in lines]
    assert 8 < events.count("registration rejected") < 12
    assert 8 < events.count("real servers rejected") < 12


def test_closed_sockets_are_a_trouble_only_where_some_may_be_left() -> None:
    """If all of them were closed, or there were none, there is no trouble."""
    announcer = Announcer()
    with capture_logs() as lines:
        announcer.closed(None)
        announcer.closed(Destroyed(0, frozenset(), 0))
        announcer.closed(Destroyed(2, frozenset(), 0))
        announcer.closed(Destroyed(0, frozenset({"not allowed"}), 0))
    assert [(line["event"], line.get("count"), line.get("error")) for line in lines] == [
        ("sockets closed", 2, None),
        ("cannot close sockets of removed real servers", None, "not allowed"),
    ]


def servers(*ports: int) -> tuple[RealServer, ...]:
    """Return real servers at these ports of one host."""
    return tuple(RealServer(0, parse_address("10.0.0.1"), port, 1) for port in ports)


def lines_of(*answers: tuple[float, Answer]) -> list[dict[str, Any]]:
    """Return the lines for answers of a source, each at its time."""
    clock, following = Clock(), ServiceState(SERVICE)
    announcer = Announcer(clock)
    with capture_logs() as lines:
        for clock.now, answer in answers:
            before, following = following, following.after(answer, clock.now, AT)
            announcer.heard(before, following)
    return [dict(line) for line in lines]


def test_hold_names_its_members_at_its_beginning_and_end() -> None:
    """The lines name a few members: those that would go, then those that went and those that came back."""
    everybody = Answer(servers(*range(1, 31)))
    begun, ended = lines_of((0, everybody), (1, Answer(servers(1))), (2, everybody))
    assert (begun["event"], begun["removed"], begun["of"], begun["seconds"]) == ("removal held", 29, 30, 30)
    assert (len(begun["servers"]), begun["servers"][0], begun["servers"][-1]) == (9, "10.0.0.1:2", "and 21 more")
    assert (ended["event"], ended["removed"], ended["back"]) == ("removal no longer held", [], begun["servers"])
    lines = lines_of((0, everybody), (1, Answer(servers(1))), (31, Answer(servers(1))))
    assert [(line["event"], line.get("back")) for line in lines] == [
        ("removal held", None),
        ("removal no longer held", []),
    ]
    assert lines[1]["removed"] == lines[0]["servers"]


def test_hold_that_grows_names_the_new_ones() -> None:
    """Each member is named once during the hold."""
    lines = lines_of((0, Answer(servers(1, 2, 3))), (1, Answer(servers(1))), (2, Answer(())), (32, Answer(())))
    assert [(line["event"], line.get("servers"), line["removed"]) for line in lines] == [
        ("removal held", ["10.0.0.1:2", "10.0.0.1:3"], 2),
        ("removal held", ["10.0.0.1:1"], 3),
        ("removal no longer held", None, ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]),
    ]


def test_member_that_flaps_does_not_flood() -> None:
    """One line at the beginning, one at the end, and then at growing intervals."""
    found = lines_of(*((second, Answer(servers(*([1] if second % 2 else [1, 2, 3])))) for second in range(40)))
    assert len(found) < 10


def test_members_left_out_are_said_once() -> None:
    """A few of each answer are logged, with the count of the others; not again if they come and go."""
    left_out = tuple(Refusal(f"instance {number}", "has no port") for number in range(40))
    with_them, without = Answer(servers(1), left_out=left_out), Answer(servers(1))
    found = lines_of((0, with_them), (1, with_them), (2, without), (3, with_them))
    assert [line["event"] for line in found] == ["member left out"] * 16 + ["more members left out"]
    assert (found[0]["service"], found[0]["member"], found[0]["reason"]) == ("web", "instance 0", "has no port")
    assert found[-1]["count"] == 24


def test_a_service_without_a_host_name_is_said_once() -> None:
    """It has a line when it appears, when its reason is another one, and when it is back; the others stay silent."""
    announcer = Announcer(Clock())
    with capture_logs() as lines:
        for found in ({"a": "x"}, {"a": "x", "b": "y"}, {"a": "z", "b": "y"}, {"b": "y"}, {"a": "z"}):
            announcer.nameless(found)
    assert [(line["service"], line["reason"]) for line in lines] == [("a", "x"), ("b", "y"), ("a", "z"), ("a", "z")]


def test_note_is_said_once() -> None:
    """A note is logged when it appears, and not again if it comes and goes."""
    noted, without = Answer(servers(1), note="it may be incomplete"), Answer(servers(1))
    found = lines_of((0, noted), (1, noted), (2, without), (3, noted))
    assert [(line["event"], line["source"], line["note"]) for line in found] == [
        ("answer has a caveat", "srv:web", "it may be incomplete")
    ]


def test_a_part_that_cannot_be_looked_up_is_logged_again() -> None:
    """The servers of that part become outdated, so it is a trouble that goes on, with a count, until it ends."""
    unread = (Unread(ALL_MEMBERS, 80, 0, 1, is_ipv4=False),)
    partial = Answer(servers(1), note="AAAA cannot be looked up", unread=unread)
    found = lines_of(*((second, partial) for second in range(40)), (40, Answer(servers(1))), (41, Answer(servers(1))))
    assert [(line["event"], line.get("error"), line.get("times")) for line in found] == [
        ("answer is incomplete", "AAAA cannot be looked up", None),
        ("answer is incomplete", "AAAA cannot be looked up", 10),
        ("answer is incomplete", "AAAA cannot be looked up", 20),
        ("answer is complete again", None, None),
    ]


def test_a_part_that_empties_is_a_line() -> None:
    """One of several parts has a line when its last server goes, and one when it has some again; others have none."""
    server = (RealServer(0, parse_address("10.0.0.1"), 80, 1),)
    parts = (Part("consul:web"), Part("srv:web", priority=1))
    composed = replace(SERVICE, source="pool:x", parts=parts, policy=RemovalPolicy(hold=0))
    for state, events in (
        (ServiceState(composed, 1), ["part has no real servers", "part has real servers again"]),
        (ServiceState(replace(SERVICE, policy=RemovalPolicy(hold=0))), []),
    ):
        announcer, now = Announcer(Clock()), state
        with capture_logs() as lines:
            for second, servers in enumerate((server, (), server)):
                before, now = now, now.after(Answer(servers), second, AT)
                announcer.heard(before, now)
        assert [line["event"] for line in lines] == events
        assert {line["source"] for line in lines} == ({"srv:web"} if events else set())


def test_a_part_that_stays_empty_after_it_came_and_went_is_logged() -> None:
    """Its last line is the truth as well, though nothing changes any more."""
    server = (RealServer(0, parse_address("10.0.0.1"), 80, 1),)
    parts = (Part("consul:web"), Part("srv:web", priority=1))
    clock, now = Clock(), ServiceState(replace(SERVICE, parts=parts, policy=RemovalPolicy(hold=0)), 1)
    announcer = Announcer(clock)
    with capture_logs() as lines:
        for clock.now in range(0, 7200, 60):
            before, now = now, now.after(Answer(() if clock.now % 120 else server), clock.now, AT)
            announcer.heard(before, now)
        flapping = len(lines)
        for clock.now in (7200, 7260, 7320, 7380):
            before, now = now, now.after(Answer(()), clock.now, AT)
            announcer.heard(before, now)
    assert flapping <= 2 * 14
    assert lines[-1]["event"] == "part has no real servers"
    assert len(lines) <= flapping + 1


def test_services_without_room_are_bounded() -> None:
    """Some are named, and the others counted; while nothing changes there is no line."""
    clock = Clock()
    announcer = Announcer(clock)
    unpublished = [Unpublished(VIP, f"s{number}", f"srv:s{number}", "the map is full") for number in range(100)]
    with capture_logs() as lines:
        for clock.now in (0.0, 5.0):
            announcer.unpublished(unpublished)
    assert [line["event"] for line in lines] == ["not published"] * 32
