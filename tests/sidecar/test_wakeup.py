"""Waiting for events: a burst counts as one."""

from __future__ import annotations

import asyncio

from clb_discovery.sidecar.wakeup import QUIET, QUIET_LIMIT, Wakeup
from tests.support.pace import patient


async def within_patience(news: Wakeup, seconds: float) -> float:
    """Wait for an event; return how long it took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(patient(20)):
        await news.wait(seconds)
    return loop.time() - started


async def test_without_news_the_time_is_waited_out() -> None:
    """Without an event, the wait returns after the given time."""
    assert await within_patience(Wakeup(), 2 * QUIET) >= QUIET


async def test_news_of_before_are_not_lost_and_are_told_once() -> None:
    """An event that came before the wait ends it at once, and ends no other."""
    news = Wakeup()
    news.ring()
    await within_patience(news, 3600)
    assert await within_patience(news, 2 * QUIET) >= QUIET


async def test_burst_without_end_is_cut() -> None:
    """If events never pause for the quiet period, the wait ends at its limit, and not earlier."""
    news, loop = Wakeup(), asyncio.get_running_loop()

    async def go_on() -> None:
        while True:
            news.ring()
            await asyncio.sleep(0)

    ringing = asyncio.create_task(go_on())
    await asyncio.sleep(0)
    started = loop.time()
    await within_patience(news, 3600)
    assert loop.time() - started >= QUIET_LIMIT
    ringing.cancel()
