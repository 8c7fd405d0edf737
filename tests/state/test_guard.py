"""The guard: a gap in an answer has to be confirmed, a statement and a replacement count at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clb_discovery.model.address import is_ipv4, parse_address
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import ALL_MEMBERS, Endpoint, RealServer, Unread, pools
from clb_discovery.model.service import RemovalPolicy
from clb_discovery.state.guard import Guarded, admit, as_named, confirmed, seed

Endpoints = frozenset[Endpoint]

DEFAULT: Final = RemovalPolicy()
HOLD: Final = DEFAULT.hold
NETS: Final = ("10.0.0.", "fd00::")
FEW: Final = [f"{net}{host}" for net in NETS for host in range(1, 5)]
SERVER: Final = st.builds(
    RealServer,
    priority=st.sampled_from([0, 1]),
    address=st.sampled_from(FEW).map(parse_address),
    port=st.sampled_from([80, 81]),
    weight=st.sampled_from([1, 5]),
    part=st.just(0),
)
SERVERS: Final = st.lists(SERVER, max_size=10)
IDENTITY: Final = st.sampled_from(["a", "b", "c"])
ENDPOINT: Final = SERVER.map(lambda server: (server.address, server.port))
UNREAD: Final = st.builds(
    Unread,
    IDENTITY | st.just(ALL_MEMBERS),
    st.none() | st.sampled_from([80, 81]),
    st.none() | st.sampled_from([0, 7]),
    st.none() | st.sampled_from([1, 9]),
    st.none() | st.booleans(),
)
ANSWERS: Final = st.builds(
    Answer,
    servers=SERVERS.map(tuple),
    out=st.lists(ENDPOINT, max_size=3).map(tuple),
    identities=st.dictionaries(ENDPOINT, IDENTITY, max_size=12),
    unread=st.lists(UNREAD, max_size=2).map(tuple),
)
PLAIN: Final = SERVERS.map(lambda servers: Answer(tuple(servers)))
POLICIES: Final = st.builds(
    RemovalPolicy, max_removal=st.sampled_from([0.0, 0.25, 0.5, 1.0]), hold=st.sampled_from([0.0, 30.0])
)


def at(text: str, *, weight: int = 1, priority: int = 0) -> RealServer:
    """Return the real server at `HOST[:PORT]` in 10.0.0.0/24; the port is 80 by default."""
    host, _, port = text.partition(":")
    return RealServer(priority, parse_address(f"10.0.0.{host}"), int(port or 80), weight)


def servers(count: int, *, weight: int = 1, net: str = "10.0.0.", port: int = 80) -> list[RealServer]:
    """Return the first few real servers of a network."""
    return [RealServer(0, parse_address(f"{net}{host}"), port, weight) for host in range(1, count + 1)]


def of(found: Iterable[RealServer]) -> Endpoints:
    """Return addresses and ports without weights and priorities."""
    return frozenset((server.address, server.port) for server in found)


def answer(
    *texts: str, out: Iterable[str] = (), unread: Iterable[Unread] = (), absent_from: Iterable[str] = ()
) -> Answer:
    """Return an answer that names `HOST[:PORT]=IDENTITY`, each identity optional.

    :param out: likewise, of members that it takes out.
    :param absent_from: likewise, whose identity the answer knows although it does not name them.
    """
    pairs = [text.partition("=")[::2] for text in (*texts, *out, *absent_from)]
    identities = {endpoint: identity for text, identity in pairs if identity for endpoint in of([at(text)])}
    named = tuple(at(text.partition("=")[0]) for text in texts)
    stated = tuple(of(at(text.partition("=")[0]) for text in out))
    return Answer(named, None, stated, identities, tuple(unread))


def known(*texts: str) -> Guarded:
    """Return the state after an answer that named these, as `answer` takes them."""
    return admit(Guarded(), answer(*texts), DEFAULT, 0)


END: Final = (parse_address("10.0.0.9"), 80)


def good(state: Guarded) -> list[str]:
    """Return the servers that count as `HOST:PORT` of 10.0.0.0/24, sorted."""
    return [str(server).removeprefix("10.0.0.") for server in state.good]


def family_of(found: Iterable[Endpoint], *, ipv4: bool) -> Endpoints:
    """Return the endpoints of one family."""
    return frozenset(endpoint for endpoint in found if is_ipv4(endpoint[0]) is ipv4)


def gaps_that_nobody_can_tell(answer: Answer, was: Iterable[Endpoint], present: Iterable[Endpoint]) -> Endpoints:
    """Return the gaps of a family that has no usable member, but members that the answer cannot read."""
    families = {is_ipv4(endpoint[0]) for endpoint in present}
    unread = {ipv4 for one in answer.unread for ipv4 in (True, False) if one.is_ipv4 in {None, ipv4}}
    return frozenset(endpoint for endpoint in was if is_ipv4(endpoint[0]) in unread - families)


class Answers(RuleBasedStateMachine):
    """Answers of every kind come at any time; a model knows when each endpoint was last named."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.policy = DEFAULT
        self.state = Guarded()
        self.absent: dict[Endpoint, float] = {}
        """Endpoints that counted once and that no answer has named since, with the first such answer's time."""
        self.unread: frozenset[Endpoint] = frozenset()
        """Those whose members the last answer named without their addresses."""

    @initialize(policy=POLICIES, start=st.floats(0, 1e6), held=SERVERS)
    def begin(self, policy: RemovalPolicy, start: float, held: list[RealServer]) -> None:
        """Start from the installed servers, on any clock."""
        self.policy, self.now, self.state = policy, start, seed(pools(held), {})

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        """Let time pass without an answer, which changes nothing."""
        self.now += seconds

    def _runs(self, endpoint: Endpoint, asked: float) -> bool:
        """Tell whether an absence has not lasted long enough for an answer to what was asked then."""
        hold = self.policy.hold
        return hold > 0 and asked < self.absent.get(endpoint, self.now) + hold

    @rule(answer=ANSWERS, took=st.just(0.0) | st.floats(0, 40))
    def answered(self, answer: Answer, took: float) -> None:
        """Take an answer; compare every endpoint with what each rule demands."""
        asked = self.now - took
        before, self.state = self.state, admit(self.state, replace(answer, asked=asked), self.policy, self.now)
        identities = before.identities
        named, was, now = of(answer.servers), of(before.good), of(self.state.good)
        unread = {
            endpoint
            for endpoint in was - named - set(answer.out)
            for one in answer.unread
            if one.identity in {ALL_MEMBERS, identities.get(endpoint)}
            and one.port in {None, endpoint[1]}
            and one.is_ipv4 in {None, is_ipv4(endpoint[0])}
        }
        stated = {answer.identities.get(endpoint) for endpoint in answer.out} - {None}
        stated -= {answer.identities.get(endpoint) for endpoint in named} | {one.identity for one in answer.unread}
        if ALL_MEMBERS in {one.identity for one in answer.unread}:
            stated = set()
        untold = gaps_that_nobody_can_tell(answer, was - set(answer.out), named | unread)
        untold = frozenset(endpoint for endpoint in untold if identities.get(endpoint) not in stated)
        unread |= untold
        for endpoint in was - named - unread:
            self.absent.setdefault(endpoint, self.now)
        for endpoint in untold:
            self.absent.setdefault(endpoint, self.now)
        for endpoint in now & named:
            self.absent.pop(endpoint, None)
        self.unread = frozenset(unread)

        assert named <= now, "what the answer names counts"
        assert now <= named | was, "nothing comes back by itself"
        for endpoint in now - named - unread:
            assert self._runs(endpoint, asked), "an absence that an answer confirms has ended"
        for ipv4 in (True, False):
            present = family_of(now, ipv4=ipv4) & (named | unread)
            gone = family_of(was - now, ipv4=ipv4)
            taken_out = {endpoint for endpoint in gone if endpoint in answer.out or identities.get(endpoint) in stated}
            in_time = {endpoint for endpoint in gone - taken_out if self._runs(endpoint, asked)}
            if not present:
                assert not any(self._runs(endpoint, asked) for endpoint in taken_out), "better one out than none"
            new = [answer.identities.get(endpoint) for endpoint in family_of(named - was, ipv4=ipv4)]
            replaced = sum(
                min(sum(identities.get(endpoint) == identity for endpoint in in_time), new.count(identity))
                for identity in {*new} - {None}
            )
            removed = len(in_time) - replaced
            left = len(family_of(now - named - unread, ipv4=ipv4) - set(answer.out))
            if removed > 0:
                assert present, "the last ones are held"
                assert not left, "gaps stay, or all of them go"
                assert removed <= self.policy.max_removal * (len(present) + removed), "no more than the share goes"
        for endpoint in was - now:
            self.absent.pop(endpoint, None)

    @rule()
    def the_deadline_comes(self) -> None:
        """Confirm exactly at the deadline: something that was held goes then, and not earlier."""
        deadline = self.state.deadline(self.policy)
        if deadline is None or deadline < self.now:
            return
        self.now = deadline
        held = self.state.absent
        present = tuple(server for server in self.state.good if (server.address, server.port) not in held)
        after = admit(self.state, Answer(present), self.policy, self.now)
        assert after.absent.keys() < held.keys()

    @invariant()
    def what_is_held_is_what_is_absent(self) -> None:
        """Every absent member that counts is held with the time of the first answer without it, and no other is."""
        absent = self.absent.keys() & of(self.state.good) - self.unread
        expected = {endpoint: self.absent[endpoint] for endpoint in absent}
        assert self.state.absent == expected
        assert self.state.held is bool(expected) is (self.state.deadline(self.policy) is not None)
        assert of(confirmed(self.state).good) == of(self.state.good) - expected.keys()
        assert self.state.identities.keys() <= of(self.state.good)


