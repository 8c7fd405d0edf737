"""Host names: the hosts file, DNS, and the cost of a zone that does not answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from clb_discovery.model.address import format_address, parse_address
from clb_discovery.sources.dns.gate import MOST, MOST_OF_ZONE
from clb_discovery.sources.dns.host_names import MAX_ADDRESSES, HostNames, Looked
from clb_discovery.sources.dns.hosts_table import parse_hosts
from clb_discovery.sources.dns.resolvers import Resolvers
from tests.support.fake_dns import FakeDns, Reply
from tests.support.res_search import getaddrinfo


def shown(looked: Looked) -> dict[str, list[str]]:
    """Return the found addresses as text."""
    return {name: [format_address(address) for address in found] for name, found in looked.found.items()}


def names_of(server: FakeDns, hosts: Path = Path("/nonexistent"), *, lifetime: float = 0.4) -> HostNames:
    """Return a resolver that uses this server."""
    return HostNames(Resolvers([server.address], lifetime=lifetime), hosts=hosts)


async def test_both_families_are_found() -> None:
    """A name has its addresses of both families, sorted; an IP address is itself; a name without any is reported."""
    async with FakeDns() as server:
        server.replies["web.example.", "A"] = Reply(["web.example. 9 A 10.0.0.2", "web.example. 9 A 10.0.0.1"])
        server.replies["web.example.", "AAAA"] = Reply(["web.example. 9 AAAA fd00::1"])
        server.replies["gone.example.", "A"] = Reply(rcode="NXDOMAIN")
        server.replies["gone.example.", "AAAA"] = Reply(rcode="NXDOMAIN")

        looked = await names_of(server).look_up(["Web.example", "10.1.1.1", "gone.example", "web.example"])

    assert {name: set(found) for name, found in shown(looked).items()} == {
        "Web.example": {"10.0.0.1", "10.0.0.2", "fd00::1"},
        "web.example": {"10.0.0.1", "10.0.0.2", "fd00::1"},
        "10.1.1.1": {"10.1.1.1"},
    }
    assert looked.failed == {"gone.example": "has no address in DNS"}
    assert looked.failed_families == {"gone.example": ()}
    assert len(server.asked) == 4


@pytest.mark.parametrize("name", ["", "http://10.1.1.1", "10.1.1.1:8080", "web ", "$(id)", "a..b", "x" * 64, "-a", "é"])
async def test_invalid_host_name_is_not_queried(name: str) -> None:
    """Text that is not a host name fails alone and for good, and no server is queried."""
    async with FakeDns() as server:
        server.replies["web.example.", "A"] = Reply(["web.example. 9 A 10.0.0.1"])

        looked = await names_of(server).look_up([name, "web.example"])

    assert looked.failed == {name: "is not a host name"}
    assert looked.failed_families == {name: ()}
    assert shown(looked) == {"web.example": ["10.0.0.1"]}


async def test_one_family_may_fail_alone() -> None:
    """If one family fails the other counts, and the cause names the family."""
    async with FakeDns() as server:
        server.replies["web.example.", "A"] = Reply(["web.example. 9 A 10.0.0.1"])
        server.replies["web.example.", "AAAA"] = Reply(rcode="SERVFAIL")

        looked = await names_of(server).look_up(["web.example"])

    assert shown(looked) == {"web.example": ["10.0.0.1"]}
    assert looked.failed_families == {"web.example": (False,)}
    assert looked.failed["web.example"].startswith(f"AAAA: SERVFAIL from 127.0.0.1@{server.port}")


async def test_hosts_file_comes_first(tmp_path: Path) -> None:
    """A name in the hosts file has only the addresses there, without a query, and changes count at once."""
    hosts = tmp_path / "hosts"
    hosts.write_text("10.9.9.9 web.example WEB # by hand\nfd00::9 web\n10.9.9.8 web\nnonsense x\n# 10.0.0.1 web\n")
    async with FakeDns() as server:
        one = names_of(server, hosts)

        assert shown(await one.look_up(["web", "localhost"])) == {
            "web": sorted_text("10.9.9.8", "10.9.9.9", "fd00::9"),
            "localhost": sorted_text("127.0.0.1", "::1"),
        }
        fresh = tmp_path / "fresh"
        fresh.write_text("10.9.9.7 web\n")
        fresh.replace(hosts)
        assert shown(await one.look_up(["web"])) == {"web": ["10.9.9.7"]}
        hosts.unlink()
        assert shown(await one.look_up(["localhost"])) == {"localhost": sorted_text("127.0.0.1", "::1")}

    assert server.asked == []


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def sorted_text(*texts: str) -> list[str]:
    """Return addresses in the order of their bytes."""
    return [format_address(address) for address in sorted(map(parse_address, texts))]


def test_hosts_lines_as_glibc_reads_them() -> None:
    """Comments, blanks, several names and addresses are parsed; other lines are ignored."""
    read = parse_hosts("\t10.0.0.1\tone ONE.example\n10.0.0.2 one#x\n10.0.0 bad\n\nfe80::1%lo0 local\n10.0.0.3\n")

    assert {name: len(addresses) for name, addresses in read.items()} == {"one": 2, "one.example": 1, "local": 1}


async def test_addresses_are_kept_for_their_ttl() -> None:
    """A name that is looked up again within its TTL is not queried again."""
    async with FakeDns() as server:
        server.replies["web.example.", "A"] = Reply(["web.example. 30 A 10.0.0.1"])
        server.replies["web.example.", "AAAA"] = Reply(authority=["example. 30 SOA ns. admin. 1 3600 600 86400 30"])
        one = names_of(server)
        for _ in range(3):
            assert shown(await one.look_up(["web.example"])) == {"web.example": ["10.0.0.1"]}

    assert len(server.asked) == 2


async def test_name_with_very_many_addresses_is_cut() -> None:
    """Of a name with 4,090 addresses the lowest are used, the same on every host, and the surplus is counted."""
    async with FakeDns() as server:
        many = [f"web.example. 9 A 10.0.{i // 256}.{i % 256}" for i in range(4090)]
        server.replies["web.example.", "A"] = Reply(many[::-1], truncated=True)

        looked = await names_of(server, lifetime=20.0).look_up(["web.example"])

    assert shown(looked)["web.example"] == [f"10.0.0.{i}" for i in range(MAX_ADDRESSES)]
    assert looked.surplus == {"web.example": 4090 - MAX_ADDRESSES}


def searching(directory: Path, server: FakeDns) -> Resolvers:
    """Return resolvers with two search domains that query the server."""
    conf = directory / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\nsearch one.test two.test\noptions ndots:2\n")
    resolvers = Resolvers(resolv_conf=conf)
    resolvers.current().nameservers = Resolvers([server.address]).current().nameservers
    return resolvers


async def test_both_families_are_of_one_name_of_the_search_list(tmp_path: Path) -> None:
    """The first name with an address of either family counts: no address comes from a later name."""
    async with FakeDns() as server:
        server.replies["web.one.test.", "A"] = Reply(["web.one.test. 9 A 10.0.0.1"])
        server.replies["web.two.test.", "A"] = Reply(["web.two.test. 9 A 10.0.0.2"])
        server.replies["web.two.test.", "AAAA"] = Reply(["web.two.test. 9 AAAA fd00::2"])
        resolvers = searching(tmp_path, server)

        looked = await HostNames(resolvers, hosts=tmp_path / "none").look_up(["web"])

    assert shown(looked) == {"web": ["10.0.0.1"]}


async def test_failure_of_the_domain_that_had_the_addresses_is_a_failure(tmp_path: Path) -> None:
    """Otherwise a wildcard in the next search domain would have all connects while the first one fails."""
    async with FakeDns() as server:
        server.replies["web.one.test.", "A"] = Reply(["web.one.test. 0 A 10.0.0.1"])
        server.replies["web.two.test.", "A"] = Reply(["web.two.test. 0 A 10.0.0.2"])
        resolvers = searching(tmp_path, server)
        names = HostNames(resolvers, hosts=tmp_path / "none", bounds=(0.01, 0.01))
        clock = asyncio.get_running_loop().time

        assert shown(await names.look_up(["web"])) == {"web": ["10.0.0.1"]}
        server.replies["web.one.test.", "A"] = Reply(rcode="SERVFAIL")
        looked = await names.look_up(["web"], clock())
        assert (shown(looked), looked.failed_families) == ({}, {"web": (True,)})
        server.replies["web.one.test.", "A"] = Reply(rcode="NXDOMAIN")
        assert shown(await names.look_up(["web"], clock())) == {"web": ["10.0.0.2"]}
        server.replies["web.one.test.", "A"] = Reply(rcode="SERVFAIL")
        assert shown(await names.look_up(["web"], clock())) == {"web": ["10.0.0.2"]}


async def test_resolv_conf_that_cannot_be_read_fails_each_name(tmp_path: Path) -> None:
    """If the DNS servers cannot be determined, names fail with the cause, and those in the hosts file are found."""
    names = HostNames(Resolvers(resolv_conf=tmp_path), hosts=tmp_path / "none")

    looked = await names.look_up(["web.example", "localhost"])

    assert "--resolver" in looked.failed["web.example"]
    assert looked.failed_families == {"web.example": (True, False)}
    assert set(looked.found) == {"localhost"}


async def test_silent_zone_is_bounded() -> None:
    """Five services with 1,000 names in a silent zone: few sockets, a bounded time, and other names are answered."""
    async with FakeDns() as server:
        loop = asyncio.get_running_loop()
        server.replies["web.good.", "A"] = Reply(["web.good. 9 A 10.0.0.1"])
        silent = {f"n{service}-{i}.dead.example" for service in range(5) for i in range(1000)}
        for name in silent:
            for kind in ("A", "AAAA"):
                server.replies[f"{name}.", kind] = Reply(silent=True)
        names = names_of(server, lifetime=1.0)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, descriptors())
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        before, began = descriptors(), loop.time()
        looks = [
            asyncio.create_task(names.look_up([f"n{service}-{i}.dead.example" for i in range(1000)]))
            for service in range(5)
        ]
        await asyncio.sleep(0.1)
        good = await names.look_up(["web.good"])
        waiting = [look for look in looks if not look.done()]
        results = await asyncio.gather(*looks)
        took = loop.time() - began
        watching.cancel()

    assert shown(good) == {"web.good": ["10.0.0.1"]}
    assert len(waiting) == 5
    assert all(len(looked.failed) == 1000 for looked in results)
    assert all(set(looked.failed_families.values()) == {(True, False)} for looked in results)
    assert took < 30
    assert most - before <= MOST + 4
    asked = Counter(owner for owner, _, _ in server.asked)
    assert len(asked) <= 4 * MOST_OF_ZONE


async def test_cancelling_ends_all_at_once() -> None:
    """A cancelled look-up leaves no running query and no descriptor."""
    async with FakeDns() as server:
        for i in range(100):
            server.replies[f"n{i}.dead.", "A"] = server.replies[f"n{i}.dead.", "AAAA"] = Reply(silent=True)
        names = names_of(server, lifetime=30.0)
        before = descriptors()
        task = asyncio.create_task(names.look_up([f"n{i}.dead" for i in range(100)]))
        await asyncio.sleep(0.2)
        began = asyncio.get_running_loop().time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.get_running_loop().time() - began < 0.5
        await asyncio.sleep(0.05)
        assert descriptors() <= before
        assert len(asyncio.all_tasks()) <= 1 + 1


HOSTS_LINES = """\
127.0.0.1 localhost
10.9.0.1 one one.example # comment 10.9.0.2
\t10.9.0.3\tTWO\tone
fd00::9 one
10.9.0.300 three
10.9.0.4 three#four
# 10.9.0.5 five
nonsense six
10.9.0.6
::ffff:10.9.0.7 mapped
10.9.0.8 dotted.
"""
NAMES = ["one", "ONE", "one.example", "two", "three", "four", "five", "six", "web", "db", "db.two.test", "gone", "v6"]


@pytest.mark.parametrize("options", ["", "options ndots:2\n"])
async def test_names_are_those_of_getaddrinfo(tmp_path: Path, options: str) -> None:
    """The hosts file, the search list and both families give the same addresses as glibc with `files dns`."""
    conf, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    conf.write_text(f"nameserver 127.0.0.1\nsearch one.test two.test\noptions timeout:1 attempts:1\n{options}")
    hosts.write_text(HOSTS_LINES)
    async with FakeDns(port=53) as server:
        for owner, kind, data in (
            ("web.one.test.", "A", "10.0.0.1"),
            ("web.two.test.", "AAAA", "fd00::2"),
            ("db.two.test.", "A", "10.0.0.3"),
            ("db.two.test.", "AAAA", "fd00::3"),
            ("v6.one.test.", "AAAA", "fd00::4"),
        ):
            server.replies[owner, kind] = Reply([f"{owner} 9 {kind} {data}"])
        theirs = await getaddrinfo(conf, hosts, tmp_path, NAMES)
        looked = await HostNames(Resolvers(resolv_conf=conf), hosts=hosts).look_up(NAMES)

    assert {name: sorted(shown(looked).get(name, [])) for name in NAMES} == dict(zip(NAMES, theirs, strict=True))
