"""Programs whose pins cannot be seen here, in front of ours: `load`, `status`, `check` and the sidecar report them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from clb_discovery.datapath import hidden
from clb_discovery.datapath.pins import BPFFS, Pins
from tests.support.dataplane import dial, publish, wipe
from tests.support.listeners import listening
from tests.support.loading import loading
from tests.support.mounts import in_own_mounts
from tests.support.process import wait_until
from tests.support.sidecar import COMMAND, Sidecar, clb_here, load, pool, sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP: Final = "10.64.0.1"
COVER: Final = f"mount -t bpf -o mode=700 bpf {BPFFS}"
OWN_MOUNTS: Final = ("unshare", "--mount")
SAME_NAME: Final = "have the name of this instance"


@pytest.fixture
def other() -> Iterator[str]:
    """Return the name of another instance, which is wiped at the end."""
    name = f"test-{uuid4().hex[:8]}"
    yield name
    wipe(name)


def command(name: str, instance: str, *options: str | Path) -> str:
    """Return a command of ours for a shell."""
    return shlex.join([*COMMAND, name, "--instance", instance, *map(str, options)])


def covered(script: str, *last: str | Path) -> subprocess.CompletedProcess[str]:
    """Run commands of a shell, and then one more, where a second BPF file system covers the first."""
    return in_own_mounts(f"{COVER}; {script}", *last)


def static(directory: Path, *vips: str, server: str = "10.0.0.1:80") -> list[str]:
    """Write a configuration with one static server behind these VIPs; return the options that name it."""
    config = directory / "clb.toml"
    vip = ",".join(f"{vip}:80" for vip in vips)
    service = f'[[service]]\nname = "web"\nvip = "{vip}"\nservers = ["{server}"]\n'
    config.write_text(f'real-range = ["127.0.0.0/8", "10.0.0.0/8"]\n{service}')
    return ["--config", str(config)]


def test_second_load_under_a_mount_that_hides_the_first(instance: str, cgroup: Path) -> None:
    """The programs of the first stay in front: `load`, `status` and `check` report them with the fix."""
    here = ["--instance", instance, "--cgroup", str(cgroup)]
    loaded = covered("true", *COMMAND, "load", *here, *loading())
    assert loaded.returncode == 3
    assert len(loaded.stderr.splitlines()) == 1
    assert f"without pins in {BPFFS}/clb-discovery run before ours in {cgroup} and {SAME_NAME}" in loaded.stderr
    assert f"run: umount -l {BPFFS}" in loaded.stderr
    again = f"{command('load', instance, '--cgroup', cgroup, *loading())} 2>/dev/null || true"
    found = json.loads(covered(again, *COMMAND, "status", "--json", "--instance", instance).stdout)
    assert not found["datapath"]["effective"]
    assert SAME_NAME in found["datapath"]["reason"]
    checked = covered(again, *COMMAND, "check", *here)
    assert checked.returncode == 3
    assert f"FAIL  data plane of instance {instance}: programs of clb-discovery without pins" in checked.stdout
    assert status(instance)["datapath"]["effective"]


def test_pins_that_were_moved(instance: str, cgroup: Path) -> None:
    """A second load is behind the programs of the first until their pins are removed."""
    moved = BPFFS / f"clb-test-{uuid4().hex[:8]}"
    publish(instance, {f"{VIP}:80": ["10.0.0.1:80"]})
    Pins(instance).home.rename(moved)
    try:
        result = clb_here("load", "--instance", instance, "--cgroup", cgroup)
        assert (result.returncode, SAME_NAME in result.stderr) == (3, True)
        publish(instance, {f"{VIP}:80": ["10.0.0.2:80"], f"{VIP}:81": ["10.0.0.2:80"]})
        reason = status(instance)["datapath"]["reason"]
        assert f"decide connects to {VIP}:80; " in reason
    finally:
        shutil.rmtree(moved)
    wait_until(lambda: status(instance)["datapath"]["effective"], "the kernel has freed the links")
    load(instance, cgroup)


def test_another_instance_that_is_hidden(instance: str, other: str, cgroup: Path, tmp_path: Path) -> None:
    """It matters only if it has a VIP of ours: a container may have an instance of its own on the same cgroup."""
    publish(instance, {f"{VIP}:80": ["10.0.0.1:80"]})

    def reason(vip: str) -> str | None:
        once = command("run", other, *loading(), "--cgroup", cgroup, *static(tmp_path, vip), "--once")
        result = covered(f"{once} >/dev/null 2>&1", *COMMAND, "status", "--json", "--instance", other)
        found: str | None = json.loads(result.stdout)["datapath"]["reason"]
        return found

    assert reason("10.64.0.2") is None
    assert f"and decide connects to {VIP}:80; " in (reason(VIP) or "")


def test_hidden_programs_of_another_layout(instance: str, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their VIPs cannot be read, so they may decide any connect."""
    moved = BPFFS / f"clb-test-{uuid4().hex[:8]}"
    Pins(instance).home.rename(moved)
    try:
        clb_here("load", "--instance", instance, "--cgroup", cgroup)
        monkeypatch.setattr(hidden, "_SHAPES", {(4, 4, 1): "clb_other"})
        assert "may decide any connect" in str(hidden.objection(Pins(instance), cgroup))
    finally:
        shutil.rmtree(moved)


def test_without_the_right_to_look_nothing_is_reported(instance: str, cgroup: Path) -> None:
    """Without CAP_SYS_ADMIN, as in the unit that loads, names of programs cannot be read."""
    drop = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    here = ["--instance", instance, "--cgroup", str(cgroup)]
    loaded = covered("true", *drop, *COMMAND, "load", *here, *loading())
    assert (loaded.returncode, loaded.stderr) == (0, "")


@contextmanager
def covering(process: int) -> Iterator[None]:
    """Cover the BPF file system of a process in a mount namespace of its own while the block runs."""
    there = ["nsenter", "--target", str(process), "--mount"]
    subprocess.run([*there, *COVER.split()], check=True)
    try:
        yield
    finally:
        subprocess.run([*there, "umount", "-l", BPFFS], check=True)


def reports(found: Sidecar) -> bool:
    """Return whether a sidecar has reported programs in front."""
    lines = [one for one in found.lines() if one["event"] == "programs are not in effect"]
    return any("run before ours" in line["reason"] for line in lines)


def test_running_sidecar_whose_pins_are_covered(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """It loads again, behind its own programs, and reports that."""
    with sidecar(instance, cgroup, tmp_path, static(tmp_path, VIP), wrapper=OWN_MOUNTS) as found:
        with covering(found.process.pid):
            found.wait_for(lambda: reports(found), "it is logged")
        assert found.stop() == 0


def test_running_sidecar_whose_pins_are_uncovered(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Once the mount is gone, it writes the first maps again."""
    with (
        listening("127.0.0.1", "127.0.0.2") as (first, second),
        sidecar(instance, cgroup, tmp_path, static(tmp_path, VIP, server=first.name), wrapper=OWN_MOUNTS) as found,
    ):
        with covering(found.process.pid):
            found.wait_for(lambda: "programs attached again" in found.events(), "it loads again")
            static(tmp_path, VIP, server=second.name)
            found.reload()
        found.wait_for(lambda: pool(instance, VIP) == {second.name: 1}, "the first maps have the new pool")
        assert dial(cgroup, VIP, 80) == ["ok"]
        assert status(instance)["datapath"]["effective"]
