"""Race connects, as clients with several addresses do: the first that succeeds wins, the others are given up.

Usage: racer.py DELAY TIMES AT-ONCE ADDRESS:PORT... Each race begins a connect to the next target after DELAY seconds
without a winner: 0.3 for Go's net.Dialer, 0.25 for gRPC (RFC 8305). A target may be repeated, for hedged connects.
Exits with 1 unless every race has a winner.
"""

from __future__ import annotations

import asyncio
import socket
import sys


async def dial(target: tuple[str, int]) -> None:
    """Connect, and close; a connect that is cancelled is given up."""
    with socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target)


async def race(targets: list[tuple[str, int]], delay: float, room: asyncio.Semaphore) -> bool:
    """Return whether a connect has won."""
    running: set[asyncio.Task[None]] = set()
    ended: set[asyncio.Task[None]] = set()
    async with room:
        for number, target in enumerate(targets, 1):
            running.add(asyncio.create_task(dial(target)))
            while running and not any(task.exception() is None for task in ended):
                patience = delay if number < len(targets) else None
                now, running = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                ended |= now
                if not now:
                    break
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return any(task.exception() is None for task in ended)


async def main(delay: str, times: str, at_once: str, *names: str) -> int:
    """Race so many times."""
    ends = (name.rpartition(":") for name in names)
    targets = [(host.strip("[]"), int(port)) for host, _, port in ends]
    room = asyncio.Semaphore(int(at_once))
    won = await asyncio.gather(*(race(targets, float(delay), room) for _ in range(int(times))))
    return 0 if all(won) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
