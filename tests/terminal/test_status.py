"""`status` for people, from a fixed document and clock. `golden/` has the expected output, to the letter."""

from __future__ import annotations

import copy
import io
import json
import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from rich.cells import cell_len
from rich.console import Console

from clb_discovery.documents.rates import rates
from clb_discovery.terminal.screen import as_text, show, terminal
from clb_discovery.terminal.status import Status
from tests.support.contract import assert_is_status
from tests.support.statuses import source, status, virtual_server

GOLDEN: Final = Path(__file__).parent / "golden"
NOW: Final = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
DOCUMENT: Final[dict[str, Any]] = json.loads((GOLDEN / "status.json").read_text())
CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def later(document: dict[str, Any], connects: int, failures: int) -> dict[str, Any]:
    """Return the document after each real server has got so many more connects and failures."""
    after = copy.deepcopy(document)
    for virtual in after["virtual_servers"]:
        for real in virtual["real_servers"]:
            real["connects"] += connects
            real["failures"] += failures
        virtual["connects"] += connects * len(virtual["real_servers"])
    return after


def words(text: str) -> str:
    """Return the text without spaces and line breaks, which depend on its width."""
    return "".join(text.split())


def on_terminal(renderable: object, width: int, height: int = 100, **more: Any) -> str:  # noqa: ANN401 - as Console
    """Return the bytes for a terminal of this size, as text."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, height=height, markup=False, **more)
    console.print(renderable)
    return output.getvalue()


def test_the_document_is_one() -> None:
    """The document of these tests has the shape of `status --json`."""
    assert_is_status(DOCUMENT)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_status_looks_like_this(width: int) -> None:
    """The output is the expected one, and no line is longer than the screen is wide."""
    text = as_text(Status(DOCUMENT, NOW), width)
    assert text == (GOLDEN / f"status-{width}.txt").read_text()
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_watched_status_looks_like_this(width: int) -> None:
    """With rates it still fits. They are beside their counters if there is room, else below them."""
    after = later(DOCUMENT, 231, 1)
    text = as_text(Status(after, NOW, rates(DOCUMENT, after, 2.0)), width)
    assert text == (GOLDEN / f"watch-{width}.txt").read_text()
    assert max(map(len, text.splitlines())) <= width


def test_virtual_servers_of_a_service_stand_together() -> None:
    """Virtual servers of both families are sorted apart, but those of one service are shown together."""
    first, second, third = DOCUMENT["virtual_servers"]
    other = first | {"address": "fd00:64::9"}
    text = as_text(Status(DOCUMENT | {"virtual_servers": [first, second, third, other]}, NOW), 200)
    assert re.findall(r"^(redis|mail) ", text, re.MULTILINE) == ["mail", "redis", "redis"]


@pytest.mark.parametrize("name", ["consul:web", "consul:\u7db2\u7d61", "consul:\u00e9te\u0301"])
def test_columns_of_sources_are_aligned(name: str) -> None:
    """A character that takes two cells of the screen, or none, does not move the next column."""
    found = DOCUMENT | {"sources": [source(name)]}
    lines = as_text(Status(found, NOW, all_sources=True), 200).splitlines()
    head, line = next((one, other) for one, other in pairwise(lines) if one.startswith("source "))
    assert cell_len(line.partition("fresh")[0]) == head.index("state")


def test_nothing_is_lost_on_a_narrow_screen() -> None:
    """At 80 columns the output has every address, number and message of the document. Long ones are folded."""
    text = words(as_text(Status(DOCUMENT, NOW, all_sources=True), 80))
    for one in DOCUMENT["sources"]:
        assert words(one["name"]) in text
        assert words(one["reason"] or "") in text
    for virtual in DOCUMENT["virtual_servers"]:
        assert f"{virtual['connects']:,}connects" in text
    narrow = as_text(Status(DOCUMENT, NOW), 80).split("\n\n")[-2]
    assert words("1 fresh, 1 held, 1 retrying") in text
    column = "".join(line[2:24].strip() for line in narrow.splitlines()[-5:])
    assert "[fd00:1234:5678:9abc:def0:1234:5678:9abc]:31001" in column


@pytest.mark.parametrize("width", [1, 10, 20, 40])
def test_absurd_widths_do_no_harm(width: int) -> None:
    """The last line is shown even on the narrowest screen."""
    assert "wrong" in words(as_text(Status(DOCUMENT, NOW), width))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_untrusted_names_are_not_obeyed(width: int) -> None:
    """Escape sequences and characters that reverse text are escaped, and markup is shown literally."""
    text = as_text(Status(DOCUMENT, NOW), width)
    assert not CONTROL.search(text)
    assert r"pg\x1b[31m[red]\u202e" in text.replace("\n", "")
    sent = on_terminal(Status(DOCUMENT, NOW), width, color_system=None)
    assert "\x1b[31m" not in sent


def test_a_terminal_gets_colours_and_bars_and_others_get_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours follow NO_COLOR, and bars use the characters of the terminal's encoding."""
    document = {**DOCUMENT, "virtual_servers": DOCUMENT["virtual_servers"][:1]}
    sent = on_terminal(Status(document, NOW), 120, color_system="standard")
    assert "\x1b[32m" in sent
    assert "█" in sent
    monkeypatch.setenv("NO_COLOR", "1")
    sent = on_terminal(Status(document, NOW), 120, color_system="standard")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", sent)
    assert "█" in sent
    assert as_text(Status(document, NOW), 120).isascii()


