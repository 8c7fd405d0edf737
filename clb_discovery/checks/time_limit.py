"""A limit to the time in which something may happen, which does not blame a server for a busy host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_STEPS: Final = 20
"""Parts of a time limit: about twice the turns of the event loop that a check by https takes."""


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Limit the time of a block, as `asyncio.timeout`, to time in which the event loop of this host was alive.

    The time is counted in steps. One that ends late, because the loop was held up, counts no more than the others, so
    that the loop has had turns enough to notice an answer that is there.

    :raises TimeoutError: if the block is not over then.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def wait(steps: int) -> None:
            nonlocal timer
            if steps:
                timer = loop.call_later(seconds / _STEPS, wait, steps - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds / _STEPS, wait, _STEPS - 1)
        try:
            yield
        finally:
            timer.cancel()
