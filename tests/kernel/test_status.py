"""`status` on the real kernel: on a terminal, with --watch, in a pipe, and if nothing is loaded or not readable."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import PassiveHealth, RealServer
from tests.support.contract import assert_is_status
from tests.support.dataplane import dial
from tests.support.listeners import listening
from tests.support.pace import patient
from tests.support.plane import OBJECTS, VIP4, Plane, target_of, virtual_server
from tests.support.process import free_port
from tests.support.sidecar import COMMAND, clb, clb_here, sidecar, status
from tests.support.terminal import INTERRUPT, on_terminal

TERM: Final = {"TERM": "xterm-256color"}
ALTERNATE_SCREEN: Final = ("\x1b[?1049h", "\x1b[?1049l")
CURSOR: Final = ("\x1b[?25l", "\x1b[?25h")


def status_of(plane: Plane, *options: str) -> list[str]:
    """Return the command line."""
    return [*COMMAND, "status", "--instance", plane.instance, *options]


@pytest.mark.parametrize("end", ["Ctrl-C", "SIGTERM"])
def test_watch_shows_rates_and_leaves_the_terminal_as_it_was(plane: Plane, end: str) -> None:
    """It redraws one screen with rates, and Ctrl-C or SIGTERM restores screen, cursor and settings."""
    with listening("127.0.0.1") as (server,):
        plane.publish(virtual_server(VIP4, [server.name]))
        with on_terminal(status_of(plane, "--watch", "--interval", "200ms"), TERM) as terminal:
            terminal.read_until(r"0 connects .*0\.0/s")
            assert plane.client.dial(target_of(VIP4), 20) == ["ok"] * 20
            terminal.read_until(r"20 connects \([1-9][0-9.]*/s\)")
            terminal.read_until(r"20 connects \(0\.0/s\)")
            if end == "Ctrl-C":
                terminal.type(INTERRUPT)
            else:
                terminal.process.terminate()
            assert terminal.end() == (130 if end == "Ctrl-C" else 128 + signal.SIGTERM)
            assert terminal.is_as_before
        for on, off in (ALTERNATE_SCREEN, CURSOR):
            assert terminal.sent.count(on) >= 1
            assert terminal.sent.rindex(off) > terminal.sent.rindex(on)
        assert "Traceback" not in terminal.text()
        after = terminal.sent.rpartition(ALTERNATE_SCREEN[1])[2]
        assert after.strip() == ""


def test_watch_shows_ejections(plane: Plane) -> None:
    """When a real server fails, it is shown as ejected, and the last line reports it."""
    dead = f"127.0.0.1:{free_port()}"
    with listening("127.0.0.1") as (server,):
        plane.publish(virtual_server(VIP4, [server.name, dead], health=PassiveHealth()))
        with on_terminal(status_of(plane, "--watch", "--interval", "200ms"), TERM, columns=80) as terminal:
            terminal.read_until("connects")
            plane.client.dial(target_of(VIP4), 100)
            terminal.read_until(r"ejected\s")
            terminal.read_until(rf"test +1 of 2 real servers ejected after failed connects: {dead}")
            terminal.read_until(r"wrong +2 problems, in 1 of 1 services")
            terminal.type(INTERRUPT)
            assert terminal.end() == 130


def test_colours_are_for_terminals_that_want_them(plane: Plane) -> None:
    """A terminal gets colours unless NO_COLOR is set; a pipe never gets a control character."""
    with on_terminal(status_of(plane), TERM) as terminal:
        assert terminal.end() == 0
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.sent)
    with on_terminal(status_of(plane), {**TERM, "NO_COLOR": "1"}) as terminal:
        assert terminal.end() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.sent)
    piped = clb("status", "--instance", plane.instance, env={**TERM, "FORCE_COLOR": "1"})
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout.isascii()
    assert "\x1b" not in piped.stdout


def test_watch_in_a_pipe_is_lines(plane: Plane) -> None:
    """If the output cannot be redrawn, one status follows the other; with --json each is one line, with its time."""
    plane.publish(virtual_server(VIP4, []))
    with subprocess.Popen(
        status_of(plane, "--watch", "--json", "--interval", "100ms"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        found = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(patient(10)) == 130
    times = [document.pop("time") for document in found]
    assert times == sorted(set(times))
    for document in found:
        assert_is_status(document)
    with subprocess.Popen(
        status_of(plane, "--watch", "--interval", "100ms"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        heads = 0
        while heads < 3:
            line = process.stdout.readline()
            assert "\x1b" not in line
            heads += line.startswith("clb-discovery ")
        process.terminate()
        assert process.wait(patient(10)) == 128 + signal.SIGTERM


def test_nothing_loaded_names_what_is(plane: Plane, instance: str) -> None:
    """Status of an instance that is not loaded is shown, with the names of those that are."""
    text, document = clb_here("status", "--instance", instance), clb_here("status", "--json", "--instance", instance)
    assert (text.returncode, text.stderr) == (0, "")
    *_, note, _, last = text.stdout.splitlines()
    assert last.startswith("wrong  the data plane is not loaded")
    assert note.startswith("note   loaded on this host: ")
    assert plane.instance in note or ", and " in note  # other tests may have loaded more than are named
    assert (document.returncode, document.stderr) == (0, "")
    assert json.loads(document.stdout)["datapath"]["loaded"] is False
    unloaded = clb("unload", "--instance", instance)
    assert (unloaded.returncode, unloaded.stderr) == (0, "")
    assert unloaded.stdout.startswith(f"nothing was loaded as instance {instance}; loaded on this host: ")


def test_loaded_without_virtual_servers(plane: Plane) -> None:
    """An empty data plane is shown, and that no sidecar runs."""
    text = clb_here("status", "--instance", plane.instance)
    assert (text.returncode, text.stderr) == (0, "")
    assert ", in effect\n" in text.stdout
    assert text.stdout.splitlines()[-1] == "wrong  sidecar not running: pools will not be updated"


@pytest.mark.parametrize("_plane_of_module", OBJECTS[:1], indirect=True)  # status asks no program
def test_a_hundred_thousand_real_servers_have_a_short_status(plane: Plane) -> None:
    """64 tenants of 1,600 servers have a line each; `--service` selects one, with a table of 50 servers."""
    pool = tuple(RealServer(0, parse_address(f"10.0.{number >> 8}.{number & 255}"), 80, 1) for number in range(1_600))
    tenants = [virtual_server(f"10.65.0.{number}:80", pool) for number in range(64)]
    plane.publish(*(replace(one, service=f"tenant-{number}") for number, one in enumerate(tenants)))
    lines = clb_here("status", "--instance", plane.instance).stdout.splitlines()
    assert len(lines) < 80
    assert sum(bool(re.fullmatch(r"tenant-\d+ +10\.65\.0\.\d+:80/tcp +0  1,600", line)) for line in lines) == 64
    one = clb_here("status", "--instance", plane.instance, "--service", "tenant-7").stdout.splitlines()
    assert sum(line.startswith("  10.0.") for line in one) == 50
    assert "  and 1,550 more; status --json has all of them" in one


def test_problems_of_sixty_services_are_named_on_one_screen(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A real sidecar follows them: no servers, rejected servers, dead ones, and a DNS server that does not answer."""
    good, loopback = "10.0.0.1:80", "127.0.0.1:80"
    dead = [f"10.0.0.1:{free_port()}" for _ in range(2)]  # of which one stays in service
    kinds = {"web": (50, [good]), "empty": (3, [loopback]), "part": (3, [good, loopback]), "dead": (1, dead)}
    sources = {
        f"{kind}-{number}": f"servers = {json.dumps(servers)}"
        for kind, (count, servers) in kinds.items()
        for number in range(count)
    }
    sources |= {f"dns-{number}": f'srv = "_dns-{number}._tcp.example"' for number in range(3)}
    config = tmp_path / "clb.toml"
    config.write_text(
        'resolver = ["127.0.0.1:1"]\n'
        + "".join(
            f'[[service]]\nname = "{name}"\nvip = "10.66.0.{number}:80"\n{source}\n'
            for number, (name, source) in enumerate(sources.items())
        )
    )
    subprocess.run(["ip", "address", "replace", "10.0.0.1/32", "dev", "lo"], check=True)
    with sidecar(instance, cgroup, tmp_path, ["--config", str(config), "--no-suspicion"], ready=False) as found:
        found.wait_for(lambda: len(status(instance)["virtual_servers"]) >= 54, "pools are published")
        dial(cgroup, f"10.66.0.{list(sources).index('dead-0')}", 80, 20)
        with on_terminal([*COMMAND, "status", "--problems", "--instance", instance], TERM, 80, 24) as terminal:
            assert terminal.end() == 1
        lines = terminal.text().splitlines()
        assert len(lines) < 24
        subjects = {line.split()[0] for line in lines if not line.startswith((" ", "wrong"))}
        silent = {f"srv:_dns-{number}._tcp.example" for number in range(3)}
        assert subjects == silent | {name for name in sources if name.startswith(("empty", "part", "dead"))}
        assert clb_here("status", "--problems", "--service", "web-*", "--instance", instance).returncode == 0