def test_pipes_get_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is no terminal gets unfolded lines, unless COLUMNS is set, without spaces at their ends."""
    monkeypatch.delenv("COLUMNS", raising=False)
    output = io.StringIO()
    show(Status(DOCUMENT, NOW), output)
    assert "stale since 2026-01-02T02:04:05Z: SERVFAIL from 10.0.0.53@53 (UDP)\n" in output.getvalue()
    assert not [line for line in output.getvalue().splitlines() if line != line.rstrip()]
    monkeypatch.setenv("COLUMNS", "80")
    output = io.StringIO()
    show(Status(DOCUMENT, NOW), output)
    assert output.getvalue() == (GOLDEN / "status-80.txt").read_text()


def test_a_stream_that_cannot_show_a_name_gets_it_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that ASCII cannot represent is no error if the locale is C."""
    monkeypatch.delenv("COLUMNS", raising=False)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    show(Status({**DOCUMENT, "instance": "größe"}, NOW), stream)
    assert rb"gr\xf6\xdfe" in raw.getvalue()


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(-5, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86400, "1 d"), (10 * 86400, "10 d")],
)
def test_ages(seconds: int, age: str) -> None:
    """Ages are in the largest unit that fits. None is negative after the clock was set back."""
    moment = datetime.fromtimestamp(NOW.timestamp() - seconds, UTC).isoformat().replace("+00:00", "Z")
    document = copy.deepcopy(DOCUMENT)
    document["sidecar"]["last_sync"] = moment
    assert f"last change {age} ago" in as_text(Status(document, NOW), 200)


def test_an_instance_that_is_not_loaded_has_a_status() -> None:
    """That holds even if no sidecar has ever run."""
    document = {
        **DOCUMENT,
        "datapath": {**DOCUMENT["datapath"], "loaded": False, "effective": False, "features": {}},
        "sidecar": {
            "running": False,
            "pid": None,
            "last_sync": None,
            "config_error": "line 3\nis wrong",
            "metrics_error": None,
            "state_error": None,
        },
        "sources": [],
        "virtual_servers": [],
    }
    text = as_text(Status(document, NOW), 300)
    assert "data plane  not loaded" in text
    assert re.search(r"^sidecar     not running$", text, re.MULTILINE)
    assert r"config      rejected, the previous one stays: line 3\nis wrong" in text
    assert text.splitlines()[-1].startswith("wrong  the data plane is not loaded")
    document["datapath"]["other_layouts"] = [2]
    assert "data plane  loaded by another version (layout v2)\n" in as_text(Status(document, NOW), 300)


def test_listeners_on_vips_have_a_line() -> None:
    """VIPs on which a program of this host listens are named above the last line, and are no problem in it."""
    document = copy.deepcopy(DOCUMENT)
    assert "listens" not in as_text(Status(document, NOW), 200)
    document["virtual_servers"][0]["listens_here"] = True
    vip = document["virtual_servers"][0]
    *_, line, _, last = as_text(Status(document, NOW), 400).splitlines()
    assert line.startswith(
        f"note   a program of this host listens on {vip['address']}:{vip['port']}/{vip['protocol']}: "
    )
    assert "listens" not in last


def test_programs_that_are_not_in_effect() -> None:
    """The reason is shown, and the sources are marked as those of a sidecar that has ended."""
    document = copy.deepcopy(DOCUMENT)
    document["datapath"] |= {"effective": False, "reason": "the cgroup is gone"}
    document["sidecar"]["running"] = False
    text = as_text(Status(document, NOW), 200)
    assert "NOT IN EFFECT: the cgroup is gone" in text
    assert "sources     1 fresh, 1 held, 1 retrying, as last reported" in text


def test_a_restart_without_a_change_is_healthy() -> None:
    """A sidecar that has had nothing to change since its start reports that, and no age."""
    document = copy.deepcopy(DOCUMENT)
    document["sidecar"]["last_sync"] = None
    assert "sidecar     running, process 4711, no change since start\n" in as_text(Status(document, NOW), 200)