TestAnswers = Answers.TestCase
TestAnswers.settings = settings(max_examples=200, stateful_step_count=20)


@given(SERVERS.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))), st.floats(0, 1e9))
def test_another_order_is_no_change(orders: tuple[list[RealServer], list[RealServer]], now: float) -> None:
    """Servers in another order, as Consul and DNS return them, change nothing."""
    state = admit(Guarded(), Answer(tuple(orders[0])), DEFAULT, now)
    after = admit(state, Answer(tuple(orders[1])), DEFAULT, now + 1)
    assert after == state
    assert after.ipv4 is state.ipv4


@given(SERVERS, st.integers(0, 65535), st.integers(0, 65535))
def test_weights_and_priorities_count_at_once(held: list[RealServer], weight: int, priority: int) -> None:
    """Weights and priorities of an answer with the same endpoints count at once."""
    found = tuple(server._replace(weight=weight, priority=priority) for server in held)
    state = admit(seed(pools(held), {}), Answer(found), RemovalPolicy(max_removal=0), 0)
    assert state.good == pools(found)
    assert not state.held


@given(ANSWERS, ANSWERS, SERVERS, POLICIES)
def test_families_do_not_know_of_each_other(
    first: Answer, second: Answer, other: list[RealServer], policy: RemovalPolicy
) -> None:
    """One family's pool does not depend on the usable servers of the other."""
    first, second = (Answer(one.servers, None, one.out, {}, one.unread) for one in (first, second))
    ipv4 = tuple(server for server in second.servers if is_ipv4(server.address))
    ipv6 = tuple(server for server in other if not is_ipv4(server.address))
    state = admit(Guarded(), first, policy, 0)
    mixed = Answer((*ipv4, *ipv6), None, second.out, {}, second.unread)
    assert admit(state, mixed, policy, 0).ipv4 == admit(state, second, policy, 0).ipv4


