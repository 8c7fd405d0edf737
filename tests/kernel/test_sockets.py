"""Closing real sockets of an application from outside: those of a removed real server, and no others."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from socket import socket as Socket  # noqa: N812 - a method of Application is called socket
from typing import Any, Final, NamedTuple

import pytest

from clb_discovery.datapath import bpf
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets import sock_diag
from clb_discovery.datapath.sockets.closing import Diag, close_sockets
from clb_discovery.datapath.sockets.namespaces import Namespaces
from clb_discovery.datapath.sockets.records import RecordMaps, make_iterator
from clb_discovery.datapath.sockets.sock_diag import FoundSocket, Peer, State
from clb_discovery.errors import HostError
from clb_discovery.layout import elements, structs
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import Protocol, RealServer, Vip
from tests.support import namespaces
from tests.support.kernel_version import KERNEL
from tests.support.listeners import listening
from tests.support.pace import patient
from tests.support.plane import HOST, Plane, target_of, virtual_server
from tests.support.process import wait_until
from tests.support.recorder import all_places_taken, cookie_of, is_in_its_place, record_maps, write_place, write_stored

VIPS: Final = {socket.AF_INET: parse_address("10.64.0.1"), socket.AF_INET6: parse_address("fd00:64::1")}
CLOSER: Final = Path(__file__).parents[1] / "programs" / "closer.py"
NOTHING: Final = (0, frozenset[str]())
WITHOUT_BTF: Final = [
    *("unshare", "--mount", "sh", "-c"),
    'mount --bind /dev/null /sys/kernel/btf/vmlinux; exec "$@"',
    "sh",
]
"""Prefix that runs a program as on a kernel without its own BTF."""


class Way(NamedTuple):
    """How an application reaches a server."""

    protocol: Protocol
    family: socket.AddressFamily
    """Of the application's socket."""
    server: str
    """Where the server is bound."""
    dialled: str
    """The address that the application passes to connect, as its family writes it."""

    def __str__(self) -> str:
        return f"{self.protocol.name.lower()}-{self.dialled}"

    @property
    def kind(self) -> socket.SocketKind:
        """Type of the socket."""
        return socket.SOCK_STREAM if self.protocol is Protocol.TCP else socket.SOCK_DGRAM


WAYS: Final = [
    Way(protocol, family, server, dialled)
    for protocol in Protocol
    for family, server, dialled in [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "127.0.0.1", "::ffff:127.0.0.1"),
    ]
]
TCP: Final = WAYS[0]
UDP: Final = next(way for way in WAYS if way.protocol is Protocol.UDP)
PLACE, STORAGE = "place", "storage"
"""The location of a socket's record."""
SHOWS_UDP: Final = KERNEL >= (5, 12)


def ways(*some: Way) -> pytest.MarkDecorator:
    """Run a test once for each way."""
    return pytest.mark.parametrize("way", some, ids=str)


any_way = ways(*WAYS)


class Server:
    """A real server on a port of its own."""

    def __init__(self, way: Way, backlog: int = 4096) -> None:
        """Bind, in the network namespace of the calling thread."""
        self.way = way
        self.sock = socket.socket(socket.AF_INET6 if ":" in way.server else socket.AF_INET, way.kind)
        self.sock.bind((way.server, 0))
        if way.protocol is Protocol.TCP:
            self.sock.listen(backlog)
        self.port: int = self.sock.getsockname()[1]
        self.address: Address = parse_address(way.server)

    @property
    def dialled(self) -> tuple[str, int]:
        """The address that the application connects to."""
        return self.way.dialled, self.port

    def member(self, port: int = 6379, protocol: Protocol | None = None) -> bytes:
        """Return the packed member for this server in a virtual server with this port."""
        vip = Vip(VIPS[self.sock.family], port, protocol or self.way.protocol)
        return elements.pack_member(elements.pack_vip(vip), RealServer(0, self.address, self.port, 1))


