"""Network namespaces of the host, and the mounts that keep them."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from clb_discovery.datapath.cgroup import find_root
from clb_discovery.datapath.mountinfo import Mount, mounts
from clb_discovery.datapath.sockets.namespaces import Namespaces, inside
from clb_discovery.errors import HostError
from tests.support import namespaces

MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
25 22 0:23 / /sys/fs/bpf rw shared:9 master:2 - bpf bpf rw,mode=700
31 22 0:4 net:[4026532281] /run/netns/a\040b\134c rw shared:5 - nsfs nsfs rw
32 22 0:4 mnt:[4026532282] /run/mnt rw - nsfs nsfs rw
33 22 0:27 / /sys/fs/cgroup/unified rw shared:6 - cgroup2 cgroup2 rw
"""


def test_mounts_are_read_with_their_escapes() -> None:
    """Spaces and backslashes in a path are octal numbers, and the number of optional fields varies."""
    assert mounts(MOUNTINFO)[1:4] == [
        Mount("/", Path("/sys/fs/bpf"), "bpf"),
        Mount("net:[4026532281]", Path("/run/netns/a b\\c"), "nsfs"),
        Mount("mnt:[4026532282]", Path("/run/mnt"), "nsfs"),
    ]


def test_the_cgroup_hierarchy_is_found_where_it_is_mounted() -> None:
    """A hybrid host has it below the directory of version 1; on a host without it, the error has the fix."""
    assert find_root(MOUNTINFO) == Path("/sys/fs/cgroup/unified")
    with pytest.raises(HostError, match="mount -t cgroup2"):
        find_root(MOUNTINFO.replace("cgroup2", "cgroup"))


def test_every_namespace_comes_once_and_ours_first() -> None:
    """Processes share namespaces; each namespace is visited once, by a descriptor that is closed afterwards."""
    with namespaces.by_process() as one, namespaces.by_mount() as other:
        found = []
        for inode, fd in Namespaces():
            assert os.fstat(fd).st_ino == inode
            found.append(inode)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert {one.stat().st_ino, other.stat().st_ino} <= set(found)
    assert found[0] == Path("/proc/self/ns/net").stat().st_ino
    assert len(found) == len(set(found))


def test_a_mount_that_is_covered_by_another_is_not_mistaken_for_it() -> None:
    """If a mount covers another on one path, only the upper one can be entered by the path."""
    with namespaces.by_mount() as lower, namespaces.by_mount() as upper:
        hidden = lower.stat().st_ino
        subprocess.run(["mount", "--bind", upper, lower], check=True)
        try:
            found = {inode: os.fstat(fd).st_ino for inode, fd in Namespaces()}
            assert upper.stat().st_ino in found
            assert hidden not in found
            assert all(inode == opened for inode, opened in found.items())
        finally:
            subprocess.run(["umount", lower], check=True)


def test_a_socket_is_opened_inside_and_this_thread_stays_outside() -> None:
    """A port that is bound inside another namespace stays free here."""
    own = Path("/proc/thread-self/ns/net").stat().st_ino
    with namespaces.by_mount() as namespace:
        fd = os.open(namespace, os.O_RDONLY)
        try:
            there = inside(fd, socket.socket)
        finally:
            os.close(fd)
        with there, socket.socket() as here:
            there.bind(("127.0.0.1", 0))
            here.bind(there.getsockname())
    assert Path("/proc/thread-self/ns/net").stat().st_ino == own


def test_another_file_cannot_be_entered() -> None:
    """The error has the kernel's reason."""
    with Path("/dev/null").open() as file, pytest.raises(OSError, match="cannot enter it: Invalid argument"):
        inside(file.fileno(), socket.socket)
