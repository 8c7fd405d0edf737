"""The log lines of the sidecar: one for each change, saying what changed; nothing where nothing did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from clb_discovery.core.changes import changes
from clb_discovery.core.desired import Rejected
from clb_discovery.core.held import Held
from clb_discovery.core.model import RealServer, Refused
from clb_discovery.core.plan import Plan
from clb_discovery.core.selftest import SOURCE
from clb_discovery.datapath.sockets import Destroyed
from clb_discovery.following import Following, timestamp

_SHOWN: Final = 8
"""Real servers named in one line."""
_REFUSALS: Final = 32
"""Most lines about real servers that are refused at the same time, since discovery may name any number."""

_log = structlog.stdlib.get_logger()


class Announcer:
    """Remembers what it said, so that it says it once."""

    def __init__(self) -> None:
        self._rejected: frozenset[Rejected] = frozenset()
        self._nameless: frozenset[str] = frozenset()
        self._troubles: dict[str, str] = {}

    def trouble(self, what: str, reason: str | None) -> None:
        """Report what goes wrong, when it begins or its reason changes.

        :param reason: None once it is over.
        """
        if reason is None:
            self._troubles.pop(what, None)
        elif self._troubles.get(what) != reason:
            self._troubles[what] = reason
            _log.error(what, error=reason)

    @contextmanager
    def trying(self, what: str, *errors: type[Exception]) -> Iterator[None]:
        """Report what goes wrong in the block as a trouble, where it is one of these errors, and go on behind it."""
        try:
            yield
        except errors as error:
            self.trouble(what, str(error))
        else:
            self.trouble(what, None)

    def heard(self, before: Following, now: Following) -> None:
        """Report how a source's health changed."""
        source = now.service.source
        if now.error and now.error != before.error:
            _log.warning("source fails", source=source, error=now.error)
        elif before.error and not now.error:
            _log.info("source answers again", source=source)
        if now.guarded.held and not before.guarded.held:
            removed, of = now.guarded.withheld
            _log.warning("removal held", source=source, removed=removed, of=of, seconds=now.service.policy.hold)
        self.refused(now.service.name, before.refused, now.refused)

    def restored(self, now: Following) -> None:
        """Report that what is served until the source answers comes from the disk."""
        _log.warning(
            "serving the last known set",
            source=now.service.source,
            servers=len(now.guarded.good),
            since=timestamp(now.last_success),
        )

    def published(self, before: Held, carried_out: Plan) -> None:
        """Report the pools that changed."""
        for vip in carried_out.changed:
            old, new = before.virtual.get(vip), carried_out.result.virtual[vip]
            if new.label and new.label.source == SOURCE:
                continue
            difference = changes((old.pool if old else None) or (), new.pool or ())
            _log.info(
                "pool published",
                vip=str(vip),
                service=new.label.service if new.label else None,
                change=str(difference),
                added=_names(difference.added),
                removed=_names(difference.removed),
                changed=_names(difference.changed),
                servers=len(new.pool or ()),
                generation=new.generation,
            )
        for vip in carried_out.removed:
            _log.info("virtual server removed", vip=str(vip))

    def closed(self, closed: Destroyed | None) -> None:
        """Report sockets that were closed since their real server is gone, and why some may not have been."""
        if closed and closed.count:
            _log.info("sockets closed", count=closed.count)
        self.trouble(
            "cannot close sockets of removed real servers", "; ".join(sorted(closed.failures)) if closed else None
        )

    def rejected(self, rejected: Sequence[Rejected]) -> None:
        """Report real servers that may not be used, when they appear."""
        new = [item for item in rejected if item not in self._rejected]
        for item in new[:_REFUSALS]:
            _log.warning("real server refused", service=item.service, server=str(item.server), reason=item.reason)
        if len(new) > _REFUSALS:
            _log.warning("more real servers refused", count=len(new) - _REFUSALS)
        self._rejected = frozenset(rejected)

    def refused(self, service: str, before: Sequence[Refused], now: Sequence[Refused]) -> None:
        """Report what is not applied of what a service of a catalog says, when it appears."""
        for item in now:
            if item not in before:
                _log.warning("registration refused", service=service, value=item.value, reason=item.reason)

    def nameless(self, services: Sequence[str]) -> None:
        """Report services whose names cannot be host names, when they appear."""
        for service in services:
            if service not in self._nameless:
                _log.warning("no host name for a service", service=service, reason="use letters, digits and hyphens")
        self._nameless = frozenset(services)


def _names(servers: Sequence[RealServer]) -> list[str]:
    names = [str(server) for server in servers[:_SHOWN]]
    return [*names, f"and {len(servers) - _SHOWN} more"] if len(servers) > _SHOWN else names
