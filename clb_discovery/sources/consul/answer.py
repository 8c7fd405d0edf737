"""Read the entries of `/v1/health/service/<name>`: who serves, where, and with which weight.

Health and weights follow Consul's own rule towards Envoy: the weight is `Weights.Passing`, or `Weights.Warning` when
any check warns; an instance with a critical check is out, and so is one whose weight is below 1. Maintenance is a
critical check (`_node_maintenance`, `_service_maintenance:<id>`).

An instance that should serve but cannot be used (no port, no address, a strange status) is an error of the whole
answer: leaving it out in silence could empty a pool, and the last known good answer stays meanwhile. An address may be
a host name; looking it up is not done here.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeGuard

from clb_discovery.core.address import Address, parse_address
from clb_discovery.core.model import MAX_PORT, MAX_WEIGHT, OptIn, RealServer
from clb_discovery.core.optin import opt_in, said
from clb_discovery.errors import SourceError

Json = Mapping[str, object]


class Check(NamedTuple):
    """A check that is not passing."""

    node: str
    check_id: str
    service: str
    """Empty for a check of the node itself."""
    status: str


_DEFAULT_WEIGHT: Final = 1
_CHECK_KEYS: Final = ("Node", "CheckID", "ServiceName", "Status")
_STATUSES: Final = frozenset({"passing", "warning", "critical"})
_LONGEST_NAME: Final = 253
_HOST_NAME: Final = re.compile(r"(?:[a-z0-9_][a-z0-9_-]{0,62}\.)*[a-z_][a-z0-9_-]{0,62}\.?", re.ASCII | re.IGNORECASE)
"""The last label starts with a letter (RFC 3696 section 2), so that `10.0.0.300` is none."""
_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


class Instance(NamedTuple):
    """An instance that serves."""

    host: Address | str
    """Its address, or the host name that stands there."""
    port: int
    weight: int


def parse_entries(entries: object, tagged: str | None = None) -> tuple[Instance, ...]:
    """Return the instances that serve among the decoded JSON entries, in Consul's order, duplicates included.

    :param entries: what the JSON said: a list of objects with `Node`, `Service` and `Checks`.
    :param tagged: name of the tagged address to use where an instance has it.
    :raises SourceError: if it is anything else, or an instance that should serve cannot be used.
    """
    if not isinstance(entries, list):
        raise SourceError(f"Consul answered {_SHOWN.repr(entries)} where a list of instances belongs; is this Consul?")
    found = (_instance(_object(entry, "an instance"), tagged) for entry in entries)
    return tuple(instance for instance in found if instance is not None)


def host_names(instances: Iterable[Instance]) -> frozenset[str]:
    """Return the host names among the addresses."""
    return frozenset(instance.host for instance in instances if isinstance(instance.host, str))


def to_servers(instances: Iterable[Instance], addresses: Mapping[str, Sequence[Address]]) -> tuple[RealServer, ...]:
    """Return the instances as real servers of one tier, one for each address of a host name.

    :param addresses: of each of `host_names`.
    """
    return tuple(
        RealServer(0, address, instance.port, instance.weight)
        for instance in instances
        for address in (addresses[instance.host] if isinstance(instance.host, str) else (instance.host,))
    )


def read_opt_in(entries: object) -> OptIn | None:
    """Return what the instances among the decoded JSON entries say about their service's virtual servers.

    Those of Connect's proxies do not count: they take over meta and tags of the service that they stand before.

    :returns: None if none of them opts in; whatever is there, nothing is raised.
    """
    found = (entry.get("Service") for entry in entries if isinstance(entry, dict)) if isinstance(entries, list) else ()
    services = (service for service in found if isinstance(service, dict) and not service.get("Kind"))
    return opt_in(said(service.get("Meta"), service.get("Tags")) for service in services)


def parse_names(services: object) -> frozenset[str]:
    """Return the services with a tag that opts in among the decoded JSON of `/v1/catalog/services`.

    :raises SourceError: if it is no object.
    """
    tags = _object(services, "the list of services")
    return frozenset(name for name, own in tags.items() if said(None, own) is not None)


def parse_summaries(summaries: object) -> frozenset[str]:
    """Return the names in the decoded JSON of `/v1/internal/ui/services`, without those of other clusters.

    :raises SourceError: if it is no list of summaries.
    """
    if summaries is None:  # Go writes an empty list as null
        return frozenset()
    if not isinstance(summaries, list):
        raise SourceError(f"Consul answered {_SHOWN.repr(summaries)} where a list of services belongs; is this Consul?")
    objects = [_object(summary, "a service") for summary in summaries]
    return frozenset(_text(one.get("Name")) for one in objects if not one.get("PeerName")) - {""}


def parse_checks(checks: object) -> frozenset[Check]:
    """Return what of the decoded JSON of `/v1/health/state/any` says who serves.

    :raises SourceError: if it is no list of checks.
    """
    if not isinstance(checks, list):
        raise SourceError(f"Consul answered {_SHOWN.repr(checks)} where a list of checks belongs; is this Consul?")
    objects = (_object(check, "a check") for check in checks)
    return frozenset(Check(*(_text(check.get(key)) for key in _CHECK_KEYS)) for check in objects)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _instance(entry: Json, tagged: str | None) -> Instance | None:
    """Return the instance; `None` if it is out."""
    node = _object(entry.get("Node"), "the Node of an instance")
    service = _object(entry.get("Service"), "the Service of an instance")
    try:
        statuses = _statuses(entry.get("Checks"))
        if "critical" in statuses:
            return None
        weight = _weight(service.get("Weights"), "Warning" if "warning" in statuses else "Passing")
        if weight < 1:
            return None
        host, port = _endpoint(node, service, tagged)
        return Instance(_host(host), _port(port), min(weight, MAX_WEIGHT))
    except SourceError as error:
        who = f"instance {_SHOWN.repr(service.get('ID'))} on node {_SHOWN.repr(node.get('Node'))}"
        raise SourceError(f"{who}: {error}") from None


def _endpoint(node: Json, service: Json, tagged: str | None) -> tuple[object, object]:
    """Return address and port as they stand there: the service's own address goes before all of the node's."""
    port = service.get("Port")
    if tagged is not None:
        own = _object(service.get("TaggedAddresses") or {}, "TaggedAddresses").get(tagged)
        if own is not None:
            own = _object(own, f"TaggedAddresses.{tagged}")
            return own.get("Address"), own.get("Port") or port
    if service.get("Address") or tagged is None:
        return service.get("Address") or node.get("Address"), port
    return _object(node.get("TaggedAddresses") or {}, "TaggedAddresses").get(tagged) or node.get("Address"), port


def _statuses(checks: object) -> set[str]:
    if checks is None:  # Go writes an empty list as null
        return set()
    if not isinstance(checks, list):
        raise SourceError(f"Checks is {_SHOWN.repr(checks)}, where a list belongs; is this Consul?")
    statuses = set()
    for check in checks:
        status = _object(check, "a check").get("Status")
        if not isinstance(status, str) or status not in _STATUSES:
            raise SourceError(f"a check is {_SHOWN.repr(status)}; what can be used is passing, warning or critical")
        statuses.add(status)
    return statuses


def _weight(weights: object, kind: str) -> int:
    if weights is None:
        return _DEFAULT_WEIGHT
    weight = _object(weights, "Weights").get(kind, _DEFAULT_WEIGHT)
    if not _is_integer(weight):
        raise SourceError(f"Weights.{kind} is {_SHOWN.repr(weight)}; register it with an integer")
    return weight


def _host(value: object) -> Address | str:
    text = value if isinstance(value, str) and len(value) <= _LONGEST_NAME else ""
    if _HOST_NAME.fullmatch(text):
        return text.lower()
    try:
        return parse_address(text)
    except ValueError:
        raise SourceError(
            f"the address {_SHOWN.repr(value)} is no IP address and no host name; register it with one in Address"
        ) from None


def _port(value: object) -> int:
    if not _is_integer(value) or not 1 <= value <= MAX_PORT:
        raise SourceError(f"the port is {_SHOWN.repr(value)}; register it with one from 1 to {MAX_PORT}")
    return value


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(value: object, what: str) -> Json:
    if not isinstance(value, dict):
        raise SourceError(f"{what} is {_SHOWN.repr(value)}, where an object belongs; is this Consul?")
    return value
