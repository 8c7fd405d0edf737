"""`trace` on the real kernel: every connect with its process and its result, and no cost without a listener."""

from __future__ import annotations

import mmap
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.layout.structs import EVENT, EVENTS_BYTES
from tests.support.cgroups import run_inside
from tests.support.listeners import listening
from tests.support.pace import patient
from tests.support.plane import Plane, loaded_plane, target_of, virtual_server
from tests.support.process import free_port, running, wait_until
from tests.support.sidecar import COMMAND, clb
from tests.support.spares import Spares
from tests.support.terminal import on_terminal
from tests.support.tracing import lines, tracing

TERM: Final = {"TERM": "xterm-256color"}


@pytest.fixture
def plane(spares: Spares) -> Iterator[Plane]:
    """Load the data plane."""
    with loaded_plane(spares) as loaded:
        yield loaded


def dial(plane: Plane, address: str, port: int) -> None:
    """Connect with an ordinary program; any result is fine."""
    run_inside(plane.cgroup, "redis-cli", "-h", address, "-p", str(port), "ping")


def test_every_connect_is_reported(plane: Plane, tmp_path: Path) -> None:
    """A success, a failure and a refusal have process, command, cgroup, VIP, real server and latency."""
    output = tmp_path / "trace"
    dead = free_port()
    with listening("127.0.0.1") as (server,), tracing(plane.instance, output, "--json"):
        plane.publish(
            virtual_server("10.64.0.1:80", [server.name]),
            virtual_server("10.64.0.2:80", [f"127.0.0.1:{dead}"]),
            virtual_server("10.64.0.3:80", []),
        )
        run_inside(plane.cgroup, "/bin/sh", "-c", "timeout 1 redis-cli -h 10.64.0.1 -p 80 ping")
        dial(plane, "10.64.0.2", 80)
        dial(plane, "10.64.0.3", 80)
        wait_until(lambda: len({line["outcome"] for line in lines(output)}) == 3, "all three outcomes are told")
    told = {line["outcome"]: line for line in lines(output)}
    assert told["established"]["real_server"] == server.name
    assert told["failed"]["real_server"] == f"127.0.0.1:{dead}"
    assert told["refused"]["real_server"] is None
    assert {line["virtual_server"] for line in told.values()} == {"10.64.0.1:80", "10.64.0.2:80", "10.64.0.3:80"}
    for line in told.values():
        assert line["command"] == "redis-cli"
        assert line["pid"] > 0
        assert line["cgroup"] == f"/{plane.cgroup.name}"
        assert (line["unit"], line["container"]) == (None, None)
    assert told["established"]["latency_ms"] > 0
    assert told["failed"]["latency_ms"] > 0
    assert told["refused"]["latency_ms"] is None
    assert told["established"]["errno"] == []
    assert told["failed"]["errno"][0] == "ECONNREFUSED"
    assert told["refused"]["errno"] in (["ECONNREFUSED"], ["EPERM"])


def publish_three(plane: Plane, server: str, dead: str) -> None:
    """Publish a service that answers, one that does not, and one without real servers."""
    plane.publish(
        replace(virtual_server("10.64.0.1:80", [server]), service="alive"),
        replace(virtual_server("10.64.0.2:80", [dead]), service="dead"),
        replace(virtual_server("10.64.0.3:80", []), service="empty"),
    )


def connect_to_three(plane: Plane) -> None:
    """Connect once to each of them."""
    run_inside(plane.cgroup, "/bin/sh", "-c", "timeout 1 redis-cli -h 10.64.0.1 -p 80 ping")
    dial(plane, "10.64.0.2", 80)
    dial(plane, "10.64.0.3", 80)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--service", "dead"], {("dead", "failed")}),
        (["--service", "alive", "--service", "empty"], {("alive", "established"), ("empty", "refused")}),
        (["--outcome", "refused"], {("empty", "refused")}),
        (["--outcome", "failed", "--outcome", "refused", "--service", "dead"], {("dead", "failed")}),
        (["--command", "redis-cli"], {("alive", "established"), ("dead", "failed"), ("empty", "refused")}),
        (["--command", "another"], set()),
    ],
)
def test_filters(plane: Plane, tmp_path: Path, filters: list[str], expected: set[tuple[str, str]]) -> None:
    """Each kind of filter passes only matching connects, as JSON and as text."""
    json_output, text_output = tmp_path / "json", tmp_path / "text"
    with listening("127.0.0.1") as (server,):
        publish_three(plane, server.name, f"127.0.0.1:{free_port()}")
        for output, options in ((json_output, ["--json"]), (text_output, [])):
            with tracing(plane.instance, output, *options, *filters):
                connect_to_three(plane)
                wait_until(lambda: len(output.read_text().splitlines()) >= len(expected), "they are told")  # noqa: B023
                time.sleep(0.2)  # for lines that should not come
    assert {(line["service"], line["outcome"]) for line in lines(json_output)} == expected
    told = [line.split() for line in text_output.read_text().splitlines()[1:]]
    assert {(words[4], words[7]) for words in told} == expected


def test_text_stands_in_columns(plane: Plane, tmp_path: Path) -> None:
    """Values of one kind are aligned, below the name of their column."""
    output = tmp_path / "text"
    with listening("127.0.0.1") as (server,), tracing(plane.instance, output):
        publish_three(plane, server.name, f"127.0.0.1:{free_port()}")
        connect_to_three(plane)
        wait_until(lambda: "refused" in output.read_text(), "all three are told")
    header, *told = output.read_text().splitlines()
    assert len(told) >= 3  # redis-cli may connect twice
    assert {line.index("10.64.0.") for line in told} == {header.index("VIRTUAL SERVER")}
    assert {line.index(word) for line in told for word in ("127.0.0.1:", "none") if word in line} == {
        header.index("REAL SERVER")
    }


