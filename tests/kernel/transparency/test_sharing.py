"""Sockets that several threads or processes share."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.plane import Plane, virtual_server
from tests.support.tellers import tellers
from tests.support.transparency import COUNTED, PORT, Side, as_seen_by, ask, entered, error_of, hear_from, names, peer


def in_threads(work: Callable[[int], None], count: int = 8) -> None:
    """Run the function in as many threads at once, each with its number; raise the error of the first that fails."""
    failures: list[BaseException] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait()
        try:
            work(number)
        except BaseException as failure:  # noqa: BLE001 - it is raised again
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_that_connect_one_udp_socket(plane: Plane, side: Side) -> None:
    """If many threads connect one UDP socket at once, its peer is right, and it is counted once, for one server."""
    with tellers(*[side.real] * 3, udp=True) as servers:
        vips = [side.at(PORT, number, udp=True) for number in (1, 2, 3)]
        plane.publish(
            *(virtual_server(vip, [server.name], health=COUNTED) for vip, server in zip(vips, servers, strict=True))
        )
        real = {as_seen_by(side, server.target): side.target(PORT, n) for n, server in enumerate(servers, 1)}
        (sock,) = plane.client.make(side.target(PORT), udp=True)

        def connect(number: int) -> None:
            for turn in range(500):
                sock.connect(side.target(PORT, 1 + (number + turn) % 3))
                assert peer(sock) in {*real, *real.values()}

        in_threads(connect)
        # The kernel connects after our program has run, so the last program need not belong to the last connect.
        name = ask(sock)
        (number,) = [n for n, server in enumerate(servers, 1) if server.name == name]
        assert peer(sock) in {side.target(PORT, number), as_seen_by(side, servers[number - 1].target)}
        counts = [plane.active(vip)[server.name] for vip, server in zip(vips, servers, strict=True)]
        assert sorted(counts) == [0, 0, 1]
        sock.connect(side.target(PORT, 2))
        assert (peer(sock), ask(sock)) == (side.target(PORT, 2), servers[1].name)
        assert [plane.active(vip)[s.name] for vip, s in zip(vips, servers, strict=True)] == [0, 1, 0]
        sock.close()
        assert [plane.active(vip)[s.name] for vip, s in zip(vips, servers, strict=True)] == [0, 0, 0]


def test_threads_that_send_on_one_udp_socket(plane: Plane, side: Side) -> None:
    """Threads that send on one unconnected socket to different VIPs all reach them, each with one server."""
    with tellers(*[side.real] * 4, udp=True) as servers:
        plane.publish(
            *(virtual_server(side.at(PORT, n, udp=True), [server.name]) for n, server in enumerate(servers, 1))
        )
        (sock,) = plane.client.make(side.target(PORT), udp=True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)

        def send(number: int) -> None:
            for _ in range(100):
                sock.sendto(b"hello", side.target(PORT, 1 + number))

        in_threads(send, 4)
        seen = Counter(hear_from(sock) for _ in range(400))
        assert seen == {(server.name, side.target(PORT, n)): 100 for n, server in enumerate(servers, 1)}
        assert [plane.connects(side.at(PORT, n, udp=True))[s.name] for n, s in enumerate(servers, 1)] == [1] * 4


def test_threads_with_sockets_of_their_own(plane: Plane, side: Side, udp: bool) -> None:
    """Threads that connect sockets of their own see the right peers, and every socket is counted while it is open."""
    with tellers(*[side.real] * 4, udp=udp) as servers:
        vips = [side.at(PORT, number, udp=udp) for number in (1, 2)]
        pools = [servers[:2], servers[2:]]
        plane.publish(
            *(virtual_server(vip, names(pool), health=COUNTED) for vip, pool in zip(vips, pools, strict=True))
        )
        socks = [plane.client.make(side.target(PORT), 40, udp=udp) for _ in range(8)]
        reached: list[list[str]] = [[] for _ in range(8)]

        def connect(number: int) -> None:
            target = side.target(PORT, 1 + number % 2)
            for sock in socks[number]:
                sock.connect(target)
                assert peer(sock) == target
                reached[number].append(ask(sock))

        in_threads(connect)
        for which, (vip, pool) in enumerate(zip(vips, pools, strict=True)):
            counts = Counter(name for number in range(which, 8, 2) for name in reached[number])
            assert counts.total() == 160
            assert plane.active(vip) == {server.name: counts[server.name] for server in pool}

        def close(number: int) -> None:
            for sock in socks[number]:
                sock.close()

        in_threads(close)
        assert [set(plane.active(vip).values()) for vip in vips] == [{0}, {0}]


@contextmanager
def held_by_another(sock: socket.socket, how: str) -> Iterator[subprocess.Popen[str]]:
    """Let another process keep the socket open, inherited over a fork or passed over a UNIX socket."""
    here, there = socket.socketpair()
    with here, there:
        fd = sock.fileno() if how == "inherited" else there.fileno()
        with subprocess.Popen(
            [sys.executable, "-m", "tests.programs.holder", how, str(fd)],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                if how == "passed":
                    socket.send_fds(here, [b"."], [sock.fileno()])
                yield process
            finally:
                process.kill()


@pytest.mark.parametrize("how", ["inherited", "passed"])
@pytest.mark.parametrize("ending", ["exits", "killed"])
def test_socket_in_another_process(plane: Plane, side: Side, udp: bool, how: str, ending: str) -> None:
    """A socket that another process inherits or is passed sees the VIP there, and is counted until both close it."""
    vip = side.at(PORT, udp=udp)
    with tellers(side.real, udp=udp) as (server,):
        plane.publish(virtual_server(vip, [server.name], health=COUNTED))
        (sock,) = plane.client.connected(side.target(PORT), udp=udp)
        with held_by_another(sock, how) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline().split() == [*map(str, side.target(PORT))]
            sock.close()
            assert plane.active(vip) == {server.name: 1}
            process.stdin.write("now\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{server.name} hello\n"
            assert plane.active(vip) == {server.name: 1}
            if ending == "killed":
                process.kill()
            else:
                process.stdin.close()
            process.wait(timeout=10)
            assert plane.active(vip) == {server.name: 0}


def test_socket_belongs_to_the_cgroup_that_it_was_made_in(plane: Plane) -> None:
    """If a process enters the cgroup later, only the sockets that it makes afterwards are balanced."""
    with tellers("127.0.0.1") as (server,):
        plane.publish(virtual_server("10.64.0.1:80", [server.name]))
        with socket.socket() as before, entered(plane.cgroup), socket.socket() as inside:
            assert error_of(before.connect, ("10.64.0.1", 80)) == "ENETUNREACH"
            inside.connect(("10.64.0.1", 80))
            assert ask(inside) == server.name
