"""A sidecar that is started again whenever it was killed, as a service manager does."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from soak.history import History
from tests.support.sidecar import COMMAND

ENTER: Final = 'echo $$ >"$0" && exec "$@"'
READ_ONLY: Final = ("unshare", "--mount", "sh", "-c")
_READ_ONLY: Final = 'mount --bind /sys/fs/bpf /sys/fs/bpf && mount -o remount,bind,ro /sys/fs/bpf && exec "$@"'
KEPT_NICE: Final = -10
"""Niceness of the sidecar that runs all the time: it has to probe a server within a second, however busy others are."""
SOON: Final = 0.3
"""Seconds between two failing starts."""


class Keeper:
    """One instance of the sidecar."""

    def __init__(self, history: History, instance: str, folder: Path, options: Sequence[str], procs: Path) -> None:
        """Prepare; nothing runs yet.

        :param procs: the file `cgroup.procs` that it is added to.
        """
        self.instance = instance
        self.name = instance.split("-")[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.read_only = False
        """Whether the BPF file system is read-only for the next start."""
        self.nice = 0
        """Its niceness from the next start on."""
        self.may_end = False
        """Whether it may end by itself, for example without memory."""
        self.starved = False
        """Whether its memory has ever been limited."""
        self.violations: list[tuple[int, str]] = []
        self.starts = 0
        self.clock = folder / f"clock-{self.name}"
        self.clock.write_bytes(bytes(8))
        self.log = folder / f"sidecar-{self.name}.log"
        self._history = history
        self._preload = folder / "clock.so"
        self._options = options
        self._procs = procs
        self._stop = threading.Event()
        self._killed = threading.Event()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / f"notify-{self.name}"))
        self._notify.settimeout(0.05)
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        """Start it, and keep it running."""
        self._thread.start()

    def kill(self) -> None:
        """Kill it; it is started again at once."""
        if self.process and self.process.poll() is None:
            self._history.note(self.name, "is killed")
            self._killed.set()
            self.process.kill()

    def set_clock(self, seconds: int) -> None:
        """From now on shift its time of day by these seconds."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("=q", seconds))

    def stop(self) -> int:
        """End it as a service manager does, and return its exit code."""
        self._stop.set()
        if self.process:
            self.process.terminate()
        self._thread.join(30)
        return self.process.returncode if self.process else -1

    def objections(self) -> list[str]:
        """Return forbidden lines of its log: bugs, errors without a reason, tracebacks."""
        found: Counter[str] = Counter()
        for line in self.log.read_text(errors="replace").splitlines():
            if not line.startswith("{"):
                found[line] += not self.starved  # which may end Python anywhere
                continue
            said = json.loads(line)
            if said.get("error") == "" or "internal error" in str(said.get("error")) or "exception" in said:
                found[f"{said['event']}: {said.get('error')!r}"] += 1
        return [f"{self.instance} logs {count} times: {what}" for what, count in found.items() if count]

    def _keep(self) -> None:
        while not self._stop.is_set():
            with self._history.trouble(self.instance, again=0, more=0.5):
                if not self._up():
                    time.sleep(SOON)
                    continue
            assert self.process
            while self.process.poll() is None:
                self._heard()
            self._judge_end()

    def _up(self) -> bool:
        """Start it; return whether it has become ready."""
        environment = {**os.environ, "NOTIFY_SOCKET": self._notify.getsockname()}
        environment |= {"LD_PRELOAD": str(self._preload), "CLB_SOAK_CLOCK": str(self.clock)}
        command = [*COMMAND, "run", "--instance", self.instance, "--log-format", "json", *self._options]
        if self.read_only:
            command = [*READ_ONLY, _READ_ONLY, "sh", *command]
        with self.log.open("ab") as log:
            entering = ["nice", "-n", str(self.nice), "sh", "-c", ENTER, str(self._procs), *command]
            self.process = subprocess.Popen(entering, stdout=log, stderr=log, env=environment)
        self.starts += 1
        self._killed.clear()
        started = time.monotonic()
        while self.process.poll() is None:
            if b"READY=1" in self._heard():
                self._history.note(self.name, f"is ready after {time.monotonic() - started:.2f} s")
                return True
        self._judge_end()
        return False

    def _heard(self) -> bytes:
        with suppress(TimeoutError):
            return self._notify.recv(4096)
        return b""

    def _judge_end(self) -> None:
        assert self.process
        code = self.process.wait()
        moment = self._history.note(self.name, f"has ended with {code}")
        expected = self._stop.is_set() or self._killed.is_set() or self.may_end
        if not expected or (code not in {0, -signal.SIGKILL} and not self.may_end):
            self.violations.append((moment, f"the sidecar has ended by itself with {code}; see {self.log}"))
