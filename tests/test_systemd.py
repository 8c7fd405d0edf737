"""The systemd units: systemd accepts them, they fit the program and each other, and the sidecar has little exposure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from clb_discovery.cli.main import main
from clb_discovery.cli.parser import make_parser
from clb_discovery.datapath import executables
from clb_discovery.datapath.closer import SOCKET
from clb_discovery.datapath.instance import RUN
from clb_discovery.datapath.loading import bcc
from clb_discovery.datapath.units import cgroup_of, path_below
from clb_discovery.errors import HostError, UsageError
from clb_discovery.sidecar.daemon import CHECK_EVERY
from tests.programs.as_unit import read_unit
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe
from tests.support.sidecar import clb
from tests.support.units import (
    BESIDE,
    CLOSE,
    CLOSE_SOCKET,
    DATAPATH,
    DATAPATH_BESIDE,
    HANDOVER,
    HANDOVER_PATH,
    SIDECAR,
    UNITS,
    as_unit,
)

MOST_EXPOSURE: Final = 15
"""For the sidecar, in tenths, by `systemd-analyze security`."""
RUNNING: Final = (
    "clb-discovery-close.socket clb-discovery-datapath.service clb-discovery.service clb-discovery@*.service"
)
"""Units of the Debian package that can run."""
STARTED_BY_SYSTEMD: Final = (SIDECAR, BESIDE, DATAPATH, DATAPATH_BESIDE, CLOSE, HANDOVER)
STARTERS: Final = (CLOSE_SOCKET, HANDOVER_PATH)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the units as on a host with the program, and an application shop.service."""
    directory = tmp_path_factory.mktemp("units")
    program = directory / "clb-discovery"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in (*STARTED_BY_SYSTEMD, *STARTERS):
        for name in (unit.name, unit.name.replace("@.", "@shop.")):
            (directory / name).write_text(unit.read_text().replace("/usr/bin/clb-discovery", str(program)))
    (directory / "shop.service").write_text("[Service]\nExecStart=/bin/true\n")
    return directory


