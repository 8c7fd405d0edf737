"""Which DNS servers are queried, and what happens when resolv.conf changes or becomes invalid."""

from __future__ import annotations

from pathlib import Path

import pytest
from dns.nameserver import AddressAndPortNameserver, Do53Nameserver

from clb_discovery.errors import SourceError, UsageError
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns, Reply


def asked(resolvers: Resolvers) -> list[tuple[str, int]]:
    """Return the servers that would be queried."""
    return [
        (server.address, server.port)
        for server in resolvers.current().nameservers
        if isinstance(server, AddressAndPortNameserver)
    ]


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:8600", ("127.0.0.1", 8600)),
        ("fd00::53", ("fd00::53", 53)),
        ("[fd00::53]", ("fd00::53", 53)),
        ("[fd00::53]:8600", ("fd00::53", 8600)),
        ("[fe80::1%eth0]:53", ("fe80::1%eth0", 53)),
        ("tcp://127.0.0.1", ("127.0.0.1", 53)),
        ("tcp://[fd00::53]:8600", ("fd00::53", 8600)),
        ("tls://127.0.0.1", ("127.0.0.1", 853)),
        ("tls://127.0.0.1:8853#dns.example", ("127.0.0.1", 8853)),
        ("tls://fd00::53#dns.example", ("fd00::53", 853)),
        ("tls://[fd00::53]:8853", ("fd00::53", 8853)),
    ],
)
def test_forms_of_a_server(text: str, server: tuple[str, int]) -> None:
    """A server is an address of either family, optionally with a port, a transport, and a name for its certificate."""
    assert asked(Resolvers([text])) == [server]


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("127.0.0.1", "Do53"),
        ("tcp://127.0.0.1", "tcp"),
        ("tls://127.0.0.1", "tls 127.0.0.1"),
        ("tls://[fe80::1%eth0]:853", "tls fe80::1"),
        ("tls://127.0.0.1#dns.example", "tls dns.example"),
    ],
)
def test_transports_of_a_server(text: str, how: str) -> None:
    """The certificate has to match the name after the #, else the address."""
    (server,) = Resolvers([text]).current().nameservers
    assert isinstance(server, AddressAndPortNameserver)
    assert " ".join(filter(None, (server.kind(), getattr(server, "name", None)))) == how


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dns.example",
        "10.0.0",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:0655359",
        "10.0.0.1:5x",
        "10.0.0.1:٣",
        "10.0.0.1:" + "9" * 5000,
        "[fd00::1",
        "[fd00::1]53",
        "[10.0.0.1]:53",
        "10.0.0.1#dns.example",
        "udp://10.0.0.1",
        "://10.0.0.1",
        "tcp://",
        "tcp://10.0.0.1#dns.example",
        "tls://dns.example",
        "tls://10.0.0.1#",
        "tls://10.0.0.1#.",
        "tls://10.0.0.1#a..b",
        "tls://10.0.0.1#-a.b",
        "tls://10.0.0.1#a b",
        "tls://10.0.0.1#$(reboot)",
        "tls://10.0.0.1#" + "a" * 64,
        "tls://10.0.0.1#" + "a." * 150 + "a",
    ],
)
def test_bad_server_is_wrong_usage(text: str) -> None:
    """Anything else is rejected with the value and the accepted forms, in one short line."""
    with pytest.raises(UsageError, match="write IP, IP:PORT or") as caught:
        Resolvers([text])

    assert repr(text)[1:40].rstrip("'") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_servers_with_one_address_and_two_ports() -> None:
    """Two servers may have the same address."""
    assert asked(Resolvers(["127.0.0.1:1", "127.0.0.1:2"])) == [("127.0.0.1", 1), ("127.0.0.1", 2)]


