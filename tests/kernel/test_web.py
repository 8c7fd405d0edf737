"""The page of `--metrics` and its document, and the clients that may read them."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.support.contract import read_status
from tests.support.process import free_port
from tests.support.sidecar import sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

OPTIONS: Final = ("--srv", "_web._tcp.example=10.64.0.1:80", "--resolver", "127.0.0.1:1")
PAGES: Final = ("/", "/status.json", "/metrics", "/healthz", "/no-such-page")


@contextmanager
def served(instance: str, cgroup: Path, directory: Path, address: str = "127.0.0.1") -> Iterator[int]:
    """Run a sidecar whose source never answers, and return its port."""
    port = free_port()
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    with sidecar(instance, cgroup, directory, [*OPTIONS, "--metrics", where], ready=False) as found:
        found.wait_for(lambda: "source fails" in found.events(), "the sidecar runs")
        yield port


def ask(
    port: int, path: str, host: str | None = None, *, method: str = "GET", address: str = "127.0.0.1"
) -> tuple[int, http.client.HTTPMessage, str]:
    """Send one request; return status, headers and body.

    :param host: the Host header; by default the address.
    """
    connection = http.client.HTTPConnection(address, port, timeout=20)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def test_document_is_that_of_status(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """/status.json equals `status --json`, and /healthz is not ready before the first answer of each source."""
    with served(instance, cgroup, tmp_path) as port:
        code, headers, body = ask(port, "/status.json")
        assert (code, headers["Content-Type"]) == (200, "application/json")
        found, expected = read_status(body), status(instance)
        assert found["sources"][0]["state"] == "retrying"
        for document in (found, expected):
            document["sources"][0].update(error=None, reason=None)  # it may have retried meanwhile
        assert found == expected
        assert ask(port, "/healthz")[::2] == (503, "not ready\n")


def test_page_may_do_nothing_but_what_it_does(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The policy allows the page's own script and style only, and the page contains no other code."""
    with served(instance, cgroup, tmp_path) as port:
        code, headers, body = ask(port, "/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    for kind in ("script", "style"):
        (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    for kind in ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy[kind] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not re.findall(r"<[^>]+\s(?:on\w+|style|src)=", body)
    assert not re.findall(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", body)
    assert len(body) < 42_000


def test_every_answer_has_the_same_headers(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Also errors: no caching, sniffing or embedding, no referrer, and no access for other origins."""
    with served(instance, cgroup, tmp_path) as port:
        for path in PAGES:
            _, headers, _ = ask(port, path)
            assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
            assert (headers["Referrer-Policy"], headers["Server"]) == ("no-referrer", "clb-discovery")
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in headers
        assert [ask(port, path, method="POST")[0] for path in PAGES] == [405, 405, 405, 405, 404]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
def test_loopback_is_not_called_by_foreign_names(instance: str, cgroup: Path, tmp_path: Path, address: str) -> None:
    """At a loopback address the Host has to be an address or localhost, against DNS rebinding by foreign pages."""
    to = "127.0.0.1" if address == "0.0.0.0" else address
    with served(instance, cgroup, tmp_path, address) as port:
        for host in ("127.0.0.1", "10.0.0.7:80", "[::1]:9100", "[::1]", "localhost", "LocalHost:9100"):
            assert ask(port, "/healthz", host, address=to)[0] == 503, host
        for host in (
            "evil.example",
            "evil.example:9100",
            "localhost.evil.example",
            "[evil]",
            "127.0.0.1.evil",
            "",
            "::1",
        ):
            for path in PAGES:
                assert ask(port, path, host, address=to)[0] == 421, host


MALFORMED: Final = {
    "a method that is none": b"G@T / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "bytes": bytes(range(256)) * 4 + b"\r\n\r\n",
    "a hello of TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200) + b"\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    "a long line": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(5000)) + b"\r\n",
    "a version that is none": b"GET / HTTP/9.9.9\r\n\r\n",
    "a header that is none": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n: x\r\n\x00\r\n\r\n",
    "a length that is none": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    "a chunk that is none": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
    "a target that is none": b"GET http://[::1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a host that is none": b"GET / HTTP/1.1\r\nHost: [::1:x\r\n\r\n",
    "a port that is none": b"GET / HTTP/1.1\r\nHost: 127.0.0.1:99999999\r\n\r\n",
    "a tunnel": b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "the first words of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "all of it again": b"\r\n\r\n\r\n" * 100,
}


def test_malformed_requests_are_a_line_for_debugging(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Each malformed request logs at most one line, below info, without a traceback, and others get answers."""
    port = free_port()
    options = [*OPTIONS, "--metrics", f"127.0.0.1:{port}", "--log-level", "debug"]
    with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
        found.wait_for(lambda: "source fails" in found.events(), "the sidecar runs")
        for request in MALFORMED.values():
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), timeout=20) as sock, suppress(ConnectionError):
                    sock.sendall(request)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
        assert ask(port, "/healthz")[0] == 503
        text = found.log.read_text()
        ours = [line for line in found.lines() if line["event"] not in {"started", "source fails"}]
        assert "Traceback" not in text
        assert "exc_" not in text
        assert {line["level"] for line in ours if "programs" not in line["event"]} <= {"debug"}, ours
        assert 3 <= len([line for line in ours if "request" in line["event"]]) <= 3 * len(MALFORMED)
        assert max(map(len, text.splitlines())) < 1000
