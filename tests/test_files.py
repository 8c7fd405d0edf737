"""Files in places that other users can, or cannot, reach: nothing of theirs is followed, taken over or waited for."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.errors import HostError
from clb_discovery.files import Place, acting_as, read_file, replace_file, replacing, safe_directory, safe_place
from clb_discovery.hosts_file.file import write_names
from clb_discovery.model.address import parse_address
from tests.support.paths import directory_for_all

NOBODY: Final = 65534
NAMES: Final = {"web.clb": (parse_address("10.64.0.1"),)}
ALONE: Final = "for root alone\n"


def as_nobody(program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a Python program as another ordinary user."""
    interpreter = "/usr/bin/python3"  # maybe only root can read the checkout with ours
    command = [interpreter, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, user=NOBODY, group=NOBODY, extra_groups=[], stdout=subprocess.PIPE, cwd="/")


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """Return a directory of root that other users can enter."""
    with directory_for_all() as path:
        yield path


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: path.chmod(0o777), "can be written by every user"),
        (lambda path: path.chmod(0o1777), "can be written by every user"),
        (lambda path: path.chmod(0o775), "can be written by the group root"),
        (lambda path: os.chown(path, NOBODY, 0), "belongs to nobody"),
        (lambda path: path.parent.chmod(0o777), "can be written by every user"),
        (lambda path: os.chown(path.parent, NOBODY, 0), "belongs to nobody"),
    ],
)
def test_directory_that_others_can_change_is_refused(
    tmp_path: Path, prepare: Callable[[Path], None], words: str
) -> None:
    """If another user can write to a directory or replace it, the error has the reason and the fix."""
    directory = tmp_path / "above" / "here"
    directory.mkdir(parents=True)
    hosts = directory / "hosts"
    hosts.write_text("old\n")
    prepare(directory)
    with pytest.raises(HostError, match=f"{words}.*use .* or: ch"):
        write_names(hosts, "default", NAMES)
    with pytest.raises(HostError, match=words), safe_directory(directory):
        pass
    assert hosts.read_text() == "old\n"
    assert [path.name for path in directory.iterdir()] == ["hosts"]


def test_sticky_directory_on_the_way_is_enough(tmp_path: Path) -> None:
    """Below /tmp, a directory of our own is accepted; one of others is rejected."""
    above = tmp_path / "like-tmp"
    above.mkdir()
    above.chmod(0o1777)
    (above / "ours").mkdir()
    write_names(above / "ours" / "hosts", "default", NAMES)
    (above / "theirs").mkdir()
    os.chown(above / "theirs", NOBODY, NOBODY)
    with pytest.raises(HostError, match="belongs to nobody"):
        write_names(above / "theirs" / "hosts", "default", NAMES)