def test_terminal_of_80_columns(plane: Plane) -> None:
    """The header comes first, each line fits, and it shows service, real server and cause."""
    dead = f"127.0.0.1:{free_port()}"
    with listening("127.0.0.1") as (server,):
        publish_three(plane, server.name, dead)
        command = [*COMMAND, "trace", "--instance", plane.instance, "--limit", "3"]
        with on_terminal(command, TERM, columns=80, lines=24) as terminal, Maps(plane.pins) as maps:
            terminal.read_until(r"TIME +FROM +SERVICE +REAL SERVER +OUTCOME")
            wait_until(maps.is_heard, "somebody listens")
            connect_to_three(plane)
            assert terminal.end() == 0
    told = terminal.text().splitlines()
    assert max(map(len, told)) <= 80
    found = {line.split()[2]: " ".join(line.split()[3:]) for line in told[1:]}
    assert found["alive"].startswith(f"{server.name} established ")
    assert found["dead"].startswith(f"{dead} failed refused ")
    assert "redis-cli" in told[1]


def test_limit_ends_it(plane: Plane) -> None:
    """After as many connects as the limit the command ends with 0, and nothing listens any more."""
    with listening("127.0.0.1") as (server,):
        plane.publish(virtual_server("10.64.0.1:80", [server.name]))
        command = [*COMMAND, "trace", "--json", "--limit", "2", "--instance", plane.instance]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, Maps(plane.pins) as maps:
            wait_until(maps.is_heard, "somebody listens")
            plane.client.dial(target_of("10.64.0.1:80"), 5)
            told, _ = process.communicate(timeout=patient(30))
            assert (process.returncode, len(told.splitlines())) == (0, 2)
            assert not maps.is_heard()


def test_nothing_loaded_is_a_failure(plane: Plane) -> None:
    """The exit code is 1, for it is no lack of the kernel; the line names loaded instances and the command to load."""
    result = clb("trace", "--instance", f"{plane.instance}-other")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"'{plane.instance}-other' is not loaded; loaded on this host: " in result.stderr
    assert f"run: clb-discovery load --instance {plane.instance}-other" in result.stderr


def is_read(maps: Maps) -> bool:
    """Return whether everything in the ring buffer has been read."""
    with mmap.mmap(maps.events(), 2 * mmap.PAGESIZE, prot=mmap.PROT_READ) as pages:
        return pages[:8] == pages[mmap.PAGESIZE : mmap.PAGESIZE + 8]


@pytest.mark.parametrize("options", [["--json"], [], ["--service", "none"]])
def test_lost_events_are_reported(plane: Plane, tmp_path: Path, options: list[str]) -> None:
    """If the ring buffer is full because the reader is slow, the reader reports the gap, with filters and without."""
    output = tmp_path / "trace"
    missing = '"outcome": "dropped"' if "--json" in options else "connects are missing here"
    with listening("127.0.0.1") as (server,):
        plane.publish(virtual_server("10.64.0.1:80", [server.name]))
        with (
            running([*COMMAND, "trace", "--instance", plane.instance, *options], output) as process,
            Maps(plane.pins) as maps,
        ):
            wait_until(maps.is_heard, "somebody listens")
            process.send_signal(signal.SIGSTOP)
            maps.listen_until(time.monotonic_ns() + 60_000_000_000)
            plane.client.dial(target_of("10.64.0.1:80"), EVENTS_BYTES // EVENT.size)  # each writes two records
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: missing in output.read_text(), "it is told")
            wait_until(lambda: is_read(maps), "there is room again")
            plane.client.dial(target_of("10.64.0.1:80"), 3)
            time.sleep(2.5)  # longer than the interval of its checks
            assert output.read_text().count(missing) == 1
            process.send_signal(signal.SIGINT)
            process.wait(timeout=10)


def test_only_one_traces(plane: Plane, tmp_path: Path) -> None:
    """The error of a second trace names the first one, which goes on."""
    with tracing(plane.instance, tmp_path / "trace"):
        second = clb("trace", "--instance", plane.instance)
    assert second.returncode == 4
    assert second.stderr.count("\n") == 1
    assert "it is the one that traces; stop it first" in second.stderr


def test_filter_for_an_unknown_service_is_reported(plane: Plane, tmp_path: Path) -> None:
    """A name without a virtual server is reported at once, on stderr; a known name is not."""
    publish_three(plane, "127.0.0.1:1", "127.0.0.1:2")
    with tracing(plane.instance, tmp_path / "trace", "--service", "alive", "--service", "aliv"):
        pass
    line, _ = (tmp_path / "trace").read_text().splitlines()
    assert line == (
        "clb-discovery: no virtual server belongs to service 'aliv' now; waiting for one; did you mean alive?"
    )


def test_nothing_is_reported_without_a_listener(plane: Plane, tmp_path: Path) -> None:
    """Without a listener, and after its end, connects write nothing to the ring buffer."""
    with tracing(plane.instance, tmp_path / "trace"):
        pass
    with listening("127.0.0.1") as (server,):
        plane.publish(virtual_server("10.64.0.1:80", [server.name]))
        run_inside(plane.cgroup, "/bin/sh", "-c", "timeout 1 redis-cli -h 10.64.0.1 -p 80 ping")
    with Maps(plane.pins) as maps:
        assert not maps.is_heard()
    output = tmp_path / "later"
    with tracing(plane.instance, output, "--json"):
        dial(plane, "10.64.0.1", 80)
        wait_until(lambda: bool(lines(output)), "the new connect is told")
    assert all(line["outcome"] == "failed" for line in lines(output))
