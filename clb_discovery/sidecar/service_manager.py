"""Reports to systemd, by the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from clb_discovery.sidecar.announcer import Announcer

_PATIENCE: Final = 1.0  # seconds to wait if the service manager does not read its messages


class ServiceManager:
    """The service manager that started the sidecar; without one, nothing happens."""

    def __init__(self, announcer: Announcer, environment: Mapping[str, str] = os.environ) -> None:
        """Take the variables of sd_notify(3) and sd_watchdog_enabled(3)."""
        self._announcer = announcer
        self._address = environment.get("NOTIFY_SOCKET")
        self.watchdog = _watchdog(environment)
        """Seconds within which `alive` has to be called each time, or None."""
        self._is_ready = False
        self._knows = False
        """Whether it knows that; it does not while a report of it could not be sent."""
        self._socket: socket.socket | None = None  # one for all messages: later there may be no descriptor
        self._status: str | None = None
        """The status line that it has."""

    def status(self, summary: str, *, ready: bool) -> None:
        """Report the status line, and that units after the sidecar may start, until both have been sent."""
        self._is_ready |= ready
        lines = ["READY=1"] if self._is_ready and not self._knows else []
        if (summary != self._status or lines) and self._send(*lines, f"STATUS={summary}"):
            self._knows, self._status = self._is_ready, summary

    def reloading(self) -> None:
        """Report a reload; `Type=notify-reload` needs its time in the same message (systemd 253)."""
        if self._is_ready:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Report the end of the reload, whatever its outcome."""
        if self._is_ready:
            self._knows = self._send("READY=1")

    def alive(self) -> None:
        """Report to the watchdog that the main loop runs."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Report that the sidecar stops, which is the last message."""
        self._send("STOPPING=1")
        if self._socket:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        """Send a message; return whether there is nothing to send again."""
        if not self._address:
            return True
        trouble = None
        # A leading @ stands for the NUL of the abstract namespace, unix(7).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.settimeout(_PATIENCE)
            self._socket.sendto("\n".join(lines).encode(), address)  # not connected: it may be bound again
        except OSError as error:  # following discovery matters more than reports
            trouble = f"{self._address}: {error}"
        self._announcer.trouble("cannot notify the service manager", trouble)
        return trouble is None


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return the seconds of `WatchdogSec=`, if it is meant for this process."""
    microseconds, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or process not in {None, str(os.getpid())}:
        return None
    return int(microseconds) / 1e6 or None
