"""More services than connections that the agent accepts from one host, with the agent's default limits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from clb_discovery.model.answer import Answer, Failure, Outcome
from clb_discovery.sources.consul.server import AT_ONCE, DIRECT, ConsulServer
from tests.support.cgroups import made_cgroup
from tests.support.consul import ConsulAgent
from tests.support.dataplane import wipe
from tests.support.followed import followed
from tests.support.pace import patient
from tests.support.process import wait_until
from tests.support.sidecar import sidecar as sidecar_process

pytestmark = pytest.mark.discovery

SERVICES: Final = 1000
NODES: Final = 3
WITHIN: Final = patient(60)
"""Seconds after which a wait fails. How long one takes is printed, not judged: it depends on the load of the host."""
ROUNDS: Final = 10
LIMIT: Final = 200
"""`http_max_conns_per_client`, Consul's default."""


class Watched:
    """The answers and failures of the sources of one sidecar."""

    def __init__(self) -> None:
        self.servers: dict[str, tuple[str, ...]] = {}
        self.failures: defaultdict[str, list[str]] = defaultdict(list)

    def take(self, service: str, outcome: Outcome) -> None:
        """Record an outcome of a source."""
        if isinstance(outcome, Failure):
            self.failures[service].append(outcome.reason)
        elif isinstance(outcome, Answer):
            self.servers[service] = tuple(sorted(f"{server}*{server.weight}" for server in outcome.servers))

    def reasons(self) -> set[str]:
        """Return why sources failed."""
        return {reason for reasons in self.failures.values() for reason in reasons}

    async def seen(self, condition: Callable[[], bool], what: str, within: float) -> float:
        """Wait until the condition holds; return how many seconds that took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < within, f"{what} not seen within {within:g} s; {self.reasons()}"
            await asyncio.sleep(0.01)
        return time.monotonic() - started


def vip_of(number: int) -> str:
    """Return the VIP by which a service opts in."""
    return f"10.64.{number >> 8}.{number & 255}:80"


def put_instance(agent: ConsulAgent, number: int, node: int, *, weight: int = 1, status: str = "passing") -> None:
    """Write an instance of a service, with its check, into the catalog."""
    service, name = f"service-{number}-{node}", f"node-{node}"
    agent.request(
        "PUT",
        "/v1/catalog/register",
        {
            "Node": name,
            "Address": f"10.0.{node}.1",
            "Service": {
                "Service": f"service-{number}",
                "ID": service,
                "Port": 1000 + number,
                "Weights": {"Passing": weight, "Warning": 1},
                "Meta": {"clb-vip": vip_of(number)},
            },
            "Check": {"CheckID": f"check-{service}", "Name": "c", "ServiceID": service, "Status": status},
        },
    )


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ConsulAgent]:
    """Run an agent whose catalog has `SERVICES` services with two instances each.

    Each test has its own agent: an agent counts queries of a stopped client for a minute, those of an earlier test,
    too.
    """
    with ConsulAgent(tmp_path) as running:
        with ThreadPoolExecutor(8) as pool:
            for node in (0, 1):
                list(pool.map(lambda number, node=node: put_instance(running, number, node), range(SERVICES)))
        yield running


@contextlib.asynccontextmanager
async def sidecar(agent: ConsulAgent) -> AsyncIterator[Watched]:
    """Follow all services as a sidecar does."""
    watched, server = Watched(), ConsulServer(agent.url)
    names = [f"service-{number}" for number in range(SERVICES)]
    async with followed(server, names, watched.take):
        yield watched


def requests(agent: ConsulAgent) -> int:
    """Return how many requests the agent has answered, by its log."""
    return agent.log.read_bytes().count(b"Request finished")


def connections(agent: ConsulAgent) -> int:
    """Return how many connections to the agent are open."""
    port = f":{agent.http_port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(line[2].endswith(port) and line[3] == "01" for line in lines)


async def test_a_thousand_services_under_the_default_limit(agent: ConsulAgent) -> None:
    """Every change of any service arrives, over few connections; without changes there are few queries."""
    chance = random.Random(20)  # noqa: S311  # a test's dice
    print()
    async with sidecar(agent) as watched:
        took = await watched.seen(lambda: len(watched.servers) == SERVICES, "all services", WITHIN)
        print(f"all of {SERVICES} services after {took:.2f} s, {requests(agent)} requests in the log")
        await asyncio.sleep(3)
        before = requests(agent)
        await asyncio.sleep(10)
        idle = (requests(agent) - before) / 10
        open_ = connections(agent)
        print(f"idle: {idle:.1f} requests/s over {open_} connections")
        assert open_ <= DIRECT + AT_ONCE + 3
        assert idle < 3

        for kind, change in CHANGES.items():
            waits: list[float] = []
            before = requests(agent)
            for number in chance.sample(range(SERVICES), ROUNDS):
                name = f"service-{number}"
                old = watched.servers[name]
                await asyncio.to_thread(change, agent, number, len(waits))
                waits.append(await watched.seen(lambda: watched.servers[name] != old, f"{kind} of {name}", WITHIN))  # noqa: B023
            each = (requests(agent) - before) / len(waits)
            print(f"{kind}: seen within {max(waits):.2f} s, {each:.0f} requests each")
        assert not watched.reasons()
        assert connections(agent) <= DIRECT + AT_ONCE + 3


def _fail(agent: ConsulAgent, number: int, _: int) -> None:
    put_instance(agent, number, 0, status="critical")


def _weigh(agent: ConsulAgent, number: int, turn: int) -> None:
    put_instance(agent, number, 1, weight=7 + turn)


def _add(agent: ConsulAgent, number: int, _: int) -> None:
    put_instance(agent, number, 2)


def _remove(agent: ConsulAgent, number: int, _: int) -> None:
    agent.request("PUT", "/v1/catalog/deregister", {"Node": "node-1", "ServiceID": f"service-{number}-1"})


CHANGES: Final = {"failing check": _fail, "new weight": _weigh, "new instance": _add, "instance gone": _remove}


async def test_restarts_do_not_run_into_the_limit(agent: ConsulAgent) -> None:
    """An agent keeps counting queries of a stopped sidecar; some restarts per minute fit into its limit."""
    for _ in range(3):
        async with sidecar(agent) as watched:
            await watched.seen(lambda: len(watched.servers) == SERVICES, "all services", WITHIN)
            await asyncio.sleep(2)
        assert not watched.reasons()


async def test_past_the_limit_there_are_errors_and_no_storm(agent: ConsulAgent) -> None:
    """While others use all connections there are errors and few retries; when they stop, all sources get answers."""
    others = []
    try:
        for _ in range(LIMIT):
            _, writer = await asyncio.open_connection("127.0.0.1", agent.http_port)
            others.append(writer)
        async with sidecar(agent) as watched:
            await watched.seen(lambda: len(watched.failures) == SERVICES, "the limit", WITHIN)
            await asyncio.sleep(10)
            tries = sum(map(len, watched.failures.values()))
            print(f"\n{tries} tries of {SERVICES} services; {watched.reasons()}")
            assert tries < 3 * SERVICES
            for writer in others:
                writer.close()
            took = await watched.seen(lambda: len(watched.servers) == SERVICES, "all services", WITHIN)
            print(f"all back after {took:.1f} s")
    finally:
        for writer in others:
            writer.close()


@pytest.mark.parametrize("catalog", [False, True])
def test_the_sidecar_publishes_a_change_of_any_service(agent: ConsulAgent, tmp_path: Path, *, catalog: bool) -> None:
    """Changes in Consul reach the kernel's pools, for 1,000 services with 1,000 VIPs, named or opted in."""
    instance = f"test-{uuid4().hex[:8]}"
    vips = [vip_of(number) for number in range(SERVICES)]
    options = ["--consul", agent.url]
    if catalog:
        options += ["--vip-range", "10.64.0.0/16", "--max-services", str(SERVICES + 1)]
    else:
        options += [word for number, vip in enumerate(vips) for word in ("--service", f"service-{number}={vip}")]
    waits = []
    with made_cgroup() as cgroup:
        try:
            started = time.monotonic()
            with sidecar_process(instance, cgroup, tmp_path, options) as found:
                print(f"\nready after {time.monotonic() - started:.1f} s")
                chosen = random.Random(21).sample(range(SERVICES), ROUNDS)  # noqa: S311  # a test's dice
                for number in [*chosen, *([SERVICES] if catalog else [])]:
                    said = f'"vip": "{vip_of(number)}"'
                    before = found.log.read_text().count(said)
                    put_instance(agent, number, 5, weight=3)
                    changed = time.monotonic()
                    wait_until(lambda: found.log.read_text().count(said) > before, f"{said} is published", WITHIN)  # noqa: B023
                    waits.append(time.monotonic() - changed)
                print(
                    f"new instances are in the kernel within {max(waits):.2f} s over {connections(agent)} connections"
                )
                assert connections(agent) <= DIRECT + AT_ONCE + 4
        finally:
            wipe(instance)
