"""A start while discovery is down: the last known good sets are served, also after a reboot."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.model.answer import Answer
from clb_discovery.publication.steps import Write
from tests.support.contract import assert_is_status
from tests.support.dataplane import dial, snapshot
from tests.support.fake_source import FakeSource
from tests.support.in_process import real_servers, running_daemon
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.loading import loader_of_tests
from tests.support.process import free_port, wait_until
from tests.support.sidecar import clb, pool, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance
from tests.support.srv_web import OTHER_VIP, VIP, WEB, resolver, serve, weighted
from tests.support.web import get

instance = loaded_instance


def test_last_known_set_is_served_after_a_reboot_without_discovery(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """If the maps are gone and DNS is down, connects use the last known good set, marked stale, until DNS is back."""
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
            stale = "STATUS=1 of 1 served from the last known set: srv:_web._tcp.example"
            assert found.wait_until_ready() == ["READY=1", stale]
            assert found.events()[-2:] == ["source fails", "ready"]
            assert dial(cgroup, VIP, 80, 40) == ["ok"] * 40
            assert sorted(server.taken() > 0 for server in servers) == [False, True, True]
            document = status(instance)
            assert_is_status(document)
            (source,) = document["sources"]
            assert (source["state"], source["stale"], source["last_success"]) == ("retrying", True, answered)
            assert source["reason"] == f"stale since {answered}: {source['error']}"
            assert document["sidecar"]["last_sync"] is None
            assert source["reason"] in clb("status", "--instance", instance).stdout
            (restored,) = (line for line in found.lines() if line["event"] == "serving the last known good set")
            assert (restored["level"], restored["servers"], restored["since"]) == ("warning", 2, answered)

            knot.start()
            serve(knot, one.name, three.name)
            wait_for_pool(instance, VIP, weighted(one.name, three.name))
            found.manager.until("STATUS=following 1, all answered")
            assert status(instance)["sources"][0]["state"] == "fresh"
            assert status(instance)["sidecar"]["last_sync"] is not None


def test_first_answer_after_a_reboot_is_guarded(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """If a DNS server comes back without its records, they are removed only when an answer after --hold confirms it."""
    state_dir = tmp_path / "state"
    options = [*WEB, *resolver(knot), "--state-dir", str(state_dir), "--hold", "10s"]
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
        assert re.fullmatch(
            r"3 of 3 real servers absent or out since \S+Z; kept until an answer confirms it after 10 s \(--hold\)",
            source["reason"],
        )
        wait_for_pool(instance, VIP, {})
        wait_until(
            lambda: b"127.0.0.1" not in (state_dir / f"{instance}.json").read_bytes(), "the disk has the empty set, too"
        )


def test_kernel_knows_better_than_the_disk(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """If the maps outlived the sidecar, only the time of the last answer is read from the disk."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    options = [*WEB, *resolver(knot), "--state-dir", str(state_dir)]
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, options) as found:
        assert found.stop() == 0
    knot.stop()
    file = state_dir / f"{instance}.json"
    file.write_bytes(file.read_bytes().replace(b"127.0.0.1", b"127.0.0.9"))
    with sidecar(instance, cgroup, tmp_path, options):
        assert pool(instance, VIP) == weighted("127.0.0.1:1")
        (source,) = status(instance)["sources"]
        assert source["error"] is not None
        assert source["last_success"] is not None


@pytest.mark.parametrize("content", [b"", b"{", b'{"version":1,"sources":{"srv:_web._tcp.example":{"servers":[[0]]}}}'])
def test_garbage_on_disk_is_no_reason_to_end(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path, content: bytes
) -> None:
    """An unusable file is one warning, and is replaced after the next answer of the source."""
    file = tmp_path / f"{instance}.json"
    file.write_bytes(content)
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot), "--state-dir", str(tmp_path)]) as found:
        assert pool(instance, VIP) == weighted("127.0.0.1:1")
        found.wait_for(lambda: b"127.0.0.1" in file.read_bytes(), "the file is good again")
    assert found.events().count("saved last known good sets ignored") == 1


