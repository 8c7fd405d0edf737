"""`status --problems`: sixty services on a terminal of 80x24, its exit codes, and texts that do not fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from rich.cells import cell_len

from clb_discovery.terminal.problems import Problems
from clb_discovery.terminal.screen import as_text
from tests.support.contract import assert_is_status
from tests.support.statuses import source, status, virtual_server
from tests.support.terminal import Terminal, on_terminal

TERM: Final = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "LINES": ""}  # pytest-xdist sets a size of its own
LONG: Final = "10.0.0.7:31001: loopback addresses are rejected by default; allow with --real-range 127.0.0.0/8; " * 2
WRONG: Final = [f"svc-{number:02}" for number in (3, 8, 13, 21, 22, 34, 41, 55, 58, 59)]
"""The services with troubles of all kinds."""


def sixty_services() -> dict[str, Any]:
    """Return sixty services: pools that are empty, not published, half ejected; sources that fail, hold, reject."""
    empty, half, both, unpublished, down, old, held, part, long, last = WRONG
    virtual = [
        virtual_server(
            name,
            number,
            servers=0 if name == empty else 4,
            ejected={half: 2, both: 1, last: 3}.get(name, 0),
        )
        for number, name in enumerate(f"svc-{number:02}" for number in range(60))
        if name != unpublished
    ]
    states = {
        both: (
            "held",
            "2 of 6 real servers absent since 2026-01-02T03:03:35Z; kept until an answer confirms it",
        ),
        unpublished: ("held", "1 virtual servers are not published: clb_rows is full"),
        down: ("retrying", "503 from http://127.0.0.1:8500: No cluster leader"),
        old: ("retrying", "SERVFAIL from 10.0.0.53@53 (UDP)"),
        held: ("held", "4 of 5 real servers absent"),
        part: ("fresh", f"10.0.0.9:0: a port of 0 cannot be used; {LONG}"),
        long: ("fresh", LONG),
    }
    found = status(
        virtual_servers=virtual,
        sources=[source(f"consul:svc-{number:02}", *states.get(f"svc-{number:02}", ())) for number in range(60)],
        unpublished=[
            {
                "service": unpublished,
                "source": f"consul:{unpublished}",
                "virtual_servers": 1,
                "reason": "no room",
            }
        ],
    )
    assert_is_status(found)
    return found


@contextmanager
def showing(document: dict[str, Any], directory: Path, *options: str, lines: int = 24) -> Iterator[Terminal]:
    """Run `status` of a document on a terminal of 80 columns."""
    file = directory / "status.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "tests.programs.status_of", str(file), *options]
    with on_terminal(command, TERM, columns=80, lines=lines) as terminal:
        yield terminal


def test_ten_of_sixty_services_are_named_within_one_screen(tmp_path: Path) -> None:
    """With troubles of all kinds, each service stands with its trouble on one screen, and the exit code is 1."""
    with showing(sixty_services(), tmp_path, "--problems") as terminal:
        assert terminal.end() == 1
    lines = terminal.text().splitlines()
    assert len(lines) <= 23  # one is left for the prompt
    assert max(map(cell_len, lines)) <= 80
    assert sorted({line.split()[0] for line in lines[:-1]}) == WRONG
    assert lines[-1].startswith("wrong  12 problems, in 10 of 60 services; --service NAME has the whole texts")


def test_reasons_are_whole_where_they_fit(tmp_path: Path) -> None:
    """On a longer screen, for a single service, and in a pipe, no text is cut."""
    for options, height in (([], 60), (["--service", WRONG[8]], 24)):
        with showing(sixty_services(), tmp_path, "--problems", *options, lines=height) as terminal:
            assert terminal.end() == 1
        assert "".join(LONG.split()) in "".join(terminal.text().split())
    assert LONG.strip() in as_text(Problems(sixty_services()), 1_000)


def test_no_problem_is_one_line_and_exit_code_0(tmp_path: Path) -> None:
    """The same holds for a selection of healthy services."""
    with showing(sixty_services(), tmp_path, "--problems", "--service", "svc-0[0-2]") as terminal:
        assert terminal.end() == 0
    assert terminal.text().splitlines() == ["ok     virtual servers 3, real servers 12"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--problems", "--json"], 1),
        (["--json"], 0),
        ([], 0),
        (["--service", "svc-5?"], 0),
        (["--service", "svc-00", "--json", "--problems"], 0),
        (["--service", "scv-08"], 1),
    ],
)
def test_exit_codes(tmp_path: Path, options: list[str], code: int) -> None:
    """Only `--problems` makes problems an exit code; a name that matches nothing is one, too, with nearest names."""
    with showing(sixty_services(), tmp_path, *options) as terminal:
        assert terminal.end() == code
    if "scv-08" in options:
        assert "no service or source matches 'scv-08'; did you mean svc-08" in terminal.text()


def test_problems_as_json_are_those_only(tmp_path: Path) -> None:
    """The document has the services and sources with a problem, and is a document like any other."""
    with showing(sixty_services(), tmp_path, "--problems", "--json") as terminal:
        terminal.end()
    found = json.loads(terminal.text())
    assert_is_status(found)
    assert {one["service"] for one in (*found["virtual_servers"], *found["unpublished"])} == set(WRONG)


def test_nothing_loaded_is_a_problem(tmp_path: Path) -> None:
    """Status is shown in each form; only with `--problems` the exit code is 1."""
    found = status()
    found["datapath"] |= {"loaded": False, "effective": False, "reason": "the data plane is not loaded", "features": {}}
    for options in ([], ["--json"], ["--problems"], ["--service", "web"]):
        with showing(found, tmp_path, *options) as terminal:
            assert terminal.end() == int("--problems" in options)
        assert "is not loaded" in terminal.text()


@pytest.mark.parametrize("width", [1, 10, 20, 40, 80])
def test_absurd_widths_do_no_harm(width: int) -> None:
    """Long and untrusted names are folded and escaped on the narrowest screen."""
    name = "\x1b[31m" + "service" * 20
    text = as_text(Problems(status(virtual_servers=[virtual_server(name, servers=0)])), width)
    assert "\x1b" not in text
    assert "norealservers:connectsarerefused" in "".join(text.split())


def test_thousands_of_problems_are_counted() -> None:
    """If every source of a thousand services fails, the list is short, and the last line has the number."""
    sources = [source(f"consul:{number}", "retrying", "connection refused") for number in range(1_000)]
    lines = as_text(Problems(status(sources=sources)), 80).splitlines()
    assert len(lines) < 500
    assert lines[-2:] == ["and 800 more; status --json has all of them", "wrong  1,000 problems"]
