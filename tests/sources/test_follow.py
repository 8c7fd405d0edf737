"""The loop that follows a source, and its pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import pytest
from structlog.testing import capture_logs

from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.model.answer import Answer, Failure, Outcome
from clb_discovery.sources.follow import BACKOFF_CAP, BACKOFF_FIRST, follow
from tests.support.fake_source import FakeSource

NOBODY: Final = Answer(())


class Scripted(FakeSource):
    """A source that returns these outcomes in order, and then nothing new."""

    name = "consul:web"

    def __init__(self, script: Sequence[Answer | Exception]) -> None:
        super().__init__()
        self._script = list(script)
        self.done = asyncio.Event()

    async def next(self) -> Answer:
        """Return or raise the next outcome."""
        if not self._script:
            self.done.set()
            return await self.nothing_new()
        outcome = self._script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return self.answer(outcome)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds of every sleep; no sleep takes time."""
    found: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        found.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return found


async def followed(script: Sequence[Answer | Exception]) -> list[Outcome]:
    """Follow a script to its end; return the outcomes."""
    source, heard = Scripted(script), list[Outcome]()
    following = asyncio.create_task(follow(source, heard.append))
    await source.done.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return heard


async def test_retries_without_end_and_with_bounded_pauses(pauses: list[float]) -> None:
    """A source is retried without limit; pauses are random up to a bound that doubles up to 30 s."""
    failures = 1100  # two to this power exceeds the range of a float
    heard = await followed([SourceError("no")] * failures + [NOBODY])
    assert heard == [Failure("no")] * failures + [NOBODY]
    assert len(pauses) == failures
    assert all(pause <= min(BACKOFF_CAP, BACKOFF_FIRST * 2**number) for number, pause in enumerate(pauses[:20]))
    later = sorted(pauses[20:])
    assert BACKOFF_CAP * 0.9 < later[-1] <= BACKOFF_CAP
    assert later[0] < BACKOFF_CAP * 0.1  # full jitter: only the bound grows
    assert sum(later) / len(later) == pytest.approx(BACKOFF_CAP / 2, rel=0.15)


async def test_each_success_starts_the_pauses_anew(pauses: list[float]) -> None:
    """After an answer the first pause is short again, however long the last one was."""
    await followed([SourceError("no")] * 20 + [NOBODY, SourceError("no")] * 100)
    assert max(pauses[20:]) <= BACKOFF_FIRST


async def test_an_answer_that_cannot_be_used_is_followed_by_the_next(pauses: list[float]) -> None:
    """It is a failure without a pause, so that a correction counts at once; it ends the pauses of earlier failures."""
    bad, unusable = UnusableError("port 0"), Failure("port 0", unusable=True)
    heard = await followed([bad] * 20 + [NOBODY] + [SourceError("no"), bad] * 100)
    assert heard == [unusable] * 20 + [NOBODY] + [Failure("no"), unusable] * 100
    assert len(pauses) == 100
    assert max(pauses) <= BACKOFF_FIRST


@pytest.mark.usefixtures("pauses")
async def test_a_bug_does_not_end_the_watch() -> None:
    """An unexpected error is a failure like any other, whose text asks for a report."""
    heard = await followed([KeyError("x"), NOBODY])
    assert heard == [Failure("internal error: KeyError('x'); please report it"), NOBODY]


@pytest.mark.usefixtures("pauses")
async def test_each_retry_is_a_line_for_debugging() -> None:
    """The line counts failures since the last answer, and shows the pause in seconds and the kind of the error."""
    with capture_logs() as logs:
        await followed([SourceError("no"), OSError(5, "no"), NOBODY, SourceError("no")])
    lines = [line for line in logs if line["event"] == "query failed; it is repeated after a random pause"]
    assert [(line["log_level"], line["source"], line["failures"], line["error"]) for line in lines] == [
        ("debug", "consul:web", 1, "SourceError"),
        ("debug", "consul:web", 2, "OSError"),
        ("debug", "consul:web", 1, "SourceError"),
    ]
    assert all(0 <= line["seconds"] <= BACKOFF_CAP for line in lines)
