"""When the sidecar, `load` and `trace` attach the program that learns how TCP connects end, and what they report."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.bpf import AttachType
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import OUTCOMES, Pins
from clb_discovery.publication.outcomes import WITHOUT_OUTCOMES
from tests.kernel.test_upgrades import name_another_build
from tests.support.cgroups import remove
from tests.support.clients import connecting, wait_for_records
from tests.support.dataplane import dial, snapshot
from tests.support.kernel_objects import foreign_exclusive
from tests.support.listeners import listening
from tests.support.process import free_port, running, wait_until
from tests.support.run_counts import counting_runs, run_counts
from tests.support.sidecar import COMMAND, Sidecar, clb, load, sidecar, status
from tests.support.sockets import socket_maker
from tests.support.tracing import outcomes, tracing
from tests.support.units import BESIDE, as_unit, load_as_unit, without

VIP: Final = "10.64.0.1"
DEAD: Final = "10.64.0.2"
LEAN: Final = 'real-range = ["127.0.0.0/8"]\nno-active = true\neject-after = 0\nconnect-timeout = "off"\n'


def service(vip: str, *servers: str, more: str = "") -> str:
    """Return the table of a service with static servers."""
    names = ", ".join(f'"{server}"' for server in servers)
    return f'[[service]]\nname = "s{vip[-1]}"\nvip = "{vip}:80"\nservers = [{names}]\n{more}\n'


def has_link(instance: str) -> bool:
    """Tell whether the program is attached."""
    return Pins(instance).link(OUTCOMES).exists()


@contextmanager
def following(config: Path, instance: str, cgroup: Path | None, tables: str) -> Iterator[Sidecar]:
    """Run a sidecar with these services and without passive health otherwise."""
    config.write_text(LEAN + tables)
    with sidecar(instance, cgroup, config.parent, ["--config", str(config)]) as found:
        yield found


def reload(found: Sidecar, config: Path, tables: str) -> None:
    """Replace the services, and wait until they are published."""
    before = found.events().count("pool published")
    config.write_text(LEAN + tables)
    found.process.send_signal(signal.SIGHUP)
    found.wait_for(lambda: found.events().count("pool published") > before, "it publishes")


def failures(instance: str, vip: str) -> dict[str, int]:
    """Return the failures of the real servers of a VIP, by name."""
    (server,) = (one for one in status(instance)["virtual_servers"] if one["address"] == vip)
    return {f"{real['address']}:{real['port']}": real["failures"] for real in server["real_servers"]}


def test_without_need_no_connect_runs_it(instance: str, cgroup: Path, config: Path) -> None:
    """Without ejection and counts no connect to a VIP or elsewhere runs it, which status and check accept."""
    with (
        listening("127.0.0.1") as (server,),
        following(config, instance, cgroup, service(VIP, server.name)) as found,
        counting_runs(),
    ):
        host, port = server.name.split(":")
        assert dial(cgroup, VIP, 80, 20) + dial(cgroup, host, int(port), 20) == ["ok"] * 40
        runs = run_counts(Pins(instance))
        assert (runs[OUTCOMES], runs["clb_connect4"] >= 40) == (0, True)
        document = status(instance)
        assert (document["datapath"]["outcomes"], document["datapath"]["effective"]) == (False, True)
        assert [one["needs_outcomes"] for one in document["virtual_servers"]] == [False]
        assert clb("status", "--problems", "--instance", instance).returncode == 0
        checked = clb("check", "--instance", instance, "--cgroup", cgroup)
        assert (checked.returncode, "outcomes of connects" in checked.stdout) == (0, False)
        assert found.stop() == 0
    assert not has_link(instance)
    assert {line["level"] for line in found.lines()} == {"info"}


def test_service_that_ejects_has_it_from_its_first_connect_on(instance: str, cgroup: Path, config: Path) -> None:
    """A reload adds a service that ejects: each of its failed connects counts, while clients connect without pause."""
    dead = f"127.0.0.1:{free_port()}"
    with listening("127.0.0.1") as (server,):
        lean = service(VIP, server.name)
        with (
            following(config, instance, cgroup, lean) as found,
            connecting(cgroup, 80, config.parent, DEAD, serve=False) as connects,
        ):
            assert not has_link(instance)
            reload(found, config, lean + service(DEAD, dead, more="eject-after = 3"))
            assert has_link(instance)
            wait_until(lambda: failures(instance, DEAD)[dead] > 50, "connects fail")
            first = time.monotonic_ns()
            counted = failures(instance, DEAD)[dead]
            last = time.monotonic_ns()
            wait_for_records(config.parent)
    refused = [connect for connect in connects if connect.error == errno.ECONNREFUSED]
    certain, possible = (sum(one.end <= first for one in refused), sum(one.start <= last for one in refused))
    print(f"\n{certain} failures for certain, {counted} counted, {possible} possible")
    assert len(refused) < len(connects)  # the first connects came before the service
    assert 50 < certain <= counted <= possible


def test_service_that_counts_has_it_until_its_connections_are_closed(instance: str, cgroup: Path, config: Path) -> None:
    """When the last service that counts has become lean, it stays for an open connection, and then goes."""
    with listening("127.0.0.1") as (server,):
        counting = service(VIP, server.name, more='algorithm = "least-conn"')
        with following(config, instance, cgroup, counting) as found:
            assert has_link(instance)
            with socket_maker(cgroup) as maker:
                maker.connected((VIP, 80))
                assert actives(instance) == 1
                reload(found, config, service(VIP, server.name))
                time.sleep(14)  # the sidecar looks after ten seconds
                assert (has_link(instance), actives(instance)) == (True, 1)
            wait_until(lambda: not has_link(instance), "it is detached", timeout=60)
            assert actives(instance) == 0
            assert found.stop() == 0
    assert {line["level"] for line in found.lines()} == {"info"}


def actives(instance: str) -> int:
    """Return the active connections of the only virtual server."""
    (server,) = status(instance)["virtual_servers"]
    return sum(real["active"] for real in server["real_servers"])


@pytest.mark.parametrize("loads", [True, False], ids=["sidecar loads", "no sidecar"])
def test_trace_sees_outcomes_where_nothing_else_needs_them(
    instance: str, cgroup: Path, config: Path, tmp_path: Path, *, loads: bool
) -> None:
    """A trace has it attached before it listens; the sidecar or the trace itself detaches it afterwards."""
    with listening("127.0.0.1") as (server,), following(config, instance, cgroup, service(VIP, server.name)) as found:
        if not loads:
            assert found.stop() == 0
        for number in range(2):
            output = tmp_path / f"trace-{number}"
            with tracing(instance, output, "--json", end=signal.SIGTERM):
                assert has_link(instance)
                assert dial(cgroup, VIP, 80, 3) == ["ok"] * 3
                wait_until(lambda file=output: len(outcomes(file)) == 3, "all are reported")  # type: ignore[misc]
            assert outcomes(output) == ["established"] * 3
        wait_until(lambda: not has_link(instance), "it is detached", timeout=60 if loads else 1)


def test_trace_leaves_it_to_services_that_need_it(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """One that was attached before the trace stays."""
    load(instance, cgroup)
    with tracing(instance, tmp_path / "trace", "--json", end=signal.SIGTERM):
        pass
    assert has_link(instance)


@pytest.mark.parametrize("attached", [True, False])
def test_upgrade_keeps_it_as_it_is(instance: str, cgroup: Path, config: Path, *, attached: bool) -> None:
    """Another build replaces the program in its link; without a link there is none afterwards."""
    more = "eject-after = 3" if attached else ""
    with listening("127.0.0.1") as (server,):
        tables = service(VIP, server.name, more=more)
        with following(config, instance, cgroup, tables):
            before = snapshot(instance).objects
        name_another_build(instance)
        with following(config, instance, cgroup, tables):
            after = snapshot(instance).objects
            assert status(instance)["datapath"]["effective"]
    assert before[OUTCOMES] != after[OUTCOMES]
    assert before.get(f"{OUTCOMES}_link") == after.get(f"{OUTCOMES}_link")
    assert (f"{OUTCOMES}_link" in after) is attached


@pytest.mark.parametrize("attached", [True, False])
def test_cgroup_that_is_made_anew_has_it_as_before(
    instance: str, cgroup: Path, config: Path, *, attached: bool
) -> None:
    """The sidecar attaches to the new cgroup what was attached to the previous one."""
    more = "eject-after = 3" if attached else ""
    with listening("127.0.0.1") as (server,):
        with following(config, instance, cgroup, service(VIP, server.name, more=more)) as found:
            remove(cgroup)
            cgroup.mkdir()
            found.wait_for(lambda: "programs attached again" in found.events(), "the sidecar attaches again")
            assert status(instance)["datapath"]["outcomes"] is attached
            assert status(instance)["datapath"]["effective"]
        assert "outcomes are not followed" not in found.events()


def test_refusal_of_the_kernel_stops_no_publication(instance: str, cgroup: Path, config: Path) -> None:
    """If it cannot be attached the pools are published nevertheless; log and status name the effect meanwhile."""
    with listening("127.0.0.1", "127.0.0.2") as (server, other):
        lean = service(VIP, server.name)
        with following(config, instance, cgroup, lean) as found:
            with foreign_exclusive(cgroup, AttachType.CGROUP_SOCK_OPS):
                reload(found, config, lean + service(DEAD, other.name, more="eject-after = 3"))
                found.wait_for(lambda: "outcomes are not followed" in found.events(), "it says so")
                assert dial(cgroup, DEAD, 80) == ["ok"]
                problem = clb("status", "--problems", "--instance", instance)
                assert problem.returncode == 1
                assert "outcomes not followed for s2" in " ".join(problem.stdout.split())
            wait_until(lambda: has_link(instance), "it is attached")
            assert clb("status", "--problems", "--instance", instance).returncode == 0
    (line,) = (line for line in found.lines() if line["event"] == "outcomes are not followed")
    assert line["error"].startswith(f"{WITHOUT_OUTCOMES}: cannot attach")
    assert line["level"] == "error"


def test_load_attaches_or_detaches_it_as_it_is_told(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """`--outcomes off` leaves it out of the first load, and detaches it later, except from under a trace."""
    load(instance, cgroup, "--outcomes", "off")
    assert not has_link(instance)
    for _ in range(2):
        load(instance, cgroup)
        assert has_link(instance)
    with tracing(instance, tmp_path / "trace", "--json", end=signal.SIGTERM):
        load(instance, cgroup, "--outcomes", "off")
        assert has_link(instance)
    load(instance, cgroup, "--outcomes", "off")
    assert not has_link(instance)
    assert status(instance)["datapath"]["effective"]
    name_another_build(instance)
    load(instance, cgroup, "--outcomes", "off")
    assert not has_link(instance)


def test_service_that_ejects_without_it_is_reported(instance: str, cgroup: Path, config: Path) -> None:
    """As the units run it, with `--outcomes off`: log, status and check name the fix, and `--outcomes on` is enough."""
    assert load_as_unit(instance, cgroup, options=("--outcomes", "off")).returncode == 0
    unit = without(BESIDE, config.parent, instance)
    with listening("127.0.0.1") as (server,):
        config.write_text(LEAN + service(VIP, server.name, more="eject-after = 3"))
        options = ["--config", str(config)]
        with sidecar(instance, None, config.parent, options, wrapper=as_unit(unit)) as found:
            fix = f"run: clb-discovery load --instance {instance} --cgroup {cgroup} --outcomes on"
            found.wait_for(lambda: fix in found.log.read_text(), "the log names the fix")
            assert dial(cgroup, VIP, 80) == ["ok"]
            assert status(instance)["datapath"]["outcomes"] is False
            for command in (("status", "--problems"), ("check", "--cgroup", str(cgroup))):
                assert fix in " ".join(clb(*command, "--instance", instance).stdout.split())
            load(instance, cgroup, "--outcomes", "on")
            assert status(instance)["datapath"]["outcomes"] is True
            assert clb("status", "--problems", "--instance", instance).returncode == 0
            assert "outcomes of connects" not in clb("check", "--instance", instance, "--cgroup", cgroup).stdout
            assert found.stop() == 0


def test_lean_service_of_the_units_needs_nothing(instance: str, cgroup: Path, config: Path) -> None:
    """With `--outcomes off` and a service that needs none, the unprivileged sidecar has nothing to report."""
    assert load_as_unit(instance, cgroup, options=("--outcomes", "off")).returncode == 0
    unit = without(BESIDE, config.parent, instance)
    with listening("127.0.0.1") as (server,):
        config.write_text(LEAN + service(VIP, server.name))
        options = ["--config", str(config)]
        with sidecar(instance, None, config.parent, options, wrapper=as_unit(unit)) as found:
            assert dial(cgroup, VIP, 80, 5) == ["ok"] * 5
            assert found.stop() == 0
    assert {line["level"] for line in found.lines()} == {"info"}


def test_traces_end_by_sigkill_is_cleaned_up(instance: str, cgroup: Path, config: Path, tmp_path: Path) -> None:
    """A trace that is killed leaves the program attached until the next look of a sidecar that loads."""
    with listening("127.0.0.1") as (server,), following(config, instance, cgroup, service(VIP, server.name)):
        command = [*COMMAND, "trace", "--json", "--instance", instance]
        with running(command, tmp_path / "trace") as process, Maps(Pins(instance)) as maps:
            wait_until(maps.is_heard, "it listens")
            process.kill()
            process.wait()
        assert has_link(instance)
        wait_until(lambda: not has_link(instance), "it is detached", timeout=60)
