"""The contract of `status --json`: each document that a test gets is checked against the schema that we ship."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from clb_discovery import documents
from clb_discovery.documents.status import SCHEMA
from tests.support.json_schema import Schema, objections


@cache
def status_schema() -> Schema:
    """Return the schema in the package."""
    found: Schema = json.loads(resources.files(documents).joinpath(SCHEMA).read_text("utf-8"))
    return found


def read_status(text: str | bytes) -> dict[str, Any]:
    """Return a document from its JSON, after checking it."""
    document: dict[str, Any] = json.loads(text)
    assert_is_status(document)
    return document


def assert_is_status(document: Mapping[str, Any]) -> None:
    """Check that a document is as the schema describes it, without any other key, and that its parts agree."""
    assert objections(document, status_schema(), closed=True) == []
    datapath, sidecar = document["datapath"], document["sidecar"]
    assert datapath["features"].keys() == ({"errno", "loop", "options"} if datapath["loaded"] else set())
    assert (datapath["reason"] is None) is datapath["effective"]
    assert (sidecar["pid"] is not None) is sidecar["running"]
    assert all(one["relation"] in {"same", "above", "below"} for one in datapath["overlaps"])
    for source in document["sources"]:
        assert source["state"] in {"fresh", "retrying", "held"}
        assert source["reason"] or source["state"] == "fresh"
        assert source["state"] == "retrying" or not (source["stale"] or source["error"])
    for server in document["virtual_servers"]:
        assert server["protocol"] in {"tcp", "udp"}
        assert server["algorithm"] in {"random", "round-robin", "least-conn", None}
        assert {real["state"] for real in server["real_servers"]} <= {"active", "ejected"}
        assert not any(real["probing"] for real in server["real_servers"] if real["state"] == "active")
        assert not any(real["suspect"] for real in server["real_servers"] if real["state"] == "ejected")