def test_resolv_conf_is_read_again(tmp_path: Path) -> None:
    """A change of resolv.conf, in place or by replacement, counts from the next round on; else it is not read again."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 10.0.0.53\n")
    resolvers = Resolvers(resolv_conf=conf)
    assert asked(resolvers) == [("10.0.0.53", 53)]
    assert resolvers.current() is resolvers.current()
    told = resolvers.addresses

    conf.write_text("nameserver 10.0.0.54\nnameserver fd00::53\n")
    assert asked(resolvers) == [("10.0.0.54", 53), ("fd00::53", 53)]
    assert resolvers.addresses is not told, "what other servers said"

    fresh = tmp_path / "fresh"
    fresh.write_text("nameserver 10.0.0.55\nnameserver fd00::53\n")
    fresh.replace(conf)
    assert asked(resolvers) == [("10.0.0.55", 53), ("fd00::53", 53)]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"# nothing\n",
        b"nameserver host.example\n",
        b"nameserver \xff\xfe\n",
    ],
)
def test_without_a_server_the_one_on_this_host_is_queried(tmp_path: Path, content: bytes | None) -> None:
    """The server on this host is queried while resolv.conf is missing or names none, as by glibc (resolv.conf(5))."""
    conf = tmp_path / "resolv.conf"
    if content is not None:
        conf.write_bytes(content)
    resolvers = Resolvers(resolv_conf=conf)
    assert asked(resolvers) == [("127.0.0.1", 53)]
    conf.write_text("nameserver 10.0.0.53\n")
    assert asked(resolvers) == [("10.0.0.53", 53)]


async def test_resolv_conf_that_cannot_be_read_is_a_failure_that_heals(tmp_path: Path) -> None:
    """The error names file, cause and fix, in one line; it ends when the file is valid again."""
    conf = tmp_path / "resolv.conf"
    conf.mkdir()
    resolvers = Resolvers(resolv_conf=conf)
    with pytest.raises(SourceError, match=r"resolv\.conf: .*--resolver") as caught:
        await SrvSource("_redis._tcp.example", resolvers).next()
    assert "\n" not in str(caught.value)
    conf.rmdir()
    conf.write_text("nameserver 10.0.0.53\n")
    assert asked(resolvers) == [("10.0.0.53", 53)]


async def test_search_domains_are_tried(tmp_path: Path) -> None:
    """With resolv.conf, a name without a dot at its end is also searched in the search domains."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch one.test two.test\n")
    async with FakeDns() as server:
        for owner in ("_redis._tcp.", "_redis._tcp.one.test."):
            server.replies[owner, "SRV"] = Reply(rcode="NXDOMAIN")
        server.replies["_redis._tcp.two.test.", "SRV"] = Reply(["_redis._tcp.two.test. 9 SRV 0 1 6379 a.two.test."])
        server.replies["a.two.test.", "A"] = Reply(["a.two.test. 9 A 10.0.0.1"])
        resolvers = Resolvers(resolv_conf=conf)
        resolvers.current().nameservers = [Do53Nameserver("127.0.0.1", server.port)]

        answer = await SrvSource("_redis._tcp", resolvers).next()

    assert len(answer.servers) == 1


@pytest.mark.parametrize(
    ("ndots", "as_it_is"),
    [("", 0), ("options ndots:1\n", 0), ("options ndots:2\n", 2), ("options ndots:5 timeout:1\n", 2)],
)
async def test_ndots_says_which_name_comes_first(tmp_path: Path, ndots: str, as_it_is: int) -> None:
    """A name with fewer dots than `ndots` is tried in the search domains first, any other as it is first."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver 127.0.0.1\nsearch one.test two.test\n{ndots}")
    async with FakeDns() as server:
        every = ["_redis._tcp.one.test.", "_redis._tcp.two.test."]
        every.insert(as_it_is, "_redis._tcp.")
        for owner in every:
            server.replies[owner, "SRV"] = Reply(rcode="NXDOMAIN")
        resolvers = Resolvers(resolv_conf=conf)
        resolvers.current().nameservers = [Do53Nameserver("127.0.0.1", server.port)]

        answer = await SrvSource("_redis._tcp", resolvers).next()

    assert answer.servers == ()
    assert [owner for owner, _, _ in server.asked] == every


@pytest.mark.parametrize("name", ["_redis._tcp.", "_redis._tcp.one.test."])
async def test_absolute_name_is_not_searched_for(tmp_path: Path, name: str) -> None:
    """A name with a dot at its end is queried as it is."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch one.test\noptions ndots:5\n")
    async with FakeDns() as server:
        server.replies[name, "SRV"] = Reply(rcode="NXDOMAIN")
        resolvers = Resolvers(resolv_conf=conf)
        resolvers.current().nameservers = [Do53Nameserver("127.0.0.1", server.port)]

        await SrvSource(name, resolvers).next()

    assert [owner for owner, _, _ in server.asked] == [name]


