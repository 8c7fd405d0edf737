"""Checks run when they are due, a bounded number at a time, and end with the runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from clb_discovery.checks.health import Result
from clb_discovery.checks.runner import LATE, Runner
from clb_discovery.model.address import parse_address
from clb_discovery.model.check import Check, Target

PASSED = Result(passed=True)
QUICK = Check(interval=0.1, timeout=0.1)


def targets(count: int, check: Check = QUICK) -> list[Target]:
    """Return targets with one check."""
    return [Target(parse_address(f"10.0.0.{number}"), 80, check) for number in range(1, count + 1)]


class Servers:
    """Takes a time for each check, and counts."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.running = self.most = self.ended = 0
        self.heard: list[tuple[Target, Result]] = []
        self.late = 0

    async def check(self, _target: Target) -> Result:
        """Answer after a while."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.running -= 1
            self.ended += 1
        return PASSED

    def count_late(self) -> None:
        """Count a check that began late."""
        self.late += 1

    def hear(self, target: Target, result: Result) -> None:
        """Keep a result."""
        self.heard.append((target, result))


def run(runner: Runner, seconds: float, meanwhile: Callable[[], None]) -> None:
    """Run a runner for a while; `meanwhile` is called at its start."""

    async def life() -> None:
        task = asyncio.create_task(runner.run())
        meanwhile()
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(life())


def test_each_target_is_checked_at_its_interval() -> None:
    """Three servers, ten intervals: thirty checks or so, and every server has its share."""
    servers = Servers()
    runner = Runner(servers.check, servers.hear, servers.count_late)
    run(runner, 1.0, lambda: runner.follow(targets(3)))
    for target in targets(3):
        assert 7 <= servers.heard.count((target, PASSED)) <= 11
    assert runner.late < 0.1


def test_a_bounded_number_runs_at_a_time() -> None:
    """All get their turn, and the runner knows that they are late."""
    servers = Servers(takes=0.05)
    runner = Runner(servers.check, servers.hear, servers.count_late, most=4)
    run(runner, 1.0, lambda: runner.follow(targets(20)))
    assert servers.most == 4
    assert {target for target, _ in servers.heard} == set(targets(20))
    assert runner.late > 0.05


async def test_lateness_ends_with_the_checks() -> None:
    """No later check would show that there is none any more."""
    servers = Servers()
    runner = Runner(servers.check, servers.hear, servers.count_late)
    runner.late = 5.0
    runner.follow([])
    assert runner.late == 0.0


def test_checks_that_begin_late_are_counted() -> None:
    """One at a time, and each takes longer than a check may be late."""
    servers = Servers(takes=LATE + 0.2)
    runner = Runner(servers.check, servers.hear, servers.count_late, most=1)
    run(runner, 3 * LATE, lambda: runner.follow(targets(3)))
    assert servers.late >= 1


def test_a_bug_in_a_check_is_no_verdict() -> None:
    """It is passed on as a result, and checks go on."""
    heard: list[Result] = []

    async def broken(_target: Target) -> Result:
        raise ZeroDivisionError

    runner = Runner(broken, lambda _target, result: heard.append(result), lambda: None)
    run(runner, 0.5, lambda: runner.follow(targets(1)))
    assert len(heard) > 2
    assert all(result.passed is None and "internal error" in result.reason for result in heard)


def test_running_checks_end_with_the_runner() -> None:
    """Nothing is left behind, and nothing is heard of them."""
    servers = Servers(takes=60.0)
    runner = Runner(servers.check, servers.hear, servers.count_late)
    run(runner, 0.3, lambda: runner.follow(targets(5)))
    assert servers.ended == 5
    assert servers.heard == []


def test_targets_can_change_while_it_runs() -> None:
    """A new one is checked within its interval; one that is gone is not checked any more."""
    servers = Servers()
    runner = Runner(servers.check, servers.hear, servers.count_late)
    first, second = targets(2)

    async def life() -> None:
        task = asyncio.create_task(runner.run())
        runner.follow([first])
        await asyncio.sleep(0.3)
        runner.follow([second])
        servers.heard.clear()
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(life())
    assert {target for target, _ in servers.heard} == {second}