@given(SERVERS)
def test_a_seed_is_what_counts(held: list[RealServer]) -> None:
    """A start takes the installed servers as good, holds nothing, and guards the next answer."""
    state = seed(pools(held), {})
    assert state.good == pools(held)
    assert not state.held
    assert state.deadline(DEFAULT) is None
    assert admit(state, Answer(()), DEFAULT, 0).held is bool(held)


@given(PLAIN)
def test_the_first_answer_counts_at_once(found: Answer) -> None:
    """With nothing known there is nothing to lose, so any answer counts, even an empty one."""
    assert admit(Guarded(), found, DEFAULT, 0).good == pools(found.servers)


def test_members_of_a_composed_pool_get_the_scale_of_their_tier() -> None:
    """Each tier has its own; one in which nobody is named follows that before it, or precedes the first."""
    pool = (
        at("3", weight=7),
        at("1", priority=1, weight=60),
        at("2", priority=1, weight=30),
        at("4", priority=2, weight=9),
    )
    assert as_named(pool, (at("1", priority=10, weight=2), at("8", priority=5))) == (
        at("3", priority=9),
        at("1", priority=10, weight=2),
        at("2", priority=10),
        at("4", priority=11),
    )
    assert as_named(pool, ()) == pool


@given(SERVERS, SERVERS)
def test_members_that_are_named_are_as_they_are_named(pool: list[RealServer], named: list[RealServer]) -> None:
    """Others stay members, and nobody comes or goes."""
    before, known = pools(pool).ipv4, pools(named)
    found = as_named(before, known)
    assert of(found) == of(before)
    assert {one for one in known if one.endpoint in of(before)} <= {*found}


