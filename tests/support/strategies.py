"""Hypothesis strategies for the terms of the model.

Domains are small on purpose: the same few addresses, ports and weights occur together often, and mistakes are found in
such combinations. A strategy draws each combination at once where there are few: each draw costs hypothesis more time
than most tests need for the result.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from itertools import product
from typing import Final

from hypothesis import strategies as st

from clb_discovery.layout.structs import ROW_SLOTS
from clb_discovery.model.address import MAPPED_PREFIX, Address, is_ipv4, parse_address
from clb_discovery.model.answer import OptIn
from clb_discovery.model.servers import (
    MAX_WEIGHT,
    Algorithm,
    HealthClaim,
    PassiveHealth,
    Pool,
    Protocol,
    RealServer,
    Vip,
    VirtualServer,
)

ADDRESS: Final = st.builds(
    lambda packed: Address(MAPPED_PREFIX + packed), st.binary(min_size=4, max_size=4)
) | st.builds(Address, st.binary(min_size=16, max_size=16))
"""Any address of either family."""
PORT: Final = st.integers(1, 65535)
NUMBER: Final = st.integers(0, 65535)
VIP: Final = st.builds(Vip, ADDRESS, st.integers(0, 65535), st.sampled_from(Protocol))
"""Any key of a virtual server."""
REAL_SERVER: Final = st.builds(RealServer, NUMBER, ADDRESS, PORT, NUMBER, st.just(0))
"""Any real server of an answer."""

FEW_VIPS: Final = tuple(
    Vip(parse_address(text), port, protocol)
    for text, port, protocol in [
        ("10.64.0.1", 0, Protocol.TCP),
        ("10.64.0.1", 6379, Protocol.TCP),
        ("10.64.0.1", 53, Protocol.UDP),
        ("10.64.149.183", 0, Protocol.TCP),
        ("fd00:64::69b6", 6379, Protocol.TCP),
    ]
)
"""Exact ports beside the wildcard on one address, both families, both protocols; three of them in one chain."""

OPT_IN: Final = st.builds(
    OptIn,
    vips=st.lists(st.sampled_from(FEW_VIPS), max_size=3).map(tuple),
    automatic=st.sets(st.sampled_from(Protocol)).map(lambda found: tuple(sorted(found))),
    algorithm=st.none() | st.sampled_from(Algorithm),
    refused=st.just(()),
    health=st.builds(
        HealthClaim,
        connect_timeout_ms=st.none() | st.just(0) | st.integers(200, 120_000),
        silent_after_ms=st.none() | st.integers(0, 86_400_000),
        eject_after=st.none() | st.integers(0, 1_000_000),
        eject_first_ms=st.none() | st.integers(1, 86_400_000),
        eject_most_ms=st.none() | st.integers(1, 86_400_000),
    ),
)
"""The opt-in of a service of a catalog, over the few VIPs."""

_FEW_IPV4: Final = [parse_address(f"10.0.0.{host}") for host in range(1, 5)]
_FEW_IPV6: Final = [parse_address(f"fd00::{host}") for host in range(1, 5)]


def few_real_servers(*, ipv4: bool) -> st.SearchStrategy[RealServer]:
    """Return real servers of one family that often share an endpoint."""
    addresses = _FEW_IPV4 if ipv4 else _FEW_IPV6
    every = product([0, 0, 7, 9], addresses, [80, 31001], [0, 1, 2, 3, 10, MAX_WEIGHT])
    return st.sampled_from([RealServer(*values) for values in every])


def pools(*, ipv4: bool) -> st.SearchStrategy[Pool]:
    """Return pools of one family: sorted, no endpoint twice, often empty, sometimes with more than one row."""
    unique = st.lists(few_real_servers(ipv4=ipv4), max_size=4, unique_by=lambda server: server.endpoint)
    first = (_FEW_IPV4 if ipv4 else _FEW_IPV6)[0]
    row = [RealServer(0, first, port, 1) for port in range(1, ROW_SLOTS + 1)]
    others = st.sampled_from([[], [], [], row])
    return st.builds(operator.add, unique, others).map(lambda servers: tuple(sorted(servers)))


_TRACKING: Final = [
    PassiveHealth(*values) for values in product([False, True], [0, 3], [1, 5_000], [60_000, 2**32 - 1])
]
TRACKING: Final = st.sampled_from(_TRACKING)
"""A few settings of passive health and counting."""
_SERVICES: Final = ["redis", "", "größe", "x" * 400]
_SOURCES: Final = ["consul:redis", "srv:_redis._tcp.example"]


def virtual_servers(vip: Vip) -> st.SearchStrategy[VirtualServer]:
    """Return virtual servers on this VIP."""
    empty = [
        VirtualServer(vip, service, source, algorithm, (), health)
        for service, source, algorithm, health in product(_SERVICES, _SOURCES, Algorithm, _TRACKING)
    ]
    return st.builds(
        lambda server, pool: replace(server, pool=pool), st.sampled_from(empty), pools(ipv4=is_ipv4(vip.address))
    )


DESIRED: Final[st.SearchStrategy[dict[Vip, VirtualServer]]] = st.fixed_dictionaries(
    {vip: st.none() | virtual_servers(vip) for vip in FEW_VIPS}
).map(lambda servers: {vip: server for vip, server in servers.items() if server is not None})
"""Desired states over the few VIPs."""
