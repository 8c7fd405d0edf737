"""The Consul source in hard cases with the real Consul: ACLs, TLS, lost leaders, lost state, restarts."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer, Failure, Outcome
from clb_discovery.model.servers import RealServer
from clb_discovery.model.service import RemovalPolicy, Service
from clb_discovery.sources.consul.server import DIRECT, ConsulServer
from clb_discovery.sources.consul.source import server_from_environment
from clb_discovery.state.service import ServiceState
from tests.support.consul import ACL_DENY, MASTER_TOKEN, ConsulAgent, ConsulCluster, ConsulTls, make_tls
from tests.support.followed import followed
from tests.support.pace import patient
from tests.support.process import wait_until

pytestmark = pytest.mark.discovery

DOCS: Final = Path(__file__).parents[2] / "docs/consul.md"
SOON: Final = patient(5.0)
AGAIN: Final = patient(45.0)
"""Seconds that suffice for the longest backoff and an election."""


def real_server(number: int) -> RealServer:
    """Return one of the real servers that tests register."""
    return RealServer(0, parse_address(f"10.0.0.{number}"), number, 1)


def register(agent: ConsulAgent, service: str, *numbers: int) -> None:
    """Write instances into the catalog, through any agent."""
    for number in numbers:
        body = {"Service": service, "ID": f"{service}-{number}", "Address": f"10.0.0.{number}", "Port": number}
        agent.register_external("outside", "10.0.0.254", body)


class Heard:
    """All outcomes of one source, in order."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def take(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes.append(outcome)

    def servers(self) -> list[RealServer] | None:
        """Return the last answer, unless a failure came after it."""
        last = self.outcomes[-1] if self.outcomes else None
        return sorted(last.servers) if isinstance(last, Answer) else None

    def failed(self) -> bool:
        """Return whether the last outcome is a failure."""
        return bool(self.outcomes) and isinstance(self.outcomes[-1], Failure)

    def ever_empty(self) -> bool:
        """Return whether there was ever an empty answer."""
        return any(isinstance(outcome, Answer) and not outcome.servers for outcome in self.outcomes)


@asynccontextmanager
async def following(server: ConsulServer, *services: str) -> AsyncIterator[dict[str, Heard]]:
    """Follow services as the sidecar does, and close the server."""
    heard = {service: Heard() for service in services}
    async with followed(server, services, lambda name, outcome: heard[name].take(outcome)):
        yield heard


async def until(condition: Callable[[], bool], what: str, within: float = SOON) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"waited {within:g} s in vain until {what}"
        await asyncio.sleep(0.02)


