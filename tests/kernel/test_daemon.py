"""The life of the sidecar: start, changes, failures, kills, and what it reports about them."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from clb_discovery.datapath.instance import RUN
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.plane import OwnPlane
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.model.answer import Answer
from clb_discovery.publication.steps import Write
from tests.support.contract import assert_is_status
from tests.support.dataplane import dial, publish, snapshot
from tests.support.fake_source import Told
from tests.support.in_process import real_servers, running_daemon
from tests.support.kernel_objects import freeze
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.loading import loader_of_tests
from tests.support.pace import patient
from tests.support.sidecar import clb, pool, sidecar, status
from tests.support.spares import loaded_instance
from tests.support.srv_web import OTHER_VIP, VIP, WEB, generations, resolver, serve, weighted

instance = loaded_instance


def test_killed_sidecar_leaves_everything_as_it_was(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """After SIGKILL connects go on, and status matches the contract, with the last state of the sources."""
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
        "metrics_error": None,
        "state_error": None,
    }
    assert dead["sources"][0] | {"last_success": None} == alive["sources"][0] | {"last_success": None}
    assert dead["virtual_servers"] == alive["virtual_servers"]


async def test_bug_of_the_first_test_connect_is_logged(
    instance: str, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for that test, and the sidecar goes on; so a bug in it has a line of its own, at once."""

    def broken(_: OwnPlane) -> str | None:
        raise KeyError("test")

    monkeypatch.setattr(OwnPlane, "objection", broken)
    with capture_logs() as lines:
        async with running_daemon(instance, cgroup, Told(Answer(real_servers(1)))), asyncio.timeout(patient(20)):
            while "programs are not in effect" not in [line["event"] for line in lines]:  # noqa: ASYNC110 - a log
                await asyncio.sleep(0.02)
    (found,) = (line for line in lines if line["event"] == "programs are not in effect")
    assert found["reason"].startswith("internal error: KeyError('test') at ")


class Looking(Told):
    """A source that sees whether Python searches for garbage when it answers first."""

    searched: bool | None = None

    async def next(self) -> Answer:
        """Return the next answer."""
        self.searched = gc.isenabled() if self.searched is None else self.searched
        return await super().next()


async def test_garbage_is_searched_for_after_the_start(instance: str, cgroup: Path) -> None:
    """A start with thousands of services makes objects that stay; once they are published, there may be garbage."""
    source = Looking(Answer(real_servers(1)))
    async with running_daemon(instance, cgroup, source), asyncio.timeout(patient(20)):
        while source.searched is None or not gc.isenabled():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)
        assert generations(instance)
    assert not source.searched


def test_status_of_nothing(new_instance: str) -> None:
    """Status of an instance that is not loaded has the shape of the contract, and reports that."""
    found = status(new_instance)
    assert_is_status(found)
    assert found["datapath"]["loaded"] is False
    assert found["sidecar"] == {
        "running": False,
        "pid": None,
        "last_sync": None,
        "config_error": None,
        "metrics_error": None,
        "state_error": None,
    }
    assert (found["sources"], found["virtual_servers"]) == ([], [])
    text = clb("status", "--instance", new_instance)
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
            assert (after.objects, after.installed) == (before.objects, before.installed)
            assert status(instance)["virtual_servers"][0]["connects"] == 20
            assert "pool published" not in found.events()


