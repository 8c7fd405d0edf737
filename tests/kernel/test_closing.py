"""The service that closes sockets on behalf of the sidecar, and clients that request more than it should do."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath import close_request
from clb_discovery.layout import elements
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Protocol, RealServer
from clb_discovery.model.text_forms import parse_vip
from tests.kernel.test_removal import connected
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.pace import patient
from tests.support.sidecar import COMMAND, sidecar
from tests.support.spares import loaded_instance
from tests.support.srv_web import VIP, WEB, resolver, serve
from tests.support.terminal import on_terminal

instance = loaded_instance

MEMORY: Final = 512 << 20
"""Bytes of address space that the service may use; most of it is what Python maps at its start."""


@contextmanager
def closer() -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Start the service for one connection, with limited memory; yield the other end and the process."""
    ours, its = socket.socketpair()
    ours.settimeout(patient(30))
    with ours, its:
        command = ["prlimit", f"--as={MEMORY}", *COMMAND, "close"]
        process = subprocess.Popen(command, stdin=its.fileno(), stdout=its.fileno(), stderr=subprocess.PIPE)
        its.close()
        with process:
            yield ours, process
            process.wait(timeout=patient(30))


def said_to(request: bytes) -> tuple[str, int, str]:
    """Send a request; return the answer, the exit code, and the lines for the journal."""
    with closer() as (sock, process):
        answer = b""
        with suppress(ConnectionError):  # it may have closed the connection already
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert process.stderr
        return answer.decode(), process.wait(timeout=patient(30)), process.stderr.read().decode()


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"[" * 2_000_000,
        json.dumps({"instance": "default", "members": ["00" * 40] * 700_000, "protocols": [6]}).encode(),
        b"CLBC" + bytes(60 << 20),
        close_request.HEAD.pack(b"CLBC", 1, 1, 7, 0xFFFFFFFF) + bytes(60 << 20),
        close_request.HEAD.pack(b"CLBC", 9, 1, 7, 1) + b"default" + bytes(40),
        close_request.requests("../../x", [bytes(16) + b"\0\1\6\0" + bytes(20)], [Protocol.TCP])[0],
        close_request.requests("not-there", [bytes(16) + b"\0\1\6\0" + bytes(20)], [Protocol.TCP])[0],
    ],
    ids=["nothing", "brackets", "json", "zeros", "count", "version", "path", "instance"],
)
def test_other_requests_are_an_error_line(request_: bytes) -> None:
    """Any other request gets an error line if the client still reads; the journal gets one too; memory stays small."""
    answer, code, journal = said_to(request_)
    assert code in {2, 3}
    assert len(journal.splitlines()) == 1
    assert "internal error" not in journal
    if len(request_) < 1 << 20:
        assert answer.startswith("error ")
        assert answer.count("\n") == 1


def test_a_request_that_does_not_come_is_given_up() -> None:
    """A request that is not complete after ten seconds gets an error, also if bytes keep arriving."""
    with closer() as (sock, process):
        began = time.monotonic()
        for octet in b"CLBC\1\1\1":
            sock.sendall(bytes([octet]))
            time.sleep(0.1)
        assert sock.recv(65536).startswith(b"error malformed close request: it did not arrive within")
        assert 9 < time.monotonic() - began < patient(20)
        assert process.wait(timeout=patient(10)) == 2


def test_servers_in_a_pool_are_left_alone(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A client cannot have connections to a published server closed, and gets the reason."""
    with listening("127.0.0.1") as (server,), KnotServer() as knot, ExitStack() as stack:
        serve(knot, server.name)
        with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]):
            said = stack.enter_context(connected(cgroup, "tcp", 80, tmp_path))
            vip = elements.pack_vip(parse_vip(f"{VIP}:80"))
            host, port = server.name.rsplit(":", 1)
            members = [
                elements.pack_member(vip, RealServer(0, parse_address(host), int(port), 1)),
                elements.pack_member(vip, RealServer(0, parse_address("127.0.0.9"), 9, 1)),
            ]
            answer, code, _ = said_to(close_request.requests(instance, members, [Protocol.TCP])[0])
            assert code == 0
            read = close_request.parse_answer(answer.encode())
            assert read.count == 0
            assert "1 of 2 real servers are in a pool, and were left alone" in read.failures
            assert said.read_text() == "connected\n"


@pytest.mark.parametrize("source", ["", "<&-", "</dev/null"])
def test_by_hand_it_says_what_it_is_for(source: str) -> None:
    """Nothing is read from a pipe, a file or a closed input; one line names its unit and its purpose."""
    shell = ["sh", "-c", f'exec "$@" {source}', "sh", *COMMAND, "close"]
    result = subprocess.run(shell, input="", check=False, capture_output=True, text=True, timeout=patient(30))
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "clb-discovery-close.socket starts it" in line
    assert "to close sockets of removed servers" in line


def test_on_a_terminal_it_does_not_wait_for_keys() -> None:
    """Typed by a person, it ends at once with the same line."""
    with on_terminal([*COMMAND, "close"], {}, columns=80) as terminal:
        assert terminal.end() == 2
        assert "clb-discovery-close.socket starts it" in terminal.text()
