"""The state that a sidecar has written of itself, by any version or cut short: what of it `status` can show."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from clb_discovery.documents.reported import SHAPES, usable
from clb_discovery.documents.status import Datapath, document
from clb_discovery.layout.installed import Installed
from clb_discovery.terminal.problems import Problems
from clb_discovery.terminal.screen import as_text
from clb_discovery.terminal.status import Status
from tests.documents.test_status import INFO, ONE, VIP4, published
from tests.support.contract import status_schema
from tests.support.json_schema import objections
from tests.support.statuses import CHANGED, source

NOW: Final = datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
POOL: Final = "srv:_redis._tcp.example"
CHECK: Final = {
    "address": "10.64.0.1",
    "port": 6379,
    "protocol": "tcp",
    "check": "tcp",
    "down": {"10.0.0.7:31001": "x"},
}
PART: Final = {"source": "consul:web", "priority": 0, "share": None}
GOOD: Final[Mapping[str, Any]] = {
    "pid": 99,
    "last_sync": CHANGED,
    "config_error": None,
    "metrics_error": "port in use",
    "unpublished": [{"service": "large", "source": "consul:large", "virtual_servers": 2, "reason": "no room"}],
    "parts": {POOL: [PART, PART]},
    "hosts_files": ["/etc/hosts"],
    "checks": [CHECK],
    "zone": {"name": "eu-1a", "auto": True, "error": None},
    "zones": {POOL: {"eu-1a": ["10.0.0.7:31001"]}},
    "sources": [source("consul:web", "retrying", "no route")],
}
STRANGE: Final[list[object]] = [
    5,
    "x",
    True,
    0.5,
    [5],
    ["x"],
    [None],
    [[]],
    [{}],
    {"x": 5},
    {"x": {"x": 5}},
    {"x": [5]},
]
"""Values of JSON, each of which is wrong for most keys, but hardly for all."""


def text_of(state: Mapping[str, Any], objection: str | None = None) -> str:
    """Return the document of a state as people see it; it is one of the schema, though its words may be others."""
    found = document(
        instance="default",
        version="1.2.3",
        kernel="6.1.0",
        datapath=Datapath(INFO, Installed(virtual={VIP4: published((ONE,))}), {}, None, 0),
        pid=99,
        state=state,
        state_error=objection,
    )
    assert objections(found, status_schema(), closed=False) == []
    return as_text(Status(found, NOW, all_sources=True), 200) + as_text(Problems(found), 200)


def test_a_state_of_this_version_is_whole() -> None:
    """All of its keys are used, and keys of a later version are no fault; nor are those that are missing."""
    assert usable({**GOOD, "later": 5}) == ({**GOOD, "later": 5}, None)
    assert usable({}) == ({}, None)
    assert GOOD.keys() - {"pid", "hosts_files"} == SHAPES.keys()
    assert "10.0.0.7:31001 (x)" in text_of(GOOD)


@pytest.mark.parametrize("key", sorted(SHAPES))
@pytest.mark.parametrize("value", STRANGE, ids=str)
def test_a_key_of_another_shape_costs_that_key_alone(key: str, value: object) -> None:
    """`status` shows the others, and names the one that it cannot read."""
    state, objection = usable({**GOOD, key: value})
    text = text_of(state, objection)
    if objection:
        assert state == {name: one for name, one in GOOD.items() if name != key}
        assert repr(key) in objection
        assert text.count(objection) == 2
    else:
        assert state[key] == value


@pytest.mark.parametrize("key", ["sources", "unpublished", "checks"])
@pytest.mark.parametrize("change", [None, 5, "x", [], {}], ids=str)
def test_every_key_of_an_entry_has_its_shape(key: str, change: object) -> None:
    """An entry without one of its keys, or with a strange value in it, is no error in `status`."""
    (entry,) = GOOD[key]
    for name in entry:
        for other in ({**entry, name: change}, {one: value for one, value in entry.items() if one != name}):
            text_of(*usable({**GOOD, key: [entry, other]}))


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-02T03:04:05", ""])
def test_a_moment_needs_a_zone(moment: str) -> None:
    """Ages are differences of moments with a zone; another text is not one."""
    assert usable({"last_sync": moment})[0] == {}
    assert usable({"sources": [source("consul:web") | {"last_success": moment}]})[0] == {}
