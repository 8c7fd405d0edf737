"""What sources that are fakes have in common."""

from __future__ import annotations

import asyncio
from typing import Final

from clb_discovery.core.model import Answer

NOBODY: Final = Answer(())


class FakeSource:
    """Waits after its last answer, until it is hastened."""

    def __init__(self) -> None:
        """Start without any answer."""
        self._hastened = asyncio.Event()
        self.last = NOBODY

    def answer(self, answer: Answer) -> Answer:
        """Return an answer, which is the last one from now on."""
        self.last = answer
        return answer

    async def nothing_new(self) -> Answer:
        """Return the last answer, when it is hastened."""
        await self._hastened.wait()
        self._hastened.clear()
        return self.last

    def hasten(self) -> None:
        """Let the last answer be given once more."""
        self._hastened.set()
