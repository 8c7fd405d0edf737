"""Open the source of each service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING

from clb_discovery.config.options import Options
from clb_discovery.config.values import parse_name_and_port
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.service import CATALOG, CONSUL, DNS, SRV, Part, Service
from clb_discovery.sources.base import Source
from clb_discovery.sources.static import StaticSource

if TYPE_CHECKING:
    from clb_discovery.sources.consul.names import Names
    from clb_discovery.sources.consul.server import ConsulServer
    from clb_discovery.sources.dns.host_names import HostNames
    from clb_discovery.sources.dns.resolvers import Resolvers


@asynccontextmanager
async def open_sources(options: Options, services: Sequence[Service]) -> AsyncIterator[Mapping[str, Source]]:
    """Open the source of each service; connections that they share are closed when the block is left.

    Clients are imported only if a service needs them: their import is most of the start-up time.

    :raises UsageError: if a name, an address or a resolver cannot be used.
    """
    parts = [(part, _families(service)) for service in services for part in service.parts]
    zoned = {part.source for service in services if service.zones for part in service.parts}
    sources: dict[str, Source] = {
        part.source: StaticSource(part.source, part.servers) for part, _ in parts if part.is_static
    }

    @cache
    def resolvers() -> Resolvers:
        return _resolvers(options)

    if options.resolver:
        resolvers()  # checks the addresses, even if no service needs DNS
    async with AsyncExitStack() as stack:
        consul = [one for one in parts if one[0].source == CATALOG or one[0].source.startswith(CONSUL)]
        if consul:
            from clb_discovery.sources.consul.client import Selection  # noqa: PLC0415
            from clb_discovery.sources.consul.names import Names  # noqa: PLC0415
            from clb_discovery.sources.consul.source import ConsulCatalog, ConsulSource  # noqa: PLC0415

            names = Names(lambda: _host_names(options, resolvers()))

            @cache
            def server(datacenter: str | None) -> ConsulServer:
                made = _agent(options, names, datacenter)
                stack.push_async_callback(made.close)
                return made

            key = options.zone_key
            for part, families in consul:
                zone_key = key if part.source in zoned else None
                selection = Selection(options.near, part.filter, part.tags or (), options.tagged_address, zone_key)
                agent, lingers = server(part.datacenter), part.linger != 0
                sources[part.source] = (
                    ConsulCatalog(agent, selection, lingers=lingers)
                    if part.source == CATALOG
                    else ConsulSource(agent, part.name, selection, families, part.source, lingers=lingers)
                )
        for part, families in parts:
            if part.source.startswith((SRV, DNS)):
                sources[part.source] = _in_dns(part, families, resolvers(), options)
        yield sources


async def own_zone(options: Options) -> str:
    """Query the agent on this host for the zone of its node.

    :raises SourceError: if it is not known.
    :raises UsageError: if the agent's address, or a resolver, cannot be used.
    """
    from clb_discovery.sources.consul.names import Names  # noqa: PLC0415

    agent = _agent(options, Names(lambda: _host_names(options, _resolvers(options))))
    try:
        return await agent.zone(options.zone_key)
    finally:
        await agent.close()


def _resolvers(options: Options) -> Resolvers:
    from clb_discovery.sources.dns.resolvers import Resolvers  # noqa: PLC0415

    return Resolvers(options.resolver)


def _host_names(options: Options, resolvers: Resolvers) -> HostNames:
    from clb_discovery.sources.dns.host_names import HostNames  # noqa: PLC0415

    return HostNames(resolvers, bounds=(options.min_ttl, options.max_ttl))


def _agent(options: Options, names: Names, datacenter: str | None = None) -> ConsulServer:
    """Return the agent for one datacenter, with connections of its own.

    :param names: resolver of host names.
    :param datacenter: None for that of the options.
    """
    from clb_discovery.sources.consul.environment import OPTIONS  # noqa: PLC0415
    from clb_discovery.sources.consul.server import LOCAL, REMOTE  # noqa: PLC0415
    from clb_discovery.sources.consul.source import server_from_environment  # noqa: PLC0415

    return server_from_environment(
        options.consul or None,
        options.consul_environment,
        {variable: getattr(options, name[2:].replace("-", "_")) for variable, name in OPTIONS.items()},
        datacenter or options.datacenter,
        names=names,
        wait=options.consul_wait,
        limits=REMOTE if datacenter else LOCAL,
    )


def _in_dns(part: Part, families: Collection[bool], resolvers: Resolvers, options: Options) -> Source:
    """Return the source of a part in DNS.

    :param families: those of the VIPs; empty for both.
    """
    from clb_discovery.sources.dns.addresses import AddressSource  # noqa: PLC0415
    from clb_discovery.sources.dns.source import BOTH  # noqa: PLC0415
    from clb_discovery.sources.dns.srv import SrvSource  # noqa: PLC0415

    ttls, wanted = (options.min_ttl, options.max_ttl), families or BOTH
    if part.source.startswith(SRV):
        return SrvSource(part.name, resolvers, *ttls, families=wanted, linger=part.linger)
    name, port = parse_name_and_port(part.name)
    return AddressSource(name, port, resolvers, *ttls, families=wanted, linger=part.linger)


def _families(service: Service) -> frozenset[bool]:
    """Return the address families of its VIPs, True for IPv4."""
    return frozenset(is_ipv4(vip.address) for vip in service.vips)
