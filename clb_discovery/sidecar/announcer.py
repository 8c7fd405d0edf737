"""The log lines of the sidecar: one for each change, and none without a change.

A trouble that repeats is logged at once, and then at growing intervals with a count. Of a burst of the same event
only the first few lines are logged, except for changes of pools: the log is their history.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from clb_discovery.datapath.sockets.closing import Destroyed
from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import format_endpoint
from clb_discovery.model.answer import Refusal, by_reason
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Endpoint, RealServer, Unpublished
from clb_discovery.model.service import Service
from clb_discovery.publication.changes import changes, setting_changes
from clb_discovery.publication.plan import Plan
from clb_discovery.repeats import Repeats
from clb_discovery.sidecar.burst_log import BurstLog
from clb_discovery.sidecar.health.lines import Lines
from clb_discovery.state.service import ServiceState
from clb_discovery.text import some_of, timestamp

_SHOWN: Final = 8  # real servers named in one line
_LEFT_OUT: Final = 16  # most lines about members of one answer that cannot be used
_REFUSALS: Final = 32  # most lines about real servers that are rejected at the same time, over all services

_log = structlog.stdlib.get_logger()


class Announcer:
    """Remembers what it logged, so that it does not repeat it all the time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # returns seconds, and does not go backwards
        self._log = BurstLog(clock)
        self.servers = Lines(self._log, clock)
        """Of servers that are ejected or return."""
        self._rejected: Mapping[str, Sequence[Refusal]] = {}
        self._unpublished: frozenset[str] = frozenset()  # sources
        self._overlaps: Sequence[Overlap] = ()
        self._nameless: Mapping[str, str] = {}
        self._repeats = Repeats()
        self._holds: set[str] = set()  # sources whose held removals were logged
        self._troubles: dict[str, str] = {}  # troubles that go on and were logged, each with its last reason
        self._present: set[str] = set()  # troubles that were there the last time, logged or not
        self._over: set[str] = set()  # troubles whose end is the last line about them

    def trouble(self, what: str, reason: str | None, **more: object) -> None:
        """Report a trouble, or with None as its reason that there is none.

        :param reason: the same text as long as the trouble is the same: another text is logged at once.
        :param more: further fields of the line, which may change meanwhile.
        """
        if reason is None:
            self._troubles.pop(what, None)
            self._present.discard(what)
        else:
            self._say(self._log.error, what, reason, more)

    def flush(self) -> None:
        """Log how many lines the bursts that are over have lacked; for the main loop."""
        self._log.flush()

    @contextmanager
    def trying(self, what: str, *errors: type[Exception]) -> Iterator[None]:
        """Report one of these errors in the block as a trouble, and go on after the block."""
        try:
            yield
        except errors as error:
            self.trouble(what, str(error))
        else:
            self.trouble(what, None)

    def heard(self, before: ServiceState, now: ServiceState) -> None:
        """Report the change that an outcome of a source made."""
        source = now.source
        if now.error:
            self._say(self._log.warning, "source fails", now.error, source=source)
        elif self._ended("source fails", source):
            self._log.info("source answers again", source=source)
        self._held(before, now)
        self._left_out(before, now)
        self._part(before, now)
        self._noted(before, now)
        self.refused(now.service.name, before.refused, now.refused)

    def _held(self, before: ServiceState, now: ServiceState) -> None:
        """Report which members are held when that begins, and whether each went or came back when it ends."""
        source, was, absent = now.source, before.guarded.absent, now.guarded.absent
        if absent == was:
            return
        names = _endpoint_names(absent.keys() - was.keys())
        if names and self._is_new("removal held", source, *names):
            (removed, of), seconds = now.guarded.withheld, now.policy.hold
            self._log.warning("removal held", source=source, servers=names, removed=removed, of=of, seconds=seconds)
            self._holds.add(source)
        ended = was.keys() - absent.keys()
        if ended and source in self._holds:
            back = ended & {server.endpoint for server in now.guarded.good}
            removed_names, back_names = _endpoint_names(ended - back), _endpoint_names(back)
            self._log.info("removal no longer held", source=source, removed=removed_names, back=back_names)
            if not absent:
                self._holds.remove(source)

    def _noted(self, before: ServiceState, now: ServiceState) -> None:
        """Report a remark on an answer when it appears; one about a part that cannot be looked up, while that lasts."""
        source = now.source
        if now.error:  # the remark is on the previous answer
            return
        if now.note and now.incomplete:
            self._say(self._log.warning, "answer is incomplete", now.note, source=source)
            return
        if self._ended("answer is incomplete", source):
            self._log.info("answer is complete again", source=source)
        if now.note and now.note != before.note and self._is_new("note", source, now.note):
            self._log.warning("answer has a caveat", source=source, note=now.note)

    def _part(self, before: ServiceState, now: ServiceState) -> None:
        """Report that one of several parts of a pool has lost its last real server, or has some again."""
        service, source, servers = now.service.name, now.source, len(now.guarded.good)
        if len(now.service.parts) == 1 or not before.known:
            return
        thing = f"part has no real servers {source}"
        if not servers:
            if (before.guarded.good or thing in self._over) and self._due(thing) is not None:
                self._log.warning("part has no real servers", service=service, source=source)
        elif self._ended("part has no real servers", source):
            self._log.info("part has real servers again", service=service, source=source, servers=servers)

    def _left_out(self, before: ServiceState, now: ServiceState) -> None:
        """Report members that cannot be used when they appear: a few, and how many more."""
        if now.left_out == before.left_out:
            return
        known = frozenset(before.left_out)
        service, new = now.service.name, [item for item in now.left_out if item not in known]
        for item in new[:_LEFT_OUT]:
            if self._is_new("member left out", service, str(item)):
                self._log.warning("member left out", service=service, member=item.value, reason=item.reason)
        if len(new) > _LEFT_OUT and self._is_new("more members left out", service):
            self._log.warning("more members left out", service=service, count=len(new) - _LEFT_OUT)

    def _is_new(self, what: str, of: str = "", *more: str) -> bool:
        """Tell whether something has not happened for a while; if it comes and goes, it is logged rarely.

        :param of: the source or service.
        """
        return self._repeats.happened(f"{what} {of}", " ".join(more), self._clock()) is not None

    def _say(
        self, log: Callable[..., None], what: str, reason: str, more: Mapping[str, object] | None = None, **of: str
    ) -> None:
        """Log a trouble of something, which `of` or `what` names, if it is due."""
        times = self._due(" ".join([what, *of.values()]), reason)
        if times is not None:
            log(what, **of, **(more or {}), error=reason, **({"times": times} if times else {}))

    def _due(self, thing: str, reason: str = "") -> int | None:
        """Count a trouble; return how often it was there since the last line about it, None if it is logged later.

        If its end was logged since, and it is there twice in a row, it does not wait, because the last line would be
        wrong for up to an hour. One that comes and goes each time stays rare.
        """
        is_back = thing in self._over and thing in self._present
        self._present.add(thing)
        times = self._repeats.happened(thing, reason, self._clock(), soon=is_back)
        if times is not None:
            self._troubles[thing] = reason
            self._over.discard(thing)
        return times

    def _ended(self, what: str, of: str) -> bool:
        """Take note that a trouble is over; tell whether it was logged, so that its end is to be logged, too."""
        thing = f"{what} {of}"
        self._present.discard(thing)
        if self._troubles.pop(thing, None) is None:
            return False
        self._over.add(thing)
        return True

    def restored(self, now: ServiceState) -> None:
        """Report a last known set from the disk, which is served until the source answers."""
        source, servers = now.source, len(now.guarded.good)
        self._log.warning(
            "serving the last known good set", source=source, servers=servers, since=timestamp(now.last_success)
        )

    def published(self, before: Installed, carried_out: Plan) -> None:
        """Report the pools that changed."""
        log = _log.bind()
        for vip in carried_out.changed:
            old, new = before.virtual.get(vip), carried_out.result.virtual[vip]
            pool = (old.pool if old else None) or ()
            level = logging.WARNING if pool and not new.pool else logging.INFO  # from now on every connect is refused
            if (new.label and is_own(new.label.source)) or not log.is_enabled_for(level):
                continue
            difference = changes(pool, new.pool or ())
            settings = setting_changes(old, new)
            log.log(
                level,
                "pool published",
                vip=str(vip),
                service=new.label.service if new.label else None,
                change=str(difference),
                added=some_of(difference.added, _SHOWN),
                removed=some_of(difference.removed, _SHOWN),
                changed=some_of([_change(was, now) for was, now in difference.changed], _SHOWN),
                settings=[f"{name} {was} -> {now}" for name, (was, now) in settings.items()],
                servers=len(new.pool or ()),
                generation=new.generation,
            )
        for vip in carried_out.removed:
            label = before.virtual[vip].label
            _log.info("virtual server removed", vip=str(vip), service=label.service if label else None)

    def closed(self, closed: Destroyed | None) -> None:
        """Report sockets that were closed because their real server is gone, and why some may not have been."""
        if closed and closed.count:
            _log.info("sockets closed", count=closed.count)
        failures = "; ".join(sorted(closed.failures)) if closed else ""
        self.trouble("cannot close sockets of removed real servers", failures or None)

    def rejected(self, rejected: Mapping[str, Sequence[Refusal]], services: Mapping[str, Service]) -> None:
        """Report rejected real servers when they appear: a line for each service and reason, with the names of a few.

        :param rejected: by source, as `services`.
        """
        new: defaultdict[str, list[Refusal]] = defaultdict(list)
        for source, items in rejected.items():
            known = frozenset(self._rejected.get(source, ()))
            for item in items:
                if item not in known:
                    new[services[source].name].append(item)
        groups = [(name, *group) for name, items in new.items() for group in by_reason(items).items()]
        for service, reason, servers in groups[:_REFUSALS]:
            names = some_of(servers, _SHOWN)
            if self._is_new("real servers rejected", service, *names, reason):
                self._log.warning("real servers rejected", service=service, servers=names, reason=reason)
        left = sum(len(servers) for _, _, servers in groups[_REFUSALS:])
        if left and self._is_new("more real servers rejected"):
            self._log.warning("more real servers rejected", count=left)
        self._rejected = rejected

    def unpublished(self, unpublished: Sequence[Unpublished]) -> None:
        """Report services that there is no room for, and services that have room again."""
        now = {one.source: one for one in unpublished}
        for source in self._unpublished - now.keys():
            if self._ended("not published", source):
                self._log.info("published because there is room again", source=source)
        for source, one in now.items():
            self._say(self._log.error, "not published", one.reason, source=source)
        self._unpublished = frozenset(now)

    def overlaps(self, overlaps: Sequence[Overlap]) -> None:
        """Report other instances that serve VIPs of this one when they appear or change."""
        for overlap in overlaps:
            if overlap not in self._overlaps:
                self._log.warning(
                    "another instance serves the same VIP", instance=overlap.instance, reason=str(overlap)
                )
        self._overlaps = tuple(overlaps)

    def refused(self, service: str, before: Sequence[Refusal], now: Sequence[Refusal]) -> None:
        """Report registrations of a catalog's service that are not applied when they appear."""
        for item in now:
            if item not in before and self._is_new("registration rejected", service, str(item)):
                self._log.warning("registration rejected", service=service, value=item.value, reason=item.reason)

    def nameless(self, services: Mapping[str, str]) -> None:
        """Report services without a host name when they appear.

        :param services: each with the reason.
        """
        for service, reason in services.items():
            if self._nameless.get(service) != reason:
                self._log.warning("no host name for a service", service=service, reason=reason)
        self._nameless = services


def _endpoint_names(endpoints: Collection[Endpoint]) -> list[str]:
    return some_of([format_endpoint(*endpoint) for endpoint in sorted(endpoints)], _SHOWN)


def _change(was: RealServer, now: RealServer) -> str:
    shares = (("weight", was.weight, now.weight), ("priority", was.priority, now.priority))
    return " ".join([str(now), *(f"{name} {old} -> {new}" for name, old, new in shares if old != new)])
