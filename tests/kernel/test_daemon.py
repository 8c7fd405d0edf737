"""The life of the sidecar: starting, following, failing, being stopped and killed, and what it says about all that."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from clb_discovery.core import layout
from clb_discovery.core.address import parse_address
from clb_discovery.core.layout import Map
from clb_discovery.core.model import Answer, RealServer, Service
from clb_discovery.core.plan import Write
from clb_discovery.core.spec import parse_vip
from clb_discovery.daemon import Configured, Daemon, Settings
from clb_discovery.datapath import bpf, loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.runtime import RUN
from clb_discovery.sources.base import Source
from tests.support.consul import ConsulAgent
from tests.support.contract import assert_is_status
from tests.support.dataplane import dial, publish, snapshot
from tests.support.kernel_objects import freeze
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.loading import loader_of_tests, loading
from tests.support.process import running, wait_until
from tests.support.sidecar import COMMAND, Sidecar, clb, pool, sidecar, status, wait_for_pool

VIP: Final = "10.64.0.1"
OTHER_VIP: Final = "10.64.0.2"
WEB: Final = ("--srv", f"_web._tcp.example={VIP}:80")
LOOPBACK: Final = ("--real-range", "127.0.0.0/8")
STOPS_WITHIN: Final = 5.0
"""Seconds from SIGTERM to the end: 2 by the contract, and some for a test machine that is busy with other things."""


@pytest.fixture
def knot() -> Iterator[KnotServer]:
    """Run a DNS server with the zones example and test."""
    with KnotServer({"example": "", "test": ""}) as server:
        yield server


def serve(knot: KnotServer, *servers: str, name: str = "_web._tcp", zone: str = "example") -> None:
    """Serve these addresses and ports as the targets of one SRV name, with weights 1, 2, 3 and so on."""
    lines = []
    for number, server in enumerate(servers):
        host, port = server.rsplit(":", 1)
        lines += [f"{name} SRV 0 {number + 1} {port} t{number}", f"t{number} A {host}"]
    knot.write("\n".join(lines), zone)


def weighted(*servers: str) -> dict[str, int]:
    """Return the pool that `serve` leads to."""
    return {server: number + 1 for number, server in enumerate(servers)}


def resolver(knot: KnotServer) -> tuple[str, ...]:
    """Return the options that lead to the DNS server."""
    return ("--resolver", knot.address, *LOOPBACK)


def generations(instance: str) -> dict[str, int]:
    """Return the generation of each virtual server."""
    return {server["address"]: server["generation"] for server in status(instance)["virtual_servers"]}


def assert_ends(found: Sidecar, number: int = signal.SIGTERM) -> None:
    """Send a signal; the sidecar has to end with 0, in the contract's time."""
    start = time.monotonic()
    found.process.send_signal(number)
    assert found.process.wait(timeout=20) == 0, found.log.read_text()
    assert time.monotonic() - start < STOPS_WITHIN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_ends_it_and_leaves_the_data_plane(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path, number: int
) -> None:
    """With a blocking query and a DNS timer under way it ends within 2 s with 0, and connects go on."""
    with listening("127.0.0.1") as (server,), ConsulAgent(tmp_path) as agent:
        serve(knot, server.name)
        agent.register("web", 8080, "10.0.0.1")
        options = [*WEB, *resolver(knot), "--consul", agent.url, "--service", f"web={OTHER_VIP}:80"]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            before = snapshot(instance)
            assert_ends(found, number)
            after = snapshot(instance)
        assert (after.objects, after.held) == (before.objects, before.held)
        assert dial(cgroup, VIP, 80, 5) == ["ok"] * 5
        assert server.taken() == 5
        assert found.events()[-1].startswith("stopped")


