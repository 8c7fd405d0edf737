"""Exhaustion of descriptors, places for connections, and time. The sidecar goes on, and logs little."""

from __future__ import annotations

import errno
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.pins import Pins
from clb_discovery.metrics.connections import MOST, PATIENCE
from clb_discovery.sidecar.daemon import THREADS
from tests.support.in_process import STOPS_WITHIN
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, clb, sidecar, wait_for_pool
from tests.support.srv_web import VIP, WEB, resolver, serve, weighted
from tests.support.web import get

HEAD: Final = b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def descriptors(found: Sidecar) -> int:
    """Return how many descriptors a sidecar has open."""
    return len(list(Path(f"/proc/{found.process.pid}/fd").iterdir()))


def listens_to_programs(found: Sidecar) -> bool:
    """Return whether a sidecar has opened the ring buffer of the programs, which it does after it is ready."""
    polls = 0
    for descriptor in Path(f"/proc/{found.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is closed by now
            polls += str(descriptor.readlink()) == "anon_inode:[eventpoll]"
    return polls > 1  # beside that of the event loop


@contextmanager
def metered(
    instance: str, cgroup: Path, directory: Path, knot: KnotServer, *options: str
) -> Iterator[tuple[Sidecar, int]]:
    """Run a sidecar for the SRV name with --metrics; yield it and its port."""
    port = free_port()
    rest = [*WEB, *resolver(knot), "--max-ttl", "1s", "--hold", "0s", "--metrics", f"127.0.0.1:{port}", *options]
    with sidecar(instance, cgroup, directory, rest) as found:
        yield found, port


def connected(port: int) -> socket.socket:
    """Connect to the page."""
    return socket.create_connection(("127.0.0.1", port), timeout=patient(20))


def is_closed(sock: socket.socket) -> bool:
    """Return whether the other side has closed; discard received data."""
    sock.setblocking(False)
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in {errno.ECONNRESET, errno.EPIPE}
    return True


def test_an_ordinary_user_cannot_use_descriptors_up(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """With two thousand idle connections some descriptors are left, others get answers, and discovery goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with KnotServer() as knot, ExitStack() as stack:
            serve(knot, "127.0.0.2:80")
            with metered(instance, cgroup, tmp_path, knot) as (found, port):
                before = descriptors(found)
                for number in range(2000):
                    stack.enter_context(connected(port))
                    if number % 200 == 0:
                        assert get(port, "/healthz") == "ready\n"
                        assert "clb_" in get(port, "/metrics")
                assert descriptors(found) <= before + MOST + 20
                serve(knot, "127.0.0.2:80", "127.0.0.3:80")
                wait_for_pool(instance, VIP, weighted("127.0.0.2:80", "127.0.0.3:80"))
                began = time.monotonic()
                assert found.stop() == 0
                assert time.monotonic() - began < STOPS_WITHIN
                assert len(found.lines()) < 30
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_slow_clients_are_ended(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Ten seconds are the limit for a whole request, for the next one, and for accepting the answer."""
    with KnotServer() as knot, ExitStack() as stack:
        serve(knot, "127.0.0.2:80")
        with metered(instance, cgroup, tmp_path, knot) as (found, port):
            wait_until(lambda: listens_to_programs(found), "it has opened all that it keeps open")
            before = descriptors(found)
            idle, slow, kept, posting = (stack.enter_context(connected(port)) for _ in range(4))
            kept.sendall(HEAD + b"\r\n")
            posting.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nx")
            greedy = stack.enter_context(socket.socket())
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            greedy.connect(("127.0.0.1", port))
            greedy.sendall((HEAD + b"\r\n") * 500)  # but it reads nothing
            began = time.monotonic()
            ended: dict[socket.socket, float] = {}
            octets = iter(HEAD * 10)
            while len(ended) < 4 and time.monotonic() - began < patient(PATIENCE) + 5:
                if slow not in ended:
                    slow.setblocking(True)
                    try:
                        slow.send(bytes([next(octets)]))
                    except OSError:
                        ended.setdefault(slow, time.monotonic() - began)
                for sock in (idle, slow, kept, posting):
                    if sock not in ended and is_closed(sock):
                        ended[sock] = time.monotonic() - began
                time.sleep(0.2)
            assert ended.keys() == {idle, slow, kept, posting}
            assert all(PATIENCE - 2 < seconds < patient(PATIENCE + 3) for seconds in ended.values()), ended.values()
            wait_until(lambda: descriptors(found) <= before, "the greedy one is ended, too")
            assert get(port, "/healthz") == "ready\n"


def limit(found: Sidecar) -> tuple[int, int]:
    """Return the soft and the hard limit of a sidecar's descriptors."""
    return resource.prlimit(found.process.pid, resource.RLIMIT_NOFILE)


@contextmanager
def without_descriptors(found: Sidecar, seconds: float = 3.0) -> Iterator[None]:
    """Keep a sidecar from opening anything while the block runs, and for some seconds more."""
    before = limit(found)
    resource.prlimit(found.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
        time.sleep(seconds)
    finally:
        if found.process.poll() is None:
            resource.prlimit(found.process.pid, resource.RLIMIT_NOFILE, before)


def test_soft_limit_is_raised(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A sidecar raises its soft limit of descriptors to the hard one."""
    with KnotServer() as knot:
        serve(knot, "127.0.0.2:80")
        with metered(instance, cgroup, tmp_path, knot) as (found, _):
            soft, hard = limit(found)
            assert soft == hard


Phase = Callable[[Sidecar, KnotServer, int, Path], None]


def idle(_found: Sidecar, _knot: KnotServer, _port: int, _hosts: Path) -> None:
    """Do nothing."""


def changed(_found: Sidecar, knot: KnotServer, _port: int, _hosts: Path) -> None:
    """Change discovery."""
    serve(knot, "127.0.0.9:80")


def scraped(_found: Sidecar, _knot: KnotServer, port: int, _hosts: Path) -> None:
    """Open many connections to the page."""
    for _ in range(200):
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))


def reloaded(found: Sidecar, _knot: KnotServer, _port: int, _hosts: Path) -> None:
    """Reload the configuration."""
    found.process.send_signal(signal.SIGHUP)


def overwritten(_found: Sidecar, _knot: KnotServer, _port: int, hosts: Path) -> None:
    """Let another program write the hosts file."""
    hosts.write_text("")


@pytest.mark.parametrize("phase", [idle, changed, scraped, reloaded, overwritten], ids=lambda phase: phase.__name__)
def test_shortage_of_descriptors_is_survived(instance: str, cgroup: Path, tmp_path: Path, phase: Phase) -> None:
    """If no descriptor is available for seconds, the sidecar survives, recovers and logs little, in each situation."""
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    options = ("--hosts-file", str(hosts), "--state-dir", str(tmp_path / "state"))
    with KnotServer() as knot:
        serve(knot, "127.0.0.2:80")
        with metered(instance, cgroup, tmp_path, knot, *options) as (found, port):
            with without_descriptors(found):
                phase(found, knot, port, hosts)
            assert found.process.poll() is None, found.log.read_text()
            serve(knot, "127.0.0.2:80", "127.0.0.3:80")
            wait_for_pool(instance, VIP, weighted("127.0.0.2:80", "127.0.0.3:80"))
            assert get(port, "/healthz") == "ready\n"
            found.wait_for(lambda: "web.clb" in hosts.read_text(), "names are there")
            assert "Too many open files" in found.log.read_text()
            assert "Traceback" not in found.log.read_text()
            assert len(found.log.read_text()) < 16_000, found.log.read_text()
            assert found.stop() == 0


def test_a_sidecar_without_descriptors_ends_in_time(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """SIGTERM works meanwhile, too."""
    with KnotServer() as knot:
        serve(knot, "127.0.0.2:80")
        with metered(instance, cgroup, tmp_path, knot, "--state-dir", str(tmp_path / "state")) as (found, _):
            with without_descriptors(found, 1.0):
                changed(found, knot, 0, tmp_path)
                time.sleep(1.5)
                began = time.monotonic()
                assert found.stop() == 0, found.log.read_text()
                assert time.monotonic() - began < STOPS_WITHIN
            assert "Traceback" not in found.log.read_text()


def test_a_cgroup_made_anew_meanwhile_is_attached_to(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A missed recreation of the cgroup is repaired when descriptors are available."""
    with KnotServer() as knot:
        serve(knot, "127.0.0.2:80")
        with metered(instance, cgroup, tmp_path, knot) as (found, _):
            wait_until(lambda: not [child for child in cgroup.iterdir() if child.is_dir()], "the self-test is over")
            with without_descriptors(found):
                cgroup.rmdir()
                cgroup.mkdir()
            found.wait_for(lambda: "programs attached again" in found.events(), "it is attached again")
            serve(knot, "127.0.0.3:80")
            wait_for_pool(instance, VIP, weighted("127.0.0.3:80"))
            assert clb("status", "--instance", instance).returncode == 0


def test_maps_loaded_anew_meanwhile_are_taken(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A sidecar with `--loader none` switches to new maps as soon as it can open them, and logs little until then."""
    where = ("--instance", instance, "--cgroup", cgroup)
    assert clb("load", *where).returncode == 0
    with KnotServer() as knot:
        serve(knot, "127.0.0.2:80")
        options = [*WEB, *resolver(knot), "--max-ttl", "1s", "--hold", "0s"]
        with sidecar(instance, None, tmp_path, options) as found:
            with without_descriptors(found):
                shutil.rmtree(Pins(instance).directory)
                assert clb("load", *where).returncode == 0
            found.wait_for(lambda: "maps were recreated" in found.events(), "the new maps are found")
            wait_for_pool(instance, VIP, weighted("127.0.0.2:80"))
            assert len(found.log.read_text()) < 16_000
            assert found.stop() == 0


def test_no_thread_is_started_later(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """All threads of a sidecar start with it, so it does not need room for more later."""
    with KnotServer() as knot:
        serve(knot, "127.0.0.2:80")
        options = ("--hosts-file", str(tmp_path / "hosts"), "--state-dir", str(tmp_path / "state"))
        with metered(instance, cgroup, tmp_path, knot, *options) as (found, port):
            threads = Path(f"/proc/{found.process.pid}/task")
            before = {path.name for path in threads.iterdir()}
            assert len(before) == THREADS + 2  # the disk has one of its own
            for _ in range(20):
                get(port, "/metrics")
            serve(knot, "127.0.0.3:80")
            wait_for_pool(instance, VIP, weighted("127.0.0.3:80"))
            found.process.send_signal(signal.SIGHUP)
            found.wait_for(lambda: "configuration reloaded" in found.events(), "it is read again")
            assert {path.name for path in threads.iterdir()} == before
