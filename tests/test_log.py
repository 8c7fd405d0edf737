"""Log lines by destination, and text that no log line contains."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.log_events import events, named
from tests.support.pace import patient
from tests.support.terminal import on_terminal

PROGRAM = """
import logging, sys
import structlog
from clb_discovery import log
log.configure(sys.argv[1], sys.argv[2])
own = structlog.stdlib.get_logger()
own.debug("a"); own.info("b"); own.warning("c", name="x\\x1b[2J", some=["\\x07"]); own.error("d", url="http://user:secret@host/")
logging.getLogger("library").warning("of %s", "a library")
logging.getLogger("library").info("chatter")
def fail(token):
    raise ValueError("broken")
try:
    fail("secret-token")
except ValueError as error:
    own.error("e", exc_info=error)
"""


def logged(path: Path, form: str, level: str = "debug", journal: str | None = None) -> list[str]:
    """Return the lines that the program logs into a file.

    :param journal: the value of JOURNAL_STREAM; `{}` in it stands for the identity of the file.
    """
    with path.open("wb") as output:
        stat = os.fstat(output.fileno())
        env = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
        if journal is not None:
            env["JOURNAL_STREAM"] = journal.format(f"{stat.st_dev}:{stat.st_ino}")
        command = [sys.executable, "-c", PROGRAM, form, level]
        subprocess.run(command, check=True, stderr=output, env=env)
    return path.read_text().splitlines()


@pytest.mark.parametrize("nobody_reads", [False, True])
def test_a_line_that_cannot_be_written_is_dropped(*, nobody_reads: bool) -> None:
    """A full disk, or a pipe whose reader has gone, ends no sidecar."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe, Path("/dev/full").open("wb") as full:
        output = pipe if nobody_reads else full
        subprocess.run([sys.executable, "-c", PROGRAM, "json", "debug"], check=True, stderr=output)


ENDLESS = """
import sys
import structlog
from clb_discovery import log
log.configure("json", "info")
for number, length in enumerate(sys.stdin):
    structlog.stdlib.get_logger().info("a line", number=number, long="x" * int(length))
    print(number, flush=True)
"""


def stopped_terminal() -> tuple[int, int]:
    """Return a terminal after Ctrl-S."""
    ours, its = pty.openpty()
    tty.setraw(its)
    termios.tcflow(its, termios.TCOOFF)
    return ours, its


def full_terminal() -> tuple[int, int]:
    """Return a terminal, such as one of ssh, that nothing reads."""
    ours, its = pty.openpty()
    tty.setraw(its)
    return ours, its


def journal() -> tuple[int, int]:
    """Return a stream as that of journald."""
    return tuple(one.detach() for one in socket.socketpair())  # type: ignore[return-value]


@pytest.mark.parametrize("length", [100, 20_000])
@pytest.mark.parametrize("opened", [os.pipe, journal, stopped_terminal, full_terminal])
def test_a_reader_that_is_stuck_stops_nothing(opened: Callable[[], tuple[int, int]], length: int) -> None:
    """Lines are lost then. When it reads again, their number comes before the next line, which is whole."""
    ours, its = opened()
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=its) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        began = 0.0
        for number in range(500):
            process.stdin.write(b"%d\n" % length)
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 30)[0], f"line {number} waits for the reader"
            assert int(process.stdout.readline()) == number
            began = began or time.monotonic()  # when Python has started
        assert time.monotonic() - began < patient(10)
        if opened is stopped_terminal:
            termios.tcflow(its, termios.TCOON)
        shown = read(ours)
        process.stdin.write(b"0\n")  # short enough for any room
        process.stdin.close()
        while process.poll() is None:
            shown += read(ours)
        shown += read(ours)
        os.close(its)
        os.close(ours)
    *before, notice, last = shown.decode().splitlines()
    whole = [json.loads(line)["number"] for line in before if line.endswith("}")]
    assert whole == list(range(len(whole)))
    assert len(whole) >= len(before) - 1  # one may be torn
    assert json.loads(notice)["event"] == "lines of the log were lost"
    assert json.loads(notice)["count"] == 500 - len(whole)
    assert json.loads(last)["number"] == 500


def read(descriptor: int) -> bytes:
    """Return what can be read until nothing comes for a moment."""
    found = b""
    while select.select([descriptor], [], [], 0.2)[0] and (piece := os.read(descriptor, 65536)):
        found += piece
    return found


def test_a_reader_that_is_slow_loses_nothing_of_a_burst() -> None:
    """It gets a moment, such as at a start with many services."""
    ours, its = os.pipe()
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        assert process.stdin is not None
        process.stdin.write(b"1000\n" * 100)
        process.stdin.close()
        shown = b""
        while piece := os.read(ours, 4096):
            shown += piece
            time.sleep(0.001)
        os.close(ours)
    assert [json.loads(line)["number"] for line in shown.splitlines()] == list(range(100))