def test_disk_that_takes_nothing_is_logged_once(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """If the state directory cannot be written, the sidecar logs it once, counts it, and goes on."""
    (tmp_path / "file").touch()
    serve(knot, "127.0.0.1:1")
    port = free_port()
    options = [*WEB, *resolver(knot), "--state-dir", str(tmp_path / "file"), "--metrics", f"127.0.0.1:{port}"]
    with sidecar(instance, cgroup, tmp_path, options) as found:
        serve(knot, "127.0.0.1:1", "127.0.0.2:2")
        wait_for_pool(instance, VIP, weighted("127.0.0.1:1", "127.0.0.2:2"))
        lost = re.compile(r"^clb_state_write_failures_total ([1-9]\d*)\.0$", re.MULTILINE)
        found.wait_for(lambda: lost.search(get(port, "/metrics")) is not None, "it is counted")
        assert found.stop() == 0
    assert found.events().count("cannot save the last known good sets") == 1


def test_unconfigured_services_stay_until_discovery_is_back(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """A sidecar that became ready with last known good sets removes nothing before the first complete sync."""
    loader.load(Pins(instance), cgroup, loader_of_tests())
    serve(knot, "127.0.0.1:1")
    disk = ("--state-dir", str(tmp_path))
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot), *disk]):
        pass
    knot.stop()
    orphan = (elements.pack_place(1000, 0), bytes(structs.ROW.size))
    with Maps(Pins(instance)) as maps:
        maps.carry_out(Write(Map.OVERFLOW, (orphan,)))
    options = ["--srv", f"_web._tcp.example={VIP}:81", *resolver(knot), *disk]
    with sidecar(instance, cgroup, tmp_path, options) as found:
        waiting = snapshot(instance).installed
        assert waiting is not None
        assert waiting.orphans == {Map.OVERFLOW: (orphan[0],)}
        assert {server["port"] for server in status(instance)["virtual_servers"]} == {80, 81}
        assert pool(instance, VIP) == weighted("127.0.0.1:1")
        knot.start()
        serve(knot, "127.0.0.1:1")
        found.manager.until("STATUS=following 1, all answered")
        complete = snapshot(instance).installed
        assert complete is not None
        assert complete.orphans == {}
        assert {server["port"] for server in status(instance)["virtual_servers"]} == {81}


def test_service_without_any_set_keeps_it_from_being_ready(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """One known service is not enough: programs that start after the sidecar may connect to the other."""
    serve(knot, "127.0.0.1:1")
    serve(knot, "127.0.0.2:1", name="_late._tcp", zone="test")
    options = [*WEB, *resolver(knot), "--state-dir", str(tmp_path)]
    with sidecar(instance, cgroup, tmp_path, options):
        pass
    knot.stop()
    more = [*options, "--srv", f"_late._tcp.test={OTHER_VIP}:80"]
    with sidecar(instance, cgroup, tmp_path, more, ready=False) as found:
        message = found.manager.until(
            "STATUS=1 of 2 without any answer: srv:_late._tcp.test; "
            "1 of 2 served from the last known set: srv:_web._tcp.example"
        )
        assert "READY=1" not in message
        found.wait_for(lambda: found.events().count("source fails") == 2, "both fail")
        knot.start()
        found.wait_until_ready()
        assert pool(instance, OTHER_VIP) == weighted("127.0.0.2:1")


class Silent(FakeSource):
    """A source that gives some answers, and then neither answers nor fails."""

    name = "fake:silent"

    def __init__(self, *answers: Answer) -> None:
        super().__init__()
        self._answers = list(answers)

    async def next(self) -> Answer:
        """Return the next answer, or wait for ever."""
        return self.answer(self._answers.pop(0)) if self._answers else await self.nothing_new()


async def test_source_that_hangs_is_not_waited_for(instance: str, cgroup: Path) -> None:
    """If a last known good set exists and its source hangs, the sidecar becomes ready with it after a few seconds."""
    for source, stale in ((Silent(Answer(real_servers(1))), 0), (Silent(), 1)):
        with capture_logs() as logs:
            async with running_daemon(instance, cgroup, source):
                await asyncio.to_thread(
                    wait_until,
                    lambda: any((line["event"], line.get("stale")) == ("ready", stale) for line in logs),  # noqa: B023
                    "the sidecar is ready",
                )
