"""The page over given documents: the server of `--metrics`, without a sidecar and a kernel behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from clb_discovery.documents.shares import Member, target_shares
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.metrics.server import Site, listen, serving
from tests.support.contract import assert_is_status
from tests.support.statuses import status

HELD: Final = "3 of 4 real servers absent or out since 2026-01-02T03:04:05Z; kept until …"
_AT: Final = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
_TOWNS: Final = ("ams", "ber", "cph", "dub", "fra", "hel")
_KINDS: Final = ("auth", "billing", "cart", "images", "mail", "orders", "redis", "search", "stock", "users")


class Stage:
    """A server of `--metrics` whose document the test sets."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.show(document)
        self.asked = 0
        """Number of requests of /status.json."""
        self._released = threading.Event()
        self._released.set()
        self._ended = threading.Event()
        self._listener = listen("127.0.0.1", 0)
        self.origin = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()

    def show(self, document: dict[str, Any]) -> None:
        """Show another document from now on."""
        assert_is_status(document)
        self._document = document

    def hang(self) -> None:
        """Begin to leave requests without a response."""
        self._released.clear()

    def go_on(self) -> None:
        """Respond again."""
        self._released.set()

    def end(self) -> None:
        """Close the server, as a sidecar that ends does."""
        self.go_on()
        self._ended.set()
        self._thread.join()

    async def _serve(self) -> None:
        site = Site(self._report, lambda: True, Meters())
        async with serving(self._listener, site, lambda _problem, _reason: None):
            await asyncio.to_thread(self._ended.wait)
        self._listener.close()

    async def _report(self) -> Report:
        await asyncio.to_thread(self._released.wait)
        self.asked += 1
        for number, virtual in enumerate(self._document["virtual_servers"]):
            for real in virtual["real_servers"]:
                real["connects"] += round(real["target_share"] * (number % 9) * 8)
        return cast("Report", _Given(json.dumps(self._document).encode()))


class _Given(NamedTuple):
    """A report whose document is given."""

    document: bytes

    def status(self) -> bytes:
        """Return the document."""
        return self.document


@contextmanager
def staged(document: dict[str, Any]) -> Iterator[Stage]:
    """Show the document while the block runs."""
    found = Stage(document)
    try:
        yield found
    finally:
        found.end()


def real(address: str, *, ejected: bool = False, check_failure: str | None = None) -> dict[str, Any]:
    """Return a real server."""
    state = {"state": "ejected" if ejected else "active", "suspect": False, "probing": False}
    causes = {"refused": 3 if ejected else 0, "timed_out": 1 if ejected else 0, "silent": 0, "unreachable": 0}
    counters = {"connects": 1000, "active": 3, "failures": 4 if ejected else 0, "causes": causes}
    more = {**state, **counters, "check_failure": check_failure}
    return {"address": address, "port": 8080, "weight": 10, "priority": 0, "target_share": 0.0, **more}


def virtual(service: str, address: str, *servers: dict[str, Any]) -> dict[str, Any]:
    """Return a virtual server with its real servers, whose target shares are filled in."""
    members = [Member(one["priority"], one["weight"], one["state"] == "ejected") for one in servers]
    shares = target_shares(members)
    return {
        "service": service,
        "source": f"consul:{service}",
        "address": address,
        "port": 80,
        "protocol": "tcp",
        "algorithm": "random",
        "generation": 1,
        "connects": sum(one["connects"] for one in servers),
        "refused": 0,
        "needs_outcomes": True,
        "real_servers": [one | {"target_share": share} for one, share in zip(servers, shares, strict=True)],
        "listens_here": False,
        "check": None,
    }


def source(name: str, state: str = "fresh", reason: str | None = None, rejected: int = 0) -> dict[str, Any]:
    """Return a source."""
    retrying = state == "retrying"
    error = reason if retrying else None
    found = {"name": name, "state": state, "last_success": _AT, "error": error, "stale": retrying}
    return {**found, "reason": reason, "rejected": rejected}


def document(virtual_servers: list[dict[str, Any]], **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return a document in which nothing is wrong, but for the virtual servers and the given values."""
    sources = [source(name) for name in dict.fromkeys(one["source"] for one in virtual_servers)]
    return status(virtual_servers=virtual_servers, sources=sources) | more


def sixty() -> dict[str, Any]:
    """Return sixty services with automatic VIPs and IPv4 servers only, ten of them with problems of all kinds."""
    virtual_servers: list[dict[str, Any]] = []
    troubles: dict[str, dict[str, Any]] = {}
    unpublished = []
    for number, name in enumerate(f"{kind}-{town}" for kind in _KINDS for town in _TOWNS):
        servers = [real(f"10.0.{number}.{host}") for host in range(1, 2 + number % 3)]
        origin = f"consul:{name}"
        match number:
            case 7 | 33:
                servers = []
            case 11 | 29 | 58:
                servers += [real(f"10.0.{number}.9", ejected=True)]
            case 17:
                reason = "the maps are full: at most 65,536 virtual servers"
                unpublished = [{"service": name, "source": origin, "virtual_servers": 2, "reason": reason}]
            case 23 | 41:
                troubles[origin] = source(origin, "retrying", "Consul returned 503: no cluster leader")
            case 47:
                troubles[origin] = source(origin, "held", HELD)
            case 53:
                troubles[origin] = source(origin, "fresh", "10.64.0.7:80 is a VIP", rejected=1)
        virtual_servers += [
            virtual(name, f"10.64.{number}.1", *servers),
            virtual(name, f"fd00:64::{number + 1:x}"),
        ]
    sources = [troubles.get(name) or source(name) for name in dict.fromkeys(one["source"] for one in virtual_servers)]
    return document(virtual_servers, sources=sources, unpublished=unpublished)
