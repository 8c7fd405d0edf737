"""The loop that follows any source.

Backoff is here, so that it is the same for every source: unlimited retries, exponential with full jitter, capped, and
reset by each answer. An answer that cannot be used is one, too: the source waits for the next as after any other, so a
correction counts at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.model.answer import Failure, Outcome
from clb_discovery.sources.base import Source

BACKOFF_FIRST: Final = 0.5
"""Upper bound of the first pause, in seconds; it doubles with every failure."""
BACKOFF_CAP: Final = 30.0
"""Longest pause between two tries, in seconds."""
Emit = Callable[[Outcome], None]
_log = structlog.stdlib.get_logger()


class Bugs:
    """Turns bugs into failures of sources. The traceback of a bug is long, so it is logged once for each source.

    Every task of a source that nothing waits for reports its bugs here, because it would otherwise end in silence.
    """

    def __init__(self) -> None:
        self._logged: dict[str, str] = {}  # the last one, by source

    def reason(self, source: str, error: BaseException | None) -> str:
        """Return the reason of the failure.

        :param source: its name.
        """
        reason = f"internal error: {error!r}; please report it"
        if self._logged.get(source) != reason:
            self._logged[source] = reason
            _log.error("source failed unexpectedly", source=source, exc_info=error)
        return reason


async def follow(source: Source, emit: Emit, *, first: float = BACKOFF_FIRST, cap: float = BACKOFF_CAP) -> None:
    """Pass every answer and every failure of a source to `emit`, until cancelled.

    :param first: upper bound of the first pause after a failure, in seconds.
    :param cap: longest pause, in seconds.
    """
    bugs: Bugs | None = None  # most sources never need it
    while True:
        try:
            outcome = await _next(source)
        except Exception as error:  # noqa: BLE001 - `_failed` distinguishes them
            bugs = bugs or Bugs()
            outcome = await _retried(source, error, partial(_failed, source, emit, bugs), first, cap)
        emit(outcome)


async def _next(source: Source) -> Outcome:
    """Return the next answer, or a failure for one that cannot be used."""
    try:
        return await source.next()
    except UnusableError as error:
        return Failure(str(error), unusable=True)


def _failed(source: Source, emit: Emit, bugs: Bugs, state: RetryCallState) -> None:
    """Pass a failure on, whatever its cause is: a bug must not end the loop."""
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0  # upcoming_sleep is not in tenacity of Debian 12
    _log.debug(
        "query failed; it is repeated after a random pause",
        source=source.name,
        failures=state.attempt_number,
        seconds=round(pause, 1),
        error=type(error).__name__,
    )
    if isinstance(error, SourceError):
        emit(Failure(str(error)))
    elif isinstance(error, OSError):
        emit(Failure(f"cannot query: {error.strerror or error}"))
    else:
        emit(Failure(bugs.reason(source.name, error)))


async def _retried(
    source: Source, error: Exception, failed: Callable[[RetryCallState], None], first: float, cap: float
) -> Outcome:
    """Retry after a first failure until there is an answer."""
    errors = [error]

    async def attempt() -> Outcome:
        if errors:
            raise errors.pop()
        return await _next(source)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(Exception),
        wait=wait_random_exponential(multiplier=first, max=cap),
        before_sleep=failed,
    )
    return await retrying(attempt)
