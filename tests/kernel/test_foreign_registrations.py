"""The whole sidecar with registrations and proxies that its operator does not control."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.consul import ConsulAgent
from tests.support.fake_consul import FakeConsul, Reply
from tests.support.fake_consul import instance as instance_entry
from tests.support.fake_dns import SilentDns
from tests.support.faulty_consul import Cut, FaultyConsul
from tests.support.in_process import STOPS_WITHIN
from tests.support.pace import patient
from tests.support.sidecar import pool, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP = "10.64.0.1"
HOLD = 4.0


@pytest.mark.parametrize("cut", [Cut(1.2, 504), Cut(1.2, None)], ids=str)
async def test_a_hold_ends_behind_a_proxy_that_cuts_long_polls(
    instance: str, cgroup: Path, tmp_path: Path, cut: Cut
) -> None:
    """Held servers stay for `--hold` and go then, although each query is cut, and nothing is logged."""
    with ConsulAgent(tmp_path) as agent:
        async with FaultyConsul(agent, "web", cut) as consul:
            await consul.publish(frozenset({1, 2}))
            options = ["--consul", consul.url, "--service", f"web={VIP}:80", "--hold", f"{HOLD:g}s"]
            await asyncio.to_thread(
                held_and_gone, instance, cgroup, tmp_path, [*options, "--consul-wait", "30s"], consul
            )
            assert consul.cuts >= HOLD / 2


def held_and_gone(instance: str, cgroup: Path, tmp_path: Path, options: list[str], consul: FaultyConsul) -> None:
    """Remove every server from Consul, and watch the pool."""
    both = {"10.0.0.1:8001": 1, "10.0.0.2:8002": 2}
    with sidecar(instance, cgroup, tmp_path, options) as found:
        wait_for_pool(instance, VIP, both)
        asyncio.run_coroutine_threadsafe(consul.publish(frozenset()), consul.loop).result(patient(5))
        taken = time.monotonic()
        while time.monotonic() < taken + HOLD - 1:
            assert pool(instance, VIP) == both
            time.sleep(0.2)
        wait_for_pool(instance, VIP, {})
        assert time.monotonic() - taken < HOLD + patient(3)
        assert {source["state"] for source in status(instance)["sources"]} == {"fresh"}
        failed = [line for line in found.lines() if "504" in str(line) or "broke off" in str(line)]
        assert failed == []
        assert "source fails" not in found.events()


async def test_thousands_of_names_that_nobody_answers_for_take_bounded_means(
    instance: str, cgroup: Path, tmp_path: Path
) -> None:
    """Their services keep their other servers; the sidecar uses few threads and descriptors, and ends at once."""
    named = [entry(f"h{number}.example", f"s{number}") for number in range(1000)]
    async with SilentDns() as fake, FakeConsul(Reply(entries=[entry("10.0.0.1", "good"), *named])) as consul:
        options = ["--consul", consul.url, "--resolver", fake.address]
        for number in range(5):
            options += ["--service", f"web{number}=10.64.0.{number + 1}:80"]
        await asyncio.to_thread(bounded_and_ended, instance, cgroup, tmp_path, options)


def entry(address: str, service_id: str) -> dict[str, object]:
    """Return an entry of the health endpoint."""
    found = instance_entry(address)
    found["Service"]["ID"] = service_id
    return found


def bounded_and_ended(instance: str, cgroup: Path, tmp_path: Path, options: list[str]) -> None:
    """Check the resources of the process meanwhile."""
    with sidecar(instance, cgroup, tmp_path, options) as found:
        for number in range(5):
            wait_for_pool(instance, f"10.64.0.{number + 1}", {"10.0.0.1:80": 1})
        process = Path(f"/proc/{found.process.pid}")
        for _ in range(10):
            assert len(list((process / "fd").iterdir())) < 200
            assert len(list((process / "task").iterdir())) <= 8
            time.sleep(0.3)
        started = time.monotonic()
        assert found.stop() == 0
        assert time.monotonic() - started < STOPS_WITHIN