def documented_policy() -> str:
    """Return the ACL rules from docs/consul.md."""
    blocks: list[str] = re.findall(r"```hcl\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (rules,) = (block for block in blocks if "policy" in block)
    return rules


@pytest.mark.parametrize(
    "rules", [documented_policy(), 'service "redis" { policy = "read" }\nnode_prefix "" { policy = "read" }']
)
async def test_default_deny_with_the_policy_of_the_docs(tmp_path: Path, rules: str) -> None:
    """The documented policies and commands give a token that can follow all services, empty ones included.

    When its rights are removed there are errors, and never an empty answer.
    """
    with ConsulAgent(tmp_path, config=ACL_DENY, token=MASTER_TOKEN) as agent:

        def acl(*words: str) -> str:
            command = ["consul", "acl", *words, f"-http-addr={agent.url}", f"-token={MASTER_TOKEN}"]
            return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

        (tmp_path / "clb-discovery.hcl").write_text(rules, encoding="utf-8")
        acl("policy", "create", "-name", "clb-discovery", "-rules", "@clb-discovery.hcl")
        made = acl("token", "create", "-description", "clb-discovery", "-policy-name", "clb-discovery")
        file = tmp_path / "token"
        file.write_text(re.findall(r"SecretID: +(\S+)", made)[0] + "\n", encoding="utf-8")
        register(agent, "redis", 1, 2)
        server = server_from_environment(agent.url, {}, {"CONSUL_HTTP_TOKEN_FILE": str(file)})
        async with following(server, "redis") as heard:
            redis = heard["redis"]
            await until(lambda: redis.servers() == [real_server(1), real_server(2)], "both are there")
            register(agent, "redis", 3)
            await until(lambda: len(redis.servers() or ()) == 3, "the third is there")
            acl("policy", "update", "-name", "clb-discovery", "-rules", 'key_prefix "" { policy = "read" }')
            register(agent, "redis", 4)
            await until(redis.failed, "the token has no rights", AGAIN)
            assert "may not read" in str(redis.outcomes[-1])
            acl("policy", "update", "-name", "clb-discovery", "-rules", "@clb-discovery.hcl")
            await until(lambda: len(redis.servers() or ()) == 4, "the rights are back", AGAIN)
            assert not redis.ever_empty()
            gone = [f"redis-{number}" for number in (1, 2, 3, 4)]
            for service_id in gone:
                agent.request("PUT", "/v1/catalog/deregister", {"Node": "outside", "ServiceID": service_id})
            await until(lambda: redis.servers() == [], "an empty service is an answer")


async def test_a_token_that_is_replaced(tmp_path: Path) -> None:
    """A new token in the file is used without a restart: while queries succeed at once, else at the next retry."""
    file = tmp_path / "token"
    with ConsulAgent(tmp_path, config=ACL_DENY, token=MASTER_TOKEN) as agent:
        agent.request("PUT", "/v1/acl/policy", {"Name": "clb-discovery", "Rules": documented_policy()})

        def new_token() -> str:
            made = agent.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "clb-discovery"}]})
            file.with_suffix(".new").write_text(made["SecretID"] + "\n", encoding="utf-8")
            file.with_suffix(".new").replace(file)
            return str(made["AccessorID"])

        first = new_token()
        register(agent, "redis", 1)
        server = server_from_environment(agent.url, {}, {"CONSUL_HTTP_TOKEN_FILE": str(file)})
        async with following(server, "redis") as heard:
            redis = heard["redis"]
            await until(lambda: redis.servers() == [real_server(1)], "it is there")
            second = new_token()
            register(agent, "redis", 2)
            await until(lambda: len(redis.servers() or ()) == 2, "the second is there")
            agent.request("DELETE", f"/v1/acl/token/{first}")
            register(agent, "redis", 3)
            await until(lambda: len(redis.servers() or ()) == 3, "nobody misses the first token")
            assert not any(isinstance(outcome, Failure) for outcome in redis.outcomes)
            agent.request("DELETE", f"/v1/acl/token/{second}")
            register(agent, "redis", 4)
            await until(redis.failed, "the token is rejected", AGAIN)
            assert "403" in str(redis.outcomes[-1])
            new_token()
            await until(lambda: len(redis.servers() or ()) == 4, "the new token is taken", AGAIN)
            assert not redis.ever_empty()


async def test_many_services_with_a_narrow_token(tmp_path: Path) -> None:
    """Services without a blocking query of their own follow the catalog, even if the token may read little of it."""
    names = [f"narrow-{number}" for number in range(DIRECT + 4)]
    with ConsulAgent(tmp_path, config=ACL_DENY, token=MASTER_TOKEN) as agent:
        for name in [*names, "secret"]:
            register(agent, name, 1)
        rules = 'service_prefix "narrow-" { policy = "read" }\nnode_prefix "" { policy = "read" }'
        agent.request("PUT", "/v1/acl/policy", {"Name": "narrow", "Rules": rules})
        token = agent.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "narrow"}]})["SecretID"]
        async with following(ConsulServer(agent.url, token), *names) as heard:
            await until(lambda: all(one.servers() for one in heard.values()), "all are there")
            for name in names:
                register(agent, name, 2)
            await until(lambda: all(len(one.servers() or ()) == 2 for one in heard.values()), "all have two")
            assert not any(one.failed() or one.ever_empty() for one in heard.values())


