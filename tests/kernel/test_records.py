"""The memory for records of sockets and for rows of real servers: shared, given back, and sized when it is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.loading.sizes import Sizes, pinned_sizes
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.records import Placed, placed_records
from clb_discovery.layout import structs
from clb_discovery.model.servers import PassiveHealth
from tests.support.dataplane import memory_of_maps
from tests.support.kernel_version import KERNEL
from tests.support.listeners import listening
from tests.support.moody import moody_servers
from tests.support.plane import NO_TRACKING, VIP4, Plane, target_of, virtual_server
from tests.support.recorder import all_places_taken
from tests.support.sidecar import clb, status
from tests.support.sockets import socket_maker

WATCHED: Final = PassiveHealth()


def placed(pins: Pins) -> Placed:
    """Return the records in places."""
    with Maps(pins) as maps:
        return placed_records(maps.records())


@pytest.mark.parametrize("health", [NO_TRACKING, WATCHED], ids=["lean", "as shipped"])
def test_crowd_leaves_no_trace(plane: Plane, health: PassiveHealth) -> None:
    """Sockets that find all places of their bucket taken say so only while they are open."""
    with moody_servers("127.0.0.1") as (server,):
        plane.publish(virtual_server(VIP4, [server.name], health=health))
        with Maps(plane.pins) as maps, all_places_taken(maps.records()):
            clients = plane.client.connected(target_of(VIP4), 20)
            assert placed(plane.pins).crowded
            for client in clients[:-1]:
                client.close()
            assert placed(plane.pins).crowded
            clients[-1].close()
            assert not placed(plane.pins).crowded


def test_sockets_of_one_bucket_have_places(plane: Plane) -> None:
    """Sockets with consecutive cookies share a bucket, and none of them is crowded out."""
    with moody_servers("127.0.0.1") as (server,):
        plane.publish(virtual_server(VIP4, [server.name]))
        before = placed(plane.pins).members.keys()
        clients = plane.client.connected(target_of(VIP4), 100)
        assert not placed(plane.pins).crowded
        assert len(placed(plane.pins).members.keys() - before) == 100
        for client in clients:
            client.close()
        assert placed(plane.pins).members.keys() == before


@contextmanager
def small(instance: str, cgroup: Path) -> Iterator[Pins]:
    """Load with little room: 64 real servers, 16 sockets."""
    options = ("--instance", instance, "--cgroup", cgroup, "--room-servers", "64", "--room-sockets", "13")
    assert clb("load", *options).returncode == 0
    yield Pins(instance)


def test_room_is_chosen_at_load(instance: str, cgroup: Path) -> None:
    """Maps have the chosen sizes, rounded up, and keep them until they are unloaded."""
    with small(instance, cgroup) as pins:
        assert pinned_sizes(pins) == Sizes(8, 4)
        assert clb("load", "--instance", instance, "--cgroup", cgroup).returncode == 0
        assert pinned_sizes(pins) == Sizes(8, 4)
        assert clb("unload", "--instance", instance).returncode == 0
        assert clb("load", "--instance", instance, "--cgroup", cgroup).returncode == 0
        assert pinned_sizes(pins) == Sizes()


@pytest.mark.skipif(KERNEL < (6, 4), reason="lacks an account of the memory of maps")
def test_idle_memory_is_bounded(instance: str, cgroup: Path) -> None:
    """With the default room, all maps take at most 48 MiB before anything is published."""
    assert clb("load", "--instance", instance, "--cgroup", cgroup).returncode == 0
    assert memory_of_maps(Pins(instance)) <= 48 * 2**20


def test_what_exceeds_the_room_is_served_too(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Pools that find no free rows, and sockets that find no place, work like all others."""
    with small(instance, cgroup) as pins, listening("0.0.0.0") as (server,), socket_maker(cgroup) as maker:
        hundred = [f"127.0.0.{number}:{server.port}" for number in range(1, 101)]
        pools = {1: hundred, 2: hundred[:1]}
        config = tmp_path / "services.toml"
        config.write_text(
            "".join(
                f'[[service]]\nname = "pool-{number}"\nvip = "10.64.0.{number}:80"\nservers = {servers}\n'
                for number, servers in pools.items()
            )
        )
        ranges = ("--real-range", "127.0.0.0/8")
        run = clb("run", "--instance", instance, "--cgroup", cgroup, "--config", config, *ranges, "--once")
        assert run.returncode == 0, run.stderr
        with Maps(pins) as maps:
            row = {vip.address[-1]: one.row for vip, one in maps.read().virtual.items() if vip.port == 80}
        assert row[1] == structs.OVERFLOWS
        assert row[2] != structs.OVERFLOWS
        clients = [sock for number in pools for sock in maker.connected((f"10.64.0.{number}", 80), 30)]
        assert placed(pins).crowded
        assert [one["connects"] for one in status(instance)["virtual_servers"]] == [30, 30]
        for client in clients:
            client.close()
        assert placed(pins) == Placed({}, crowded=False)
