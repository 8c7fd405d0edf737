"""The environment of a soak: a Consul cluster and an agent, a DNS server behind a misbehaving proxy, real servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import dns.message
import dns.rrset
from dns.rdatatype import SRV

from soak.history import History
from soak.poll_cutter import PollCutter
from soak.scene import SERVICES, ZONE, Service, Way, ipv4, ipv6, port, priority
from tests.support.consul import ConsulAgent, ConsulCluster
from tests.support.faulty_dns import LIES, Fault, FaultyDns
from tests.support.knot import KnotServer
from tests.support.process import wait_until

JUNK: Final = ("127.0.0.9", "169.254.1.1", "224.0.0.1", "10.64.0.2", "0.0.0.0", "fe80::1")
"""Addresses that the zone always has beside the servers, and that are not allowed as real servers."""


UNUSABLE: Final = (
    "_{name}._tcp SRV 0 9 0 s{number}",
    "_{name}._tcp SRV 0 9 99 10.1.1.2.",
    "_{name}._tcp SRV 0 9 99 gone.other.",
    "_{name}._tcp SRV 0 9 99 nowhere.invalid.",
)
"""Unusable records beside those of each service in the zone.

They have a port of 0, an address as a name, or a name that does not exist or gets no answer.
"""
POISON: Final[tuple[tuple[str, int], ...]] = (
    ("10.1.0.9", 0),
    ("http://10.1.1.1", 80),
    ("10.1.1.1:8080", 80),
    ("10.1.1.1 ", 80),
    ("$(id)", 80),
    ("gone.other", 80),
    ("nowhere.invalid", 80),
)
"""Addresses and ports of unusable registrations."""


class LyingDns(FaultyDns):
    """The server's zones behind a proxy that misbehaves for all names in the same way.

    Only SRV records are denied: the denial of a target's addresses is a statement that its server has gone, and if it
    struck the targets of a minority in the middle of a reading, these would leave at once, and lose their counters.

    Its answers are always rotated. If it trims, an answer about `ZONE` has a random half of the records that come and
    go; the other records stay, so that their counters do.
    """

    fault: Fault | None = None
    trims = False

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Return the message to send back; None for nothing."""
        with contextlib.suppress(OSError):
            if self.fault and (self.fault not in LIES or _is_of_srv(wire)):
                return self._misbehave(wire, protocol, self.fault)
            return self._shuffled(self._ask(wire, protocol))
        return None

    def _shuffled(self, answer: bytes) -> bytes:
        message = dns.message.from_wire(answer)
        for number, rrset in enumerate(message.answer):
            records = random.sample(list(rrset), len(rrset))
            if self.trims and rrset.rdtype == SRV and ZONE.name in rrset.name.to_text():
                core = {port(number) for number in ZONE.core}
                records.sort(key=lambda record: record.port not in core)  # a stable sort: others keep their order
                records = records[: len(ZONE.core) + (len(records) - len(ZONE.core) + 1) // 2]
            message.answer[number] = dns.rrset.from_rdata(rrset.name, rrset.ttl, *records)
        return message.to_wire(max_size=65535)


def _is_of_srv(wire: bytes) -> bool:
    return dns.message.from_wire(wire).question[0].rdtype == SRV


@contextmanager
def in_thread(server: AbstractAsyncContextManager[Any]) -> Iterator[None]:
    """Run a proxy in a thread of its own while the block runs."""
    started: Future[Callable[[], object]] = Future()

    async def serve() -> None:
        ending = asyncio.Event()
        async with server:
            started.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, ending.set))
            await ending.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    end = started.result()
    try:
        yield
    finally:
        end()
        thread.join()


FILTER: Final = """
table inet soak {
    set silent4 { type ipv4_addr; }
    set silent6 { type ipv6_addr; }
    set vanished4 { type ipv4_addr; }
    set vanished6 { type ipv6_addr; }
    chain input {
        type filter hook input priority 0;
        ip daddr @vanished4 drop
        ip saddr @vanished4 drop
        ip6 daddr @vanished6 drop
        ip6 saddr @vanished6 drop
        ip daddr @silent4 tcp flags & (syn | ack) == syn drop
        ip6 daddr @silent6 tcp flags & (syn | ack) == syn drop
    }
}
"""
"""Drops packets that have left their sender, as the network does."""


def _nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


class RealServers:
    """The real servers, each a process that can be killed or stopped."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, number: int) -> None:
        """Start one, and wait until it serves."""
        command = [str(self._program), str(number), str(port(number)), ipv4(number), ipv6(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self._processes[number] = process
        assert process.stdout.readline() == "serving\n", f"real server {number} does not start"

    def kill(self, number: int) -> None:
        """Kill one."""
        process = self._processes.pop(number)
        process.kill()
        process.communicate()

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to one."""
        self._processes[number].send_signal(what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._processes):
            self.kill(number)