def test_half_of_a_pool_may_go_and_no_more() -> None:
    """With the default share, 2 of 4 go at once and 3 of 4 are held."""
    state = known("1", "2", "3", "4")
    assert good(admit(state, answer("1", "2"), DEFAULT, 0)) == ["1:80", "2:80"]
    assert admit(state, answer("1"), DEFAULT, 0).withheld == (3, 4)


@pytest.mark.parametrize(
    ("share", "left", "held"), [(1, 1, False), (1, 0, True), (0, 3, True), (0, 4, False), (0.25, 3, False)]
)
def test_shares_at_their_ends(share: float, left: int, *, held: bool) -> None:
    """With 1 all but the last go at once, and with 0 none does."""
    state = admit(seed(pools(servers(4)), {}), Answer(tuple(servers(left))), RemovalPolicy(max_removal=share), 0)
    assert state.held is held
    assert len(state.good) == (4 if held else left)


def test_without_hold_everything_counts_at_once() -> None:
    """A hold of 0 seconds turns the guard off."""
    assert admit(known("1", "2"), Answer(()), RemovalPolicy(hold=0), 5) == Guarded()


def test_what_is_added_counts_while_others_are_held() -> None:
    """The pool is the union; enough additions make the absent ones few, and they go."""
    state = admit(known("1", "2", "3"), answer("1", "4"), RemovalPolicy(max_removal=0.4), 1)
    assert (good(state), state.withheld) == (["1:80", "2:80", "3:80", "4:80"], (2, 4))
    state = admit(state, answer("1", "4", "5"), RemovalPolicy(max_removal=0.4), 2)
    assert (good(state), state.held) == (["1:80", "4:80", "5:80"], False)


def test_a_removal_counts_with_the_answer_that_confirms_it() -> None:
    """It does not count before the clock has run, nor by time alone."""
    state = admit(known("1", "2", "3", "4"), Answer(()), DEFAULT, 100)
    assert state.deadline(DEFAULT) == 130
    assert admit(state, Answer(()), DEFAULT, 129.9) == state
    assert admit(state, Answer(()), DEFAULT, 130) == Guarded()


def test_a_slow_answer_confirms_no_removal_that_was_not_due_when_it_was_asked_for() -> None:
    """It ends an absence all the same; a clock starts when an answer arrives, however long it took."""
    state = admit(known("1", "2", "3", "4"), replace(Answer(()), asked=60), DEFAULT, 100)
    assert state.deadline(DEFAULT) == 130
    assert admit(state, replace(Answer(()), asked=129.9), DEFAULT, 150) == state
    assert admit(state, replace(Answer(()), asked=130), DEFAULT, 150) == Guarded()
    back = admit(state, replace(answer("1"), asked=129.9), DEFAULT, 131)
    again = admit(back, replace(Answer(()), asked=131), DEFAULT, 131)
    assert (good(again), again.deadline(DEFAULT)) == (["1:80"], 161)
    taken_out = replace(answer(out=("1", "2", "3", "4")), asked=129.9)
    assert admit(state, taken_out, DEFAULT, 131).good == state.good
    assert admit(known("1"), replace(Answer(()), asked=1), RemovalPolicy(hold=0), 5) == Guarded()


