"""The SRV source over TCP only and over TLS, with Knot."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from clb_discovery.errors import SourceError
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from clb_discovery.sources.dns.target_cache import AT_ONCE
from tests.support.fake_dns import FakeDns, Reply
from tests.support.knot import KnotServer
from tests.support.tls import Authority, tls_front

NAME = "_redis._tcp.example"
ZONE = "_redis._tcp SRV 0 1 6379 a\na A 10.0.0.1\na AAAA fd00::1\n"


@pytest.fixture(scope="module")
def knot() -> Iterator[KnotServer]:
    """Run a server with one record."""
    with KnotServer({"example": ZONE}) as server:
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that no system trusts yet."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def _trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))


def source(resolver: str, *, min_ttl: float = 0.05) -> SrvSource:
    """Build a source that queries one server."""
    return SrvSource(NAME, Resolvers([resolver]), min_ttl)


async def servers(one: SrvSource) -> list[str]:
    """Return the next answer as text."""
    return [str(server) for server in (await one.next()).servers]


async def failure(resolver: str) -> str:
    """Return why the server gave no answer."""
    with pytest.raises(SourceError) as caught:
        await source(resolver).next()
    message = str(caught.value)
    assert message.startswith(f"SRV of {NAME}: ")
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize(
    ("certified", "name"),
    [("DNS:dns.example", "#dns.example"), ("IP:127.0.0.1", ""), ("DNS:*.dns.example", "#a.dns.example")],
)
async def test_tls_with_a_good_certificate(knot: KnotServer, authority: Authority, certified: str, name: str) -> None:
    """A server is accepted if its certificate matches the name after the #, or else its address."""
    async with tls_front(knot.port, authority.issue(certified)) as port:
        one = source(f"tls://127.0.0.1:{port}{name}")

        assert [await servers(one) for _ in range(2)] == [["10.0.0.1:6379", "[fd00::1]:6379"]] * 2


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize(
    ("certified", "name", "cause"),
    [
        ("DNS:dns.example", "#other.example", "Hostname mismatch, certificate is not valid for 'other.example'"),
        ("DNS:dns.example", "", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ("IP:127.0.0.2", "", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
)
async def test_tls_with_a_wrong_name(
    knot: KnotServer, authority: Authority, certified: str, name: str, cause: str
) -> None:
    """A certificate for another name is a failure that shows the expected name and a command for a manual query."""
    async with tls_front(knot.port, authority.issue(certified)) as port:
        message = await failure(f"tls://127.0.0.1:{port}{name}")

    wanted = name[1:] or "127.0.0.1"
    assert f"certificate rejected ({cause}) from 127.0.0.1@{port} (TLS)" in message
    assert f"dig +tls +tls-ca +tls-hostname={wanted} @127.0.0.1 -p {port} {NAME} SRV" in message


async def test_tls_with_an_unknown_authority(knot: KnotServer, authority: Authority) -> None:
    """A certificate of an authority that the system does not trust is a failure."""
    async with tls_front(knot.port, authority.issue("IP:127.0.0.1")) as port:
        message = await failure(f"tls://127.0.0.1:{port}")

    assert f"certificate rejected (unable to get local issuer certificate) from 127.0.0.1@{port} (TLS)" in message


async def test_server_that_speaks_no_tls(knot: KnotServer) -> None:
    """A plain DNS server behind tls:// is a failure; no query is sent in the clear."""
    message = await failure(f"tls://{knot.address}")

    assert f"connection closed from {knot.address.replace(':', '@')} (TLS); repeat the query with: " in message


@pytest.mark.usefixtures("_trusted")
async def test_tls_server_that_answers_nothing(authority: Authority) -> None:
    """A TLS server that accepts queries but does not answer costs its time-out and is a failure."""
    async with FakeDns() as silent, tls_front(silent.port, authority.issue("IP:127.0.0.1")) as port:
        silent.replies[f"{NAME}.", "SRV"] = Reply(silent=True)
        resolvers = Resolvers([f"tls://127.0.0.1:{port}"], lifetime=0.5)

        with pytest.raises(SourceError, match=r"from 127.0.0.1@\d+ \(TLS\)"):
            await SrvSource(NAME, resolvers).next()


async def test_tls_server_that_never_shakes_hands() -> None:
    """A server that accepts connections but does not answer costs its time-out and is a failure."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        resolvers = Resolvers([f"tls://127.0.0.1:{mute.getsockname()[1]}"], lifetime=0.5)

        async with asyncio.timeout(5):
            with pytest.raises(SourceError, match=r"no answer from 127.0.0.1@\d+ \(TLS\)"):
                await SrvSource(NAME, resolvers).next()


@pytest.mark.usefixtures("_trusted")
async def test_refused_certificate_leads_to_the_next_server(knot: KnotServer, authority: Authority) -> None:
    """Of several servers, one with a bad certificate is skipped like any other that fails."""
    async with tls_front(knot.port, authority.issue("DNS:dns.example")) as port:
        wrong, right = (f"tls://127.0.0.1:{port}#{name}" for name in ("other.example", "dns.example"))

        answer = await SrvSource(NAME, Resolvers([wrong, right])).next()

    assert len(answer.servers) == 2


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize(("questions", "connections"), [(1_000_000, AT_ONCE), (3, 403), (1, 403)])
async def test_many_targets_over_tls(authority: Authority, questions: int, connections: int) -> None:
    """The targets of 200 records share a few connections; if a server closes them early, new ones are opened."""
    async with FakeDns(questions=questions) as server, tls_front(server.port, authority.issue("IP:127.0.0.1")) as port:
        server.replies[f"{NAME}.", "SRV"] = Reply([f"{NAME}. 9 SRV 0 1 80 a{i}.example." for i in range(200)])
        for i in range(200):
            server.replies[f"a{i}.example.", "A"] = Reply([f"a{i}.example. 60 A 10.0.0.{i}"])

        assert len(await servers(source(f"tls://127.0.0.1:{port}"))) == 200

    assert {protocol for _, _, protocol in server.asked} == {"tcp"}
    assert 2 <= server.connections <= connections


async def test_tcp_alone() -> None:
    """With tcp:// no query is sent over UDP."""
    async with FakeDns() as server:
        server.replies[f"{NAME}.", "SRV"] = Reply([f"{NAME}. 9 SRV 0 1 80 a.example."])
        server.replies["a.example.", "A"] = Reply(["a.example. 9 A 10.0.0.1"])

        assert await servers(source(f"tcp://{server.address}")) == ["10.0.0.1:80"]
        server.replies[f"{NAME}.", "SRV"] = Reply(rcode="SERVFAIL")
        message = await failure(f"tcp://{server.address}")

    assert {protocol for _, _, protocol in server.asked} == {"tcp"}
    assert f"SERVFAIL from 127.0.0.1@{server.port} (TCP)" in message
    assert f"dig +tcp @127.0.0.1 -p {server.port}" in message
