"""Make services of the options and of the tables of the configuration file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from clb_discovery.config.options import Options
from clb_discovery.config.values import Entry, consul_entry, dns_entry, srv_entry
from clb_discovery.config.zones import zone_map
from clb_discovery.errors import UsageError
from clb_discovery.model.check import Check
from clb_discovery.model.servers import Algorithm, PassiveHealth, Vip
from clb_discovery.model.service import CATALOG, CONSUL, Part, RemovalPolicy, Service
from clb_discovery.model.zones import ZoneRule
from clb_discovery.publication.automatic_vips import with_automatic_vips


def read_services(options: Options) -> tuple[Service, ...]:
    """Return the services to follow, with their VIPs and settings.

    In catalog mode the list of Consul's services is one of them. It has no VIPs; its settings are those of every
    service that opts in.

    :raises UsageError: naming the option, the value and how to fix it.
    """
    with _explained("--service"):
        typed = [consul_entry(text) for text in options.service]
    with _explained("--srv"):
        typed += [srv_entry(text) for text in options.srv]
    with _explained("--dns"):
        typed += [dns_entry(text) for text in options.dns]
    sources = {entry.service.source for entry in typed}
    entries = [*typed, *(entry for entry in options.entries if entry.service.source not in sources)]
    in_consul = [
        entry.service.name for entry in entries if any(part.source.startswith(CONSUL) for part in entry.service.parts)
    ]
    if in_consul and options.consul is None:
        raise UsageError(f"{in_consul[0]} is a service in Consul; add --consul [URL], or consul = true in the file")
    if options.catalog and options.consul is None:
        raise UsageError("--catalog follows services in Consul; add --consul [URL], or consul = true in the file")
    if options.catalog or (options.consul is not None and not in_consul):
        entries.append(Entry(Service("catalog", CATALOG, ())))
    if not entries:
        raise UsageError(
            "no service to follow; add --consul to follow the services that opt in, --consul --service NAME[=VIP], "
            "--srv NAME[=VIP] such as --srv _redis._tcp.example=10.64.0.1:6379, or --dns NAME:PORT[=VIP]"
        )
    with _explained("--zone-map"):
        options = replace(options, zone_map=zone_map(options.zone_map))
    services = [_completed(entry, options) for entry in entries]
    with _explained("--vip-range"):
        services = with_automatic_vips(services, options.vip_range)
    merged = merge_services(services, {entry.service.source: entry.place for entry in reversed(entries)})
    checked = {entry.service.source for entry in entries if "check" in entry.settings}
    return tuple(one if one.source in checked else one.with_default_check() for one in merged)


def merge_services(services: Iterable[Service], places: Mapping[str, str]) -> tuple[Service, ...]:
    """Join services of the same source: their VIPs add up, including automatic ones.

    :param places: where each source is written, for messages.
    :raises UsageError: if two services claim one VIP, or if a real server has the address of a VIP, so that connects
        would go in a circle.
    """
    merged: dict[str, Service] = {}
    holders: dict[Vip, str] = {}
    for service in services:
        for vip in service.vips:
            holder = holders.setdefault(vip, service.source)
            if holder != service.source:
                claims = f"{places[holder]} and by {places[service.source]}"
                raise UsageError(f"{vip} is claimed by {claims}; give each service its own VIP")
        other = merged.get(service.source, service)
        vips = tuple(dict.fromkeys(other.vips + service.vips))
        merged[service.source] = replace(service, vips=vips, automatic=service.automatic or other.automatic)
    users: dict[str, str] = {}
    for service in merged.values():
        for part in service.parts:
            user = users.setdefault(part.source, service.source)
            if user != service.source:
                both = f"{places[user]} and in {places[service.source]}"
                raise UsageError(f"{part.source} is in {both}; a source can be in one service only")
    by_address = {vip.address: vip for vip in holders}
    for service in merged.values():
        for server in (server for part in service.parts for server in part.servers):
            if server.address in by_address:
                vip = by_address[server.address]
                raise UsageError(
                    f"the real server {server} of {places[service.source]} has the address of the VIP {vip} of "
                    f"{places[holders[vip]]}, so connects would loop; give the address that the server itself "
                    "listens on"
                )
    return tuple(merged.values())


def _completed(entry: Entry, options: Options) -> Service:
    """Return a service with its settings: its own, else those of the options."""
    own = replace(options, **entry.settings)
    if own.eject_time > own.eject_max:
        times = f"--eject-time {own.eject_time}ms is more than --eject-max {own.eject_max}ms"
        raise UsageError(f"{entry.service.name}: {times}; raise --eject-max")
    active = not own.no_active or own.algorithm is Algorithm.LEAST_CONN
    return replace(
        entry.service,
        algorithm=own.algorithm,
        health=PassiveHealth(
            active=active,
            eject_after=own.eject_after,
            eject_first_ms=own.eject_time,
            eject_most_ms=own.eject_max,
            silent_after_ms=own.silent_after,
            connect_timeout_ms=own.connect_timeout,
            dead_after_ms=own.dead_after,
            checked=own.check is not None,
            suspicion=not own.no_suspicion,
        ),
        check=_check(entry, own),
        zones=None if own.zone is None else ZoneRule(own.zone_min, own.zone_spill, own.zone_map),
        policy=RemovalPolicy(own.max_removal, own.hold),
        parts=tuple(_completed_part(part, own, entry) for part in entry.service.parts),
    )


def _completed_part(part: Part, own: Options, entry: Entry) -> Part:
    """Return a part with its settings: its own, else those of its service."""
    # A static list is the operator's own, so its removals are not held, unless the service says so itself.
    hold = 0.0 if part.is_static and "hold" not in entry.settings else None
    tags = own.tag if part.tags is None else part.tags
    return replace(part, filter=part.filter or own.filter, tags=tags, linger=own.linger, hold=hold)


def _check(entry: Entry, own: Options) -> Check | None:
    """Return how the servers of a service are checked, by its own settings."""
    timeout = min(own.check_interval, 1.0) if own.check_timeout is None else own.check_timeout
    if timeout > own.check_interval:
        times = f"--check-timeout {timeout:g}s is more than --check-interval {own.check_interval:g}s"
        raise UsageError(f"{entry.service.name}: {times}; raise --check-interval")
    if own.check is None:
        return None
    return Check(own.check, own.check_interval, timeout, own.rise, own.fall, own.check_verify)


@contextmanager
def _explained(option: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
