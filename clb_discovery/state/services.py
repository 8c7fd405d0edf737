"""The state of all services, and whether an outcome of a source changes any of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from clb_discovery.layout.installed import Installed, installed_servers
from clb_discovery.model.address import Address, Network
from clb_discovery.model.answer import Answer, Claim, Outcome, Refusal
from clb_discovery.model.check import Check
from clb_discovery.model.servers import Pools, Unpublished, Vip
from clb_discovery.model.service import CATALOG, MAX_SERVICES, Part, Service, vip_addresses
from clb_discovery.model.zones import Places
from clb_discovery.state import catalog
from clb_discovery.state.guard import Families
from clb_discovery.state.last_good import LastGood
from clb_discovery.state.service import Mark, ServiceState, spare
from clb_discovery.state.start import initial_states, is_of_others, recalled
from clb_discovery.text import some_of

_SHOWN: Final = 4  # sources named in one summary
_SHOWN_LENGTH: Final = 80


class Change(NamedTuple):
    """The state of one part of a service before and after an event."""

    before: ServiceState
    now: ServiceState
    released: tuple[Change, ...] = ()
    """Other parts of the same pools whose removals are no longer held, because this part can serve."""

    @property
    def counts(self) -> bool:
        """Whether the kernel's maps may have to change."""
        return self.before.counted != self.now.counted or bool(self.released)

    @property
    def shows(self) -> bool:
        """Whether `status` has to change: the health of the source, or its reason."""
        return self.before.shown != self.now.shown


