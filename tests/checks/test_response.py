"""Of an answer only the status is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.checks.response import MOST_BYTES, request_bytes, status_of
from clb_discovery.model.check import Request


@pytest.mark.parametrize("status", [200, 204, 301, 404, 503, 999])
@pytest.mark.parametrize("form", ["HTTP/1.1 {} OK\r\nA: b\r\n\r\nbody", "HTTP/1.0 {}\n\n", "HTTP/1.1 {} \r\n\r\n"])
def test_the_status_of_an_answer(status: int, form: str) -> None:
    """The reason may be missing, and lines may end with a line feed alone."""
    assert status_of(form.format(status).encode()) == status


@given(st.integers(0, 60))
def test_headers_have_to_be_complete(length: int) -> None:
    """A server that hangs in the middle of its headers has not answered."""
    answer = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 0\r\n\r\n"
    assert status_of(answer[:length]) == (200 if length >= len(answer) else None)


def test_interim_answers_are_skipped() -> None:
    """The final one counts; 101 is final for a request without an upgrade."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert status_of(interim) is None
    assert status_of(interim + b"HTTP/1.1 100\r\n\r\n" + b"HTTP/1.1 500 No\r\n\r\n") == 500
    assert status_of(b"HTTP/1.1 101 Switching\r\n\r\n") == 101


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 20\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n", b"<html>", b"X", b"\r\n\r\n", b"HTTP/1.1  200\r\n\r\n",
    ],
)  # fmt: skip
def test_other_protocols_are_errors(answer: bytes) -> None:
    """They are recognised as soon as possible."""
    with pytest.raises(ValueError, match="not HTTP/1"):
        status_of(answer)


def test_endless_headers_are_an_error() -> None:
    """What is received is bounded."""
    with pytest.raises(ValueError, match="longer than 16384 bytes"):
        status_of(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MOST_BYTES)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_read_or_refused(data: bytes, cut: int) -> None:
    """An answer that is refused stays refused, whatever follows."""
    try:
        first = status_of(data[:cut])
    except ValueError:
        with pytest.raises(ValueError, match="answer"):
            status_of(data)
    else:
        assert first is None or status_of(data) == first


def test_the_request() -> None:
    """The Host header has the name, with the port if the URL has one."""
    assert request_bytes(Request("http", "web.example", 0, "/a?b=1"), "1.2") == (
        b"GET /a?b=1 HTTP/1.1\r\nHost: web.example\r\nUser-Agent: clb-discovery/1.2\r\nAccept: */*\r\n"
        b"Connection: close\r\n\r\n"
    )
    assert b"Host: [fd00::7]:81\r\n" in request_bytes(Request("https", "fd00::7", 81, "/"), "1")