@given(st.floats(0, 1e9), st.floats(0.001, 1e4))
def test_a_deadline_is_never_early(now: float, hold: float) -> None:
    """Whatever the clock shows, an answer at exactly the deadline confirms."""
    policy = RemovalPolicy(hold=hold)
    state = admit(known("1", "2"), Answer(()), policy, now)
    deadline = state.deadline(policy)
    assert admit(state, Answer(()), policy, now if deadline is None else deadline) == Guarded()


def test_a_flapping_member_restarts_its_own_clock_alone() -> None:
    """A member that returns every other second never goes, and the others go at their own times."""
    state = known("1", "2", "3", "4", "5")
    for second in range(1, 31):
        state = admit(state, answer("1") if second % 2 else answer("1", "2"), DEFAULT, second)
        assert len(state.good) == 5
    assert sorted(state.absent.values()) == [1, 1, 1]
    assert good(admit(state, answer("1", "2"), DEFAULT, 31)) == ["1:80", "2:80"]
    # Alone it is no more than half.
    assert good(admit(state, answer("1"), DEFAULT, 31)) == ["1:80"]


def test_members_that_vanish_one_after_the_other_go_one_after_the_other() -> None:
    """Each waits for its own time; the remaining gap is judged again, and goes at once if it is small."""
    state = admit(known("1", "2", "3", "4", "5", "6"), answer("5", "6"), DEFAULT, 0)
    state = admit(state, answer(), DEFAULT, 10)
    assert state.withheld == (6, 6)
    state = admit(state, answer(), DEFAULT, 30)
    assert (good(state), state.deadline(DEFAULT)) == (["5:80", "6:80"], 40)
    assert good(admit(state, answer("5"), DEFAULT, 31)) == ["5:80"]


def test_a_hold_in_one_family_does_not_hold_the_other() -> None:
    """IPv6 loses all and waits; IPv4 loses one of four at once."""
    state = seed(pools(servers(4) + servers(2, net="fd00::")), {})
    state = admit(state, Answer(tuple(servers(3))), DEFAULT, 0)
    assert of(state.good) == of(servers(3) + servers(2, net="fd00::"))
    assert state.withheld == (2, 2)
    state = admit(state, Answer(()), DEFAULT, 10)
    assert (state.deadline(DEFAULT), state.withheld) == (30, (5, 5))
    assert of(admit(state, Answer(()), DEFAULT, 30).good) == of(servers(3))


def test_critical_is_out_at_once() -> None:
    """Any number of members goes at once if the answer takes them out and names a usable one."""
    state = admit(known("1", "2", "3"), answer("3", out=("1", "2")), DEFAULT, 1)
    assert (good(state), state.held) == (["3:80"], False)


def test_better_critical_than_none() -> None:
    """If no member is usable, critical ones stay for the hold, and go at once when one is usable again."""
    state = admit(known("1", "2", "3"), answer(out=("1", "2", "3")), DEFAULT, 1)
    assert (good(state), state.withheld, state.deadline(DEFAULT)) == (["1:80", "2:80", "3:80"], (3, 3), 31)
    assert good(admit(state, answer("2", out=("1", "3")), DEFAULT, 2)) == ["2:80"]
    assert good(admit(state, answer(out=("1", "2", "3")), DEFAULT, 31)) == []


def test_critical_and_then_absent_is_one_absence() -> None:
    """A member that is critical and then absent has one clock, from when it became critical."""
    state = admit(known("1", "2", "3"), answer(out=("1", "2", "3")), DEFAULT, 1)
    state = admit(state, answer(), DEFAULT, 20)
    assert state.deadline(DEFAULT) == 31
    assert admit(state, answer(), DEFAULT, 31) == Guarded()
    assert good(admit(state, answer("1"), DEFAULT, 21)) == ["1:80", "2:80", "3:80"]  # the gap is more than half


