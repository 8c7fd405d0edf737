"""The steps of the demo, in order.

Everything runs in a network namespace and a cgroup of its own. The show is one task, and signals cancel it. Context
managers close everything that it opened, and none of them waits for the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from clb_discovery.datapath import cgroup, probe
from clb_discovery.demo import sidecar as sidecars
from clb_discovery.demo import traffic as clients
from clb_discovery.demo.chart import Row, chart
from clb_discovery.demo.dns import DnsServer, Zone
from clb_discovery.demo.private_network import enter_private_network
from clb_discovery.demo.sandbox import Sandbox, sandbox
from clb_discovery.demo.screen import Screen
from clb_discovery.demo.servers import DOMAIN, RECORD, Listener, Server, pool, publish
from clb_discovery.demo.sidecar import Sidecar
from clb_discovery.demo.traffic import Traffic, Window
from clb_discovery.errors import ClbError
from clb_discovery.model.address import format_address, is_ipv4
from clb_discovery.model.servers import Vip
from clb_discovery.model.text_forms import parse_vip

VIPS: Final = tuple(map(parse_vip, ("10.64.0.1:6379", "[fd00:64::1]:6379")))
DNS: Final = ("127.0.0.1", 5300)
TTL: Final = 1
CONNECTS: Final = 5000
"""Connects to each virtual server that a bar chart waits for."""
FEWEST_CONNECTS: Final = 500
SECONDS: Final = 3.5
"""After this time `FEWEST_CONNECTS` are enough for a bar chart, as on a slow machine."""

_FIRST: Final = (
    Server("redis-1", "127.0.0.11", 7001, weight=60),
    Server("redis-2", "127.0.0.12", 7002, weight=30),
    Server("redis-3", "127.0.0.13", 7003, weight=10),
    Server("redis-b", "127.0.0.19", 7009, weight=100, priority=1),
)
_JOINING: Final = Server("redis-4", "127.0.0.14", 7004, weight=25)
_PROVEN: Final = replace(_JOINING, weight=100)

_LINE: Final = 75  # characters of a line of wrapped text
_POLL: Final = 0.02
_PATIENCE: Final = 30.0  # seconds until a step that does not end counts as failed


def show(*, color: bool) -> int:
    """Run the demo, on a terminal with or without colour.

    :returns: the exit code: 1 if any connect failed or reached a wrong server.
    :raises ClbError: if the host lacks something, or a step fails.
    """
    enter_private_network()
    cgroup.find_root()
    probe.raise_memlock_limit()
    probe.require_hooks()
    return asyncio.run(_perform(Screen(sys.stdout, color=color)))


async def _perform(screen: Screen) -> int:
    task, signals = asyncio.current_task(), list[int]()
    assert task is not None  # noqa: S101 - a coroutine runs in a task

    def stop(number: int) -> None:
        signals.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:  # as nohup sets it
            continue
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        with sandbox() as place, ExitStack() as stack:
            succeeded = await Show(screen, place, stack).play()
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):  # the terminal may be gone
            screen.say()
            screen.say("Interrupted. Everything is cleaned up.")
        return 128 + signals[0]  # the code that shells use for signals
    screen.say("Everything is cleaned up.")
    if succeeded:
        _suggest_commands(screen)
    return 0 if succeeded else 1


class Show:
    """One run of the demo. The stack closes everything that it opens."""

    def __init__(self, screen: Screen, place: Sandbox, stack: ExitStack) -> None:
        self._screen = screen
        self._place = place
        self._stack = stack
        self._vips = [vip for vip in VIPS if is_ipv4(vip.address) or _has_ipv6()]
        self._zone = Zone(f"{DOMAIN}.", TTL)
        self._dns = DnsServer(self._zone)
        self._servers: Sequence[Server] = ()
        self._listeners: dict[str, Listener] = {}
        self._sidecar: Sidecar | None = None
        self._traffic = Traffic([])
        self._strays = 0

    async def play(self) -> bool:
        """Play every step; return whether no connect failed or reached a wrong server."""
        started = _now()
        self._screen.say("clb-discovery demo: the kernel sends each connect(2) to a server that DNS names.")
        self._screen.say("It runs in a network namespace and a cgroup of its own: nothing else is touched.")
        await self._set_the_scene()
        await self._start_sidecar()
        joined = (*_FIRST[:3], _JOINING, _FIRST[3])
        await self._change("3. A server joins, with little weight at first", joined, joining=_JOINING)
        await self._change("4. It does well, and gets more weight", (*_FIRST[:3], _PROVEN, _FIRST[3]))
        await self._change("5. A server leaves DNS, and is switched off", (*_FIRST[1:3], _PROVEN, _FIRST[3]))
        self._listeners[_FIRST[0].name].close()
        await self._break_dns()
        await self._kill_sidecar()
        return await self._sum_up(started)

    async def _set_the_scene(self) -> None:
        self._screen.title("1. The scene")
        self._screen.say(f"   DNS, at {DNS[0]}:{DNS[1]}, names real servers by priority, weight, port and target:")
        self._stack.callback(self._dns.close)
        await self._dns.start(*DNS)
        self._servers = _FIRST
        for server in self._servers:
            await self._listen(server)
            self._screen.say(f"     {RECORD}. {TTL} IN SRV {server.srv}")
        publish(self._servers, self._zone)
        families = " and ".join("IPv4" if is_ipv4(vip.address) else "IPv6" for vip in self._vips)
        self._screen.say(f"   Each listens on {families}, at its own port. The one of priority 1 is a")
        self._screen.say("   backup, which gets nothing while there is any of priority 0.")
        self._screen.say(f"   Clients will connect to {' and '.join(map(str, self._vips))}. No machine has")
        self._screen.say(f"   these addresses; what a connect there gets without us: {_try(self._vips[0])}.")

    async def _start_sidecar(self) -> None:
        names = ",".join(map(str, self._vips))
        arguments = ["run", "--srv", f"{RECORD}={names}", "--resolver", f"{DNS[0]}:{DNS[1]}"]
        arguments += ["--real-range", "127.0.0.0/8", "--real-range", "::1/128"]
        arguments += ["--cgroup", str(self._place.cgroup), "--instance", self._place.pins.instance]
        self._screen.title("2. The sidecar starts, and then the clients, ordinary programs that only connect")
        for line in sidecars.as_typed(arguments):
            self._screen.say(f"     {line}")
        started = _now()
        self._sidecar = self._stack.enter_context(sidecars.running(arguments, self._place.pins))
        await self._until(self._has_arrived, "the sidecar has filled the pools")
        self._screen.say(f"   The kernel has its pools {_now() - started:.1f} s after the start.")
        self._traffic = self._stack.enter_context(clients.running(self._vips, self._place.cgroup))
        await self._measure()

    async def _change(self, title: str, servers: Sequence[Server], joining: Server | None = None) -> None:
        """Change the records in DNS, wait until the kernel has the new pools, and measure."""
        self._screen.title(title)
        if joining:
            await self._listen(joining)
        for sign, some, others in (("-", self._servers, servers), ("+", servers, self._servers)):
            for server in some:
                if server not in others:
                    self._screen.say(f"     {sign} {RECORD}. {TTL} IN SRV {server.srv}")
        before, started = self._traffic.connects, _now()
        self._servers = servers
        publish(servers, self._zone)
        await self._until(self._has_arrived, "the kernel has the new pools")
        took, meanwhile = _now() - started, self._traffic.connects - before
        self._screen.say(f"   In the kernel after {took:.2f} s (TTL {TTL} s) and {meanwhile:,} connects. Since then:")
        await self._measure()

    async def _break_dns(self) -> None:
        self._screen.title("6. DNS breaks: it answers SERVFAIL to everything")
        self._dns.failing = True
        await self._until(lambda: self._error() is not None, "the sidecar has noticed")
        self._screen.say("   An error is no answer: the servers known last stay. clb-discovery status says:")
        for line in textwrap.wrap(self._error() or "", _LINE, break_on_hyphens=False):
            self._screen.say(f"     {line}")

    async def _kill_sidecar(self) -> None:
        assert self._sidecar is not None  # noqa: S101 - started long ago
        self._screen.title(f"7. The sidecar is killed: kill -9 {self._sidecar.pid}")
        self._sidecar.kill()
        self._sidecar = None
        self._screen.say("   The kernel programs work without it. Since then:")
        await self._measure()

    async def _sum_up(self, started: float) -> bool:
        self._traffic.stop()
        await self._until(lambda: self._traffic.finished, "the clients have ended", clients_may_end=True)
        connects, failures = self._traffic.connects, self._traffic.failures
        self._screen.title(f"{connects:,} connects in {_now() - started:.0f} s, {failures.total():,} failed.")
        for reason, count in failures.most_common():
            self._screen.say(f"   {count:,} failed with: {reason}")
        if self._strays:
            self._screen.say(f"   {self._strays:,} reached a server that was not to be used any more, or yet.")
        return not failures and not self._strays

    async def _listen(self, server: Server) -> None:
        listener = Listener(server.name)
        self._stack.callback(listener.close)
        hosts = [server.ipv4 if is_ipv4(vip.address) else server.ipv6 for vip in self._vips]
        await listener.start(hosts, server.port)
        self._listeners[server.name] = listener

    async def _measure(self) -> None:
        """Show which servers get the connects that begin now."""
        targets = sidecars.target_shares(self._place.pins)
        window, started = Window(self._traffic), _now()
        await self._until(window.has_begun, "the clients connect")

        def is_enough() -> bool:
            fewest = window.fewest()
            self._screen.progress(f"{fewest:,} connects to each address, {self._traffic.failures.total():,} failed")
            return fewest >= (CONNECTS if _now() - started < SECONDS else FEWEST_CONNECTS)

        await self._until(is_enough, f"each client has connected {FEWEST_CONNECTS:,} times")
        for vip in self._vips:
            answers = window.answers(vip)
            rows = [self._row(name, vip, targets[str(vip)], answers[name]) for name in sorted(self._listeners)]
            self._strays += sum(row.measured for row in rows if not row.expected)
            self._screen.figure(chart(str(vip), rows, self._screen.glyphs))

    def _row(self, name: str, vip: Vip, targets: Mapping[str, float], measured: int) -> Row:
        server = next((server for server in self._servers if server.name == name), None)
        if server is None:
            return Row(name, "", "gone", 0.0, measured)
        address = server.endpoint(vip)
        weight = "backup" if server.priority else str(server.weight)
        return Row(name, address, weight, targets[address], measured)

    def _has_arrived(self) -> bool:
        assert self._sidecar is not None  # noqa: S101 - called only while it runs
        pools = self._sidecar.pools()
        return all(pools.get(vip) == pool(self._servers, vip) for vip in self._vips)

    def _error(self) -> str | None:
        return self._sidecar.error() if self._sidecar else None

    async def _until(self, condition: Callable[[], bool], what: str, *, clients_may_end: bool = False) -> None:
        """Wait until a condition is true; raise ClbError, which names it, if it stays false, or if a process ends."""
        # Not limited by a clock, so that the demo can be suspended (Ctrl-Z) and resumed.
        for _ in range(int(_PATIENCE / _POLL)):
            if self._sidecar:
                self._sidecar.check()
            if not clients_may_end:
                self._traffic.check()
            if condition():
                return
            await asyncio.sleep(_POLL)
        raise ClbError(f"waited {_PATIENCE:g} s in vain until {what}; see: clb-discovery check")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _try(vip: Vip) -> str:
    try:
        with socket.create_connection((format_address(vip.address), vip.port), timeout=1):
            return "connected"
    except OSError as error:
        return error.strerror or str(error)


def _suggest_commands(screen: Screen) -> None:
    """Print commands to try next, in the form in which they work here."""
    program = sys.argv[0] if os.access(sys.argv[0], os.X_OK) else "clb-discovery"
    program = "clb-discovery" if shutil.which("clb-discovery") == os.path.realpath(program) else program
    program = f"sudo {program}" if "SUDO_USER" in os.environ else program
    screen.title("Next, for a service of your own:")
    for purpose, arguments in (
        ("see what works on this host", "check"),
        ("follow an SRV record", "--srv _redis._tcp.example.com=10.64.0.1:6379"),
        ("follow a service in Consul", "--consul --service redis=10.64.0.1:6379"),
        ("see who gets the connects", "status"),
    ):
        screen.say(f"   {purpose:<27}  {program} {arguments}")
    screen.say("   Loopback addresses are rejected by default. Allow them with --real-range")
    screen.say("   127.0.0.0/8. Then only servers inside a --real-range are accepted.")
