"""Real, unmodified clients on both families: which servers they reach, and which addresses they see."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.cgroups import inside, run_inside
from tests.support.knot import KnotServer
from tests.support.plane import Plane, loaded_plane, virtual_server
from tests.support.process import accepts, free_port, running, wait_until
from tests.support.redis import redis_servers
from tests.support.spares import Spares
from tests.support.tellers import Teller, tellers
from tests.support.transparency import SIDES, Side
from tests.support.web import WebServer, web_servers

PORT: Final = 80
PROGRAMS: Final = Path(__file__).parent.parent / "programs"
BOTH: Final = SIDES[:2]
TRIES: Final = 40
"""After so many connects each of two servers has been reached, except in less than one run of 10^11."""


@pytest.fixture(scope="module")
def loaded(spares: Spares) -> Iterator[Plane]:
    """Load the object that fits this kernel."""
    with loaded_plane(spares) as found:
        yield found


@pytest.fixture
def plane(loaded: Plane) -> Iterator[Plane]:
    """Return a data plane without virtual servers."""
    yield loaded
    loaded.clear()


@pytest.fixture(params=SIDES, ids=[side.name for side in SIDES])
def side(request: pytest.FixtureRequest) -> Side:
    """Return each way in which applications address virtual servers."""
    found: Side = request.param
    return found


def run(plane: Plane, *command: str | Path) -> str:
    """Run a client, which has to succeed; return its output."""
    result = run_inside(plane.cgroup, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def url(side: Side, port: int = PORT) -> str:
    """Return the URL of the VIP."""
    host, _ = side.target(port)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def test_redis_cli(plane: Plane, side: Side, tmp_path: Path) -> None:
    """redis-cli, and redis-benchmark with many connections at once, reach every server of the pool."""
    host, _ = side.target(6379)
    with redis_servers(tmp_path, side.real, side.real) as servers:
        plane.publish(virtual_server(side.at(6379), [f"{side.real_host}:{server.port}" for server in servers]))
        script = f"for i in $(seq {TRIES}); do redis-cli -h {host} config get port | tail -n 1; done"
        assert set(run(plane, "/bin/sh", "-c", script).split()) == {str(server.port) for server in servers}
        for server in servers:
            server.take_connections()
        run(plane, "redis-benchmark", "-q", "-h", host, "-k", "0", "-c", "50", "-n", "1000", "-t", "ping_inline")
        taken = [server.take_connections() for server in servers]
        assert sum(taken) >= 1000
        assert min(taken) > 300  # fails by chance once in 10^35 runs


def test_curl(plane: Plane, side: Side) -> None:
    """Curl reaches every server of the pool, and reports the VIP as its peer."""
    with web_servers(side.real, side.real) as servers:
        plane.publish(virtual_server(side.at(PORT), names(servers)))
        told = " %{remote_ip} %{remote_port}\n"
        one = ["curl", "--silent", "--show-error", "--write-out", told, url(side)]
        pages = set()
        for _ in range(TRIES):
            page, host, port = run(plane, *one).split()
            assert (host, int(port)) == side.target(PORT)
            pages.add(page)
        assert pages == {*names(servers)}


def test_curl_and_an_empty_pool(plane: Plane, side: Side) -> None:
    """Curl fails at once if a pool is empty, as if a server refused."""
    plane.publish(virtual_server(side.at(PORT), []))
    result = run_inside(plane.cgroup, "curl", "--silent", "--show-error", url(side))
    assert result.returncode == 7, result.stderr  # CURLE_COULDNT_CONNECT


@contextmanager
def name_servers(plane: Plane, side: Side) -> Iterator[set[str]]:
    """Run two Knot servers behind the VIP, each with its own address for one name; return the addresses."""
    addresses = ["192.0.2.1", "192.0.2.2"]
    with ExitStack() as stack:
        servers = [f"{side.real_host}:{stack.enter_context(knot_with(address)).port}" for address in addresses]
        plane.publish(*(virtual_server(side.at(53, udp=udp), servers) for udp in (False, True)))
        yield {*addresses}


@contextmanager
def knot_with(address: str) -> Iterator[KnotServer]:
    """Run a Knot server that has this address for `who.example`."""
    with KnotServer() as knot:
        knot.write(f"who A {address}")
        yield knot


@pytest.mark.parametrize("side", BOTH, ids=[side.name for side in BOTH])  # dig accepts no mapped addresses
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig(plane: Plane, side: Side, transport: str) -> None:
    """Every server of the pool answers `dig @VIP`, over UDP and TCP, and dig reports that the VIP has answered."""
    host, _ = side.target(53)
    with name_servers(plane, side) as expected:
        answers = set()
        for _ in range(TRIES):
            text = run(plane, "dig", f"@{host}", transport, "+tries=1", "who.example", "A")
            assert f";; SERVER: {host}#53({host})" in text
            assert "unexpected source" not in text
            (line,) = [line for line in text.splitlines() if line.startswith("who.example.")]
            answers.add(line.split()[-1])
        assert answers == expected


def test_resolver_that_checks_the_source(plane: Plane, side: Side) -> None:
    """dnspython, which sends unconnected datagrams and accepts answers only from the address queried, gets answers."""
    host, _ = side.target(53)
    program = (
        "import dns.message, dns.query\n"
        f"for _ in range({TRIES}):\n"
        f"    answer = dns.query.udp(dns.message.make_query('who.example', 'A'), '{host}', timeout=5)\n"
        "    print(answer.answer[0][0].address)\n"
    )
    with name_servers(plane, side) as expected:
        assert set(run(plane, sys.executable, "-c", program).split()) == expected


@contextmanager
def greeters(plane: Plane, side: Side) -> Iterator[tuple[Teller, Teller]]:
    """Run a server of each protocol behind the VIP."""
    with tellers(side.real) as (tcp,), tellers(side.real, udp=True) as (udp,):
        plane.publish(virtual_server(side.at(PORT), [tcp.name]), virtual_server(side.at(PORT, udp=True), [udp.name]))
        yield tcp, udp


def said(answers: Sequence[tuple[str, Teller]]) -> list[str]:
    """Return the output of a client program for these answers."""
    return [f"{host} {PORT} {server.name} hello" for host, server in answers]


@pytest.mark.clients
def test_java(plane: Plane, side: Side, tmp_path: Path) -> None:
    """A Java program reaches the pool over TCP, blocking and not, and UDP, connected and not, and sees the VIP."""
    run(plane, "javac", "-d", tmp_path, PROGRAMS / "Client.java")
    host, _ = side.target(PORT)
    seen = {"ipv4": host, "ipv6": "fd00:64:0:0:0:0:0:1", "mapped": "10.64.0.1"}[side.name]  # as Java writes it
    with greeters(plane, side) as (tcp, udp):
        lines = run(plane, "java", "-cp", tmp_path, "Client", host, str(PORT)).splitlines()
        assert lines == said([(seen, tcp), (seen, tcp), (seen, udp), (seen, udp)])


@pytest.mark.clients
def test_node(plane: Plane, side: Side) -> None:
    """A Node program reaches the pool over TCP and UDP, connected and not, and sees the VIP."""
    host, _ = side.target(PORT)
    with greeters(plane, side) as (tcp, udp):
        lines = run(plane, "node", PROGRAMS / "client.js", host, str(PORT)).splitlines()
        assert lines == said([(host, tcp), (host, udp), (host, udp)])


def names(servers: Sequence[WebServer]) -> list[str]:
    """Return the names of the servers."""
    return [server.name for server in servers]


def fetch(port: int) -> tuple[int, str, str]:
    """Fetch a page from a proxy on 127.0.0.1; return its status, the upstream that it reports, and the page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        return response.status, response.headers.get("X-Upstream", ""), response.read().decode()
    finally:
        connection.close()


