"""A loaded data plane under direct control of the test: publish virtual servers, and read the kernel's counters."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath import bpf, probe
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import bcc, libbpf
from clb_discovery.datapath.loading.libbpf import Variant
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.loading.sizes import Sizes, pinned_sizes
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.ring import Ring
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Change, Server, Steering
from clb_discovery.layout.structs import FEATURE_ERRNO, FEATURE_LOOP, FEATURE_OPTIONS, Map
from clb_discovery.model import own_servers
from clb_discovery.model.address import format_endpoint, parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, RealServer, Vip, VirtualServer
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan
from clb_discovery.publication.steps import Write
from tests.support.cgroups import made_cgroup
from tests.support.loading import loader_of_tests
from tests.support.pace import EFFORT
from tests.support.recorder import is_in_its_place, is_stored
from tests.support.sockets import SocketMaker, socket_maker
from tests.support.spares import Spares

_LOADABLE: Final = ("full", "floor") if probe.features() & FEATURE_LOOP else ("floor",)
OBJECTS: Final = _LOADABLE if EFFORT >= 1 else _LOADABLE[:1]
"""The shipped objects that this kernel can load, the default one first; with less effort, only that.

With `pytest --loader bcc` the programs of BCC replace the first.
"""

VIP4: Final = "10.64.0.1:80"
VIP6: Final = "[fd00:64::1]:80"
HOST: Final = {VIP4: "127.0.0.1", VIP6: "::1"}
"""Virtual servers of both families, and the hosts of their real servers."""

SO_COOKIE: Final = 57
"""From asm-generic/socket.h; Python has no name for it."""

NO_TRACKING: Final = PassiveHealth(active=False, eject_after=0, connect_timeout_ms=0)


class Plane:
    """The data plane of an instance, attached to one cgroup, and a client in that cgroup."""

    def __init__(self, instance: str, cgroup: Path, which: str, maps: Maps, client: SocketMaker) -> None:
        self.instance = instance
        self.pins = Pins(instance)
        self.cgroup = cgroup
        self.client = client
        self._which = which
        self._maps = maps

    def clear(self) -> None:
        """Close the client's sockets, and remove all virtual servers with their counters."""
        self.client.close()
        self.publish()

    def publish(self, *desired: VirtualServer) -> None:
        """Publish exactly these virtual servers."""
        wanted = own_servers.virtual_servers(self.instance) | {server.vip: server for server in desired}
        with Instance(self.instance).locked():
            self._maps.apply(plan(self._maps.read(), wanted, complete=True).steps)

    @property
    def is_default(self) -> bool:
        """Whether the programs are those that this kernel gets by default; long tests spare the others."""
        return self._which == OBJECTS[0]

    @property
    def follows_every_state(self) -> bool:
        """Whether the programs follow a connection to its last state, and not only until it is established."""
        return self._which == "floor" or loader_of_tests() is Loader.BCC

    def load_again(self) -> None:
        """Replace the programs by the same ones, over the same maps, as an upgrade does."""
        _replace_programs(self.pins, self._which)

    def servers(self, vip: str) -> dict[str, Server]:
        """Return the kernel's counters of each real server of a virtual server, by name."""
        key = elements.pack_vip(parse_vip(vip))
        found = self._maps.servers(self._maps.read())
        members = ((elements.unpack_member(member), server) for member, server in found.items())
        return {format_endpoint(address, port): server for (of, address, port), server in members if of == key and port}

    def connects(self, vip: str) -> dict[str, int]:
        """Return the number of connects to each real server."""
        return {name: server.connects for name, server in self.servers(vip).items()}

    def active(self, vip: str) -> dict[str, int]:
        """Return the active connections of each real server."""
        return {name: server.active for name, server in self.servers(vip).items()}

    def all_active(self) -> list[int]:
        """Return the active connections of every real server of all virtual servers, read at once."""
        found = self._maps.servers(self._maps.read())
        members = ((elements.unpack_member(member), server) for member, server in found.items())
        return [server.active for (_, _, port), server in members if port]

    def ejected(self, vip: str) -> set[str]:
        """Return the real servers that are ejected or wait for a probe."""
        return {name for name, server in self.servers(vip).items() if server.ejected_until}

    def mark(
        self,
        vip: str,
        ejected: Iterable[str],
        *,
        active: Mapping[str, int] | None = None,
        suspect: Mapping[str, int] | None = None,
    ) -> None:
        """Mark exactly these real servers of a virtual server as ejected for an hour.

        :param active: the active connections of each server, by name.
        :param suspect: those that are suspect instead, by name, with the end of the suspicion.
        """
        installed = self._maps.read().virtual[parse_vip(vip)]
        out, items = set(ejected), []
        for member, index in installed.servers.items():
            _, address, port = elements.unpack_member(member)
            if not port:
                continue
            name = format_endpoint(address, port)
            until = time.monotonic_ns() + 3_600 * 10**9 if name in out else 0
            server = elements.unpack_server(elements.NEW_SERVER)
            server = server._replace(ejected_until=until, active=(active or {}).get(name, 0))
            if suspect and name in suspect:
                server = server._replace(ejected_until=suspect[name], suspect=1)
            items.append((elements.pack_index(index), structs.SERVER.struct.pack(*server)))
        self._maps.carry_out(Write(Map.SERVERS, tuple(items)))

    def steer(self, vip: str, out: Mapping[str, int], decided_at: int | None = None) -> int:
        """Say what a sidecar would say of these real servers; return the time of the decision.

        :param out: for how many nanoseconds each is out, by name; 0: it takes connects.
        :param decided_at: nanoseconds of CLOCK_MONOTONIC; None for now.
        """
        decided = time.monotonic_ns() if decided_at is None else decided_at
        indexes = self.indexes(vip)
        words = [(indexes[name], Steering(decided, decided + lease if lease else 0)) for name, lease in out.items()]
        items = tuple((elements.pack_index(index), elements.pack_steering(word)) for index, word in words)
        self._maps.carry_out(Write(Map.STEERING, items))
        return decided

    def steering(self, index: int) -> Steering:
        """Return what is said of the server with this index."""
        fd = bpf.open_pin(self.pins.map(Map.STEERING))
        try:
            return elements.unpack_steering(bpf.values(fd, index, 1, structs.STEERING.size))
        finally:
            os.close(fd)

    def indexes(self, vip: str) -> dict[str, int]:
        """Return the index in `clb_servers` of each real server of a virtual server, by name."""
        members = self._maps.read().virtual[parse_vip(vip)].servers.items()
        named = ((elements.unpack_member(member), index) for member, index in members)
        return {format_endpoint(address, port): index for (_, address, port), index in named if port}

    @contextmanager
    def heard(self, seconds: float = 60) -> Iterator[Callable[[], list[Change]]]:
        """Listen to the changes of servers, as a sidecar does; yield a function that returns the new ones."""
        fds = {map_: bpf.open_pin(self.pins.map(map_)) for map_ in (Map.LISTENER, Map.CHANGES)}
        key, until = elements.pack_index(structs.LISTENS_CHANGES), time.monotonic_ns() + int(seconds * 1e9)
        with ExitStack() as stack:
            for fd in fds.values():
                stack.callback(os.close, fd)
            ring = Ring(fds[Map.CHANGES], structs.CHANGES_BYTES)
            stack.callback(ring.close)
            list(ring.records(0))
            bpf.update(fds[Map.LISTENER], key, until.to_bytes(8, sys.byteorder))
            stack.callback(bpf.update, fds[Map.LISTENER], key, bytes(8))
            yield lambda: [elements.unpack_change(record) for record in ring.records(0)]

    def has_record(self, sock: socket.socket) -> bool:
        """Return whether the programs store anything about a socket."""
        with Maps(self.pins) as maps:
            return is_in_its_place(maps.records(), sock) or is_stored(maps.records(), sock)


