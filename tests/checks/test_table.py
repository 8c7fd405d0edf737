"""What results mean for the members of pools: leases, returns, and what is logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.checks.health import Result
from clb_discovery.checks.table import (
    EARLIER,
    LEAST_LEASE,
    MOST_URGENT,
    Change,
    CheckedPool,
    CheckTable,
    Decisions,
    Member,
    Verdict,
    release,
)
from clb_discovery.model.address import parse_address
from clb_discovery.model.check import Check, Target
from clb_discovery.model.text_forms import parse_vip

CHECK = Check(interval=2.0, rise=2, fall=3)
SECOND = 1_000_000_000
PASSED, FAILED, UNKNOWN = Result(passed=True), Result(passed=False, reason="HTTP 503"), Result(None, "no descriptor")
VIP, OTHER = parse_vip("10.64.0.1:80"), parse_vip("10.64.0.2:80")


def target(number: int) -> Target:
    """Return a server's check."""
    return Target(parse_address(f"10.0.0.{number}"), 80, CHECK)


def pool(*sizes: int, vip: object = VIP) -> CheckedPool:
    """Return a pool with tiers of these sizes; members are numbered from 1."""
    numbers = iter(range(1, 100))
    assert isinstance(vip, type(VIP))
    key = b"o" if vip == OTHER else b"m"
    tiers = (tuple(next(numbers) for _ in range(size)) for size in sizes)
    return CheckedPool(vip, tuple(tuple(Member(key + b"%d" % n, target(n)) for n in tier) for tier in tiers))


class Checked:
    """A table, and a clock that goes on by an interval with each round of results."""

    def __init__(self, *pools: CheckedPool, leases: Mapping[bytes, Verdict] | None = None) -> None:
        self.now = 100 * SECOND
        self.table = CheckTable()
        self.targets = set(self.table.follow(pools, leases))
        self.decisions: list[Decisions] = [self.table.decide(self.now)]

    def round(self, results: Mapping[int, Result]) -> Decisions:
        """Hear one result of some targets."""
        self.now += 2 * SECOND
        for number, result in results.items():
            self.table.hear(target(number), result, self.now)
        self.decisions.append(self.table.decide(self.now))
        return self.decisions[-1]

    def down(self, number: int) -> Decisions:
        """Let a server fail until it is down."""
        for _ in range(CHECK.fall - 1):
            assert self.round({number: FAILED}) == Decisions()
        return self.round({number: FAILED})


def test_a_server_that_fails_is_out_for_a_lease() -> None:
    """After `fall` failures it is out for three intervals."""
    checked = Checked(pool(3))
    found = checked.down(2)
    assert found.verdicts == {b"m2": Verdict(checked.now, checked.now + 6 * SECOND)}
    assert found.changes == [Change(b"m2", "HTTP 503", 0)]


def test_a_lease_is_renewed_by_each_result_while_the_server_is_down() -> None:
    """Also by a passed check that is not yet enough."""
    checked = Checked(pool(3))
    checked.down(2)
    for result in (FAILED, FAILED, PASSED):
        found = checked.round({2: result})
        assert found == Decisions({b"m2": Verdict(checked.now, checked.now + 6 * SECOND)})


def test_a_failed_connect_is_urgent_for_those_that_are_down_too() -> None:
    """They may be back; of those that are up, only the one that has failed it, and nobody of another virtual server."""
    other = CheckedPool(OTHER, ((Member(b"o9", target(9)), Member(b"o8", target(8))),))
    checked = Checked(pool(2, 2), other)
    assert checked.table.urgent([b"m1"]) == {target(1)}
    checked.down(3)
    checked.down(9)
    assert checked.table.urgent([b"m1"]) == {target(1), target(3)}
    assert checked.table.urgent([b"o8"]) == {target(8), target(9)}
    assert checked.table.urgent([b"x1"]) == set()


def test_of_many_that_are_down_those_that_wait_longest_are_urgent() -> None:
    """So a failing pool does not take the places of all other checks."""
    checked = Checked(pool(90))
    numbers = range(2, 42)
    for result in (FAILED, FAILED, FAILED):
        checked.round(dict.fromkeys(numbers, result))
    found = set[Target]()
    for _ in range(3):
        urgent = checked.table.urgent([b"m1"])
        found |= urgent
        checked.round(dict.fromkeys((one for one in numbers if target(one) in urgent), FAILED))
        assert len(urgent) <= MOST_URGENT + 1
    assert found == {target(1), *map(target, numbers)}


