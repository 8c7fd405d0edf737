"""A client of a service that keeps a pool of open connections, without any time-out of its own.

Usage: pooling_client.py ADDRESS PORT CONNECTIONS PAUSE SECONDS. Each connection has one request at a time, with PAUSE
seconds between them. A connection that fails is replaced. The output is a JSON list with the start of each
request, in seconds of CLOCK_MONOTONIC, the time that it took, and whether there was a response. What is not over at the
end has failed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from contextlib import suppress


class Pool:
    """The requests on all connections."""

    def __init__(self, address: str, port: int, pause: float) -> None:
        self._target = address, port
        self._pause = pause
        self.done: list[tuple[float, float, bool]] = []

    async def keep(self) -> None:
        """Keep a connection in use until cancelled, and replace it when it fails."""
        while True:
            await asyncio.sleep(self._pause * random.random())  # noqa: S311  # requests are not all sent together
            with suppress(OSError):
                await self._use(*await asyncio.open_connection(*self._target))

    async def _use(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._ask(reader, writer):  # noqa: ASYNC110  # no event ends the pause
                await asyncio.sleep(self._pause)
        finally:
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        began, answered = time.monotonic(), False
        try:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            answered = bool(await reader.read(4096))
        except OSError:
            pass
        finally:
            self.done.append((began, time.monotonic() - began, answered))
        return answered


async def main(address: str, port: int, connections: int, pause: float, seconds: float) -> None:
    """Use the connections for so many seconds."""
    pool = Pool(address, port, pause)
    tasks = [asyncio.create_task(pool.keep()) for _ in range(connections)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    print(json.dumps(pool.done))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])))
