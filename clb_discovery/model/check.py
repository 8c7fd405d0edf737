"""Active checks: what the sidecar asks real servers of, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from clb_discovery.model.address import Address, format_endpoint


class Request(NamedTuple):
    """What one check asks of a real server: a connect, or the answer to one HTTP request."""

    scheme: str = "tcp"
    """`tcp`, `http` or `https`."""
    host: str = ""
    """The name for the Host header and the certificate, or an IP address; IPv6 without brackets. Empty for `tcp`."""
    port: int = 0
    """0 for the port of the real server."""
    target: str = ""
    """Path and query. Empty for `tcp`."""

    @property
    def authority(self) -> str:
        """The Host header: the host, with the port if it has one of its own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    def __str__(self) -> str:
        """Return the text that the configuration accepts: `tcp`, `https://web.example:8443/health`."""
        return f"{self.scheme}://{self.authority}{self.target}" if self.host else self.scheme


@dataclass(frozen=True, slots=True)
class Check:
    """How the real servers of a service are checked."""

    request: Request = Request()  # noqa: RUF009 - immutable
    interval: float = 2.0
    """Seconds from the start of one check to the start of the next one."""
    timeout: float = 1.0
    """Seconds that one check may take as a whole; not more than the interval."""
    rise: int = 2
    """Checks in a row that must pass before a failed server is used again."""
    fall: int = 3
    """Checks in a row that must fail before a server is no longer used."""
    verify: bool = True
    """Whether `https` requires a valid certificate for the host."""

    def __str__(self) -> str:
        """Return `http://web.example/health every 2 s`."""
        return f"{self.request} every {self.interval:g} s"


class Target(NamedTuple):
    """One real server and its check. Virtual servers that have both in common share the check."""

    address: Address
    port: int
    """Where the check goes to, which may be another port than that of the real server."""
    check: Check

    def __str__(self) -> str:
        """Return `10.0.0.7:8080`."""
        return format_endpoint(self.address, self.port)
