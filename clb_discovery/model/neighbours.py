"""Other instances on this host that serve a VIP of ours for the same processes.

At a connect, the kernel runs the programs of all cgroups that the process is in: those of its own cgroup first, then
those of each parent; within one cgroup, in the order in which they were attached. The first program that knows the VIP
rewrites the address, and the others see a real server. Two instances with the same VIP therefore do not share it: one
of them never sees the connects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from clb_discovery.model.address import Address
from clb_discovery.model.servers import Protocol, Vip
from clb_discovery.text import some_of

_SHOWN: Final = 4
_RECORDED: Final = 1000
"""Most VIPs of one instance that a loader records for a sidecar without the privilege to read them itself."""

SAME: Final = "same"
ABOVE: Final = "above"
BELOW: Final = "below"
"""Where the cgroup of the other instance is, relative to ours."""
_EFFECTS: Final = {
    SAME: "whichever was attached first decides",
    ABOVE: "ours decides for the processes of our cgroup",
    BELOW: "the other decides for the processes of its cgroup",
}


class Neighbour(NamedTuple):
    """Another instance."""

    instance: str
    cgroup: str
    """Path of the cgroup that its programs are attached to."""
    vips: Sequence[Vip]


class Overlap(NamedTuple):
    """VIPs that both this and another instance serve."""

    instance: str
    cgroup: str
    relation: str
    """`same`, `above` or `below`."""
    vips: Sequence[Vip]
    """Ours, sorted."""

    def __str__(self) -> str:
        """Return the problem, which instance decides, and the fix, on one line."""
        vips = ", ".join(some_of([str(vip) for vip in self.vips], _SHOWN))
        where = "the same cgroup" if self.relation == SAME else f"{self.cgroup}, {self.relation} ours,"
        effect = _EFFECTS[self.relation]
        return f"instance {self.instance!r} on {where} serves {vips} as well: {effect}; give each instance its own VIPs"

    def document(self) -> dict[str, Any]:
        """Return its entry in `status --json`."""
        vips = [str(vip) for vip in self.vips]
        return {"instance": self.instance, "cgroup": self.cgroup, "relation": self.relation, "vips": vips}


def overlaps(cgroup: str, vips: Collection[Vip], others: Iterable[Neighbour]) -> list[Overlap]:
    """Return which other instances serve VIPs of ours to processes of our cgroup, sorted by name.

    :param cgroup: path of the cgroup that our programs are attached to.
    :param vips: ours. A VIP for every port overlaps each port of its address.
    """
    found = []
    for other in others:
        where = relation(cgroup, other.cgroup)
        shared = shared_vips(vips, other.vips) if where else ()
        if where and shared:
            found.append(Overlap(other.instance, other.cgroup, where, shared))
    return sorted(found)


def relation(own: str, other: str) -> str | None:
    """Return where another cgroup is relative to ours: `same`, `above` or `below`; None if they share no process."""
    own, other = own.rstrip("/") + "/", other.rstrip("/") + "/"
    if own == other:
        return SAME
    return ABOVE if own.startswith(other) else BELOW if other.startswith(own) else None


def shared_vips(own: Collection[Vip], theirs: Iterable[Vip]) -> tuple[Vip, ...]:
    """Return which of our VIPs a connect to one of theirs may mean, sorted."""
    ports: defaultdict[tuple[Address, Protocol], set[int]] = defaultdict(set)
    for vip in theirs:
        ports[vip.address, vip.protocol].add(vip.port)
    return tuple(sorted(vip for vip in own if _meets(vip.port, ports.get((vip.address, vip.protocol), set()))))


def _meets(port: int, ports: Collection[int]) -> bool:
    return bool(ports) and (port == 0 or port in ports or 0 in ports)


def remembered(content: object) -> list[Neighbour]:
    """Parse the record of other instances that `load` has made; entries that cannot be parsed are left out.

    :param content: decoded JSON, as `recorded` returns it.
    """
    found = []
    for one in content if isinstance(content, list) else []:
        try:
            vips = [_vip(*parts) for parts in one["vips"]]
            found.append(Neighbour(str(one["instance"]), str(one["cgroup"]), vips))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _vip(address: str, port: int, protocol: int) -> Vip:
    return Vip(Address(bytes.fromhex(address)), port, Protocol(protocol))


def recorded(others: Iterable[Neighbour]) -> list[Mapping[str, Any]]:
    """Return other instances as JSON, for a sidecar without the privilege to read their maps."""
    return [
        {
            "instance": one.instance,
            "cgroup": one.cgroup,
            "vips": [[vip.address.hex(), vip.port, int(vip.protocol)] for vip in one.vips[:_RECORDED]],
        }
        for one in others
    ]
