"""Removals with the whole sidecar and real connects: which are held and for how long, and which take effect at once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import SourceError
from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer, Listing, OptIn
from clb_discovery.model.servers import Endpoint, RealServer
from clb_discovery.model.service import CATALOG, RemovalPolicy
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sources.base import Source
from tests.support.clients import connecting, serving
from tests.support.dataplane import dial, refusal
from tests.support.fake_source import Told
from tests.support.in_process import running_daemon
from tests.support.pace import patient
from tests.support.process import free_port, wait_until
from tests.support.sidecar import clb, status
from tests.support.spares import loaded_instance
from tests.support.srv_web import VIP

instance = loaded_instance

SOON: Final = patient(1.0)
"""Seconds within which an answer is in the kernel."""
HOLD: Final = 3.0
FOR_LONG: Final = RemovalPolicy(max_removal=0, hold=60)
"""Every removal is held for longer than a test takes."""


def members(port: int, count: int) -> tuple[RealServer, ...]:
    """Return real servers at 127.0.0.1, 127.0.0.2 and so on."""
    return tuple(RealServer(0, parse_address(f"127.0.0.{host}"), port, 1) for host in range(1, count + 1))


def ends(servers: Iterable[RealServer]) -> tuple[Endpoint, ...]:
    """Return their addresses and ports."""
    return tuple((server.address, server.port) for server in servers)


def named(servers: tuple[RealServer, ...]) -> Answer:
    """Return an answer in which each member has an identity by its place."""
    return Answer(servers, identities={end: f"node/{number}" for number, end in enumerate(ends(servers))})


def kernel_pool(instance: str) -> set[Endpoint] | None:
    """Return the servers that the kernel has for the VIP; None if it is not a virtual server yet."""
    pins = Pins(instance)
    if not pins.have_maps():
        return None
    with Maps(pins) as maps:
        virtual = maps.read().virtual.get(parse_vip(f"{VIP}:80"))
    return None if virtual is None else set(ends(virtual.pool or ()))


async def seconds_until(instance: str, servers: Iterable[RealServer]) -> float:
    """Wait until the kernel has exactly these; return after how many seconds."""
    began, wanted = time.monotonic(), set(ends(servers))
    await asyncio.to_thread(wait_until, lambda: kernel_pool(instance) == wanted, f"the pool is {wanted}")
    return time.monotonic() - began


async def state(instance: str, source: str = Told.name) -> str:
    """Return the source's state as status reports it."""
    sources = (await asyncio.to_thread(status, instance))["sources"]
    return next(str(one["state"]) for one in sources if one["name"] == source)


@pytest.mark.parametrize("count", [1, 10])
async def test_members_that_move_refuse_no_connect(instance: str, cgroup: Path, tmp_path: Path, count: int) -> None:
    """Their old endpoints are removed at once, all of them, so that the processes there may end."""
    old, new = free_port(), free_port()
    source = Told(named(members(old, count)))
    with serving(new, tmp_path):
        async with running_daemon(instance, cgroup, source, FOR_LONG):
            with serving(old, tmp_path):
                await seconds_until(instance, members(old, count))
                clients = connecting(cgroup, 80, tmp_path, VIP, serve=False)
                connects = await asyncio.to_thread(clients.__enter__)
                source.tell(named(members(new, count)))
                assert await seconds_until(instance, members(new, count)) < SOON
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(clients.__exit__, None, None, None)
    assert len(connects) > 100
    assert [connect for connect in connects if connect.error] == []


async def test_others_that_come_replace_none(instance: str, cgroup: Path) -> None:
    """A new member counts at once, and a missing one with another identity is held beside it."""
    (one,), (two,) = members(80, 1), members(81, 1)
    source = Told(named((one,)))
    async with running_daemon(instance, cgroup, source, FOR_LONG):
        await seconds_until(instance, [one])
        source.tell(Answer((two,), identities={ends([two])[0]: "other/0"}))
        assert await seconds_until(instance, [one, two]) < SOON
        assert await state(instance) == "held"


