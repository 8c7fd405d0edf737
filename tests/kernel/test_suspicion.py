"""What applications notice of a server that fails, with a sidecar that probes and without one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Steering
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.health.watch import LEASE
from tests.support.cgroups import inside
from tests.support.dataplane import dial
from tests.support.moody import MoodyServer, moody_servers
from tests.support.pace import patient
from tests.support.plane import real
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, sidecar, status
from tests.support.sockets import socket_maker
from tests.support.spares import loaded_instance
from tests.support.web import get

instance = loaded_instance

VIP: Final = "10.64.0.1"
THREADS: Final = 4
PATIENCE: Final = 0.5
SHORT: Final = ('eject-time = "1s"', 'eject-max = "1s"')
FOR_LONG: Final = ('eject-time = "1h"', 'eject-max = "1h"')
WAYS: Final[dict[str, Callable[[MoodyServer], None]]] = {
    "silent": MoodyServer.fall_silent,
    "refuses": MoodyServer.refuse,
}


class Failure(NamedTuple):
    """A connect of an application that failed, with the times of its start and end."""

    began: float
    ended: float


class Clients:
    """Clients in a few threads, which connect without pause."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self._process = process
        self._output = output

    def connects(self) -> int:
        """Return how many connects there were until now."""
        assert self._process.stdin is not None
        before = self._lines("connects")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wait_until(lambda: len(self._lines("connects")) > len(before), "the clients have answered")
        return int(self._lines("connects")[-1].split()[1])

    def failures(self) -> list[Failure]:
        """Return the connects that have failed, in the order in which they began."""
        failed = [line for line in self._output.read_text().splitlines() if line.count(" ") > 1]
        return sorted(Failure(*map(float, line.split()[:2])) for line in failed)

    def _lines(self, word: str) -> list[str]:
        return [line for line in self._output.read_text().splitlines() if line.startswith(word)]


@contextmanager
def clients(cgroup: Path, directory: Path) -> Iterator[Clients]:
    """Run clients in the cgroup while the block runs."""
    program = [sys.executable, "-m", "tests.programs.patient", VIP, "80", str(THREADS), str(PATIENCE)]
    output = directory / "clients"
    with (
        output.open("w") as file,
        subprocess.Popen(inside(cgroup, program), stdin=subprocess.PIPE, stdout=file, text=True) as process,
    ):
        try:
            found = Clients(process, output)
            wait_until(lambda: found.connects() > 100, "the clients run")
            yield found
        finally:
            process.kill()


