"""The lock of the one writer, also after its file was removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import BusyError, HostError

OTHER = """
import sys
from collections.abc import Callable
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


def remove(path: Path) -> None:
    """Remove a file, or a directory with everything in it."""
    path.unlink() if path.is_file() else shutil.rmtree(path)


def move_away(path: Path) -> None:
    """Rename a file or directory, so that the lock still exists elsewhere."""
    path.rename(path.with_name("old"))


def replace(path: Path) -> None:
    """Put a copy in the place of a file or directory, as a file system that is mounted over it can."""
    copy = path.with_name("copy")
    shutil.copy(path, copy) if path.is_file() else shutil.copytree(path, copy)
    move_away(path)
    copy.rename(path)


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize("lose", [remove, move_away, replace])
@pytest.mark.parametrize("lost", [".", "test", "test/lock"])
def test_a_lock_that_is_lost_is_taken_again(run: Path, lost: str, lose: Callable[[Path], None], *, loads: bool) -> None:
    """Then no other process can be a second writer, and finds the first."""
    instance = Instance("test")
    with instance.locked(loads=loads):
        assert not instance.lock_again()
        lose(run / lost)
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
        with pytest.raises(HostError, match=f"{run}/test was removed or replaced, and with it the lock"):
            instance.lock_again()
        run.unlink()
        assert instance.lock_again()