def test_a_command_that_fails_ends_although_nothing_reads_why() -> None:
    """The service manager starts a sidecar again only after it has ended."""
    ours, its = os.pipe()
    os.set_blocking(its, False)
    with suppress(BlockingIOError):
        while True:
            os.write(its, bytes(65536))
    os.set_blocking(its, True)
    command = [sys.executable, "-m", "clb_discovery", "run", "nonsense"]
    assert subprocess.run(command, check=False, stderr=its, timeout=patient(30)).returncode == 2
    os.close(its)
    os.close(ours)


def test_a_service_gets_one_json_object_a_line(tmp_path: Path) -> None:
    """If stderr is not a terminal each line is an object, including those of libraries and tracebacks."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in logged(tmp_path / "log", "auto")]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("a", "debug"),
        ("b", "info"),
        ("c", "warning"),
        ("d", "error"),
        ("of a library", "warning"),
        ("e", "error"),
    ]
    assert lines[4]["logger"] == "library"
    assert lines[5]["exception"][0]["exc_value"] == "broken"


def test_a_line_is_one_write() -> None:
    """If the sidecar is killed, a log file has only whole lines, each with its end."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # this keeps writes apart
    with ours, its:
        subprocess.run([sys.executable, "-c", PROGRAM, "json", "info"], check=True, stderr=its.fileno())
        its.close()
        written = list(iter(lambda: ours.recv(65536), b""))
    assert len(written) == 5
    assert all(one.endswith(b"}\n") and one.count(b"\n") == 1 for one in written)


@pytest.mark.parametrize(("level", "events"), [("info", "bcd"), ("warning", "cd"), ("error", "d")])
def test_lines_below_the_level_are_dropped(tmp_path: Path, level: str, events: str) -> None:
    """The level applies to libraries, too."""
    found = [json.loads(line)["event"] for line in logged(tmp_path / "log", "json", level)]
    assert found == [*events, *([] if level == "error" else ["of a library"]), "e"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_journal_gets_priorities(tmp_path: Path, form: str) -> None:
    """If JOURNAL_STREAM names stderr, each line begins with its priority."""
    lines = logged(tmp_path / "log", form, journal="{}")
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<4>"]
    if form == "json":
        assert json.loads(lines[3].removeprefix("<3>"))["event"] == "d"


@pytest.mark.parametrize("journal", ["8:1", "", "nonsense"])
def test_elsewhere_there_are_none(tmp_path: Path, journal: str) -> None:
    """A child with another stderr inherits the variable, and ignores it."""
    assert not [line for line in logged(tmp_path / "log", "json", journal=journal) if line.startswith("<")]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_and_nothing_that_a_terminal_obeys(tmp_path: Path, form: str) -> None:
    """Passwords in URLs are removed, tracebacks have no variables, control characters are escaped."""
    text = "\n".join(logged(tmp_path / "log", form))
    assert "http://***@host/" in text
    assert "secret" not in text.replace('fail("secret-token")', "")
    assert "broken" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)


def test_the_last_words_have_a_priority_too(tmp_path: Path) -> None:
    """The last line of a failing command is an error in the journal."""
    path = tmp_path / "log"
    with path.open("wb") as output:
        stat = os.fstat(output.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        command = [sys.executable, "-m", "clb_discovery", "run", "http://user:secret@host"]
        assert subprocess.run(command, check=False, stderr=output, env=env).returncode == 2
    assert path.read_text().startswith("<3>clb-discovery: ")
    assert "secret" not in path.read_text()


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_on_a_terminal_a_line_is_a_sentence(env: dict[str, str]) -> None:
    """Time, level and a sentence; control characters are escaped, and the level alone has a colour."""
    command = [sys.executable, "-c", PROGRAM, "auto", "info"]
    with on_terminal(command, {"TERM": "xterm", **env}, 80) as terminal:
        assert terminal.end() == 0
    shown = [re.sub(r"^\S+Z ", "", line) for line in terminal.text().splitlines()]
    assert shown[:5] == [
        "info    B",
        r"warning C (name x\x1b[2J, some \x07)",
        "error   D (url http://***@host/)",
        "warning Of a library (logger library)",
        "error   E",
    ]
    assert shown[-1] == "ValueError: broken"
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in terminal.text().splitlines()[:5])
    assert ("\x1b[" in terminal.sent) is (not env)


def test_tests_name_events_that_are_logged() -> None:
    """Each event that a test looks for in a log is one that the program logs, also in tests that are run rarely."""
    texts = [file.read_text() for file in Path(__file__).parent.rglob("*.py")]
    found = {event for text in texts for event in named(ast.parse(text))}
    assert len(found) > 20
    assert found - events() == set()