async def test_search_domain_that_fails_is_a_failure(tmp_path: Path) -> None:
    """NXDOMAIN of one candidate and SERVFAIL of another do not mean that there are no servers."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch one.test\n")
    async with FakeDns() as server:
        server.replies["_redis._tcp.", "SRV"] = Reply(rcode="NXDOMAIN")
        server.replies["_redis._tcp.one.test.", "SRV"] = Reply(rcode="SERVFAIL")
        resolvers = Resolvers(resolv_conf=conf)
        resolvers.current().nameservers = [Do53Nameserver("127.0.0.1", server.port)]

        with pytest.raises(SourceError, match="SERVFAIL"):
            await SrvSource("_redis._tcp", resolvers).next()


async def test_failure_of_the_domain_that_had_the_records_is_a_failure(tmp_path: Path) -> None:
    """Another domain may have other records; only if the first one has none any more do these count."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch one.test two.test\noptions ndots:2\n")
    one, two = ("_redis._tcp.one.test.", "SRV"), ("_redis._tcp.two.test.", "SRV")
    async with FakeDns() as server:
        for number, (owner, kind) in enumerate((one, two), 1):
            server.replies[owner, kind] = Reply([f"{owner} 9 SRV 0 1 6379 a{number}.test."])
            server.replies[f"a{number}.test.", "A"] = Reply([f"a{number}.test. 9 A 10.0.0.{number}"])
        records = server.replies[one]
        resolvers = Resolvers(resolv_conf=conf)
        resolvers.current().nameservers = [Do53Nameserver("127.0.0.1", server.port)]
        source = SrvSource("_redis._tcp", resolvers, 0.05, 0.05, families=(True,))

        async def answer() -> list[str]:
            return [str(found) for found in (await source.next()).servers]

        assert await answer() == ["10.0.0.1:6379"]
        server.replies[one] = Reply(rcode="SERVFAIL")
        for _ in range(2):
            with pytest.raises(SourceError, match="SERVFAIL"):
                await answer()
        server.replies[one] = Reply(rcode="NXDOMAIN")
        assert await answer() == ["10.0.0.2:6379"]
        server.replies[one] = Reply(rcode="SERVFAIL")
        assert await answer() == ["10.0.0.2:6379"]
        server.replies[one] = records
        assert await answer() == ["10.0.0.1:6379"]


async def test_one_reading_comes_from_one_server(tmp_path: Path) -> None:
    """With `rotate` each round starts with the next server. If one of them is stale, its parts meet no others."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\noptions rotate\n")
    async with FakeDns() as first, FakeDns() as stale, FakeDns() as third:
        every = (first, stale, third)
        for server in every:
            port, host = (80, 1) if server is stale else (81, 2)
            server.replies["_web._tcp.example.", "SRV"] = Reply([f"_web._tcp.example. 9 SRV 0 1 {port} a.example."])
            server.replies["a.example.", "A"] = Reply([f"a.example. 0 A 10.0.0.{host}"])
        resolvers = Resolvers(resolv_conf=conf)
        resolvers.current().nameservers = [Do53Nameserver("127.0.0.1", server.port) for server in every]
        source = SrvSource("_web._tcp.example.", resolvers, 0.02, 0.02, families=(True,))
        found = [tuple(map(str, (await source.next()).servers)) for _ in range(9)]

    assert set(found) == {("10.0.0.1:80",), ("10.0.0.2:81",)}
    assert all(server.asked for server in every)


async def test_named_servers_know_no_search_domains() -> None:
    """With `--resolver`, a name is absolute."""
    async with FakeDns() as server:
        server.replies["_redis._tcp.", "SRV"] = Reply(rcode="NXDOMAIN")

        answer = await SrvSource("_redis._tcp", Resolvers([server.address])).next()

        assert answer.servers == ()
        assert [owner for owner, _, _ in server.asked] == ["_redis._tcp."]