async def test_tls_with_consuls_own_authority(tmp_path: Path) -> None:
    """Files from `consul tls` work as options, the authority also as a directory; each missing file is an error."""
    tls = make_tls(tmp_path)
    directory = tmp_path / "authorities"
    directory.mkdir()
    (directory / "ours.pem").write_bytes(tls.authority.read_bytes())
    environ = {"CONSUL_HTTP_ADDR": f"127.0.0.1:{tls.port}", "CONSUL_HTTP_SSL": "true"}
    cases: list[tuple[dict[str, str | None], bool]] = [
        ({}, True),
        ({"CONSUL_CACERT": None, "CONSUL_CAPATH": str(directory)}, True),
        ({"CONSUL_TLS_SERVER_NAME": "localhost"}, True),
        ({"CONSUL_CACERT": None}, False),
        ({"CONSUL_CLIENT_CERT": None, "CONSUL_CLIENT_KEY": None}, False),
        ({"CONSUL_TLS_SERVER_NAME": "client.dc1.consul"}, False),
    ]
    with ConsulAgent(tmp_path, config=tls.config) as agent:
        register(agent, "redis", 1)
        for change, works in cases:
            server = server_from_environment(None, environ, {**tls.client, **change})
            async with following(server, "redis") as heard:
                redis = heard["redis"]
                await until(lambda redis=redis: bool(redis.outcomes), "there is an outcome")  # type: ignore[misc]
                assert redis.failed() is not works, (change, redis.outcomes)


async def test_a_client_certificate_that_is_replaced(tmp_path: Path) -> None:
    """A new certificate and key are used when both have been replaced; until then the previous pair is sent."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    tls, other = make_tls(tmp_path), make_tls(theirs)
    cert, key = tmp_path / "client.pem", tmp_path / "client-key.pem"
    options = {**tls.client, "CONSUL_CLIENT_CERT": str(cert), "CONSUL_CLIENT_KEY": str(key)}

    def replace(file: Path, variable: str, made: ConsulTls) -> None:
        shutil.copy(made.client[variable], file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    replace(cert, "CONSUL_CLIENT_CERT", other)
    replace(key, "CONSUL_CLIENT_KEY", other)
    with ConsulAgent(tmp_path, config=tls.config, persistent=True) as agent:
        register(agent, "redis", 1)
        environ = {"CONSUL_HTTP_ADDR": f"https://127.0.0.1:{tls.port}"}
        async with following(server_from_environment(None, environ, options), "redis") as heard:
            redis = heard["redis"]
            await until(redis.failed, "a certificate of another authority is refused")
            replace(cert, "CONSUL_CLIENT_CERT", tls)
            replace(key, "CONSUL_CLIENT_KEY", tls)
            await until(lambda: redis.servers() == [real_server(1)], "the new pair is shown", AGAIN)
            replace(cert, "CONSUL_CLIENT_CERT", other)
            await asyncio.to_thread(agent.restart)
            await asyncio.to_thread(register, agent, "redis", 2)
            await until(lambda: len(redis.servers() or ()) == 2, "the pair of before is shown again", AGAIN)


def knows(agent: ConsulAgent, services: list[str]) -> bool:
    """Return whether a server's own copy of the catalog has these services."""
    return set(services) <= set(agent.request("GET", "/v1/catalog/services?stale"))


async def test_a_cluster_that_loses_its_leader(tmp_path: Path) -> None:
    """The loss of the leader never empties a pool, whichever server is queried, and later changes arrive."""
    names = [f"service-{number}" for number in range(DIRECT + 4)]
    with ConsulCluster(tmp_path) as cluster:
        leader = cluster.leader()
        follower = next(server for server in cluster.servers if server is not leader)
        for name in names:
            register(follower, name, 1)
        wait_until(lambda: knows(follower, names), "the follower has heard of all")
        async with following(ConsulServer(follower.url), *names) as heard:
            await until(lambda: all(one.servers() for one in heard.values()), "all are there")
            await asyncio.to_thread(leader.stop)
            started = time.monotonic()
            rest = [server for server in cluster.servers if server is not leader]
            await asyncio.to_thread(wait_until, lambda: any(server.leads() for server in rest), "there is a leader")
            print(f"\na new leader after {time.monotonic() - started:.1f} s")
            for name in names:
                await asyncio.to_thread(register, cluster_leader(rest), name, 2)
            await until(lambda: all(len(one.servers() or ()) == 2 for one in heard.values()), "all have two", AGAIN)
            print(f"{sum(isinstance(o, Failure) for one in heard.values() for o in one.outcomes)} failures meanwhile")
            await asyncio.to_thread(follower.stop)
            await until(lambda: all(one.failed() for one in heard.values()), "all say so", AGAIN)
            assert {name: one.outcomes for name, one in heard.items() if one.ever_empty()} == {}


