"""Notifications to systemd: ready, status, reloading, watchdog, stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.model.answer import Answer
from clb_discovery.publication.steps import Step
from tests.support.fake_source import Told
from tests.support.in_process import real_servers, running_daemon
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.sidecar import pool, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance
from tests.support.srv_web import VIP, WEB, resolver, serve, weighted
from tests.support.systemd import service_manager

instance = loaded_instance

FRESH: Final = "STATUS=following 1, all answered"
WATCHDOG: Final = 0.4
"""Seconds of `WatchdogSec=`."""


def test_readiness_and_stop_are_reported_to_systemd(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """Without a last known good set READY=1 comes after the first complete sync; STOPPING=1 comes on SIGTERM."""
    knot.purge()
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)], ready=False) as found:
        assert found.manager.next() == ["STATUS=1 of 1 without any answer: srv:_web._tcp.example"]
        found.wait_for(lambda: status(instance)["sources"][0]["error"] is not None, "the source fails")
        assert found.manager.heard() == []
        serve(knot, "127.0.0.1:8080")
        assert found.manager.next() == ["READY=1", FRESH]
        assert pool(instance, VIP) == weighted("127.0.0.1:8080")
        assert found.stop() == 0
        assert found.manager.heard() == [["STOPPING=1"]]


def test_service_manager_that_does_not_listen_is_no_reason_to_end(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """A NOTIFY_SOCKET without a listener is logged once; the sidecar goes on."""
    serve(knot, "127.0.0.1:8080")
    nobody = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "400000"}
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)], ready=False, env=nobody) as found:
        found.wait_for(lambda: "ready" in found.events(), "the sidecar is ready")
        serve(knot, "127.0.0.1:8080", "127.0.0.2:8080")
        wait_for_pool(instance, VIP, weighted("127.0.0.1:8080", "127.0.0.2:8080"))
        assert found.stop() == 0
    assert found.events().count("cannot notify the service manager") == 1


def test_status_follows_the_sources(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """An outage after the start shows in STATUS=, once, as does its end; the sidecar stays ready."""
    serve(knot, "127.0.0.1:8080")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
        knot.purge()
        assert found.manager.next() == ["STATUS=1 of 1 served from the last known set: srv:_web._tcp.example"]
        serve(knot, "127.0.0.1:8080")
        assert found.manager.next() == [FRESH]


def test_reload_is_reported_to_systemd(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """RELOADING=1 with the time in one message, then READY=1, also if the file is rejected."""
    config = tmp_path / "clb.toml"
    config.write_text(f'[[service]]\nname = "web"\nvip = "{VIP}"\nservers = ["10.0.0.1:1"]\n')
    with sidecar(instance, cgroup, tmp_path, ["--config", str(config)]) as found:
        for text in (config.read_text(), "nonsense"):
            config.write_text(text)
            found.process.send_signal(signal.SIGHUP)
            reloading, since = found.manager.next()
            assert reloading == "RELOADING=1"
            assert since.removeprefix("MONOTONIC_USEC=").isdigit()
            assert found.manager.next() == ["READY=1"]
        assert found.manager.heard() == []


def test_watchdog_is_pinged_only_if_requested(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """With WATCHDOG_USEC for this process there are pings, also while nothing happens; for another there are none."""
    serve(knot, "127.0.0.1:8080")
    asked = {"WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)], env=asked) as found:
        assert [found.manager.next() for _ in range(4)] == [["WATCHDOG=1"]] * 4
    not_for_us = {**asked, "WATCHDOG_PID": str(os.getpid())}
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)], env=not_for_us) as found:
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "it goes round")
        assert found.stop() == 0
        assert found.manager.heard() == [["STOPPING=1"]]


async def test_stuck_main_loop_is_not_alive(
    instance: str, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a publication hangs there is no ping, though the event loop runs; afterwards pings go on."""
    stuck, released = threading.Event(), threading.Event()
    apply = Maps.apply

    def apply_late(self: Maps, steps: Iterable[Step]) -> None:
        if stuck.is_set():
            released.wait()
        apply(self, steps)

    monkeypatch.setattr(Maps, "apply", apply_late)
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG * 1e6)))
    source = Told(Answer(real_servers(1)))
    with service_manager(tmp_path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        async with running_daemon(instance, cgroup, source):
            await asyncio.to_thread(manager.until, "WATCHDOG=1")
            stuck.set()
            source.tell(Answer(real_servers(2)))
            await asyncio.sleep(patient(2 * WATCHDOG))  # the publication is finished
            manager.heard()
            await asyncio.sleep(patient(4 * WATCHDOG))
            assert manager.heard() == []
            released.set()
            await asyncio.to_thread(manager.until, "WATCHDOG=1")
