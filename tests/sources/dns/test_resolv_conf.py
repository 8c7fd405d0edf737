"""resolv.conf and its search list, compared with glibc's own res_search(3) with the same servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby, product
from pathlib import Path
from typing import Final

import dns.name
import pytest
from dns.rdatatype import SRV

from clb_discovery.sources.dns.host_names import HostNames
from clb_discovery.sources.dns.lookup import Lookup, LookupFailedError, to_text
from clb_discovery.sources.dns.resolv_conf import parse_resolv_conf
from clb_discovery.sources.dns.resolvers import Resolvers
from tests.support.fake_dns import FakeDns, Reply
from tests.support.res_search import HOST_NOT_FOUND, NO_DATA, Outcome, res_search

ONE, TWO, AS_IT_IS = "one.test.", "two.test.", ""
FOUND, NXDOMAIN, NODATA, SERVFAIL = "found", "NXDOMAIN", "nodata", "SERVFAIL"
REFUSED, SILENT = "REFUSED", "silent"


@asynccontextmanager
async def servers(*hosts: str) -> AsyncIterator[list[FakeDns]]:
    """Run servers at the port that resolv.conf implies."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeDns(host=host, port=53)) for host in hosts]


def reply(owner: str, behaviour: str) -> Reply:
    """Return a server's behaviour when queried for an owner."""
    if behaviour == FOUND:
        return Reply([f"{owner} 9 SRV 0 1 80 a.test."])
    if behaviour == SILENT:
        return Reply(silent=True)
    return Reply() if behaviour == NODATA else Reply(rcode=behaviour)


async def ours(conf: Path, name: str) -> tuple[str | None, str]:
    """Return the owner that our look-up finds, and the error if there is one."""
    async with Lookup("test", Resolvers(resolv_conf=conf).current()) as lookup:
        try:
            found = await lookup.find(dns.name.from_text(name, None), SRV)
        except LookupFailedError as error:
            return None, str(error)
    return (to_text(found.name) if found.records else None), ""


def names_in_order(asked: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the owners in the order of their queries, without repetitions."""
    return [owner for owner, _ in groupby(owner for owner, _, _ in asked)]


def agree(theirs: Outcome, mine: tuple[str | None, str], behaviours: Sequence[str]) -> bool:
    """Return whether we found the same as glibc.

    If glibc forgets a failure on the way and returns "no records", we return the failure.
    """
    owner, error = mine
    if theirs.owner is not None or not error:
        return theirs.owner == owner and (theirs.owner is not None or theirs.h_errno in {HOST_NOT_FOUND, NO_DATA})
    forgotten = theirs.h_errno in {HOST_NOT_FOUND, NO_DATA}
    return not forgotten or "is not a search domain" in error or bool({SERVFAIL, REFUSED, SILENT} & set(behaviours))


CONFS: Final = [
    "search one.test two.test\n",
    "search one.test two.test\noptions ndots:5\n",
    "domain two.test\nsearch one.test two.test\noptions ndots:2\n",
    "search one.test\ndomain two.test\noptions ndots:15\n",
    "search two.test one.test\nsearch one.test two.test # no comment here\n",
    "; a comment\n# another\n search two.test\nsearch\tone.test\toptions ndots:9\noptions ndots:99 debug\n",
    "search . one.test\noptions ndots:3\n",
    "search one.test .\noptions ndots:0\n",
    "search one.test a..b two.test\n",
    "search .one.test two.test\noptions ndots:5\n",
    "search ..one.test two.test\noptions ndots:5\n",
    f"search one.test {'x' * 64}.test two.test\noptions ndots: 5\n",
    "search one.test two.test\noptions ndots:-1 rotate,x\n",
    "search one.test two.test\noptions ndots timeout:x ndots:2,timeout:9;\n",
]


@pytest.mark.parametrize("conf", CONFS)
async def test_search_list_is_that_of_glibc(tmp_path: Path, conf: str) -> None:
    """For any answers to the names of the list, the same names are queried in the same order, with the same result."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:2\n" + conf)
    table = list(product([FOUND, NXDOMAIN, NODATA, SERVFAIL, REFUSED], repeat=3))
    names = [f"_s{number}._tcp" for number in range(len(table))]
    async with servers("127.0.0.1") as (server,):
        for name, behaviours in zip(names, table, strict=True):
            for domain, behaviour in zip((ONE, TWO, AS_IT_IS), behaviours, strict=True):
                owner = f"{name}.{domain}"
                server.replies[owner, "SRV"] = reply(owner, behaviour)
        theirs = await res_search(path, names)
        asked_by_them = names_in_order(server.asked)
        server.asked.clear()
        mine = [await ours(path, name) for name in names]
        asked_by_us = names_in_order(server.asked)

    differing = [
        (name, behaviours, one, other)
        for name, behaviours, one, other in zip(names, table, theirs, mine, strict=True)
        if not agree(one, other, behaviours)
    ]
    assert differing == []
    for name in names:
        assert [one for one in asked_by_us if one.startswith(f"{name}.")] == [
            one for one in asked_by_them if one.startswith(f"{name}.")
        ]