@pytest.mark.parametrize("options", [[], ["--json"], ["--watch"], ["--watch", "--json"]])
def test_ordinary_user_gets_an_error(plane: Plane, options: list[str]) -> None:
    """Without privileges status is one line and exit code 3, watched or not."""
    nobody = (sys.executable, "-m", "tests.programs.as_nobody")
    command = [*nobody, "status", "--instance", plane.instance, *options]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))
    assert (result.returncode, result.stdout) == (3, "")
    assert re.fullmatch(r"clb-discovery: .*run as root.*\n", result.stderr)


def test_sidecar_does_not_import_rich(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The library for tables costs the sidecar neither memory nor time."""
    config = tmp_path / "clb.toml"
    config.write_text('[[service]]\nname = "web"\nvip = "10.64.0.1:80"\nservers = ["10.0.0.1:80"]\n')
    run = ["run", "--once", "--config", str(config), "--instance", instance, "--cgroup", str(cgroup)]
    command = [sys.executable, "-X", "importtime", "-m", "clb_discovery", *run]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **TERM})
    assert result.returncode == 0, result.stderr
    imported = re.findall(r"^import time:.*\| +(\S+)$", result.stderr, re.MULTILINE)
    assert "structlog" in imported
    assert not [name for name in imported if name.startswith("rich.")]  # "rich" itself may be a failed import