@contextmanager
def loaded_plane(spares: Spares, which: str = OBJECTS[0]) -> Iterator[Plane]:
    """Return a data plane with one of `OBJECTS`, attached to a new cgroup, which is removed at the end."""
    variant = None if which == OBJECTS[0] else Variant.FLOOR
    with (
        made_cgroup() as cgroup,
        spares.taken(cgroup, variant, outcomes=True) as instance,
        Maps(Pins(instance)) as maps,
        socket_maker(cgroup) as client,
    ):
        yield Plane(instance, cgroup, which, maps, client)


@pytest.fixture(scope="module")
def default_plane(spares: Spares) -> Iterator[Plane]:
    """Load the default object of this kernel only, for files that assign it to `_plane_of_module`.

    The object of older kernels is tested on them (`make test-kernels`).
    """
    with loaded_plane(spares) as found:
        yield found


def _replace_programs(pins: Pins, which: str) -> None:
    for name, program in _programs(pins, which).items():
        link = bpf.open_pin(pins.link(name))
        bpf.link_update(link, program)
        pins.program(name).unlink()
        bpf.pin(program, pins.program(name))
        os.close(link)
        os.close(program)


def _programs(pins: Pins, which: str) -> dict[str, int]:
    if which == OBJECTS[0] and loader_of_tests() is Loader.BCC:
        found = probe.features()
        return bcc.load_sources(
            pins,
            pinned_sizes(pins) or Sizes(),
            can_set_errno=bool(found & FEATURE_ERRNO),
            can_read_options=bool(found & FEATURE_OPTIONS),
        )
    return libbpf.load_object(pins, libbpf.best(full=which == "full"), pinned_sizes(pins) or Sizes())


def virtual_server(
    vip: str,
    servers: Sequence[str | RealServer],
    algorithm: Algorithm = Algorithm.RANDOM,
    health: PassiveHealth = NO_TRACKING,
) -> VirtualServer:
    """Return a virtual server with these real servers.

    :param servers: each by name, for weight 1 and priority 0, or as `real` returns it.
    """
    pool = tuple(sorted(real(server) if isinstance(server, str) else server for server in servers))
    return VirtualServer(parse_vip(vip), "test", "test:by-hand", algorithm, pool, health)


def real(name: str, weight: int = 1, priority: int = 0) -> RealServer:
    """Return a real server by name, `127.0.0.1:80` or `[::1]:80`."""
    host, _, port = name.rpartition(":")
    return RealServer(priority, parse_address(host.strip("[]")), int(port), weight)


def unused(vip: str, count: int) -> list[str]:
    """Return so many real servers of the family of a virtual server, by name, at ports without a listener."""
    return [f"{f'[{HOST[VIP6]}]' if '[' in vip else HOST[VIP4]}:{port}" for port in range(1, count + 1)]


def target_of(vip: str) -> tuple[str, int]:
    """Return the address and port that an application connects to."""
    parsed: Vip = parse_vip(vip)
    host, _, _ = format_endpoint(parsed.address, parsed.port).rpartition(":")
    return host.strip("[]"), parsed.port