class Application:
    """Connects sockets, with or without a record, and keeps them open."""

    def __init__(self, where: str, maps: RecordMaps) -> None:
        self.where = where
        self.maps = maps
        self.sockets = contextlib.ExitStack()

    def socket(self, way: Way) -> Socket:
        """Open a socket, in the network namespace of the calling thread."""
        return self.sockets.enter_context(socket.socket(way.family, way.kind))

    def connect(self, server: Server, record: bytes | None = None) -> Socket:
        """Connect a socket and leave a record of it, by default the server's."""
        sock = self.socket(server.way)
        sock.connect(server.dialled)
        self.record(sock, record or server.member())
        return sock

    def record(self, sock: Socket, member: bytes) -> None:
        """Write the record that the programs leave for a connect to the member, in a place or with the socket."""
        cookie = cookie_of(sock)
        if self.where == PLACE:
            write_place(self.maps, cookie, member)
            return
        if not SHOWS_UDP and (sock.type == socket.SOCK_DGRAM or elements.protocol_of(member) is Protocol.UDP):
            pytest.skip("lacks records of UDP sockets")
        write_place(self.maps, cookie + structs.PLACES, member, crowded=True)
        write_stored(self.maps, sock, member)

    def serve(self, way: Way, backlog: int = 4096) -> Server:
        """Start a server."""
        server = Server(way, backlog)
        self.sockets.enter_context(server.sock)
        return server

    def accept(self, server: Server) -> Socket:
        """Return the server's end of the next connection."""
        accepted, _ = server.sock.accept()
        return self.sockets.enter_context(accepted)

    def close(self, *members: bytes, protocols: tuple[Protocol, ...] = tuple(Protocol)) -> tuple[int, frozenset[str]]:
        """Close the sockets of removed members; return their number and the failures."""
        closed = close_sockets(members, self.maps, protocols=protocols)
        return closed.count, closed.failures


@pytest.fixture(params=[PLACE, STORAGE])
def app(request: pytest.FixtureRequest) -> Iterator[Application]:
    """Return an application of each kind of record, whose sockets and servers are closed at the end."""
    with record_maps() as maps:
        application = Application(request.param, maps)
        with application.sockets:
            yield application


records_in_places = pytest.mark.parametrize("app", [PLACE], indirect=True)
records_with_sockets = pytest.mark.parametrize("app", [STORAGE], indirect=True)


