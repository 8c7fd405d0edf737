"""The lines of `--log-level debug` about DNS: which server answered, for how long it holds, and what follows."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Collection, MutableMapping
from pathlib import Path
from typing import Any

import dns.name
from dns.rdatatype import AAAA
from structlog.testing import capture_logs

from clb_discovery.sources.dns.gate import SILENT_AFTER, Gate
from clb_discovery.sources.dns.host_names import HostNames
from clb_discovery.sources.dns.hosts_table import HostsTable
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.srv import NAME, SOA, SRV, records, source

SOURCE = f"srv:{NAME}"

Lines = Collection[MutableMapping[str, Any]]


def lines_of(logs: Lines, event: str) -> list[dict[str, Any]]:
    """Return the fields of the lines with this event; all of them have level debug."""
    found = [dict(line) for line in logs if line["event"] == event]
    assert all(line.pop("log_level") == "debug" for line in found)
    return [{name: value for name, value in line.items() if name != "event"} for line in found]


def one_server(server: FakeDns, ttl: int = 60) -> None:
    """Give a DNS server one record with one address."""
    server.replies[SRV] = Reply(records("0 1 80 a.example.", ttl=ttl))
    server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
    server.replies["a.example.", "AAAA"] = Reply(authority=[SOA])


async def test_each_answer_names_its_server_and_ttl() -> None:
    """There is one line per name and type, for any number of records, and the TTL is the smallest on the way."""
    async with FakeDns() as server:
        one_server(server)
        server.replies["a.example.", "A"] = Reply(["a.example. 7 CNAME b.example."])
        server.replies["b.example.", "A"] = Reply([f"b.example. 9 A 10.0.0.{number}" for number in range(30)])
        with capture_logs() as logs:
            await source(server).next()
    lines = lines_of(logs, "DNS server answered")
    by_type = {line.pop("type"): line for line in lines}
    where = f"Do53:127.0.0.1@{server.port}"
    expected = {"source": SOURCE, "server": where, "over_tcp": False, "cnames": 0, "found": True}
    assert {kind: line.pop("size") > 0 for kind, line in by_type.items()} == {"SRV": True, "A": True, "AAAA": True}
    assert len(lines) == 4, "the first round asks for the SRV records before and after the addresses"
    assert by_type == {
        "SRV": expected | {"name": NAME, "ttl": 60},
        "A": expected | {"name": "a.example.", "ttl": 7, "cnames": 1},
        "AAAA": expected | {"name": "a.example.", "ttl": 30, "found": False},
    }


async def test_each_round_logs_when_the_next_query_is() -> None:
    """The TTL of the records is shown as received and within the bounds, with the seconds until the next query."""
    async with FakeDns() as server:
        one_server(server, ttl=3600)
        one = SrvSource(NAME, Resolvers([server.address]), 5.0, 20.0, families=(True,))
        with capture_logs() as logs:
            await one.next()
            assert one.due is not None
            left = one.due - asyncio.get_running_loop().time()
    (line,) = lines_of(logs, "answer is complete")
    assert abs(line.pop("next_query_in") - left) < 1
    assert line == {
        "source": SOURCE,
        "servers": 1,
        "ttl": 60,
        "clamped_ttl": 20.0,
        "min_ttl": 5.0,
        "max_ttl": 20.0,
        "queries": 3,
    }


async def test_a_later_round_logs_what_it_does_not_query() -> None:
    """Records and addresses that have not expired are not queried; the queried ones are counted."""
    async with FakeDns() as server:
        one_server(server)
        server.replies["a.example.", "A"] = Reply(["a.example. 0 A 10.0.0.1"])
        one = source(server, min_ttl=0.1)
        await one.next()
        with capture_logs() as logs:
            await one.next()
    assert lines_of(logs, "SRV records are within their TTL; only addresses are queried") == [{"source": SOURCE}]
    assert lines_of(logs, "addresses are taken from the cache, or queried") == [
        {"source": SOURCE, "cached": 1, "queried": 1, "silent": 0, "silent_zones": 0}
    ]


async def test_a_wait_that_is_cut_short_is_a_line() -> None:
    """A hastened source logs it; one whose TTL has expired does not."""
    async with FakeDns() as server:
        one_server(server)
        one = source(server)
        await one.next()
        with capture_logs() as logs:
            waiting = asyncio.create_task(one.next())
            await asyncio.sleep(0.05)
            one.hasten()
            await waiting
    assert lines_of(logs, "wait was cut short; DNS is queried at once") == [{"source": SOURCE}]


async def test_a_truncated_answer_is_a_line() -> None:
    """The query is repeated over TCP, and the answer came over it."""
    async with FakeDns() as server:
        one_server(server)
        server.replies[SRV] = Reply(records("0 1 80 a.example."), truncated=True)
        with capture_logs() as logs:
            await source(server).next()
    line = {"name": f"{NAME}.", "type": "SRV", "server": f"Do53:127.0.0.1@{server.port}"}
    assert lines_of(logs, "UDP answer is truncated; the query is repeated over TCP") == [line] * 2
    over_tcp = {line["type"]: line["over_tcp"] for line in lines_of(logs, "DNS server answered")}
    assert over_tcp == {"SRV": True, "A": False, "AAAA": False}


async def test_an_answer_that_may_be_trimmed_is_a_line() -> None:
    """TTL 0 leads to TCP; if TCP fails that is a line, with the seconds until it is tried again."""
    async with FakeDns(tcp=False) as server:
        one_server(server, ttl=0)
        with capture_logs() as logs:
            await source(server).next()
    assert lines_of(logs, "UDP answer may be cut short without a mark; querying over TCP") == [{"source": SOURCE}] * 2
    (line,) = lines_of(logs, "TCP failed; UDP answers are used")
    assert line["seconds"] == 60.0
    assert f"SRV of {NAME}: " in line["error"]


async def test_an_answer_at_the_limit_of_dns_is_a_line() -> None:
    """The answer is queried once more, to see whether it is complete."""
    async with FakeDns() as server:
        every = (f"0 1 {port} {'x' * 63}.example." for port in range(1, 711))
        server.replies[SRV] = Reply(records(*every), truncated=True)
        with capture_logs() as logs:
            await source(server, lifetime=10.0).next()
    line, *_ = lines_of(logs, "answer is at the limit of DNS; querying again to compare")
    assert line["source"] == SOURCE
    assert line["size"] > 64_000


async def test_a_server_without_edns_is_a_line() -> None:
    """So is a server that ignores such queries; another line shows that it gave no answer."""
    async with FakeDns() as server:
        for event, reply in (
            ("DNS server does not support EDNS", Reply(records("0 1 80 ."), edns="FORMERR")),
            ("DNS server responds only without EDNS", Reply(records("0 1 80 ."), edns_silent=True)),
        ):
            server.replies[SRV] = reply
            with capture_logs() as logs:
                await source(server).next()
            (line,) = lines_of(logs, event)
            assert line["server"] == f"Do53:127.0.0.1@{server.port}"
            assert line["seconds"] > 0
    (line,) = lines_of(logs, "DNS server returned no valid answer")
    cause = f"no answer from 127.0.0.1@{server.port} (UDP)"
    assert line == {"name": f"{NAME}.", "type": "SRV", "cause": cause, "attempt": 1}


async def test_records_that_change_meanwhile_are_a_line() -> None:
    """If records differ before and after their addresses were read, they are read again."""
    async with CountingUp() as server:
        server.replies["a.example.", "A"] = Reply(["a.example. 60 A 10.0.0.1"])
        one = SrvSource(NAME, Resolvers([server.address]), families=(True,))
        with capture_logs() as logs:
            await one.next()
    lines = lines_of(logs, "records changed while addresses were queried; querying again")
    assert lines == [{"source": SOURCE, "reads": 1}, {"source": SOURCE, "reads": 2}]


class CountingUp(FakeDns):
    """Returns another port each time."""

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Answer with the number of earlier queries as port."""
        self.replies[SRV] = Reply(records(f"0 1 {1 + len(self.asked)} a.example."))
        return super().respond(wire, protocol)