async def test_critical_members_are_out_at_once(instance: str, cgroup: Path) -> None:
    """Two of three members turn critical in one answer, and are removed at once."""
    servers = members(80, 3)
    source = Told(named(servers))
    async with running_daemon(instance, cgroup, source, FOR_LONG):
        await seconds_until(instance, servers)
        source.tell(Answer(servers[2:], out=ends(servers[:2])))
        assert await seconds_until(instance, servers[2:]) < SOON
        assert await state(instance) == "fresh"


async def test_all_critical_are_served_for_the_hold(instance: str, cgroup: Path) -> None:
    """After the hold the source is queried once, and its answer empties the pool: connects are refused."""
    servers = members(80, 3)
    source = Told(named(servers))
    async with running_daemon(instance, cgroup, source, RemovalPolicy(hold=HOLD)):
        await seconds_until(instance, servers)
        source.tell(Answer((), out=ends(servers)))
        await asyncio.sleep(HOLD / 2)
        assert kernel_pool(instance) == {*ends(servers)}
        assert await seconds_until(instance, ()) < HOLD / 2 + SOON
        assert source.hastens == 1
        assert await asyncio.to_thread(dial, cgroup, VIP, 80) == [refusal()]


async def test_one_that_may_not_be_used_leaves_none(instance: str, cgroup: Path) -> None:
    """All are critical, and one registers 192.0.2.1, which is in no --real-range: the critical ones stay."""
    servers, bad = members(80, 3), RealServer(0, parse_address("192.0.2.1"), 80, 1)
    source = Told(named(servers))
    async with running_daemon(instance, cgroup, source, FOR_LONG):
        await seconds_until(instance, servers)
        source.tell(Answer((bad,), out=ends(servers)))
        await asyncio.sleep(SOON)
        assert kernel_pool(instance) == {*ends(servers)}


async def test_time_alone_removes_nothing(instance: str, cgroup: Path) -> None:
    """If a source does not answer the query at the end of the hold, the query is not repeated, and its members stay.

    An answer to an earlier query, which was slow, is none to this one.
    """

    class Silent(Told):
        def hasten(self) -> None:
            self.hastens += 1

    servers = members(80, 3)
    source = Silent(named(servers))
    async with running_daemon(instance, cgroup, source, RemovalPolicy(hold=1)):
        await seconds_until(instance, servers)
        source.tell(Answer(()))
        await asyncio.sleep(4)
        assert (source.hastens, kernel_pool(instance)) == (1, {*ends(servers)})
        source.tell(Answer((), asked=asyncio.get_running_loop().time() - 4))
        await asyncio.sleep(1)
        assert (source.hastens, kernel_pool(instance)) == (1, {*ends(servers)})
        source.tell(Answer(()))
        assert await seconds_until(instance, ()) < SOON


async def test_errors_during_a_hold_do_not_prolong_it(instance: str, cgroup: Path) -> None:
    """Errors in between, as from a proxy that cuts long polls, do not change when the hold ends."""
    servers = members(80, 3)
    source = Told(named(servers))
    async with running_daemon(instance, cgroup, source, RemovalPolicy(hold=HOLD)):
        await seconds_until(instance, servers)
        began = time.monotonic()
        source.tell(Answer(()))
        while time.monotonic() < began + HOLD - 0.2:
            assert kernel_pool(instance) == {*ends(servers)}
            source.tell(SourceError("504 Gateway Timeout"))
            source.tell(Answer(()))
            await asyncio.sleep(0.3)
        await seconds_until(instance, ())
        assert HOLD <= time.monotonic() - began < HOLD + SOON


async def test_statement_in_a_burst_is_not_lost(instance: str, cgroup: Path) -> None:
    """Answers that arrive before the previous one is published all count: an explicit removal, and a replacement."""
    old, new = members(80, 4), members(81, 4)
    source = Told(named(old))
    async with running_daemon(instance, cgroup, source, FOR_LONG):
        await seconds_until(instance, old)
        source.tell(Answer(old[1:], out=ends(old[:1]), identities=named(old).identities))
        source.tell(Answer((*old[1:3], new[3]), identities={**named(old).identities, **named(new).identities}))
        for _ in range(3):
            source.tell(Answer((*old[1:3], new[3])))
        assert await seconds_until(instance, (*old[1:3], new[3])) < SOON
        assert await state(instance) == "fresh"


