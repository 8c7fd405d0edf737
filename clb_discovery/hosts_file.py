"""Writing the names of services into a hosts file, which other programs read and write, too."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from clb_discovery.announce import Announcer
from clb_discovery.core import selftest
from clb_discovery.core.address import Address
from clb_discovery.core.held import Held
from clb_discovery.core.hosts import names, with_block
from clb_discovery.errors import HostError
from clb_discovery.files import opened_directory, replace_file
from clb_discovery.runtime import Instance

_log = structlog.stdlib.get_logger()


class HostsFile:
    """The names of an instance's services, in the file that the settings name."""

    def __init__(self, instance: Instance, announcer: Announcer) -> None:
        """Take where the file of the last sidecar is remembered, and who says what happens."""
        self._instance = instance
        self._announcer = announcer

    def leave(self, path: Path | None) -> None:
        """Take the names out of the file that was written last, if this is another, or none."""
        before = self._instance.hosts_file()
        if before is None or (path and before == path.resolve()):
            return
        try:
            write_names(before, self._instance.name, {})
        except HostError as error:
            _log.warning("cannot remove the names of before", error=str(error))

    def publish(self, path: Path, held: Held) -> None:
        """Make the file name what the kernel balances, also where another program has written it anew.

        :raises HostError: naming the file, the cause and the way out.
        """
        found = names(held.virtual, selftest.SOURCE)
        self._announcer.nameless(found.left_out)
        if write_names(path, self._instance.name, found.addresses):
            _log.info("names published", file=str(path), names=len(found.addresses))


def write_names(path: Path, instance: str, addresses: Mapping[str, tuple[Address, ...]]) -> bool:
    """Make the block of an instance say these names; readers see the whole old file or the whole new one.

    :param path: a link is followed; what is not there is made, unless there is nothing to say.
    :param addresses: by host name; none removes the block.
    :returns: whether the file had to be changed.
    :raises HostError: naming the file, the cause and the way out.
    """
    with _explained(path):
        real = path.resolve()
        if not addresses and not real.parent.exists():
            return False
        with _locked(real.parent):
            content, wanted = _read_and_wanted(real, instance, addresses)
            if wanted == content:
                return False
            replace_file(real, wanted, lasting=True)
            return True


def names_ahead(path: Path, instance: str, addresses: Mapping[str, tuple[Address, ...]]) -> dict[str, Any] | None:
    """Return what `write_names` would change, as `plan --json` prints it: the file, and the lines that come and go.

    :returns: None for nothing.
    :raises HostError: as `write_names`, as far as reading tells.
    """
    with _explained(path):
        content, wanted = (_lines(one) for one in _read_and_wanted(path.resolve(), instance, addresses))
    if content == wanted:
        return None
    added, removed = (
        [line for line in one if line not in other] for one, other in ((wanted, content), (content, wanted))
    )
    return {"file": str(path), "added": added, "removed": removed}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise HostError(f"cannot write {path}: another program holds a lock on its directory; trying again") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise HostError(
                f"cannot replace {path}: it is a mount of its own, as in containers; name a file in a directory "
                "that is mounted as a whole"
            ) from error
        raise HostError(f"cannot write {path}: {error.strerror}; --hosts-file needs a writable directory") from error
    except ValueError as error:
        raise HostError(f"cannot write {path}: it {error}") from None


def _read_and_wanted(path: Path, instance: str, addresses: Mapping[str, tuple[Address, ...]]) -> tuple[bytes, bytes]:
    content = _read(path)
    text = content.decode("utf-8", "surrogateescape")
    return content, with_block(text, instance, addresses).encode("utf-8", "surrogateescape")


def _lines(content: bytes) -> list[str]:
    """Return the lines that name something."""
    lines = content.decode(errors="replace").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _read(path: Path) -> bytes:
    try:
        # A FIFO would make us wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("is no regular file")
        return file.read()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep sidecars of other instances from writing at the same time.

    :raises BlockingIOError: if one of them does.
    """
    with opened_directory(directory) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
