"""How the results of machines with systemd are evaluated, without a machine."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tests.vm.errors import VmError
from tests.vm.machine import Outcome
from tests.vm.systemd.__main__ import BOOTS, CHECKOUT, Boot, is_good, read_boot
from tests.vm.systemd.root import GUEST, SERVICES

REPORT = b"""<testsuites><testsuite>
<testcase classname="a" name="stop"><properties>
<property name="connects" value="200"/><property name="failed" value="0"/></properties></testcase>
<testcase classname="a" name="crash"><properties>
<property name="connects" value="300"/><property name="failed" value="2"/></properties><failure message=""/></testcase>
</testsuite></testsuites>"""
GOOD = Boot(Outcome(3, (), {}), connects=500, failed=0, seconds=1.0)


def write_disk(disk: Path, files: dict[str, bytes]) -> Path:
    """Write files as a machine does."""
    with tarfile.open(disk, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return disk


def test_scenarios_and_connects_are_counted(tmp_path: Path) -> None:
    """The numbers of scenarios, connects and failures of both come back from the disk."""
    disk = write_disk(tmp_path / "disk", {"tests.xml": REPORT})
    boot = read_boot(disk, tmp_path / "console.log", 2.0)
    assert boot == Boot(Outcome(1, ("a::crash",), {}), connects=500, failed=2, seconds=2.0)


def test_machine_that_did_not_finish_is_an_error(tmp_path: Path) -> None:
    """Without complete results there is an error that names the console."""
    for files in ({}, {"tests.xml": b"<tests"}):
        with pytest.raises(VmError, match=r"without results.*console"):
            read_boot(write_disk(tmp_path / "disk", files), tmp_path / "console.log", 2.0)


def test_only_proved_boots_are_good() -> None:
    """A boot is good if scenarios ran and none failed or was skipped, and if connects were made and none failed."""
    assert is_good(GOOD)
    for tests in (Outcome(2, ("a::crash",), {}), Outcome(2, (), {"a::crash": "why"}), Outcome(0, (), {})):
        assert not is_good(GOOD._replace(tests=tests))
    assert not is_good(GOOD._replace(failed=1))
    assert not is_good(GOOD._replace(connects=0))


def test_files_of_the_machine_are_there() -> None:
    """Each boot has its scenarios, and each service its unit."""
    assert all((CHECKOUT / GUEST / f"{name}.py").exists() for name in BOOTS)
    assert all((CHECKOUT / GUEST / "units" / f"{name}.service").exists() for name in SERVICES)
