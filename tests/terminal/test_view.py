"""Keys, and the part of an output that they show."""

from __future__ import annotations

import pytest

from clb_discovery.terminal import view
from clb_discovery.terminal.keyboard import keys
from clb_discovery.terminal.view import View


def pressed(*found: str, lines: int = 100, room: int = 10) -> View:
    """Return a view of so many lines after each key, with a screen that is drawn between them."""
    shown = View(has_keys=True)
    shown.window(lines, room)
    for key in found:
        shown.press(key)
        shown.window(lines, room)
    return shown


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ([], 0),
        ([view.DOWN], 1),
        ([view.UP], 0),
        ([view.DOWN, view.DOWN, view.UP], 1),
        ([view.PAGE_DOWN], 9),
        ([" ", view.PAGE_UP], 0),
        ([view.END], 90),
        ([view.END, view.DOWN], 90),
        ([view.END, view.HOME], 0),
        (["x"], 0),
    ],
)
def test_keys_scroll(found: list[str], first: int) -> None:
    """A page keeps one line, and neither end is passed."""
    assert pressed(*found).window(100, 10) == slice(first, first + 10)


def test_the_end_is_shown_when_the_output_shrinks() -> None:
    """Otherwise the screen would be empty."""
    shown = pressed(view.END)
    assert shown.window(20, 10) == slice(10, 20)
    assert shown.window(3, 10) == slice(0, 10)


def test_filter_is_typed_and_left() -> None:
    """`/` starts it with the present one, Enter sets it, Esc leaves it, and another Esc shows everything again."""
    shown = pressed(view.END, "/", *"wex", view.BACKSPACE, "q")
    assert (shown.filter, shown.ended, shown.footer()[:5]) == ("", False, "/weq_")
    shown.press(view.ENTER)
    assert (shown.filter, shown.window(100, 10)) == ("weq", slice(0, 10))
    assert "filter 'weq'" in shown.footer()
    for key in ("/", "b", view.ESCAPE):
        shown.press(key)
    assert shown.filter == "weq"
    shown.press(view.ESCAPE)
    assert shown.filter == ""


def test_q_ends() -> None:
    """Any other letter does nothing."""
    assert not pressed("Q").ended
    assert pressed("q").ended


def test_footer_shows_the_place_and_the_keys() -> None:
    """The place is shown only if there is more than the screen shows, and keys only if they can be read."""
    assert pressed(view.DOWN).footer() == "lines 2-11 of 100; arrows and page keys scroll, / filters, q quits"
    assert pressed(lines=3).footer() == "arrows and page keys scroll, / filters, q quits"
    without = View(has_keys=False)
    without.window(100, 10)
    assert without.footer() == "lines 1-10 of 100"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("q", ["q"]),
        ("\x1b[A\x1b[B", [view.UP, view.DOWN]),
        ("\x1bOA\x1bOB\x1bOH\x1bOF", [view.UP, view.DOWN, view.HOME, view.END]),
        ("\x1b[5~\x1b[6~\x1b[1~\x1b[4~\x1b[H\x1b[F", [view.PAGE_UP, view.PAGE_DOWN, *([view.HOME, view.END] * 2)]),
        ("\x1b", [view.ESCAPE]),
        ("/web\r", ["/", "w", "e", "b", view.ENTER]),
        ("\x7f\b\n", [view.BACKSPACE, view.BACKSPACE, view.ENTER]),
        ("\x1b[1;5Cé", ["\x1b[1;5C", "é"]),
        ("", []),
    ],
)
def test_keys_have_names(sent: str, expected: list[str]) -> None:
    """Terminals send the same key in different modes; an unknown sequence is one key, which means nothing."""
    assert keys(sent) == expected
