"""Reading and atomically replacing files at places that no other user can tamper with.

A user with write access to a directory can put a link, a pipe or another file in the place of ours. A user that can
rename a directory can move everything in it. So the path to a file is walked from the root, each step relative to the
descriptor of the previous one. Each directory must belong to root or this user, and no other user may be able to write
it. After that only descriptors are used, so the checked file is the one that is written.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import resource
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from clb_discovery.errors import HostError

SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Errors of a host that is short of resources at the moment; the attempt itself may be right."""

_MODE: Final = 0o644
"""Mode of a new file."""
_OWN_MODE: Final = 0o600
"""Mode of a file while it is written."""
_LEFT_AFTER: Final = 60.0
"""Seconds after which a temporary file with its final mode is left over; its writer renames it at once."""
_MOST_LINKS: Final = 40
"""The limit of the kernel, path_resolution(7)."""
_MOST: Final = 64 << 20
"""Most bytes of a file that is read; the longest hosts files, which block advertising, have some millions."""
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_PLACE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a pipe must not block


class Place(NamedTuple):
    """A name in an open directory."""

    directory: int
    name: str


def raise_file_limit() -> None:
    """Raise the limit of open descriptors to the maximum. We do not use select(2), which is limited to 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the limit stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def acting_as(user: int, group: int) -> Iterator[None]:
    """Take the file permissions of a user while the block runs; for root, at places that the user can tamper with."""
    own_user, own_group, own_groups = os.geteuid(), os.getegid(), os.getgroups()
    if user == own_user:
        yield
        return
    os.setgroups([group])
    os.setegid(group)
    try:
        os.seteuid(user)
        try:
            yield
        finally:
            os.seteuid(own_user)
    finally:
        os.setegid(own_group)
        os.setgroups(own_groups)


@contextmanager
def safe_directory(path: Path, *, make: bool = False, shared: bool = False) -> Iterator[int]:
    """Open a directory in which only root and this user can create or replace files, while the block runs.

    :param make: create it if it is missing; its parent must exist.
    :param shared: allow that its group can create files there without replacing those of others (the sticky bit).
    :raises HostError: if other users can change it or replace it by another directory.
    :raises OSError: if it is missing or cannot be opened.
    """
    with _walked(path, shared=shared, make=make) as place:
        if place.name:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        yield place.directory


@contextmanager
def safe_place(path: Path) -> Iterator[Place]:
    """Open the directory of a file, as `safe_directory`, while the block runs; the file need not exist.

    Links in the path, or in the place of the file, are followed if only root or this user can have made them.
    """
    with _walked(path, is_file=True) as place:
        if not place.name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        yield place


def read_file(place: Place, most: int = _MOST) -> bytes | None:
    """Return the content of a file, or None if it does not exist.

    :param most: largest accepted size in bytes.
    :raises ValueError: if it is not a regular file or is too long; the message continues after the name of the file.
    """
    try:
        fd = os.open(place.name, _READ, dir_fd=place.directory)
    except FileNotFoundError:
        return None
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind):
            raise ValueError("is no regular file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(fd)
    if len(content) > most:
        raise ValueError(f"is longer than {most} bytes")
    return content


def replace_file(place: Place, content: bytes, *, lasting: bool) -> None:
    """Give a file new content, as `replacing` does."""
    with replacing(place, lasting=lasting) as put:
        put(content)


@contextmanager
def replacing(place: Place, *, lasting: bool) -> Iterator[Callable[[bytes], None]]:
    """Lock the replacement of a file while the block runs; yield a function that replaces its content, at most once.

    Readers see the whole old content or the whole new content. The file keeps its owner, mode and labels. The new
    content is first written to a temporary file beside it, whose name depends only on the name of the file. The
    temporary file is locked from the beginning; no other user can open it before, so no other user can hold the lock.

    :param lasting: whether the new content must survive a crash of the machine: it is synced to disk before the rename,
        and the rename before the block ends.
    :raises BlockingIOError: if another process is replacing the file.
    :raises OSError: if it cannot be written; the file is unchanged then, and the temporary file is removed.
    """
    temporary = f".{place.name}.clb-discovery"
    fd = _made(place.directory, temporary)
    is_put = False

    def put(content: bytes) -> None:
        nonlocal is_put
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
        _take_after(place, fd)
        if lasting:
            os.fsync(fd)
        os.rename(temporary, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
        is_put = True
        if lasting:
            os.fsync(place.directory)

    try:
        yield put
    finally:
        if not is_put:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=place.directory)
        os.close(fd)


def _made(directory: int, name: str) -> int:
    """Create and lock a file that only this user can open; one that a crash has left is removed first.

    :raises BlockingIOError: if another process is using it.
    """
    try:
        fd = os.open(name, _MAKE, _OWN_MODE, dir_fd=directory)
    except FileExistsError:
        try:
            _remove_left(directory, name)
            fd = os.open(name, _MAKE, _OWN_MODE, dir_fd=directory)
        except (FileExistsError, FileNotFoundError):  # another process has just created or removed it
            _give_way()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink != 1:  # another process took it for left over and removed it
            _give_way()
    except BaseException:
        os.close(fd)
        raise
    return fd


def _give_way() -> NoReturn:
    raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))


def _remove_left(directory: int, name: str) -> None:
    """Remove a file that was left over; raises BlockingIOError if a process is still using it."""
    try:
        fd = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        # We make no links and no sockets. A file that we cannot open was left by a crash of another user.
        if error.errno not in {errno.ELOOP, errno.ENXIO, errno.EACCES}:
            raise
        os.unlink(name, dir_fd=directory)
        return
    try:
        found = os.fstat(fd)
        if _may_be_written(found):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino != found.st_ino:  # renamed meanwhile
                _give_way()
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(fd)


def _may_be_written(found: os.stat_result) -> bool:
    """Tell whether a process may still be writing a file; that process holds its lock then.

    At the end, the file gets the mode of the one that it replaces, with which others may be able to open and lock it.
    So the lock of an old file with that mode means nothing.
    """
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return False
    return stat.S_IMODE(found.st_mode) == _OWN_MODE or time.time() - found.st_ctime < _LEFT_AFTER


def _take_after(place: Place, fd: int) -> None:
    """Give a new file the owner, the mode and the labels of the file that it replaces."""
    try:
        old = os.open(place.name, _READ, dir_fd=place.directory)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ELOOP, errno.EACCES, errno.ENXIO}:
            raise
        os.fchmod(fd, _MODE)
        return
    try:
        found, own = os.fstat(old), os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.fchmod(fd, _MODE)
            return
        if (found.st_uid, found.st_gid) != (own.st_uid, own.st_gid):
            os.fchown(fd, found.st_uid, found.st_gid)
        os.fchmod(fd, stat.S_IMODE(found.st_mode))
        for name in os.listxattr(old):
            with suppress(OSError):  # the kernel may have set the label already, and not allow us to
                os.setxattr(fd, name, os.getxattr(old, name))
    finally:
        os.close(old)


@contextmanager
def _walked(path: Path, *, is_file: bool = False, make: bool = False, shared: bool = False) -> Iterator[Place]:
    """Walk to a directory, or to that of a file, and open it while the block runs.

    :returns: a place whose name is empty if the path leads to a directory.
    """
    steps = _Steps(path)
    try:
        name = steps.walk(is_file=is_file, make=make, shared=shared)
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=steps.here)
    finally:
        steps.close()
    try:
        yield Place(directory, name)
    finally:
        os.close(directory)


class _Steps:
    """The steps from the root to a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        way = path if path.is_absolute() else Path.cwd() / path
        self._left = list(reversed(way.parts[1:]))
        self._so_far = Path("/")
        self._links = 0
        self.here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the present directory."""
        os.close(self.here)

    def walk(self, *, is_file: bool, make: bool, shared: bool) -> str:
        """Walk to the end; return the name of the existing or new file, or an empty text for a directory."""
        while self._left:
            name = self._left.pop()
            try:
                found = os.open(name, _PLACE, dir_fd=self.here)
            except FileNotFoundError:
                if self._left or not (is_file or make):
                    raise
                self._require_safe(os.fstat(self.here), is_last=is_file)
                if is_file:
                    return name
                with suppress(FileExistsError):  # another process has just made it
                    os.mkdir(name, 0o755, dir_fd=self.here)
                found = os.open(name, _PLACE, dir_fd=self.here)
            try:
                kind = os.fstat(found)
                if stat.S_ISLNK(kind.st_mode):
                    self._follow(name, kind, os.readlink("", dir_fd=found))
                elif stat.S_ISDIR(kind.st_mode):
                    self._enter(name, found)
                    found = -1
                elif is_file and not self._left:
                    self._require_safe(os.fstat(self.here), is_last=True)
                    return name
                else:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self._so_far / name))
            finally:
                if found >= 0:
                    os.close(found)
        self._require_safe(os.fstat(self.here), is_last=True, shared=shared)
        return ""

    def _enter(self, name: str, directory: int) -> None:
        self._require_safe(os.fstat(self.here), is_last=False)
        os.close(self.here)
        self.here = directory
        self._so_far = self._so_far.parent if name == ".." else self._so_far / name

    def _follow(self, name: str, link: os.stat_result, target: str) -> None:
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self._path))
        self._require_safe(os.fstat(self.here), is_last=False)
        if link.st_uid not in {0, os.geteuid()}:
            raise HostError(
                f"{self._so_far / name} is a link of {_user(link.st_uid)}, who can lead it anywhere; name the path "
                "that it stands for"
            )
        way = Path(target)
        if way.is_absolute():
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.close(self.here)
            self.here = root
            self._so_far = Path("/")
        self._left += reversed([part for part in way.parts if part != "/"])

    def _require_safe(self, found: os.stat_result, *, is_last: bool, shared: bool = False) -> None:
        """Check that no other user can change the entries of the present directory.

        With the sticky bit, other users can create entries, but not replace those of root and of this user (unlink(2)).
        That is enough for the directories in a path, because the owner of each entry is checked, too.

        :raises HostError: naming the user that can, and the fix.
        """
        where = self._so_far
        ours = {0, os.geteuid()}
        if found.st_uid not in ours:
            raise HostError(
                f"{where} belongs to {_user(found.st_uid)}, who could replace what is in it; use a directory of root, "
                f"or: chown {_user(os.geteuid())} {where}"
            )
        others = found.st_mode & _WRITABLE_BY_OTHERS
        if found.st_mode & stat.S_ISVTX and (not is_last or (shared and not others & stat.S_IWOTH)):
            return
        if others:
            who = "every user" if others & stat.S_IWOTH else f"the group {_group(found.st_gid)}"
            raise HostError(
                f"{where} can be written by {who} (mode {stat.S_IMODE(found.st_mode):04o}), who could replace what is "
                f"in it; use another directory, or: chmod go-w {where}"
            )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
