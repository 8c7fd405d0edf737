"""Random faults of the parts of one pool: two real Consul datacenters, a real DNS server, and real servers in each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from hypothesis import strategies as st

from tests.support.answering import Answering, answering
from tests.support.consul import ConsulAgent
from tests.support.datacenters import Datacenters, datacenters
from tests.support.knot import KnotServer

NAME: Final = "web"
LOCAL, REMOTE, DNS = range(3)
HOSTS: Final = {"127.0.1.1": LOCAL, "127.0.1.2": LOCAL, "127.0.2.1": REMOTE, "127.0.2.2": REMOTE, "127.0.3.1": DNS}
"""The part of each real server; its priority has the same number."""


class Fault(Enum):
    """What a step does to a server or to a source; if it has a fault, the step ends that one instead."""

    LEAVES = "discovery does not have the server any more, and then it ends"
    CRITICAL = "the server ends and is critical; in DNS it has no record"
    MAINTENANCE = "the server ends and is in maintenance; in DNS it has no record"
    REMOVED = "the server ends, and discovery does not have it any more"
    DEAD = "the server ends, and discovery does not know"
    HANGS = "the source of the part responds to nothing"
    KILLED = "the source of the part is killed; Consul loses everything"


_SOURCES: Final = {Fault.HANGS, Fault.KILLED}


class Step(NamedTuple):
    """A fault, or its end."""

    fault: Fault
    host: str
    """For a fault of a source: a server of its part."""


class Span(NamedTuple):
    """A time in nanoseconds of CLOCK_MONOTONIC."""

    begin: int
    end: int

    def meets(self, begin: int, end: int) -> bool:
        """Tell whether it has a moment of another one."""
        return begin <= self.end and self.begin <= end


STEPS: Final = st.lists(st.builds(Step, st.sampled_from(Fault), st.sampled_from([*HOSTS])), min_size=3, max_size=8)
"""Schedules."""
Settle = Callable[[Mapping[str, int]], None]
"""Waits until the kernel has this pool."""


class World:
    """The sources and the servers. Some server that its part has is always up."""

    def __init__(self, consul: Datacenters, knot: KnotServer, servers: Answering) -> None:
        """Let discovery have all servers."""
        self.down: list[Span] = []
        """When a server was down that the kernel still had, so that connects may have failed."""
        self.quiet: list[tuple[Span, frozenset[str]]] = []
        """When the kernel had the pool of the last answers, and its hosts."""
        self._consul, self._knot, self._servers = consul, knot, servers
        self._up = set(HOSTS)
        self._lacks: dict[str, Fault] = {}
        """Why discovery does not have a server."""
        self._dead: dict[str, int] = {}
        """Servers that discovery has although they are down, since when."""
        self._frozen: dict[int, Fault] = {}
        """The faults of sources."""
        self._settled = 0
        for part in (LOCAL, REMOTE, DNS):
            self._register_all(part)

    @property
    def pool(self) -> dict[str, int]:
        """The weights of the servers of all last answers, by `address:port`."""
        return {f"{host}:{self._servers.ports[host]}": 1 for host in HOSTS if host not in self._lacks}

    def take(self, step: Step, settle: Settle) -> bool:
        """Carry out a step, and wait until the kernel follows; return whether there was anything to do."""
        self._end_quiet()
        done = self._turn_source(step) if step.fault in _SOURCES else self._turn_server(step, settle)
        settle(self.pool)
        self._settled = time.monotonic_ns()
        return done

    def restore(self, settle: Settle) -> None:
        """End all faults."""
        for part in (LOCAL, REMOTE, DNS):
            if part in self._frozen:
                self.take(Step(self._frozen[part], next(host for host in HOSTS if HOSTS[host] == part)), settle)
        for host in HOSTS:
            if host in self._lacks or host in self._dead:
                self.take(Step(self._lacks.get(host, Fault.DEAD), host), settle)
        self._end_quiet()

    def _end_quiet(self) -> None:
        if self._settled:
            hosts = frozenset(HOSTS) - self._lacks.keys()
            self.quiet.append((Span(self._settled, time.monotonic_ns()), hosts))
        self._settled = 0

    # Servers

    def _turn_server(self, step: Step, settle: Settle) -> bool:
        fault, host = step
        reaches_discovery = self._answers(HOSTS[host])
        if host in self._dead:
            self._servers.start(host)
            self._up.add(host)
            self.down.append(Span(self._dead.pop(host), time.monotonic_ns()))
        elif host in self._lacks:
            if not reaches_discovery:
                return False
            self._servers.start(host)
            self._up.add(host)
            self._change_discovery(host, self._lacks.pop(host), has=True)
        elif not self._another_serves(host):
            return False
        elif fault is Fault.DEAD:
            self._dead[host] = self._die(host)
        elif not reaches_discovery:
            return False
        elif fault is Fault.LEAVES:
            self._unlist(host, fault)
            settle(self.pool)
            self._die(host)
        else:
            began = self._die(host)
            self._unlist(host, fault)
            settle(self.pool)
            self.down.append(Span(began, time.monotonic_ns()))
        return True

    def _die(self, host: str) -> int:
        now = time.monotonic_ns()
        self._up.discard(host)
        self._servers.die(host)
        return now

    def _another_serves(self, host: str | None, part: int | None = None) -> bool:
        """Tell whether there is a server beside this one, and those of this part, and of sources that lose theirs."""
        killed = {part, *(one for one, fault in self._frozen.items() if fault is Fault.KILLED)}
        return any(one != host and one not in self._lacks and HOSTS[one] not in killed for one in self._up)

    def _unlist(self, host: str, fault: Fault) -> None:
        self._lacks[host] = fault
        self._change_discovery(host, fault, has=False)

    def _change_discovery(self, host: str, fault: Fault, *, has: bool) -> None:
        """Let discovery lack a server in the way of a fault, or have it again."""
        agent, name = self._agent(HOSTS[host]), f"{NAME}-{host}-{self._servers.ports[host]}"
        if agent is None:
            self._write_zone()
        elif fault is Fault.CRITICAL:
            agent.set_status(name, "passing" if has else "critical")
        elif fault is Fault.MAINTENANCE:
            agent.set_maintenance(name, enable=not has)
        elif has:
            agent.register(NAME, self._servers.ports[host], host)
        else:
            agent.deregister(name)

    # Sources

    def _turn_source(self, step: Step) -> bool:
        fault, part = step.fault, HOSTS[step.host]
        if part in self._frozen:
            self._thaw(part, self._frozen.pop(part))
            return True
        is_busy = part != DNS and not self._frozen.keys() <= {DNS}  # the two agents have to meet again
        if is_busy or (fault is Fault.KILLED and not self._another_serves(None, part)):
            return False
        self._frozen[part] = fault
        agent = self._agent(part)
        if agent is None:
            self._knot.stop()
        elif fault is Fault.KILLED:
            agent.kill()
        else:
            os.kill(agent.pid, signal.SIGSTOP)
        return True

    def _thaw(self, part: int, fault: Fault) -> None:
        agent = self._agent(part)
        if agent is None:
            self._knot.start()
        elif fault is Fault.KILLED:
            agent.start()
            self._consul.join()
            self._register_all(part)
        else:
            os.kill(agent.pid, signal.SIGCONT)

    def _register_all(self, part: int) -> None:
        """Let a source that knows nothing have its servers."""
        agent = self._agent(part)
        if agent is None:
            self._write_zone()
            return
        for host in (one for one in HOSTS if HOSTS[one] == part):
            lacks = self._lacks.get(host)
            if lacks in {None, Fault.CRITICAL, Fault.MAINTENANCE}:
                status = "critical" if lacks else "passing"  # the end of maintenance leaves it so, too
                agent.register(NAME, self._servers.ports[host], host, status=status)
            if lacks is Fault.MAINTENANCE:
                self._lacks[host] = Fault.CRITICAL

    def _agent(self, part: int) -> ConsulAgent | None:
        return None if part == DNS else self._consul.agents[part]

    def _answers(self, part: int) -> bool:
        """Tell whether a change reaches the sidecar: the local agent forwards the queries to the other datacenter."""
        return part not in self._frozen and not (part == REMOTE and LOCAL in self._frozen)

    def _write_zone(self) -> None:
        hosts = [host for host in HOSTS if HOSTS[host] == DNS and host not in self._lacks]
        ports = self._servers.ports
        lines = [f"_{NAME}._tcp SRV 0 1 {ports[host]} s{n}\ns{n} A {host}" for n, host in enumerate(hosts)]
        self._knot.write("\n".join(lines))

    # The sidecar

    def configuration(self, vip: str) -> str:
        """Return the configuration of a sidecar that follows the three parts; nothing is held, because one serves."""
        return (
            f'consul = "{self._consul.agents[LOCAL].url}"\nresolver = "{self._knot.address}"\n'
            'real-range = "127.0.0.0/8"\nmin-ttl = "100ms"\nmax-ttl = "100ms"\nhold = "1h"\n'
            f'[[service]]\nname = "{NAME}"\nvip = "{vip}"\n'
            f'from = [{{ consul = "{NAME}" }}, {{ consul = "{NAME}", datacenter = "dc2", priority = 1 }},'
            f' {{ srv = "_{NAME}._tcp.example", priority = 2 }}]\n'
        )


@contextmanager
def world(directory: Path) -> Iterator[World]:
    """Run all of it while the block runs."""
    with datacenters(directory) as consul, KnotServer() as knot, answering(*HOSTS) as servers:
        yield World(consul, knot, servers)
