"""What the sidecar knows of all its services, and whether an outcome of a source changes any of that."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from clb_discovery.announce import Announcer
from clb_discovery.core.lastgood import LastGood
from clb_discovery.core.model import Answer, Failure, RealServer, Service
from clb_discovery.following import Following

_SHOWN: Final = 4
"""Sources named in one summary."""
_SHOWN_LENGTH: Final = 80


class Heard(NamedTuple):
    """What an outcome, or time, has changed; all false where it is what was known already."""

    counts: bool
    """Something that may change what the kernel should hold."""
    shows: bool
    """Something that only people are told: whether the source is well, or why not."""


class Knowledge:
    """One `Following` for each service, by the name of its source."""

    def __init__(self, services: Iterable[Service], announcer: Announcer) -> None:
        """Start from knowing nothing of these services.

        :param announcer: says what becomes of sources.
        """
        self._announcer = announcer
        self._following = {service.source: Following(service) for service in services}

    def __iter__(self) -> Iterator[Following]:
        return iter(self._following.values())

    def __len__(self) -> int:
        return len(self._following)

    def hear(self, source: str, outcome: Answer | Failure, now: float) -> Heard:
        """Take what a source came back with.

        :param now: seconds on a clock that does not go backwards.
        """
        following = self._following[source]
        good, answered = following.guarded.good, following.answered
        state, error = following.state, following.error
        following.take(outcome, now)
        self._announcer.heard(following, state)
        return Heard(
            counts=(following.guarded.good, following.answered) != (good, answered),
            shows=(following.state, following.error) != (state, error),
        )

    def elapse(self, now: float) -> bool:
        """Let time pass for held answers; return whether one counts now."""
        before = [(following, following.guarded) for following in self if following.deadline is not None]
        for following, _ in before:
            following.elapse(now)
        return any(following.guarded != guarded for following, guarded in before)

    @property
    def deadlines(self) -> Iterator[float]:
        """When held answers may count."""
        return (deadline for following in self if (deadline := following.deadline) is not None)

    @property
    def known(self) -> Mapping[str, Sequence[RealServer]]:
        """The real servers of each source that anything is known of."""
        return {source: following.guarded.good for source, following in self._following.items() if following.known}

    @property
    def complete(self) -> bool:
        """Whether every source has answered since the start, so that what nobody has named is nobody's."""
        return all(following.answered for following in self)

    @property
    def tried(self) -> bool:
        """Whether every source has come back with something since the start, be it a failure."""
        return all(following.answered or following.error is not None for following in self)

    @property
    def summary(self) -> str:
        """One line about all sources; the names in it are bounded, and no sign in them breaks the line."""
        waiting = [following.service.source for following in self if not following.known]
        stale = [following.service.source for following in self if following.stale]
        parts = [
            f"{len(sources)} of {len(self)} {what}: {_names(sources)}"
            for sources, what in ((waiting, "without any answer"), (stale, "served from the last known set"))
            if sources
        ]
        return "; ".join(parts) or f"following {len(self)}, all answered"

    def adopt(self, services: Iterable[Service]) -> Collection[str]:
        """Go on with these services; what is known of those that stay is kept.

        :returns: the sources that are new.
        """
        before = self._following
        self._following = {
            service.source: replace(before[service.source], service=service)
            if service.source in before
            else Following(service)
            for service in services
        }
        return self._following.keys() - before.keys()

    def seed(
        self, sources: Iterable[str], held: Mapping[str, Sequence[RealServer]], stored: Mapping[str, LastGood]
    ) -> bool:
        """Start from what was known last: what the kernel holds, else, as after a reboot, the disk.

        :param held: real servers by source.
        :param stored: by source.
        :returns: whether the disk knew what the kernel does not hold.
        """
        restored = False
        for source in sources:
            following, last = self._following[source], stored.get(source)
            if source in held:
                following.seed(held[source], last.answered if last else None)
            elif last:
                following.seed(last.servers, last.answered)
                self._announcer.restored(following)
                restored = True
        return restored

    def last_good(self, applied: Mapping[str, Sequence[RealServer]]) -> Mapping[str, LastGood]:
        """Return what was applied, with when each source last answered."""
        return {
            source: LastGood(tuple(applied[source]), following.answered_at)
            for source, following in self._following.items()
            if source in applied
        }


def _names(sources: Sequence[str]) -> str:
    names = [source.encode("unicode_escape").decode()[:_SHOWN_LENGTH] for source in sources[:_SHOWN]]
    return ", ".join([*names, *([f"and {len(sources) - _SHOWN} more"] if len(sources) > _SHOWN else [])])
