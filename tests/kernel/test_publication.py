"""Publication under load: no connect fails, and each reaches a server of a set that was published meanwhile."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import address_filter
from clb_discovery.model.address import Address, format_address
from tests.programs import publisher
from tests.programs.connector import Connect, read_connects
from tests.support.cgroups import inside, run_inside
from tests.support.knot import KnotServer
from tests.support.loading import loader_of_tests, loading
from tests.support.pace import STRIDE, effort, patient
from tests.support.process import accepts, free_port, running, wait_until
from tests.support.sidecar import clb_here
from tests.support.spares import loaded_instance

instance = loaded_instance

CLIENTS: Final = 4
SECONDS: Final = 20
CONNECTOR: Final = (sys.executable, "-m", "tests.programs.connector")
TARGETS: Final = (publisher.VIP4, publisher.VIP6, f"::ffff:{publisher.VIP4}")


class Visible(NamedTuple):
    """The interval in which connects could see a set, in nanoseconds of CLOCK_MONOTONIC."""

    start: int
    end: int


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Run the server that reports its address to clients, on all of 127.0.0.0/8 and a local IPv6 network."""
    network = f"{publisher.IPV6_REALS}/64"
    subprocess.run(["ip", "-6", "route", "add", "local", network, "dev", "lo"], check=True)
    try:
        number = free_port()
        with running([sys.executable, "-m", "tests.programs.where", str(number)], tmp_path / "where.log"):
            wait_until(lambda: accepts(number), "the server accepts")
            yield number
    finally:
        subprocess.run(["ip", "-6", "route", "del", "local", network, "dev", "lo"], check=True)


@pytest.fixture
def loaded(instance: str, cgroup: Path) -> str:
    """Load the data plane of the instance."""
    loader.load(Pins(instance), cgroup, loader_of_tests())
    return instance


