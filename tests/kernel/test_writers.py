"""Two writers of the same maps that do not see each other's /run, as containers that share the BPF file system."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.writer_lock import WriterLock
from clb_discovery.errors import BusyError
from tests.support.loading import loading
from tests.support.mounts import in_own_mounts
from tests.support.sidecar import COMMAND, Sidecar, clb_here, load, pool, sidecar
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP: Final = "10.64.0.1"
OWN_RUN: Final = "mount -t tmpfs tmpfs /run"
HELD: Final = "have another writer"


def serving(directory: Path, name: str, server: str) -> list[str]:
    """Write a configuration with one static server; return the options that name it."""
    config = directory / f"{name}.toml"
    config.write_text(f'[[service]]\nname = "web"\nvip = "{VIP}:80"\nservers = ["{server}:80"]\n')
    return ["--config", str(config)]


@contextmanager
def first(instance: str, cgroup: Path | None, directory: Path) -> Iterator[Sidecar]:
    """Run a sidecar that publishes 10.0.0.1."""
    with sidecar(instance, cgroup, directory, serving(directory, "first", "10.0.0.1")) as found:
        yield found


def elsewhere(command: str, instance: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of ours with a /run of its own."""
    return in_own_mounts(OWN_RUN, *COMMAND, command, "--instance", instance, *options)


def assert_refused(result: subprocess.CompletedProcess[str]) -> None:
    """Check that a command ended with one line about the other writer."""
    assert (result.returncode, result.stderr.count("\n")) == (4, 1), result.stderr
    assert HELD in result.stderr


@pytest.mark.parametrize("loads", [True, False], ids=["own", "loaded"])
def test_second_writer_is_refused(instance: str, cgroup: Path, tmp_path: Path, *, loads: bool) -> None:
    """It, and `unload`, end without a change; once the first one is killed, it takes over at once."""
    load(instance, cgroup)
    options: list[str | Path] = ["--cgroup", cgroup, *loading()] if loads else ["--loader", "none"]
    second = ["--once", *options, *serving(tmp_path, "second", "10.0.0.2")]
    with first(instance, cgroup if loads else None, tmp_path) as found:
        assert_refused(elsewhere("run", instance, *second))
        assert_refused(elsewhere("unload", instance))
        assert pool(instance, VIP) == {"10.0.0.1:80": 1}
        found.kill()
        clb_here("load", "--instance", instance, "--cgroup", cgroup)  # with the record that `--loader none` reads
        script = f"mkdir /tmp/run-of-{instance}; cp -a /run/clb-discovery /tmp/run-of-{instance}; {OWN_RUN}"
        back = f"cp -a /tmp/run-of-{instance}/clb-discovery /run; rm -r /tmp/run-of-{instance}"
        result = in_own_mounts(f"{script}; {back}", *COMMAND, "run", "--instance", instance, *second)
        assert result.returncode == 0, result.stderr
    assert pool(instance, VIP) == {"10.0.0.2:80": 1}


def test_load_beside_a_writer_elsewhere(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """It may restore the programs, and leaves the maps to that writer."""
    with first(instance, cgroup, tmp_path):
        Pins(instance).link("clb_connect4").unlink()
        result = elsewhere("load", instance, "--cgroup", cgroup, *loading())
        assert (result.returncode, result.stderr) == (0, "")
        assert pool(instance, VIP) == {"10.0.0.1:80": 1}
        assert_refused(elsewhere("unload", instance))


def test_lock_is_taken_anew_when_the_pins_are(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Someone removed all pins of a running sidecar: it loads again, and is again the only writer."""
    with first(instance, cgroup, tmp_path) as found:
        before = Pins(instance).writer_lock.stat().st_ino
        Pins(instance).remove()
        found.wait_for(lambda: "programs attached again" in found.events(), "it has loaded again")
        assert Pins(instance).writer_lock.stat().st_ino != before
        assert_refused(elsewhere("unload", instance))


def test_second_is_refused_while_the_first_is_stopped(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A frozen container still holds the maps."""
    with first(instance, cgroup, tmp_path) as found:
        found.process.send_signal(signal.SIGSTOP)
        try:
            assert_refused(elsewhere("unload", instance))
        finally:
            found.process.send_signal(signal.SIGCONT)


def test_lock_of_pins_without_one(new_instance: str, cgroup: Path) -> None:
    """A version without the lock has loaded: nothing is locked, and nothing is refused."""
    load(new_instance, cgroup)
    pins = Pins(new_instance)
    with closing(WriterLock(pins)) as one, closing(WriterLock(pins)) as other:
        one.take()
        one.take()
        with pytest.raises(BusyError, match=HELD):
            other.take()
        assert not other.is_free()
        one.close()
        assert other.is_free()
        other.take()
    pins.writer_lock.rmdir()
    with closing(WriterLock(pins)) as one, closing(WriterLock(pins)) as other:
        one.take()
        other.take()
        assert other.is_free()


def test_another_layout_has_no_writer_of_its_own(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A container of another version is refused, too: both would remove each other's programs."""
    with first(instance, cgroup, tmp_path):
        program = "import runpy, sys; from clb_discovery.layout import structs; structs.LAYOUT += 1\n"
        program += "sys.argv = sys.argv[1:]; runpy.run_module('clb_discovery', run_name='__main__')"
        options = [*loading(), *serving(tmp_path, "second", "10.0.0.2")]
        command = ["run", "--instance", instance, "--cgroup", str(cgroup), "--once", *options]
        assert_refused(in_own_mounts(OWN_RUN, sys.executable, "-c", program, "clb-discovery", *command))
        assert pool(instance, VIP) == {"10.0.0.1:80": 1}


def test_two_that_start_together_load_one_after_the_other(new_instance: str, cgroup: Path, tmp_path: Path) -> None:
    """One is the writer from before its first load on, so no other fails in between or takes its maps away."""
    options = ["--instance", new_instance, "--cgroup", str(cgroup), *loading()]
    command = [*COMMAND, "run", *options, "--once", *serving(tmp_path, "first", "10.0.0.1")]
    script = f'{OWN_RUN}; exec "$@"'
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(["unshare", "--mount", "sh", "-ec", script, "sh", *command], stderr=subprocess.PIPE)
            )
            for _ in range(3)
        ]
        ended = [(process.communicate()[1].decode(), process.returncode) for process in started]
    assert {code for _, code in ended} <= {0, 4}, ended
    assert 0 in {code for _, code in ended}
    assert all("not in effect" not in text for text, _ in ended)
    assert pool(new_instance, VIP) == {"10.0.0.1:80": 1}
