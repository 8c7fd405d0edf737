"""The guard: an answer that removes much has to stand for a while, everything else counts at once."""

from __future__ import annotations

from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clb_discovery.core.address import Address, is_ipv4, parse_address
from clb_discovery.core.guard import Guarded, admit, elapse, interrupt, seed
from clb_discovery.core.model import Policy, RealServer

Endpoints = frozenset[tuple[Address, int]]

FEW: Final = [f"{net}{host}" for net in ("10.0.0.", "fd00::") for host in range(1, 6)]
ANSWERS: Final = st.lists(
    st.builds(
        RealServer,
        priority=st.sampled_from([0, 1]),
        address=st.sampled_from(FEW).map(parse_address),
        port=st.just(80),
        weight=st.sampled_from([1, 5]),
    ),
    unique_by=lambda server: server.address,
    max_size=10,
)
POLICIES: Final = st.builds(
    Policy, max_removal=st.sampled_from([0.0, 0.25, 0.5, 1.0]), hold=st.sampled_from([0.0, 30.0])
)
DEFAULT: Final = Policy()


def servers(count: int, *, weight: int = 1, net: str = "10.0.0.") -> list[RealServer]:
    """Return the first few real servers of a network."""
    return [RealServer(0, parse_address(f"{net}{host}"), 80, weight) for host in range(1, count + 1)]


def of_family(answer: list[RealServer] | tuple[RealServer, ...], *, ipv4: bool) -> tuple[RealServer, ...]:
    """Return the real servers of one family, sorted, since their order says nothing."""
    return tuple(sorted(server for server in answer if is_ipv4(server.address) is ipv4))


def endpoints(answer: tuple[RealServer, ...]) -> Endpoints:
    """Return addresses and ports without weights and priorities."""
    return frozenset((server.address, server.port) for server in answer)


def loses_much(before: Endpoints, after: Endpoints, share: float) -> bool:
    """Tell whether more than this share of a set is gone, or all of it."""
    lost = len(before - after)
    return lost > 0 and (lost > share * len(before) or lost == len(before))


