"""The filters of `trace`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clb_discovery.documents.trace import OUTCOMES, Line, Wanted, dropped

LINE = Line(1, 42, "a-long-program-", 7, bytes(20), "10.64.0.1:80", "10.0.0.1:80", "failed", 5)


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (Wanted(), True),
        (Wanted(services=frozenset({"web", "mail"})), True),
        (Wanted(services=frozenset({"mail"})), False),
        (Wanted(commands=frozenset({"a-long-program-of-mine"})), True),
        (Wanted(commands=frozenset({"a-long"})), False),
        (Wanted(outcomes=frozenset({"failed", "refused"})), True),
        (Wanted(outcomes=frozenset({"refused"})), False),
        (Wanted(services=frozenset({"web"}), outcomes=frozenset({"refused"})), False),
    ],
)
def test_filters(wanted: Wanted, *, taken: bool) -> None:
    """One value of each kind has to match. A program's name is compared in the length that the kernel keeps."""
    assert wanted.takes(LINE, "web") is taken


def test_unknown_names_match_no_filter() -> None:
    """An outcome without its decision has no program, and a VIP without a label has no service."""
    assert not Wanted(commands=frozenset({"x"})).takes(replace(LINE, command=None), "web")
    assert not Wanted(services=frozenset({"web"})).takes(LINE, None)


def test_the_line_of_dropped_connects_matches_every_filter() -> None:
    """The dropped connects may be among those that the filters select. The line has the keys of all others."""
    wanted = Wanted(frozenset({"web"}), frozenset({"x"}), frozenset({"failed"}))
    assert wanted.takes(dropped(1), None)
    assert dropped(1).document("now", None, None).keys() == LINE.document("now", "/", "web").keys()
    assert dropped(1).outcome not in OUTCOMES
