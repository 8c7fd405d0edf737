"""Write the names of services into a hosts file that other programs also read and write."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from clb_discovery.errors import HostError
from clb_discovery.files import Place, Version, read_version, replacing, safe_place
from clb_discovery.hosts_file.block import with_block
from clb_discovery.model.address import Address


def write_names(path: Path, instance: str, addresses: Mapping[str, tuple[Address, ...]]) -> bool:
    """Replace the block of an instance with these names. Readers see the whole old file or the whole new one.

    :param path: a missing file is created, unless there are no names.
    :param addresses: by host name; without any, the block is removed.
    :returns: whether the file had to be changed.
    :raises HostError: naming the file, the cause and the fix.
    """
    with _opened(path, addresses) as place:
        if place is None:
            return False
        content, wanted, _ = _read_and_wanted(place, instance, addresses)
        if wanted == content:
            return False
        with replacing(place, lasting=True) as put:
            content, wanted, version = _read_and_wanted(place, instance, addresses)  # may have changed meanwhile
            if wanted != content:
                put(wanted, version)
        return wanted != content


def remove_names(paths: Iterable[Path], instance: str) -> dict[Path, str]:
    """Remove the blocks of an instance from files, each for itself; return why some may be left, by file."""
    left = {}
    for path in paths:
        try:
            write_names(path, instance, {})
        except HostError as error:
            if _may_have_names(path, instance):
                left[path] = str(error)
    return left


def names_ahead(path: Path, instance: str, addresses: Mapping[str, tuple[Address, ...]]) -> dict[str, Any] | None:
    """Return what `write_names` would change, as `plan --json` prints it; None for no change.

    :raises HostError: if the file cannot be read.
    """
    with _opened(path, addresses) as place:
        if place is None:
            return None
        content, wanted = (_lines(one) for one in _read_and_wanted(place, instance, addresses)[:2])
    if content == wanted:
        return None
    added, removed = [line for line in wanted if line not in content], [line for line in content if line not in wanted]
    return {"file": str(path), "added": added, "removed": removed}


def real_path(path: Path) -> Path:
    """Return the path with links resolved, as far as they can be read."""
    return Path(os.path.realpath(path))


@contextmanager
def _opened(path: Path, addresses: Mapping[str, tuple[Address, ...]]) -> Iterator[Place | None]:
    """Open the directory of the file, or None if it and all names are gone; explain the errors of the block."""
    try:
        with ExitStack() as stack:
            try:
                place = stack.enter_context(safe_place(path))
            except FileNotFoundError:
                if addresses:
                    raise
                place = None
            yield place
    except BlockingIOError:
        raise HostError(f"cannot write {path}: another program is writing it; trying again") from None
    except HostError as error:
        raise HostError(f"cannot write {path}: {error}") from None
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise HostError(
                f"cannot replace {path}: it is a mount point, as in containers; give a file in a directory "
                "that is mounted as a whole"
            ) from error
        if error.errno == errno.EPERM:
            raise HostError(
                f"cannot replace {path}: it or its directory must not be changed; find out with lsattr, and allow it "
                "with chattr -i -a, or give another file"
            ) from error
        raise HostError(f"cannot write {path}: {error.strerror}; --hosts-file needs a writable directory") from error
    except ValueError as error:
        raise HostError(f"cannot write {path}: it {error}") from None


def _may_have_names(path: Path, instance: str) -> bool:
    """Tell whether a file may have a block of an instance, although its place may not be one where we write."""
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            content, without, _ = _read_and_wanted(Place(directory, path.name), instance, {})
        finally:
            os.close(directory)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return content != without


def _read_and_wanted(
    place: Place, instance: str, addresses: Mapping[str, tuple[Address, ...]]
) -> tuple[bytes, bytes, Version | None]:
    """Return the content of the file, the content that it should have, and its version."""
    found, version = read_version(place)
    content = found or b""
    text = content.decode("utf-8", "surrogateescape")
    return content, with_block(text, instance, addresses).encode("utf-8", "surrogateescape"), version


def _lines(content: bytes) -> list[str]:
    """Return the lines with names."""
    lines = content.decode(errors="replace").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