def test_a_statement_counts_for_neither_side_of_the_share() -> None:
    """One usable, one absent, two critical: the gap is 1 of 2, which is not more than half."""
    state = admit(known("1", "2", "3", "4"), answer("1", out=("3", "4")), DEFAULT, 1)
    assert good(state) == ["1:80"]
    state = admit(known("1", "2", "3", "4"), answer("1", out=("4",)), DEFAULT, 1)
    assert (good(state), state.withheld) == (["1:80", "2:80", "3:80"], (2, 3))


def test_a_member_is_usable_where_one_at_its_endpoint_is() -> None:
    """Two instances share an endpoint, and one of them is critical."""
    assert good(admit(known("1", "2"), answer("1", "2", out=("1",)), DEFAULT, 1)) == ["1:80", "2:80"]


def test_a_member_that_moved_and_is_critical_is_out_where_it_was() -> None:
    """Six of ten restarted at other ports, and their checks have not passed yet."""
    state = known(*(f"{host}={host}" for host in range(1, 11)))
    moved = answer(*(f"{host}={host}" for host in range(1, 5)), out=[f"{host}:81={host}" for host in range(5, 11)])
    assert good(admit(state, moved, DEFAULT, 1)) == ["1:80", "2:80", "3:80", "4:80"]
    everybody = answer(out=[f"{host}:81={host}" for host in range(1, 11)])
    held = admit(state, everybody, DEFAULT, 1)
    assert held.withheld == (10, 10)
    assert good(admit(held, answer("1:81=1", out=[f"{host}:81={host}" for host in range(2, 11)]), DEFAULT, 2)) == [
        "1:81"
    ]


@pytest.mark.parametrize("count", [1, 3, 10])
def test_members_that_move_are_replaced_at_once(count: int) -> None:
    """One of one, or ten of ten, come back at other ports: the old endpoints are gone, whatever the share."""
    state = known(*(f"{host}=node/{host}" for host in range(1, count + 1)))
    moved = answer(*(f"{host}:81=node/{host}" for host in range(1, count + 1)))
    after = admit(state, moved, RemovalPolicy(max_removal=0), 1)
    assert (good(after), after.held) == ([f"{host}:81" for host in range(1, count + 1)], False)


def test_a_replacement_may_come_after_the_gap() -> None:
    """An instance is deregistered, and registered at another port before its hold is over."""
    state = admit(known("1=a"), answer(), DEFAULT, 1)
    assert good(state) == ["1:80"]
    assert good(admit(state, answer("1:81=a"), RemovalPolicy(max_removal=0), 9)) == ["1:81"]


def test_a_replacement_is_one_for_one() -> None:
    """A name had three addresses; two vanish and one appears: one is replaced, the other one is a removal."""
    state = known("1=a", "2=a", "3=a")
    after = admit(state, answer("3=a", "4=a"), RemovalPolicy(max_removal=0), 1)
    assert (good(after), after.withheld) == (["2:80", "3:80", "4:80"], (1, 3))
    assert good(admit(state, answer("3=a", "4=a"), DEFAULT, 1)) == ["3:80", "4:80"]
    assert good(admit(state, answer("3=a", "4=a", "5=a"), RemovalPolicy(max_removal=0), 1)) == ["3:80", "4:80", "5:80"]


def test_the_one_that_is_absent_for_longest_is_replaced_first() -> None:
    """A later gap keeps its own clock."""
    state = admit(known("1=a", "2=a"), answer("1=a"), RemovalPolicy(max_removal=0), 1)
    after = admit(state, answer("3=a"), RemovalPolicy(max_removal=0), 5)
    assert (good(after), after.deadline(DEFAULT)) == (["1:80", "3:80"], 35)


@pytest.mark.parametrize("old", ["1=a", "1"])
@pytest.mark.parametrize("new", ["2=b", "2"])
def test_others_are_no_replacement(old: str, new: str) -> None:
    """A new member replaces an absent one only if both have the same identity."""
    state = admit(known(old), answer(new), RemovalPolicy(max_removal=0), 1)
    assert (good(state), state.withheld) == (["1:80", "2:80"], (1, 2))