def works(sock: Socket) -> bool:
    """Return whether an application can still send."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and sock.send(b"x") == 1


def state(sock: Socket) -> int:
    """Return the state of a TCP socket."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def disconnect(sock: Socket) -> None:
    """Undo a connect by connecting to AF_UNSPEC, as in connect(2); Python has no address of that family."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0, os.strerror(ctypes.get_errno())


@any_way
def test_an_application_that_waits_learns_at_once(app: Application, way: Way) -> None:
    """A read that blocks on a removed server ends with an error when the socket is closed."""
    server = app.serve(way)
    sock = app.connect(server)
    sock.settimeout(patient(20))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(sock.recv, 1)
        assert app.close(server.member()) == (1, frozenset())
        with pytest.raises(ConnectionAbortedError):
            waiting.result()
    with pytest.raises(OSError, match=r"Broken pipe|Destination address required"):
        sock.send(b"x")


@any_way
def test_a_foreign_connection_survives(app: Application, way: Way) -> None:
    """A direct connection to the removed server stays open when others are closed."""
    server = app.serve(way)
    foreign = app.socket(way)
    foreign.connect(server.dialled)
    assert app.close(server.member()) == NOTHING
    app.connect(server)
    assert app.close(server.member()) == (1, frozenset())
    assert works(foreign)


@any_way
def test_a_stale_record_closes_nothing(app: Application, way: Way) -> None:
    """A socket that has moved to another server keeps its connection, although its record names the old server."""
    removed, other = app.serve(way), app.serve(way)
    sock = app.connect(removed)
    disconnect(sock)
    sock.connect(other.dialled)
    assert app.close(removed.member(), other.member()) == NOTHING
    assert works(sock)


@any_way
def test_a_server_removed_from_one_virtual_server_keeps_another_s_connections(app: Application, way: Way) -> None:
    """The record names the virtual server through which a socket came to the real server."""
    server = app.serve(way)
    kept, lost = app.connect(server, server.member(6380)), app.connect(server, server.member(6379))
    assert app.close(server.member(6379)) == (1, frozenset())
    assert works(kept)
    assert not works(lost)


@any_way
def test_a_record_of_the_other_protocol_closes_nothing(app: Application, way: Way) -> None:
    """A virtual server has one protocol; a record with the other one does not belong to the socket."""
    server = app.serve(way)
    other = Protocol.UDP if way.protocol is Protocol.TCP else Protocol.TCP
    sock = app.connect(server, server.member(protocol=other))
    assert app.close(server.member(protocol=other)) == NOTHING
    assert works(sock)


def test_only_requested_protocols_are_closed(app: Application) -> None:
    """The caller can close UDP sockets while TCP connections drain."""
    servers = [app.serve(TCP), app.serve(UDP)]
    tcp, udp = map(app.connect, servers)
    members = [server.member() for server in servers]
    assert app.close(*members, protocols=(Protocol.UDP,)) == (1, frozenset())
    assert works(tcp)
    assert not works(udp)
    assert app.close(*members, protocols=()) == NOTHING
    assert app.close(protocols=tuple(Protocol)) == NOTHING


@records_with_sockets
def test_a_kernel_that_cannot_show_records_of_udp_is_named(app: Application) -> None:
    """Only UDP sockets without a place stay open, because their server is unknown, and the failure names the fix."""
    servers = [app.serve(TCP), app.serve(UDP)]
    tcp, udp = map(app.connect, servers)
    placed = app.socket(UDP)
    placed.connect(servers[1].dialled)
    write_place(app.maps, cookie_of(placed), servers[1].member())
    result = close_by(app, WITHOUT_BTF, *servers)
    assert result["count"] == 2
    (failure,) = result["failures"]
    assert os.uname().release in failure
    assert "5.12 or later and CONFIG_DEBUG_INFO_BTF" in failure
    assert works(udp)
    assert not works(tcp)
    assert not works(placed)


@records_in_places
def test_where_every_record_is_in_a_place_no_kernel_leaves_a_udp_socket(app: Application) -> None:
    """If every record is in a place, nothing is missed, and no failure is reported."""
    server = app.serve(UDP)
    sock = app.connect(server)
    result = close_by(app, WITHOUT_BTF, server)
    assert (result["count"], result["failures"]) == (1, [])
    assert not works(sock)


@any_way
def test_a_stale_place_closes_no_socket(app: Application, way: Way) -> None:
    """If a socket is gone, its record is not taken for that of the next socket in the same place."""
    server = app.serve(way)
    gone = app.connect(server)
    write_place(app.maps, cookie_of(gone), server.member())
    gone.close()
    foreign = app.socket(way)
    foreign.connect(server.dialled)
    write_place(app.maps, cookie_of(foreign) + structs.PLACES, server.member())
    assert app.close(server.member()) == NOTHING
    assert works(foreign)


@records_with_sockets
@any_way
def test_a_record_in_a_place_has_precedence(app: Application, way: Way) -> None:
    """If a later connect puts a record into a place, the older record that is with the socket does not count."""
    server = app.serve(way)
    first, second = server.member(6379), server.member(6380)
    sock = app.connect(server, first)
    app.connect(app.serve(way))  # its place is crowded
    write_place(app.maps, cookie_of(sock), second)
    assert app.close(first) == NOTHING
    assert works(sock)
    assert app.close(second) == (1, frozenset())


def test_the_server_sees_a_reset(app: Application) -> None:
    """The peer of a closed TCP connection gets a reset, and need not time out."""
    server = app.serve(TCP)
    app.connect(server)
    accepted = app.accept(server)
    app.close(server.member())
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)


def test_a_udp_socket_works_again_after_its_next_connect(app: Application) -> None:
    """The application only has to handle it like any other error."""
    removed, other = app.serve(UDP), app.serve(UDP)
    sock = app.connect(removed)
    assert app.close(removed.member()) == (1, frozenset())
    with pytest.raises(ConnectionAbortedError):
        sock.recv(1)
    sock.connect(other.dialled)
    sock.send(b"again")
    assert other.sock.recv(16) == b"again"


def test_a_connect_under_way_fails_at_once(app: Application) -> None:
    """An application that waits in connect to a removed server does not have to wait for the time-out."""
    server = app.serve(TCP, backlog=0)
    sockets = [app.socket(TCP) for _ in range(4)]  # more than the backlog of the server
    for sock in sockets:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(server.dialled)
        app.record(sock, server.member())
    connecting = [sock for sock in sockets if state(sock) == State.SYN_SENT]
    assert connecting
    assert app.close(server.member()) == (len(sockets), frozenset())
    for sock in connecting:
        assert select.select([], [sock], [], 20)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 103, "ECONNABORTED"


def test_half_closed_connections_are_closed(app: Application) -> None:
    """An application that has shut down its side and waits, or still sends to a server that has, gets the error."""
    server = app.serve(TCP)
    waiting, sending = app.connect(server), app.connect(server)
    waiting.shutdown(socket.SHUT_WR)
    app.accept(server)
    app.accept(server).close()
    wait_until(lambda: [state(waiting), state(sending)] == [State.FIN_WAIT2, State.CLOSE_WAIT], "both are half closed")
    assert app.close(server.member()) == (2, frozenset())


def test_data_sent_before_the_close_still_arrives(app: Application) -> None:
    """The kernel delivers the remaining data of a socket that its application has closed."""
    server = app.serve(TCP)
    sock = app.connect(server)
    accepted = app.accept(server)
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(1 << 16))
    sock.close()
    assert app.close(server.member()) == NOTHING
    received = 0
    while data := accepted.recv(1 << 20):
        received += len(data)
    assert received == sent


@pytest.mark.parametrize("made", [namespaces.by_process, namespaces.by_mount])
@any_way
def test_sockets_in_other_network_namespaces_are_closed(
    app: Application, way: Way, made: Callable[[], AbstractContextManager[Path]]
) -> None:
    """Sockets of containers are found, whether a process or only a mount keeps the namespace."""
    with made() as namespace:
        server = namespaces.inside(namespace, lambda: app.serve(way))
        sock = namespaces.inside(namespace, lambda: app.connect(server))
        foreign = namespaces.inside(namespace, lambda: app.socket(way))
        foreign.connect(server.dialled)
        assert app.close(server.member()) == (1, frozenset())
        assert not works(sock)
        assert works(foreign)
        app.sockets.close()


def test_udp_sockets_that_share_both_ends_are_all_closed(app: Application) -> None:
    """With SO_REUSEPORT several sockets have the same two ends; the kernel returns one of them per query."""
    server = app.serve(UDP)
    sockets = [app.socket(UDP) for _ in range(5)]
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", sockets[0].getsockname()[1]))
        sock.connect(server.dialled)
        app.record(sock, server.member())
    assert app.close(server.member()) == (5, frozenset())
    assert not any(map(works, sockets))


@ways(TCP, UDP)
def test_very_many_sockets_are_closed_and_no_other(app: Application, way: Way) -> None:
    """Long dumps lose no sockets while their sockets are being closed."""
    removed, kept = app.serve(way), app.serve(way)
    sockets = [app.connect(server) for _ in range(1000) for server in (removed, kept)]
    assert app.close(removed.member()) == (1000, frozenset())
    assert not any(map(works, sockets[::2]))
    assert all(map(works, sockets[1::2]))


@any_way
def test_more_removed_servers_than_a_filter_holds(app: Application, way: Way) -> None:
    """Without the kernel's filter the same sockets are closed, and the same ones stay."""
    removed, kept = app.serve(way), app.serve(way)
    lost, staying = app.connect(removed), app.connect(kept)
    vip = elements.pack_vip(Vip(parse_address("10.64.0.1"), 6379, way.protocol))
    more = [
        elements.pack_member(vip, RealServer(0, parse_address("10.0.0.7"), port, 1))
        for port in range(1, sock_diag.MAX_FILTERED + 1)
    ]
    assert app.close(removed.member(), *more) == (1, frozenset())
    assert not works(lost)
    assert works(staying)