@pytest.mark.parametrize("unit", [*STARTED_BY_SYSTEMD, *STARTERS], ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(installed: Path, unit: Path) -> None:
    """`systemd-analyze verify` reports nothing about the unit if its program exists."""
    verify = subprocess.run(
        ["systemd-analyze", "verify", f"./{unit.name.replace('@.', '@shop.')}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=installed,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{installed}:"},
    )
    assert (verify.returncode, verify.stdout, verify.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", [SIDECAR, BESIDE], ids=lambda unit: unit.name)
def test_sidecar_is_little_exposed(installed: Path, unit: Path) -> None:
    """`systemd-analyze security` gives at most 1.5 of 10 to the unit that uses the network."""
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={MOST_EXPOSURE}"]
    path = installed / unit.name.replace("@.", "@shop.")
    assert subprocess.run([*command, path], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_units_fit_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """The program accepts every command line of a unit; a unit without options is wrong usage."""
    for unit in STARTED_BY_SYSTEMD:
        for line in re.findall(r"^Exec\w+=/usr/bin/clb-discovery (.*)$", unit.read_text(), re.MULTILINE):
            words = line.replace("%i", "shop").replace("--group clb-discovery", "--group root").split()
            assert make_parser().parse_args([word for word in words if not word.startswith("$")])
    settings = read_unit(SIDECAR)
    assert main(["run", "--loader", "none"]) == int(settings["RestartPreventExitStatus"])
    assert "no service to follow" in capsys.readouterr().err


def test_units_of_the_sidecar_are_patient() -> None:
    """They wait for READY=1 without limit, restart without limit, and give the main loop time."""
    for unit in (DATAPATH, DATAPATH_BESIDE):
        assert read_unit(unit)["StartLimitIntervalSec"] == "0"
    for unit in (SIDECAR, BESIDE):
        settings = read_unit(unit)
        assert settings["Type"] == "notify"
        assert (settings["TimeoutStartSec"], settings["StartLimitIntervalSec"]) == ("infinity", "0")
        assert settings["Restart"] == "always"
        assert int(settings["WatchdogSec"].removesuffix("s")) >= 20 * CHECK_EVERY


def test_stopping_takes_nothing_away() -> None:
    """No unit unloads anything when it stops; only maps of other layouts are removed, by a unit of their own."""
    for unit in STARTED_BY_SYSTEMD:
        assert "ExecStop" not in unit.read_text()
        assert all(
            "--other-layouts" in line for line in re.findall(r"^Exec.* unload.*$", unit.read_text(), re.MULTILINE)
        )


def test_both_units_of_the_sidecar_may_do_the_same() -> None:
    """Their settings are the same, except for the instance."""
    one, other = (read_unit(unit) for unit in (SIDECAR, BESIDE))
    start = list(one).index("User")
    restrictions = dict(list(one.items())[start : list(one).index("WantedBy")])
    assert {name: value.replace("default", "%i") for name, value in restrictions.items()} == {
        name: other[name] for name in restrictions
    }


def test_both_units_that_load_may_do_the_same() -> None:
    """They differ in the instance, the cgroup that they attach to, and their ordering."""
    one, other = (read_unit(unit) for unit in (DATAPATH, DATAPATH_BESIDE))
    of_service = dict(list(one.items())[list(one).index("Type") :])
    differ = {name for name in of_service if other.get(name) != one[name]}
    assert differ == {"EnvironmentFile", "ExecStart", "RemainAfterExit"}


def test_units_name_the_same_places() -> None:
    """Directories, sockets and the user are the same in the program and in all units."""
    loader, one, socket = (read_unit(unit) for unit in (DATAPATH, SIDECAR, CLOSE_SOCKET))
    (user,) = re.findall(r"^u (\S+) ", (UNITS / "clb-discovery.sysusers").read_text(), re.MULTILINE)
    assert user == one["User"] == one["Group"] == loader["SupplementaryGroups"] == socket["SocketGroup"]
    assert f"/run/{loader['RuntimeDirectory']}" == str(RUN)
    assert one["ReadWritePaths"] == f"-{RUN}/default"
    assert loader["RuntimeDirectoryPreserve"] == "yes"
    assert socket["ListenStream"] == str(SOCKET)
    assert Path(read_unit(HANDOVER_PATH)["PathChanged"]).parent == RUN / "%i"
    assert one["StateDirectory"] == "clb-discovery"


@pytest.mark.parametrize("unit", [SIDECAR, DATAPATH, *STARTERS, UNITS / "clb-discovery.sysusers"], ids=str)
def test_every_line_has_its_reason(unit: Path) -> None:
    """A comment is followed by at most a few settings, and every block of settings has one."""
    _, *blocks = re.split(r"^#.*\n(?!#)", unit.read_text(), flags=re.MULTILINE)
    assert blocks
    assert max(len(re.findall(r"^\w+=", block, re.MULTILINE)) for block in blocks) <= 9


@pytest.mark.parametrize("unit", [SIDECAR, BESIDE], ids=lambda unit: unit.name)
def test_example_of_options_in_the_unit_is_valid(unit: Path) -> None:
    """`run` accepts the example in the unit's comment."""
    (example,) = re.findall(r"^#\s+CLB_DISCOVERY_OPTIONS=(.+)$", unit.read_text(), re.MULTILINE)
    instance = f"test-{uuid4().hex[:8]}"
    try:
        result = clb("run", *example.split(), "--loader", "none", "--instance", instance)  # it confines its process
    finally:
        wipe(instance)
    assert result.returncode == 3, result.stderr  # options are valid, but nothing is loaded


def test_restrictions_of_the_unit_are_in_force() -> None:
    """The program that replaces systemd in tests really applies the restrictions of the unit."""
    loader = as_unit(DATAPATH)
    shown = subprocess.run([*loader, "cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
    fields = dict(line.split(":\t") for line in shown.splitlines() if ":\t" in line)
    net_admin, perfmon, bpf = 12, 38, 39  # from linux/capability.h
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 1 << net_admin | 1 << perfmon | 1 << bpf
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    for forbidden in (
        "import mmap; mmap.mmap(-1, 4096, prot=7)",
        "import socket; socket.socket(socket.AF_PACKET)",
        "open('/etc/clb-test', 'w')",
        "import os; os.mkdir('/run/clb-test')",
    ):
        assert subprocess.run([*loader, sys.executable, "-c", forbidden], check=False, stderr=-3).returncode != 0
    assert subprocess.run([*loader, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, stderr=-3).returncode != 0


def test_token_is_given_as_a_credential(tmp_path: Path) -> None:
    """The commented lines of the unit pass a token that only root can read to the sidecar, as a file."""
    token = tmp_path / "consul-token"
    token.write_text("secret")
    token.chmod(0o600)
    text = BESIDE.read_text().replace("/etc/clb-discovery", str(tmp_path))
    text, count = re.subn(
        r"^#(LoadCredential=consul-token|Environment=CONSUL_HTTP_TOKEN)", r"\1", text, flags=re.MULTILINE
    )
    assert count == 2
    unit = tmp_path / BESIDE.name
    unit.write_text(re.sub(r"^(BindReadOnlyPaths|ReadWritePaths)=.*\n", "", text, flags=re.MULTILINE))
    reads = "import os; print(open(os.environ['CONSUL_HTTP_TOKEN_FILE']).read(), os.geteuid() > 0)"
    result = subprocess.run([*as_unit(unit), sys.executable, "-c", reads], check=True, capture_output=True, text=True)
    assert result.stdout == "secret True\n"


def maintain(
    directory: Path, script: str, *arguments: str, enabled: Sequence[str] = (), policy: int | None = None
) -> list[str]:
    """Run a script of the Debian package as on a host with systemd; return its calls of systemctl, without questions.

    :param enabled: units that an administrator has enabled.
    :param policy: the exit code of policy-rc.d, if there is one.
    """
    called, systemd, asked = (directory / name for name in ("called", "systemd", "policy-rc.d"))
    systemd.mkdir()
    (directory / "systemctl").write_text(
        "#!/bin/sh\n"
        f'case "$2 {" ".join(enabled)} " in is-enabled*" $3 "*) exit 0;; is-enabled*) exit 1;; esac\n'
        f'echo "$*" >>{called}\n'
        "exit 1\n"
    )
    (directory / "systemctl").chmod(0o755)
    if policy is not None:
        asked.write_text(f"#!/bin/sh\nexit {policy}\n")
        asked.chmod(0o755)
    text = (UNITS.parent / "debian" / f"clb-discovery.{script}").read_text()
    for path, ours in (("/run/systemd/system", systemd), ("/usr/sbin/policy-rc.d", asked), ("/sys/fs/bpf", directory)):
        text = text.replace(path, str(ours))
    env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", text, script, *arguments], check=True, env=env)
    return called.read_text().splitlines() if called.exists() else []


@pytest.mark.parametrize(
    ("arguments", "enabled", "policy", "queued"),
    [
        (("configure",), (), None, []),
        (("configure",), (SIDECAR.name,), None, [f"start {SIDECAR.name}"]),
        (("configure", "1.0-1"), (), None, [f"try-restart {RUNNING}"]),
        (("configure", "1.0-1"), (SIDECAR.name,), 0, [f"try-restart {RUNNING}", f"start {SIDECAR.name}"]),
        (("configure", "1.0-1"), (SIDECAR.name,), 101, []),
    ],
)
def test_installing_the_package_does_not_wait_for_a_unit(
    tmp_path: Path, arguments: Sequence[str], enabled: Sequence[str], policy: int | None, queued: Sequence[str]
) -> None:
    """An upgrade restarts what runs, and enabled units start: both are only queued, unless a policy forbids it."""
    calls = maintain(tmp_path, "postinst", *arguments, enabled=enabled, policy=policy)
    assert calls == ["daemon-reload", *(f"--quiet --no-block {call}" for call in queued)]


def test_only_removing_the_package_stops_units(tmp_path: Path) -> None:
    """Removal stops all units of the package that can run; an upgrade stops none."""
    (tmp_path / "upgrade").mkdir()
    assert maintain(tmp_path / "upgrade", "prerm", "upgrade", "1.1-1") == []
    (stop,) = maintain(tmp_path, "prerm", "remove")
    assert stop.split()[0] == "stop"
    assert {*stop.split()[1:]} == {*RUNNING.split()}


@pytest.mark.parametrize(
    ("slice_", "unit", "path"),
    [
        ("system.slice", "shop.service", "system.slice/shop.service"),
        ("app-web.slice", "shop.service", "app.slice/app-web.slice/shop.service"),
        ("system-getty.slice", "getty@tty1.service", "system.slice/system-getty.slice/getty@tty1.service"),
        ("-.slice", "shop.service", "shop.service"),
        ("system.slice", "memory.service", "system.slice/_memory.service"),
    ],
)
def test_cgroup_of_a_unit(slice_: str, unit: str, path: str) -> None:
    """A unit is below its slice; a slice is below that of the first parts of its name."""
    assert path_below(slice_, unit) == Path(path)


@pytest.fixture
def slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let systemctl report a slice of our own for every unit; return its directory."""
    slice_ = f"clbtest{uuid4().hex[:8]}.slice"
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncase $* in *shop*) echo {slice_};; *bad*) exit 1;; esac\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setattr(executables, "PATH", f"{tmp_path}:{executables.PATH}")
    with made_cgroup() as beside:
        path = beside.parent / slice_
        yield path
        for cgroup in (*path.glob("*"), path):
            if cgroup.is_dir():
                cgroup.rmdir()


def test_cgroup_is_made_before_the_unit_is_started(slices: Path) -> None:
    """The cgroup is where systemd will look for it, and an existing one is left as it is."""
    made = cgroup_of("shop.service")
    assert made == slices / "shop.service"
    before = made.stat().st_ino
    assert cgroup_of("shop.service").stat().st_ino == before


def test_programs_of_the_callers_path_are_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If root runs a command with the PATH of another user, no program from there is started."""
    for name in ("systemctl", "python3", "python3.99"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises((HostError, UsageError)):
        cgroup_of("no-such-unit.mount")
    with suppress(HostError):
        bcc.require()
    assert not (tmp_path / "started").exists()
    assert all(Path(folder).is_absolute() for folder in executables.PATH.split(":"))


@pytest.mark.usefixtures("slices")
def test_unit_without_a_cgroup_is_named() -> None:
    """If systemd does not know a unit, or the unit has no cgroup, the error has the fix."""
    with pytest.raises(UsageError, match="is not a unit with a cgroup"):
        cgroup_of("other.mount")
    with pytest.raises(HostError, match="--cgroup PATH"):
        cgroup_of("bad.service")