NGINX: Final = """\
daemon off;
pid {folder}/pid;
error_log stderr;
worker_processes 2;
user root;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {url};
            add_header X-Upstream $upstream_addr always;
        }}
    }}
}}
"""


@pytest.mark.clients
@pytest.mark.parametrize("side", BOTH, ids=[side.name for side in BOTH])
def test_nginx(plane: Plane, side: Side, tmp_path: Path) -> None:
    """Nginx with the VIP as its upstream reaches every server of the pool, and answers 502 while it is empty."""
    port, config = free_port(), tmp_path / "nginx.conf"
    config.write_text(NGINX.format(folder=tmp_path, port=port, url=url(side)))
    command = inside(plane.cgroup, ["nginx", "-e", "stderr", "-c", config])
    with web_servers(side.real, side.real) as servers, running(command, tmp_path / "log"):
        wait_until(lambda: accepts(port), "nginx serves")
        plane.publish(virtual_server(side.at(PORT), names(servers)))
        upstream = url(side).removeprefix("http://").rstrip("/")
        assert {fetch(port) for _ in range(TRIES)} == {(200, upstream, name) for name in names(servers)}
        plane.publish(virtual_server(side.at(PORT), []))
        status, asked, _ = fetch(port)
        assert (status, asked) == (502, upstream)


HAPROXY: Final = """\
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    retries 0
listen front
    bind 127.0.0.1:{port}
    http-reuse never
    server vip {upstream} check inter 100ms fall 1 rise 1
"""


@pytest.mark.clients
@pytest.mark.parametrize("side", BOTH, ids=[side.name for side in BOTH])
def test_haproxy(plane: Plane, side: Side, tmp_path: Path) -> None:
    """HAProxy with the VIP as its server reaches every server of the pool, and marks it down while it is empty."""
    port, config = free_port(), tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, upstream=url(side).removeprefix("http://").rstrip("/")))
    command = inside(plane.cgroup, ["haproxy", "-db", "-f", config])
    with web_servers(side.real, side.real) as servers, running(command, tmp_path / "log"):
        wait_until(lambda: accepts(port), "HAProxy serves")
        plane.publish(virtual_server(side.at(PORT), names(servers)))
        wait_until(lambda: fetch(port)[0] == 200, "the VIP is up")
        assert {(status, page) for status, _, page in (fetch(port) for _ in range(TRIES))} == {
            (200, name) for name in names(servers)
        }
        plane.publish(virtual_server(side.at(PORT), []))
        wait_until(lambda: "Server front/vip is DOWN" in (tmp_path / "log").read_text(), "the VIP is down")
        assert fetch(port)[0] == 503
        plane.publish(virtual_server(side.at(PORT), names(servers)))
        wait_until(lambda: fetch(port)[0] == 200, "the VIP is up again")