@ways(TCP, UDP)
def test_a_socket_in_the_place_of_another_is_not_closed(app: Application, way: Way) -> None:
    """The cookie distinguishes a new socket from the one that was found; a socket that is gone is no error."""
    server = app.serve(way)
    sock = app.connect(server)
    with own_namespace() as diag:
        (found,) = find(diag, server, app.maps.stored)
        if way is TCP:
            assert found.member == (server.member() if app.where == STORAGE else None)
        assert not diag.destroy(found._replace(identity=found.identity[:-1] + bytes([found.identity[-1] ^ 1])))
        assert works(sock)
        assert diag.destroy(found)
        assert not diag.destroy(found)


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
@pytest.mark.parametrize("where", [PLACE, STORAGE])
def test_records_of_the_programs_are_found(plane: Plane, vip: str, where: str, *, udp: bool) -> None:
    """Connections through the virtual server are closed, wherever the record is; direct connections stay."""
    name = f"{vip}/udp" if udp else vip
    with (
        Maps(plane.pins) as maps,
        all_places_taken(maps.records()) if where == STORAGE else contextlib.nullcontext(),
        contextlib.closing(plane.client),  # closed before the places are freed
        listening(HOST[vip], udp=udp) as (server,),
    ):
        service = virtual_server(name, [server.name])
        plane.publish(service)
        (ours,) = plane.client.connected(target_of(name), udp=udp)
        (direct,) = plane.client.connected((HOST[vip], server.port), udp=udp)
        assert is_in_its_place(maps.records(), ours) == (where == PLACE)
        assert plane.has_record(ours)
        members = [elements.pack_member(elements.pack_vip(service.vip), real) for real in service.pool]
        closed = close_sockets(members, maps.records(), protocols=tuple(Protocol))
        if udp and where == STORAGE and not SHOWS_UDP:
            assert closed.count == 0
            assert "5.12 or later" in "".join(closed.failures)
            assert works(ours)
        else:
            assert (closed.count, closed.failures) == (1, frozenset())
            assert not works(ours)
        assert works(direct)