def test_links_are_followed_where_only_root_makes_them(tmp_path: Path) -> None:
    """Links of root are followed, in the path and at its end, absolute and relative; only their target is changed."""
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "way").symlink_to("real")
    (tmp_path / "hosts").symlink_to(tmp_path / "way" / ".." / "way" / "hosts")
    write_names(tmp_path / "hosts", "default", NAMES)
    assert "web.clb" in (real / "hosts").read_text()
    assert (tmp_path / "hosts").is_symlink()
    os.chown(tmp_path / "way", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(HostError, match="is a link of nobody"):
        write_names(tmp_path / "hosts", "default", {})
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(HostError, match=os.strerror(errno.ELOOP)):
        write_names(tmp_path / "loop", "default", NAMES)


def test_locks_of_others_hold_nothing_up(open_to_all: Path) -> None:
    """A user who locks the directory and the file, as any user may, does not block writing the names."""
    hosts = open_to_all / "hosts"
    hosts.write_text("old\n")
    program = """if True:
        import fcntl, os, sys, time
        for path in sys.argv[1:]:
            fd = os.open(path, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            fcntl.lockf(fd, fcntl.LOCK_SH) if os.path.isfile(path) else None
        print("locked", flush=True)
        time.sleep(60)
    """
    with as_nobody(program, open_to_all, hosts) as locker:
        assert locker.stdout
        assert locker.stdout.readline() == b"locked\n"
        assert write_names(hosts, "default", NAMES)
        locker.kill()
    assert "web.clb" in hosts.read_text()


PRECREATED: Final[dict[str, Callable[[Path, Path], object]]] = {
    "a link": lambda path, secret: path.symlink_to(secret),
    "a hard link": lambda path, secret: path.hardlink_to(secret),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a socket": lambda path, _: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a file that a crash left": lambda path, _: path.write_text("half"),
}


@pytest.mark.parametrize("made", PRECREATED)
def test_what_is_in_the_way_is_not_written_to(tmp_path: Path, made: str) -> None:
    """Anything under the name of the temporary file is removed, and the target of a link stays as it is."""
    secret, hosts = tmp_path / "secret", tmp_path / "hosts"
    secret.write_text(ALONE)
    secret.chmod(0o600)
    PRECREATED[made](tmp_path / ".hosts.clb-discovery", secret)
    if made == "a file that a crash left":
        (tmp_path / ".hosts.clb-discovery").chmod(0o600)
    assert write_names(hosts, "default", NAMES)
    assert secret.read_text() == ALONE
    assert hosts.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts", "secret"]


@pytest.mark.parametrize("made", ["a link", "a pipe", "a socket"])
def test_shared_directory_lets_nobody_lead_root_astray(tmp_path: Path, made: str) -> None:
    """In a directory that a group may write, root's files are replaced, without owner or mode of another user."""
    tmp_path.chmod(0o1775)
    secret = tmp_path / "secret"
    secret.write_text(ALONE)
    os.chown(secret, 12, 34)
    PRECREATED[made](tmp_path / "loaded.json", secret)
    os.chown(tmp_path / "loaded.json", NOBODY, NOBODY, follow_symlinks=False)
    with safe_directory(tmp_path, shared=True) as directory:
        replace_file(Place(directory, "loaded.json"), b"{}", lasting=False)
    assert (tmp_path / "loaded.json").lstat().st_uid == 0
    assert (tmp_path / "loaded.json").read_bytes() == b"{}"
    assert secret.read_text() == ALONE
    with pytest.raises(HostError, match="the group root"), safe_directory(tmp_path):
        pass


def test_a_race_for_the_directory_gives_nothing_away(open_to_all: Path) -> None:
    """While another user swaps a directory for a link, root writes nothing to the link's target."""
    theirs, target = open_to_all / "theirs", open_to_all / "target"
    theirs.mkdir()
    target.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    program = """if True:
        import os, sys
        directory, target = sys.argv[1:]
        os.chdir(directory)
        os.mkdir("spare")
        print("ready", flush=True)
        while True:
            os.symlink(target, "link")
            os.rename("link", "here")
            os.unlink("here")
            os.rename("spare", "here")
            os.rename("here", "spare")
    """
    with as_nobody(program, theirs, target) as racer:
        assert racer.stdout
        racer.stdout.readline()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            with pytest.raises(HostError):
                write_names(theirs / "here" / "hosts", "default", NAMES)
        racer.kill()
    assert not list(target.iterdir())


def test_instances_take_turns(tmp_path: Path) -> None:
    """Many writers of one file lose no data of each other, and detect that another one is writing."""
    hosts = tmp_path / "hosts"

    def publish(instance: str) -> None:
        for _ in range(10_000):
            try:
                write_names(hosts, instance, NAMES)
            except HostError as error:
                assert "another program" in str(error)  # noqa: PT017 - nothing else may come
                time.sleep(0.001)
            else:
                return

    threads = [threading.Thread(target=publish, args=(f"i{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hosts.read_text().count("# BEGIN") == 16
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]


def _replaced(hosts: Path) -> None:
    new = hosts.with_name("new")
    new.write_text("127.0.0.1 locelhost\n")
    new.rename(hosts)


def _appended(hosts: Path) -> None:
    with hosts.open("a") as file:
        file.write("10.0.0.9 printer\n")


@pytest.mark.parametrize(
    "change",
    [
        _replaced,
        _appended,
        lambda hosts: hosts.write_text("127.0.0.1 locelhost\n"),
        Path.unlink,
    ],
)
def test_a_change_of_another_program_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    """Such as a rename of a tool while the disk syncs our content, which was made from the content before."""
    hosts, sync, changed = tmp_path / "hosts", os.fsync, list[str]()
    hosts.write_text("127.0.0.1 localhost\n")

    def meanwhile(fd: int) -> None:
        sync(fd)
        if not changed:
            change(hosts)
            changed.append(hosts.read_text() if hosts.exists() else "")

    monkeypatch.setattr("os.fsync", meanwhile)
    with pytest.raises(HostError, match="another program is writing it; trying again"):
        write_names(hosts, "default", NAMES)
    assert (hosts.read_text() if hosts.exists() else "") == changed[0]
    assert write_names(hosts, "default", NAMES)
    assert hosts.read_text().startswith(changed[0])
    assert "web.clb" in hosts.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """While one writer has the file locked another one fails at once, and no temporary files are left."""
    with safe_place(tmp_path / "file") as place:
        with replacing(place, lasting=False) as put:
            with pytest.raises(BlockingIOError):
                replace_file(place, b"other", lasting=False)
            put(b"one", None)
            with pytest.raises(FileNotFoundError):
                os.stat(".file.clb-discovery", dir_fd=place.directory)
        assert read_file(place) == b"one"
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        replace_file(place, b"two", lasting=False)
        os.close(fd)
        assert read_file(place) == b"two"


def test_leftovers_of_another_users_crash_are_removed(open_to_all: Path) -> None:
    """A leftover is removed even if it cannot be read, as for root in a unit with few capabilities."""
    (open_to_all / ".file.clb-discovery").touch(mode=0o600)
    os.chown(open_to_all, NOBODY, NOBODY)
    with acting_as(NOBODY, NOBODY), safe_place(open_to_all / "file") as place:
        replace_file(place, b"new", lasting=False)
    assert [path.name for path in open_to_all.iterdir()] == ["file"]
