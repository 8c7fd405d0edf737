"""The state of one service: the health of its source, and the real servers that the guard accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import cached_property
from itertools import compress
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from clb_discovery.model.address import Address, Network, is_ipv4
from clb_discovery.model.answer import (
    MAX_VIPS,
    Answer,
    Claimed,
    Failure,
    Listing,
    OptIn,
    Outcome,
    Refusal,
    rejections,
)
from clb_discovery.model.servers import Endpoint, Pools, Protocol, RealServer, Unpublished, Vip
from clb_discovery.model.service import Part, RemovalPolicy, Service, consul_objection, vip_addresses
from clb_discovery.model.usable import objection
from clb_discovery.model.zones import NO_PLACES, Places
from clb_discovery.state import guard
from clb_discovery.state.guard import NO_SPARE, Families, Guarded, Identities
from clb_discovery.text import some_of, timestamp

STATES: Final = ("fresh", "retrying", "held")
"""The values of `ServiceState.state`."""
_SHOWN: Final = 4  # refusals named in one reason
_LONGEST: Final = 80  # characters shown of a name


class Mark(Enum):
    """What few parts have at a time. A table counts them, and looks for them only if there are any."""

    FROM_CATALOG = auto()
    CHECKED = auto()
    ZONED = auto()
    """The pools of its service follow zones."""
    HELD = auto()
    """A removal is held."""
    DUE_LATER = auto()
    """It has a deadline."""
    OFF = auto()
    """It is switched off."""
    UNTRIED = auto()
    """Its source has not come back with anything since the start."""
    UNANSWERED = auto()
    FAILING = auto()
    UNCONFIRMED = auto()
    """Nothing is known of it, it is useless, or stale."""
    UNPUBLISHED = auto()
    OBJECTED = auto()
    """A part of its answer was not published as it is."""

    __hash__ = object.__hash__  # the hash of an enumeration is slower


class _Fields(NamedTuple):
    """The fields of `ServiceState`. A start replaces thousands of states, and data classes take four times as long."""

    service: Service
    place: int = 0
    """The position of the part in the list of the service."""
    guarded: Guarded = Guarded()
    absent_since: datetime | None = None
    """When the first of the absent members and claims that stay became absent."""
    hastened: float | None = None
    """When the source was told to query at once; None if nothing asked for after that has to come."""
    answered: bool = False
    """Whether the source has answered since the start."""
    known: bool = False
    """Whether there is anything to serve: an answer, or a set that the kernel or the disk held at the start."""
    last_success: datetime | None = None
    """When the source last answered, including before the start."""
    error: str | None = None
    errors: int = 0
    """How often the source failed."""
    refused: tuple[Refusal, ...] = ()
    """Registrations of the service in a catalog that are not applied."""
    rejected: tuple[Refusal, ...] = ()
    """Real servers of the answer that are not used."""
    left_out: tuple[Refusal, ...] = ()
    """Members of the last answer that cannot be used at all."""
    note: str | None = None
    """A remark for people about the last answer."""
    incomplete: bool = False
    """Whether a part of the last answer could not be looked up, so that previous members stay."""
    unpublished: tuple[Unpublished, ...] = ()
    """Virtual servers that there is no room for."""
    remark: str | None = None
    """How the pools differ from the answers of the parts."""
    places: Places = NO_PLACES
    """The zones of the members that count and of those that are out, if zones are needed."""
    listed: frozenset[str] = frozenset()
    """Of a catalog: the names of services that may opt in."""
    unfollowed: tuple[str, ...] = ()
    """Of a catalog: the names that are not followed, because there are too many."""
    from_catalog: bool = False
    """Whether the service is followed only for as long as it opts in, and has only the VIPs that it claims."""
    opt_in: OptIn | None = None
    """Of a service from a catalog: the opt-in that counts, by which it has virtual servers; None once it has left."""
    unclaimed: Mapping[Claimed, float] = MappingProxyType({})
    """The claims of `opt_in` that stay although the last answer lacks them, with the time of the first such answer."""
    leaving: bool = False
    """Of a service from a catalog: whether it no longer opts in."""
    unusable: bool = False
    """Of a service from a catalog: whether its last answer was unusable, so that another query does not help."""
    numbered: bool = False
    """Whether its servers have numbers of tiers as priorities, as in a composed pool, until its source names any."""


class ServiceState(_Fields):
    """One part of a service and its source at one moment. Values that are needed often are computed once."""

    @property
    def part(self) -> Part:
        """The part of the service."""
        return self.service.parts[self.place]

    @property
    def is_off(self) -> bool:
        """Whether the part is switched off, so that it takes nothing over."""
        return self.service.is_off(self.part)

    @property
    def source(self) -> str:
        """The name of the source."""
        return self.service.parts[self.place].source

    @property
    def policy(self) -> RemovalPolicy:
        """The policy for removals."""
        return self.service.policy_of(self.part)

    def seeded(
        self,
        servers: Pools,
        answered: int | None,
        identities: Identities,
        places: Places = NO_PLACES,
        *,
        numbered: bool = False,
    ) -> ServiceState:
        """Return the state of a start, before the source has answered.

        :param servers: those that the kernel or the disk holds for the service.
        :param answered: when its source last answered, in seconds since 1970, if known.
        :param identities: the known ones; those of other endpoints are ignored.
        :param places: those that the disk has.
        :param numbered: whether the servers have numbers of tiers for priorities.
        """
        last_success = None if answered is None else datetime.fromtimestamp(answered, UTC)
        guarded = guard.seed(servers, identities)
        return self._replace(guarded=guarded, known=True, last_success=last_success, places=places, numbered=numbered)

    def after(  # noqa: PLR0913 - all that the state after an outcome depends on
        self,
        outcome: Outcome,
        now: float,
        at: datetime,
        real_ranges: Sequence[Network] = (),
        vips: frozenset[Address] | None = None,
        *,
        spare: Callable[[], Families] = lambda: NO_SPARE,
    ) -> ServiceState:
        """Return the state after an outcome of the source.

        If a service from a catalog no longer opts in, all of its members are absent.

        :param now: seconds on a clock that does not go backwards.
        :param at: the same moment in UTC.
        :param real_ranges: networks of real servers; if empty, all except the loopback.
        :param vips: the addresses of all VIPs, which are no real servers; None for those of the service alone.
        :param spare: returns the families in which another part of the pool can serve.
        """
        if isinstance(outcome, Answer) and self._is_unreadable(outcome):
            first = str(outcome.left_out[0]) if outcome.left_out else outcome.note or "no address of any can be read"
            outcome = Failure(f"no real server can be used: {first}", unusable=True)
        if isinstance(outcome, Failure):
            # A registration that nothing can use must not keep the sidecars of all hosts from being ready.
            unusable = outcome.unusable and self.from_catalog
            answered, errors = self.answered or unusable, self.errors + 1
            return self._replace(
                error=outcome.reason, errors=errors, unusable=unusable, answered=answered, hastened=None
            )
        if isinstance(outcome, Listing):
            new = _with_listing(outcome)
        else:
            new = _with_answer(self, outcome, now, at, self.usable(real_ranges, vips), spare=spare)
            new["hastened"] = self.hastened if self.hastened is not None and outcome.asked < self.hastened else None
        return self._replace(**new, error=None, unusable=False, answered=True, known=True, last_success=at)

    def _is_unreadable(self, answer: Answer) -> bool:
        """Tell whether an answer names only members that cannot be read, while no member is known."""
        named = answer.servers or answer.out or answer.out_members or self.guarded.good
        return bool(answer.unread) and not named and (answer.opt_in is not None or not self.from_catalog)

    def confirmed(self) -> ServiceState:
        """Return the state after all removals that are held, as if the source had confirmed them in time."""
        opt_in = self.opt_in.only(self.opt_in.claimed - self.unclaimed.keys()) if self.opt_in else None
        return self._replace(guarded=guard.confirmed(self.guarded), opt_in=opt_in, unclaimed={})

    def serves(self, real_ranges: Sequence[Network] = (), vips: frozenset[Address] | None = None) -> Families:
        """Return the families in which the part can serve: it has a usable real server that is not absent."""
        return self.guarded.serves(self.usable(real_ranges, vips))

    def released(self, spare: Families) -> ServiceState:
        """Return the state without the removals that are held in families in which another part can serve now."""
        guarded = guard.confirmed(self.guarded, spare)
        if guarded == self.guarded:
            return self
        return self._replace(guarded=guarded, absent_since=self.absent_since if guarded.held else None)

    def usable(self, real_ranges: Sequence[Network], vips: frozenset[Address] | None) -> Callable[[Endpoint], bool]:
        """Return a function that tells which endpoints may be real servers, as `after`."""
        no_servers = vip_addresses([self.service]) if vips is None else vips
        rejected = {one.value.endpoint for one in self.rejected if isinstance(one.value, RealServer)}
        return lambda endpoint: endpoint not in rejected and objection(endpoint[0], no_servers, real_ranges) is None

    def reconfigured(self, service: Service, place: int = 0) -> ServiceState:
        """Return the state after a reload of the configuration.

        :param service: the one that has a part with the same source now.
        :param place: the position of that part.
        """
        if not self.from_catalog:
            return self._replace(service=service, place=place)
        if not self.opt_in or (self.leaving and not self.guarded.held):
            return ServiceState(service, place)  # leaving emptied it, and no answer to this service did
        last_success, errors = self.last_success, self.errors
        return ServiceState(
            service,
            place,
            self.guarded,
            self.absent_since if self.guarded.held else None,
            known=True,
            last_success=last_success,
            errors=errors,
            places=self.places,
        )

    @property
    def held(self) -> bool:
        """Whether a removal is held: of members, or of what a service of a catalog claims."""
        return bool(self.guarded.held or self.unclaimed)

    @property
    def deadline(self) -> float | None:
        """When to query at once, because the answer may confirm a removal, or None.

        A source that fails is queried again anyway, and a hastened one has an answer to come.
        """
        if self.hastened is not None or self.error is not None or not self.held:
            return None
        members = self.guarded.deadline(self.policy)
        claims = [since + self.policy.hold for since in self.unclaimed.values()]
        return min(claims if members is None else [members, *claims], default=None)

    @cached_property
    def state(self) -> str:
        """One of `STATES`."""
        if self.error is not None or not self.answered:
            return "retrying"
        return "held" if self.held or self.refused or self.unfollowed or self.unpublished else "fresh"

    @cached_property
    def marks(self) -> tuple[Mark, ...]:
        """What it has of all that few parts have."""
        has = {
            Mark.FROM_CATALOG: self.from_catalog,
            Mark.CHECKED: self.service.check is not None,
            Mark.ZONED: self.service.zones is not None,
            Mark.HELD: self.guarded.held,
            Mark.DUE_LATER: self.deadline is not None,
            Mark.OFF: self.is_off,
            Mark.UNANSWERED: not self.answered,
            Mark.UNTRIED: not self.answered and self.error is None,
            Mark.FAILING: self.error is not None,
            Mark.UNCONFIRMED: not self.known or self.stale,
            Mark.UNPUBLISHED: self.unpublished,
            Mark.OBJECTED: self.rejected or self.unpublished or self.refused or self.remark,
        }
        return tuple(compress(has, has.values()))

    @property
    def counted(self) -> tuple[object, ...]:
        """The part that has to be published, or kept on disk, when it changes."""
        ipv4, ipv6 = self.guarded
        return ipv4.good, ipv4.identities, ipv6.good, ipv6.identities, self.answered, self.opt_in, self.places

    @property
    def shown(self) -> tuple[object, ...]:
        """The part that `status` should show soon when it changes."""
        words = self.refused, self.left_out, self.note, self.incomplete, self.unfollowed
        return self.state, self.error, self.listed, words, self.guarded.withheld, self.unclaimed.keys()

    @property
    def is_tried(self) -> bool:
        """Whether there is something to serve, or the source has come back with something, be it a failure."""
        return self.known or self.answered or self.error is not None

    @property
    def useless(self) -> bool:
        """Whether a service of a catalog has answered, but never with a usable answer."""
        return self.answered and not self.known

    @property
    def stale(self) -> bool:
        """Whether a last known set is served, without any source that confirms it."""
        return self.known and self.state == "retrying"

    @property
    def rejections(self) -> int:
        """How many real servers and registrations are not used although the source names them."""
        return len(self.refused) + len(self.rejected) + len(self.unfollowed) + len(self.left_out)

    @property
    def reason(self) -> str | None:
        """Why the source is not fresh, and which parts of its answer are not used; None without a reason."""
        reasons = []
        if self.state == "retrying":
            error = self.error or "no answer yet"
            since = timestamp(self.last_success) or "before the start"
            reasons.append(f"stale since {since}: {error}" if self.known else error)
        elif self.held:
            reasons.append(
                f"{' and '.join(self._lacking())} since {timestamp(self.absent_since)}; "
                f"kept until an answer confirms it after {self.policy.hold:g} s (--hold)"
            )
        if self.beyond:
            reasons.append(self.beyond)
        if self.unpublished:
            reasons.append(f"{len(self.unpublished)} virtual servers are not published: {self.unpublished[0].reason}")
        reasons += [remark for remark in (self.remark, self.note) if remark]
        if self.refused or self.rejected or self.left_out:
            reasons += some_of([*map(str, self.refused), *rejections(self.rejected), *map(str, self.left_out)], _SHOWN)
        return "; ".join(reasons) or None

    def _lacking(self) -> Iterator[str]:
        """Yield the members and claims that stay although the last answer lacks them, as words of `reason`."""
        if self.guarded.held:
            removed, of = self.guarded.withheld
            yield f"{removed} of {of} real servers absent or out"
        if None in self.unclaimed:
            yield "no instance opts in"
        elif self.unclaimed:
            vips = sorted(str(one) for one in self.unclaimed if isinstance(one, Vip))
            automatic = sorted(f"auto/{one.name.lower()}" for one in self.unclaimed if isinstance(one, Protocol))
            yield f"no instance claims {', '.join(some_of([*vips, *automatic], _SHOWN))}"

    @property
    def beyond(self) -> str | None:
        """The remark about a catalog with too many services."""
        if not self.unfollowed:
            return None
        names = ", ".join(some_of([repr(name[:_LONGEST]) for name in self.unfollowed], _SHOWN))
        return (
            f"{len(self.unfollowed)} services are not followed, because more may opt in than --max-services allows; "
            f"raise it, or name them with --service: {names}"
        )

    @property
    def answered_at(self) -> int | None:
        """When the source last answered, in seconds since 1970, or None if that is not known."""
        return int(self.last_success.timestamp()) if self.last_success else None

    @cached_property
    def document(self) -> dict[str, Any]:
        """The entry of the source in `status --json`."""
        return {
            "name": self.source,
            "state": self.state,
            "last_success": timestamp(self.last_success),
            "error": self.error,
            "stale": self.stale,
            "reason": self.reason,
            "rejected": self.rejections,
        }


def spare(
    others: Iterable[ServiceState], real_ranges: Sequence[Network], vips: frozenset[Address] | None = None
) -> Families:
    """Return the families in which one of these parts of a pool can serve in place of another one."""
    serving = [other.serves(real_ranges, vips) for other in others if not other.is_off]
    return Families(any(one.ipv4 for one in serving), any(one.ipv6 for one in serving))


def _with_listing(listing: Listing) -> dict[str, Any]:
    """Return the fields that a listing sets."""
    objections = {name: reason for name in listing.names if (reason := consul_objection(name))}
    refused = [Refusal(f"service {name[:_LONGEST]!r}", reason) for name, reason in sorted(objections.items())]
    return {"listed": listing.names - objections.keys(), "refused": tuple(refused)}


def _with_answer(  # noqa: PLR0913 - all that an answer depends on
    state: ServiceState,
    answer: Answer,
    now: float,
    at: datetime,
    is_usable: Callable[[Endpoint], bool],
    *,
    spare: Callable[[], Families],
) -> dict[str, Any]:
    """Return the fields that an answer sets."""
    opt_in, unclaimed, leaving = state.opt_in, state.unclaimed, False
    if state.from_catalog:
        opt_in, unclaimed = _claims(state, answer, now)
        leaving = answer.opt_in is None
        answer = Answer((), asked=answer.asked) if leaving else answer
    before = guard.renamed(state.guarded, answer.servers) if state.numbered else state.guarded
    unused = _without_vip(state, opt_in)
    guarded = guard.admit(before, answer, state.policy, now, is_usable, spare=lambda: spare() | unused)
    since, absent_since = _first_clock(guarded, unclaimed), state.absent_since
    if since is None:
        absent_since = None
    elif since != _first_clock(state.guarded, state.unclaimed):
        absent_since = at - timedelta(seconds=now - since)
    return {
        "guarded": guarded,
        "absent_since": absent_since,
        "opt_in": opt_in,
        "unclaimed": unclaimed,
        "leaving": leaving,
        "left_out": answer.left_out,
        "note": answer.note,
        "incomplete": bool(answer.unread),
        "places": _places(state.places, answer, guarded),
        "numbered": state.numbered and not answer.servers,
    }


def _without_vip(state: ServiceState, opt_in: OptIn | None) -> Families:
    """Return the families in which a service has no VIP: there is no pool to guard, so no removal is held."""
    vips = [*state.service.vips, *(opt_in.vips if opt_in else ())]
    if not vips or state.refused or (opt_in and opt_in.automatic):  # it may have others than those that it claims
        return NO_SPARE
    families = {is_ipv4(vip.address) for vip in vips}
    return Families(ipv4=True not in families, ipv6=False not in families)


def _first_clock(guarded: Guarded, unclaimed: Mapping[Claimed, float]) -> float | None:
    """Return the time of the first answer without a member or claim that stays; None if there is none."""
    clocks = unclaimed.values() if guarded.absent_since is None else (guarded.absent_since, *unclaimed.values())
    return min(clocks, default=None)


def _claims(state: ServiceState, answer: Answer, now: float) -> tuple[OptIn | None, Mapping[Claimed, float]]:
    """Return the opt-in that counts after an answer, and the claims in it that the answer lacks, each with its clock.

    If the answer has all earlier instances, they state that they claim something else. An answer without any opt-in is
    not taken for a statement: it may be a mistake, and other services could take the VIPs for good.
    """
    before, named = state.opt_in, answer.opt_in
    if before is None:
        return named, {}
    own = named.claimed if named else frozenset()
    vanished = before.claimed - own
    if named and before.instances and before.instances <= named.instances:
        vanished &= state.unclaimed.keys()
    if named:  # the kernel does not tell automatic VIPs from others, and the last opt-in may be from there
        vanished -= {vip for vip in before.vips if vip.port == 0 and vip.protocol in named.automatic}
    clocks = {one: state.unclaimed.get(one, now) for one in vanished}
    staying = guard.running(clocks, state.policy, min(answer.asked, now))
    if named:
        room = max(MAX_VIPS, len(before.vips)) - len(named.vips)
        oldest = sorted((since, one) for one, since in staying.items() if isinstance(one, Vip))
        for _, vip in oldest[room:]:
            del staying[vip]
    return (named or before).only(own | staying.keys()) if staying else named, staying


def _places(before: Places, answer: Answer, guarded: Guarded) -> Places:
    """Return the places in an answer, with the previous zones of members that stay although it does not name them.

    Members that stay have addresses, whatever the answer knows.
    """
    found = answer.places
    if found.unlocated:
        staying = set(guarded.identities.values())
        left = {identity: member for identity, member in found.unlocated.items() if identity not in staying}
        found = found._replace(unlocated=left)
    if gone := before.zones.keys() - found.zones.keys():
        gone = gone & {server.endpoint for server in guarded.good} - {server.endpoint for server in answer.servers}
        found = found._replace(zones={**found.zones, **{endpoint: before.zones[endpoint] for endpoint in gone}})
    return before if before == found else found