async def test_hold_goes_on_over_a_reload(instance: str, cgroup: Path) -> None:
    """Two reloads do not change when it ends; then the current source is queried."""
    servers = members(80, 3)
    source = Told(named(servers))
    async with running_daemon(instance, cgroup, source, RemovalPolicy(hold=HOLD)):
        await seconds_until(instance, servers)
        source.tell(Answer(()))
        began = time.monotonic()
        for _ in range(2):
            await asyncio.sleep(HOLD / 4)
            os.kill(os.getpid(), signal.SIGHUP)
        await seconds_until(instance, ())
        assert HOLD <= time.monotonic() - began < HOLD + SOON


class Catalog(Told):
    """A catalog with one service, which goes on after a reload."""

    name = CATALOG

    def __init__(self, *outcomes: Answer) -> None:
        super().__init__()
        self.web = Hastened(*outcomes)

    async def next(self) -> Listing:  # type: ignore[override]  # a catalog answers with names
        """Return the list, once for each start."""
        await asyncio.sleep(0.1)
        return Listing(frozenset({"web"}))

    def service(self, _name: str) -> Source:
        """Return the source of the service."""
        return self.web


class Hastened(Told):
    """A source whose answers come from any server, until it is hastened."""

    asked = 0.0

    async def next(self) -> Answer:
        """Return the next answer."""
        return replace(await super().next(), asked=self.asked)

    def hasten(self) -> None:
        """Repeat the last answer."""
        self.asked = asyncio.get_running_loop().time()
        super().hasten()


async def test_hold_of_a_catalog_ends_after_a_reload(instance: str, cgroup: Path) -> None:
    """Its time is over while the configuration is read again: the service that is followed again is queried."""
    servers = members(80, 3)
    opt_in = OptIn((parse_vip(f"{VIP}:80"),))
    catalog = Catalog(Answer(servers, opt_in))
    policy, reading = RemovalPolicy(hold=1), partial(time.sleep, 2)
    async with running_daemon(instance, cgroup, catalog, policy, vips=(), rereading=reading):
        await seconds_until(instance, servers)
        catalog.web.tell(Answer((), opt_in))
        await asyncio.sleep(0.2)
        assert await state(instance, "consul:web") == "held"
        os.kill(os.getpid(), signal.SIGHUP)
        await seconds_until(instance, ())
        assert catalog.web.hastens == 1


async def test_instance_of_a_catalog_that_registers_its_vip_leaves_none(instance: str, cgroup: Path) -> None:
    """The VIP that it has got is no real server, so the one that it had stays."""
    (server,), opt_in = members(80, 1), OptIn((parse_vip(f"{VIP}:80"),))
    catalog = Catalog(replace(named((server,)), opt_in=opt_in))
    async with running_daemon(instance, cgroup, catalog, FOR_LONG, vips=()):
        await seconds_until(instance, [server])
        catalog.web.tell(replace(named((server._replace(address=parse_address(VIP)),)), opt_in=opt_in))
        await asyncio.sleep(SOON)
        assert kernel_pool(instance) == {*ends([server])}
        assert await state(instance, "consul:web") == "held"


def _as_it_is(_: str) -> None:
    """Leave the kernel's pools as they are."""


def _rebooted(instance: str) -> None:
    assert clb("unload", "--instance", instance).returncode == 0


@pytest.mark.parametrize("between", [_as_it_is, _rebooted])
async def test_start_knows_moved_members(
    instance: str, cgroup: Path, tmp_path: Path, between: Callable[[str], None]
) -> None:
    """Identities are on the disk: also after a reboot, a member that moved meanwhile is replaced at once."""
    old, new = members(80, 3), members(81, 3)
    async with running_daemon(instance, cgroup, Told(named(old)), FOR_LONG, tmp_path / "state"):
        await seconds_until(instance, old)
    between(instance)
    async with running_daemon(instance, cgroup, Told(named(new)), FOR_LONG, tmp_path / "state"):
        assert await seconds_until(instance, new) < FOR_LONG.hold / 2  # including the start, which may compile
        assert await state(instance) == "fresh"