class ServiceTable:
    """One `ServiceState` for each part of each service, configured or of a catalog, by the name of its source.

    The table also remembers which part of each state was published last.
    """

    def __init__(
        self, services: Sequence[Service], max_services: int = MAX_SERVICES, real_ranges: Sequence[Network] = ()
    ) -> None:
        """Start with nothing known of these services.

        :param max_services: at most so many services of a catalog are followed.
        :param real_ranges: networks of real servers; if empty, all except the loopback.
        """
        self._services = services
        self._max_services = max_services
        self._real_ranges = real_ranges
        self._vips = vip_addresses(services)
        """The addresses of all virtual servers, which are no real servers: of a catalog those that were published. What
        a service claims beyond these may be refused, and the address may be that of a real server of another."""
        self._states: dict[str, ServiceState] = {}
        self._sets: dict[str, LastGood] = {}
        """The set of each state of which anything is known, without the time of the answer: the same object for as long
        as it is equal."""
        self._marked = Counter[tuple[Mark, ...]]()
        """How many states have which marks. There may be thousands of states, and one change must not look at all."""
        self._composed = _composed(services)
        self.applied: Mapping[str, LastGood] = {}
        """The last published set of each source, without the time."""
        self._held: Mapping[str, tuple[Vip, ...]] = {}
        """Until the first publication, the VIPs that services of a catalog had when the disk was written."""
        self._late: set[str] = set()
        """Services that a catalog has listed since its first answer. Nothing is installed for them, and nothing waits
        for their answers: otherwise a client that registers one after the other would keep all others waiting."""
        self._departed: set[str] = set()
        """The names of pools whose services had answered, until all others are known: a reload may have given a service
        other parts, and so another name of its pools."""
        self._begun: set[str] = set()
        """Sources whose servers have been published, or were at the start."""
        self._replacing: set[str] = set()
        """The names of pools of several parts that are not published yet, while other sources serve their VIPs."""
        self._summary: str | None = None
        for state in initial_states(services):
            self._put(state)

    def __iter__(self) -> Iterator[ServiceState]:
        return iter(self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    @property
    def sources(self) -> Collection[str]:
        """The names of all sources to follow."""
        return self._states.keys()

    def _put(self, state: ServiceState) -> None:
        """Replace the state of a service. No other code does."""
        source = state.source
        if source in self._states:
            self._marked[self._states[source].marks] -= 1
        self._marked[state.marks] += 1
        self._states[source] = state
        if state.known:
            self._sets[source] = _last_good(state, self._sets.get(source))
        else:
            self._sets.pop(source, None)
        self._summary = None

    # Events

    def hear(self, source: str, outcome: Outcome, now: float, at: datetime) -> Change | None:
        """Take an outcome, as `ServiceState.after`; services that a catalog lists are followed from now on.

        :returns: None if the source is not followed any more.
        """
        before = self._states.get(source)
        if before is None:
            return None
        networks, vips = self._real_ranges, self._vips
        self._put(before.after(outcome, now, at, networks, vips, spare=lambda: self._spare(self._others(before))))
        released = tuple(self._release(self._others(before))) if self._has(Mark.HELD) else ()
        if self._states[source].listed:
            joined = self._join()
            self._late |= joined if before.answered else set()
        return Change(before, self._states[source], released)

    def _parts(self, service: Service) -> list[ServiceState]:
        return [self._states[part.source] for part in service.parts]

    def _others(self, state: ServiceState) -> list[ServiceState]:
        """Return the other parts of the same pools."""
        others = self._parts(state.service) if len(state.service.parts) > 1 else ()
        return [one for one in others if one.place != state.place]

    def _spare(self, parts: Sequence[ServiceState]) -> Families:
        """Return the families in which one of these parts can serve now: one that waits for others is in no pool."""
        return spare([part for part in parts if not self._waits(part)], self._real_ranges, self._vips)

    def _release(self, parts: Iterable[ServiceState]) -> Iterator[Change]:
        """End the holds of removals from parts of pools in which another part can serve now."""
        for state in parts:
            if state.guarded.held:
                released = state.released(self._spare(self._others(state)))
                if released is not state:
                    self._put(released)
                    yield Change(state, released)

    def _join(self) -> set[str]:
        """Follow the services that the catalog lists, as far as there is room; return the sources that are new."""
        listed = self._states[CATALOG].listed
        joined = catalog.joined(self._services, listed, self._states, self._max_services)
        for state in joined.values():
            self._put(state)
        self._put(self._states[CATALOG]._replace(unfollowed=catalog.unfollowed(self._states)))
        return set(joined)

    @property
    def too_many(self) -> str | None:
        """Why services of the catalog are not followed, and how to fix it; None if all are."""
        listing = self._states.get(CATALOG)
        if listing is None or not listing.unfollowed:
            return None
        return f"more may opt in than --max-services {self._max_services} allows; raise it, or name them with --service"

    def leave(self) -> bool:
        """Leave services that no longer opt in; return whether there was one."""
        left = catalog.left(self._states) if CATALOG in self._states else []
        for source in left:
            self._marked[self._states.pop(source).marks] -= 1
            self._sets.pop(source, None)
            self._summary = None
        self._departed.update(left)
        self._late -= set(left)
        if left and self._states[CATALOG].unfollowed:
            self._late |= self._join()
        return bool(left)

    def due(self, now: float) -> Collection[str]:
        """Return the sources to query at once, because an answer may confirm a removal: each of them once."""
        due = [state for state in self._with(Mark.DUE_LATER) if state.deadline is not None and now >= state.deadline]
        for state in due:
            self._put(state._replace(hastened=now))
        return [state.source for state in due]

    @property
    def deadlines(self) -> Iterator[float]:
        """The times when sources will be due."""
        return (state.deadline for state in self._with(Mark.DUE_LATER) if state.deadline is not None)

    def _has(self, mark: Mark) -> bool:
        """Tell whether any state has a mark."""
        return any(number and mark in marks for marks, number in self._marked.items())

    def _with(self, mark: Mark) -> Iterator[ServiceState]:
        """Yield the states with a mark, in their order."""
        return (state for state in self if mark in state.marks) if self._has(mark) else iter(())

    def adopt(
        self, services: Sequence[Service], max_services: int = MAX_SERVICES, real_ranges: Sequence[Network] = ()
    ) -> Collection[str]:
        """Go on with these services, and keep the state of those that stay; return the sources that are new."""
        before, sets = self._states, self._sets
        self._services, self._max_services, self._real_ranges = services, max_services, real_ranges
        self._vips |= vip_addresses(services)
        kept = {
            new.source: before[new.source].reconfigured(new.service, new.place) if new.source in before else new
            for new in initial_states(services)
        }
        staying = [state.service.name for state in before.values() if state.from_catalog]
        for source, state in catalog.joined(services, staying, kept, max_services).items():
            kept[source] = before[source]._replace(service=state.service)
        self._departed |= {state.service.source for state in before.values() if state.answered}
        self._late = {source for source in self._late & kept.keys() if kept[source].from_catalog}
        self._states, self._sets, self._marked, self._composed = {}, {}, Counter(), _composed(services)
        self._begun &= kept.keys()
        for source, state in kept.items():
            if source in sets:
                self._sets[source] = sets[source]
            self._put(state._replace(hastened=None))  # those that follow it know nothing of it
        return kept.keys() - before.keys()

    def recall(
        self, sources: Iterable[str], installed: Installed, stored: Mapping[str, LastGood]
    ) -> Sequence[ServiceState]:
        """Start as `seed` from the last known sets, and follow the services of a catalog that were followed."""
        found = catalog.restored(self._services, installed, stored, self._states, self._max_services)
        for state in found.values():
            self._put(state)
        self._held = {source: last.opt_in.vips for source, last in stored.items() if source in found and last.opt_in}
        claiming = catalog.claimed(found.values())
        self._vips |= vip_addresses(claiming)
        servers = installed_servers(installed, [*self._services, *claiming])
        self._replacing = {service.source for service in self._composed if is_of_others(service, installed)}
        if found:
            servers[CATALOG] = Pools()
        return self.seed([*sources, *found], servers, stored)

    @property
    def configured(self) -> Mapping[str, Answer]:
        """The answers of static parts, by source, which the configuration has itself.

        The table may have others for them: in another configuration, another list had the name.
        """
        return {state.source: Answer(state.part.servers) for state in self if state.part.is_static}

    def seed(
        self, sources: Iterable[str], installed: Mapping[str, Pools], stored: Mapping[str, LastGood]
    ) -> Sequence[ServiceState]:
        """Start from the last known sets: those of the kernel, else, as after a reboot, those of the disk.

        :param installed: real servers by source.
        :returns: the states that come from the disk alone.
        """
        restored = []
        for source in sources:
            found = recalled(self._states[source], installed, stored)
            if found:
                self._begun.add(source)
                self._put(found.state)
                restored += [found.state] if found.only_on_disk else []
        return restored

    def refuse(
        self,
        words: Mapping[str, Sequence[Refusal]],
        servers: Mapping[str, Sequence[Refusal]],
        unpublished: Iterable[Unpublished] = (),
        remarks: Mapping[str, str] = MappingProxyType({}),
    ) -> Sequence[Change]:
        """Note the parts of answers that were not published; return the services whose state has changed.

        :param words: registrations of services of a catalog that are not applied, by source.
        :param servers: real servers of all services that are not used, by source.
        :param unpublished: virtual servers of all services that there is no room for.
        :param remarks: how pools differ from the answers, by the names of the pools. As virtual servers, pools belong
            to all parts of a service; the first one shows them.
        """
        without_room: defaultdict[str, list[Unpublished]] = defaultdict(list)
        for one in unpublished:
            without_room[one.source].append(one)
        if not (words or servers or without_room or remarks or self._has(Mark.OBJECTED)):
            return []
        changes = []
        for source, before in self._states.items():
            pool = before.service.source if before.place == 0 else None
            now, lacking = tuple(servers.get(source, ())), tuple(without_room.get(pool, ())) if pool else ()
            remark = remarks.get(pool) if pool else None
            refused = tuple(words.get(source, ())) if before.from_catalog else before.refused
            if (before.rejected, before.unpublished, before.refused, before.remark) != (now, lacking, refused, remark):
                after = before._replace(rejected=now, unpublished=lacking, refused=refused, remark=remark)
                changes.append(Change(before, after))
        for change in changes:
            self._put(change.now)
        return changes

    # Publication

    @property
    def known(self) -> Mapping[str, LastGood]:
        """The served set of each source, without the time: the same object for as long as it is equal.

        Parts of a pool wait for those that are used before them: a last resort that is there at once, such as a static
        one, would otherwise have all connects until the first answer. All of them wait while other sources serve their
        VIPs.
        """
        if not (self._has(Mark.UNTRIED) or self._has(Mark.OFF) or self._replacing):
            return dict(self._sets)
        return {source: last for source, last in self._sets.items() if not self._waits(self._states[source])}

    def _waits(self, state: ServiceState) -> bool:
        """Tell whether a part follows one that has neither servers nor an outcome yet.

        One that was published waits for nothing, unless it is switched off: then it may have had no connects.
        """
        if len(state.service.parts) == 1:
            return False
        if state.service.source in self._replacing and not self._can_replace(state.service):
            return True
        return (state.is_off or state.source not in self._begun) and not self._is_next(state)

    def _is_next(self, state: ServiceState) -> bool:
        """Tell whether all parts that are used before a part have servers or an outcome.

        For one that is switched off, a failure of those beside it is not enough: it is no last resort.
        """
        before = [one for one in self._parts(state.service) if _place_in_line(one.part) < _place_in_line(state.part)]
        beside = [one for one in before if one.part.priority == state.part.priority]
        return all(one.is_tried for one in before) and all(one.known or one.answered for one in beside)

    def _can_replace(self, service: Service) -> bool:
        """Tell whether its own pools may replace those that other sources have left: they would not be worse.

        One of its parts served before and still can, and waits for no new one that is used before it: otherwise a
        standby would have all connects until the first answer of that one. Or every part has servers or an outcome, and
        they are not all of failures and empty answers. Servers of parts that are switched off do not count.
        """
        parts = self._parts(service)
        serving = [part for part in parts if not part.is_off and any(part.serves(self._real_ranges, self._vips))]
        if any(part.source in self._begun and self._is_next(part) for part in serving):
            return True
        return all(part.is_tried for part in parts) and bool(
            serving or all(part.known or part.answered for part in parts)
        )

    def places(self, known: Mapping[str, LastGood]) -> Mapping[str, Places]:
        """Return the places of the members of each of these sources; nothing if no service follows zones."""
        return {source: last.places for source, last in known.items()} if self._has(Mark.ZONED) else {}

    @property
    def divided(self) -> frozenset[str]:
        """The sources of pools that follow zones whose servers have the tiers and weights of the kernel."""
        return frozenset(state.source for state in self._with(Mark.ZONED) if state.numbered)

    @property
    def claims(self) -> Sequence[Claim]:
        """The claims of services of a catalog."""
        return catalog.claims(self._with(Mark.FROM_CATALOG), self._held)

    def apply(
        self,
        known: Mapping[str, LastGood],
        pending: Collection[str],
        vips: Mapping[str, Iterable[Vip]] = MappingProxyType({}),
        addresses: frozenset[Address] | None = None,
    ) -> None:
        """Note the sets that were published.

        :param known: that of the moment when the publication began.
        :param pending: names of pools of which a part is not published yet; for their sources the previous set counts.
        :param vips: those of services of a catalog that have not got all that they claim, by source.
        :param addresses: those of all virtual servers; None for the same as before.
        """
        if addresses is not None:
            self._vips = addresses
        if vips:
            refused = {source: catalog.granted(known[source], own) for source, own in vips.items() if source in known}
            known = {**known, **refused}
        if not pending:
            self._held = {}
            if self.is_complete:
                self._departed.clear()
        waiting = {state.source for state in self if state.service.source in pending} if pending else set()
        if waiting:
            before = {source: self.applied[source] for source in waiting & self.applied.keys()}
            known = {source: last for source, last in known.items() if source not in waiting} | before
        self.applied = known
        self._begun.update(known)
        if self._replacing:
            self._replacing -= {state.service.source for state in self if state.source in known}

    @property
    def last_good(self) -> Mapping[str, LastGood]:
        """The last published set of each source, with the time of its last answer."""
        return {
            source: self.applied[source]._replace(answered=state.answered_at)
            for source, state in self._states.items()
            if source in self.applied
        }

    @property
    def is_published(self) -> bool:
        """Whether something was published of every known set."""
        return self.applied.keys() >= self.known.keys()

    @property
    def is_served(self) -> bool:
        """Whether everything is served; of a catalog, everything but registrations that nothing can use.

        One part of a service is enough.
        """
        served = self._states.keys() <= self.applied.keys()
        return served or self._all(lambda state: state.source in self.applied or state.useless)

    @property
    def is_complete(self) -> bool:
        """Whether every service has had an answer since the start, so that a virtual server without one can go."""
        complete = not self._has(Mark.UNANSWERED) and not self._replacing  # then no part waits for another one
        return complete or self._all(lambda state: state.answered and not self._waits(state))

    @property
    def heard(self) -> AbstractSet[str]:
        """The names of pools whose services have answered since the start: what they do not claim any more has no use.

        None while a catalog has not answered, because any of its services may claim any virtual server.
        """
        if CATALOG in self._states and not self._states[CATALOG].answered:
            return frozenset()
        followed = {state.service.source for state in self}
        return {state.service.source for state in self if state.answered} | (self._departed - followed)

    def _all(self, holds: Callable[[ServiceState], bool]) -> bool:
        """Tell whether something holds for a part of each service, except those that a catalog has listed lately."""
        lacking = {state.service.source for state in self if not holds(state) and state.source not in self._late}
        parts = (state for state in self if state.service.source in lacking) if lacking else ()
        return lacking == {state.service.source for state in parts if state.source in self._late or holds(state)}

    @property
    def is_tried(self) -> bool:
        """Whether every source has come back with something since the start, be it a failure."""
        return not self._has(Mark.UNTRIED)

    @property
    def lost(self) -> Sequence[ServiceState]:
        """The parts that fail, of services without a part that does not; answers that nothing can use do not count."""
        failing = [state for state in self._with(Mark.FAILING) if not state.unusable]
        working = {state.service.source for state in self if state.error is None} if failing else ()
        return [state for state in failing if state.service.source not in working]

    @property
    def checks(self) -> Mapping[str, Check]:
        """How the real servers of services are checked, by the names of their pools."""
        services = (state.service for state in self._with(Mark.CHECKED))
        return {service.source: service.check for service in services if service.check}

    @property
    def zoned(self) -> Collection[str]:
        """The names of pools that follow zones."""
        return {state.service.source for state in self._with(Mark.ZONED)}

    # For people

    @property
    def documents(self) -> Sequence[Mapping[str, Any]]:
        """The sources of `status --json`."""
        return [state.document for state in self]

    @property
    def composed(self) -> Sequence[Service]:
        """The services whose pools have several parts."""
        return self._composed

    @property
    def unpublished(self) -> Sequence[Mapping[str, Any]]:
        """The services of `status --json` that there is no room for."""
        return [
            {
                "service": state.service.name,
                "source": state.service.source,
                "virtual_servers": len(state.unpublished),
                "reason": state.unpublished[0].reason,
            }
            for state in self._with(Mark.UNPUBLISHED)
        ]

    @property
    def summary(self) -> str:
        """One line about all sources; names in it are bounded and escaped."""
        if self._summary is None:
            some = [*self._with(Mark.UNCONFIRMED)]
            groups = {
                "without any answer": [state for state in some if not (state.known or state.answered)],
                "with answers of no use": [state for state in some if state.useless],
                "served from the last known set": [state for state in some if state.stale],
            }
            parts = [f"{len(ones)} of {len(self)} {what}: {_names(ones)}" for what, ones in groups.items() if ones]
            self._summary = "; ".join(parts) or f"following {len(self)}, all answered"
        return self._summary


def _composed(services: Iterable[Service]) -> Sequence[Service]:
    return [service for service in services if len(service.parts) > 1]


def _place_in_line(part: Part) -> tuple[int, bool]:
    """Return the place of a part in the order in which parts are used; with a share of 0 after those beside it."""
    return part.priority, part.share == 0


def _last_good(state: ServiceState, before: LastGood | None) -> LastGood:
    """Return the served set of a state; if it is equal to the previous one, it is the same object."""
    good = state.guarded.good
    if before and before.servers == good:
        good = before.servers
    found = LastGood(good, None, state.opt_in, state.guarded.identities, state.places)
    return before if before and before == found else found


def _names(states: Sequence[ServiceState]) -> str:
    names = some_of([state.source for state in states], _SHOWN)
    return ", ".join(name.encode("unicode_escape").decode()[:_SHOWN_LENGTH] for name in names)
