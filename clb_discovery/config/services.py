"""Make services of the options and of the tables of the configuration file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from clb_discovery.config import values
from clb_discovery.config.entries import Entry, consul_entry, srv_entry
from clb_discovery.config.options import Options
from clb_discovery.errors import UsageError
from clb_discovery.model.address import Network
from clb_discovery.model.servers import Algorithm, PassiveHealth
from clb_discovery.model.service import CATALOG, CONSUL, RemovalPolicy, Service
from clb_discovery.publication.automatic_vips import DEFAULT_RANGES, with_automatic_vips

_Given = TypeVar("_Given")
_Parsed = TypeVar("_Parsed")


def read_services(options: Options) -> tuple[Service, ...]:
    """Return the services to follow, with their VIPs and settings.

    In catalog mode the list of Consul's services is one of them. It has no VIPs; its settings are those of every
    service that opts in.

    :raises UsageError: naming the option, the value and how to fix it.
    """
    typed = [_parsed("--service", consul_entry, text) for text in options.service]
    typed += [_parsed("--srv", srv_entry, text) for text in options.srv]
    sources = {entry.service.source for entry in typed}
    entries = [*typed, *(entry for entry in options.entries if entry.service.source not in sources)]
    in_consul = [entry.service.name for entry in entries if entry.service.source.startswith(CONSUL)]
    if in_consul and options.consul is None:
        raise UsageError(f"{in_consul[0]} is a service in Consul; add --consul [URL], or consul = true to the file")
    if options.catalog and options.consul is None:
        raise UsageError("--catalog follows services in Consul; add --consul [URL], or consul = true to the file")
    if options.catalog or (options.consul is not None and not in_consul):
        entries.append(Entry(Service("catalog", CATALOG, ())))
    if not entries:
        raise UsageError(
            "no service to follow; add --consul for the services that opt in there, --consul --service NAME[=VIP], or "
            "--srv NAME[=VIP] such as --srv _redis._tcp.example=10.64.0.1:6379"
        )
    services = [_completed(entry, options) for entry in entries]
    services = _parsed("--vip-range", partial(with_automatic_vips, ranges=vip_ranges(options)), services)
    places = {entry.service.source: entry.place for entry in reversed(entries)}
    try:
        return values.merge_services(services, places)
    except ValueError as error:
        raise UsageError(str(error)) from None


def vip_ranges(options: Options) -> Sequence[Network]:
    """Return the ranges that automatic VIPs are taken from, and in which the VIPs of a catalog have to lie."""
    return options.vip_range or DEFAULT_RANGES


def _completed(entry: Entry, options: Options) -> Service:
    """Return a service with its settings: its own, else those of the options."""
    own = replace(options, **entry.settings)
    try:
        health = _passive_health(own)
    except UsageError as error:
        raise UsageError(f"{entry.service.name}: {error}") from None
    return replace(
        entry.service,
        algorithm=own.algorithm,
        health=health,
        policy=RemovalPolicy(own.max_removal, own.hold),
        filter=own.filter,
        tags=own.tag,
        linger=own.linger,
    )


def _passive_health(options: Options) -> PassiveHealth:
    if options.eject_time > options.eject_max:
        raise UsageError(
            f"--eject-time {options.eject_time}ms is more than --eject-max {options.eject_max}ms; raise the second"
        )
    active = not options.no_active or options.algorithm is Algorithm.LEAST_CONN
    return PassiveHealth(active, options.eject_after, options.eject_time, options.eject_max)


def _parsed(option: str, parse: Callable[[_Given], _Parsed], given: _Given) -> _Parsed:
    try:
        return parse(given)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
