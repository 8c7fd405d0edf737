"""Common parts of fake sources."""

from __future__ import annotations

import asyncio
from typing import Final

from clb_discovery.errors import SourceError
from clb_discovery.model.answer import Answer

NOBODY: Final = Answer(())


class FakeSource:
    """After its last answer it waits, until it is hastened."""

    def __init__(self) -> None:
        """Start without any answer."""
        self._hastened = asyncio.Event()
        self.last = NOBODY

    def answer(self, answer: Answer) -> Answer:
        """Return an answer, and keep it as the last one."""
        self.last = answer
        return answer

    async def nothing_new(self) -> Answer:
        """Return the last answer when the source is hastened."""
        await self._hastened.wait()
        self._hastened.clear()
        return self.last

    def hasten(self) -> None:
        """Let the last answer be returned once more."""
        self._hastened.set()


class Told(FakeSource):
    """A source whose answers and failures come from the test."""

    name = "fake:told"

    def __init__(self, *outcomes: Answer | SourceError) -> None:
        """Start without any outcome."""
        super().__init__()
        self.hastens = 0
        self._outcomes: asyncio.Queue[Answer | SourceError | None] = asyncio.Queue()
        for outcome in outcomes:
            self.tell(outcome)

    def tell(self, outcome: Answer | SourceError) -> None:
        """Add the next answer, or failure."""
        self._outcomes.put_nowait(outcome)

    async def next(self) -> Answer:
        """Return or raise the next outcome."""
        outcome = await self._outcomes.get()
        if isinstance(outcome, SourceError):
            raise outcome
        return self.answer(outcome or self.last)

    def hasten(self) -> None:
        """Repeat the last answer."""
        self.hastens += 1
        self._outcomes.put_nowait(None)
