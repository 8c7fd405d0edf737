"""`check --offline` and `plan --offline`: a configuration is checked without any source, network or privilege."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from clb_discovery.cli.host_checks import LOOKED_AT, Finding
from clb_discovery.cli.main import main
from clb_discovery.errors import HostError
from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, RealServer, VirtualServer
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan

CONFIG: Final = """
consul = "http://192.0.2.1:8500"
resolver = ["192.0.2.1"]
[[service]]
name = "redis"
consul = "redis"
vip = "10.64.0.1:6379"
[[service]]
name = "web"
srv = "_web._tcp.example"
vip = "10.64.0.2:80"
algorithm = "least-conn"
[[service]]
name = "ldap"
vip = "10.64.0.3:389"
servers = ["10.0.0.3:389", "127.0.0.1:389"]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the path of a file with a service of each source; whatever uses the network, or privileges, fails."""

    def forbidden(*_: object) -> NoReturn:
        raise AssertionError("it uses the network")

    def unreadable(_: object) -> NoReturn:
        raise HostError("not allowed to look into /sys/fs/bpf; run as root")

    for name in ("connect", "connect_ex", "send", "sendto"):
        monkeypatch.setattr(socket.socket, name, forbidden, raising=False)
    lacking = Finding("privileges", HostError("CAP_BPF is missing; run as root"))
    monkeypatch.setattr("clb_discovery.cli.check.privileges", lambda: lacking)
    monkeypatch.setattr("clb_discovery.cli.check.others", lambda *_: [])
    monkeypatch.setattr("clb_discovery.cli.check.unreadable_files", lambda _: ())  # the user may exist here
    for command in ("check", "plan"):
        monkeypatch.setattr(f"clb_discovery.cli.{command}.read_installed", unreadable)
    file = tmp_path / "clb.toml"
    file.write_text(CONFIG)
    return str(file)


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the document of an offline plan that has changes."""
    assert main(["plan", "--offline", "--json", *arguments]) == 2
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_file_is_checked_without_privileges(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is that of the file; what was not checked is listed, with the VIPs of each source."""
    assert main(["check", "--offline", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"ok    configuration: {config}: 3 services",
        f"skip  this host: {LOOKED_AT} are not checked: CAP_BPF is missing; run as root",
        "skip  consul:redis: 10.64.0.1:6379; not queried",
        "skip  srv:_web._tcp.example: 10.64.0.2:80; not queried",
        "ok    static:ldap: 1 real server at 10.64.0.3:389",
        next(line for line in lines if line.startswith("warn  static:ldap: real server 127.0.0.1:389 ")),
        "all 2 work, 1 warning, 3 not checked",
    ]


def test_near_is_a_warning(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no effect on balancing, so `check` tells how to prefer servers instead."""
    assert main(["check", "--offline", "--config", config, "--near", "_agent"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "--near" in line)
    assert line.startswith("warn  configuration: --near has no effect: ")
    assert "a part with a lower priority" in line


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('[[service]]\nname = "api"\nsrv = "_api._tcp.example"\nvip = "10.64.0.2:80"\n', ["10.64.0.2:80 is claimed"]),
        ('[[service]]\nname = "api"\nsrv = "bad..name"\nvip = "10.64.0.9:80"\n', ["bad..name"]),
        ("[[service]]\nname = ", ["is not TOML", "line"]),
    ],
    ids=["clash", "name", "syntax"],
)
def test_mistakes_are_found(
    config: str, capsys: pytest.CaptureFixture[str], command: str, more: str, words: list[str]
) -> None:
    """Mistakes of syntax, names and VIPs end with exit code 2 and a line with the cause."""
    Path(config).write_text(CONFIG + more)
    assert main([command, "--offline", "--config", config]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_command_line_of_run_is_tried(config: str, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Options that matter only to `run` are taken; those that `run` refuses are refused, without privileges, too."""
    of_run = ["--state-dir", "/var/lib/x", "--metrics", "127.0.0.1:17100", "--on-remove", "reset", "--loader", "none"]
    assert main([command, "--offline", "--config", config, *of_run]) == {"check": 0, "plan": 2}[command]
    assert capsys.readouterr().err == ""
    assert main([command, "--offline", "--config", config, *of_run, "--cgroup", "/sys/fs/cgroup"]) == 2
    assert "--loader none ignores --cgroup" in capsys.readouterr().err


def test_static_service_without_a_usable_server_fails(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A pool that the file alone leaves empty fails the check."""
    Path(config).write_text(CONFIG.replace("10.0.0.3:389", "0.0.0.0:389"))
    assert main(["check", "--offline", "--config", config]) == 1
    assert "FAIL  static:ldap: no real server at 10.64.0.3:389" in capsys.readouterr().out


def test_plan_compares_with_nothing(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All virtual servers of the file are added, with the static real servers; the others are unknown."""
    document = planned(capsys, "--config", config)
    added = {change["service"]: len(change["added"]) for change in document["changes"]}
    assert added == {"redis": 0, "web": 0, "ldap": 1}
    assert [item["server"] for item in document["refused"]] == ["127.0.0.1:389"]
    assert sorted(document["unqueried"]) == ["consul:redis", "srv:_web._tcp.example"]
    assert document["unread"] == "not allowed to look into /sys/fs/bpf; run as root"


def test_plan_takes_real_servers_from_the_kernel(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the maps may be read, a source that is not queried keeps its installed servers, and settings are compared."""
    vip, one = parse_vip("10.64.0.2:80"), RealServer(0, parse_address("10.0.0.1"), 80, 1)
    web = VirtualServer(vip, "web", "srv:_web._tcp.example", Algorithm.RANDOM, (one,))
    installed = plan(Installed(), {vip: web}, complete=True).result
    monkeypatch.setattr("clb_discovery.cli.plan.read_installed", lambda _: installed)
    document = planned(capsys, "--config", config)
    (change,) = (change for change in document["changes"] if change["service"] == "web")
    assert (change["action"], change["settings"]) == ("change", {"algorithm": ["random", "least-conn"]})
    assert (change["added"], change["removed"]) == ([], [])
    assert document["unread"] is None


def test_plan_online_needs_the_maps(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --offline, maps that may not be read are an error as before."""
    assert main(["plan", "--config", config]) == 3
    assert "run as root" in capsys.readouterr().err


def test_catalog_is_not_queried(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In catalog mode nothing is known offline, which both commands report."""
    Path(config).write_text('consul = "http://192.0.2.1:8500"\n')
    assert main(["check", "--offline", "--config", config]) == 0
    assert "skip  catalog:consul: not queried" in capsys.readouterr().out
    assert main(["plan", "--offline", "--config", config]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no changes; sources: 1 not queried"