def cluster_leader(servers: list[ConsulAgent]) -> ConsulAgent:
    """Return the leader among running servers."""
    return next(server for server in servers if server.leads())


async def test_an_agent_that_restarts_under_many_services(tmp_path: Path) -> None:
    """While the agent is down every source has an error; when it is back all get answers, and none was ever empty."""
    names = [f"service-{number}" for number in range(2 * DIRECT)]
    with ConsulAgent(tmp_path, persistent=True) as agent:
        for name in names:
            register(agent, name, 1)
        async with following(ConsulServer(agent.url), *names) as heard:
            await until(lambda: all(one.servers() for one in heard.values()), "all are there")
            await asyncio.to_thread(agent.stop)
            await until(lambda: all(one.failed() for one in heard.values()), "all say so", AGAIN)
            await asyncio.to_thread(agent.start)
            for name in names:
                await asyncio.to_thread(register, agent, name, 2)
            await until(lambda: all(len(one.servers() or ()) == 2 for one in heard.values()), "all have two", AGAIN)
            assert not any(one.ever_empty() for one in heard.values())


async def test_a_server_that_lost_its_state(tmp_path: Path) -> None:
    """It returns an empty list. The removal is held, and dropped when the services are registered again."""
    names = [f"service-{number}" for number in range(DIRECT + 4)]
    policy = RemovalPolicy(max_removal=0.5, hold=patient(120))
    loop = asyncio.get_running_loop()
    with ConsulAgent(tmp_path, persistent=True) as agent:
        for name in names:
            register(agent, name, 1, 2)
        async with following(ConsulServer(agent.url), *names) as heard:
            await until(lambda: all(one.servers() for one in heard.values()), "all are there")
            guards = {name: ServiceState(Service(name, f"consul:{name}", (), policy=policy)) for name in names}
            await asyncio.to_thread(agent.lose_state)
            await until(lambda: all(one.servers() == [] for one in heard.values()), "all are said to be empty", AGAIN)
            for name in names:
                for outcome in heard[name].outcomes:
                    guards[name] = guards[name].after(outcome, loop.time(), datetime.now(UTC))
                assert guards[name].state == "held"
                assert sorted(guards[name].guarded.good) == [real_server(1), real_server(2)]
                await asyncio.to_thread(register, agent, name, 1, 2, 3)
            await until(lambda: all(len(one.servers() or ()) == 3 for one in heard.values()), "all have three", AGAIN)
            for name in names:
                guards[name] = guards[name].after(heard[name].outcomes[-1], loop.time(), datetime.now(UTC))
                assert guards[name].state == "fresh"
                assert len(guards[name].guarded.good) == 3


async def test_a_sidecar_that_finds_its_predecessors_places_taken(tmp_path: Path) -> None:
    """An agent counts queries of a stopped sidecar until their wait ends: until then there are errors, no empty set."""
    names, wait = ["one", "two", "three"], 8.0
    with ConsulAgent(tmp_path, config={"limits": {"http_max_conns_per_client": 5}}) as agent:
        for name in names:
            register(agent, name, 1)
        async with following(ConsulServer(agent.url, wait=wait), *names) as heard:
            await until(lambda: all(one.servers() for one in heard.values()), "all are there")
            await asyncio.sleep(1)
        async with following(ConsulServer(agent.url, wait=wait), *names) as heard:
            await until(lambda: any(one.failed() for one in heard.values()), "the limit is met")
            reasons = [str(one.outcomes[-1]) for one in heard.values() if one.failed()]
            assert "http_max_conns_per_client" in reasons[0]
            await asyncio.sleep(wait + wait / 16)
            await until(lambda: all(one.servers() for one in heard.values()), "all are there", AGAIN)
            assert not any(one.ever_empty() for one in heard.values())