class Standing(RuleBasedStateMachine):
    """Answers come and time goes by; a model knows since when each family's last set of endpoints stands."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.policy = DEFAULT
        self.state = Guarded()
        self.last: dict[bool, tuple[RealServer, ...]] = {}
        self.since: dict[bool, float] = {}

    @initialize(policy=POLICIES, start=st.floats(0, 1e6), held=ANSWERS)
    def begin(self, policy: Policy, start: float, held: list[RealServer]) -> None:
        """Start from what the kernel holds, on any clock."""
        self.policy, self.now, self.state = policy, start, seed(held)

    @rule(answer=ANSWERS)
    def answered(self, answer: list[RealServer]) -> None:
        """Take an answer; each family has lost much only if the set has stood, and passed if it lost little."""
        before = self.state
        self.state = admit(before, answer, self.policy, self.now)
        for ipv4 in (True, False):
            part = of_family(answer, ipv4=ipv4)
            if ipv4 not in self.last or endpoints(self.last[ipv4]) != endpoints(part):
                self.since[ipv4] = self.now
            self.last[ipv4] = part
            good = of_family(before.good, ipv4=ipv4)
            self.check(ipv4=ipv4, good=good)
            if not loses_much(endpoints(good), endpoints(part), self.policy.max_removal):
                assert of_family(self.state.good, ipv4=ipv4) == part

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        """Let time pass without an answer."""
        before = self.state
        self.now += seconds
        self.state = elapse(before, self.policy, self.now)
        for ipv4 in (True, False):
            self.check(ipv4=ipv4, good=of_family(before.good, ipv4=ipv4))

    @rule()
    def discovery_fails(self) -> None:
        """Change nothing that counts; whatever was held has stood in vain."""
        good = self.state.good
        self.state = interrupt(self.state)
        assert self.state.good == good
        assert not self.state.held
        self.last.clear()

    @rule()
    def the_deadline_comes(self) -> None:
        """Wake up exactly when the guard asked for it: something that was held counts then."""
        deadline = self.state.deadline(self.policy)
        if deadline is None or deadline < self.now:
            return
        self.now = deadline
        before = self.state
        self.state = elapse(before, self.policy, self.now)
        assert self.state != before

    def check(self, *, ipv4: bool, good: tuple[RealServer, ...]) -> None:
        """Compare a step of one family with what the model allows."""
        after = of_family(self.state.good, ipv4=ipv4)
        if after != good:
            assert after == self.last[ipv4]
        if loses_much(endpoints(good), endpoints(after), self.policy.max_removal):
            assert self.now >= self.since[ipv4] + self.policy.hold

    @invariant()
    def nothing_is_held_for_no_reason(self) -> None:
        """Hold back the last answer only while it would remove much; else it is what counts."""
        for ipv4, family in ((True, self.state.ipv4), (False, self.state.ipv6)):
            if family.pending:
                assert family.pending.servers == self.last[ipv4]
                assert loses_much(endpoints(family.good), endpoints(self.last[ipv4]), self.policy.max_removal)
            elif ipv4 in self.last:
                assert family.good == self.last[ipv4]
        assert self.state.held is (self.state.deadline(self.policy) is not None)


TestStanding = Standing.TestCase
TestStanding.settings = settings(max_examples=100, stateful_step_count=20)


@given(ANSWERS.flatmap(lambda answer: st.tuples(st.just(answer), st.permutations(answer))), st.floats(0, 1e9))
def test_another_order_is_no_change(orders: tuple[list[RealServer], list[RealServer]], now: float) -> None:
    """Servers that come back in another order, as Consul and DNS give them, leave everything as it is."""
    state = admit(Guarded(), orders[0], DEFAULT, now)
    assert admit(state, orders[1], DEFAULT, now + 1) == state


@given(ANSWERS, ANSWERS, st.floats(0, 1e9))
def test_additions_count_at_once(held: list[RealServer], more: list[RealServer], now: float) -> None:
    """An answer that keeps all endpoints and adds some is never held."""
    known = {server.address for server in held}
    answer = held + [server for server in more if server.address not in known]
    state = admit(seed(held), answer, Policy(max_removal=0), now)
    assert endpoints(state.good) == endpoints(tuple(answer))
    assert not state.held


@given(ANSWERS, st.integers(0, 65535), st.integers(0, 65535), st.floats(0, 1e9))
def test_weights_and_priorities_count_at_once(held: list[RealServer], weight: int, priority: int, now: float) -> None:
    """An answer with the same endpoints counts as it is, whatever it says about them."""
    answer = [server._replace(weight=weight, priority=priority) for server in held]
    state = admit(seed(held), answer, Policy(max_removal=0), now)
    assert sorted(state.good) == sorted(answer)
    assert not state.held


@given(ANSWERS, ANSWERS, ANSWERS, POLICIES)
def test_families_do_not_know_of_each_other(
    held: list[RealServer], answer: list[RealServer], other: list[RealServer], policy: Policy
) -> None:
    """What happens to one family's pool is the same whatever the answer says about the other."""
    mixed = [*of_family(answer, ipv4=True), *of_family(other, ipv4=False)]
    assert admit(seed(held), mixed, policy, 0).ipv4 == admit(seed(held), answer, policy, 0).ipv4
    assert admit(seed(held), mixed, policy, 0).ipv6 == admit(seed(held), other, policy, 0).ipv6


@given(ANSWERS)
def test_a_seed_is_what_counts(held: list[RealServer]) -> None:
    """A start takes what the kernel holds as good, holds nothing back, and guards the next answer against it."""
    state = seed(held)
    assert sorted(state.good) == sorted(held)
    assert not state.held
    assert state.deadline(DEFAULT) is None
    assert admit(state, [], DEFAULT, 0).held is bool(held)


@given(st.lists(ANSWERS, min_size=1, max_size=5))
def test_the_first_answer_counts_at_once(answers: list[list[RealServer]]) -> None:
    """Where nothing was known there is nothing to lose, so anything counts, an empty answer included."""
    assert sorted(admit(Guarded(), answers[0], DEFAULT, 0).good) == sorted(answers[0])


def test_half_of_a_pool_may_go_and_no_more() -> None:
    """With the default share, 2 of 4 go at once and 3 of 4 are held."""
    state = seed(servers(4))
    assert len(admit(state, servers(2), DEFAULT, 0).good) == 2
    held = admit(state, servers(1), DEFAULT, 0)
    assert len(held.good) == 4
    assert held.held