@pytest.mark.parametrize("nameserver", ["0.0.0.0", "::", "127.1", "0x7f000001", "127.0.00.01", "::ffff:127.0.0.1"])
async def test_server_of_this_host_is_queried_in_any_notation(tmp_path: Path, nameserver: str) -> None:
    """Every form of this host's address that glibc accepts works."""
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {nameserver}\noptions attempts:1 timeout:2\n")
    async with servers("127.0.0.1", "::1") as both:
        for server in both:
            server.replies["_a._tcp.test.", "SRV"] = reply("_a._tcp.test.", FOUND)
        (theirs,) = await res_search(path, ["_a._tcp.test"])

        assert await ours(path, "_a._tcp.test") == (theirs.owner, "") == ("_a._tcp.test.", "")


async def test_bad_search_domain_is_reported_if_nothing_is_found(tmp_path: Path) -> None:
    """With an invalid search domain, no relative name is certain not to exist; absolute names count."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nsearch .one.test b..a\n")
    async with servers("127.0.0.1") as (server,):
        for owner in ("_a._tcp.test.", "_a._tcp.test.one.test."):
            server.replies[owner, "SRV"] = reply("", NXDOMAIN)

        assert await ours(path, "_a._tcp.test.") == (None, "")
        found, error = await ours(path, "_a._tcp.test")
        looked = await HostNames(Resolvers(resolv_conf=path), hosts=tmp_path / "none").look_up(["a.test", "b.test."])

    assert found is None
    assert "resolv.conf: 'b..a' is not a search domain; correct it, or end the name in a dot" in error
    assert looked.failed_families == {"a.test": (True, False), "b.test.": ()}


@pytest.mark.parametrize("conf", ["search one.test two.test\n", "search one.test two.test\noptions ndots:5\n"])
async def test_silence_in_the_search_list_is_as_for_glibc(tmp_path: Path, conf: str) -> None:
    """After a name without an answer only the name as it is is queried."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n" + conf)
    table = [(SILENT, FOUND, FOUND), (SILENT, FOUND, NXDOMAIN), (NXDOMAIN, SILENT, NXDOMAIN), (FOUND, FOUND, SILENT)]
    names = [f"_s{number}._tcp" for number in range(len(table))]
    async with servers("127.0.0.1") as (server,):
        for name, behaviours in zip(names, table, strict=True):
            for domain, behaviour in zip((ONE, TWO, AS_IT_IS), behaviours, strict=True):
                server.replies[f"{name}.{domain}", "SRV"] = reply(f"{name}.{domain}", behaviour)
        theirs = await res_search(path, names)
        asked_by_them = names_in_order(server.asked)
        server.asked.clear()
        mine = [await ours(path, name) for name in names]

    assert all(map(agree, theirs, mine, table))
    assert names_in_order(server.asked) == asked_by_them


