"""The demo: its parts, and the whole as `make demo` runs it."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import pytest
from dns.message import Message
from dns.rdatatype import AAAA, SRV, A
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.datapath import cgroup, instance
from clb_discovery.datapath.pins import Pins
from clb_discovery.demo.chart import Row, chart
from clb_discovery.demo.dns import DnsServer, Zone
from clb_discovery.demo.screen import Screen
from clb_discovery.demo.servers import Listener, Server, pool, publish
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.terminal.bar import ASCII, UNICODE, WIDTH, bar
from tests.support.process import free_port, wait_until

HOST = "127.0.0.1"
COMMAND = [sys.executable, "-m", "clb_discovery", "demo"]
ONE = Server("one", "127.0.0.11", 7001, weight=30)
TWO = Server("two", "127.0.0.12", 7002, weight=10)


def test_bar_ends_at_the_mark_when_measured_is_expected() -> None:
    """If the measured share is the expected one, the bar fills the cells up to the mark."""
    assert bar(0.5, 0.5) == "#" * (WIDTH // 2) + "|"


def test_bar_shows_too_little_and_too_much() -> None:
    """The mark shows where the bar should end, beside a bar that is too short and inside one that is too long."""
    assert bar(0.25, 0.5) == "#####     |"
    assert bar(0.75, 0.5) == "##########|####"


def test_bar_has_parts_of_a_cell_in_unicode() -> None:
    """Eighths of a cell are drawn where the characters exist."""
    assert bar(0.325, 0.5, UNICODE) == "██████▌   ┃"
    assert bar(0.325, 0.325, UNICODE) == "██████┃"


@given(measured=st.floats(0, 1), expected=st.floats(0, 1), glyphs=st.sampled_from([ASCII, UNICODE]))
def test_bar_never_leaves_its_column(measured: float, expected: float, glyphs: object) -> None:
    """For any shares a bar and its mark fit into their column."""
    assert isinstance(glyphs, type(ASCII))
    assert len(bar(measured, expected, glyphs)) <= WIDTH + 1


def test_chart_lines_up() -> None:
    """Every line of a chart is as wide as its head, and shares refer to all connects of the chart."""
    rows = [Row("one", "127.0.0.11:7001", "30", 0.75, 1520), Row("gone", "", "gone", 0.0, 480)]
    head, *lines = chart("10.64.0.1:6379", rows)
    assert "2,000 connects" in head
    assert {len(line) for line in lines} == {len(head)}
    assert [line.split()[-2:] for line in lines] == [["75.0%", "76.0%"], ["0.0%", "24.0%"]]


def test_chart_without_connects_is_a_chart_of_nothing() -> None:
    """A chart without any answers is no error."""
    assert chart("10.64.0.1:6379", [Row("one", "127.0.0.11:7001", "30", 1.0, 0)])[1].endswith(" 0.0%")


def test_screen_that_is_no_terminal_gets_plain_lines() -> None:
    """A pipe gets no colour, no cursor movement and no progress, and only ASCII if its encoding has nothing else."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    screen = Screen(stream, color=True)
    screen.progress("half way")
    screen.title("Title")
    stream.seek(0)
    assert stream.read() == "\nTitle\n"
    assert screen.glyphs is ASCII


def test_pool_takes_the_addresses_of_the_family() -> None:
    """A server is in the pools of both families, with the address of each and the same port."""
    assert [str(server) for server in pool([TWO, ONE], parse_vip("10.64.0.1:6379"))] == [
        "127.0.0.11:7001",
        "127.0.0.12:7002",
    ]
    assert [str(server) for server in pool([ONE], parse_vip("[fd00:64::1]:6379"))] == ["[::1]:7001"]


@asynccontextmanager
async def serving(zone: Zone) -> AsyncIterator[tuple[DnsServer, int]]:
    """Serve a zone on a free port."""
    server, port = DnsServer(zone), free_port()
    await server.start(HOST, port)
    try:
        yield server, port
    finally:
        server.close()
        await asyncio.sleep(0.01)


async def ask(port: int, name: str, kind: object, *, tcp: bool = False) -> Message:
    """Send one query; return the answer, truncated or not."""
    query = dns.message.make_query(name, str(kind), use_edns=0, payload=1232)
    send = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await send(query, HOST, port=port, timeout=5)


