"""`status --watch` on a terminal: keys scroll, filter and quit, and problems come first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.support.statuses import status, virtual_server
from tests.support.terminal import Terminal
from tests.terminal.test_problems import WRONG, showing, sixty_services

OPTIONS: Final = ("--watch", "--interval", "100ms")
HOME: Final = "\x1b[H"
"""Sent before each screen."""


def screen(terminal: Terminal) -> list[str]:
    """Return the lines of the last whole screen."""
    *_, last, _ = terminal.sent.split(HOME)
    return [line.rstrip() for line in terminal.without_control(last).splitlines()]


def test_problems_come_first_and_the_rest_by_scrolling(tmp_path: Path) -> None:
    """The first screen has the problems; page keys lead to the services without any; q quits with code 0."""
    with showing(sixty_services(), tmp_path, *OPTIONS) as terminal:
        terminal.read_until(r"q quits(.|\n)*q quits")
        lines = screen(terminal)
        assert len(lines) == 24
        named = {line.split()[0] for line in lines if line.startswith("svc-")}
        assert set(WRONG) <= named
        assert lines[-2] == "wrong  12 problems, in 10 of 60 services"
        assert lines[-1].startswith("lines 1-")
        terminal.type(b"\x1b[F")
        terminal.read_until(r"svc-57 +10\.64\.0\.57:80/tcp")
        terminal.type(b"\x1b[H")
        terminal.read_until(r"svc-57(.|\n)*instance default")
        terminal.type(b"q")
        assert terminal.end() == 0
        assert terminal.is_as_before
    assert "Traceback" not in terminal.text()


def test_filter_shows_services_by_a_part_of_their_name(tmp_path: Path) -> None:
    """It is typed after /, and the last line and the problems are those of the services that it shows."""
    with showing(sixty_services(), tmp_path, *OPTIONS) as terminal:
        terminal.read_until("q quits")
        terminal.type(b"/c-08\r")
        terminal.read_until(r"filter 'c-08'")
        terminal.read_until(r"wrong  1 problem, in 1 of 1 services\s+filter")
        terminal.type(b"/\x7f\x7f\x7f\x7fnone\r")
        terminal.read_until("no virtual server is of a service with 'none' in its name")
        terminal.type(b"\x1b")
        terminal.read_until(r"in its name(.|\n)*wrong  12 problems, in 10 of 60 services")
        terminal.type(b"q")
        assert terminal.end() == 0


def test_filter_is_text_and_no_pattern(tmp_path: Path) -> None:
    """Characters with a meaning in patterns stand for themselves."""
    document = status(virtual_servers=[virtual_server("web[1]", 1), virtual_server("web1", 2)])
    with showing(document, tmp_path, *OPTIONS) as terminal:
        terminal.read_until("q quits")
        terminal.type(b"/web[1]\r")
        terminal.read_until(r"filter 'web\[1\]'(.|\n)*filter 'web\[1\]'(.|\n)*filter 'web\[1\]'")
        shown = [line.split()[0] for line in screen(terminal) if "10.64.0." in line]
        assert shown == ["web[1]"]
        terminal.type(b"q")
        assert terminal.end() == 0


def test_changes_are_shown_while_nothing_is_typed(tmp_path: Path) -> None:
    """The document is read again at each interval."""
    document = sixty_services()
    with showing(document, tmp_path, *OPTIONS) as terminal:
        terminal.read_until("running, process 4711")
        document["sidecar"] |= {"running": False, "pid": None}
        written = tmp_path / "new.json"
        written.write_text(json.dumps(document))
        written.replace(tmp_path / "status.json")
        terminal.read_until("sidecar not running")
        terminal.type(b"q")
        assert terminal.end() == 0


@pytest.mark.parametrize("lines", [1, 2, 5, 24])
def test_small_screens(tmp_path: Path, lines: int) -> None:
    """The screen never has more lines than the terminal, which would scroll it away."""
    with showing(sixty_services(), tmp_path, *OPTIONS, "--problems", lines=lines) as terminal:
        terminal.read_until(r"(wrong|svc-)(.|\n)*(wrong|svc-)")
        assert len(screen(terminal)) <= lines
        terminal.type(b"q")
        assert terminal.end() == 0


def test_an_error_ends_it_and_restores_the_terminal(tmp_path: Path) -> None:
    """The error is one line on the ordinary screen."""
    with showing(sixty_services(), tmp_path, *OPTIONS) as terminal:
        terminal.read_until("q quits")
        (tmp_path / "status.json").unlink()
        assert terminal.end() == 1
        assert terminal.is_as_before
    assert "clb-discovery: internal error" in terminal.sent.rpartition("\x1b[?1049l")[2]
