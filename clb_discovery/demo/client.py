"""An ordinary client: it connects to one address repeatedly, and counts the answers of each server.

Like any application it does not know of virtual servers: `python -m clb_discovery.demo.client 10.64.0.1 6379`. Several
times a second it prints its counts since its start, as a line of JSON.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections import Counter
from typing import Final

REPORT_EVERY: Final = 0.1
"""Seconds between two lines."""


def ask(host: str, port: int) -> str:
    """Connect once; return the name of the server that answers, or raise OSError if none does."""
    with socket.create_connection((host, port)) as connection, connection.makefile("rb") as reader:
        connection.sendall(b"PING\r\n")
        answer = reader.readline()
    if not answer.endswith(b"\r\n"):
        raise ConnectionError("closed without an answer")
    return answer.decode().removeprefix("+PONG ").rstrip()


def main(host: str, port: int) -> None:
    """Connect until SIGTERM."""
    answers: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    next_report = 0.0
    while not stopping:
        try:
            answers[ask(host, port)] += 1
        except OSError as error:
            failures[error.strerror or str(error)] += 1
        if time.monotonic() >= next_report:
            _report(answers, failures)
            next_report = time.monotonic() + REPORT_EVERY
    _report(answers, failures)


def _report(answers: Counter[str], failures: Counter[str]) -> None:
    line = json.dumps({"at": time.monotonic(), "answers": answers, "failures": failures})
    print(line, flush=True)  # noqa: T201 - this is the output


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
