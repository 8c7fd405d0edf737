"""Active connections of each real server, as the kernel counts them: until the application closes them, not longer."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.model.servers import Algorithm, PassiveHealth
from tests.programs import churn
from tests.support.cgroups import inside
from tests.support.moody import MoodyServer, moody_servers
from tests.support.pace import effort
from tests.support.plane import HOST, Plane, real, target_of, virtual_server
from tests.support.process import accepts, free_port, running, wait_until
from tests.support.recorder import all_places_taken
from tests.support.sockets import RESET, outcome

COUNTED: Final = PassiveHealth(eject_after=0)
HOLDER: Final = (sys.executable, "-m", "tests.programs.holder")
VIPS: Final = ("10.64.0.1", "[fd00:64::1]")
PROCESSES: Final = 8
CRASHES: Final = (10, 15, 20)
"""One process is killed after each of these numbers of publications."""


@pytest.fixture(autouse=True, params=["in places", "with sockets"])
def _records(request: pytest.FixtureRequest, plane: Plane) -> Iterator[None]:
    """Run each test twice: with records in their array, and with all places in the array taken."""
    with ExitStack() as stack:
        if request.param == "with sockets":
            maps = stack.enter_context(Maps(plane.pins))
            stack.enter_context(all_places_taken(maps.records()))
        yield


def publish(plane: Plane, vip: str, *servers: MoodyServer, health: PassiveHealth = COUNTED) -> None:
    """Publish these servers as the pool of the only virtual server, with round-robin."""
    names = [server.name for server in servers]
    plane.publish(virtual_server(vip, names, Algorithm.ROUND_ROBIN, health))


def active(plane: Plane, vip: str) -> int:
    """Return the active connections of a virtual server."""
    return sum(plane.active(vip).values())


def wait_for(plane: Plane, vip: str, count: int) -> None:
    """Wait until a virtual server has `count` active connections."""
    wait_until(lambda: active(plane, vip) == count, f"{vip} has {count} connections")


def reset(sock: socket.socket) -> None:
    """Close a socket with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def disconnect(sock: socket.socket) -> None:
    """Dissolve the connection and keep the socket: connect(2) with AF_UNSPEC, which Python does not offer."""
    assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["close", "reset"])
def test_client_closes_its_connections(plane: Plane, vip: str, end: Callable[[socket.socket], None]) -> None:
    """A connection counts from its connect until the client closes it, and not longer."""
    with moody_servers(*[HOST[vip]] * 2) as servers:
        publish(plane, vip, *servers)
        clients = plane.client.connected(target_of(vip), 10)
        for left in range(10, 0, -1):
            assert active(plane, vip) == left
            end(clients[left - 1])
            assert active(plane, vip) == left - 1
        assert set(plane.active(vip).values()) == {0}


@pytest.mark.parametrize(
    "end",
    [disconnect, lambda sock: sock.shutdown(socket.SHUT_WR), lambda sock: sock.shutdown(socket.SHUT_RDWR)],
    ids=["disconnect", "half-close", "shutdown"],
)
def test_client_keeps_sockets_that_it_has_ended(plane: Plane, vip: str, end: Callable[[socket.socket], None]) -> None:
    """A connection counts until the client closes its socket; where every state is followed, until TCP has ended it."""
    with moody_servers(*[HOST[vip]] * 2) as servers:
        publish(plane, vip, *servers)
        clients = plane.client.connected(target_of(vip), 5)
        for client in clients:
            end(client)
        has_ended = end is disconnect and plane.follows_every_state
        assert active(plane, vip) == (0 if has_ended else 5)
        for left in range(4, -1, -1):
            clients[left].close()
            assert active(plane, vip) == (0 if has_ended else left)


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["half-close", "reset"])
def test_server_ends_the_connections(plane: Plane, vip: str, end: Callable[[socket.socket], None]) -> None:
    """A connection that its server closes or resets counts until the client closes it; see the test before."""
    with moody_servers(HOST[vip]) as (server,):
        publish(plane, vip, server)
        clients = plane.client.connected(target_of(vip), 5)
        assert active(plane, vip) == 5
        for client in clients:
            end(server.take())
            client.setblocking(True)
            assert outcome_of_read(client) == ("reset" if end is reset else "end")
        has_ended = end is reset and plane.follows_every_state
        assert active(plane, vip) == (0 if has_ended else 5)
        for client in clients:
            client.close()
        assert active(plane, vip) == 0


