"""The cause of failed connects as people see it: in the status, the metrics, the log and the trace of one sidecar."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.support.cgroups import run_inside
from tests.support.moody import MoodyServer, moody_servers
from tests.support.process import free_port, wait_until
from tests.support.sidecar import clb_here, sidecar, status
from tests.support.spares import loaded_instance
from tests.support.tracing import lines, tracing
from tests.support.web import get

instance = loaded_instance

SOON, LATE, NEVER = "10.64.0.1", "10.64.0.2", "10.64.0.3"
IMPATIENT: Final = """
import socket, sys
for _ in range(3):
    try:
        socket.create_connection((sys.argv[1], 80), 0.25).close()
    except TimeoutError:
        pass
"""
"""A program that gives up each of three connects after a quarter of a second."""


def service(vip: str, servers: list[MoodyServer], after: str) -> str:
    """Return the table of a service with its own `silent-after`; the first of its servers is preferred.

    The first failure makes none suspect: each has to be seen.
    """
    names = ", ".join(f"{{ address = '{one.name}', priority = {place} }}" for place, one in enumerate(servers))
    table = f'[[service]]\nname = "of {vip}"\nvip = "{vip}:80"\nservers = [{names}]\n'
    return f'{table}suspicion = false\nsilent-after = "{after}"\n'


def first_of(instance: str, vip: str) -> dict[str, Any]:
    """Return the preferred server of a virtual server, as `status` shows it."""
    (found,) = (one for one in status(instance)["virtual_servers"] if one["address"] == vip)
    server: dict[str, Any] = found["real_servers"][0]
    return server


def counted(port: int, server: MoodyServer) -> set[tuple[str, float]]:
    """Return the causes of failures of a real server, and how often each was counted for its virtual servers."""
    return {
        (sample.labels["cause"], sample.value)
        for family in text_string_to_metric_families(get(port, "/metrics"))
        for sample in family.samples
        if sample.name == "clb_failures_by_cause_total" and sample.labels["real_server"] == server.name
    }


def test_silence_is_shown_wherever_people_look(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Each service has its own time, after which silence ejects its server, or none."""
    port, traced = free_port(), tmp_path / "trace"
    with moody_servers("127.0.0.1", "127.0.0.2") as servers:
        tables = service(SOON, servers, "100ms") + service(LATE, servers, "2s") + service(NEVER, servers, "off")
        (tmp_path / "clb.toml").write_text(f'real-range = ["127.0.0.0/8"]\n{tables}')
        servers[0].fall_silent()
        options = ["--config", str(tmp_path / "clb.toml"), "--metrics", f"127.0.0.1:{port}"]
        with sidecar(instance, cgroup, tmp_path, options) as found, tracing(instance, traced, "--json"):
            for vip in (SOON, LATE, NEVER):
                run_inside(cgroup, sys.executable, "-c", IMPATIENT, vip)
            none = {"refused": 0, "timed_out": 0, "silent": 0, "unreachable": 0}
            for vip, failures in ((SOON, 3), (LATE, 0), (NEVER, 0)):
                server = first_of(instance, vip)
                assert (server["failures"], server["causes"]) == (failures, none | {"silent": failures})
                assert server["state"] == ("ejected" if failures else "active")
            assert counted(port, servers[0]) == {("silent", 3)}
            assert "3 silent" in clb_here("status", "--instance", instance).stdout
            found.wait_for(lambda: "server ejected" in found.events(), "the ejection is logged")
            (line,) = (line for line in found.lines() if line["event"] == "server ejected")
            assert line["cause"] == "3 failed connects in a row, the last one unanswered"
            wait_until(lambda: len(lines(traced)) == 10, "all outcomes are traced")
    told = [(line["virtual_server"].partition(":")[0], line["outcome"], line["cause"]) for line in lines(traced)]
    expected = {
        (SOON, "failed", "silent"): 3,
        (SOON, "ejected", "silent"): 1,
        (LATE, "given-up", None): 3,
        (NEVER, "given-up", None): 3,
    }
    assert Counter(told) == expected


def test_a_changed_time_is_published_at_once(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A reload changes when silence counts, for connects that begin after it."""
    config = tmp_path / "clb.toml"
    with moody_servers("127.0.0.1", "127.0.0.2") as servers:
        servers[0].fall_silent()
        config.write_text(f'real-range = ["127.0.0.0/8"]\n{service(SOON, servers, "off")}')
        with sidecar(instance, cgroup, tmp_path, ["--config", str(config)]) as found:
            run_inside(cgroup, sys.executable, "-c", IMPATIENT, SOON)
            assert first_of(instance, SOON)["failures"] == 0
            config.write_text(f'real-range = ["127.0.0.0/8"]\n{service(SOON, servers, "100ms")}')
            found.process.send_signal(signal.SIGHUP)
            changed = ["silent-after off -> 100ms"]
            found.wait_for(lambda: changed in [line.get("settings") for line in found.lines()], "it is published")
            run_inside(cgroup, sys.executable, "-c", IMPATIENT, SOON)
            assert first_of(instance, SOON)["causes"]["silent"] == 3
