"""From the words of command line and configuration file to services, and to the sources that answer for them."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, TypeVar

from clb_discovery.core import spec
from clb_discovery.core.address import Network, is_ipv4
from clb_discovery.core.automatic import DEFAULT_RANGES, with_automatic_vips
from clb_discovery.core.config import CATALOG, CONSUL, SRV, STATIC, Entry, consul_entry, srv_entry
from clb_discovery.core.model import Algorithm, Policy, Service, Tracking
from clb_discovery.errors import UsageError
from clb_discovery.sources.base import Source
from clb_discovery.sources.static import StaticSource

if TYPE_CHECKING:
    from clb_discovery.sources.srv.host_names import HostNames
    from clb_discovery.sources.srv.resolvers import Resolvers

_Given = TypeVar("_Given")
_Parsed = TypeVar("_Parsed")


def read_services(options: argparse.Namespace) -> tuple[Service, ...]:
    """Read which services to follow, and behind which VIPs.

    In catalog mode the list of Consul's services is one of them, without VIPs; it has the settings of all that opt in.

    :param options: those of the command line, with the `entries` of the configuration file.
    :raises UsageError: naming the option, the value and the way out.
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
        return spec.merge_services(services, places)
    except ValueError as error:
        raise UsageError(str(error)) from None


def vip_ranges(options: argparse.Namespace) -> Sequence[Network]:
    """Return where automatic VIPs come from, and where those of a catalog have to lie."""
    return options.vip_range or DEFAULT_RANGES


@asynccontextmanager
async def open_sources(options: argparse.Namespace, services: Sequence[Service]) -> AsyncIterator[Mapping[str, Source]]:
    """Make the source of each service, by its name; what they share is closed when the block is left.

    Clients that are not needed are not imported: they are most of the start-up time.

    :raises UsageError: if a name, an address or a resolver cannot be used.
    """
    sources: dict[str, Source] = {
        service.source: StaticSource(service.source, service.servers)
        for service in services
        if service.source.startswith(STATIC)
    }

    @cache
    def resolvers() -> Resolvers:
        from clb_discovery.sources.srv.resolvers import Resolvers  # noqa: PLC0415

        return Resolvers(options.resolver)

    def host_names() -> HostNames:
        from clb_discovery.sources.srv.host_names import HostNames  # noqa: PLC0415

        return HostNames(resolvers(), bounds=(options.min_ttl, options.max_ttl))

    if options.resolver:
        resolvers()  # which checks them
    async with AsyncExitStack() as stack:
        consul = [service for service in services if service.source == CATALOG or service.source.startswith(CONSUL)]
        if consul:
            from clb_discovery.sources.consul.client import Selection  # noqa: PLC0415
            from clb_discovery.sources.consul.environment import OPTIONS  # noqa: PLC0415
            from clb_discovery.sources.consul.names import Names  # noqa: PLC0415
            from clb_discovery.sources.consul.source import (  # noqa: PLC0415
                ConsulCatalog,
                ConsulSource,
                server_from_environment,
            )

            given = {variable: getattr(options, name[2:].replace("-", "_")) for variable, name in OPTIONS.items()}
            server = server_from_environment(
                options.consul or None,
                os.environ,
                given,
                options.datacenter,
                names=Names(host_names),
                wait=options.consul_wait,
            )
            stack.push_async_callback(server.close)
            for service in consul:
                selection = Selection(options.near, service.filter, service.tags, options.tagged_address)
                sources[service.source] = (
                    ConsulCatalog(server, selection)
                    if service.source == CATALOG
                    else ConsulSource(server, service.source.removeprefix(CONSUL), selection, _families(service))
                )
        srv = [service for service in services if service.source.startswith(SRV)]
        if srv:
            from clb_discovery.sources.srv.source import BOTH, SrvSource  # noqa: PLC0415

            for service in srv:
                record = service.source.removeprefix(SRV)
                sources[service.source] = SrvSource(
                    record,
                    resolvers(),
                    options.min_ttl,
                    options.max_ttl,
                    families=_families(service) or BOTH,
                    linger=service.linger,
                )
        yield sources


def _families(service: Service) -> frozenset[bool]:
    """Return the families of its VIPs, True for IPv4."""
    return frozenset(is_ipv4(vip.address) for vip in service.vips)


def _completed(entry: Entry, options: argparse.Namespace) -> Service:
    """Give a service what it has no own of."""
    own = argparse.Namespace(**{**vars(options), **entry.settings})
    try:
        tracking = _tracking(own)
    except UsageError as error:
        raise UsageError(f"{entry.service.name}: {error}") from None
    return replace(
        entry.service,
        algorithm=own.algorithm,
        tracking=tracking,
        policy=Policy(own.max_removal, own.hold),
        filter=own.filter,
        tags=tuple(own.tag),
        linger=own.linger,
    )


def _tracking(options: argparse.Namespace) -> Tracking:
    if options.eject_time > options.eject_max:
        raise UsageError(
            f"--eject-time {options.eject_time}ms is more than --eject-max {options.eject_max}ms; raise the second"
        )
    active = not options.no_active or options.algorithm is Algorithm.LEAST_CONN
    return Tracking(active, options.eject_after, options.eject_time, options.eject_max)


def _parsed(option: str, parse: Callable[[_Given], _Parsed], given: _Given) -> _Parsed:
    try:
        return parse(given)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
