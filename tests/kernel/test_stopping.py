"""SIGTERM in any situation: exit code 0 in time, and the data plane stays."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.pins import Pins
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import MAX_POOL
from tests.support.consul import ConsulAgent
from tests.support.dataplane import dial, snapshot
from tests.support.fake_source import FakeSource
from tests.support.in_process import STOPS_WITHIN, real_servers, running_daemon, wait_for_names
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.pace import patient
from tests.support.process import START_TIMEOUT, free_port, wait_until
from tests.support.sidecar import Sidecar, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance
from tests.support.srv_web import OTHER_VIP, VIP, WEB, resolver, serve, weighted

instance = loaded_instance


def assert_ends(found: Sidecar, number: int = signal.SIGTERM, within: float = STOPS_WITHIN) -> None:
    """Send a signal; the sidecar has to end with 0, within the time of the contract."""
    found.process.send_signal(number)
    assert found.process.wait(timeout=within) == 0, found.log.read_text()


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
        assert (after.objects, after.installed) == (before.objects, before.installed)
        assert dial(cgroup, VIP, 80, 5) == ["ok"] * 5
        assert server.taken() == 5
        assert found.events()[-1].startswith("stopped")


def test_sigterm_does_not_wait_for_a_dead_resolver(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """While the system's resolver hangs on Consul's host name, the sidecar still ends within 2 s."""
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


class Stubborn(FakeSource):
    """A source that swallows its first cancellation, as asyncio.wait_for does if a result arrives just then."""

    name = "fake:stubborn"

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = 0
        self.asked = asyncio.Event()

    async def next(self) -> Answer:
        """Wait until the second cancellation."""
        self.asked.set()
        try:
            return await self.nothing_new()
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.cancelled > 1:
                raise
        return Answer(())


async def test_sigterm_ends_a_source_that_swallows_a_cancellation(instance: str, cgroup: Path) -> None:
    """A lost cancellation is repeated, so that SIGTERM always ends the sidecar."""
    source = Stubborn()
    async with running_daemon(instance, cgroup, source):
        await source.asked.wait()
    assert source.cancelled == 2


def test_sigterm_while_starting_is_a_stop(new_instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """SIGTERM during the load does not interrupt it: the load is finished, and the sidecar ends with 0."""
    with sidecar(new_instance, cgroup, tmp_path, [*WEB, *resolver(knot)], ready=False) as found:
        wait_until(Pins(new_instance).home.exists, "the load has begun")
        assert_ends(found, within=START_TIMEOUT)  # the compiler and the verifier take what they take
    assert loader.is_current(Pins(new_instance), cgroup)


def test_sigterm_during_backoff_is_a_stop(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Sources that have never answered, and wait for their next retry, do not delay the end."""
    knot.purge()
    options = [*WEB, *resolver(knot), "--consul", f"http://127.0.0.1:{free_port()}", "--service", "web"]
    with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
        found.wait_for(lambda: found.events().count("source fails") == 2, "both fail")
        time.sleep(3)  # by now pauses are longer than the time to stop
        assert_ends(found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_once_that_is_stopped_has_failed(
    instance: str, cgroup: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A script must not take it for done, because nothing was published yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(patient(20))
        options = [*WEB, "--once", "--resolver", f"127.0.0.1:{silent.getsockname()[1]}"]
        with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
            silent.recv(512)
            found.wait_for(lambda: "started" in found.events(), "it has started")
            found.process.send_signal(number)
            assert found.process.wait(timeout=STOPS_WITHIN) == 1
        assert "clb-discovery: stopped by a signal before everything was published" in found.log.read_text()


def test_sigterm_during_a_reload_is_a_stop(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """During a reload, with the next one requested and blocking queries under way, it ends."""
    serve(knot, "127.0.0.1:1")
    config = tmp_path / "clb.toml"
    with ConsulAgent(tmp_path) as agent:
        agent.register("web", 8080, "10.0.0.1")
        config.write_text(f'consul = "{agent.url}"\n[[service]]\nname = "web"\nconsul = "web"\n')
        options = [*WEB, *resolver(knot), "--config", str(config)]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            found.process.send_signal(signal.SIGHUP)
            assert found.manager.next()[0] == "RELOADING=1"
            found.process.send_signal(signal.SIGHUP)
            assert_ends(found)


def test_a_disk_that_stalls_delays_nothing(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Answers are published and reported while neither names nor last good sets are written, and SIGTERM ends it."""
    serve(knot, "127.0.0.1:80")
    stalled, hosts, state = tmp_path / "stalled", tmp_path / "hosts", tmp_path / "state"
    stalling = (sys.executable, "-m", "tests.programs.stalled_disk", stalled)
    options = [*WEB, *resolver(knot), "--max-ttl", "1s", "--hold", "0s"]
    options += ["--hosts-file", str(hosts), "--state-dir", str(state)]
    hosts.touch()
    with sidecar(instance, cgroup, tmp_path, options, wrapper=stalling) as found:
        names, kept = hosts.read_text(), state / f"{instance}.json"
        assert VIP in names
        found.wait_for(lambda: kept.exists() and b"127.0.0.1" in kept.read_bytes(), "the set is kept")
        stalled.touch()
        hosts.write_text("")
        for server in ("127.0.0.2:80", "127.0.0.3:80", "127.0.0.4:80"):
            serve(knot, server)
            wait_for_pool(instance, VIP, weighted(server))
            assert status(instance)["sidecar"]["running"]
        assert hosts.read_text() == ""
        found.process.send_signal(signal.SIGHUP)
        found.wait_for(lambda: "configuration reloaded" in found.events(), "it is reloaded")
        stalled.unlink()
        found.wait_for(lambda: hosts.read_text() == names and b"127.0.0.4" in kept.read_bytes(), "they are written")
        stalled.touch()
        hosts.write_text("")
        serve(knot, "127.0.0.5:80")
        wait_for_pool(instance, VIP, weighted("127.0.0.5:80"))
        assert_ends(found)
        assert "cannot save the last known good sets" in found.events()


class Large(FakeSource):
    """A source with the maximum number of real servers of a pool."""

    name = "fake:large"

    def __init__(self) -> None:
        super().__init__()
        self.is_asked_again = asyncio.Event()

    async def next(self) -> Answer:
        """Return them at once; then wait for ever."""
        if not self.is_asked_again.is_set():
            self.is_asked_again.set()
            return self.answer(Answer(real_servers(MAX_POOL)))
        return await self.nothing_new()


async def test_sigterm_during_a_large_publication_is_a_stop(instance: str, cgroup: Path) -> None:
    """The current publication is finished, in time, and the data plane is whole."""
    source = Large()
    async with running_daemon(instance, cgroup, source):
        await source.is_asked_again.wait()
        await asyncio.to_thread(wait_for_names, instance)
        started = time.monotonic()
    print(f"\nstopped after {time.monotonic() - started:.2f} s")
    installed = snapshot(instance).installed
    assert installed is not None
    assert max(len(one.pool or ()) for one in installed.virtual.values()) == MAX_POOL
