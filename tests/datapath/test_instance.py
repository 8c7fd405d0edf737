"""The lock of the one writer, also after its file was removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import BusyError, HostError

OTHER = """
import sys
from pathlib import Path
from clb_discovery.datapath import instance
instance.RUN = Path(sys.argv[1])
with instance.Instance("test").locked():
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory in the place of that in /run."""
    path = tmp_path / "run"
    monkeypatch.setattr("clb_discovery.datapath.instance.RUN", path)
    return path


def other(run: Path) -> subprocess.Popen[bytes]:
    """Start a process that holds the instance until its input ends, or fails."""
    command = [sys.executable, "-c", OTHER, str(run)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize("removed", [".", "test", "test/lock"])
def test_a_lock_that_was_removed_is_taken_again(run: Path, removed: str, *, loads: bool) -> None:
    """Then no other process can be a second writer, and finds the first."""
    instance = Instance("test")
    with instance.locked(loads=loads):
        assert not instance.lock_again()
        path = run / removed
        path.unlink() if path.is_file() else shutil.rmtree(path)
        assert instance.lock_again()
        assert not instance.lock_again()
        with other(run) as second:
            _, error = second.communicate()
            assert f"held by process {os.getpid()}" in error.decode()
        instance.write_state({"pid": 1})
    assert not instance.lock_again()
    with instance.locked():
        pass


def test_a_second_writer_meanwhile_ends_the_first(run: Path) -> None:
    """Both would write with their own knowledge of the maps."""
    instance = Instance("test")
    with instance.locked():
        shutil.rmtree(run)
        with other(run) as second:
            assert second.stdout is not None
            second.stdout.readline()
            with pytest.raises(BusyError, match=f"held by process {second.pid}"):
                instance.lock_again()
            second.communicate()
        assert instance.lock_again()


def test_a_directory_that_cannot_be_made_again_is_named(run: Path) -> None:
    """The state cannot be written either, and the reason is neither a full disk nor the state."""
    instance = Instance("test")
    with instance.locked():
        shutil.rmtree(run)
        run.write_text("")
        with pytest.raises(HostError, match=f"{run}/test was removed, and with it the lock"):
            instance.lock_again()
        run.unlink()
        assert instance.lock_again()
