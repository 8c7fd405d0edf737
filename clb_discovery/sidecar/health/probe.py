"""A probe: a TCP connect to a real server, of which the application there learns nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from enum import StrEnum
from typing import Final

from clb_discovery.checks.connect import is_own_fault, tcp_connect
from clb_discovery.checks.time_limit import time_limit
from clb_discovery.model.address import Address

LIMIT: Final = 0.6
"""Seconds after which silence is an answer.

The programs pass a suspect server over for a second. On a busy host the sidecar hears of it, and its verdict is
written, some tenths of a second later; after the second the server takes connects until then.
"""
SECOND_TRY: Final = 0.25
"""Seconds until a second SYN, from another port, in case that the network has lost the first one."""
SAMPLE: Final = 8
"""Connects of a thorough probe."""
MOST_LOST: Final = 1
"""How many of them may fail: a server that loses every second packet then passes one probe in thirty, and one that
loses one in a hundred fails one in four hundred."""


class Result(StrEnum):
    """What a probe has found out."""

    UP = "up"
    DOWN = "down"
    LOCAL = "local"
    """Nothing: it failed on this host, such as for lack of a route, of a descriptor or of the permission."""


async def probe(address: Address, port: int, *, twice: bool = True) -> Result:
    """Connect; the first answer decides.

    :param twice: try again if there is no answer soon.
    """
    tries = [asyncio.create_task(_connect(address, port))]
    try:
        async with time_limit(LIMIT):
            if twice:
                await asyncio.wait(tries, timeout=SECOND_TRY)
                if not tries[0].done():
                    tries.append(asyncio.create_task(_connect(address, port)))
            await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
        return next(one.result() for one in tries if one.done())
    except TimeoutError:
        return Result.DOWN
    finally:
        for one in tries:
            one.cancel()
        await asyncio.gather(*tries, return_exceptions=True)  # then their sockets are closed


async def probe_thoroughly(address: Address, port: int) -> Result:
    """Connect several times at once until enough have answered: a server that loses packets cannot pass by chance."""
    waiting = {asyncio.create_task(probe(address, port, twice=False)) for _ in range(SAMPLE)}
    found: Counter[Result] = Counter()
    try:
        while waiting and found[Result.UP] < SAMPLE - MOST_LOST and found[Result.DOWN] <= MOST_LOST:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            found.update(one.result() for one in done)
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)  # then their sockets are closed
    if found[Result.DOWN] > MOST_LOST:
        return Result.DOWN
    return Result.UP if found[Result.UP] else Result.LOCAL


async def _connect(address: Address, port: int) -> Result:
    try:
        await tcp_connect(address, port)
    except OSError as error:
        return Result.LOCAL if is_own_fault(error) else Result.DOWN
    return Result.UP
