"""Read the entries of `/v1/health/service/<name>`: who serves, where, and with which weight.

Health and weights follow Consul's own rule towards Envoy: the weight is `Weights.Passing`, or `Weights.Warning` when
any check warns; an instance with a critical check is out, and so is one whose weight is below 1. Maintenance is a
critical check (`_node_maintenance`, `_service_maintenance:<id>`).

An instance that should serve but cannot be used (no port, a host name, a strange status) is an error of the whole
answer: leaving it out in silence could empty a pool, and the last known good answer stays meanwhile.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Final, TypeGuard

from clb_discovery.core.address import Address, parse_address
from clb_discovery.core.model import MAX_PORT, MAX_WEIGHT, Answer, RealServer
from clb_discovery.errors import SourceError

Json = Mapping[str, object]

_DEFAULT_WEIGHT: Final = 1
_STATUSES: Final = frozenset({"passing", "warning", "critical"})
_LONGEST_ADDRESS: Final = 64
_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


def parse_entries(entries: object) -> Answer:
    """Return the real servers among the decoded JSON entries, in Consul's order, duplicates included.

    :param entries: what the JSON said: a list of objects with `Node`, `Service` and `Checks`.
    :raises SourceError: if it is anything else, or an instance that should serve cannot be used.
    """
    if not isinstance(entries, list):
        raise SourceError(f"Consul answered {_SHOWN.repr(entries)} where a list of instances belongs; is this Consul?")
    servers = (_real_server(_object(entry, "an instance")) for entry in entries)
    return Answer(tuple(server for server in servers if server is not None))


def _real_server(entry: Json) -> RealServer | None:
    """Return the instance as a real server; `None` if it is out."""
    node = _object(entry.get("Node"), "the Node of an instance")
    service = _object(entry.get("Service"), "the Service of an instance")
    try:
        statuses = _statuses(entry.get("Checks"))
        if "critical" in statuses:
            return None
        weight = _weight(service.get("Weights"), "Warning" if "warning" in statuses else "Passing")
        if weight < 1:
            return None
        return RealServer(
            priority=0,
            address=_address(service.get("Address") or node.get("Address")),
            port=_port(service.get("Port")),
            weight=min(weight, MAX_WEIGHT),
        )
    except SourceError as error:
        who = f"instance {_SHOWN.repr(service.get('ID'))} on node {_SHOWN.repr(node.get('Node'))}"
        raise SourceError(f"{who}: {error}") from None


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


def _address(value: object) -> Address:
    try:
        if not isinstance(value, str) or len(value) > _LONGEST_ADDRESS:
            raise ValueError  # noqa: TRY301  # one message for everything that is no address
        return parse_address(value)
    except ValueError:
        raise SourceError(
            f"the address {_SHOWN.repr(value)} is no IP address; register it with one in Address"
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