def test_nothing_is_removed_before_the_first_complete_sync(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """While one of two sources has not answered, unconfigured services and leftovers of a crash both stay."""
    loader.load(Pins(instance), cgroup, loader_of_tests())
    publish(instance, {f"{VIP}:80": ["127.0.0.9:9"], "10.64.0.9:80": ["127.0.0.9:9"]})
    orphan = (elements.pack_place(1000, 0), bytes(structs.ROW.size))
    with Maps(Pins(instance)) as maps:
        maps.carry_out(Write(Map.OVERFLOW, (orphan,)))
    serve(knot, "127.0.0.1:8080")
    knot.purge("test")
    options = [*WEB, "--srv", f"_late._tcp.test={OTHER_VIP}:80", *resolver(knot), "--hold", "0s"]
    with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
        found.wait_for(lambda: pool(instance, VIP) == weighted("127.0.0.1:8080"), "the first source is applied")
        found.wait_for(lambda: "source fails" in found.events(), "the second source fails")
        waiting = snapshot(instance).installed
        assert waiting is not None
        assert waiting.orphans == {Map.OVERFLOW: (orphan[0],)}
        assert set(generations(instance)) == {VIP, "10.64.0.9"}
        assert "ready" not in found.events()
        assert status(instance)["sidecar"]["last_sync"] is None

        serve(knot, "127.0.0.2:8080", name="_late._tcp", zone="test")
        found.wait_for(lambda: "ready" in found.events(), "every source has answered")
        complete = snapshot(instance).installed
        assert complete is not None
        assert complete.orphans == {}
        assert set(generations(instance)) == {VIP, OTHER_VIP}


def test_once_syncs_and_ends(new_instance: str, cgroup: Path, knot: KnotServer) -> None:
    """--once publishes what discovery returns, leaves the data plane loaded and exits 0; again, it changes nothing."""
    with listening("127.0.0.1") as (server,):
        serve(knot, server.name)
        once = ("run", "--once", "--instance", new_instance, "--cgroup", str(cgroup), *WEB, *resolver(knot))
        assert clb(*once).returncode == 0
        assert dial(cgroup, VIP, 80) == ["ok"]
        before = snapshot(new_instance)
        again = clb(*once, "--log-level", "warning")
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    after = snapshot(new_instance)
    assert (after.objects, after.installed) == (before.objects, before.installed)
    assert status(new_instance)["sidecar"]["running"] is False


def test_once_serves_no_metrics(instance: str, cgroup: Path, knot: KnotServer) -> None:
    """A port of --metrics that another program has, such as a sidecar with the same file, is nothing to --once."""
    serve(knot, "127.0.0.1:8080")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        once = clb(
            "run", "--once", *WEB, *resolver(knot), "--metrics", port, "--instance", instance, "--cgroup", cgroup
        )
    assert once.returncode == 0
    assert "metrics" not in once.stderr
    assert status(instance)["sidecar"]["metrics_error"] is None


def test_state_that_cannot_be_written_is_no_reason_to_end(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """If the state file cannot be replaced, this is logged once, and the sidecar goes on."""
    in_the_way = RUN / instance / ".state.json.clb-discovery"  # in the place of the temporary file
    in_the_way.mkdir(parents=True)
    serve(knot, "127.0.0.1:8080")
    try:
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
            serve(knot)
            found.wait_for(lambda: "removal held" in found.events(), "the source's state has changed")
        events = [line for line in found.lines() if line["level"] == "error"]
        assert [line["event"] for line in events] == ["cannot write the state for status"]
        assert "is the file system full?" in events[0]["error"]
    finally:
        in_the_way.rmdir()


@contextmanager
def moved_away(directory: Path) -> Iterator[None]:
    """Rename a directory while the block runs; from its place it looks as if a file system were mounted over it."""
    moved = directory.with_name(f"{directory.name}-moved")
    directory.rename(moved)
    try:
        yield
    finally:
        shutil.rmtree(moved)


@contextmanager
def removed(directory: Path) -> Iterator[None]:
    """Remove a directory, as a program that cleans /run does."""
    shutil.rmtree(directory)
    yield


@pytest.mark.parametrize("lost", [removed, moved_away])
def test_state_that_was_removed_is_written_again(
    instance: str,
    cgroup: Path,
    knot: KnotServer,
    tmp_path: Path,
    lost: Callable[[Path], AbstractContextManager[None]],
) -> None:
    """It does not hide the sidecar, and does not let a second one start beside it."""
    serve(knot, "127.0.0.1:1")
    options = [*WEB, *resolver(knot)]
    with sidecar(instance, cgroup, tmp_path, options) as found, lost(RUN / instance):
        assert not status(instance)["sidecar"]["running"]
        found.wait_for(lambda: bool(status(instance)["sidecar"]["running"]), "it is found again")
        assert status(instance)["sources"]
        second = clb("run", *options, "--instance", instance, "--cgroup", cgroup)
        assert second.returncode == 4
        assert f"is held by process {found.process.pid}" in second.stderr
        assert found.stop() == 0
    assert [line for line in found.lines() if line["level"] != "info"] == []


def test_log_is_one_json_object_a_line(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Every line of the log is JSON with event, level and time, and events are in order."""
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


def test_nothing_is_written_while_nothing_changes(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """During several TTLs with the same answer, and over a restart, no map is written and nothing is logged.

    The maps are frozen meanwhile (BPF_MAP_FREEZE), so that the kernel rejects every write to them.
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
    assert (after.objects, after.installed) == (before.objects, before.installed)


def test_kernel_that_refuses_a_change_is_logged_once(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """If the kernel rejects writes, the sidecar logs it once and retries, and connects reach the previous pool."""
    with listening("127.0.0.1") as (server,):
        serve(knot, server.name)
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
            freeze(Pins(instance).directory)
            serve(knot, server.name, "127.0.0.2:2")
            found.wait_for(lambda: "cannot publish" in found.events(), "the kernel has refused")
            time.sleep(5)  # it retries every 2 s
            assert found.events().count("cannot publish") == 1
            assert pool(instance, VIP) == weighted(server.name)
            assert dial(cgroup, VIP, 80, 5) == ["ok"] * 5
            assert found.stop() == 0