def test_one_endpoint_that_was_there_before_replaces_nothing() -> None:
    """A member that moves to an endpoint that counts already replaces no absent one."""
    state = admit(known("1=a", "2=b"), answer("2=a"), RemovalPolicy(max_removal=0), 1)
    assert good(state) == ["1:80", "2:80"]


def test_identities_are_kept_for_what_is_absent_and_what_was_seeded() -> None:
    """A start reads them from the disk for the installed endpoints; identities of an answer win."""
    state = seed(pools([at("1"), at("2")]), answer("1=a", "3=c").identities)
    assert state.identities == answer("1=a").identities
    assert good(admit(state, answer("2", "1:81=a"), RemovalPolicy(max_removal=0), 1)) == ["1:81", "2:80"]
    held = admit(state, answer(absent_from=("2=b",)), DEFAULT, 1)
    assert held.identities == answer("1=a", "2=b").identities
    assert admit(state, answer("1", "2=b"), DEFAULT, 1).identities == answer("2=b").identities


def test_a_member_that_cannot_be_read_keeps_what_it_had() -> None:
    """It takes priority and weight of the answer; its clock stands still, and it counts as present."""
    state = known("1=a", "2=a", "3:81=a", "4=b")
    state = admit(state, answer(), DEFAULT, 1)
    after = admit(state, answer("4=b", unread=[Unread("a", 80, 7, 9)]), DEFAULT, 2)
    assert good(after) == ["4:80", "1:80", "2:80"]  # the one at another port is a gap of 1 in 4
    assert [(one.priority, one.weight) for one in after.good] == [(0, 1), (7, 9), (7, 9)]
    assert not after.held
    kept = admit(after, answer("4=b", unread=[Unread("a")]), DEFAULT, 3)
    assert kept == after
    assert good(admit(kept, answer("4=b", unread=[Unread("b")]), DEFAULT, 4)) == ["4:80", "1:80", "2:80"]


def test_a_hold_ends_although_members_cannot_be_read_now_and_then() -> None:
    """Such an answer touches no clock: the first one after `hold` that can read them confirms the removal."""
    state = admit(known("1=a", "2=a", "3=a", "4=b"), answer("4=b"), DEFAULT, 0)
    for now in (10, 29, 31):
        state = admit(state, answer("4=b", unread=[Unread("a")]), DEFAULT, now)
        assert (len(good(state)), state.held, state.deadline(DEFAULT)) == (4, False, None)
        if now < DEFAULT.hold:
            state = admit(state, answer("4=b"), DEFAULT, now + 0.5)
            assert state.deadline(DEFAULT) == DEFAULT.hold
    assert good(admit(state, answer("4=b"), DEFAULT, 32)) == ["4:80"]
    back = admit(state, answer("1=a", "4=b", unread=[Unread("a")]), DEFAULT, 32)
    assert admit(back, answer("4=b"), RemovalPolicy(max_removal=0), 33).absent[at("1").address, 80] == 33


def test_nobody_goes_while_the_only_members_cannot_be_read() -> None:
    """If all are registered under new ids while DNS fails, absent members stay for as long as it takes."""
    state = known("1=a", "2=b", "3", "4=d")
    for now in (1, 40, 80):
        state = admit(state, answer(unread=[Unread("x"), Unread("y", is_ipv4=True)]), DEFAULT, now)
        assert (len(good(state)), state.held, state.deadline(DEFAULT)) == (4, False, None)
    assert state.identities == known("1=a", "2=b", "4=d").identities
    other = admit(state, answer(unread=[Unread("x", is_ipv4=False)]), DEFAULT, 90)
    assert good(other) == []  # an answer about this family, and after the hold
    assert good(admit(state, answer("9=x", unread=[Unread("y")]), DEFAULT, 90)) == ["9:80"]
    out = admit(state, answer(out=["1"], unread=[Unread("x")]), DEFAULT, 90)
    assert good(out) == ["2:80", "3:80", "4:80"]  # its hold was over


