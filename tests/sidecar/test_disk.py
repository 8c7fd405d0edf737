"""A disk that stalls delays nothing but what is written to it."""

from __future__ import annotations

import asyncio
import time
from threading import Event

import pytest

from clb_discovery.sidecar.disk import Disk
from tests.support.pace import patient


async def waits_for(disk: Disk, event: Event, done: list[str]) -> None:
    """Write something once the disk responds."""
    await disk.call(event.wait)
    done.append("written")


async def test_a_job_that_takes_long_goes_on() -> None:
    """The one that starts it waits for a moment only; it is busy until then, and its end can be waited for."""
    disk, event, done = Disk(), Event(), list[str]()
    assert not disk.is_busy
    await disk.start(waits_for(disk, event, done), patience=0.05)
    assert disk.is_busy
    event.set()
    await disk.rest(None)
    assert (disk.is_busy, done) == (False, ["written"])


async def fails(disk: Disk, event: Event) -> None:
    """Fail when the disk responds."""
    await disk.call(event.wait)
    await disk.call(int, "nonsense")


@pytest.mark.parametrize("soon", [True, False])
async def test_an_error_is_raised_by_the_next_look(*, soon: bool) -> None:
    """At once if it comes soon enough, else later: a bug does not pass in silence."""
    disk, event = Disk(), Event()
    if soon:
        event.set()
        with pytest.raises(ValueError, match="nonsense"):
            await disk.start(fails(disk, event), patience=None)
        return
    await disk.start(fails(disk, event), patience=0.05)
    event.set()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    with pytest.raises(ValueError, match="nonsense"):
        await disk.start(disk.call(print), patience=0.05)


def test_the_end_of_the_program_does_not_wait_for_it() -> None:
    """Neither does the end of the event loop, whose tasks are cancelled; nor fails the call that ends later."""
    event, done = Event(), list[str]()

    async def run() -> None:
        disk = Disk()
        await disk.start(waits_for(disk, event, done), patience=0.05)

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < patient(2)
    event.set()
    assert not done