class World:
    """Everything outside the sidecars and the clients."""

    def __init__(self, folder: Path, history: History, server: Path) -> None:
        """Prepare; nothing runs yet.

        :param server: the program of real servers.
        """
        self._folder = folder
        self.history = history
        self.cluster = ConsulCluster(_made(folder / "consul"))
        self.agent: ConsulAgent = self.cluster.client(_made(folder / "consul/agent"))
        self.poll_cutter = PollCutter(self.agent.url)
        self.knot = KnotServer({"example": "", "other": ""})
        self.dns = LyingDns(self.knot)
        self.real = RealServers(server)
        self.named: dict[str, set[int]] = {service.name: set(service.core) for service in SERVICES}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run all of it while the block runs."""
        with ExitStack() as stack:
            _nft(FILTER)
            stack.enter_context(self.real)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(self.real.start, [number for service in SERVICES for number in service.servers]))
            stack.enter_context(self.cluster)
            stack.enter_context(self.agent)
            self.write_zone()
            stack.enter_context(self.knot)
            stack.enter_context(in_thread(self.dns))
            stack.enter_context(in_thread(self.poll_cutter))
            for service in SERVICES:
                for number in service.core:
                    self.history.join(service.name, number)
                    if service.source == "consul":
                        self.register(service, number)
            yield

    def fail(self, number: int, way: Way) -> None:
        """Let a real server fail."""
        if way is Way.DIES:
            self.real.kill(number)
        elif way is Way.HANGS:
            self.real.signal(number, signal.SIGSTOP)
        else:
            self._drop(number, way, "add")

    def repair(self, number: int, way: Way) -> None:
        """End this failure."""
        if way is Way.DIES:
            self.real.start(number)
        elif way is Way.HANGS:
            self.real.signal(number, signal.SIGCONT)
        else:
            self._drop(number, way, "delete")

    def _drop(self, number: int, way: Way, action: str) -> None:
        name = "vanished" if way is Way.VANISHES else "silent"
        both = (("4", ipv4(number)), ("6", ipv6(number)))
        _nft("".join(f"{action} element inet soak {name}{family} {{ {address} }}\n" for family, address in both))

    def register(self, service: Service, number: int) -> None:
        """Register an instance in Consul's catalog, with both of its addresses.

        :raises OSError: if the result is unknown.
        """
        for identity, address in (
            (f"{service.name}-{number}", ipv4(number)),
            (f"{service.name}-{number}-6", ipv6(number)),
        ):
            found = {"ID": identity, "Service": service.name, "Address": address, "Port": port(number)}
            found |= {"Weights": {"Passing": number, "Warning": 1}}
            self.agent.register_external("outside", "10.1.255.254", found)

    def deregister(self, service: Service, number: int) -> None:
        """Remove it again; raises as `register`."""
        for identity in (f"{service.name}-{number}", f"{service.name}-{number}-6"):
            body = {"Node": "outside", "ServiceID": identity}
            self.agent.request("PUT", "/v1/catalog/deregister", body)

    def poison(self, service: Service, kind: int) -> None:
        """Register an unusable instance; raises as `register`.

        :param kind: number of one of `POISON`.
        """
        address, port_ = POISON[kind]
        found = {"ID": f"poison-{kind}", "Service": service.name, "Address": address, "Port": port_}
        self.agent.register_external("outside", "10.1.255.254", found)

    def cure(self, kind: int) -> None:
        """Remove it again; raises as `register`."""
        body = {"Node": "outside", "ServiceID": f"poison-{kind}"}
        self.agent.request("PUT", "/v1/catalog/deregister", body)

    def write_zone(self) -> None:
        """Write the current members into the zone."""
        records = [f"junk A{'AAA' if ':' in address else ''} {address}" for address in JUNK]
        for service in SERVICES:
            if service.source == "dns":
                records.append(f"_{service.name}._tcp SRV 0 9 99 junk")
                records += [one.format(name=service.name, number=service.core.start) for one in UNUSABLE]
                for number in sorted(self.named[service.name]):
                    weight, where = number, f"{port(number)} s{number}"
                    records.append(f"_{service.name}._tcp SRV {priority(service, number)} {weight} {where}")
                    records += [f"s{number} A {ipv4(number)}", f"s{number} AAAA {ipv6(number)}"]
        self.knot.write("\n".join(records))

    def has_leader(self) -> bool:
        """Return whether the cluster accepts writes."""
        try:
            self.agent.request("PUT", "/v1/kv/soak", {"a": 1})
        except OSError:
            return False
        return True

    def wait_for_leader(self) -> None:
        """Wait until the cluster accepts writes."""
        wait_until(self.has_leader, "Consul has a leader", 120)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
