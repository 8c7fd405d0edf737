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
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.errors import HostError

SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Errors of a host that is short of resources at the moment; the attempt itself may be right."""

_MODE: Final = 0o644  # of a new file
_OWN_MODE: Final = 0o600  # of a file while it is written
_LEFT_AFTER: Final = 60.0  # seconds after which a temporary file with its final mode is left over
_MOST_LINKS: Final = 40  # the limit of the kernel, path_resolution(7)
_MOST: Final = 64 << 20  # bytes; the longest hosts files, which block advertising, have some millions
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_PLACE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a pipe must not block


PASSABLE: Final = 0o755
"""The mode of a directory that everyone may pass; a program with another umask may have made it for root alone."""


class Place(NamedTuple):
    """A name in an open directory."""

    directory: int
    name: str


@contextmanager
def acting_as(user: int, group: int, others: Sequence[int] = ()) -> Iterator[None]:
    """Take the file permissions of a user while the block runs; for root, at places that the user can tamper with.

    :param others: further groups of the user.
    """
    own_user, own_group, own_groups = os.geteuid(), os.getegid(), os.getgroups()
    if user == own_user:
        yield
        return
    with ExitStack() as stack:
        os.setgroups([group, *others])
        stack.callback(os.setgroups, own_groups)
        os.setegid(group)
        stack.callback(os.setegid, own_group)
        os.seteuid(user)
        stack.callback(os.seteuid, own_user)
        yield


@contextmanager
def safe_directory(path: Path, *, make: bool = False, shared: bool = False) -> Iterator[int]:
    """Open a directory in which only root and this user can create or replace files, while the block runs.

    :param make: create it if it is missing; its parent must exist.
    :param shared: allow that its group can create files there without replacing those of others (the sticky bit).
    :raises HostError: if other users can change it or replace it by another directory.
    :raises OSError: if it is missing or cannot be opened.
    """
    with _walked(path, shared=shared, make=make) as place:
        yield place.directory


def safe_place(path: Path) -> AbstractContextManager[Place]:
    """Open the directory of a file, as `safe_directory`, while the block runs; the file need not exist.

    Links in the path, or in the place of the file, are followed if only root or this user can have made them.
    """
    return _walked(path, is_file=True)


class Version(NamedTuple):
    """The content of a file at a moment: a file that another program has changed or replaced has another version."""

    inode: int
    size: int
    modified: int
    changed: int


def read_file(place: Place, most: int = _MOST) -> bytes | None:
    """Return the content of a file as `read_version`."""
    return read_version(place, most)[0]


def read_version(place: Place, most: int = _MOST) -> tuple[bytes | None, Version | None]:
    """Return the content of a file and its version, or None for both if it does not exist.

    :raises ValueError: if it is not a regular file, or has more bytes; the message continues after the file's name.
    """
    try:
        fd = os.open(place.name, _READ, dir_fd=place.directory)
    except FileNotFoundError:
        return None, None
    try:
        found = os.fstat(fd)  # before it is read: a change meanwhile makes another version
        kind = found.st_mode
        if stat.S_ISDIR(kind):
            raise _error(errno.EISDIR)
        if not stat.S_ISREG(kind):
            raise ValueError("is not a regular file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(fd)
    if len(content) > most:
        raise ValueError(f"is longer than {most} bytes")
    return content, _version(found)


def replace_file(place: Place, content: bytes, *, lasting: bool) -> None:
    """Replace a file as `replacing` does, whatever its content is now."""
    with replacing(place, lasting=lasting) as put:
        put(content, _version_now(place))


@contextmanager
def replacing(place: Place, *, lasting: bool) -> Iterator[Callable[[bytes, Version | None], None]]:
    """Lock the replacement of a file while the block runs; yield a function that replaces its content, at most once.

    It takes the new content, and the version of the file from which that was made. Other programs know nothing of the
    lock: if one of them has changed the file meanwhile, such as during the sync to disk, its content stays.

    Readers see the whole old content or the whole new content. The file keeps its owner, mode and labels. The new
    content is first written to a temporary file beside it, whose name depends only on the name of the file. The
    temporary file is locked from the beginning; no other user can open it before, so no other user can hold the lock.

    :param lasting: whether the new content must survive a crash of the machine: it is synced to disk before the rename,
        and the rename before the block ends.
    :raises BlockingIOError: if another process is replacing the file, or has changed it.
    :raises OSError: if it cannot be written; the file is unchanged then, and the temporary file is removed.
    """
    temporary = f".{place.name}.clb-discovery"
    fd = _made(place.directory, temporary)
    is_put = False

    def put(content: bytes, version: Version | None) -> None:
        nonlocal is_put
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
        _take_after(place, fd)
        if lasting:
            os.fsync(fd)
        if _version_now(place) != version:
            raise _error(errno.EWOULDBLOCK)
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


def _version(found: os.stat_result) -> Version:
    return Version(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _version_now(place: Place) -> Version | None:
    try:
        return _version(os.stat(place.name, dir_fd=place.directory, follow_symlinks=False))
    except FileNotFoundError:
        return None


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
        except (FileExistsError, FileNotFoundError):  # another process made or removed it meanwhile
            raise _error(errno.EWOULDBLOCK) from None
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink != 1:  # another process took it for one that a crash had left, and removed it
            raise _error(errno.EWOULDBLOCK)
        stack.pop_all()
    return fd


def _error(number: int, *path: Path) -> OSError:
    """Return the subclass of OSError for this number of errno(3)."""
    return OSError(number, os.strerror(number), *map(str, path))


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
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        # A process that is still writing holds the lock. Before the rename the file gets its last mode, so that other
        # users may lock it, and a lock proves nothing any more.
        if is_own and (stat.S_IMODE(found.st_mode) == _OWN_MODE or time.time() - found.st_ctime < _LEFT_AFTER):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino != found.st_ino:  # it was renamed
                raise _error(errno.EWOULDBLOCK)
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(fd)


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
    """Walk to a directory, or to that of a file, and open it while the block runs."""
    steps = _Steps(path)
    try:
        name = steps.walk(is_file=is_file, make=make, shared=shared)
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=steps.here)
    finally:
        os.close(steps.here)
    try:
        yield Place(directory, name)
    finally:
        os.close(directory)


class _Steps:
    """The steps from the root to a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = list(reversed(path.absolute().parts[1:]))
        self._so_far = Path("/")
        self._links = 0
        self.here = os.open("/", _ROOT)

    def walk(self, *, is_file: bool, make: bool, shared: bool) -> str:
        """Walk to the end; return the name of the existing or new file, or an empty text for a directory."""
        while self._left:
            name = self._left.pop()
            try:
                found = os.open(name, _PLACE, dir_fd=self.here)
            except FileNotFoundError:
                if self._left or not (is_file or make):
                    raise
                self._require_safe(is_last=is_file)
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
                    self._require_safe(is_last=False)
                    self.here, found = found, self.here
                    self._so_far = self._so_far.parent if name == ".." else self._so_far / name
                elif is_file and not self._left:
                    self._require_safe(is_last=True)
                    return name
                else:
                    raise _error(errno.ENOTDIR, self._so_far / name)
            finally:
                os.close(found)
        self._require_safe(is_last=True, shared=shared)
        if is_file:
            raise _error(errno.EISDIR, self._path)
        return ""

    def _follow(self, name: str, link: os.stat_result, target: str) -> None:
        self._links += 1
        if self._links > _MOST_LINKS:
            raise _error(errno.ELOOP, self._path)
        self._require_safe(is_last=False)
        if link.st_uid not in {0, os.geteuid()}:
            raise HostError(
                f"{self._so_far / name} is a link of {_name(pwd.getpwuid, link.st_uid)}, who can change its target; "
                "give the path that it points to"
            )
        way = Path(target)
        if way.is_absolute():
            root = os.open("/", _ROOT)
            os.close(self.here)
            self.here = root
            self._so_far = Path("/")
        self._left += reversed([part for part in way.parts if part != "/"])

    def _require_safe(self, *, is_last: bool, shared: bool = False) -> None:
        """Check that no other user can change the entries of the present directory.

        With the sticky bit, other users can create entries, but not replace those of root and of this user (unlink(2)).
        That is enough for the directories in a path, because the owner of each entry is checked, too.

        :raises HostError: naming the user that can, and the fix.
        """
        where, found = self._so_far, os.fstat(self.here)
        if found.st_uid not in {0, os.geteuid()}:
            owner, own = (_name(pwd.getpwuid, user) for user in (found.st_uid, os.geteuid()))
            raise HostError(
                f"{where} belongs to {owner}, who could replace files in it; use a directory of root, "
                f"or: chown {own} {where}"
            )
        others = found.st_mode & _WRITABLE_BY_OTHERS
        if found.st_mode & stat.S_ISVTX and (not is_last or (shared and not others & stat.S_IWOTH)):
            return
        if others:
            who = "every user" if others & stat.S_IWOTH else f"the group {_name(grp.getgrgid, found.st_gid)}"
            raise HostError(
                f"{where} can be written by {who} (mode {stat.S_IMODE(found.st_mode):04o}), who could replace what is "
                f"in it; use another directory, or: chmod go-w {where}"
            )


def _name(look_up: Callable[[int], Sequence[object]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
