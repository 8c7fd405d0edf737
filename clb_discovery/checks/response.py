"""The form of an HTTP check: the request, and the status of the answer, of which nothing else is decoded."""

from __future__ import annotations

import re
from typing import Final

from clb_discovery.model.check import Request

MOST_BYTES: Final = 16384
"""Longest status line and headers together."""
_STATUS: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_END: Final = re.compile(rb"\r?\n\r?\n")


def request_bytes(request: Request, version: str) -> bytes:
    """Return the request of a check; the server closes the connection after its answer."""
    lines = (
        f"GET {request.target} HTTP/1.1",
        f"Host: {request.authority}",
        f"User-Agent: clb-discovery/{version}",
        "Accept: */*",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


def status_of(received: bytes) -> int | None:
    """Return the status of an answer whose headers are complete; None if more has to be received.

    Interim answers (RFC 9110 section 15.2), such as 103, are skipped.

    :raises ValueError: if it is not HTTP/1, or longer than we read.
    """
    at = 0
    while True:
        if not b"HTTP/1."[: len(received) - at] == received[at : at + len(b"HTTP/1.")]:
            raise ValueError("the answer is not HTTP/1")
        end = _END.search(received, at)
        if end is None:
            if len(received) >= MOST_BYTES:
                raise ValueError(f"the headers of the answer are longer than {MOST_BYTES} bytes")
            return None
        status = _STATUS.match(received, at)
        if status is None:
            raise ValueError("the answer is not HTTP/1")
        code = int(status[1])
        if code >= 200 or code == 101:
            return code
        at = end.end()
