"""The client of the benchmarks connects to itself and closes as it is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from benchmarks.client import FIN, RST, SOURCE, client
from benchmarks.process import compiled

_TIME_WAIT = "06"


def waiting(port: int) -> int:
    """Return the number of sockets that wait after the close of a connection to a port of this host."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
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


def test_failing_client_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The client itself reports the reason."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        client(compiled(SOURCE, tmp_path), listener) as connecting,
        pytest.raises(SystemExit, match="has failed"),
    ):
        connecting.connect("127.0.0.1", 0)
    assert "0 connects closed by rst are not possible" in capfd.readouterr().err
