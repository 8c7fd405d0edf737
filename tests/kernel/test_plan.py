"""`plan`: the changes that a sidecar would make, with and without a data plane; `plan` itself changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clb_discovery.datapath.pins import Pins
from tests.support.dataplane import snapshot
from tests.support.knot import KnotServer
from tests.support.sidecar import clb, clb_here, sidecar, status

SRV = ("--srv", "_web._tcp.example=10.64.0.1:80")


@pytest.fixture
def knot() -> Iterator[KnotServer]:
    """Run a DNS server with three servers of a service."""
    with KnotServer() as server:
        serve(server, 3)
        yield server


def serve(knot: KnotServer, count: int) -> None:
    """Serve this many targets of one name."""
    lines = [f"_web._tcp SRV 0 1 80 t{number}\nt{number} A 10.0.0.{number}" for number in range(1, count + 1)]
    knot.write("\n".join(lines))


def ahead(instance: str, knot: KnotServer, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and the changes."""
    result = clb_here("plan", "--json", "--instance", instance, "--resolver", knot.address, *options)
    assert result.stderr == ""
    changes: list[dict[str, Any]] = json.loads(result.stdout)["changes"]
    return result.returncode, changes


def test_without_a_data_plane_everything_is_new(instance: str, knot: KnotServer) -> None:
    """Before the first start the plan has all that run would publish, and nothing is loaded."""
    code, (change,) = ahead(instance, knot, *SRV)
    assert (code, change["action"], change["address"], len(change["added"])) == (2, "add", "10.64.0.1", 3)
    assert not Pins(instance).home.exists()
    text = clb_here("plan", "--instance", instance, "--resolver", knot.address, *SRV)
    assert (text.returncode, text.stderr) == (2, "")
    assert text.stdout.splitlines()[0] == "+ 10.64.0.1:80/tcp  web (srv:_web._tcp.example)"
    assert text.stdout.splitlines()[-1] == "virtual servers: 1 to add; real servers: +3 ~0 -0"


def test_plan_and_run_agree(instance: str, cgroup: Path, tmp_path: Path, knot: KnotServer) -> None:
    """Beside a running sidecar the plan is empty; with new options it shows their changes, and makes none."""
    config = tmp_path / "clb.toml"
    with sidecar(instance, cgroup, tmp_path, [*SRV, "--resolver", knot.address]):
        before = snapshot(instance)
        assert ahead(instance, knot, *SRV) == (0, [])
        text = clb_here("plan", "--instance", instance, "--resolver", knot.address, *SRV)
        assert (text.returncode, text.stdout) == (0, "no changes\n")

        code, (change,) = ahead(instance, knot, *SRV, "--algorithm", "least-conn")
        assert (code, change["settings"]) == (2, {"algorithm": ["random", "least-conn"]})
        config.write_text('[[service]]\nname = "ldap"\nvip = "10.64.0.2"\nservers = ["10.0.0.5:389", "127.0.0.1:1"]\n')
        code, changes = ahead(instance, knot, "--config", str(config))
        assert [(change["action"], change["service"]) for change in changes] == [("remove", "web"), ("add", "ldap")]
        refused = clb_here("plan", "--instance", instance, "--config", config).stdout
        assert "! ldap: 127.0.0.1:1 is rejected: loopback addresses" in refused
        after = snapshot(instance)
        assert (after.objects, after.installed) == (before.objects, before.installed)
    config.write_text(f'resolver = ["{knot.address}"]\n{config.read_text()}')
    assert clb("run", "--once", "--config", config, "--instance", instance, "--cgroup", cgroup).returncode == 0
    assert [server["service"] for server in status(instance)["virtual_servers"]] == ["ldap"]
    assert ahead(instance, knot, "--config", str(config)) == (0, [])


def test_names_are_planned_as_run_publishes_them(instance: str, cgroup: Path, tmp_path: Path, knot: KnotServer) -> None:
    """Lines that would come into a hosts file, or leave the previous one, are shown; the files stay as they are."""
    one, other = tmp_path / "one", tmp_path / "other"
    for file in (one, other):
        file.write_text("127.0.0.1 localhost\n")
    ask = ("plan", "--json", "--instance", instance, "--resolver", knot.address, *SRV)
    coming = {"added": ["10.64.0.1 web.clb"], "removed": []}

    def planned(*options: str | Path) -> tuple[int, object]:
        result = clb_here(*ask, *options)
        return result.returncode, json.loads(result.stdout)["names"]

    assert planned("--hosts-file", one) == (2, [{"file": str(one), **coming}])
    assert one.read_text() == "127.0.0.1 localhost\n"
    with sidecar(instance, cgroup, tmp_path, [*SRV, "--resolver", knot.address, "--hosts-file", str(one)]):
        assert "10.64.0.1 web.clb\n" in one.read_text()
        assert planned("--hosts-file", one) == (0, [])
        leaving = {"file": str(one), "added": [], "removed": ["10.64.0.1 web.clb"]}
        assert planned("--hosts-file", other) == (2, [{"file": str(other), **coming}, leaving])
        assert planned() == (2, [leaving])
        assert "10.64.0.1 web.clb\n" in one.read_text()
    code = clb_here(*ask, "--hosts-file", tmp_path)
    assert (code.returncode, code.stdout, len(code.stderr.splitlines())) == (3, "", 1)


def test_answer_that_would_be_held_is_reported(instance: str, cgroup: Path, tmp_path: Path, knot: KnotServer) -> None:
    """For an answer that removes much, the plan shows the removals, and that they are held first."""
    with sidecar(instance, cgroup, tmp_path, [*SRV, "--resolver", knot.address]):
        pass
    serve(knot, 1)
    code, (change,) = ahead(instance, knot, *SRV)
    assert (code, change["held"]) == (2, True)
    assert [server["address"] for server in change["removed"]] == ["10.0.0.2", "10.0.0.3"]
    assert ahead(instance, knot, *SRV, "--hold", "0s")[1][0]["held"] is False


def test_discovery_that_is_down_is_no_plan(instance: str, knot: KnotServer) -> None:
    """Without an answer the changes are unknown: one line, exit code 1."""
    knot.purge()
    result = clb_here("plan", "--instance", instance, "--resolver", knot.address, *SRV)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "SERVFAIL" in result.stderr