async def test_additional_addresses_that_differ_are_a_line() -> None:
    """A server may leave addresses out of the additional section, so they are queried."""
    async with FakeDns() as server:
        server.replies["a.example.", "A"] = Reply([f"a.example. 60 A 10.0.0.{number}" for number in (1, 2)])
        server.replies[SRV] = Reply(records("0 1 80 a.example.", ttl=1))
        one = SrvSource(NAME, Resolvers([server.address]), 0.1, families=(True,))
        await one.next()
        server.replies[SRV] = Reply(records("0 1 80 a.example.", ttl=1), additional=["a.example. 1 A 10.0.0.2"])
        with capture_logs() as logs:
            await one.next()
    assert lines_of(logs, "additional addresses differ from those known; querying them") == [
        {"source": SOURCE, "addresses": 1}
    ]


async def test_records_that_linger_are_a_line() -> None:
    """The line counts the records that linger, and those that have ended."""
    async with FakeDns() as server:
        server.replies[SRV] = Reply(records("0 1 80 a.example.", "0 1 81 b.example.", ttl=1))
        for number, host in enumerate("ab"):
            server.replies[f"{host}.example.", "A"] = Reply([f"{host}.example. 60 A 10.0.0.{number}"])
        one = SrvSource(NAME, Resolvers([server.address]), 0.1, 0.1, families=(True,), linger=0.5)
        await one.next()
        server.replies[SRV] = Reply(records("0 1 80 a.example.", ttl=1))
        with capture_logs() as logs:
            async with asyncio.timeout(20):
                while not (await one.next()).out:
                    pass
    lines = lines_of(logs, "records that the answer lacks linger")
    common = {"source": SOURCE, "seconds": 0.5, "fixed": True}
    assert lines[0] == common | {"servers": 1, "ended": 0}
    assert lines[-1] == common | {"servers": 0, "ended": 1}


