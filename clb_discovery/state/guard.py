"""The guard between discovery and desired state: a gap in an answer has to be confirmed, a statement counts at once.

Each service has one state per address family, because each family is a pool of its own. A member is *absent* from the
first answer without it until an answer with it, and meanwhile has its own clock. Many absent members stay in the pool
until their clocks have run and another answer confirms that they are gone. Members that an answer adds, changes or
takes out by name count at once; so does a replacement within one identity. Nothing is removed without an answer. If an
answer could not read a member, it does not count as an answer for that member: the member stays, and its clock neither
ends nor restarts. If such an answer leaves no other member, it does not count for absent members either: they may be
the ones that it could not read.

The guard protects pools, not the parts that they are put together from. While another part of a pool can serve, an
absent member of this part is removed at once.

An answer was true at some moment between its first query and its arrival. So a clock starts when an answer arrives, and
only an answer to queries from after it had run confirms that a member is gone. No answer is ignored for being early: it
may end an absence.

Time is a number of seconds on the clock of `Answer.asked`, which does not go backwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import (
    ALL_MEMBERS,
    MAX_PRIORITY,
    MAX_WEIGHT,
    Endpoint,
    Pool,
    Pools,
    RealServer,
    Unread,
    pools,
)
from clb_discovery.model.service import RemovalPolicy

Identities = Mapping[Endpoint, str]

_ENDPOINT: Final = attrgetter("address", "port")
_NOTHING: Final[Mapping[Endpoint, Any]] = MappingProxyType({})  # one for all, because most families have none

_Key = TypeVar("_Key")


class Families(NamedTuple):
    """A fact about each address family."""

    ipv4: bool
    ipv6: bool

    def __or__(self, other: Families) -> Families:
        """Return the families of which either fact is true."""
        return Families(self.ipv4 or other.ipv4, self.ipv6 or other.ipv6)


NO_SPARE: Final = Families(ipv4=False, ipv6=False)
_BOTH: Final = Families(ipv4=True, ipv6=True)


class Family(NamedTuple):
    """The state of the real servers of one address family."""

    good: Pool = ()
    """The real servers that count: those of the last answer, and absent ones that stay."""
    absent: Mapping[Endpoint, float] = _NOTHING
    """The absent ones among them, with the time of the first answer without them."""
    identities: Identities = _NOTHING
    """The known identities of those that count."""
    unread: Mapping[Endpoint, float] = _NOTHING
    """Members that stay because the last answer could not read them, with the time of the first answer without them."""


class Guarded(NamedTuple):
    """The state of one service."""

    ipv4: Family = Family()
    ipv6: Family = Family()

    @property
    def good(self) -> Pools:
        """The real servers that count now."""
        return Pools(self.ipv4.good, self.ipv6.good)

    @property
    def absent(self) -> Mapping[Endpoint, float]:
        """Members that would go, with the time of the first answer without each."""
        return {**self.ipv4.absent, **self.ipv6.absent} if self.held else {}

    @property
    def identities(self) -> Identities:
        """The known identities of those that count."""
        return {**self.ipv4.identities, **self.ipv6.identities}

    @property
    def held(self) -> bool:
        """Whether a removal is held."""
        return bool(self.ipv4.absent or self.ipv6.absent)

    @property
    def withheld(self) -> tuple[int, int]:
        """How many real servers would go, and of how many, in the families that hold a removal."""
        if not self.held:  # most are not, and a start asks thousands
            return 0, 0
        held = [family for family in (self.ipv4, self.ipv6) if family.absent]
        return sum(len(family.absent) for family in held), sum(len(family.good) for family in held)

    @property
    def absent_since(self) -> float | None:
        """The time of the first answer without a member that is still absent; None if there is none."""
        return min((*self.ipv4.absent.values(), *self.ipv6.absent.values()), default=None)

    def serves(self, is_usable: Callable[[Endpoint], bool]) -> Families:
        """Return the families in which there is a usable real server that is not absent."""
        return Families(
            *(
                any(endpoint not in family.absent and is_usable(endpoint) for endpoint in map(_ENDPOINT, family.good))
                for family in (self.ipv4, self.ipv6)
            )
        )

    def deadline(self, policy: RemovalPolicy) -> float | None:
        """Return when the first clock has run, after which an answer can confirm a removal; None if no clock runs."""
        return None if self.absent_since is None else self.absent_since + policy.hold


def seed(servers: Pools, identities: Identities) -> Guarded:
    """Start from the servers that the kernel or the disk holds; identities of other endpoints are ignored."""
    return Guarded(*(Family(pool, identities=_of(pool, identities)) for pool in (servers.ipv4, servers.ipv6)))


def as_named(pool: Pool, named: Iterable[RealServer]) -> Pool:
    """Return real servers of a pool that was put together, as their source would name them.

    Such a pool has numbers of tiers for priorities, and scaled weights, which cannot be compared with those of an
    answer. So each server that is in both gives the scale of its tier to the others; a tier without one has that of the
    tier before.

    :param pool: as it is in the kernel, of one family.
    :param named: as their source names them; some of them, or others.
    """
    known = {server.endpoint: server for server in named}
    scales = {one.priority: (one, known[one.endpoint]) for one in reversed(pool) if one.endpoint in known}

    def scaled(one: RealServer) -> RealServer:
        tier = max((tier for tier in scales if tier <= one.priority), default=min(scales, default=None))
        if tier is None:
            return one
        like, own = scales[tier]
        priority = max(0, min(own.priority + one.priority - tier, MAX_PRIORITY))
        weight = min(max(1, round(one.weight * own.weight / like.weight)), MAX_WEIGHT) if like.weight else own.weight
        return one._replace(priority=priority, weight=weight)

    return tuple(sorted(known.get(one.endpoint) or scaled(one) for one in pool))


def renamed(state: Guarded, named: Iterable[RealServer]) -> Guarded:
    """Return the state with all members as their source would name them; see `as_named`."""
    ipv4, ipv6 = (family._replace(good=as_named(family.good, named)) for family in (state.ipv4, state.ipv6))
    return Guarded(ipv4, ipv6)


def admit(  # noqa: PLR0913 - all that the state after an answer depends on
    state: Guarded,
    answer: Answer,
    policy: RemovalPolicy,
    now: float,
    is_usable: Callable[[Endpoint], bool] = lambda _: True,
    *,
    spare: Callable[[], Families] = lambda: NO_SPARE,
) -> Guarded:
    """Take a valid answer.

    :param now: when the answer arrived. It confirms the removals whose clocks had run when it was asked for.
    :param is_usable: tells which endpoints may be real servers. Others are passed on, so that `desired` rejects them,
        and count as neither present nor absent: they cannot serve a connect.
    :param spare: returns the families in which another part of the pool can serve, or no pool is needed, so that no
        removal is held. It is called only if the answer lacks a member.
    """
    named = pools(answer.servers)
    families = (state.ipv4, named.ipv4), (state.ipv6, named.ipv6)
    if not any(_missing(family, pool) for family, pool in families):
        return Guarded(*(_with_all(family, pool, answer.identities) for family, pool in families))
    stated, spared = _stated_members(answer, is_usable), spare()
    return Guarded(
        _admit(state.ipv4, named.ipv4, _Words(answer, stated, is_usable, ipv4=True), policy, now, spare=spared.ipv4),
        _admit(state.ipv6, named.ipv6, _Words(answer, stated, is_usable, ipv4=False), policy, now, spare=spared.ipv6),
    )


def confirmed(state: Guarded, spare: Families = _BOTH) -> Guarded:
    """Return the state after all held removals.

    :param spare: only in these families.
    """
    families = zip((state.ipv4, state.ipv6), spare, strict=True)
    return Guarded(*(_without_absent(family) if ends and family.absent else family for family, ends in families))


class _Words:
    """The statements of an answer about members of one family, beside the usable ones."""

    def __init__(
        self, answer: Answer, stated: Collection[str], is_usable: Callable[[Endpoint], bool], *, ipv4: bool
    ) -> None:
        self.identities = answer.identities
        self.asked = answer.asked
        self.is_usable = is_usable
        self._stated = stated
        self._out = frozenset(answer.out)
        self._unread: dict[tuple[str, int | None], Unread] = {}
        for one in sorted(answer.unread, key=_preference, reverse=True):
            if one.is_ipv4 in {None, ipv4}:
                self._unread[one.identity, one.port] = one
        self.is_any_unread = bool(self._unread)
        """Whether there are members whose addresses in this family cannot be read."""

    def taken_out(self, missing: Collection[Endpoint], identities: Identities) -> frozenset[Endpoint]:
        """Return those that the answer takes out by name: themselves, or the members that had them before."""
        moved = (one for one in missing if identities.get(one) in self._stated) if self._stated else ()
        return self._out.intersection(missing).union(moved)

    def unread(self, missing: Collection[Endpoint], identities: Identities) -> dict[Endpoint, Unread]:
        """Return those that stay because the answer names their members without addresses, each with its statement."""
        named = self._unread
        if not named:
            return {}
        had = ((one, identities.get(one, ALL_MEMBERS)) for one in missing)
        found = (
            (one, (_of_member(named, name, one[1]) or _of_member(named, ALL_MEMBERS, one[1]))) for one, name in had
        )
        return {endpoint: unread for endpoint, unread in found if unread}


def _of_member(named: Mapping[tuple[str, int | None], Unread], identity: str, port: int) -> Unread | None:
    return named.get((identity, port)) or named.get((identity, None))


def _stated_members(answer: Answer, is_usable: Callable[[Endpoint], bool]) -> Collection[str]:
    """Return the identities of members that are out and have no usable endpoint: former endpoints are out, too.

    While all members are unread nothing is known of other endpoints, so there are none.
    """
    identities = answer.identities
    out = {*answer.out_members, *(identities[endpoint] for endpoint in answer.out if endpoint in identities)}
    if not out or any(one.identity == ALL_MEMBERS for one in answer.unread):
        return ()
    usable = {identities.get(endpoint) for endpoint in endpoints(answer.servers) if is_usable(endpoint)}
    return out - usable - {one.identity for one in answer.unread}


def _preference(unread: Unread) -> tuple[bool, int, int]:
    """Sort first the one that counts if several name the same member, as `desired` does."""
    return unread.priority is None, unread.priority or 0, -(unread.weight or 0)


def _admit(  # noqa: PLR0913 - as `admit`, for one family
    family: Family, named: Pool, words: _Words, policy: RemovalPolicy, now: float, *, spare: bool
) -> Family:
    missing = _missing(family, named)
    if not missing:
        return _with_all(family, named, words.identities)
    asked = min(words.asked, now)
    present, before = endpoints(named), endpoints(family.good)
    stated = words.taken_out(missing, family.identities)
    kept = words.unread(missing - stated, family.identities)
    vanished = filter(words.is_usable, missing - kept.keys())
    begun = {**family.unread, **family.absent}
    clocks = {endpoint: begun.get(endpoint, now) for endpoint in vanished}
    out = {endpoint: clocks.pop(endpoint) for endpoint in stated if endpoint in clocks}
    usable = {endpoint for endpoint in (*present, *kept) if words.is_usable(endpoint)}
    for endpoint in _replaced(family, usable - before, clocks, words.identities):
        del clocks[endpoint]
    unread = {endpoint: begun[endpoint] for endpoint in kept if endpoint in begun}
    if not usable and words.is_any_unread:
        absent = {}
        unread |= clocks
    else:
        absent = {} if spare else _staying(clocks, len(usable), policy, asked)
    if not usable and not spare:  # a server that discovery has taken out is better than none
        absent |= running(out, policy, asked)
    staying = {*kept, *absent, *unread}
    good = _merged(family, named, kept, staying)
    identities = dict(_of(named, words.identities))
    if staying:
        known = {**family.identities, **words.identities}
        identities |= {endpoint: known[endpoint] for endpoint in staying if endpoint in known}
    return _unless_equal(family, Family(good, absent, identities, unread))


def _missing(family: Family, named: Pool) -> frozenset[Endpoint]:
    """Return the members that count and that an answer does not name."""
    return endpoints(family.good) - endpoints(named) if family.good else frozenset()


def _with_all(family: Family, named: Pool, identities: Identities) -> Family:
    """Return the state after an answer that names all members that count."""
    return _unless_equal(family, Family(named, identities=_of(named, identities)))


def _unless_equal(before: Family, now: Family) -> Family:
    """Return the previous state if it is equal: comparing an object with itself costs nothing."""
    return before if now == before else now


def _replaced(
    family: Family, new: Collection[Endpoint], gaps: Mapping[Endpoint, float], identities: Identities
) -> Iterable[Endpoint]:
    """Return the absent endpoints that new ones of the same identity replace, one for one, the longest absent first."""
    places = Counter(identities[endpoint] for endpoint in new if endpoint in identities)
    if not places:
        return []
    replaced = []
    for endpoint in sorted(gaps, key=lambda endpoint: (gaps[endpoint], endpoint)):
        identity = family.identities.get(endpoint)
        if identity is not None and places[identity]:
            places[identity] -= 1
            replaced.append(endpoint)
    return replaced


def _staying(
    gaps: Mapping[Endpoint, float], present: int, policy: RemovalPolicy, asked: float
) -> dict[Endpoint, float]:
    """Return the absent members that stay: those whose clocks run, for as long as they are many."""
    if not _is_much(len(gaps), present, policy):
        return {}
    staying = running(gaps, policy, asked)
    return staying if _is_much(len(staying), present, policy) else {}


def running(clocks: Mapping[_Key, float], policy: RemovalPolicy, asked: float) -> dict[_Key, float]:
    """Return the clocks that an answer does not confirm, because they had not run when it was asked for.

    :param clocks: when each began.
    :param asked: as `Answer.asked`, but not after the answer arrived.
    """
    if not policy.hold:  # nothing has to be confirmed
        return {}
    # The same sum as in `deadline`.
    return {key: since for key, since in clocks.items() if asked < since + policy.hold}


def _is_much(absent: int, present: int, policy: RemovalPolicy) -> bool:
    return absent > 0 and (present == 0 or absent > policy.max_removal * (present + absent))


def _merged(family: Family, named: Pool, kept: Mapping[Endpoint, Unread], staying: Collection[Endpoint]) -> Pool:
    """Return the real servers that count: those of the answer, and earlier ones that stay."""
    if not staying:
        return named
    earlier = ((server, _ENDPOINT(server)) for server in family.good)
    stay = [_as_stated(server, kept.get(endpoint)) for server, endpoint in earlier if endpoint in staying]
    return tuple(sorted([*named, *stay]))


def _as_stated(server: RealServer, unread: Unread | None) -> RealServer:
    if unread is None:
        return server
    priority = server.priority if unread.priority is None else unread.priority
    weight = server.weight if unread.weight is None else unread.weight
    return server._replace(priority=priority, weight=weight)


def _without_absent(family: Family) -> Family:
    good = tuple(server for server in family.good if _ENDPOINT(server) not in family.absent)
    return Family(good, identities=_of(good, family.identities), unread=family.unread)


def _of(servers: Pool, identities: Identities) -> Identities:
    if not identities:
        return _NOTHING
    return {endpoint: identities[endpoint] for endpoint in endpoints(servers) if endpoint in identities}


def endpoints(servers: Iterable[RealServer]) -> frozenset[Endpoint]:
    """Return the addresses and ports of real servers."""
    return frozenset(map(_ENDPOINT, servers))
