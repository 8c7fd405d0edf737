"""Build the answer from the instances of a reading and the addresses of their host names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from clb_discovery.errors import UnusableError
from clb_discovery.model.address import Address, is_ipv4
from clb_discovery.model.answer import Answer, Refusal
from clb_discovery.model.servers import Endpoint, RealServer, Unread
from clb_discovery.model.zones import MAX_ZONE, NO_PLACES, Places
from clb_discovery.sources.consul.answer import MAX_NAMES, Instance, Reading, bounded, show
from clb_discovery.sources.dns.varying import varying_note
from clb_discovery.text import some_of

BOTH: Final = frozenset({True, False})
"""Both families: True is IPv4."""

_QUOTED: Final = 2
"""Reports that an error quotes."""


class Known(NamedTuple):
    """The state of a host name."""

    addresses: tuple[Address, ...] = ()
    """The addresses that the last look-up found."""
    surplus: int = 0
    """How many more addresses it has."""
    cause: str | None = None
    """Why the name, or one family of it, has no address: a clause, bounded and escaped."""
    unread: frozenset[bool] = frozenset()
    """Families whose look-up failed. A family that certainly has no address is not among them."""
    last: tuple[Address, ...] = ()
    """The addresses that the last successful look-up found."""
    stays: float = 0.0
    """How long addresses stay that a look-up lacks, in seconds, if any does now because the DNS server varies them."""


NOT_YET: Final = Known(cause="it is still being looked up", unread=BOTH)
"""The state of a name before its first look-up has ended."""


def is_anyone_usable(reading: Reading, names: Mapping[str, Known]) -> bool:
    """Return whether an instance serves and has an address.

    :param names: the state of each host name.
    """
    return any(
        instance.weight
        and (not isinstance(instance.host, str) or (instance.host in names and names[instance.host].addresses))
        for instance in reading.instances
    )


def to_answer(reading: Reading, names: Mapping[str, Known], families: frozenset[bool] = BOTH) -> Answer:
    """Return the instances as real servers of one tier, one for each address of a host name.

    :param names: the state of `reading.host_names`; missing ones are still being looked up.
    :param families: those of the virtual servers; a name that lacks another family is not reported.
    :raises UnusableError: if there are instances, but none that serves, is out, or could not be looked up now.
    """
    looked = reading.host_names
    found = _Found(reading.out_members)
    for instance in reading.instances:
        if not isinstance(instance.host, str):
            found.add(instance, (instance.host,))
        elif instance.host in looked:
            found.add_named(instance, instance.host, names.get(instance.host), families)
        else:
            found.add(instance, ())
            if instance.weight:
                why = f"and {MAX_NAMES} such names are read at most; register IP addresses"
                found.report(instance, instance.host, why)
    left_out = bounded((*reading.left_out, *found.reports))
    if left_out and not (found.servers or found.unread or reading.is_any_out):
        raise UnusableError(f"no instance can be used: {'; '.join(map(str, left_out[:_QUOTED]))}")
    out = {endpoint: identity for endpoint, identity in found.out.items() if endpoint not in found.in_use}
    return Answer(
        tuple(found.servers),
        reading.opt_in,
        out=tuple(sorted(out)),
        identities={endpoint: identity for endpoint, identity in (out | found.identities).items() if identity},
        out_members=tuple(sorted(found.out_members)),
        unread=tuple(sorted(found.unread, key=repr)),
        left_out=left_out,
        note=_note(reading.zoneless, {name: names[name].stays for name in looked & names.keys() if names[name].stays}),
        places=found.places(),
    )


def _note(zoneless: Sequence[str], stays: Mapping[str, float]) -> str | None:
    """Return the remark about instances whose zone cannot be used, and about names whose addresses stay."""
    notes = [note for note in (varying_note(stays),) if note]
    if zoneless:
        some = "; ".join(some_of(zoneless, _QUOTED))
        notes.append(f"{some}: their zone is unknown; register 1 to {MAX_ZONE} bytes of text")
    return "; ".join(notes) or None


class _Found:
    """The members found so far."""

    def __init__(self, out_members: Iterable[str]) -> None:
        self.servers: list[RealServer] = []
        self.in_use: set[Endpoint] = set()
        """The endpoints of `servers`, and last known endpoints of names that cannot be looked up now."""
        self.identities: dict[Endpoint, str] = {}
        """The identity of each of `servers`; empty if it has none."""
        self.out: dict[Endpoint, str] = {}
        """The identity of each endpoint that is out."""
        self.out_members = set(out_members)
        self.zones: dict[Endpoint, str] = {}
        """The zone of each endpoint that has one; the lowest if instances that share it have several."""
        self.registered: dict[Endpoint, int] = {}
        """The weight of each endpoint that is out; the highest if instances share it."""
        self.unlocated: dict[str, tuple[str, int]] = {}
        """Zone and weight of instances without any known address, by identity."""
        self.unread: set[Unread] = set()
        self.reports: set[Refusal] = set()

    def add(self, instance: Instance, addresses: Iterable[Address], kept: Iterable[Address] = ()) -> None:
        """Take an instance with these addresses.

        :param kept: its last known addresses of families that cannot be looked up now.
        """
        identity = instance.identity
        endpoints = [(address, instance.port) for address in addresses]
        stay = [(address, instance.port) for address in kept]
        self.in_use.update(stay)
        if identity and instance.zone and instance.registered and not endpoints and not stay:
            self.unlocated[identity] = instance.zone, instance.registered
        if instance.weight:
            self.servers += (RealServer(0, *endpoint, instance.weight) for endpoint in endpoints)
            self.in_use.update(endpoints)
        elif identity and not endpoints:
            self.out_members.add(identity)
        known = self.identities if instance.weight else self.out
        for endpoint in endpoints:
            other = known.get(endpoint)
            known[endpoint] = min(identity, other) if identity and other else identity or other or ""
            if instance.zone is not None:
                self.zones[endpoint] = min(instance.zone, self.zones.get(endpoint, instance.zone))
            if instance.registered and not instance.weight:
                self.registered[endpoint] = max(instance.registered, self.registered.get(endpoint, 0))

    def places(self) -> Places:
        """Return zones and weights of the members; nothing if zones are not needed."""
        out = {endpoint: weight for endpoint, weight in self.registered.items() if endpoint not in self.in_use}
        return Places(self.zones, out, self.unlocated) if self.zones or out or self.unlocated else NO_PLACES

    def add_named(self, instance: Instance, name: str, known: Known | None, families: frozenset[bool]) -> None:
        """Take an instance whose address is a host name."""
        if not instance.weight:  # it stays out while its name cannot be looked up
            self.add(instance, known.last if known else ())
            return
        if known is None:
            known = NOT_YET
        kept = [address for address in known.last if is_ipv4(address) in known.unread]
        self.add(instance, known.addresses, kept)
        unread = known.unread & families
        if unread and instance.identity:
            family = next(iter(unread)) if len(unread) == 1 else None
            self.unread.add(Unread(instance.identity, None, 0, instance.weight, family))
        if known.cause and (unread or not known.addresses):
            self.report(instance, name, f"which cannot be looked up: {known.cause}; register an IP address, or fix DNS")
        if known.surplus:
            count = len(known.addresses)
            self.report(
                instance, name, f"which has {known.surplus} addresses beyond the {count} that count; register fewer"
            )

    def report(self, instance: Instance, name: str, reason: str) -> None:
        self.reports.add(Refusal(instance.shown, f"has the host name {show(name)} as its address, {reason}"))