def test_the_last_one_is_held_whatever_the_share_allows() -> None:
    """An empty answer is held even where the share is 1, and so is the last real server of a pool."""
    assert admit(seed(servers(4)), [], Policy(max_removal=1), 0).held
    assert admit(seed(servers(1)), [], Policy(max_removal=1), 0).held
    assert not admit(seed(servers(4)), servers(1), Policy(max_removal=1), 0).held


def test_replacing_every_server_is_held() -> None:
    """An answer of the same size that shares no endpoint removes all of the pool."""
    answer = servers(4, net="10.9.9.")
    held = admit(seed(servers(4)), answer, DEFAULT, 0)
    assert held.good == tuple(servers(4))
    assert elapse(held, DEFAULT, 30).good == tuple(answer)


def test_a_held_answer_counts_when_it_has_stood() -> None:
    """It does not count a moment before its deadline, and does at it, without another answer."""
    held = admit(seed(servers(4)), [], DEFAULT, 100)
    assert held.deadline(DEFAULT) == 130
    assert elapse(held, DEFAULT, 129.9) == held
    assert elapse(held, DEFAULT, 130) == Guarded()


@given(st.floats(0, 1e9), st.floats(0, 1e4))
def test_a_deadline_is_never_early(now: float, hold: float) -> None:
    """Whatever the clock shows, a held answer counts at the very time for which the guard asked to be woken."""
    policy = Policy(hold=hold)
    held = admit(seed(servers(4)), [], policy, now)
    deadline = held.deadline(policy)
    assert (deadline is None) is not held.held
    assert elapse(held, policy, now if deadline is None else deadline) == Guarded()


def test_the_same_endpoints_go_on_standing() -> None:
    """Another weight meanwhile does not start the time anew, and the newest weight is what counts."""
    state = admit(seed(servers(4)), servers(1, weight=1), DEFAULT, 0)
    state = admit(state, servers(1, weight=9), DEFAULT, 20)
    assert state.deadline(DEFAULT) == 30
    assert elapse(state, DEFAULT, 30).good == tuple(servers(1, weight=9))


def test_other_endpoints_start_the_time_anew() -> None:
    """An answer that removes much but differs from the held one has stood for no time."""
    state = admit(seed(servers(4)), servers(1), DEFAULT, 0)
    assert admit(state, [], DEFAULT, 20).deadline(DEFAULT) == 50


def test_a_good_answer_ends_the_wait() -> None:
    """When discovery recovers, what was held is forgotten, and the next bad answer waits from its own beginning."""
    state = admit(seed(servers(4)), [], DEFAULT, 0)
    state = admit(state, servers(4), DEFAULT, 29)
    assert state == seed(servers(4))
    assert admit(state, [], DEFAULT, 40).deadline(DEFAULT) == 70


def test_an_answer_that_has_stood_counts_as_it_comes() -> None:
    """An answer at or after the deadline counts, even if nobody let the time pass before."""
    state = admit(seed(servers(4)), [], DEFAULT, 0)
    assert admit(state, [], DEFAULT, 31) == Guarded()


def test_without_hold_everything_counts_at_once() -> None:
    """A hold of 0 seconds turns the guard off."""
    assert admit(seed(servers(4)), [], Policy(hold=0), 5) == Guarded()


def test_the_earlier_deadline_of_the_two_families_comes_first() -> None:
    """Each family waits by its own time, and the guard asks to be woken for the first."""
    both = servers(4) + servers(4, net="fd00::")
    state = admit(seed(both), servers(4), DEFAULT, 0)
    state = admit(state, [], DEFAULT, 10)
    assert state.deadline(DEFAULT) == 30
    state = elapse(state, DEFAULT, 30)
    assert state.good == tuple(servers(4))
    assert state.deadline(DEFAULT) == 40


def test_what_is_withheld_is_counted_where_it_is_held() -> None:
    """Of both families only those count whose answer is held, by address and port."""
    both = servers(4) + servers(3, net="fd00::")
    assert seed(both).withheld == (0, 0)
    assert admit(seed(both), servers(1, weight=9) + servers(2, net="fd00::"), DEFAULT, 0).withheld == (3, 4)
    assert admit(seed(both), [], DEFAULT, 0).withheld == (7, 7)