def test_a_silent_zone_is_one_line() -> None:
    """There is one line when the limit of time-outs is reached, and none for further ones; the name is escaped."""
    gate, name = Gate(), dns.name.Name([b"web", b"b\x1bd", b""])
    with capture_logs() as logs:
        for _ in range(SILENT_AFTER + 3):
            gate.timed_out(name, AAAA, 0.0)
    assert lines_of(logs, "zone does not respond; it is queried rarely") == [
        {"zone": "b\\027d.", "type": "AAAA", "time_outs": SILENT_AFTER, "seconds": 5.0}
    ]


async def test_files_that_were_read_are_lines(tmp_path: Path) -> None:
    """Each change of resolv.conf and of the hosts file is one line."""
    conf, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    conf.write_text("nameserver 10.0.0.53\nnameserver fd00::53\n")
    hosts.write_text("10.0.0.1 a b\n")
    resolvers, table = Resolvers(resolv_conf=conf), HostsTable(hosts)
    with capture_logs() as logs:
        for _ in range(2):
            resolvers.current()
            table.current()
    servers = ["Do53:10.0.0.53@53", "Do53:fd00::53@53"]
    assert lines_of(logs, "resolv.conf was read") == [{"file": str(conf), "servers": servers}]
    assert lines_of(logs, "hosts file was read") == [{"file": str(hosts), "names": 2}]


async def test_looking_up_host_names_is_a_line(tmp_path: Path) -> None:
    """The line counts names with an address, names without, and names that were queried in DNS."""
    (tmp_path / "hosts").write_text("10.0.0.1 local\n")
    async with FakeDns() as server:
        server.replies["web.example.", "A"] = Reply(["web.example. 9 A 10.0.0.2"])
        names = HostNames(Resolvers([server.address]), hosts=tmp_path / "hosts")
        with capture_logs() as logs:
            await names.look_up(["local", "web.example", "gone.example", "no name"])
    assert lines_of(logs, "host names were looked up") == [{"found": 2, "failed": 2, "from_dns": 2}]


async def test_check_shows_none_of_them() -> None:
    """The output of `check`, which queries the same sources, has no debug lines."""
    async with FakeDns() as server:
        one_server(server)
        options = ["--srv", f"{NAME}=10.64.0.1:80", "--resolver", server.address]
        command = [sys.executable, "-m", "clb_discovery", "check", *options]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
        output, _ = await process.communicate()
    assert server.asked
    assert b"DNS server answered" not in output, output
