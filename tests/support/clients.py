"""Clients that connect without pause at low priority, while something happens."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.programs.connector import RECORD, Connect, read_connects
from tests.support.cgroups import inside
from tests.support.process import accepts, running, wait_until


@contextmanager
def serving(port: int, directory: Path, *hosts: str) -> Iterator[None]:
    """Run the server that reports the reached address while the block runs.

    :param hosts: its addresses; by default every loopback address.
    """
    program = [sys.executable, "-m", "tests.programs.where", str(port), *hosts]
    with running(program, directory / f"where-{port}.log"):
        wait_until(lambda: all(accepts(port, host) for host in hosts or ["127.0.0.1"]), "the server accepts")
        yield


@contextmanager
def connecting(
    cgroup: Path, port: int, directory: Path, *addresses: str, apart: bool = False, serve: bool = True
) -> Iterator[list[Connect]]:
    """Connect without pause to the server that reports the reached address, while the block runs; then fill the list.

    :param apart: start a client for each address, all at once; else one client takes the addresses in turn.
    :param serve: run that server, at the port that clients connect to; else it runs already, maybe behind a VIP.
    """
    turns = [(address,) for address in addresses] if apart else [addresses]
    files, connects = [directory / f"connects-{number}" for number in range(len(turns))], list[Connect]()
    with ExitStack() as stack:
        if serve:
            stack.enter_context(serving(port, directory))
        for file, turn in zip(files, turns, strict=True):
            program = ["nice", sys.executable, "-m", "tests.programs.connector", str(file), "60", str(port), *turn]
            stack.enter_context(running(inside(cgroup, program), directory / "connector.log"))
        wait_until(lambda: all(file.exists() and file.stat().st_size for file in files), "the clients connect")
        yield connects
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // RECORD.size * RECORD.size])  # it was killed, maybe while it wrote
        connects += read_connects(file)


def wait_for_records(directory: Path, client: int = 0) -> None:
    """Wait until a client, which writes in blocks, has written the records of all connects that have ended by now."""
    file = directory / f"connects-{client}"
    enough = file.stat().st_size + 2 * io.DEFAULT_BUFFER_SIZE
    wait_until(lambda: file.stat().st_size >= enough, "the client writes")