def test_no_clock_starts_while_nothing_can_be_read() -> None:
    """However long that lasts, a first answer that lacks most members is held as any other."""
    state = known("1", "2=b", "3", "4")
    for now in (1, 40, 80):
        state = admit(state, answer(unread=[Unread(ALL_MEMBERS, 80, is_ipv4=True)]), DEFAULT, now)
        assert (len(good(state)), state.held) == (4, False)
    after = admit(state, answer("1"), DEFAULT, 90)
    assert (len(good(after)), after.held) == (4, True)
    assert good(admit(after, answer("1"), DEFAULT, 120)) == ["1:80"]


def test_only_the_family_that_cannot_be_read_is_kept() -> None:
    """If the IPv4 addresses of a target are known and its IPv6 ones are not, only the IPv6 ones stay."""
    both = servers(2) + servers(2, net="fd00::")
    state = seed(pools(both), dict.fromkeys(of(both), "a"))
    one = Answer(tuple(servers(1)), unread=(Unread("a", is_ipv4=False),))
    assert of(admit(state, one, DEFAULT, 1).good) == of(servers(1) + servers(2, net="fd00::"))


def test_unknown_members_keep_nothing() -> None:
    """Without a known identity nothing is kept, and a gap is a gap."""
    state = admit(known("1", "2=b"), answer(unread=[Unread("a"), Unread("b")]), DEFAULT, 1)
    assert (good(state), state.held) == (["2:80"], False)


def test_a_statement_wins_over_what_cannot_be_read() -> None:
    """An endpoint that the answer takes out is out, even if an unreadable member had it."""
    assert good(admit(known("1=a", "2=b"), answer("2=b", out=["1"], unread=[Unread("a")]), DEFAULT, 1)) == ["2:80"]


def test_words_that_name_one_member_twice_do_not_multiply_it() -> None:
    """The lower priority, then the higher weight counts, as with real servers."""
    words = [Unread("a", 80, 5, 1), Unread("a", 80, 3, 2), Unread("a", 80, 3, 4)]
    state = known("1=a")
    for _ in range(3):
        state = admit(state, answer(unread=words), DEFAULT, 1)
        assert tuple(state.good) == (at("1", priority=3, weight=4),)


@given(st.lists(ANSWERS, max_size=5), st.frozensets(ENDPOINT), POLICIES, st.lists(st.floats(0, 40), min_size=5))
def test_what_cannot_be_used_counts_for_nothing(
    answers: list[Answer], unusable: Endpoints, policy: RemovalPolicy, pauses: list[float]
) -> None:
    """Endpoints that may not be real servers are passed on, and do not affect the others."""
    now, state, without = 0.0, Guarded(), Guarded()
    for one, pause in zip(answers, pauses, strict=False):
        now += pause
        state = admit(state, one, policy, now, lambda endpoint: endpoint not in unusable)
        servers = tuple(server for server in one.servers if (server.address, server.port) not in unusable)
        without = admit(without, Answer(servers, None, one.out, one.identities, one.unread), policy, now)
        assert of(state.good) - unusable == of(without.good)
        assert of(one.servers) <= of(state.good)
        assert state.absent == without.absent


def test_one_that_nobody_can_use_leaves_none() -> None:
    """All are critical except one that may not be a real server: critical servers are better than none."""
    state = admit(known("1", "2", "3"), answer("9", out=("1", "2", "3")), DEFAULT, 1, lambda end: end != END)
    assert (good(state), state.withheld) == (["1:80", "2:80", "3:80", "9:80"], (3, 4))
    moved = admit(known("1=a"), answer("9=a"), RemovalPolicy(max_removal=0), 1, lambda end: end != END)
    assert moved.held


def test_what_is_withheld_is_counted_where_it_is_held() -> None:
    """The count is over the families that hold a removal, by address and port."""
    both = servers(4) + servers(3, net="fd00::")
    assert seed(pools(both), {}).withheld == (0, 0)
    found = Answer(tuple(servers(1, weight=9) + servers(2, net="fd00::")))
    assert admit(seed(pools(both), {}), found, DEFAULT, 0).withheld == (3, 4)
    assert admit(seed(pools(both), {}), Answer(()), DEFAULT, 0).withheld == (7, 7)