def test_a_kernel_that_cannot_close_sockets_is_named(app: Application) -> None:
    """If the kernel lacks the operation (as for AF_UNIX), the message names the kernel option."""
    unix = FoundSocket(socket.AF_UNIX, Protocol.TCP, State.ESTABLISHED, 1, bytes(48), None)
    with own_namespace() as diag, pytest.raises(HostError, match="CONFIG_INET_DIAG_DESTROY"):
        diag.destroy(unix)
    assert app.close() == NOTHING


def test_a_map_without_records_is_refused(app: Application) -> None:
    """A descriptor of another map is a mistake, and not an empty answer."""
    server = app.serve(TCP)
    wrong = server.sock.fileno()
    for maps, reason in (
        (app.maps._replace(owners=wrong), "cannot read the places of records"),
        (app.maps._replace(places=wrong), "cannot read the places of records"),
        (app.maps._replace(stored=wrong), "does not list TCP sockets"),
    ):
        (failure,) = close_sockets([server.member()], maps, protocols=[Protocol.TCP]).failures
        assert reason in failure


def close_by(app: Application, launcher: list[str], *servers: Server, pinned: str = "") -> dict[str, Any]:
    """Close the sockets of removed servers from a process that another program starts.

    :param pinned: the instance whose iterators show the records that are stored with sockets.
    """
    members = (server.member().hex() for server in servers)
    closer = [sys.executable, str(CLOSER), *map(str, app.maps), pinned, *members]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*launcher, *closer],
        check=True,
        capture_output=True,
        text=True,
        pass_fds=app.maps,
        env=environment,
        timeout=patient(60),
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def close_without(app: Application, server: Server, *capabilities: str, pinned: str = "") -> dict[str, Any]:
    """Close a server's sockets from a root process without some capabilities."""
    drop = ",".join(f"-{name}" for name in capabilities)
    return close_by(app, ["setpriv", f"--bounding-set={drop}"], server, pinned=pinned)


