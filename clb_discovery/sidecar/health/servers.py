"""Real servers in the maps: those that a report names, those that are out, and what the sidecar says of them.

These functions wait for the kernel, so they run in a thread. The caller keeps others from changing the maps meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from clb_discovery.datapath.maps import Maps
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Change, Server, Steering
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.servers import Protocol, Vip
from clb_discovery.sidecar.health.cases import News, Terms, heed_later

_SIZE: Final = structs.SERVER.size
_STEERING: Final = structs.STEERING.size
_EJECTED: Final = structs.SERVER.offsets()["ejected_until"][0] // 8  # its place among the 64-bit words of a server

_MS: Final = 1_000_000


class Seen(NamedTuple):
    """A real server as it is in the maps."""

    member: bytes
    terms: Terms | None
    """How long its virtual server ejects; None if its servers are not probed."""
    server: Server
    steering: Steering


def ejects(published: Published) -> bool:
    """Tell whether a virtual server ejects real servers."""
    return bool(published.health and published.health.eject_after)


def terms_of(vip: Vip, published: Published) -> Terms | None:
    """Return how long a virtual server ejects; None if its servers are not probed."""
    health = published.health
    if vip.protocol is not Protocol.TCP or health is None or not health.eject_after:
        return None
    if not health.suspicion:
        return None
    return Terms(health.eject_first_ms * _MS, health.eject_most_ms * _MS, health.checked)


def reported(maps: Maps, installed: Installed, changes: Sequence[Change]) -> list[tuple[Change, Seen]]:
    """Return the servers that reports are about, without those that have left or that a later verdict answers."""
    members = _members(installed, {change.server for change in changes})
    found = []
    for change in changes:
        if change.server in members:
            seen = _seen(maps, installed, members[change.server], change.server)
            answered = seen.steering.decided_at > change.time and heed_later(change, seen.terms)
            if seen.server.began == change.began and not answered:
                found.append((change, seen))
    return found


def out(maps: Maps, installed: Installed, known: Collection[bytes], left: Collection[bytes] = ()) -> list[Seen]:
    """Return the servers that are suspect, ejected or have a verdict, and these known members; one look at all.

    Those that are out because of their checks are passed over: the checks tell of them.

    :param left: the members that their checks keep out. An earlier sidecar may have left verdicts about others.
    """
    servers, steering = maps.raw_servers(installed.top), maps.raw_steering(installed.top)
    ejected = memoryview(servers).cast("Q")[_EJECTED :: _SIZE // 8]
    verdicts = memoryview(steering).cast("Q")[0 :: _STEERING // 8]
    interesting = {index for index, until in enumerate(ejected) if until}
    interesting |= {index for index, decided in enumerate(verdicts) if decided}
    interesting |= {index for index in (installed.index_of(member) for member in known) if index is not None}
    found = []
    for index, member in _members(installed, interesting).items():
        server = elements.unpack_server(servers[index * _SIZE : (index + 1) * _SIZE])
        said = elements.unpack_steering(steering[index * _STEERING : (index + 1) * _STEERING])
        seen = Seen(member, _terms(installed, member), server, said)
        if not _is_out_by_check(installed, seen, left):
            found.append(seen)
    return found


def leases(maps: Maps, installed: Installed, now: int) -> dict[bytes, Steering]:
    """Return the verdicts of checks by which members are out at this time, in nanoseconds of CLOCK_MONOTONIC.

    Members whose verdicts may be those of probes are missing: they are left to probes.
    """
    servers, steering = maps.raw_servers(installed.top), maps.raw_steering(installed.top)
    found = {}
    for vip, published in installed.virtual.items():
        terms = terms_of(vip, published)
        for member, index in published.servers.items():
            said = elements.unpack_steering(steering[index * _STEERING : (index + 1) * _STEERING])
            if said.out_until > now:
                server = elements.unpack_server(servers[index * _SIZE : (index + 1) * _SIZE])
                if said.decided_at > server.changed_at and not _may_be_of_a_probe(terms, server):
                    found[member] = said
    return found


def steer(maps: Maps, installed: Installed, verdicts: Mapping[bytes, Steering]) -> dict[bytes, Server]:
    """Write verdicts about members; return those that are still in a pool, with their counters."""
    indexes = {member: installed.index_of(member) for member in verdicts}
    there = {member: index for member, index in indexes.items() if index is not None}
    maps.steer({index: verdicts[member] for member, index in there.items()})
    return {member: elements.unpack_server(maps.raw_server(index)) for member, index in there.items()}


def conclude(maps: Maps, installed: Installed, news: Sequence[News], now: int) -> dict[bytes, Server]:
    """Write the verdicts of probes, as `steer`, except where the checks of a service have another one."""
    verdicts = {one.member: one.verdict for one in news if one.verdict and not _is_overruled(maps, installed, one, now)}
    return steer(maps, installed, verdicts)


def _is_out_by_check(installed: Installed, seen: Seen, left: Collection[bytes]) -> bool:
    """Tell whether a server has a verdict of its checks by which it is out, or was until the lease was over."""
    if not seen.steering.out_until or seen.steering.decided_at <= seen.server.changed_at:
        return False
    if not _is_checked(installed, seen.member):
        return False
    return seen.member in left or not _may_be_of_a_probe(seen.terms, seen.server)


def _may_be_of_a_probe(terms: Terms | None, server: Server) -> bool:
    """Tell whether a verdict that keeps a server out may be one of a probe: only ejected and suspect ones have any."""
    return terms is not None and server.ejected_until > 0


def _is_overruled(maps: Maps, installed: Installed, news: News, now: int) -> bool:
    """Tell whether checks have decided since the report that led to a probe, or keep the server out."""
    index = installed.index_of(news.member)
    if index is None or not _is_checked(installed, news.member):
        return False
    said = maps.steering(index)
    if said.decided_at == news.decided_at:  # the verdict of the previous probe
        return False
    since = news.change.time if news.change else 0
    return said.decided_at > max(since, news.decided_at) or said.out_until > now


def _members(installed: Installed, indexes: AbstractSet[int]) -> dict[int, bytes]:
    """Return the members with these indexes, of virtual servers that eject, without refusals."""
    return {
        index: member
        for published in installed.virtual.values()
        if ejects(published) and not indexes.isdisjoint(published.servers.values())
        for member, index in published.servers.items()
        if index in indexes and not elements.is_refusal(member)
    }


def _seen(maps: Maps, installed: Installed, member: bytes, index: int) -> Seen:
    server, steering = elements.unpack_server(maps.raw_server(index)), maps.steering(index)
    return Seen(member, _terms(installed, member), server, steering)


def _terms(installed: Installed, member: bytes) -> Terms | None:
    vip = _vip(member)
    return terms_of(vip, installed.virtual[vip])


def _is_checked(installed: Installed, member: bytes) -> bool:
    health = installed.virtual[_vip(member)].health
    return health is not None and health.checked


def _vip(member: bytes) -> Vip:
    return elements.unpack_vip(member[: structs.VIP.size])