def test_fresh_sources_are_counted_and_only_others_listed() -> None:
    """A source is listed if it is not fresh, or if a part of its answer is not used; `--sources` lists all."""
    sources = [source(f"srv:{number}") for number in range(57)]
    sources += [source("srv:held", "held", "kept"), source("srv:part", reason="port 0")]
    document = status(sources=[*sources, source("srv:down", "retrying", "SERVFAIL")])
    text = as_text(Status(document, NOW), 80)
    assert "sources     58 fresh, 1 held, 1 retrying\n" in text
    assert re.findall(r"^srv:(\S+)", text, re.MULTILINE) == ["held", "part", "down"]
    listed = re.findall(r"^srv:(\S+)", as_text(Status(document, NOW, all_sources=True), 80), re.MULTILINE)
    assert listed == [one["name"].removeprefix("srv:") for one in document["sources"]]


def test_the_note_of_the_command_is_shown() -> None:
    """It is above the last line, and no problem in it."""
    *_, note, _, last = as_text(Status(status(), NOW, note="loaded on this host: shop"), 80).splitlines()
    assert (note, last[:2]) == ("note   loaded on this host: shop", "ok")


def test_services_with_problems_come_first() -> None:
    """The order of all others is that of their VIPs."""
    names = ("a", "b", "bad", "c")
    servers = [virtual_server(name, number, ejected=name == "bad") for number, name in enumerate(names)]
    text = as_text(Status(status(virtual_servers=servers), NOW), 80)
    assert re.findall(r"^(\w+)  10\.64", text, re.MULTILINE) == ["bad", "a", "b", "c"]


def many(count: int, *, servers: int, wrong: int = 0) -> dict[str, Any]:
    """Return a status of many services, of which the last ones have an ejected server."""
    return status(
        virtual_servers=[
            virtual_server(f"tenant-{number:04}", number, servers=servers, ejected=int(number >= count - wrong))
            for number in range(count)
        ],
        sources=[source(f"consul:tenant-{number:04}") for number in range(count)],
    )


@pytest.mark.parametrize(("count", "servers"), [(1, 100_000), (20, 5_000), (64, 1_600), (1_000, 100)])
@pytest.mark.parametrize("share_wrong", [0, 0.5, 1])
def test_a_hundred_thousand_servers_have_a_short_status(count: int, servers: int, share_wrong: float) -> None:
    """Whatever the number of pools and of problems, the output is short, and has a table of each of the worst pools."""
    wrong = int(count * share_wrong)
    text = as_text(Status(many(count, servers=servers, wrong=wrong), NOW), 80)
    lines = text.splitlines()
    assert len(lines) <= 650
    assert text.count("\n  real server ") == (count if count <= 20 else min(wrong, 20))
    if count > 20 and not wrong:
        assert len(lines) <= 220
    assert f"real servers {count * servers:,}" in lines[-1] or wrong


def test_rows_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real servers that are not shown cost nothing but their count: no bar, and no text, is made for them."""
    made: list[float] = []

    def counted(share: float, *_: object) -> str:
        made.append(share)
        return ""

    monkeypatch.setattr("clb_discovery.terminal.pools.bar", counted)
    on_terminal(Status(many(20, servers=5_000, wrong=20), NOW), 200)
    assert 0 < len(made) <= 300


def test_many_virtual_servers_have_one_line_each() -> None:
    """Beyond 20, services without problems have a line with their number of real servers."""
    text = as_text(Status(many(60, servers=3, wrong=2), NOW), 80)
    assert re.findall(r"^(tenant-\d+)  10\.64\.\S+  random", text, re.MULTILINE) == ["tenant-0058", "tenant-0059"]
    rows = re.findall(r"^(tenant-\d+)  10\.64\.0\.\d+:80/tcp +30  3$", text, re.MULTILINE)
    assert rows == [f"tenant-{number:04}" for number in range(58)]


def test_of_services_with_one_name_only_that_with_a_problem_has_a_table() -> None:
    """The last line names it by its source, too, and one that is in order comes after all that are not."""
    document = many(60, servers=3, wrong=2)
    for number in (3, 40, 59):
        document["virtual_servers"][number]["service"] = "db"
    text = as_text(Status(document, NOW), 80)
    assert re.findall(r"^(\S+)  10\.64\.0\.(\d+):80/tcp  random", text, re.MULTILINE) == [
        ("tenant-0058", "58"),
        ("db", "59"),
    ]
    assert "ejected after failed connects: tenant-0058 (1 of 3), db (consul:tenant-0059) (1 of 3)" in " ".join(
        text.split()
    )


def test_lines_of_many_virtual_servers_have_rates() -> None:
    """`--watch` shows the connects per second of each, and the line still fits 80 columns."""
    before = many(60, servers=3)
    after = later(before, 3_000, 0)
    lines = as_text(Status(after, NOW, rates(before, after, 2.0)), 80).splitlines()
    assert sum(bool(re.fullmatch(r"tenant-\d+  10\.64\S+ +9,030 \(4,500\.0/s\)  3", line)) for line in lines) == 60
    assert max(map(len, lines)) <= 80


def test_terminal_follows_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width is the terminal's, or the value of COLUMNS."""
    monkeypatch.setenv("COLUMNS", "97")
    assert terminal(io.StringIO()).width == 97