def assert_named(app: Application, way: Way, named: str, *missing: str) -> None:
    """Check that nothing is closed without some capabilities, and that the message names one."""
    server = app.serve(way)
    sock = app.connect(server)
    result = close_without(app, server, *missing)
    assert result["count"] == 0
    assert any(named in failure for failure in result["failures"])
    assert works(sock)


@ways(TCP, UDP)
def test_a_missing_right_to_close_is_named(app: Application, way: Way) -> None:
    """Without the right to close sockets nothing is closed, and the message names the right."""
    assert_named(app, way, "CAP_NET_ADMIN", "net_admin")


def test_a_missing_right_to_read_is_named(app: Application) -> None:
    """Without the right to see records of TCP sockets none is closed, and the message names the right."""
    assert_named(app, TCP, "CAP_BPF", "bpf", "sys_admin")


@records_with_sockets
def test_a_missing_right_to_look_for_udp_is_named(app: Application) -> None:
    """The same for UDP, if records are stored with the sockets, where they are read in another way."""
    assert_named(app, UDP, "CAP_BPF", "bpf", "sys_admin")


@pytest.mark.skipif(KERNEL < (5, 19), reason="lacks maps are written without CAP_BPF")
@ways(TCP, UDP)
def test_process_that_may_only_close_sockets_reads_records_by_a_pin(app: Application, way: Way, instance: str) -> None:
    """With the iterators that a loader has pinned, closing needs CAP_NET_ADMIN alone, wherever the record is."""
    server = app.serve(way)
    sock, other = app.connect(server), app.connect(server, app.serve(way).member())
    pins = Pins(instance)
    pins.create_directory()
    for protocol in Protocol:
        link = make_iterator(app.maps.stored, protocol)
        try:
            bpf.pin(link, pins.records(protocol))
        finally:
            os.close(link)
    result = close_without(app, server, "bpf", "perfmon", "sys_admin", pinned=instance)
    assert result["count"] == 1
    assert all("cannot enter" in failure for failure in result["failures"])  # namespaces of others
    assert not works(sock)
    assert works(other)


def test_without_the_right_to_enter_namespaces_the_own_one_is_served(app: Application) -> None:
    """Sockets of the own namespace are closed, and the message names the namespaces that could not be entered."""
    server = app.serve(TCP)
    sock = app.connect(server)
    with namespaces.by_mount() as namespace:
        result = close_without(app, server, "sys_admin")
        assert result["count"] == 1
        (failure,) = [text for text in result["failures"] if str(namespace.stat().st_ino) in text]
        assert "CAP_SYS_ADMIN" in failure
    assert not works(sock)


def test_processes_that_hide_their_namespace_are_counted(app: Application) -> None:
    """Without the right to look into other processes the answer has the number of hidden ones."""
    server = app.serve(TCP)
    assert close_without(app, server, "sys_ptrace")["hidden"] > 0


@contextlib.contextmanager
def own_namespace() -> Iterator[Diag]:
    """Open the sockets of this process's network namespace."""
    for _, fd in Namespaces():
        with contextlib.closing(Diag(fd)) as diag:
            yield diag
        break


def find(diag: Diag, server: Server, stored: int) -> list[FoundSocket]:
    """Return the sockets that are connected to a server."""
    return list(diag.find(server.way.protocol, [Peer(server.address, server.port)], stored))
