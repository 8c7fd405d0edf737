"""The systemd units as tests run them: with all rights of the unit, or one less."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from clb_discovery.datapath.closer import SOCKET
from tests.programs.as_unit import USER, read_unit
from tests.support.pace import patient
from tests.support.sidecar import COMMAND

UNITS: Final = Path(__file__).parents[2] / "contrib" / "systemd"
DATAPATH: Final = UNITS / "clb-discovery-datapath.service"
DATAPATH_BESIDE: Final = UNITS / "clb-discovery-datapath@.service"
SIDECAR: Final = UNITS / "clb-discovery.service"
BESIDE: Final = UNITS / "clb-discovery@.service"
"""The sidecar of one application; it has the same rights as `SIDECAR`, for an instance with another name."""
CLOSE: Final = UNITS / "clb-discovery-close@.service"
CLOSE_SOCKET: Final = UNITS / "clb-discovery-close.socket"
HANDOVER: Final = UNITS / "clb-discovery-handover@.service"
HANDOVER_PATH: Final = UNITS / "clb-discovery-handover@.path"


def as_unit(unit: Path) -> tuple[str, ...]:
    """Return the prefix that runs a program as systemd would for the unit."""
    return (sys.executable, "-m", "tests.programs.as_unit", str(unit))


def without(unit: Path, directory: Path, instance: str, setting: str = "", word: str = "") -> Path:
    """Write a copy of a unit for an instance, without one word of one setting, and return it.

    :param word: as it is written there; the unit has to contain it.
    """
    text = unit.read_text()
    if setting:
        words = re.search(rf"^{setting}=(.*)$", text, re.MULTILINE)
        assert words, setting
        rest = words[1].split()
        rest.remove(word)
        text = text.replace(words[0], f"{setting}={' '.join(rest)}")
    copy = directory / unit.name
    copy.write_text(text.replace("%i", instance))
    return copy


def load_as_unit(
    instance: str, cgroup: Path, unit: Path = DATAPATH, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Load as the unit does, with a numeric group if the host does not have the unit's group."""
    here = ("--instance", instance, "--cgroup", str(cgroup), "--group", str(USER), "--loader", "object")
    return subprocess.run(
        [*as_unit(unit), *COMMAND, "load", *here, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a directory while the block runs, once no other process has locked it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def closing_service(unit: Path) -> Iterator[list[int]]:
    """Listen, and start the service for each connection as systemd does; yield the list of exit codes.

    The path of its socket is one for the whole host, so test processes take turns.
    """
    ended: list[int] = []

    def answer() -> None:
        with suppress(OSError):  # at the end
            while True:
                connection, _ = listener.accept()
                with connection:
                    command = [*as_unit(unit), *COMMAND, "close"]
                    fd = connection.fileno()
                    ended.append(subprocess.run(command, check=False, stdin=fd, stdout=fd).returncode)

    with locked(SOCKET.parent), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(SOCKET))
        try:
            SOCKET.chmod(0o666)
            listener.listen()
            thread = threading.Thread(target=answer)
            thread.start()
            yield ended
        finally:
            SOCKET.unlink()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def handing_over(instance: str, directory: Path) -> Iterator[list[int]]:
    """Start the service for each change of the file of its path unit, as systemd does; yield the list of exit codes."""
    unit = without(HANDOVER, directory, instance)
    words = read_unit(unit)["ExecStart"].split()[1:]
    watched = Path(read_unit(HANDOVER_PATH)["PathChanged"].replace("%i", instance))
    ended: list[int] = []
    stops = threading.Event()

    def watch() -> None:
        before = changed(watched)
        while not stops.wait(0.05):
            if (now := changed(watched)) != before:
                before = now
                ended.append(subprocess.run([*as_unit(unit), *COMMAND, *words], check=False).returncode)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield ended
    finally:
        stops.set()
        thread.join()


def changed(path: Path) -> tuple[int, int] | None:
    """Return what differs after each change of a file; None if it does not exist."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
