"""The members of discovery's answers that a publication uses, for each service, and those that it leaves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from clb_discovery.model.address import is_ipv4
from clb_discovery.model.answer import rejections
from clb_discovery.model.servers import Pools, Vip
from clb_discovery.model.service import Service
from clb_discovery.publication.reconcile import Publication


class Usage(NamedTuple):
    """The pools of one service, and the members that are in none."""

    pools: Mapping[Vip, int]
    """The number of real servers behind each of its VIPs."""
    objection: str | None
    """Why connects to the service, or to a VIP that was named for it, are refused; None if they are not."""
    left_out: Sequence[str]
    """Members and registrations that are not used, each with the reason."""
    without_vip: Sequence[str]
    """A remark for each family in which there are real servers, but no VIP."""


def usage(found: Publication, why_empty: Mapping[str, str] = MappingProxyType({})) -> dict[str, Usage]:
    """Return the usage of each service with a known answer, by the name of its pools.

    :param why_empty: why the answer of a source is empty, where that is known.
    """
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    for source, refused in found.resolved.refused.items():
        left_out[source] += map(str, refused)
    for source, rejected in found.desired.rejected.items():
        left_out[source] += rejections(rejected)
    without_room = {one.vip: one.reason for one in found.unpublished}
    named = {claim.service.source: claim.opt_in.vips for claim in found.wanted.claims}
    automatic = {claim.service.source for claim in found.wanted.claims if claim.opt_in.automatic}
    used = {}
    for service in found.resolved.services:
        source, sources = service.source, [part.source for part in service.parts]
        known = [found.wanted.known[one] for one in sources if one in found.wanted.known]
        if not known:
            continue
        pools = {vip: _size(found, vip, source) for vip in service.vips}
        is_automatic = service.automatic is not None or source in automatic
        needed = [vip for vip in pools if not (is_automatic and vip.port == 0 and vip not in named.get(source, ()))]
        reasons = [f"{vip} is not published: {without_room[vip]}" for vip in pools if vip in without_room]
        why = "; ".join(why_empty[one] for one in sources if one in why_empty) or None
        objection = reasons[0] if reasons else _objection(pools, needed, sum(map(len, known)), why)
        unused = [text for one in sources for text in left_out[one]]
        used[source] = Usage(pools, objection, tuple(unused), tuple(_without_vip(service, known)))
    return used


def _size(found: Publication, vip: Vip, source: str) -> int:
    published = found.plan.result.virtual.get(vip)
    is_own = published and published.label and published.label.source == source
    return len(published.pool or ()) if published and is_own else 0


def _objection(pools: Mapping[Vip, int], needed: Sequence[Vip], known: int, why: str | None) -> str | None:
    """Return why connects are refused, or None if they are not.

    :param needed: the VIPs that need real servers. There is an automatic one in each family, whatever the servers are.
    :param known: the number of real servers that discovery returned.
    :param why: why there are none, if that is known.
    """
    if not pools:
        return "it gets no VIP, so nothing of it is balanced"
    empty = [str(vip) for vip, count in pools.items() if not count and (vip in needed or not any(pools.values()))]
    if not empty:
        return None
    serving = [f"{count_servers(count)} at {vip}" for vip, count in pools.items() if count]
    unused = f"{count_servers(known)}, and none can be used" if known else f"none{f': {why}' if why else ''}"
    reason = f"only {', '.join(serving)}" if serving else f"discovery returned {unused}"
    return f"no real server at {', '.join(empty)}, so connects are refused; {reason}"


def _without_vip(service: Service, known: Sequence[Pools]) -> Iterator[str]:
    """Yield a remark for the real servers of each family in which the service has no VIP."""
    families = {is_ipv4(vip.address) for vip in service.vips}
    counts = {4: sum(len(servers.ipv4) for servers in known), 6: sum(len(servers.ipv6) for servers in known)}
    for version, count in counts.items():
        if count and families and (version == 4) not in families:
            yield f"{count_servers(count)} of IPv{version} not used: the service has no IPv{version} VIP; add one"


def count_servers(servers: int) -> str:
    """Return `1 real server` or `2 real servers`."""
    return f"{servers} real server{'' if servers == 1 else 's'}"
