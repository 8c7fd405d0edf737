"""What an application feels while the addresses of a name change behind a real caching resolver, with a TTL of 5 s."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import pytest

from tests.support.caching_dns import CACHING, CachingServer
from tests.support.cgroups import made_cgroup
from tests.support.clients import connecting, serving
from tests.support.dataplane import wipe
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.process import free_port, wait_until
from tests.support.sidecar import sidecar, status, wait_for_pool

pytestmark = pytest.mark.discovery

VIP: Final = "10.64.0.1"
TTL: Final = 5
LATE: Final = patient(3.0)
"""Seconds beyond the TTL until a change is in the kernel: caches count whole seconds, and the next query waits one."""


class Scene(NamedTuple):
    """A sidecar that follows `db.example` through a resolver, and clients that connect to its VIP."""

    knot: KnotServer
    resolver: CachingServer
    instance: str
    cgroup: Path
    folder: Path
    port: int

    def point_to(self, *hosts: int) -> None:
        """Let the name lead to 127.0.0.x."""
        records = "\n".join(f"db-now A 127.0.0.{host}" for host in hosts)
        self.knot.write(f"db CNAME db-now\n{records}", ttl=TTL, negative_ttl=TTL)

    def wait_for(self, *hosts: int) -> None:
        """Wait until exactly these are the pool."""
        wait_for_pool(self.instance, VIP, {f"127.0.0.{host}:{self.port}": 1 for host in hosts})

    def source(self) -> str:
        """Return the state of the source."""
        (found,) = status(self.instance)["sources"]
        return str(found["state"])


@pytest.fixture(params=CACHING, ids=lambda make: make.__name__)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Start all of it; the name leads to 127.0.0.1."""
    make: Callable[[Path, int], CachingServer] = request.param
    instance, port = f"test-{uuid4().hex[:8]}", free_port()
    with ExitStack() as stack:
        cgroup = stack.enter_context(made_cgroup())
        stack.callback(wipe, instance)
        knot = stack.enter_context(KnotServer({"example": "", "other": ""}))
        resolver = stack.enter_context(make(tmp_path, knot.port))
        found = Scene(knot, resolver, instance, cgroup, tmp_path, port)
        found.point_to(1)
        options = ["--dns", f"db.example:{port}={VIP}:5432", "--resolver", resolver.address]
        stack.enter_context(sidecar(instance, cgroup, tmp_path, [*options, "--real-range", "127.0.0.0/8"]))
        found.wait_for(1)
        yield found


def test_no_connect_fails_while_addresses_change(scene: Scene) -> None:
    """They are all replaced, the resolver dies for longer than the TTL and comes back, and then there are 200 of them.

    Servers that leave the name serve on for as long as a cache may have them, as in any rollout.
    """
    many = tuple(range(20, 220))
    with (
        serving(scene.port, scene.folder),
        connecting(scene.cgroup, 5432, scene.folder, VIP, serve=False) as connects,
    ):
        time.sleep(1)
        scene.point_to(4, 5, 6)
        began = time.monotonic()
        scene.wait_for(4, 5, 6)
        followed = time.monotonic() - began
        scene.resolver.kill()
        wait_until(lambda: scene.source() == "retrying", "the source has no answer")
        scene.point_to(7, 8, 9)
        time.sleep(TTL + 1)
        scene.wait_for(4, 5, 6)
        scene.resolver.start()
        scene.wait_for(7, 8, 9)
        scene.point_to(*many)
        scene.wait_for(*many)
        time.sleep(1)
    failed = [connect for connect in connects if connect.error]
    print(f"{len(connects)} connects, {len(failed)} failed; a change took {followed:.1f} s")
    assert failed == []
    assert {connect.reached[-1] for connect in connects} >= {1, *range(4, 10), *many}
    assert followed < TTL + LATE


def test_a_failover_costs_connects_until_the_ttl_ends(scene: Scene) -> None:
    """The only address is down and the name leads to another: connects fail for the TTL, and then none does."""
    with ExitStack() as stack:
        one = stack.enter_context(ExitStack())
        one.enter_context(serving(scene.port, scene.folder, "127.0.0.1"))
        stack.enter_context(serving(scene.port, scene.folder, "127.0.0.2"))
        with connecting(scene.cgroup, 5432, scene.folder, VIP, serve=False) as connects:
            time.sleep(1)
            down = time.monotonic_ns()
            one.close()
            scene.point_to(2)
            scene.wait_for(2)
            published = time.monotonic_ns()
            time.sleep(1)
    failed = [connect for connect in connects if connect.error]
    lasted = (failed[-1].end - down) / 1e9
    print(f"{len(connects)} connects, {len(failed)} failed, the last one {lasted:.1f} s after the server was down")
    assert not [connect for connect in connects if connect.error and not down <= connect.end <= published]
    assert lasted < TTL + LATE
    assert {connect.reached[-1] for connect in connects if connect.start > published} == {2}