@pytest.mark.parametrize("tcp", [False, True])
async def test_dns_answers_with_records_and_the_addresses_of_their_targets(*, tcp: bool) -> None:
    """An SRV answer is authoritative, and includes the addresses of its targets in both families."""
    zone = Zone("example.", 1)
    publish([ONE], zone)
    async with serving(zone) as (_, port):
        response = await ask(port, "_redis._tcp.example.", "SRV", tcp=tcp)
    assert response.flags & dns.flags.AA
    assert [str(rrset) for rrset in response.answer] == ["_redis._tcp.example. 1 IN SRV 0 30 7001 one.example."]
    assert [str(rrset) for rrset in response.additional] == [
        "one.example. 1 IN A 127.0.0.11",
        "one.example. 1 IN AAAA ::1",
    ]


async def test_dns_zone_can_be_edited_while_it_answers() -> None:
    """An edit shows in the next answer: records come, change and go; a name disappears with its last record."""
    zone = Zone("example.", 1)
    async with serving(zone) as (_, port):
        for data in (["0 1 1 a.example."], ["0 2 1 a.example.", "0 1 2 b.example."], []):
            zone.replace("_redis._tcp.example.", SRV, data)
            response = await ask(port, "_redis._tcp.example.", "SRV")
            assert sorted(str(record) for rrset in response.answer for record in rrset) == sorted(data)
    assert response.rcode() == dns.rcode.NXDOMAIN


async def test_dns_distinguishes_no_name_from_no_record() -> None:
    """A name without such a record is NODATA, an unknown one NXDOMAIN, both with a TTL; foreign names are REFUSED."""
    zone = Zone("example.", 1)
    zone.replace("a.b.example.", A, ["127.0.0.1"])
    async with serving(zone) as (_, port):
        answers = [await ask(port, name, "AAAA") for name in ("a.b.example.", "b.example.", "c.example.", "other.")]
    assert [dns.rcode.to_text(answer.rcode()) for answer in answers] == ["NOERROR", "NOERROR", "NXDOMAIN", "REFUSED"]
    assert [answer.authority[0].ttl for answer in answers[:3]] == [1, 1, 1]


async def test_dns_cuts_a_large_answer_over_udp_only() -> None:
    """An answer that exceeds the client's buffer is truncated over UDP, and complete over TCP."""
    zone = Zone("example.", 1)
    zone.replace("a.example.", AAAA, [f"fd00::{number:x}" for number in range(100)])
    async with serving(zone) as (_, port):
        cut, whole = await ask(port, "a.example.", "AAAA"), await ask(port, "a.example.", "AAAA", tcp=True)
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    assert len(whole.answer[0]) == 100


async def test_dns_can_fail() -> None:
    """A failing server answers SERVFAIL without records."""
    zone = Zone("example.", 1)
    publish([ONE], zone)
    async with serving(zone) as (server, port):
        server.failing = True
        response = await ask(port, "_redis._tcp.example.", "SRV")
    assert response.rcode() == dns.rcode.SERVFAIL
    assert not response.answer


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"nonsense", id="nonsense"),
        pytest.param(bytes(12), id="no question"),
        pytest.param(dns.message.make_query("a.", "A").to_wire()[:17], id="half a question"),
        pytest.param(dns.message.make_response(dns.message.make_query("a.", "A")).to_wire(), id="answer"),
    ],
)
def test_dns_ignores_malformed_queries(wire: bytes) -> None:
    """Bytes that are no query get no answer, and do no harm."""
    assert DnsServer(Zone("example.", 1)).respond(wire, over_tcp=False) is None


async def test_client_counts_answers_and_failures() -> None:
    """The client counts answers by server and failed connects by reason, and prints its last line after SIGTERM."""
    listener, port = Listener("one"), free_port()
    await listener.start([HOST], port)
    try:
        good, bad = await asyncio.gather(_run_client(port), _run_client(free_port()))
    finally:
        listener.close()
        await asyncio.sleep(0.01)
    assert good["answers"].keys() == {"one"}
    assert good["failures"] == {}
    assert bad["answers"] == {}
    assert bad["failures"].keys() == {"Connection refused"}


async def _run_client(port: int) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "clb_discovery.demo.client", HOST, str(port)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    process.terminate()
    lines = (await process.stdout.read()).splitlines()
    assert await process.wait() == 0
    report: dict[str, dict[str, int]] = json.loads(lines[-1])
    return report


def start_demo(log: Path, command: Sequence[str] = COMMAND) -> subprocess.Popen[bytes]:
    """Start the demo with its output in a file."""
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def demo_cgroup(process: subprocess.Popen[bytes]) -> Path:
    """Return the cgroup of a demo."""
    return cgroup.find_root() / f"clb-demo-{process.pid}"