def test_many_failed_connects_cost_as_much_as_their_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a pool of twice the size dies as a whole, that is twice the work."""
    hashed, hash_of = list[Check](), Check.__hash__

    def counted(check: Check) -> int:
        hashed.append(check)
        return hash_of(check)

    def cost(size: int) -> int:
        members = tuple(Member(b"%d" % n, Target(parse_address(f"10.0.0.{n}"), 80, CHECK)) for n in range(1, size + 1))
        table = CheckTable()
        table.follow([CheckedPool(VIP, (members,))])
        for member in members:
            for _ in range(CHECK.fall):
                table.hear(member.target, FAILED, SECOND)
        hashed.clear()
        keys = [member.key for member in members]
        table.need(keys)
        assert len(table.urgent(keys)) == size
        return len(hashed)

    monkeypatch.setattr(Check, "__hash__", counted)
    assert cost(100) >= 100
    assert cost(200) <= 2.5 * cost(100)


def test_one_passed_check_is_enough_for_a_server_that_is_needed() -> None:
    """It is the next one, or the last one."""
    checked = Checked(pool(4))
    for result in (FAILED, FAILED, FAILED):
        checked.round({1: result, 2: result})
    assert not checked.round({1: PASSED, 2: FAILED}).changes
    assert checked.table.need([b"m3"])
    found = checked.round({2: PASSED})
    assert found.verdicts == {b"m1": Verdict(checked.now, 0), b"m2": Verdict(checked.now, 0)}


def test_only_the_next_check_of_a_needed_server_is_enough() -> None:
    """Afterwards it may not be needed any more; a server of another virtual server never is."""
    other = CheckedPool(OTHER, ((Member(b"o9", target(9)), Member(b"o8", target(8))),))
    checked = Checked(pool(2), other)
    for result in (FAILED, FAILED, FAILED):
        checked.round({1: result, 9: result})
    checked.table.need([b"m2"])
    assert not checked.round({1: FAILED, 9: PASSED}).changes
    assert not checked.round({1: PASSED, 9: FAILED}).changes
    assert not checked.table.need([b"x1"])


def test_a_server_that_fails_connects_is_not_the_one_that_is_needed() -> None:
    """If it fails its checks as well, it has to pass `rise` of them: neither the next nor the last one is enough."""
    checked = Checked(pool(2))
    for result in (FAILED, FAILED, FAILED):
        checked.round({1: result, 2: result})
    for _ in range(2):
        assert not checked.table.need([b"m2"])
        checked.round({1: FAILED, 2: PASSED})
        assert b"m2" in checked.table.failing()[VIP]
        checked.round({2: FAILED})
    checked.round({2: PASSED})
    assert not checked.table.need([b"m2"])
    assert b"m2" in checked.table.failing()[VIP]


def test_a_server_that_rises_is_back() -> None:
    """The programs are told, and the log has for how long it was out."""
    checked = Checked(pool(3))
    checked.down(2)
    checked.round({2: PASSED})
    found = checked.round({2: PASSED})
    assert found.verdicts == {b"m2": Verdict(checked.now, 0)}
    assert found.changes == [Change(b"m2", None, 4 * SECOND)]
    assert checked.round({2: PASSED}) == Decisions()


def test_a_server_that_this_host_can_no_longer_check_comes_back_with_the_end_of_its_lease() -> None:
    """Without a verdict nothing is renewed; the next failure puts it out again at once."""
    checked = Checked(pool(3))
    checked.down(2)
    assert checked.round({2: UNKNOWN}) == checked.round({2: UNKNOWN}) == Decisions()
    assert checked.round({2: UNKNOWN}).changes == [Change(b"m2", None, 6 * SECOND)]
    assert checked.round({2: FAILED}).changes == [Change(b"m2", "HTTP 503", 0)]


def test_the_end_of_a_lease_brings_no_ejected_server_back() -> None:
    """A fault of this host proves nothing: nothing is written, so that the ejection goes on and probes decide."""
    checked = Checked(pool(3))
    checked.down(2)
    for _ in range(3):
        checked.round({1: UNKNOWN})
    checked.table.hear(target(2), UNKNOWN, checked.now)
    found = checked.table.decide(checked.now, {b"m2"})
    assert found == Decisions({}, [Change(b"m2", None, 6 * SECOND)])
    assert not found.readmits(b"m2")


def test_a_lack_of_others_brings_no_ejected_server_back() -> None:
    """When the further tier fails, half of the first one stays: the lease of an ejected member ends, and no more."""
    checked = Checked(pool(2, 1))
    for _ in range(CHECK.fall):
        found = checked.round({1: FAILED, 2: FAILED})
    assert set(found.verdicts) == {b"m1", b"m2"}
    began = checked.now
    for _ in range(CHECK.fall):
        checked.now += SECOND // 2
        checked.table.hear(target(3), FAILED, checked.now)
    found = checked.table.decide(checked.now, {b"m1", b"m2"})
    assert found.verdicts == {b"m2": Verdict(began, checked.now)}
    assert not found.readmits(b"m2")


def test_a_passed_check_brings_an_ejected_server_back() -> None:
    """It is later than the connects that have failed."""
    checked = Checked(pool(3))
    checked.down(2)
    for _ in range(CHECK.rise):
        checked.table.hear(target(2), PASSED, checked.now)
    found = checked.table.decide(checked.now, {b"m2"})
    assert found.verdicts == {b"m2": Verdict(checked.now, 0)}
    assert found.readmits(b"m2")


def test_a_passed_check_puts_no_server_out() -> None:
    """The lease was over, and the server is in service; a passed check that is not enough leaves it there."""
    checked = Checked(pool(3))
    checked.down(2)
    for _ in range(3):
        checked.round({2: UNKNOWN})
    assert checked.round({2: PASSED}) == Decisions()
    assert checked.round({2: FAILED}).changes == [Change(b"m2", "HTTP 503", 0)]
    assert checked.round({2: PASSED}).verdicts == {b"m2": Verdict(checked.now, checked.now + 6 * SECOND)}


def test_late_checks_have_longer_leases() -> None:
    """If too many checks wait for each other, the lease lasts until the next one; but not without limit."""
    checked = Checked(pool(3))
    checked.down(2)
    checked.now += 3 * SECOND
    (lease,) = checked.round({2: FAILED}).verdicts.values()
    assert lease.out_until - checked.now == 15 * SECOND
    checked.now += 1000 * SECOND
    (lease,) = checked.round({2: FAILED}).verdicts.values()
    assert lease.out_until - checked.now == 60 * SECOND


def test_a_lease_is_long_enough_for_a_busy_host() -> None:
    """Even if checks come every tenth of a second."""
    quick = Target(parse_address("10.0.0.2"), 80, replace(CHECK, interval=0.1))
    members = (Member(b"m1", target(1)), Member(b"m2", quick))
    checked = Checked(CheckedPool(VIP, (members,)))
    for _ in range(CHECK.fall):
        checked.now += SECOND // 10
        checked.table.hear(quick, FAILED, checked.now)
    assert checked.table.decide(checked.now).verdicts == {b"m2": Verdict(checked.now, checked.now + 3 * SECOND)}


def test_a_broken_check_leaves_half_of_the_last_tier() -> None:
    """All fail: of four the first two to fail are out."""
    checked = Checked(pool(4))
    everybody = dict.fromkeys(range(1, 5), FAILED)
    for _ in range(CHECK.fall):
        found = checked.round(everybody)
    assert len(found.verdicts) == len(found.changes) == 2
    assert len(checked.round(everybody).verdicts) == 2


def test_when_one_comes_back_another_may_go_out() -> None:
    """A failing server that stayed for want of others goes out as soon as another one is back."""
    checked = Checked(pool(2))
    for _ in range(CHECK.fall):
        found = checked.round({1: FAILED, 2: FAILED})
    assert [change.key for change in found.changes] == [b"m1"]
    checked.round({1: PASSED, 2: FAILED})
    found = checked.round({1: PASSED, 2: FAILED})
    assert {key: bool(verdict.out_until) for key, verdict in found.verdicts.items()} == {b"m1": False, b"m2": True}


def test_virtual_servers_share_a_check() -> None:
    """One result goes to the members of all of them; each pool has its own rule of half."""
    checked = Checked(pool(1), pool(3, vip=OTHER))
    assert checked.targets == {target(1), target(2), target(3)}
    assert set(checked.down(1).verdicts) == {b"o1"}


def test_a_new_virtual_server_learns_at_once() -> None:
    """A server that is down is out of a pool that appears later, without another check."""
    checked = Checked(pool(3))
    checked.down(1)
    checked.table.follow([pool(3), pool(3, vip=OTHER)])
    found = checked.table.decide(checked.now + 1)
    assert set(found.verdicts) == {b"o1"}


def test_a_server_that_left_and_comes_back_begins_as_up() -> None:
    """Nothing is known of it, and its element in the kernel is a new one."""
    checked = Checked(pool(3))
    checked.down(3)
    checked.table.follow([pool(2)])
    assert checked.table.decide(checked.now) == Decisions()
    assert not checked.table.hear(target(3), FAILED, checked.now)
    checked.table.follow([pool(3)])
    assert checked.table.decide(checked.now) == Decisions()
    assert checked.table.failing() == {VIP: {}}


def test_a_restarted_sidecar_keeps_servers_out() -> None:
    """A lease of an earlier sidecar is taken over: the next failure renews it, and only `rise` checks end it."""
    lease = Verdict(95 * SECOND, 104 * SECOND)
    checked = Checked(pool(3), leases={b"m2": lease})
    assert checked.decisions[0].changes == [Change(b"m2", EARLIER, 0)]
    assert checked.round({2: FAILED}).verdicts == {b"m2": Verdict(checked.now, checked.now + 6 * SECOND)}
    checked.round({2: PASSED})
    assert checked.round({2: PASSED}).changes == [Change(b"m2", None, checked.now - 95 * SECOND)]


def changed(interval: float) -> CheckedPool:
    """Return a pool of three servers whose checks have another interval."""
    check = replace(CHECK, interval=interval)
    return CheckedPool(VIP, (tuple(Member(one.key, one.target._replace(check=check)) for one in pool(3).tiers[0]),))


@pytest.mark.parametrize(("interval", "lease"), [(1.0, 6), (30.0, 90)])
def test_a_lease_lasts_until_the_first_result_of_a_changed_check(interval: float, lease: int) -> None:
    """It is as long as with the new interval from the beginning, and no shorter than before."""
    checked = Checked(pool(3))
    checked.down(2)
    before = checked.now
    checked.now += SECOND
    checked.table.follow([changed(interval)])
    written = {**checked.decisions[-1].verdicts, **checked.table.decide(checked.now).verdicts}
    assert written == {b"m2": Verdict(before, before + lease * SECOND)}


def test_a_changed_check_puts_no_server_out() -> None:
    """One that came back with the end of its lease stays in service until a check of it fails."""
    checked = Checked(pool(3))
    checked.down(2)
    checked.now += 6 * SECOND
    assert checked.round({2: UNKNOWN}).changes
    checked.table.follow([changed(interval=30.0)])
    assert checked.table.decide(checked.now) == Decisions()


def test_a_server_that_is_down_stays_so_if_its_check_changes() -> None:
    """Otherwise a reload would send connects to servers that hang; the new check has to pass often enough."""
    checked = Checked(pool(3))
    checked.down(2)
    slower = changed(interval=4.0)
    checked.table.follow([slower])
    assert checked.table.decide(checked.now).changes == []
    assert checked.table.failing() == {VIP: {b"m2": "HTTP 503"}}
    target_ = slower.tiers[0][1].target
    assert checked.table.down == {target_}
    for passed in (False, True):
        checked.now += 4 * SECOND
        checked.table.hear(target_, PASSED, checked.now)
        assert checked.table.decide(checked.now).verdicts[b"m2"].out_until == (
            0 if passed else checked.now + 12 * SECOND
        )


def test_servers_that_are_not_checked_any_more_are_taken_back() -> None:
    """One that is ejected as well has a moment for its probe, because it may be dead."""
    now = 100 * SECOND
    assert release([b"m1", b"m2"], now, {b"m2", b"m3"}) == {
        b"m1": Verdict(now, 0),
        b"m2": Verdict(now, now + LEAST_LEASE),
    }


def test_failing_servers_are_listed() -> None:
    """Each with the reason of its last failure, also those that stay for want of others."""
    checked = Checked(pool(1))
    checked.down(1)
    assert checked.table.failing() == {VIP: {b"m1": "HTTP 503"}}


RESULTS = st.lists(st.dictionaries(st.integers(1, 5), st.sampled_from([PASSED, FAILED, UNKNOWN])), max_size=30)


@given(RESULTS)
def test_the_kernel_never_holds_out_more_than_may_be(rounds: list[Mapping[int, Result]]) -> None:
    """After every round, what was written keeps at most half of the last tier out, and only servers that are down."""
    checked, kernel = Checked(pool(2, 3)), dict[bytes, Verdict]()
    for results in rounds:
        kernel |= checked.round(results).verdicts
        out = {key for key, verdict in kernel.items() if verdict.out_until > checked.now}
        assert len(out & {b"m3", b"m4", b"m5"}) <= 1
        assert out <= checked.table.failing()[VIP].keys()
        if out >= {b"m1", b"m2"}:
            assert not {b"m3", b"m4", b"m5"} <= checked.table.failing()[VIP].keys()


@given(RESULTS)
def test_going_out_and_coming_back_take_turns(rounds: list[Mapping[int, Result]]) -> None:
    """The log has no server that goes out twice without a return, and what it has is what was written."""
    checked, out = Checked(pool(5)), set[bytes]()
    for results in rounds:
        found = checked.round(results)
        for change in found.changes:
            assert (change.key in out) is (change.reason is None)
            assert bool(found.verdicts[change.key].out_until) is (change.reason is not None)
            out ^= {change.key}
