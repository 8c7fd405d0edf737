"""What the sidecar knows of all its services, and whether an outcome of a source changes any of that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from clb_discovery.layout.installed import Installed, installed_servers
from clb_discovery.model.address import Address, Network
from clb_discovery.model.answer import Claim, Outcome, Refusal
from clb_discovery.model.servers import RealServer, Unpublished
from clb_discovery.model.service import CATALOG, MAX_SERVICES, Service
from clb_discovery.model.usable import objection
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.state import catalog
from clb_discovery.state.guard import Servers
from clb_discovery.state.last_good import LastGood
from clb_discovery.state.service import ServiceState
from clb_discovery.text import some_of

_SHOWN: Final = 4
"""Sources named in one summary."""
_SHOWN_LENGTH: Final = 80


class Heard(NamedTuple):
    """What an outcome has changed; all false where it is what was known already."""

    counts: bool
    """Something that may change what the kernel should hold."""
    shows: bool
    """Something that only people are told: whether the source is well, or why not."""


class ServiceTable:
    """One `Following` for each service, configured or of a catalog, by the name of its source."""

    def __init__(
        self,
        services: Sequence[Service],
        announcer: Announcer,
        max_services: int = MAX_SERVICES,
        real_ranges: Sequence[Network] = (),
    ) -> None:
        """Start from knowing nothing of these services.

        :param announcer: says what becomes of sources.
        :param max_services: services of a catalog that are followed at most.
        :param real_ranges: where real servers may be; empty for anywhere but the loopback.
        """
        self._announcer = announcer
        self._real_ranges = real_ranges
        self._max_services = max_services
        self._services = services
        self._following = {service.source: ServiceState(service) for service in services}
        self._touched: set[str] = set(self._following)  # what is derived of them below may be out of date
        self._known: dict[str, LastGood] = {}
        self._servers: dict[str, Servers] = {}
        self._documents: dict[str, dict[str, Any]] = {}
        self._waiting: set[str] = set()  # that have a deadline
        self._late: set[str] = set()
        """Services that a catalog has listed since its first answer. Nothing is held of them, and nothing waits
        for their answers: a registrant of one after the other would keep all others waiting."""
        self._summary: str | None = None

    def __iter__(self) -> Iterator[ServiceState]:
        return iter(self._following.values())

    def __len__(self) -> int:
        return len(self._following)

    @property
    def sources(self) -> Collection[str]:
        """The names of all sources to follow."""
        return self._following.keys()

    def hear(self, source: str, outcome: Outcome, now: float) -> Heard:
        """Take what a source came back with; what a catalog lists is followed from now on.

        :param now: seconds on a clock that does not go backwards.
        """
        following = self._following.get(source)
        if following is None:  # it has left, and its watch is about to end
            return Heard(counts=False, shows=False)
        before = replace(following)
        following.take(outcome, now, self._is_acceptable)
        self._touch([source])
        self._announcer.heard(before, following)
        if following.listed:
            joined = self._join()
            self._late |= joined if before.answered else set()
        return Heard(counts=following.counted != before.counted, shows=following.shown != before.shown)

    def _is_acceptable(self, address: Address) -> bool:
        return objection(address, frozenset(), self._real_ranges) is None

    def _join(self) -> set[str]:
        """Follow what the catalog lists, as far as there is a place for it; return the sources that are new."""
        listing = self._following[CATALOG]
        joined = catalog.joined(self._services, listing.listed, self._following, self._max_services)
        self._following |= joined
        listing.unfollowed = catalog.unfollowed(self._following)
        self._touch([*joined, CATALOG])
        too_many = f"more opt in than --max-services {self._max_services} allows; raise it, or name them with --service"
        self._announcer.trouble("services not followed", too_many if listing.unfollowed else None)
        return set(joined)

    def leave(self) -> bool:
        """Leave services that no longer opt in; return whether there was one."""
        left = catalog.left(self._following) if CATALOG in self._following else []
        for source in left:
            del self._following[source]
        self._late -= set(left)
        self._touch(left)
        if left and self._following[CATALOG].unfollowed:
            self._late |= self._join()
        return bool(left)

    def due(self, now: float) -> Collection[str]:
        """Return the sources that have to be asked at once, since an answer may confirm a removal: each of them once.

        :param now: seconds on a clock that does not go backwards.
        """
        due = [source for source, deadline in self._deadlines() if now >= deadline]
        for source in due:
            self._following[source].hastened = True
        self._touch(due)
        return due

    @property
    def deadlines(self) -> Iterator[float]:
        """When a source will be due."""
        return (deadline for _, deadline in self._deadlines())

    def _deadlines(self) -> Iterator[tuple[str, float]]:
        deadlines = ((source, self._following[source].deadline) for source in self._waiting)
        return ((source, deadline) for source, deadline in deadlines if deadline is not None)

    @property
    def known(self) -> Mapping[str, LastGood]:
        """What counts of each source that anything is known of, without the time: as before, in the same object."""
        self._refresh()
        return dict(self._known)

    @property
    def servers(self) -> Mapping[str, Servers]:
        """The real servers that count of each source that anything is known of; as for `known`, the same objects."""
        self._refresh()
        return dict(self._servers)

    @property
    def documents(self) -> Sequence[Mapping[str, Any]]:
        """What `status --json` says about each source."""
        self._refresh()
        return [self._documents[source] for source in self._following]

    @property
    def claims(self) -> Sequence[Claim]:
        """What the services of a catalog want."""
        return catalog.claims(self)

    @property
    def complete(self) -> bool:
        """Whether every source has answered since the start, so that what nobody has named is nobody's."""
        return all(following.answered or source in self._late for source, following in self._following.items())

    @property
    def tried(self) -> bool:
        """Whether every source has come back with something since the start, be it a failure."""
        return all(following.answered or following.error is not None for following in self)

    def published(self, applied: Mapping[str, object]) -> bool:
        """Tell whether something was published of every source that anything is known of.

        :param applied: the sources of which something was published.
        """
        self._refresh()
        return applied.keys() >= self._known.keys()

    def served(self, applied: Collection[str]) -> bool:
        """Tell whether everything is served; of a catalog, everything but what nobody could serve.

        :param applied: the sources of which something was published.
        """
        return all(
            source in applied or following.useless or source in self._late
            for source, following in self._following.items()
        )

    @property
    def summary(self) -> str:
        """One line about all sources; the names in it are bounded, and no sign in them breaks the line."""
        if self._summary is None:
            self._summary = self._summarised()
        return self._summary

    def _summarised(self) -> str:
        waiting = [following.service.source for following in self if not (following.known or following.answered)]
        useless = [following.service.source for following in self if following.useless]
        stale = [following.service.source for following in self if following.stale]
        parts = [
            f"{len(sources)} of {len(self)} {what}: {_names(sources)}"
            for sources, what in (
                (waiting, "without any answer"),
                (useless, "with answers of no use"),
                (stale, "served from the last known set"),
            )
            if sources
        ]
        return "; ".join(parts) or f"following {len(self)}, all answered"

    def adopt(
        self, services: Sequence[Service], max_services: int = MAX_SERVICES, real_ranges: Sequence[Network] = ()
    ) -> Collection[str]:
        """Go on with these services; what is known of those that stay is kept.

        :param max_services: as at the beginning, like `real_ranges`.
        :returns: the sources that are new.
        """
        before, self._services = self._following, services
        self._max_services = max_services
        self._real_ranges = real_ranges
        self._following = {
            service.source: before[service.source].reconfigured(service)
            if service.source in before
            else ServiceState(service)
            for service in services
        }
        staying = [following.service.name for following in before.values() if following.from_catalog]
        for source, following in catalog.joined(services, staying, self._following, max_services).items():
            self._following[source] = replace(before[source], service=following.service)
        self._late = {source for source in self._late & self._following.keys() if self._following[source].from_catalog}
        self._touch([*before, *self._following])
        return self._following.keys() - before.keys()

    def recall(self, sources: Iterable[str], installed: Installed, stored: Mapping[str, LastGood]) -> bool:
        """Start from what was known last of these sources, and follow what was then followed of a catalog.

        :param stored: by source.
        :returns: as for `seed`.
        """
        found = catalog.restored(self._services, installed, stored, self._following, self._max_services)
        self._following |= found
        servers = installed_servers(installed, [*self._services, *catalog.claimed(found.values())])
        if found:
            servers[CATALOG] = []
        return self.seed([*sources, *found], servers, stored)

    def seed(
        self, sources: Iterable[str], installed: Mapping[str, Sequence[RealServer]], stored: Mapping[str, LastGood]
    ) -> bool:
        """Start from what was known last: what the kernel holds, else, as after a reboot, the disk.

        :param held: real servers by source.
        :param stored: by source.
        :returns: whether the disk knew what the kernel does not hold.
        """
        restored = False
        for source in sources:
            following, last = self._following[source], stored.get(source)
            identities = last.identities if last else {}
            if source in installed:
                following.seed(installed[source], last.answered if last else None, identities)
            elif last:
                following.seed(last.servers, last.answered, identities)
                self._announcer.restored(following)
                restored = True
            self._touch([source])
        return restored

    @property
    def unpublished(self) -> Sequence[Mapping[str, Any]]:
        """What `status --json` says about services that there is no room for."""
        return [
            {
                "service": following.service.name,
                "source": source,
                "virtual_servers": len(following.unpublished),
                "reason": following.unpublished[0].reason,
            }
            for source, following in self._following.items()
            if following.unpublished
        ]

    def refuse(
        self,
        words: Mapping[str, Sequence[Refusal]],
        servers: Mapping[str, Sequence[Refusal]],
        unpublished: Iterable[Unpublished] = (),
    ) -> None:
        """Let every source know, and say, what is not applied of what it says.

        :param words: of services of a catalog, by source.
        :param servers: real servers of all services, by source.
        :param unpublished: what there is no room for, of all services.
        """
        without_room: defaultdict[str, list[Unpublished]] = defaultdict(list)
        for one in unpublished:
            without_room[one.source].append(one)
        for source, following in self._following.items():
            now = tuple(servers.get(source, ()))
            lacking = tuple(without_room[source]) if source in without_room else ()
            if following.rejected != now or following.unpublished != lacking:
                following.rejected = now
                following.unpublished = lacking
                self._touch([source])
            if following.from_catalog:
                refused = tuple(words.get(source, ()))
                self._announcer.refused(following.service.name, following.refused, refused)
                if following.refused != refused:
                    following.refused = refused
                    self._touch([source])

    def last_good(self, applied: Mapping[str, LastGood]) -> Mapping[str, LastGood]:
        """Return what was applied, with when each source last answered."""
        return {
            source: applied[source]._replace(answered=following.answered_at)
            for source, following in self._following.items()
            if source in applied
        }

    def _touch(self, sources: Iterable[str]) -> None:
        """Note whose state may have changed."""
        self._summary = None
        for source in sources:
            following = self._following.get(source)
            if following and following.deadline is not None:
                self._waiting.add(source)
            else:
                self._waiting.discard(source)
            self._touched.add(source)

    def _refresh(self) -> None:
        """Derive again what follows from state that has changed: with thousands of services most of it has not."""
        for source in self._touched:
            following = self._following.get(source)
            if following is None:
                self._documents.pop(source, None)
            else:
                self._documents[source] = following.document()
            if following is None or not following.known:
                self._known.pop(source, None)
                self._servers.pop(source, None)
                continue
            guarded, before = following.guarded, self._servers.get(source)
            good = guarded.good if before is None or before != guarded.good else before
            last = LastGood(good, None, following.claims, guarded.identities)
            if self._known.get(source) != last:
                self._known[source] = last
                self._servers[source] = good
        self._touched.clear()


def _names(sources: Sequence[str]) -> str:
    return ", ".join(name.encode("unicode_escape").decode()[:_SHOWN_LENGTH] for name in some_of(sources, _SHOWN))
