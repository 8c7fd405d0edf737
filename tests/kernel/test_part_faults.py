"""Connects through a pool of three parts over random schedules of faults, with two real datacenters and real DNS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from hypothesis import Phase, example, given, note, settings

from clb_discovery.model.address import format_address
from tests.programs.connector import Connect
from tests.support.clients import connecting
from tests.support.pace import effort
from tests.support.part_faults import STEPS, Fault, Step, World, world
from tests.support.sidecar import sidecar, wait_for_pool

VIP: Final = "10.64.0.1"
MANY: Final = effort(200, 10)
"""Random schedules of `make test-discovery`."""
LAST_DIES_WHILE_ANOTHER_IS_BACK: Final = [
    Step(Fault.DEAD, "127.0.1.2"),
    Step(Fault.MAINTENANCE, "127.0.1.1"),
    Step(Fault.MAINTENANCE, "127.0.2.1"),
    Step(Fault.CRITICAL, "127.0.2.2"),
    Step(Fault.DEAD, "127.0.1.2"),
    Step(Fault.DEAD, "127.0.3.1"),
    Step(Fault.HANGS, "127.0.2.1"),
]
"""The programs keep the one that is back out, and may not put the last one out."""
PASSIVE: Final = 4
"""Most connects that fail before a dead server is passed over: `--eject-after`, and one that it had yet to accept."""


@pytest.mark.parametrize("most", [effort(6, 2), pytest.param(MANY, marks=pytest.mark.discovery)])
def test_no_connect_fails_after_the_publication_that_follows_an_answer(
    instance: str, cgroup: Path, directory: Path, most: int
) -> None:
    """Whichever part loses servers or its source, in any order; before it, passive health allows a few to fail.

    So it is while a server is dead and discovery does not know. A client connects without pause.
    """
    counts: Counter[str] = Counter()
    with world(directory) as found:
        config = directory / "clb.toml"
        config.write_text(found.configuration(f"{VIP}:80"))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]):
            wait_for_pool(instance, VIP, found.pool)

            # The few of every run are the same ones, so that a failure is one of the change that it comes with.
            @settings(max_examples=most, phases=[Phase.explicit, Phase.generate], derandomize=most < MANY)
            @given(STEPS)
            @example(LAST_DIES_WHILE_ANOTHER_IS_BACK)
            def keeps_to_the_rules(schedule: Sequence[Step]) -> None:
                note(f"{schedule}")
                counts.update(play(found, schedule, instance, cgroup))

            keeps_to_the_rules()
    print(dict(counts))
    assert counts["connects"] > 1000


def play(found: World, schedule: Sequence[Step], instance: str, cgroup: Path) -> Counter[str]:
    """Play a schedule in front of a client, and judge its connects; return what has happened how often."""

    def settle(pool: Mapping[str, int]) -> None:
        wait_for_pool(instance, VIP, pool)

    counts = Counter({"schedules": 1})
    found.down, found.quiet = [], []
    with TemporaryDirectory() as folder, connecting(cgroup, 80, Path(folder), VIP, serve=False) as connects:
        for step in schedule:
            counts[step.fault.name] += found.take(step, settle)
        found.restore(settle)
    failed = [connect for connect in connects if connect.error]
    counts.update(connects=len(connects), failed=len(failed))
    assert [connect for connect in failed if not may_fail(found, connect)] == []
    assert len(failed) <= PASSIVE * len(found.down)
    assert [connect for connect in connects if not connect.error and not is_in_the_pool(found, connect)] == []
    return counts


def may_fail(found: World, connect: Connect) -> bool:
    """Return whether a server was down meanwhile that the kernel still had."""
    return any(span.meets(connect.start, connect.end) for span in found.down)


def is_in_the_pool(found: World, connect: Connect) -> bool:
    """Return whether a connect reached a server of the pool that was published before its start."""
    reached = format_address(connect.reached)
    return all(
        reached in hosts for span, hosts in found.quiet if span.begin <= connect.start and connect.end <= span.end
    )
