"""Clients of a service that connect, send a request, and wait for the response, again and again.

Usage: failing_client.py ADDRESS PORT PATIENCE CLIENTS SECONDS. PATIENCE is how many seconds a client waits for connect
and response together; 0 for no limit. The output is a JSON list with the start of each request, in seconds of
CLOCK_MONOTONIC, the time that it took, and whether there was a response. What is not over at the end has failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final

PAUSE: Final = 0.02
"""Seconds between two requests of a client."""


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

    async def repeat(self) -> None:
        """Make requests until cancelled."""
        while True:
            began, answered = time.monotonic(), False
            try:
                async with asyncio.timeout(self._patience):
                    answered = await ask(*self._target)
            except (OSError, TimeoutError):
                pass
            finally:
                self.done.append((began, time.monotonic() - began, answered))
            await asyncio.sleep(PAUSE)


async def main(address: str, port: int, patience: float, clients: int, seconds: float) -> None:
    """Run all clients for some seconds."""
    requests = Requests(address, port, patience)
    running = [asyncio.create_task(requests.repeat()) for _ in range(clients)]
    await asyncio.wait(running, timeout=seconds)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    print(json.dumps(requests.done))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
