"""Parse the entries of `/v1/health/service/<name>`: which instances serve, where, and with which weight.

Health and weights follow the rule that Consul applies for Envoy: the weight is `Weights.Passing`, or `Weights.Warning`
if any check warns; an instance with a critical check is out, and so is one whose weight is below 1. Maintenance is a
critical check (`_node_maintenance`, `_service_maintenance:<id>`).

Each entry is parsed on its own. A service may register nonsense, so an instance that cannot be used is left out and
reported, and never affects the others. Only an answer that is not a list is an error. An address may be a host name;
it is not looked up here.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, TypeGuard

from clb_discovery.errors import SourceError
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.answer import OptIn, Refusal
from clb_discovery.model.servers import MAX_PORT, MAX_WEIGHT
from clb_discovery.model.zones import is_zone
from clb_discovery.sources.consul.opt_in import claims, opt_in
from clb_discovery.text import printable

Json = Mapping[str, object]


class Check(NamedTuple):
    """A check that is not passing."""

    node: str
    check_id: str
    service: str
    """Empty for a check of the node itself."""
    status: str


MAX_NAMES: Final = 1024
"""Maximum number of host names among the addresses of one service."""
MAX_REPORTS: Final = 16
"""Maximum number of reports about single instances of one answer; one more report counts the others."""

_DEFAULT_WEIGHT: Final = 1
_CHECK_KEYS: Final = ("Node", "CheckID", "ServiceName", "Status")
_PARTS: Final = ("Node", "Service", "Checks")
_NO_PARTS: Final = (None, None, None)
_NO_PLACE: Final = (0, None)
_STATUSES: Final = frozenset({"passing", "warning"})
_CRITICAL: Final = "critical"
_LONGEST_NAME: Final = 253
_HOST_NAME: Final = re.compile(r"(?:[a-z0-9_][a-z0-9_-]{0,62}\.)*[a-z_][a-z0-9_-]{0,62}\.?", re.ASCII | re.IGNORECASE)
"""The last label starts with a letter (RFC 3696 section 2), so `10.0.0.300` is not a host name."""
_LONGEST_IDENTITY: Final = 255
_IDENTITY_PREFIX: Final = 64
_REPR: Final = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_SHOWN: Final = 120


class Instance(NamedTuple):
    """An instance whose entry can be read."""

    node: str
    """Name of its node, as untrusted text; empty if there is none."""
    service_id: str
    """Its service ID, as untrusted text; empty if there is none."""
    host: Address | str
    """Its address, or the host name that is registered as its address, in lower case."""
    port: int
    weight: int
    """0 if it is critical, in maintenance, or has a weight below 1."""
    registered: int = 0
    """The weight that it has when it passes; 0 if zones are not needed."""
    zone: str | None = None

    @property
    def identity(self) -> str:
        """Node and service ID as one bounded printable text, unique for each pair; empty if either is missing."""
        if not self.node or not self.service_id:
            return ""
        plain = f"{self.node}/{self.service_id}"
        if len(plain) <= _LONGEST_IDENTITY and plain.isprintable() and "/" not in self.node and "~" not in plain:
            return plain
        digest = hashlib.sha256(json.dumps([self.node, self.service_id]).encode()).hexdigest()[:32]
        return f"{printable(plain[:_IDENTITY_PREFIX])[:_IDENTITY_PREFIX]}~{digest}"

    @property
    def shown(self) -> str:
        """Its name in reports."""
        return _shown(self.node, self.service_id)


class Reading(NamedTuple):
    """The parsed entries of one answer."""

    instances: tuple[Instance, ...] = ()
    """In Consul's order, duplicates included."""
    left_out: tuple[Refusal, ...] = ()
    """All instances that should serve but cannot be used."""
    is_any_out: bool = False
    """Whether an instance is out, including one whose endpoint is malformed."""
    out_members: frozenset[str] = frozenset()
    """The identities of instances that are out and whose endpoints are malformed."""
    opt_in: OptIn | None = None
    zoneless: tuple[str, ...] = ()
    """Remarks about instances whose zone cannot be used, sorted."""
    declines: bool = False
    """Whether each entry has a registration, and none of them opts in."""

    @property
    def host_names(self) -> frozenset[str]:
        """The host names among the addresses: the lowest `MAX_NAMES` of them."""
        names = {instance.host for instance in self.instances if isinstance(instance.host, str)}
        return frozenset(sorted(names)[:MAX_NAMES])


class _UnusableError(Exception):
    """Why an instance cannot be used: a clause that continues its name."""