def outcome_of_read(sock: socket.socket) -> str:
    """Wait until the connection has ended; return how."""
    try:
        assert sock.recv(1) == b""
    except ConnectionResetError:
        return "reset"
    return "end"


@pytest.mark.parametrize("crash", [signal.SIGKILL, signal.SIGTERM])
def test_application_crashes(plane: Plane, vip: str, crash: signal.Signals) -> None:
    """Connections of a killed process are not counted after it has ended."""
    with moody_servers(HOST[vip]) as (server,):
        publish(plane, vip, server)
        clients = plane.client.connected(target_of(vip), 7)
        with heir(*clients) as process:
            for client in clients:
                client.close()
            assert active(plane, vip) == 7
            process.send_signal(crash)
            process.wait()
            assert active(plane, vip) == 0


@contextmanager
def heir(*sockets: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has inherited sockets and does nothing with them."""
    with subprocess.Popen(["sleep", "60"], pass_fds=[sock.fileno() for sock in sockets]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_connection_ends_with_the_last_process_that_has_it(plane: Plane, vip: str) -> None:
    """After a fork a connection is active until both processes have closed it."""
    with moody_servers(HOST[vip]) as (server,):
        publish(plane, vip, server)
        (client,) = plane.client.connected(target_of(vip))
        with heir(client) as one, heir(client) as other:
            client.close()
            for process, left in ((one, 1), (other, 0)):
                process.kill()
                process.wait()
                assert active(plane, vip) == left


def test_connection_is_passed_to_another_process(plane: Plane, vip: str) -> None:
    """A connection that is passed over a UNIX socket stays active until the receiving process closes it."""
    with moody_servers(HOST[vip]) as (server,):
        publish(plane, vip, server)
        (client,) = plane.client.connected(target_of(vip))
        here, there = socket.socketpair()
        with here, there:
            socket.send_fds(here, [b"yours"], [client.fileno()])
            client.close()
            assert active(plane, vip) == 1
            command = [*HOLDER, "passed", str(there.fileno())]
            with subprocess.Popen(
                command, pass_fds=[there.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout
                assert process.stdout.readline(), "it has the connection"
                assert active(plane, vip) == 1
                process.kill()
                process.wait()
                assert active(plane, vip) == 0


def test_connection_that_is_passed_but_not_received_ends(plane: Plane, vip: str) -> None:
    """A passed connection that no process receives ends with the UNIX socket."""
    with moody_servers(HOST[vip]) as (server,):
        publish(plane, vip, server)
        (client,) = plane.client.connected(target_of(vip))
        here, there = socket.socketpair()
        socket.send_fds(here, [b"yours"], [client.fileno()])
        client.close()
        here.close()
        assert active(plane, vip) == 1
        there.close()
        wait_for(plane, vip, 0)


def test_connects_that_fail_are_not_active(plane: Plane, vip: str) -> None:
    """A connect counts while it waits for its server, and stops counting when it fails or is given up."""
    with moody_servers(*[HOST[vip]] * 2) as (silent, dead):
        publish(plane, vip, silent)
        silent.fall_silent()
        waiting = plane.client.begun(target_of(vip), 8)
        assert active(plane, vip) == 8
        for sock in waiting[:4]:
            sock.close()
        assert active(plane, vip) == 4
        silent.refuse()  # the repeated SYNs get this answer
        wait_for(plane, vip, 0)
        dead.refuse()
        publish(plane, vip, dead)
        assert plane.client.dial(target_of(vip), 10) == ["ECONNREFUSED"] * 10
        assert active(plane, vip) == 0


def test_silent_server_times_out(plane: Plane, vip: str) -> None:
    """A connect that times out does not count any more."""
    with moody_servers(HOST[vip]) as (silent,):
        publish(plane, vip, silent)
        silent.fall_silent()
        (client,) = plane.client.make(target_of(vip))
        assert outcome(client, target_of(vip)) == "ETIMEDOUT"
        assert active(plane, vip) == 0


def test_socket_connects_again(plane: Plane, vip: str) -> None:
    """A socket that fails, connects, is disconnected and connects elsewhere counts once, at its current server."""
    other = vip.replace(":80", ":81")
    with moody_servers(*[HOST[vip]] * 2) as (one, two):
        plane.publish(*(virtual_server(*pair, health=COUNTED) for pair in ((vip, [one.name]), (other, [two.name]))))
        (client,) = plane.client.make(target_of(vip))
        client.setblocking(True)  # else the kernel answers the next connect with ECONNABORTED
        one.refuse()
        assert outcome(client, target_of(vip)) == "ECONNREFUSED"
        one.accept()
        client.connect(target_of(vip))
        assert (active(plane, vip), active(plane, other)) == (1, 0)
        disconnect(client)
        client.connect(target_of(other))
        assert (active(plane, vip), active(plane, other)) == (0, 1)
        reset(two.take())
        disconnect(client)
        client.connect(one.target)  # not a virtual server
        assert (active(plane, vip), active(plane, other)) == (0, 0)
        client.close()
        assert (active(plane, vip), active(plane, other)) == (0, 0)


def test_socket_that_meets_itself(plane: Plane, vip: str) -> None:
    """A connect whose real server is its own socket (simultaneous open, RFC 9293) counts once, until the close."""
    port = free_port()
    host = HOST[vip]
    plane.publish(virtual_server(vip, [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"], health=COUNTED))
    (client,) = plane.client.make(target_of(vip))
    client.bind((host, port))
    client.connect(target_of(vip))
    assert active(plane, vip) == 1
    client.send(b"echo")
    assert client.recv(16) == b"echo"
    client.close()
    assert active(plane, vip) == 0


def test_connected_udp_sockets_count(plane: Plane, vip: str) -> None:
    """A connected UDP socket counts at its server until it connects elsewhere or is closed."""
    here, there = f"{vip}/udp", vip.replace(":80", ":81/udp")
    with moody_servers(*[HOST[vip]] * 2) as (one, two):
        plane.publish(*(virtual_server(*pair, health=COUNTED) for pair in ((here, [one.name]), (there, [two.name]))))
        first, second, third = plane.client.connected(target_of(vip), 3, udp=True)
        assert (active(plane, here), active(plane, there)) == (3, 0)
        first.connect(target_of(vip))
        assert (active(plane, here), active(plane, there)) == (3, 0)
        first.connect((target_of(vip)[0], 81))
        assert (active(plane, here), active(plane, there)) == (2, 1)
        second.connect(two.target)  # not a virtual server
        assert (active(plane, here), active(plane, there)) == (1, 1)
        disconnect(third)  # no hook sees this, so it counts until the next connect
        third.connect((target_of(vip)[0], 81))
        assert (active(plane, here), active(plane, there)) == (0, 2)
        third.close()
        with heir(first) as process:
            first.close()
            assert (active(plane, here), active(plane, there)) == (0, 1)
            process.kill()
            process.wait()
        assert (active(plane, here), active(plane, there)) == (0, 0)


def test_threads_connect_one_udp_socket_at_once(plane: Plane, vip: str) -> None:
    """A UDP socket that many threads connect at once counts once, and stops counting when it is closed."""
    here, there = f"{vip}/udp", vip.replace(":80", ":81/udp")
    with moody_servers(*[HOST[vip]] * 4) as servers:
        names = [server.name for server in servers]
        plane.publish(virtual_server(here, names[:2], health=COUNTED), virtual_server(there, names[2:]))
        (client,) = plane.client.make(target_of(vip), udp=True)
        deadline = time.monotonic() + 1

        def connect() -> None:
            while time.monotonic() < deadline:
                client.connect(target_of(vip))
                client.connect((target_of(vip)[0], 81))

        threads = [threading.Thread(target=connect) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.connect(target_of(vip))
        assert active(plane, here) == 1
        client.close()
        assert sorted(plane.active(here).values()) == [0, 0]


def test_counts_survive_publication(plane: Plane, vip: str) -> None:
    """Counts stay when weights, algorithm or other servers change; connections that end meanwhile are counted out."""
    with moody_servers(*[HOST[vip]] * 3) as servers:
        publish(plane, vip, *servers[:2])
        clients = plane.client.connected(target_of(vip), 10)
        before = plane.active(vip)
        for algorithm in Algorithm:
            plane.publish(virtual_server(vip, [real(server.name, 3) for server in servers], algorithm, COUNTED))
            assert plane.active(vip) == {**before, servers[2].name: 0}
            clients.pop().close()
            assert active(plane, vip) == len(clients)
            before = {name: count for name, count in plane.active(vip).items() if name != servers[2].name}
        for client in clients:
            client.close()
        assert set(plane.active(vip).values()) == {0}


def test_counts_survive_other_programs(plane: Plane, vip: str) -> None:
    """After an upgrade has replaced the programs, earlier connections still leave the count that they are in."""
    with moody_servers(HOST[vip]) as (server,):
        publish(plane, vip, server)
        clients = plane.client.connected(target_of(vip), 6)
        for sock in clients[:2]:
            sock.close()
        plane.load_again()
        assert active(plane, vip) == 4
        clients += plane.client.connected(target_of(vip), 3)
        for left, client in enumerate(clients[:1:-1]):
            client.close()
            assert active(plane, vip) == 6 - left
        assert active(plane, vip) == 0


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
def test_connections_of_a_removed_server_take_nothing_from_its_successor(plane: Plane, vip: str, *, udp: bool) -> None:
    """A server that comes back to the pool counts from zero; endings of its earlier connections do not change this."""
    name = f"{vip}/udp" if udp else vip
    with moody_servers(HOST[vip], HOST[vip]) as (server, other):
        publish(plane, name, server)
        old = plane.client.connected(target_of(vip), 5, udp=udp)
        publish(plane, name, other)
        old.pop().close()
        publish(plane, name, server)
        old.pop().close()
        assert active(plane, name) == 0
        new = plane.client.connected(target_of(vip), 2, udp=udp)
        for sock in old:
            sock.close()
        assert active(plane, name) == 2
        for sock in new:
            sock.close()
        assert active(plane, name) == 0


def test_counting_is_switched_on_and_off(plane: Plane, vip: str) -> None:
    """A connection counts if counting was on when it began, and it is counted out even if counting is off by then."""
    with moody_servers(HOST[vip]) as (server,):
        publish(plane, vip, server, health=replace(COUNTED, active=False))
        uncounted = plane.client.connected(target_of(vip), 3)
        publish(plane, vip, server)
        counted = plane.client.connected(target_of(vip), 2)
        assert active(plane, vip) == 2
        publish(plane, vip, server, health=replace(COUNTED, active=False))
        for sock in (*uncounted, *plane.client.connected(target_of(vip), 2)):
            sock.close()
        assert active(plane, vip) == 2
        for sock in counted:
            sock.close()
        assert active(plane, vip) == 0


def test_random_churn_leaves_nothing(plane: Plane, tmp_path: Path) -> None:
    """Eight processes open and close at random on both families while pools change: counts stay exact, and end at 0."""
    port, gone = free_port(), free_port()
    health = PassiveHealth(eject_first_ms=20, eject_most_ms=100)
    vips = [f"{host}:{number}{kind}" for host in VIPS for number in churn.PORTS for kind in ("", "/udp")]

    def published(round_: int) -> None:
        fours = [f"127.0.0.{number}:{port}" for number in range(1, 4 + round_ % 2)] + [f"127.0.0.1:{gone}"]
        sixes = [f"[::1]:{port}", f"[::1]:{gone}"]
        plane.publish(
            *(
                virtual_server(
                    vip,
                    [real(name, 1 + round_ % 3) for name in (sixes if vip.startswith("[") else fours)],
                    list(Algorithm)[round_ // 5 % 3],
                    health,
                )
                for vip in vips
            )
        )

    published(0)
    hosts = [vip.strip("[]") for vip in VIPS]
    command: list[str | Path] = [sys.executable, "-m", "tests.programs.churn", *hosts]
    with ExitStack() as stack:
        stack.enter_context(running([sys.executable, "-m", "tests.programs.where", str(port)], tmp_path / "where.log"))
        wait_until(lambda: accepts(port), "the server accepts")
        logs = [tmp_path / f"churn-{number}.log" for number in range(PROCESSES)]
        processes = [stack.enter_context(running(inside(plane.cgroup, command), log)) for log in logs]
        most = 0
        for round_ in range(1, effort(40, 25) + 1):
            # The counts are not read at the same moment, so a socket that moves in between may show up in two of them.
            counts = plane.all_active()
            most = max(most, sum(counts))
            assert max(counts) <= PROCESSES * churn.MOST, counts
            published(round_)
            if round_ in CRASHES:
                processes[CRASHES.index(round_)].kill()
        assert [process.poll() for process in processes[len(CRASHES) :]] == [None] * (PROCESSES - len(CRASHES))
        for log in logs:
            assert log.read_text() == ""
    assert most > PROCESSES
    assert set(plane.all_active()) == {0}
    connects = sum(sum(plane.connects(vip).values()) for vip in vips)
    print(f"{connects} connects to servers that stayed, at most {most} active")