def leftovers(process: subprocess.Popen[bytes]) -> list[str]:
    """Return what a demo has left behind: pins, state, cgroup, processes."""
    name = f"demo-{process.pid}"
    paths = [Pins(name).home, instance.RUN / name, demo_cgroup(process)]
    mentioned = [path for path in Path("/proc").glob("[0-9]*/cmdline") if name.encode() in _read(path)]
    return [str(path) for path in [*paths, *mentioned] if path.exists()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


def test_demo_runs_to_its_end(tmp_path: Path) -> None:
    """No connect fails through all changes and the sidecar's death, shares are as expected, nothing is left behind."""
    log = tmp_path / "log"
    process = start_demo(log)
    assert process.wait(120) == 0, log.read_text()
    output = log.read_text()
    assert re.search(r"^[\d,]+ connects in \d+ s, 0 failed\.$", output, re.MULTILINE)
    assert "kill -9" in output
    charts = re.split(r"([\d,]+) connects +expected +measured\n", output)[1:]
    assert len(charts) == 2 * 5 * 2  # total and rows, five moments, two families
    for total, rows in zip(charts[::2], charts[1::2], strict=True):
        connects = int(total.replace(",", ""))
        for expected, measured in re.findall(r"([\d.]+)% +([\d.]+)%$", rows, re.MULTILINE):
            share = float(expected) / 100
            six_sigma = 6 * math.sqrt(share * (1 - share) / connects)
            assert abs(float(measured) / 100 - share) <= six_sigma + 0.001, output
    hints = output.partition("Next, for a service of your own:\n")[2]
    assert "check\n" in hints
    assert "--real-range 127.0.0.0/8" in " ".join(
        hints.split()
    )  # else redis on this host, as the next thing to try, is rejected
    assert leftovers(process) == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [("1. The scene", signal.SIGTERM), ("2. The sidecar", signal.SIGINT), ("4. It does well", signal.SIGINT)],
)
def test_demo_cleans_up_when_interrupted(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the demo at any moment, with the exit code that a shell expects; nothing stays behind."""
    log = tmp_path / "log"
    process = start_demo(log)
    wait_until(lambda: moment in log.read_text(), f"the demo has come to {moment!r}")
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert log.read_text().endswith("Interrupted. Everything is cleaned up.\n")
    assert leftovers(process) == []


def test_demo_fails_with_one_line_when_a_client_dies(tmp_path: Path) -> None:
    """If a part fails, the demo ends with exit code 1, a line that names it, and nothing left behind."""
    log = tmp_path / "log"
    process = start_demo(log)
    wait_until(lambda: "3. A server joins" in log.read_text(), "the clients connect")
    victim = int((demo_cgroup(process) / "cgroup.procs").read_text().split()[0])
    os.kill(victim, signal.SIGKILL)
    assert process.wait(20) == 1
    assert re.fullmatch(r"clb-discovery: the client of .* ended with -9", log.read_text().splitlines()[-1])
    assert leftovers(process) == []


def test_demo_counts_connects_that_fail(tmp_path: Path) -> None:
    """If the programs are detached, the demo reports how many connects failed and why, and exits 1."""
    log = tmp_path / "log"
    process = start_demo(log)
    wait_until(lambda: "7. The sidecar is killed" in log.read_text(), "the sidecar is killed", timeout=60)
    time.sleep(0.1)
    for link in Pins(f"demo-{process.pid}").directory.glob("*_link"):
        link.unlink()
    assert process.wait(60) == 1
    assert re.search(r"^ +[\d,]+ failed with: Network is unreachable$", log.read_text(), re.MULTILINE)
    assert leftovers(process) == []


@pytest.mark.parametrize(
    ("wrapper", "reason"),
    [
        (["setpriv", "--bounding-set=-all"], "run as root"),
        (["unshare", "--mount", "sh", "-c", 'umount -l -a -t cgroup2 && exec "$@"', "sh"], "no cgroup v2 hierarchy"),
    ],
)
def test_demo_reports_missing_features_of_the_host(wrapper: list[str], reason: str) -> None:
    """Without root's privileges or without cgroup v2 the error is one line with the reason, and the exit code is 3."""
    result = subprocess.run([*wrapper, *COMMAND], check=False, capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(rf"clb-discovery: .*{reason}.*\n", result.stderr)
