"""The shape of `status --json`, on which scripts rely."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

_Types = Mapping[str, type | tuple[type, ...]]

_TEXT: Final = (str, type(None))
_DOCUMENT: Final[_Types] = {
    "instance": str,
    "version": str,
    "datapath": dict,
    "sidecar": dict,
    "sources": list,
    "virtual_servers": list,
    "unpublished": list,  # beyond the contract: services without room in the maps
    "empty_services": list,  # beyond the contract: services without real servers at any of their VIPs
}
_DATAPATH: Final[_Types] = {
    "loaded": bool,
    "loader": _TEXT,
    "cgroup": _TEXT,
    "kernel": str,
    "effective": bool,
    "reason": _TEXT,  # beyond the contract: why it is not in effect
    "features": dict,
    "records_lost": int,  # beyond the contract: sockets whose server could not be remembered, for lack of memory
    "overlaps": list,  # beyond the contract: other instances that serve the same VIPs
}
_SIDECAR: Final[_Types] = {"running": bool, "pid": (int, type(None)), "last_sync": _TEXT, "config_error": _TEXT}
_SOURCE: Final[_Types] = {
    "name": str,
    "state": str,
    "last_success": _TEXT,
    "error": _TEXT,
    "stale": bool,  # beyond the contract: whether the served set may be out of date
    "reason": _TEXT,  # as above: why it is not fresh
}
_VIRTUAL_SERVER: Final[_Types] = {
    "service": str,
    "source": str,
    "address": str,
    "port": int,
    "protocol": str,
    "algorithm": str,
    "generation": int,
    "connects": int,
    "refused": int,
    "real_servers": list,
    "listens_here": bool,  # beyond the contract: whether a program of this host listens on the VIP
}
_UNPUBLISHED: Final[_Types] = {"service": str, "source": str, "virtual_servers": int, "reason": str}
_REAL_SERVER: Final[_Types] = {
    "address": str,
    "port": int,
    "weight": int,
    "priority": int,
    "target_share": float,  # beyond the contract: its share of connects, by weights and ejections
    "state": str,
    "probing": bool,  # beyond the contract: ejected, and a connect is under way as a probe
    "connects": int,
    "active": int,
    "failures": int,
}


def assert_is_status(document: Mapping[str, Any]) -> None:
    """Compare keys, types and words with the contract."""
    _assert_has(document, _DOCUMENT)
    datapath, sidecar = document["datapath"], document["sidecar"]
    _assert_has(datapath, _DATAPATH)
    assert set(datapath["features"]) == ({"errno", "loop"} if datapath["loaded"] else set())
    assert all(type(feature) is bool for feature in datapath["features"].values())
    assert (datapath["reason"] is None) is datapath["effective"]
    for overlap in datapath["overlaps"]:
        _assert_has(overlap, {"instance": str, "cgroup": str, "relation": str, "vips": list})
    _assert_has(sidecar, _SIDECAR)
    assert (sidecar["pid"] is not None) is sidecar["running"]
    _assert_time(sidecar["last_sync"])
    for source in document["sources"]:
        _assert_has(source, _SOURCE)
        assert source["state"] in {"fresh", "retrying", "held"}
        assert source["reason"] is not None or source["state"] == "fresh"  # a fresh one has it if partly rejected
        assert source["state"] == "retrying" or not (source["stale"] or source["error"])
        _assert_time(source["last_success"])
    for service in document["unpublished"]:
        _assert_has(service, _UNPUBLISHED)
    for server in document["virtual_servers"]:
        _assert_has(server, _VIRTUAL_SERVER)
        assert server["protocol"] in {"tcp", "udp"}
        for real in server["real_servers"]:
            _assert_has(real, _REAL_SERVER)
            assert real["state"] in {"active", "ejected"}
            assert real["state"] == "ejected" or not real["probing"]


def _assert_has(found: Mapping[str, Any], types: _Types) -> None:
    assert list(found) == list(types)
    for name, expected in types.items():
        several = expected if isinstance(expected, tuple) else (expected,)
        assert type(found[name]) in several, f"{name} is {found[name]!r}"


def _assert_time(text: str | None) -> None:
    if text is not None:
        assert text.endswith("Z")
        datetime.fromisoformat(text)
