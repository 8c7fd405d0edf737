"""The state of one service, and why its source is not fresh."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import MAX_VIPS, Answer, Failure, Listing, OptIn, Outcome, Refusal
from clb_discovery.model.servers import Protocol, RealServer, Unread, Vip, pools
from clb_discovery.model.service import RemovalPolicy, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.state.service import STATES, ServiceState
from clb_discovery.text import timestamp

SERVERS: Final = tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in range(1, 4))
HOUR: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)


def following() -> ServiceState:
    """Return a service of which nothing is known."""
    return ServiceState(Service("web", "srv:web", (parse_vip("10.64.0.1:80"),), policy=RemovalPolicy(hold=30)))


def heard(one: ServiceState, outcome: Outcome, now: float) -> ServiceState:
    """Return the state after an outcome, in seconds after an hour that the tests share."""
    return one.after(outcome, now, HOUR + timedelta(seconds=now))


def shown(one: ServiceState) -> tuple[str, bool, str | None]:
    """Return state, staleness and reason, as status shows them."""
    document = json.loads(json.dumps(one.document))
    assert document["state"] in STATES
    return document["state"], document["stale"], document["reason"]


def withheld(removed: int, of: int, one: ServiceState) -> str:
    """Return the reason of a source that holds a removal of members."""
    return held(f"{removed} of {of} real servers absent or out", one)


def held(what: str, one: ServiceState) -> str:
    """Return the reason of a source that holds a removal."""
    return f"{what} since {timestamp(one.absent_since)}; kept until an answer confirms it after 30 s (--hold)"


def test_source_that_has_never_answered_is_retrying() -> None:
    """Before the first answer nothing can be stale; the reason is the error, once there is one."""
    one = following()
    assert shown(one) == ("retrying", False, "no answer yet")
    one = heard(one, Failure("SERVFAIL"), 0)
    assert shown(one) == ("retrying", False, "SERVFAIL")
    assert one.document["error"] == "SERVFAIL"


def test_source_that_answers_is_fresh() -> None:
    """A fresh source has no reason, and the time of its answer is known."""
    one = following()
    one = heard(one, Answer(SERVERS), 0)
    assert shown(one) == ("fresh", False, None)
    assert tuple(one.guarded.good) == SERVERS
    assert one.answered_at is not None


def test_source_that_fails_after_an_answer_is_stale() -> None:
    """An error keeps the last good set, and the reason has the time since when it may be out of date."""
    one = following()
    one = heard(one, Answer(SERVERS), 0)
    one = heard(one, Failure("SERVFAIL"), 1)
    state, stale, reason = shown(one)
    assert (state, stale) == ("retrying", True)
    assert re.fullmatch(r"stale since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: SERVFAIL", reason or "")
    assert tuple(one.guarded.good) == SERVERS


def test_set_from_before_the_start_is_stale_until_the_source_answers() -> None:
    """A set of the disk or the kernel is served, marked with its time, and guarded like any other."""
    one = following()
    one = one.seeded(pools(SERVERS), 1_700_000_000, {})
    assert shown(one) == ("retrying", True, "stale since 2023-11-14T22:13:20Z: no answer yet")
    assert (tuple(one.guarded.good), one.answered_at) == (SERVERS, 1_700_000_000)
    one = heard(one, Answer(()), 0)
    assert shown(one) == ("held", False, withheld(3, 3, one))
    one = heard(one, Answer(()), 30)
    assert shown(one) == ("fresh", False, None)


def test_set_of_unknown_age_is_stale_since_before_the_start() -> None:
    """An installed set that is not on disk has no time."""
    one = following()
    one = one.seeded(pools(SERVERS), None, {})
    assert shown(one) == ("retrying", True, "stale since before the start: no answer yet")
    assert one.answered_at is None


def test_held_removal_says_how_many_and_since_when() -> None:
    """The reason of a held source has the count and the time of the first gap; later answers keep it."""
    one = following()
    one = heard(one, Answer(SERVERS), 100)
    one = heard(one, Answer(SERVERS[:1]), 101)
    reason = withheld(2, 3, one)
    assert shown(one) == ("held", False, reason)
    assert one.absent_since == HOUR + timedelta(seconds=101)
    one = heard(one, Answer(SERVERS[:1]), 121)
    assert shown(one) == ("held", False, reason)
    one = heard(one, Answer(()), 122)
    assert shown(one) == ("held", False, withheld(3, 3, one))
    one = heard(one, Answer(()), 131)  # confirms two of them, which were absent for longer
    assert shown(one) == ("held", False, withheld(1, 1, one))
    assert one.absent_since == HOUR + timedelta(seconds=122)
    one = heard(one, Answer(SERVERS), 132)
    assert shown(one) == ("fresh", False, None)


def test_errors_touch_no_clock() -> None:
    """An error each 5 s during a hold of 30 s: the first answer at or after 30 s confirms."""
    one = following()
    one = heard(one, Answer(SERVERS), 0)
    one = heard(one, Answer(()), 1)
    for second in range(5, 30, 5):
        one = heard(one, Failure("504"), second)
        assert shown(one)[:2] == ("retrying", True)
        one = heard(one, Answer(()), second + 0.5)
        assert (one.deadline, tuple(one.guarded.good)) == (31, SERVERS)
    one = heard(one, Failure("504"), 31)
    assert tuple(one.guarded.good) == SERVERS
    one = heard(one, Answer(()), 31.2)
    assert tuple(one.guarded.good) == ()


def test_nothing_is_removed_without_an_answer() -> None:
    """Errors that go on for longer than the hold remove nothing; the next answer confirms, or brings them back."""
    for last, left in ((Answer(()), ()), (Answer(SERVERS), SERVERS)):
        one = following()
        one = heard(one, Answer(SERVERS), 0)
        one = heard(one, Answer(()), 1)
        for second in range(2, 1000):
            one = heard(one, Failure("refused"), second)
        assert tuple(one.guarded.good) == SERVERS
        one = heard(one, last, 1001)
        assert tuple(one.guarded.good) == left


def test_source_is_due_once() -> None:
    """A hastened source has no deadline until an answer to what was asked afterwards; nor has one that fails."""
    one = following()
    one = heard(one, Answer(SERVERS), 0)
    one = heard(one, Answer(()), 1)
    assert one.deadline == 31
    one = one._replace(hastened=31)
    assert one.deadline is None
    one = heard(one, Answer((), asked=30), 32)
    assert (one.deadline, one.hastened, one.guarded.held) == (None, 31, True)
    failed = heard(one, Failure("refused"), 32)
    assert (failed.deadline, failed.hastened) == (None, None)
    one = heard(one, Answer((), asked=31), 33)
    assert (one.deadline, one.hastened, one.guarded.held) == (None, None, False)
    one = heard(one, Answer(SERVERS[:1]), 33)
    one = heard(one, Answer(()), 34)
    assert one.deadline == 64


IPV4, IPV6, REFUSED = parse_vip("10.64.0.1:80"), parse_vip("[fd00:64::1]:80"), Refusal("VIP", "is of another service")
IPV6_SERVER: Final = RealServer(0, parse_address("fd00::1"), 80, 1)


@pytest.mark.parametrize(
    ("vips", "opt_in", "refused", "is_held"),
    [
        ((IPV4,), None, (), False),
        ((IPV4, IPV6), None, (), True),
        ((), OptIn((IPV4,)), (), False),
        ((), OptIn((IPV4, IPV6)), (), True),
        ((), OptIn((IPV4,), (Protocol.TCP,)), (), True),
        ((), OptIn((IPV4,)), (REFUSED,), True),
        ((), OptIn(), (), True),
    ],
)
def test_no_removal_is_held_where_there_is_no_vip(
    vips: tuple[Vip, ...], opt_in: OptIn | None, refused: tuple[Refusal, ...], *, is_held: bool
) -> None:
    """A family without a VIP has no pool that could lack a server; one that may have a VIP is guarded."""
    service = Service("web", "consul:web", vips, policy=RemovalPolicy(hold=30))
    one = ServiceState(service, from_catalog=opt_in is not None)
    one = heard(one, Answer((*SERVERS, IPV6_SERVER), opt_in), 0)._replace(refused=refused)
    gone = heard(one, Answer(SERVERS, opt_in), 1)
    assert (gone.held, gone.deadline) == ((True, 31) if is_held else (False, None))
    assert (IPV6_SERVER in gone.guarded.good.ipv6) == is_held
    assert heard(one, Answer((IPV6_SERVER,), opt_in), 1).guarded.withheld == (3, 3)


def test_members_left_out_and_notes_are_reasons() -> None:
    """They do not change the state, few are named, and they go with the next answer that has none."""
    one = following()
    left_out = tuple(Refusal(f"instance 'node/{number}'", "has no port; register one") for number in range(6))
    one = heard(one, Answer(SERVERS, left_out=left_out, note="it may be incomplete"), 0)
    named = "; ".join(["it may be incomplete", *map(str, left_out[:4]), "and 2 more"])
    assert shown(one) == ("fresh", False, named)
    one = heard(one, Failure("SERVFAIL"), 1)
    assert shown(one)[:2] == ("retrying", True)
    assert (shown(one)[2] or "").endswith(named)
    one = heard(one, Answer(SERVERS), 2)
    assert shown(one) == ("fresh", False, None)


def test_every_answer_counts_before_it_is_published() -> None:
    """A statement or a replacement in an answer that another one follows at once is not lost."""
    one = following()
    a, b, c = SERVERS
    ends = [(server.address, server.port) for server in SERVERS]
    one = heard(one, Answer((a, b), identities=dict(zip(ends, "xyz", strict=True))), 0)
    one = heard(one, Answer((a,), out=(ends[1],)), 0.001)
    one = heard(one, Answer((a,), identities={ends[0]: "x"}), 0.002)
    assert tuple(one.guarded.good) == (a,)
    one = heard(one, Answer((c,), identities={ends[2]: "x"}), 0.003)
    one = heard(one, Answer((c,)), 0.004)
    assert tuple(one.guarded.good) == (c,)


VIP: Final = OptIn((parse_vip("10.64.0.1:80"),))
SERVICE: Final = Service("web", "consul:web", (), policy=RemovalPolicy(hold=30))


def from_catalog() -> ServiceState:
    """Return a service that a catalog lists."""
    return ServiceState(SERVICE, from_catalog=True)


def test_answer_that_names_only_members_that_cannot_be_read_is_an_error() -> None:
    """It is not an empty pool: nothing is known until one can be read, and until then no member goes."""
    unread = Answer((), VIP, unread=(Unread("a"),), left_out=(Refusal("instance 'a'", "has no address"),))
    for new in (following(), from_catalog()):
        one = heard(new, unread, 0)
        assert (one.known, one.answered, one.deadline) == (False, one.from_catalog, None)
        assert shown(one) == ("retrying", False, "no real server can be used: instance 'a' has no address")
        one = heard(one, Answer(SERVERS, VIP), 1)
        assert (one.known, one.state) == (True, "fresh")
        for now in (2, 40):
            one = heard(one, unread, now)
            assert (tuple(one.guarded.good), one.state) == (SERVERS, "fresh")
    left = from_catalog()
    left = heard(left, replace(unread, opt_in=None), 0)
    assert (left.leaving, left.error) == (True, None)


def test_service_that_no_longer_opts_in_is_held_and_then_left() -> None:
    """Its pool and VIPs stay for the hold, whether it is deregistered or only opts out."""
    one = from_catalog()
    one = heard(one, Answer(SERVERS, VIP), 0)
    assert (shown(one), one.opt_in) == (("fresh", False, None), VIP)
    one = heard(one, Answer(SERVERS), 1)
    assert shown(one) == ("held", False, held("3 of 3 real servers absent or out and no instance opts in", one))
    assert (one.opt_in, tuple(one.guarded.good)) == (VIP, SERVERS)
    one = heard(one, Answer(SERVERS), 30.9)
    assert (one.opt_in, tuple(one.guarded.good)) == (VIP, SERVERS)
    one = heard(one, Answer(SERVERS), 31)
    assert (one.opt_in, tuple(one.guarded.good), one.leaving) == (None, (), True)


def claim(vips: str, *instances: str, automatic: bool = False) -> OptIn:
    """Return the opt-in of these instances, with the last numbers of their VIPs, and an automatic one."""
    named = tuple(parse_vip(f"10.64.0.{number}:80") for number in vips)
    return OptIn(named, (Protocol.TCP,) if automatic else (), instances=frozenset(instances))


def claims(one: ServiceState) -> tuple[str, bool] | None:
    """Return the last numbers of the VIPs that count, and whether automatic ones do."""
    if one.opt_in is None:
        return None
    return "".join(str(vip.address[-1]) for vip in one.opt_in.vips), bool(one.opt_in.automatic)


def test_claim_of_an_absent_instance_stays_for_the_hold() -> None:
    """An answer that was asked for after the hold confirms it; the source is queried then. Few members may go at once.

    Another answer of the remaining instances is none: they never named it.
    """
    one = heard(from_catalog(), Answer(SERVERS, claim("12", "a", "b", "c", automatic=True)), 0)
    one = heard(one, Answer(SERVERS[:2], claim("1", "a", "b")), 1)
    assert tuple(one.guarded.good) == SERVERS[:2]
    for now in (1, 20):
        assert claims(one) == ("12", True)
        assert shown(one) == ("held", False, held("no instance claims 10.64.0.2:80, auto/tcp", one))
        assert (one.absent_since, one.deadline) == (HOUR + timedelta(seconds=1), 31)
        one = heard(one, Answer(SERVERS[:2], claim("1", "a", "b")), now)
    one = heard(one, Answer(SERVERS[:2], claim("1", "a", "b"), asked=30.9), 32)
    assert claims(one) == ("12", True)
    assert claims(one.confirmed()) == ("1", False)
    one = heard(one, Answer(SERVERS[:2], claim("1", "a", "b"), asked=31), 33)
    assert (claims(one), shown(one), one.deadline) == (("1", False), ("fresh", False, None), None)


def test_claim_that_is_back_is_not_held() -> None:
    """Its next absence has a time of its own."""
    one = heard(from_catalog(), Answer(SERVERS, claim("12", "a", "b")), 0)
    one = heard(one, Answer(SERVERS, claim("1", "a")), 1)
    one = heard(one, Answer(SERVERS, claim("12", "a", "b")), 2)
    assert (claims(one), shown(one)) == (("12", False), ("fresh", False, None))
    one = heard(one, Answer(SERVERS, claim("1", "a")), 20)
    one = heard(one, Answer(SERVERS, claim("1", "a")), 40)
    assert (claims(one), one.deadline) == (("12", False), 50)


def test_what_all_instances_register_counts_at_once() -> None:
    """They are there and claim something else, which is no gap; new instances do not matter."""
    one = heard(from_catalog(), Answer(SERVERS, claim("12", "a", "b", automatic=True)), 0)
    one = heard(one, Answer(SERVERS, claim("3", "a", "b", "c")), 1)
    assert (claims(one), shown(one)) == (("3", False), ("fresh", False, None))


def test_claims_of_a_start_are_held() -> None:
    """Nothing tells which instances had named them, except automatic VIPs, which the kernel shows as any other."""
    address = parse_vip("10.64.0.9")
    restored = from_catalog()._replace(opt_in=OptIn((address, *claim("1").vips))).seeded(pools(SERVERS), None, {})
    assert claims(heard(restored, Answer(SERVERS, claim("2", "a")), 0)) == ("129", False)
    assert claims(heard(restored, Answer(SERVERS, claim("", "a", automatic=True)), 0)) == ("1", True)


def test_claims_that_are_held_are_bounded() -> None:
    """Instances that come and go with ever other VIPs leave no more than a service may have; earlier ones stay."""
    one = from_catalog()
    for number in range(1, 10):
        named = tuple(parse_vip(f"10.64.{number}.{host}:80") for host in range(1, 6))
        one = heard(one, Answer(SERVERS, OptIn(named, instances=frozenset({f"{number}"}))), number)
        assert one.opt_in is not None
        assert set(named) <= set(one.opt_in.vips)
        assert len(one.opt_in.vips) == min(5 * number, MAX_VIPS)
        assert one.opt_in.claimed >= one.unclaimed.keys()


@pytest.mark.parametrize("servers", [(), (RealServer(0, parse_address("127.0.0.1"), 80, 1),)])
def test_service_that_leaves_without_usable_servers_keeps_its_claims(servers: tuple[RealServer, ...]) -> None:
    """An empty pool, or one of rejected servers, does not shorten the hold. A configured service starts empty then."""
    one = heard(from_catalog(), Answer(servers, VIP), 0)
    one = heard(one, Answer(()), 1)
    assert (shown(one), one.opt_in) == (("held", False, held("no instance opts in", one)), VIP)
    assert one.deadline == 31
    assert one.reconfigured(SERVICE) == ServiceState(SERVICE)
    one = heard(one, Answer((), asked=30.9), 40)
    assert one.opt_in == VIP
    assert one.confirmed().opt_in is None
    one = heard(one, Answer((), asked=40), 41)
    assert (one.opt_in, one.leaving, one.state) == (None, True, "fresh")


@given(
    st.lists(
        st.tuples(
            st.floats(0, 20),
            st.floats(0, 20),
            st.dictionaries(st.sampled_from("abc"), st.text("123", max_size=2), max_size=3),
        ),
        max_size=12,
    )
)
def test_no_claim_goes_unless_it_is_stated_or_confirmed(steps: list[tuple[float, float, dict[str, str]]]) -> None:
    """For any answers: it goes by one that has all earlier instances, or that was asked for after the hold."""
    one, now, since, before = from_catalog(), 0.0, dict[str, float](), set[str]()
    for pause, age, named in steps:
        now += pause
        vips = {vip for own in named.values() for vip in own}
        counted = set((claims(one) or ("", False))[0])
        opt_in = claim("".join(sorted(vips)), *named) if vips else None
        one = heard(one, Answer(SERVERS, opt_in, asked=now - age), now)
        now_counted = set((claims(one) or ("", False))[0])
        assert vips <= now_counted
        since = {vip: since.get(vip, now) for vip in counted - vips}
        is_stated = bool(vips) and before <= named.keys()
        for vip in counted - vips:
            assert (vip in now_counted) or is_stated or now - age >= since[vip] + 30
            assert vip not in now_counted or now - age < since[vip] + 30
        before = set(named) if vips else before


def test_service_that_opts_in_again_in_time_never_left() -> None:
    """A Consul server that lost its state and gets it back causes this."""
    one = from_catalog()
    one = heard(one, Answer(SERVERS, VIP), 0)
    one = heard(one, Answer(()), 1)
    one = heard(one, Answer(SERVERS, VIP), 2)
    one = heard(one, Answer(SERVERS, VIP), 100)
    assert (one.opt_in, tuple(one.guarded.good), one.leaving) == (VIP, SERVERS, False)


def test_service_that_leaves_keeps_its_vips_while_its_source_fails() -> None:
    """It keeps them until the next answer after the hold."""
    one = from_catalog()
    one = heard(one, Answer(SERVERS, VIP), 0)
    one = heard(one, Answer(()), 1)
    one = heard(one, Failure("refused"), 2)
    one = heard(one, Failure("refused"), 1000)
    assert (one.opt_in, tuple(one.guarded.good)) == (VIP, SERVERS)
    one = heard(one, Answer(()), 1001)
    assert (one.opt_in, tuple(one.guarded.good), one.leaving) == (None, (), True)


def test_words_of_a_service_that_leaves_do_not_count() -> None:
    """Members that it takes out or that are unusable do not matter to a catalog that it has left."""
    one = from_catalog()
    one = heard(one, Answer(SERVERS, VIP), 0)
    end = (SERVERS[0].address, SERVERS[0].port)
    one = heard(one, Answer(SERVERS[1:], out=(end,), left_out=(Refusal("a", "b"),)), 1)
    assert (tuple(one.guarded.good), one.left_out) == (SERVERS, ())


def test_service_that_is_configured_now_keeps_its_servers() -> None:
    """A service that the catalog fed goes on until its next answer; one that had left starts empty."""
    wanted = replace(SERVICE, vips=(parse_vip("10.64.0.9:80"),))
    one = from_catalog()
    one = heard(one, Answer(SERVERS, VIP), 0)
    now = one.reconfigured(wanted)
    assert (now.service, tuple(now.guarded.good), now.opt_in, now.known, now.answered) == (
        wanted,
        SERVERS,
        None,
        True,
        False,
    )
    assert not now.from_catalog
    one = heard(one, Answer(()), 1)
    one = heard(one, Answer(()), 31)
    assert one.reconfigured(wanted) == ServiceState(wanted)


def test_what_nobody_can_use_is_an_answer_of_a_catalog() -> None:
    """An unusable registration keeps no sidecar from being ready; an unusable configured service does."""
    unusable = Failure("the port is 0", unusable=True)
    one, other = from_catalog(), following()
    one = heard(one, unusable, 0)
    other = heard(other, unusable, 0)
    assert (one.answered, other.answered) == (True, False)
    assert (one.useless, one.unusable, other.unusable) == (True, True, False)
    assert shown(one) == ("retrying", False, "the port is 0")
    one = heard(one, Failure("refused"), 0)
    assert shown(one) == ("retrying", False, "refused")
    assert (one.useless, one.unusable) == (True, False)
    one = heard(one, Answer(SERVERS, VIP), 0)
    assert not one.useless


def test_refusals_are_in_the_reason() -> None:
    """A rejected VIP makes a source held, a rejected real server does not; each reason stands once."""
    one = from_catalog()
    one = heard(one, Answer(SERVERS, VIP), 0)
    rejected = tuple(Refusal(server, "it is a VIP; go away") for server in SERVERS)
    one = one._replace(rejected=rejected)
    assert shown(one)[0] == "fresh"
    one = one._replace(refused=(Refusal("VIP 10.64.0.1:80", "belongs to consul:a; register another one"),) * 2)
    clash, servers = str(one.refused[0]), "10.0.0.1:80, 10.0.0.2:80, 10.0.0.3:80"
    reason = f"{clash}; {clash}; real servers {servers} rejected: it is a VIP; go away"
    assert shown(one) == ("held", False, reason)
    many = [Refusal(RealServer(0, SERVERS[0].address, port, 1), "no") for port in range(1, 9)]
    each = [Refusal(RealServer(0, SERVERS[0].address, port, 1), f"no {port}") for port in range(9, 19)]
    reason = shown(one._replace(refused=(), rejected=(*many, *each)))[2] or ""
    assert reason.startswith(
        "real servers 10.0.0.1:1, 10.0.0.1:2, 10.0.0.1:3, 10.0.0.1:4, and 4 more rejected: no; real "
    )
    assert reason.endswith("real server 10.0.0.1:11 rejected: no 11; and 7 more")


def test_names_that_cannot_be_asked_for_are_refused() -> None:
    """A catalog may list anything; a name that cannot be a service is reported, bounded and escaped."""
    one = ServiceState(Service("catalog", "catalog:consul", ()))
    one = heard(one, Listing(frozenset({"web", "a/../b", "x\x1b[2J" + "y" * 300})), 0)
    assert one.listed == {"web"}
    state, _, reason = shown(one)
    assert state == "held"
    assert reason is not None
    assert "service 'a/../b' cannot be a Consul service: give 1 to 255 bytes of printable text" in reason
    assert r"service 'x\x1b[2J" in reason
    assert len(reason) < 500