class Probing(NamedTuple):
    """A running sidecar that probes, and the port of its metrics."""

    sidecar: Sidecar
    port: int

    def probes(self, result: str) -> float:
        """Return how many probes had this result."""
        return self._value("clb_probes_total", result=result)

    def suspicions(self) -> float:
        """Return how often a server was suspect."""
        return self._value("clb_suspicions_total")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of an event in its log."""
        return [line for line in self.sidecar.lines() if line["event"] == event]

    def keeps_out(self) -> dict[str, float]:
        """Return whether probes or checks keep each real server out; only those that are ejected have it."""
        return {one.labels["real_server"]: one.value for one in self._samples() if one.name == "clb_kept_out"}

    def _value(self, metric: str, **labels: str) -> float:
        return next(one.value for one in self._samples() if one.name == metric and one.labels == labels)

    def _samples(self) -> list[Sample]:
        families = text_string_to_metric_families(get(self.port, "/metrics"))
        return [sample for family in families for sample in family.samples]


@contextmanager
def probing(
    instance: str, cgroup: Path, directory: Path, servers: Sequence[MoodyServer], *lines: str, up: int | None = None
) -> Iterator[Probing]:
    """Run a sidecar for one service, which has reached all servers.

    :param lines: of the configuration.
    :param up: how many servers it can reach, if not all; the others are tried, too.
    """
    names = ", ".join(repr(server.name) for server in servers)
    table = f'[[service]]\nname = "web"\nvip = "{VIP}:80"\nservers = [{names}]\n'
    (directory / "clb.toml").write_text("\n".join(['real-range = ["127.0.0.0/8"]', *lines, table]))
    port = free_port()
    options = ["--config", str(directory / "clb.toml"), "--metrics", f"127.0.0.1:{port}", "--log-level", "debug"]
    with sidecar(instance, cgroup, directory, options) as running:
        found = Probing(running, port)
        wanted = len(servers) if up is None else up
        running.wait_for(lambda: found.probes("up") >= wanted, "every server was reached once")
        if 0 < wanted < len(servers):
            running.wait_for(lambda: found.probes("down") >= len(servers) - wanted, "the others were not reached")
        yield found


def verdict(instance: str, server: MoodyServer) -> Steering:
    """Return what the sidecar has said of a server."""
    vip = parse_vip(f"{VIP}:80")
    with Maps(Pins(instance)) as maps:
        members = maps.read().virtual[vip].servers
        return maps.steering(members[elements.pack_member(elements.pack_vip(vip), real(server.name))])


def checks_fail(instance: str) -> bool:
    """Tell whether any real server fails its checks."""
    (virtual,) = status(instance)["virtual_servers"]
    return any(one["check_failure"] for one in virtual["real_servers"])


def state(instance: str, server: MoodyServer) -> str:
    """Return the state of a server, as `status` shows it."""
    (pool,) = (one for one in status(instance)["virtual_servers"] if one["address"] == VIP)
    (found,) = (one for one in pool["real_servers"] if f"{one['address']}:{one['port']}" == server.name)
    return str(found["state"])


def put_out(found: Probing, instance: str, cgroup: Path, server: MoodyServer) -> None:
    """Let a server refuse until the sidecar has seen that, too."""
    server.refuse()
    wait_until(lambda: dial(cgroup, VIP, 80, 10) == ["ok"] * 10 and bool(found.lines("server ejected")), "it is out")
    assert state(instance, server) == "ejected"


def after_the_first(failures: Sequence[Failure]) -> list[Failure]:
    """Return the failures of connects that began after the first failure was known."""
    known = min(failure.ended for failure in failures)
    return [failure for failure in failures if failure.began > known + 0.05]


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_fails_costs_one_connect(instance: str, cgroup: Path, tmp_path: Path, way: str) -> None:
    """And those that are on their way when it fails; then none, while the sidecar probes it in vain."""
    with moody_servers(*["127.0.0.1"] * 10) as servers, probing(instance, cgroup, tmp_path, servers, *SHORT) as found:
        down = found.probes("down")
        with clients(cgroup, tmp_path) as dialling:
            WAYS[way](servers[3])
            found.sidecar.wait_for(lambda: found.probes("down") >= down + 5, "it was probed five times")
            before = dialling.connects()
            wait_until(lambda: dialling.connects() > before + 500, "the clients go on")
            failures = dialling.failures()
            assert 1 <= len(failures) <= THREADS
            assert after_the_first(failures) == []
            assert state(instance, servers[3]) == "ejected"
            assert found.keeps_out() == {servers[3].name: 1}
            assert len(found.lines("server ejected")) == 1

            servers[3].accept()
            accepting = time.monotonic()
            found.sidecar.wait_for(lambda: bool(found.lines("server returned")), "it is back")
            assert time.monotonic() - accepting < patient(2.5)
            assert state(instance, servers[3]) == "active"
            assert dialling.failures() == failures
    (ejected,), (returned,) = found.lines("server ejected"), found.lines("server returned")
    assert ejected["server"] == returned["server"] == servers[3].name
    assert returned["out_for"] >= 4


@pytest.mark.parametrize("way", WAYS)
def test_without_a_sidecar_it_costs_three_and_one_for_each_probe(
    instance: str, cgroup: Path, tmp_path: Path, way: str
) -> None:
    """A sidecar that was killed leaves its lease, and nothing else; the programs go on alone."""
    with moody_servers(*["127.0.0.1"] * 10) as servers, probing(instance, cgroup, tmp_path, servers) as found:
        found.sidecar.kill()
        time.sleep(LEASE / 1e9)
        with clients(cgroup, tmp_path) as dialling:
            WAYS[way](servers[3])
            time.sleep(8)
            failures = dialling.failures()
    third = sorted(failure.ended for failure in failures)[2]
    later = [failure for failure in failures if failure.began > third + 0.05]
    assert 3 <= len(failures) - len(later) <= 3 + THREADS
    assert len(later) <= 1


@pytest.mark.parametrize("alive", [True, False])
def test_what_applications_feel_of_a_rolling_restart(
    instance: str, cgroup: Path, tmp_path: Path, *, alive: bool
) -> None:
    """The second server goes down while the first is back, but out: a handful of connects fail, not seconds of them."""
    with (
        moody_servers("127.0.0.1", "127.0.0.1") as (first, second),
        probing(instance, cgroup, tmp_path, [first, second], *FOR_LONG) as found,
    ):
        put_out(found, instance, cgroup, first)
        if not alive:
            found.sidecar.kill()
            time.sleep(LEASE / 1e9)
        first.accept()
        with clients(cgroup, tmp_path) as dialling:
            second.refuse()
            wait_until(lambda: "ECONNREFUSED" not in dial(cgroup, VIP, 80, 40), "connects go to the first")
            before = dialling.connects()
            wait_until(lambda: dialling.connects() > before + 500, "the clients go on")
            failures = dialling.failures()
        assert len(failures) >= 1
        assert failures[-1].ended - failures[0].began < patient(0.5)
        if alive:
            assert state(instance, first) == "active"


def test_a_server_with_checks_costs_one_connect_too(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The probe does not wait until the checks have failed often enough; whether it is back is for them to say."""
    checked = ('check = "tcp"', 'check-interval = "1s"')
    with (
        moody_servers(*["127.0.0.1"] * 10) as servers,
        probing(instance, cgroup, tmp_path, servers, *checked) as found,
        clients(cgroup, tmp_path) as dialling,
    ):
        servers[3].refuse()
        found.sidecar.wait_for(lambda: checks_fail(instance), "its checks fail, too")
        before = dialling.connects()
        wait_until(lambda: dialling.connects() > before + 500, "the clients go on")
        failures = dialling.failures()
        assert 1 <= len(failures) <= THREADS
        assert after_the_first(failures) == []
        assert state(instance, servers[3]) == "ejected"
        servers[3].accept()
        found.sidecar.wait_for(lambda: bool(found.lines("server returned")), "it is back")
        wait_until(lambda: state(instance, servers[3]) == "active", "it takes connects")
        assert dialling.failures() == failures
    (line,) = found.lines("server ejected")
    assert line["cause"] == "a failed connect, refused, and a failed probe"
    assert len(found.lines("server returned")) == 1