def test_sigterm_does_not_wait_for_a_dead_resolver(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """While the system's resolver hangs on the name of the Consul server the sidecar still ends within 2 s."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.53\n")
    own_mounts = ["unshare", "--mount", "sh", "-ec", f'mount --bind {resolv_conf} /etc/resolv.conf; exec "$@"', "sh"]
    options = ["--consul", "http://consul.example:8500", "--service", f"web={VIP}:80"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.53", 53))
        silent.settimeout(20)
        with sidecar(instance, cgroup, tmp_path, options, ready=False, wrapper=own_mounts) as found:
            assert b"consul" in silent.recv(512)
            assert_ends(found)


class Stubborn:
    """A source whose first cancellation is swallowed, as by asyncio.wait_for when it meets a result."""

    name = "fake:stubborn"

    def __init__(self) -> None:
        self.cancelled = 0
        self.asked = asyncio.Event()

    async def next(self) -> Answer:
        """Wait for ever, or until the second cancellation."""
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.cancelled > 1:
                raise
        return Answer(())


class Interrupting:
    """A source that answers a second time, with one server more, as soon as its first answer is being written."""

    name = "fake:interrupting"

    def __init__(self, instance: str, servers: int) -> None:
        self._pins = Pins(instance)
        self._servers = [RealServer(0, parse_address(f"10.1.{n >> 8}.{n & 255}"), 80, 1) for n in range(servers)]
        self._asked = 0

    async def next(self) -> Answer:
        """Return the first answer, then the second, then nothing more."""
        self._asked += 1
        if self._asked == 1:
            return Answer(tuple(self._servers[:-1]))
        if self._asked == 2:
            await asyncio.to_thread(self._wait_for_names)
            return Answer(tuple(self._servers))
        await asyncio.Event().wait()
        return Answer(())

    def _wait_for_names(self) -> None:
        """Return when the virtual server's names are there, which are written before its slots."""
        labels = bpf.open_pin(self._pins.map(Map.LABELS))
        while bpf.lookup(labels, layout.pack_vip(parse_vip(f"{VIP}:80")), layout.LABEL.size) is None:
            time.sleep(0.0005)
        os.close(labels)


async def test_answer_during_a_publication_is_not_lost(instance: str, cgroup: Path) -> None:
    """What a source says while the kernel's maps are being written is published next."""
    servers = 40_000
    source = Interrupting(instance, servers)

    def published() -> int:
        if not loader.is_current(Pins(instance), cgroup):
            return 0
        with Maps(Pins(instance)) as maps:
            return max(len(virtual.pool or ()) for virtual in maps.read().virtual.values())

    async with running_daemon(instance, cgroup, source):
        await asyncio.to_thread(wait_until, lambda: published() >= servers - 1, "the first answer is published")
        await asyncio.to_thread(wait_until, lambda: published() == servers, "the second answer is published")


@asynccontextmanager
async def running_daemon(instance: str, cgroup: Path, source: Source) -> AsyncIterator[asyncio.Task[None]]:
    """Run the daemon in this process, over a source that is a fake; end it with SIGTERM."""
    service = Service("fake", source.name, (parse_vip(f"{VIP}:80"),))
    settings = Settings(Pins(instance), cgroup, [service], [], reset=False, once=False, loader=loader_of_tests())
    configured = Configured(settings, lambda: nullcontext({source.name: source}))
    task = asyncio.create_task(Daemon(configured, lambda: configured).run())
    try:
        yield task
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(STOPS_WITHIN):
            await task


class Bursting:
    """A source that answers again and again, with a real server more each time, up to 200 of them."""

    name = "fake:bursting"

    def __init__(self, most: int) -> None:
        self.given = 0
        self.most = most

    async def next(self) -> Answer:
        """Return the next answer after 5 ms, so that the quiet period never comes; nothing more after `most`."""
        if self.given == self.most:
            await asyncio.Event().wait()
        await asyncio.sleep(0.005)
        self.given += 1
        servers = (RealServer(0, parse_address(f"10.1.0.{n + 1}"), 80, 1) for n in range(min(self.given, 200)))
        return Answer(tuple(servers))


def published(logs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return how many real servers each publication had."""
    return [line["servers"] for line in logs if line["event"] == "pool published"]


async def test_burst_is_merged(instance: str, cgroup: Path) -> None:
    """A hundred answers within half a second or so are published a few times, and the last of them for certain."""
    with capture_logs() as logs:
        async with running_daemon(instance, cgroup, Bursting(100)):
            await asyncio.to_thread(wait_until, lambda: published(logs)[-1:] == [100], "the last answer is published")
    assert len(published(logs)) <= 20


async def test_burst_without_end_is_applied_meanwhile(instance: str, cgroup: Path) -> None:
    """Where answers never pause for the quiet period, what they say is still published twice a second."""
    source = Bursting(1_000_000)
    with capture_logs() as logs:
        async with running_daemon(instance, cgroup, source):
            await asyncio.to_thread(wait_until, lambda: len(published(logs)) >= 2, "two of its states are published")
            assert len(published(logs)) <= source.given / 4


async def test_sigterm_ends_a_source_that_swallows_a_cancellation(instance: str, cgroup: Path) -> None:
    """A cancellation that gets lost on the way is repeated, so that SIGTERM always ends the sidecar."""
    source = Stubborn()
    async with running_daemon(instance, cgroup, source):
        await source.asked.wait()
    assert source.cancelled == 2


def test_sigterm_while_starting_is_a_stop(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """SIGTERM during the load does not cut it off: the load is finished, and the sidecar ends with 0."""
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)], ready=False) as found:
        wait_until(Pins(instance).home.exists, "the load has begun")
        assert_ends(found)
    assert loader.is_current(Pins(instance), cgroup)


def test_killed_sidecar_leaves_everything_as_it_was(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """After SIGKILL connects go on, and status is as in the contract, with the sources as they were last."""
    with listening("127.0.0.1") as (server,):
        serve(knot, server.name)
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
            alive = status(instance)
            found.kill()
        dead = status(instance)
        assert dial(cgroup, VIP, 80, 5) == ["ok"] * 5
    for document in (alive, dead):
        assert_is_status(document)
        assert document["datapath"]["effective"]
    assert alive["sidecar"]["running"]
    assert alive["sidecar"]["pid"] == found.process.pid
    assert alive["sidecar"]["last_sync"] is not None
    assert dead["sidecar"] == {
        "running": False,
        "pid": None,
        "last_sync": alive["sidecar"]["last_sync"],
        "config_error": None,
    }
    assert dead["sources"][0] | {"last_success": None} == alive["sources"][0] | {"last_success": None}
    assert dead["virtual_servers"] == alive["virtual_servers"]


def test_status_of_nothing(instance: str) -> None:
    """Status of an instance that is not loaded has the contract's shape, and says so."""
    found = status(instance)
    assert_is_status(found)
    assert found["datapath"]["loaded"] is False
    assert found["sidecar"] == {"running": False, "pid": None, "last_sync": None, "config_error": None}
    assert (found["sources"], found["virtual_servers"]) == ([], [])
    text = clb("status", "--instance", instance)
    assert (text.returncode, "not loaded" in text.stdout) == (0, True)


def test_restart_touches_nothing_that_has_not_changed(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """A new sidecar takes over what the kernel holds: same generations, same counters, nothing published."""
    with listening("127.0.0.1", "127.0.0.2") as (one, two):
        serve(knot, one.name, two.name)
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]):
            assert dial(cgroup, VIP, 80, 20) == ["ok"] * 20
            before = snapshot(instance)
        (tmp_path / f"sidecar-{instance}.log").unlink()
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
            after = snapshot(instance)
            assert (after.objects, after.held) == (before.objects, before.held)
            assert status(instance)["virtual_servers"][0]["connects"] == 20
            assert "pool published" not in found.events()


def test_nothing_is_removed_before_the_first_complete_sync(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """While one of two sources has not answered, what nobody asks for any more and what a crash left both stay."""
    loader.load(Pins(instance), cgroup, loader_of_tests())
    publish(instance, {f"{VIP}:80": ["127.0.0.9:9"], "10.64.0.9:80": ["127.0.0.9:9"]})
    orphan = (layout.pack_place(1000, 0), bytes(layout.SLOT.size))
    with Maps(Pins(instance)) as maps:
        maps.carry_out(Write(Map.SLOTS, (orphan,)))
    serve(knot, "127.0.0.1:8080")
    knot.purge("test")
    options = [*WEB, "--srv", f"_late._tcp.test={OTHER_VIP}:80", *resolver(knot), "--hold", "0s"]
    with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
        found.wait_for(lambda: pool(instance, VIP) == weighted("127.0.0.1:8080"), "the first source is applied")
        found.wait_for(lambda: "source fails" in found.events(), "the second source fails")
        waiting = snapshot(instance).held
        assert waiting is not None
        assert waiting.orphans == {Map.SLOTS: (orphan[0],)}
        assert set(generations(instance)) == {VIP, "10.64.0.9"}
        assert "ready" not in found.events()
        assert status(instance)["sidecar"]["last_sync"] is None

        serve(knot, "127.0.0.2:8080", name="_late._tcp", zone="test")
        found.wait_for(lambda: "ready" in found.events(), "every source has answered")
        complete = snapshot(instance).held
        assert complete is not None
        assert complete.orphans == {}
        assert set(generations(instance)) == {VIP, OTHER_VIP}


def test_once_syncs_and_ends(instance: str, cgroup: Path, knot: KnotServer) -> None:
    """--once leaves the data plane in place with what discovery said, and ends with 0; again it changes nothing."""
    with listening("127.0.0.1") as (server,):
        serve(knot, server.name)
        once = ("run", "--once", "--instance", instance, "--cgroup", str(cgroup), *WEB, *resolver(knot))
        assert clb(*once).returncode == 0
        assert dial(cgroup, VIP, 80) == ["ok"]
        before = snapshot(instance)
        again = clb(*once, "--log-level", "warning")
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    after = snapshot(instance)
    assert (after.objects, after.held) == (before.objects, before.held)
    assert status(instance)["sidecar"]["running"] is False


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """READY=1 comes after the first complete sync and not before, STOPPING=1 on SIGTERM, and nothing else."""
    knot.purge()
    name = str(tmp_path / "notify")
    command = [*COMMAND, "run", *loading(), "--instance", instance, "--cgroup", str(cgroup), *WEB, *resolver(knot)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(20)
        with running(command, tmp_path / "log", os.environ | {"NOTIFY_SOCKET": name}) as process:
            wait_until(lambda: bool(status(instance)["sources"][:1]), "the sidecar has started")
            wait_until(lambda: status(instance)["sources"][0]["error"] is not None, "the source fails")
            assert select.select([systemd], [], [], 0)[0] == []
            serve(knot, "127.0.0.1:8080")
            assert systemd.recv(64) == b"READY=1"
            assert pool(instance, VIP) == weighted("127.0.0.1:8080")
            process.terminate()
            assert process.wait(timeout=20) == 0
            assert systemd.recv(64) == b"STOPPING=1"
            assert select.select([systemd], [], [], 0)[0] == []


def test_service_manager_that_does_not_listen_is_no_reason_to_end(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """A NOTIFY_SOCKET that leads nowhere is logged; the sidecar follows on."""
    serve(knot, "127.0.0.1:8080")
    log = tmp_path / "log"
    command = [*COMMAND, "run", *loading(), "--instance", instance, "--cgroup", str(cgroup), *WEB, *resolver(knot)]
    with running(command, log, os.environ | {"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as process:
        found = Sidecar(process, instance, log)
        found.wait_for(lambda: "ready" in found.events(), "the sidecar is ready")
        serve(knot, "127.0.0.1:8080", "127.0.0.2:8080")
        wait_for_pool(instance, VIP, weighted("127.0.0.1:8080", "127.0.0.2:8080"))
        assert found.stop() == 0
    assert found.events().count("cannot notify the service manager") == 2


def test_state_that_cannot_be_written_is_no_reason_to_end(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """When the state file cannot be replaced that is logged once, and the sidecar follows on."""
    (RUN / instance / "state.new").mkdir(parents=True)  # in the way of the temporary file
    serve(knot, "127.0.0.1:8080")
    try:
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
            serve(knot, "127.0.0.2:8080")
            found.wait_for(lambda: "removal held" in found.events(), "the source's state has changed")
        events = [line for line in found.lines() if line["level"] == "error"]
        assert [line["event"] for line in events] == ["cannot write the state that status shows"]
    finally:
        (RUN / instance / "state.new").rmdir()


def test_answer_that_removes_much_is_held(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """An answer without more than half of the pool waits for --hold, as status tells, and then counts."""
    before, after = ("127.0.0.1:1", "127.0.0.2:2", "127.0.0.3:3"), ("127.0.0.1:1",)
    serve(knot, *before)
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot), "--hold", "4s"]) as found:
        serve(knot, *after)
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "held", "the answer is held")
        assert pool(instance, VIP) == weighted(*before)
        wait_for_pool(instance, VIP, weighted(*after))
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "the source is fresh again")
        held, published = (
            next(line for line in found.lines() if line["event"] == event and line.get("change") != "+3 -0 ~0")
            for event in ("removal held", "pool published")
        )
    assert (held["source"], held["seconds"]) == ("srv:_web._tcp.example", 4.0)
    assert (held["removed"], held["of"]) == (2, 3)
    assert (published["change"], published["removed"]) == ("+0 -2 ~0", ["127.0.0.2:2", "127.0.0.3:3"])
    assert found.events().count("removal held") == 1


def test_answer_that_comes_back_is_not_applied_late(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """An empty answer that does not stand for --hold never reaches the kernel."""
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
        before = generations(instance)
        serve(knot)
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "held", "the empty answer is held")
        serve(knot, "127.0.0.1:1")
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "the servers are back")
        assert generations(instance) == before


def test_forbidden_real_servers_are_refused_and_logged_once(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """Addresses that nobody may name as real servers stay out, each with one line that says why."""
    forbidden = {
        "0.0.0.0:80": "unspecified",
        "224.0.0.1:80": "multicast",
        "255.255.255.255:80": "broadcast",
        "169.254.0.1:80": "link-local",
        f"{VIP}:80": "a VIP",
        "127.0.0.1:80": "--real-range 127.0.0.1",
    }
    serve(knot, *forbidden, "10.0.0.1:80")
    with sidecar(instance, cgroup, tmp_path, [*WEB, "--resolver", knot.address]) as found:
        assert pool(instance, VIP) == {"10.0.0.1:80": 7}
        serve(knot, *forbidden, "10.0.0.1:80", "10.0.0.2:80")
        wait_for_pool(instance, VIP, {"10.0.0.1:80": 7, "10.0.0.2:80": 8})
    refused = {line["server"]: line["reason"] for line in found.lines() if line["event"] == "real server refused"}
    assert refused.keys() == forbidden.keys()
    assert all(reason in refused[server] for server, reason in forbidden.items())
    assert found.events().count("real server refused") == len(forbidden)


def test_last_known_set_is_served_after_a_reboot_without_discovery(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """With the kernel's maps gone and DNS down, connects go to what was known last, marked stale, until DNS is back."""
    state_dir = tmp_path / "state"
    options = [*WEB, *resolver(knot), "--state-dir", str(state_dir)]
    with listening("127.0.0.1", "127.0.0.2", "127.0.0.3") as servers:
        one, two, three = servers
        serve(knot, one.name, two.name)
        with sidecar(instance, cgroup, tmp_path, options) as found:
            assert found.stop() == 0
        answered = status(instance)["sources"][0]["last_success"]
        knot.stop()
        assert clb("unload", "--instance", instance).returncode == 0
        found.log.unlink()
        with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
            found.wait_for(lambda: "source fails" in found.events(), "the source fails")
            found.wait_for(lambda: "pool published" in found.events(), "the last known set is published")
            assert dial(cgroup, VIP, 80, 40) == ["ok"] * 40
            assert sorted(server.taken() > 0 for server in servers) == [False, True, True]
            found.wait_for(lambda: status(instance)["sources"][0]["error"] is not None, "status tells the error")
            document = status(instance)
            assert_is_status(document)
            (source,) = document["sources"]
            assert (source["state"], source["stale"], source["last_success"]) == ("retrying", True, answered)
            assert source["reason"] == f"stale since {answered}: {source['error']}"
            assert document["sidecar"]["last_sync"] is None
            assert source["reason"] in clb("status", "--instance", instance).stdout
            (restored,) = (line for line in found.lines() if line["event"] == "serving the last known set")
            assert (restored["level"], restored["servers"], restored["since"]) == ("warning", 2, answered)
            assert "ready" not in found.events()

            knot.start()
            serve(knot, one.name, three.name)
            wait_for_pool(instance, VIP, weighted(one.name, three.name))
            found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "the source is fresh")
            assert "ready" in found.events()


def test_first_answer_after_a_reboot_is_guarded(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """A DNS server that comes back without its records has to stand by that for --hold before they are given up."""
    state_dir = tmp_path / "state"
    options = [*WEB, *resolver(knot), "--state-dir", str(state_dir), "--hold", "4s"]
    before = ("127.0.0.1:1", "127.0.0.2:2", "127.0.0.3:3")
    serve(knot, *before)
    with sidecar(instance, cgroup, tmp_path, options) as found:
        assert found.stop() == 0
    assert clb("unload", "--instance", instance).returncode == 0
    serve(knot)
    with sidecar(instance, cgroup, tmp_path, options):
        assert pool(instance, VIP) == weighted(*before)
        (source,) = status(instance)["sources"]
        assert (source["state"], source["stale"]) == ("held", False)
        assert source["reason"] == "an answer without 3 of 3 real servers has to stand for 4 s"
        wait_for_pool(instance, VIP, {})
        wait_until(
            lambda: b"127.0.0.1" not in (state_dir / f"{instance}.json").read_bytes(), "the disk has the empty set, too"
        )


def test_kernel_knows_better_than_the_disk(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Where the maps outlived the sidecar nothing is taken from the disk but when the source answered."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    options = [*WEB, *resolver(knot), "--state-dir", str(state_dir)]
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, options) as found:
        assert found.stop() == 0
    knot.stop()
    file = state_dir / f"{instance}.json"
    file.write_bytes(file.read_bytes().replace(b"127.0.0.1", b"127.0.0.9"))
    with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
        found.wait_for(lambda: status(instance)["sources"][0]["error"] is not None, "the source fails")
        assert pool(instance, VIP) == weighted("127.0.0.1:1")
        assert status(instance)["sources"][0]["last_success"] is not None


@pytest.mark.parametrize("content", [b"", b"{", b'{"version":1,"sources":{"srv:_web._tcp.example":{"servers":[[0]]}}}'])
def test_garbage_on_disk_is_no_reason_to_end(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path, content: bytes
) -> None:
    """A file that says nothing of use is one warning, and is replaced by what the source says."""
    file = tmp_path / f"{instance}.json"
    file.write_bytes(content)
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot), "--state-dir", str(tmp_path)]) as found:
        assert pool(instance, VIP) == weighted("127.0.0.1:1")
        found.wait_for(lambda: b"127.0.0.1" in file.read_bytes(), "the file is good again")
    assert found.events().count("last known sets on disk ignored") == 1


def test_disk_that_takes_nothing_is_logged_once(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Where the state directory cannot be written the sidecar says so once and follows on."""
    (tmp_path / "file").touch()
    serve(knot, "127.0.0.1:1")
    options = [*WEB, *resolver(knot), "--state-dir", str(tmp_path / "file")]
    with sidecar(instance, cgroup, tmp_path, options) as found:
        serve(knot, "127.0.0.1:1", "127.0.0.2:2")
        wait_for_pool(instance, VIP, weighted("127.0.0.1:1", "127.0.0.2:2"))
        assert found.stop() == 0
    assert found.events().count("cannot keep the last known sets on disk") == 1


def test_log_is_one_json_object_a_line(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Every line of the log is JSON with event, level and time, and tells the story in order."""
    serve(knot, "127.0.0.1:1", "127.0.0.2:2")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
        assert found.stop() == 0
    lines = found.lines()
    assert len(lines) == len(found.log.read_text().splitlines())
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    started, published, ready, stopped = lines
    assert (started["event"], started["instance"], started["services"]) == ("started", instance, 1)
    assert (published["vip"], published["change"], published["servers"]) == (f"{VIP}:80", "+2 -0 ~0", 2)
    assert (ready["event"], ready["virtual_servers"]) == ("ready", 1)
    assert stopped["event"].startswith("stopped")


def test_srv_name_says_the_protocol(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """The VIP of `_dns._udp` takes UDP and leaves TCP alone, unless it says otherwise."""
    knot.write("_dns._udp SRV 0 1 5300 one\none A 10.0.0.1")
    options = ["--srv", f"_dns._udp.example={VIP}:53,{OTHER_VIP}:53/tcp", "--resolver", knot.address]
    with sidecar(instance, cgroup, tmp_path, options):
        found = {server["address"]: server["protocol"] for server in status(instance)["virtual_servers"]}
        assert found == {VIP: "udp", OTHER_VIP: "tcp"}
        assert pool(instance, VIP) == pool(instance, OTHER_VIP) == {"10.0.0.1:5300": 1}


def test_failing_source_is_logged_once(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """While a source goes on failing in the same way nothing more is logged, and the pool stays."""
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
        before = generations(instance)
        knot.purge()
        found.wait_for(lambda: "source fails" in found.events(), "the source fails")
        time.sleep(4)  # several tries: the first pauses are at most 0.5, 1 and 2 s
        assert found.events().count("source fails") == 1
        serve(knot, "127.0.0.1:1")
        found.wait_for(lambda: "source answers again" in found.events(), "the source answers")
        assert generations(instance) == before
    failure = next(line for line in found.lines() if line["event"] == "source fails")
    assert (failure["source"], failure["level"]) == ("srv:_web._tcp.example", "warning")
    assert "SERVFAIL" in failure["error"]


def test_nothing_is_written_while_nothing_changes(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """Over several TTLs of the same answer, and over a restart, no map is written and nothing is logged.

    The maps are frozen meanwhile (BPF_MAP_FREEZE), so that the kernel refuses every write to them.
    """
    serve(knot, "127.0.0.1:1", "127.0.0.2:2")
    options = [*WEB, *resolver(knot), "--max-ttl", "1s"]
    with sidecar(instance, cgroup, tmp_path, options) as found:
        before, lines, last_sync = snapshot(instance), found.lines(), status(instance)["sidecar"]["last_sync"]
        freeze(Pins(instance).directory)
        time.sleep(4)
        assert found.lines() == lines
        assert status(instance)["sidecar"]["last_sync"] == last_sync
        assert found.stop() == 0
    with sidecar(instance, cgroup, tmp_path, options) as found:
        assert found.events()[-2:] == ["started", "ready"]
    after = snapshot(instance)
    assert (after.objects, after.held) == (before.objects, before.held)


def test_kernel_that_refuses_a_change_is_logged_once(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """When the kernel takes no writes the sidecar says so once, goes on trying, and connects keep what they had."""
    with listening("127.0.0.1") as (server,):
        serve(knot, server.name)
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
            freeze(Pins(instance).directory)
            serve(knot, server.name, "127.0.0.2:2")
            found.wait_for(lambda: "cannot publish" in found.events(), "the kernel has refused")
            time.sleep(5)  # it tries again every 2 s
            assert found.events().count("cannot publish") == 1
            assert pool(instance, VIP) == weighted(server.name)
            assert dial(cgroup, VIP, 80, 5) == ["ok"] * 5
            assert found.stop() == 0
