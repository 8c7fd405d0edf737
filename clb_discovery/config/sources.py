"""Open the source of each service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING

from clb_discovery.config.options import Options
from clb_discovery.config.values import parse_name_and_port
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.service import CATALOG, CONSUL, DNS, SRV, STATIC, Service
from clb_discovery.sources.base import Source
from clb_discovery.sources.static import StaticSource

if TYPE_CHECKING:
    from clb_discovery.sources.dns.host_names import HostNames
    from clb_discovery.sources.dns.resolvers import Resolvers


@asynccontextmanager
async def open_sources(options: Options, services: Sequence[Service]) -> AsyncIterator[Mapping[str, Source]]:
    """Open the source of each service; connections that they share are closed when the block is left.

    Clients are imported only if a service needs them: their import is most of the start-up time.

    :raises UsageError: if a name, an address or a resolver cannot be used.
    """
    static = (service for service in services if service.source.startswith(STATIC))
    sources: dict[str, Source] = {one.source: StaticSource(one.source, one.servers) for one in static}

    @cache
    def resolvers() -> Resolvers:
        from clb_discovery.sources.dns.resolvers import Resolvers  # noqa: PLC0415

        return Resolvers(options.resolver)

    def host_names() -> HostNames:
        from clb_discovery.sources.dns.host_names import HostNames  # noqa: PLC0415

        return HostNames(resolvers(), bounds=(options.min_ttl, options.max_ttl))

    if options.resolver:
        resolvers()  # checks the addresses, even if no service needs DNS
    async with AsyncExitStack() as stack:
        consul = [service for service in services if service.source == CATALOG or service.source.startswith(CONSUL)]
        if consul:
            from clb_discovery.sources.consul.client import Selection  # noqa: PLC0415
            from clb_discovery.sources.consul.environment import OPTIONS  # noqa: PLC0415
            from clb_discovery.sources.consul.names import Names  # noqa: PLC0415
            from clb_discovery.sources.consul.source import ConsulCatalog, ConsulSource, server_from_environment  # noqa: PLC0415

            given = {variable: getattr(options, name[2:].replace("-", "_")) for variable, name in OPTIONS.items()}
            url, environment, wait = options.consul or None, options.consul_environment, options.consul_wait
            names = Names(host_names)
            server = server_from_environment(url, environment, given, options.datacenter, names=names, wait=wait)
            stack.push_async_callback(server.close)
            for service in consul:
                selection = Selection(options.near, service.filter, service.tags, options.tagged_address)
                sources[service.source] = (
                    ConsulCatalog(server, selection)
                    if service.source == CATALOG
                    else ConsulSource(server, service.source.removeprefix(CONSUL), selection, _families(service))
                )
        in_dns = [service for service in services if service.source.startswith((SRV, DNS))]
        if in_dns:
            from clb_discovery.sources.dns.addresses import AddressSource  # noqa: PLC0415
            from clb_discovery.sources.dns.source import BOTH  # noqa: PLC0415
            from clb_discovery.sources.dns.srv import SrvSource  # noqa: PLC0415

            ttls = options.min_ttl, options.max_ttl
            for service in in_dns:
                families, linger = _families(service) or BOTH, service.linger
                if service.source.startswith(SRV):
                    record = service.source.removeprefix(SRV)
                    sources[service.source] = SrvSource(record, resolvers(), *ttls, families=families, linger=linger)
                else:
                    name, port = parse_name_and_port(service.source.removeprefix(DNS))
                    sources[service.source] = AddressSource(
                        name, port, resolvers(), *ttls, families=families, linger=linger
                    )
        yield sources


def _families(service: Service) -> frozenset[bool]:
    """Return the address families of its VIPs, True for IPv4."""
    return frozenset(is_ipv4(vip.address) for vip in service.vips)