def parse_entries(entries: object, tagged: str | None = None, zone_key: str | None = None) -> Reading:
    """Parse the decoded JSON entries.

    :param entries: a list of objects with `Node`, `Service` and `Checks`.
    :param tagged: name of the tagged address to use if an instance has it.
    :param zone_key: name of the meta with the zone; `None` if zones are not needed.
    :raises SourceError: if `entries` is not a list.
    """
    if not isinstance(entries, list):
        raise SourceError(f"Consul returned {show(entries)} instead of a list of instances; is this Consul?")
    instances: list[Instance] = []
    left_out: list[Refusal] = []
    is_any_out = False
    out_members: set[str] = set()
    strange: dict[str, object] = {}
    for entry in entries:
        node, service, checks = (entry.get(key) for key in _PARTS) if _is_object(entry) else _NO_PARTS
        try:
            weight = 0 if _is_critical(checks) else _weight(service, checks)
        except _UnusableError as error:
            left_out.append(_refused(entry, error))
            continue
        is_any_out |= weight == 0
        try:
            host, port = _endpoint(node, service, tagged)
            place = _NO_PLACE if zone_key is None else _place(node, service, zone_key, strange)
            instances.append(
                Instance(_name(node, "Node"), _name(service, "ID"), _host(host), _port(port), weight, *place)
            )
        except _UnusableError as error:
            if weight:
                left_out.append(_refused(entry, error))
            else:
                out_members.add(Instance(_name(node, "Node"), _name(service, "ID"), "", 0, weight).identity)
    claimed = _read_opt_in(entries)
    return Reading(
        tuple(instances),
        tuple(left_out),
        is_any_out,
        frozenset(out_members - {""}),
        claimed,
        tuple(sorted(f"{name} has the zone {show(zone)}" for name, zone in strange.items())),
        claimed is None and all(_is_object(entry) and _is_object(entry.get("Service")) for entry in entries),
    )


def bounded(reports: Iterable[Refusal]) -> tuple[Refusal, ...]:
    """Return the first `MAX_REPORTS` in alphabetical order, and one report that counts the others."""
    ordered = sorted(reports)
    more = len(ordered) - MAX_REPORTS
    if more <= 0:
        return tuple(ordered)
    return (*ordered[:MAX_REPORTS], Refusal(f"{more} more instances", "cannot be used either; correct those first"))


def show(value: object) -> str:
    """Return untrusted JSON as one short printable text."""
    text = _REPR.repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def parse_names(services: object) -> frozenset[str]:
    """Return the services with a tag that opts in, from the decoded JSON of `/v1/catalog/services`.

    :raises SourceError: if it is not an object.
    """
    tags = _object(services, "the list of services")
    return frozenset(name for name, own in tags.items() if claims(None, own) is not None)


def parse_service_names(services: object) -> frozenset[str]:
    """Return all services of the same JSON; raises as `parse_names`."""
    return frozenset(_object(services, "the list of services"))


def parse_summaries(summaries: object) -> frozenset[str]:
    """Return the names in the decoded JSON of `/v1/internal/ui/services`, without those of peered clusters.

    :raises SourceError: if it is not a list of summaries.
    """
    if summaries is None:  # Go writes an empty list as null
        return frozenset()
    if not isinstance(summaries, list):
        raise SourceError(f"Consul returned {show(summaries)} instead of a list of services; is this Consul?")
    objects = [_object(summary, "a service") for summary in summaries]
    return frozenset(_text(one.get("Name")) for one in objects if not one.get("PeerName")) - {""}


def parse_checks(checks: object) -> frozenset[Check]:
    """Return the fields that decide about health, from the decoded JSON of `/v1/health/state/any`.

    :raises SourceError: if it is not a list of checks.
    """
    if not isinstance(checks, list):
        raise SourceError(f"Consul returned {show(checks)} instead of a list of checks; is this Consul?")
    objects = (_object(check, "a check") for check in checks)
    return frozenset(Check(*(_text(check.get(key)) for key in _CHECK_KEYS)) for check in objects)


def _read_opt_in(entries: list[object]) -> OptIn | None:
    """Return the virtual servers that the instances claim for their service.

    Proxies of Consul Connect do not count: they inherit meta and tags from their service.
    """
    found = [
        (entry.get("Node"), own)
        for entry in entries
        if _is_object(entry) and _is_object(own := entry.get("Service")) and not own.get("Kind")
    ]
    claimed = opt_in(claims(own.get("Meta"), own.get("Tags")) for _, own in found)
    if claimed is None:
        return None
    identities = (Instance(_name(node, "Node"), _name(own, "ID"), "", 0, 0).identity for node, own in found)
    return replace(claimed, instances=frozenset(identities) - {""})


