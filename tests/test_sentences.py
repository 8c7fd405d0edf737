"""Events of the log as sentences: readable, without empty fields, and with nothing lost."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from clb_discovery.sentences import SENTENCES, sentence
from tests.support.log_events import logged

NEED_NONE: Final = frozenset({"error", "reason", "times"})
"""Fields that every event may have without a sentence of its own."""


def test_every_sentence_is_of_an_event_and_names_all_its_fields() -> None:
    """What a line of JSON has is in the sentence, and no sentence waits for a field that no event has."""
    shown = [one for one in logged() if one.level != "debug"]
    assert set(SENTENCES) <= {one.event for one in shown}
    for event, _, fields in shown:
        if event in SENTENCES:
            assert set(re.findall(r"{(\w+)}", SENTENCES[event])) == fields, event
        else:
            assert fields <= NEED_NONE, event


@pytest.mark.parametrize(
    ("event", "fields", "expected"),
    [
        (
            "pool published",
            {
                "vip": "[fd00::1]:80", "service": "web", "change": "+1 -0 ~0", "added": ["[fd00::7]:80"],
                "removed": [], "changed": [], "settings": [], "servers": 3, "generation": 7,
            },
            "Pool of web at [fd00::1]:80: +1 -0 ~0; added [fd00::7]:80; 3 servers, generation 7",
        ),
        (
            "server ejected",
            {
                "service": "a", "vip": "10.64.0.1:8", "server": "10.0.0.7:8",
                "cause": "3 failed connects in a row", "probe_in": 4.2, "ejections": 1,
            },
            "10.0.0.7:8 of a at 10.64.0.1:8 is ejected: 3 failed connects in a row; probed in 4.2 s; ejection number 1",
        ),
        (
            "server returned",
            {"service": "web", "vip": "10.64.0.1:80", "server": "10.0.0.7:80", "out_for": None},
            "10.0.0.7:80 of web at 10.64.0.1:80 has returned",
        ),
        ("ready", {"virtual_servers": 0, "stale": 0}, "Ready: 0 virtual servers"),
        ("cannot publish", {"error": "the map is full"}, "Cannot publish: the map is full"),
        ("cannot publish", {"error": "full", "times": 20}, "Cannot publish (20 more times): full"),
        ("outcome heard", {"source": "srv:a", "counts": False, "shows": None, "of": [1, 2]},
         "Outcome heard (source srv:a, counts False, of 1, 2)"),
        ("of a library", {"logger": "asyncio"}, "Of a library (logger asyncio)"),
        ("unclosed [fd=3", {"logger": "a", "error": "no {x}"}, "Unclosed [fd=3: no {x} (logger a)"),
        ("[fd=3] has {logger} and {x}", {"logger": "a"}, "[fd=3] has {logger} and {x} (logger a)"),
    ],
)  # fmt: skip
def test_line_is_a_sentence(event: str, fields: dict[str, Any], expected: str) -> None:
    """Empty fields are left out, and fields without a place in the sentence follow it."""
    assert sentence(event, fields) == expected