@pytest.mark.parametrize("name", ["_a._tcp.", "_a._tcp.one.test.", "_a._tcp.one.test"])
async def test_absolute_names_are_those_of_glibc(tmp_path: Path, name: str) -> None:
    """A name with a dot at its end is queried as it is, and one with enough dots is queried as it is first."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nsearch one.test\n")
    async with servers("127.0.0.1") as (server,):
        server.replies["_a._tcp.one.test.", "SRV"] = reply("_a._tcp.one.test.", FOUND)
        (theirs,) = await res_search(path, [name])
        asked_by_them = names_in_order(server.asked)
        server.asked.clear()
        owner, error = await ours(path, name)

    assert (owner, error) == (theirs.owner, "")
    assert names_in_order(server.asked) == asked_by_them


@pytest.mark.parametrize(
    "options", ["", "options timeout:5\n", "options timeout:30\n", "options timeout:0\n", "options attempts:1\n"]
)
@pytest.mark.parametrize("first", [SILENT, SERVFAIL, REFUSED, "NOTIMP", "FORMERR"])
async def test_second_server_is_asked_after_one_that_fails(tmp_path: Path, options: str, first: str) -> None:
    """A server that is silent or fails does not use up the time of the others, whatever the time-out is."""
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver 127.0.0.1\nnameserver 127.0.0.2\n{options}")
    async with servers("127.0.0.1", "127.0.0.2") as (bad, good):
        bad.replies["_a._tcp.test.", "SRV"] = reply("_a._tcp.test.", first)
        good.replies["_a._tcp.test.", "SRV"] = reply("_a._tcp.test.", FOUND)

        async with asyncio.timeout(10):
            assert await ours(path, "_a._tcp.test") == ("_a._tcp.test.", "")

        assert bad.asked


async def test_silent_server_is_asked_last_from_then_on(tmp_path: Path) -> None:
    """A silent first server costs its time-out once, not for each query of every source."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\noptions timeout:1\n")
    resolvers = Resolvers(resolv_conf=path)
    async with servers("127.0.0.1", "127.0.0.2") as (bad, good):
        bad.replies["_a._tcp.test.", "SRV"] = Reply(silent=True)
        for _ in range(3):
            async with Lookup("test", resolvers.current()) as lookup:
                await lookup.find(dns.name.from_text("_a._tcp.test."), SRV)

    assert (len(bad.asked), len(good.asked)) == (1, 3)


async def test_rotation_begins_with_each_server_in_turn(tmp_path: Path) -> None:
    """With `rotate` rounds are shared between the servers."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\noptions rotate\n")
    resolvers = Resolvers(resolv_conf=path)
    async with servers("127.0.0.1", "127.0.0.2", "127.0.0.3") as every:
        for _ in range(9):
            async with Lookup("test", resolvers.current()) as lookup:
                await lookup.find(dns.name.from_text("_a._tcp.test."), SRV)

    assert [len(server.asked) for server in every] == [3, 3, 3]


async def test_suggested_command_repeats_the_question_that_failed(tmp_path: Path) -> None:
    """The error names the name with its search domain and the server that failed, also in the `dig` command."""
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nsearch one.test two.test\noptions ndots:5\n")
    async with servers("127.0.0.1") as (server,):
        for domain, behaviour in ((ONE, NXDOMAIN), (TWO, SERVFAIL), (AS_IT_IS, NXDOMAIN)):
            server.replies[f"_a._tcp.{domain}", "SRV"] = reply("", behaviour)
        _, error = await ours(path, "_a._tcp")

    assert "SRV of _a._tcp.two.test.: SERVFAIL from 127.0.0.1@53 (UDP)" in error
    assert error.endswith("dig @127.0.0.1 -p 53 _a._tcp.two.test SRV")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver ::1\nnameserver 10.0.0.4\n", 3),
        ("nameserver 10.0.0.1 # one\nnameserver 10.0.0.2;two\nnameserver x\n nameserver 10.0.0.3\n", 2),
        ("nameserver fe80::1%lo\nnameserver\t10.0.0.2\nnameserver10.0.0.3\n", 2),
    ],
)
def test_three_name_servers_at_most(text: str, expected: int) -> None:
    """The first three are queried; comments, bad addresses and indented lines are ignored."""
    assert len(parse_resolv_conf(text).nameservers) == expected


@pytest.mark.parametrize(
    ("options", "waits", "attempts"),
    [
        ("", (5.0, 3.0, 6.0), 2),
        ("options timeout:1 attempts:3\n", (1.0, 1.0, 1.0), 3),
        ("options timeout:0 attempts:0\n", (1.0, 1.0, 1.0), 1),
        ("options timeout:99\noptions attempts:99\n", (30.0, 20.0, 40.0), 5),
        ("options timeout:x attempts:-1 unknown\n", (1.0, 1.0, 1.0), 1),
    ],
)
def test_options_are_clamped_as_by_glibc(options: str, waits: tuple[float, ...], attempts: int) -> None:
    """Time-outs and attempts have glibc's bounds, and later servers get more time (send_dg in resolv/res_send.c)."""
    text = "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n" + options
    read = parse_resolv_conf(text)

    assert (read.waits(), read.attempts) == (waits, attempts)


@pytest.mark.parametrize(("host", "search"), [("web", []), ("web.corp.example", ["corp.example."]), ("", [])])
def test_domain_of_the_host_is_the_search_list_where_there_is_none(host: str, search: list[str]) -> None:
    """Without `search` and `domain` the host's own domain counts, as in glibc."""
    assert [one.to_text() for one in parse_resolv_conf("nameserver 10.0.0.1\n", host).search] == search
