"""The systemd unit: systemd accepts it, and what it leaves of root's powers is enough."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from clb_discovery.cli import main
from clb_discovery.daemon import CHECK_EVERY
from clb_discovery.runtime import RUN
from tests.programs.as_unit import read_unit
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import dial, wipe
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.sidecar import COMMAND, sidecar

UNIT: Final = Path(__file__).parent.parent / "contrib" / "systemd" / "clb-discovery.service"
AS_UNIT: Final[tuple[str, ...]] = (sys.executable, "-m", "tests.programs.as_unit", str(UNIT))
VIPS: Final = "10.64.0.1:80,[fd00:64::1]:80"


@pytest.fixture
def instance() -> Iterator[str]:
    """Return the name of an instance that nobody else has; its data plane is removed at the end."""
    assert os.geteuid() == 0, "loading programs needs root: run the tests through sudo"
    name = f"test-{uuid4().hex[:8]}"
    yield name
    wipe(name)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Return a cgroup for ordinary clients."""
    with made_cgroup() as path:
        yield path


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about the unit, once its program is there."""
    settings = read_unit(UNIT)
    program = tmp_path / "clb-discovery"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(settings["ExecStart"].split()[0], str(program)))
    verify = subprocess.run(["systemd-analyze", "verify", copy], check=False, capture_output=True, text=True)
    assert (verify.returncode, verify.stdout, verify.stderr) == (0, "", "")


def test_unit_fits_the_sidecar(capsys: pytest.CaptureFixture[str]) -> None:
    """The unit names the real command, waits for READY=1 without limit, and restarts unless the usage is wrong."""
    settings = read_unit(UNIT)
    program, command, options = settings["ExecStart"].split()
    assert (Path(program).is_absolute(), Path(program).name) == (True, "clb-discovery")
    assert options == "$CLB_DISCOVERY_OPTIONS"
    assert main([command]) == int(settings["RestartPreventExitStatus"])
    assert "no service to follow" in capsys.readouterr().err
    assert settings["Type"] == "notify"
    assert (settings["TimeoutStartSec"], settings["StartLimitIntervalSec"]) == ("infinity", "0")
    assert settings["Restart"] == "always"
    assert f"/run/{settings['RuntimeDirectory']}" == str(RUN)
    assert settings["RuntimeDirectoryPreserve"] == "yes"
    assert settings["StateDirectory"] == "clb-discovery"
    seconds = int(settings["WatchdogSec"].removesuffix("s"))
    assert seconds >= 20 * CHECK_EVERY


def test_unit_says_what_to_write_into_its_options() -> None:
    """The example of the unit's comment is a command line that `run` takes."""
    (example,) = re.findall(r"^#\s+CLB_DISCOVERY_OPTIONS=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert main(["run", *example.split(), "--cgroup", "/no/such/cgroup"]) == 3  # read, and then stopped by this


def test_capabilities_and_filters_of_the_unit_are_in_force() -> None:
    """The wrapper of the next test really takes away what the unit forbids."""
    shown = subprocess.run([*AS_UNIT, "cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
    fields = dict(line.split(":\t") for line in shown.splitlines() if ":\t" in line)
    net_admin, perfmon, bpf = 12, 38, 39  # linux/capability.h
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 1 << net_admin | 1 << perfmon | 1 << bpf
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    for forbidden in ("import mmap; mmap.mmap(-1, 4096, prot=7)", "import socket; socket.socket(socket.AF_PACKET)"):
        assert subprocess.run([*AS_UNIT, sys.executable, "-c", forbidden], check=False, stderr=-3).returncode != 0
    assert subprocess.run([*AS_UNIT, "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode < 0


def status_as_unit(instance: str) -> object:
    """Return what status says under the unit's restrictions."""
    command = [*AS_UNIT, *COMMAND, "status", "--json", "--instance", instance]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found["datapath"]["effective"]


def test_sidecar_works_as_the_unit_runs_it(
    instance: str, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the unit's capabilities and filters alone the sidecar loads, proves itself, follows DNS, and stops.

    What it knows is then in the directory that systemd makes for it and names in STATE_DIRECTORY.
    """
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(state_dir))
    with KnotServer() as knot, listening("127.0.0.1", "127.0.0.2", "::1") as servers:

        def serve(*numbers: int) -> None:
            lines = [f"_web._tcp SRV 0 1 {servers[number].port} t{number}" for number in numbers]
            knot.write("\n".join([*lines, "t0 A 127.0.0.1", "t1 A 127.0.0.2", "t2 AAAA ::1"]))

        def assert_serves() -> None:
            assert dial(cgroup, "10.64.0.1", 80, 20) == dial(cgroup, "fd00:64::1", 80, 20) == ["ok"] * 20

        serve(0, 2)
        loopback = ["--real-range", "127.0.0.0/8", "--real-range", "::1/128"]
        options = ["--srv", f"_web._tcp.example={VIPS}", "--resolver", knot.address, *loopback]
        with sidecar(instance, cgroup, tmp_path, options, wrapper=AS_UNIT) as found:
            assert_serves()
            assert [server.taken() for server in servers] == [20, 0, 20]
            assert status_as_unit(instance) is True
            serve(0, 1, 2)
            found.wait_for(lambda: found.events().count("pool published") == 3, "the new server is published")
            assert_serves()
            assert servers[1].taken() > 0
            assert found.stop() == 0
        assert [line for line in found.lines() if line["level"] != "info"] == []
        assert "127.0.0.2" in (state_dir / f"{instance}.json").read_text()
        assert_serves()


def test_sidecar_follows_consul_by_name_as_the_unit_runs_it(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Looking up Consul's host name is within the unit's restrictions, and so is being refused there."""
    options = ["--consul", "http://localhost:9", "--service", f"web={VIPS}"]
    with sidecar(instance, cgroup, tmp_path, options, wrapper=AS_UNIT, ready=False) as found:
        found.wait_for(lambda: "source fails" in found.events(), "the source fails")
        (failure,) = (line for line in found.lines() if line["event"] == "source fails")
        assert "refused" in failure["error"]
        assert found.stop() == 0