@contextmanager
def publishing(instance: str, port: int, log: Path, first: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run the publisher; it is killed at the end, at any point of its work."""
    seen = swaps(log)
    command = [sys.executable, "-m", "tests.programs.publisher", instance, str(port), str(log), str(first)]
    with running(command, log.with_suffix(".err")) as process:
        wait_until(lambda: swaps(log) > seen or process.poll() is not None, "the first set is published")
        assert process.poll() is None, log.with_suffix(".err").read_text()
        yield process
        assert process.poll() is None, log.with_suffix(".err").read_text()
        process.send_signal(signal.SIGKILL)


@contextmanager
def connecting(cgroup: Path, port: int, directory: Path) -> Iterator[list[Connect]]:
    """Run the clients while the block runs, and fill the list after their end."""
    files = [directory / f"connects-{number}" for number in range(CLIENTS)]
    log = directory / "clients.log"
    connects: list[Connect] = []
    with ExitStack() as stack:
        commands = [inside(cgroup, [*CONNECTOR, file, str(SECONDS), str(port), *TARGETS]) for file in files]
        clients = [stack.enter_context(running(command, log)) for command in commands]
        wait_until(lambda: all(file.exists() for file in files), "the clients connect")
        yield connects
        for client in clients:
            assert client.wait(timeout=patient(SECONDS + 30)) == 0, log.read_text()
    for file in files:
        connects += read_connects(file)


def swaps(log: Path) -> int:
    """Return the number of published sets."""
    return log.read_text().count("swap") if log.exists() else 0


def visible_sets(log: Path) -> dict[int, list[Visible]]:
    """Return when each set was visible: from the start of its publication until a later one had replaced it."""
    events = [line.split() for line in log.read_text().splitlines()]
    begins: list[tuple[int, int]] = []
    visible: defaultdict[int, list[Visible]] = defaultdict(list)
    for event, number, time in events:
        if event == "begin":
            begins.append((int(number), int(time)))
        else:  # sets that began before this one are no longer visible
            for old, start in begins[:-1]:
                visible[publisher.set_of(old)].append(Visible(start, int(time)))
            begins = begins[-1:]
    for old, start in begins:
        visible[publisher.set_of(old)].append(Visible(start, sys.maxsize))
    return visible


def assert_all_came_out_right(connects: list[Connect], log: Path) -> None:
    """Check that no connect failed, and that each reached a member of a set that was visible during it."""
    visible = visible_sets(log)
    failed = [connect for connect in connects if connect.error]
    assert not failed, f"{len(failed)} of {len(connects)} connects failed, such as {failed[:3]}"
    for connect in connects:
        number, index = publisher.decode(connect.reached)
        assert index < publisher.size(number), f"{connect} is no member of set {number}"
        assert any(span.start <= connect.end and connect.start <= span.end for span in visible[number]), (
            f"{connect} came out at set {number}, which could be seen at {visible[number]}"
        )


def test_no_connect_is_lost_while_pools_are_replaced(loaded: str, cgroup: Path, port: int, tmp_path: Path) -> None:
    """Four clients connect for 20 s while pools of both families, up to 1,000 servers, are replaced at full rate."""
    log = tmp_path / "publications"
    with publishing(loaded, port, log), connecting(cgroup, port, tmp_path) as connects:
        pass
    assert_all_came_out_right(connects, log)
    reached = {publisher.decode(connect.reached)[0] for connect in connects}
    assert len(connects) > effort(1000, 0)
    assert swaps(log) > effort(100, 0)
    assert len(reached) > effort(100, 0)
    print(f"{len(connects)} connects over {2 * swaps(log)} publications, none failed")


def test_no_connect_is_lost_while_the_writer_is_killed(loaded: str, cgroup: Path, port: int, tmp_path: Path) -> None:
    """Four clients connect while the writer is killed at random moments, and started again each time."""
    log = tmp_path / "publications"
    chance = random.Random()  # noqa: S311 - when to kill
    kills, wanted = 0, effort(12, 3)
    with publishing(loaded, port, log):
        pass
    with connecting(cgroup, port, tmp_path) as connects:
        for _ in range(wanted):
            with publishing(loaded, port, log, first=int(log.read_text().split()[-2]) + 1) as process:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(chance.uniform(0.05, 0.8))
                kills += 1
    assert_all_came_out_right(connects, log)
    assert kills == wanted


OLD: Final = {"127.1.0.1": 1, "127.1.0.2": 3}
NEW: Final = {"127.2.0.1": 2, "127.2.0.2": 2, "127.2.0.3": 5}
STAYS, GOES, COMES = "10.64.0.1", "10.64.0.2", "10.64.0.3"


def write_zone(knot: KnotServer, servers: Mapping[str, int], port: int) -> None:
    """Serve these addresses with their weights as the targets of one SRV name."""
    lines = [f"_swap._tcp SRV 0 {weight} {port} t{number}" for number, weight in enumerate(servers.values())]
    knot.write("\n".join(lines + [f"t{number} A {address}" for number, address in enumerate(servers)]))


def sync_once(knot: KnotServer, instance: str, cgroup: Path, *vips: str) -> list[str]:
    """Return the command line for one sync of the sidecar onto these VIPs."""
    srv = "_swap._tcp.example=" + ",".join(vips)
    where = ["--instance", instance, "--cgroup", str(cgroup), "--resolver", knot.address]
    return ["run", *loading(), "--once", "--srv", srv, *where, "--real-range", "127.0.0.0/8", "--hold", "0s"]


def reached_through(cgroup: Path, vip: str, port: int, directory: Path) -> set[str | int]:
    """Connect for a moment; return the addresses that were reached, and the errors."""
    file = directory / f"connects-{vip}"
    result = run_inside(cgroup, *CONNECTOR, file, "0.05", str(port), vip)
    assert result.returncode == 0, result.stderr
    return {connect.error or format_address(Address(connect.reached)) for connect in read_connects(file)}


def test_writer_may_be_killed_before_every_operation(instance: str, cgroup: Path, port: int, tmp_path: Path) -> None:
    """If the sidecar is killed at any point, connects see one whole pool; the next start repairs, without orphans."""
    fatal = [sys.executable, "-m", "tests.programs.fatal_sidecar"]
    with KnotServer() as knot:
        before = sync_once(knot, instance, cgroup, f"{STAYS}:{port}", f"{GOES}:{port}")
        after = sync_once(knot, instance, cgroup, f"{STAYS}:{port}", f"{COMES}:{port}")
        for operation in count(random.randrange(STRIDE), STRIDE):  # noqa: S311 - a choice of operations
            write_zone(knot, OLD, port)
            assert clb_here(*before).returncode == 0
            write_zone(knot, NEW, port)
            command = [*fatal, str(operation), *after]
            result = subprocess.run(command, check=False, capture_output=True, timeout=patient(60))
            finished = result.returncode == 0
            assert finished or result.returncode == -signal.SIGKILL, result.stderr

            stays = reached_through(cgroup, STAYS, port, tmp_path)
            assert stays <= set(OLD) or stays <= set(NEW), (operation, stays)
            assert reached_through(cgroup, GOES, port, tmp_path) <= {*OLD, errno.ENETUNREACH}, operation
            assert reached_through(cgroup, COMES, port, tmp_path) <= {*NEW, errno.ENETUNREACH}, operation

            assert clb_here(*after).returncode == 0
            with Maps(Pins(instance)) as maps:
                installed = maps.read()
            assert installed.orphans == {}, operation
            assert {format_address(vip.address) for vip in installed.virtual if vip.port == port} == {STAYS, COMES}
            assert installed.filter == address_filter.elements(frozenset(vip.address for vip in installed.virtual))
            assert reached_through(cgroup, STAYS, port, tmp_path) <= set(NEW), operation
            if finished:
                break
    operations = int(result.stdout)
    assert 20 <= operations <= operation < operations + STRIDE