def test_connects_that_wait_are_enough_to_eject_a_silent_server(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """An application without a time-out waits for its own, but sends the others elsewhere before that."""
    with (
        moody_servers(*["127.0.0.1"] * 10) as servers,
        probing(instance, cgroup, tmp_path, servers) as found,
        socket_maker(cgroup) as client,
    ):
        servers[3].fall_silent()
        began = time.monotonic()
        waiting = client.begun((VIP, 80), 200)
        found.sidecar.wait_for(lambda: bool(found.lines("server suspected")), "a connect has waited for too long")
        assert time.monotonic() - began < patient(1.5)
        assert dial(cgroup, VIP, 80, 100) == ["ok"] * 100
        found.sidecar.wait_for(lambda: bool(found.lines("server ejected")), "it is ejected")
        assert dial(cgroup, VIP, 80, 100) == ["ok"] * 100
        assert state(instance, servers[3]) == "ejected"
        for sock in waiting:
            sock.close()
    (line,) = found.lines("server ejected")
    assert line["cause"] == "an unanswered connect and a failed probe"


def test_one_lost_syn_is_no_ejection(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The probe ends the suspicion, long before its time is over."""
    with (
        moody_servers("127.0.0.1", "127.0.0.1") as servers,
        probing(instance, cgroup, tmp_path, servers) as found,
        socket_maker(cgroup) as client,
    ):
        for server in servers:
            server.fall_silent()
        (sock,) = client.begun((VIP, 80))
        for server in servers:
            server.accept()
        time.sleep(0.3)  # longer than --silent-after, and the second SYN leaves after a second
        sock.close()
        found.sidecar.wait_for(lambda: bool(found.lines("server probed")), "it was probed")
        assert [line["result"] for line in found.lines("server probed")] == ["cleared"]
        assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
        assert found.suspicions() == 1
        assert found.lines("server ejected") == []
        assert {state(instance, server) for server in servers} == {"active"}


def test_a_server_that_was_never_reached_is_left_to_the_programs(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The sidecar may be confined, or the server may be for others: silence is no evidence then."""
    with moody_servers("127.0.0.1", "127.0.0.1") as (dead, spare):
        dead.refuse()
        with probing(instance, cgroup, tmp_path, [dead, spare], up=1) as found:
            wait_until(lambda: "ECONNREFUSED" in dial(cgroup, VIP, 80, 10), "a connect has failed")
            found.sidecar.wait_for(lambda: bool(found.lines("server probed")), "it was probed")
            assert found.lines("server probed")[0]["result"] == "unknown"
            wait_until(lambda: bool(dial(cgroup, VIP, 80, 10)) and bool(found.lines("server ejected")), "it is ejected")
            assert verdict(instance, dead) == Steering(0, 0)
            dead.accept()
            found.sidecar.wait_for(lambda: bool(found.lines("server returned")), "it is back")
            assert verdict(instance, dead).out_until == 0


def test_a_restart_keeps_a_dead_server_out(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """What the previous sidecar has said tells the next one that it had reached the server."""
    with moody_servers("127.0.0.1", "127.0.0.1") as (dead, spare):
        with probing(instance, cgroup, tmp_path, [dead, spare], *SHORT) as found:
            dead.refuse()
            dial(cgroup, VIP, 80, 20)
            found.sidecar.wait_for(lambda: bool(found.lines("server ejected")), "it is ejected")
            found.sidecar.kill()
        (tmp_path / f"sidecar-{instance}.log").unlink()
        with probing(instance, cgroup, tmp_path, [dead, spare], *SHORT, up=1) as found:
            (line,) = found.lines("server ejected")
            assert line["cause"].endswith(", before this sidecar started")
            said = verdict(instance, dead)
            found.sidecar.wait_for(
                lambda: verdict(instance, dead).decided_at > said.decided_at + 10**9, "it is renewed"
            )
            assert dial(cgroup, VIP, 80, 100) == ["ok"] * 100
            assert found.sidecar.stop() == 0
        assert found.lines("server returned") == []


def test_reports_that_were_missed_are_made_up_for(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A sidecar that was stopped for a while looks at all servers."""
    with (
        moody_servers("127.0.0.1", "127.0.0.1") as (dead, spare),
        probing(instance, cgroup, tmp_path, [dead, spare], *FOR_LONG) as found,
    ):
        found.sidecar.process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE / 1e9)
        dead.refuse()
        assert dial(cgroup, VIP, 80, 30).count("ECONNREFUSED") == 3
        found.sidecar.process.send_signal(signal.SIGCONT)
        found.sidecar.wait_for(lambda: bool(found.lines("server ejected")), "it is ejected")
        assert found.lines("server ejected")[0]["cause"] == "3 failed connects in a row, the last one refused"
        dead.accept()
        found.sidecar.wait_for(lambda: bool(found.lines("server returned")), "it is back, long before its time")


def test_a_clean_stop_leaves_three_connects_at_once(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The lease ends with the sidecar."""
    with moody_servers("127.0.0.1", "127.0.0.1") as (dead, spare):
        with probing(instance, cgroup, tmp_path, [dead, spare]) as found:
            assert found.sidecar.stop() == 0
        dead.refuse()
        assert dial(cgroup, VIP, 80, 30).count("ECONNREFUSED") == 3


def test_a_server_that_left_is_not_probed_on(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """And a server that takes its place is not kept out."""
    with (
        moody_servers("127.0.0.1", "127.0.0.1", "127.0.0.1") as (dead, spare, late),
        probing(instance, cgroup, tmp_path, [dead, spare], *SHORT) as found,
    ):
        dead.refuse()
        dial(cgroup, VIP, 80, 20)
        found.sidecar.wait_for(lambda: bool(found.lines("server ejected")), "it is ejected")
        config = tmp_path / "clb.toml"
        config.write_text(config.read_text().replace(dead.name, late.name))
        found.sidecar.process.send_signal(signal.SIGHUP)
        found.sidecar.wait_for(lambda: found.probes("up") == 3, "the new server was reached")
        down = found.probes("down")
        assert dial(cgroup, VIP, 80, 100) == ["ok"] * 100
        time.sleep(2)
        assert found.probes("down") == down
        assert verdict(instance, late) == Steering(0, 0)
        assert found.lines("server returned") == []


def test_without_suspicion_three_connects_fail(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The sidecar logs, and probes nothing."""
    with (
        moody_servers("127.0.0.1", "127.0.0.1") as (dead, spare),
        probing(instance, cgroup, tmp_path, [dead, spare], "no-suspicion = true", up=0) as found,
    ):
        dead.refuse()
        assert dial(cgroup, VIP, 80, 30).count("ECONNREFUSED") == 3
        found.sidecar.wait_for(lambda: bool(found.lines("server ejected")), "it is ejected")
        assert found.lines("server ejected")[0]["probe_in"] is None
        assert (found.probes("up"), found.probes("down")) == (0, 0)
