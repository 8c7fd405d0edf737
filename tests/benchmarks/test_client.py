"""The client of the benchmarks connects, to itself or to another host, and closes as it is told."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from benchmarks.client import FIN, RST, SOURCE, client, client_of_another_host
from benchmarks.process import compiled
from tests.support import namespaces
from tests.support.tun import open_tun

_TIME_WAIT = "06"


def waiting(port: int) -> int:
    """Return how many sockets in the namespace of this thread wait after the close of a connection to a port."""
    lines = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(fields[2].endswith(f":{port:04X}") and fields[3] == _TIME_WAIT for fields in lines)


def test_client_closes_as_it_is_told(tmp_path: Path) -> None:
    """A connection takes longer than its connect; a close by FIN leaves its port waiting, a reset leaves nothing."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as listener,
        client(compiled(SOURCE, tmp_path), listener) as connecting,
    ):
        port = listener.getsockname()[1]
        reset = connecting.connect("127.0.0.1", 5, RST)
        assert 0 < reset.connect < reset.whole
        assert waiting(port) == 0
        closed = connecting.connect("127.0.0.1", 7, FIN)
        assert 0 < closed.connect < closed.whole
        assert waiting(port) == 7


def test_other_host_closes_as_it_is_told(tmp_path: Path) -> None:
    """Connections to another host end at both ends, without a listener on this one."""
    program = compiled(SOURCE, tmp_path)
    with ExitStack() as stack:
        inside = partial(namespaces.inside, stack.enter_context(namespaces.by_mount()))
        tun, _ = inside(lambda: open_tun("10.99.0.1/24"))
        stack.callback(os.close, tun)
        connecting = inside(lambda: stack.enter_context(client_of_another_host(program, tun, 80)))
        reset = connecting.connect("10.99.0.2", 5, RST)
        assert 0 < reset.connect < reset.whole
        assert inside(lambda: waiting(80)) == 0
        closed = connecting.connect("10.99.0.3", 7, FIN)
        assert 0 < closed.connect < closed.whole
        assert inside(lambda: waiting(80)) == 7


def test_failing_client_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The client itself reports the reason."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        client(compiled(SOURCE, tmp_path), listener) as connecting,
        pytest.raises(SystemExit, match="has failed"),
    ):
        connecting.connect("127.0.0.1", 0)
    assert "0 connects closed by rst are not possible" in capfd.readouterr().err
