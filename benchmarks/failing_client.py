"""Clients of a service that connect, send a request, wait for the response, and close.

Usage: failing_client.py ADDRESS PORT PATIENCE PER_SECOND SECONDS GRACE. PATIENCE is how many seconds a client waits for
connect and response together; 0 for no limit. Requests begin at an even rate, whether or not earlier ones are over, so
those that hang do not keep others from being counted. The last one begins after SECONDS, and GRACE seconds later the
remaining ones have failed. The output is a JSON list with the start of each request, in seconds of CLOCK_MONOTONIC, the
time that it took, and whether there was a response.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time


async def ask(address: str, port: int) -> bool:
    """Make one request."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return bool(await reader.read(1))
    finally:
        writer.close()


class Requests:
    """The requests of all clients."""

    def __init__(self, address: str, port: int, patience: float) -> None:
        self._target = address, port
        self._patience = patience or None
        self.done: list[tuple[float, float, bool]] = []

    async def make(self) -> None:
        """Make a request."""
        began, answered = time.monotonic(), False
        try:
            async with asyncio.timeout(self._patience):
                answered = await ask(*self._target)
        except (OSError, TimeoutError):
            pass
        finally:
            self.done.append((began, time.monotonic() - began, answered))


async def main(requests: Requests, rate: float, seconds: float, grace: float) -> None:
    """Make the requests of so many seconds."""
    tasks, began = [], time.monotonic()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(began + number / rate - time.monotonic())
        tasks.append(asyncio.create_task(requests.make()))
    _, late = await asyncio.wait(tasks, timeout=grace)
    for task in late:
        task.cancel()
    await asyncio.wait(tasks)
    print(json.dumps(requests.done))


if __name__ == "__main__":
    asyncio.run(main(Requests(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])), *map(float, sys.argv[4:7])))
