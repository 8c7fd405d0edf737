"""The address of a Consul agent, as written in `--consul` and CONSUL_HTTP_ADDR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, urlsplit

from clb_discovery.errors import UsageError
from clb_discovery.model.servers import MAX_PORT

DEFAULT: Final = "127.0.0.1:8500"
"""The address of an agent if none is given (Consul's own default)."""

_LONGEST: Final = 1024
_SHOWN: Final = 120
_HELP: Final = "write it like http://127.0.0.1:8500, https://consul.example:8501, [::1]:8500 or unix:///run/consul.sock"


@dataclass(frozen=True, slots=True)
class ConsulAddress:
    """The HTTP interface of a Consul agent."""

    base: str
    """The start of every URL, without a slash at the end."""
    socket: str | None
    """Path of the Unix socket, if the agent listens on one."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port`, `[v6]:port`, `http://…`, `https://…` or `unix:///path`.

        :raises UsageError: if the text has none of these forms, or contains a password.
        """
        if "@" in text:
            raise UsageError(f"the Consul address contains a user name or password; {_HELP}, and set CONSUL_HTTP_TOKEN")
        if not text.isprintable() or " " in text or len(text) > _LONGEST:
            raise UsageError(f"the Consul address {text[:_SHOWN]!r} contains invalid characters; {_HELP}")
        if text.startswith("unix://"):
            path = text.removeprefix("unix://")
            if not path.startswith("/"):
                raise UsageError(f"the Consul address {text!r} has no absolute path; {_HELP}")
            return cls(base="http://localhost", socket=path)
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port
        except ValueError:
            raise UsageError(
                f"the Consul address {text!r} is invalid: bad host or port (1 to {MAX_PORT}); {_HELP}"
            ) from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or port == 0:
            raise UsageError(f"the Consul address {text!r} is invalid; {_HELP}")
        if port is None and "://" not in text:
            raise UsageError(f"the Consul address {text!r} has no port; {_HELP}")
        return cls(base=f"{parts.scheme}://{parts.netloc}{quote(parts.path.rstrip('/'), safe='/%')}", socket=None)

    @property
    def url(self) -> str:
        """The full address, as errors and status show it."""
        return self.base if self.socket is None else f"unix://{self.socket}"

    def __str__(self) -> str:
        return f"Consul at {self.url}"