def _refused(entry: object, error: _UnusableError) -> Refusal:
    if not _is_object(entry):
        return Refusal(f"instance {show(entry)}", "is not an object; is this Consul?")
    node, service = entry.get("Node"), entry.get("Service")
    return Refusal(
        _shown(node.get("Node") if _is_object(node) else None, service.get("ID") if _is_object(service) else None),
        str(error),
    )


def _shown(node: object, service_id: object) -> str:
    return f"instance {show(service_id)} on node {show(node)}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _name(part: object, key: str) -> str:
    return _text(part.get(key)) if _is_object(part) else ""


def _is_critical(checks: object) -> bool:
    """Return whether any check is critical, even if other checks are malformed."""
    return isinstance(checks, list) and any(_is_object(check) and check.get("Status") == _CRITICAL for check in checks)


def _weight(service: object, checks: object) -> int:
    """Return the weight of an instance without a critical check; 0 if it is below 1."""
    statuses = _statuses(checks)
    weights = _part(service, "Service").get("Weights")
    if weights is None:
        return _DEFAULT_WEIGHT
    kind = "Warning" if "warning" in statuses else "Passing"
    weight = _part(weights, "Weights").get(kind, _DEFAULT_WEIGHT)
    if not _is_integer(weight):
        raise _UnusableError(f"has {show(weight)} as Weights.{kind}; register an integer")
    return min(max(weight, 0), MAX_WEIGHT)


def _statuses(checks: object) -> set[str]:
    if checks is None:  # Go writes an empty list as null
        return set()
    if not isinstance(checks, list):
        raise _UnusableError(f"has {show(checks)} as Checks instead of a list; is this Consul?")
    statuses = set()
    for check in checks:
        status = _part(check, "one of its Checks").get("Status")
        if not isinstance(status, str) or status not in _STATUSES:
            raise _UnusableError(f"has a check with status {show(status)} instead of passing, warning or critical")
        statuses.add(status)
    return statuses


def _place(node: object, service: object, key: str, strange: dict[str, object]) -> tuple[int, str | None]:
    """Return the weight that an instance has when it passes, and its zone.

    :param key: of the meta with the zone.
    :param strange: takes a zone that cannot be used, by the name of its instance.
    """
    weights = service.get("Weights") if _is_object(service) else None
    passing = weights.get("Passing", _DEFAULT_WEIGHT) if _is_object(weights) else _DEFAULT_WEIGHT
    registered = min(max(passing, 0), MAX_WEIGHT) if _is_integer(passing) else _DEFAULT_WEIGHT
    for part in (service, node):
        meta = part.get("Meta") if _is_object(part) else None
        zone = meta.get(key) if _is_object(meta) else None
        if zone:
            if isinstance(zone, str) and is_zone(zone):
                return registered, zone
            strange[_shown(_name(node, "Node"), _name(service, "ID"))] = zone
            break
    return registered, None


def _endpoint(node: object, service: object, tagged: str | None) -> tuple[object, object]:
    """Return address and port as registered; the service's own address takes precedence over the node's."""
    node, service = _part(node, "Node"), _part(service, "Service")
    port = service.get("Port")
    if tagged is not None:
        own = _part(service.get("TaggedAddresses") or {}, "TaggedAddresses").get(tagged)
        if own is not None:
            own = _part(own, f"TaggedAddresses.{tagged}")
            return own.get("Address"), own.get("Port") or port
    if service.get("Address"):
        return service.get("Address"), port
    if tagged is None:
        return node.get("Address"), port
    return _part(node.get("TaggedAddresses") or {}, "TaggedAddresses").get(tagged) or node.get("Address"), port


def _host(value: object) -> Address | str:
    text = value if isinstance(value, str) and len(value) <= _LONGEST_NAME else ""
    if _HOST_NAME.fullmatch(text):
        return text.lower()
    try:
        return parse_address(text)
    except ValueError:
        raise _UnusableError(
            f"has the address {show(value)}, which is neither an IP address nor a host name; register one in Address"
        ) from None


def _port(value: object) -> int:
    if not _is_integer(value) or not 1 <= value <= MAX_PORT:
        raise _UnusableError(f"has the port {show(value)}; register one from 1 to {MAX_PORT}")
    return value


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_object(value: object) -> TypeGuard[Json]:
    return isinstance(value, dict)


def _part(value: object, what: str) -> Json:
    """Return a part of an instance; it has to be an object."""
    if not isinstance(value, dict):
        raise _UnusableError(f"has {show(value)} as {what} instead of an object; is this Consul?")
    return value


def _object(value: object, what: str) -> Json:
    if not isinstance(value, dict):
        raise SourceError(f"{what} is {show(value)} instead of an object; is this Consul?")
    return value
