"""Confine this process, and print as JSON the commands of bpf(2) that the kernel then denies."""

from __future__ import annotations

import ctypes
import errno
import json
import platform
import threading
from concurrent.futures import ThreadPoolExecutor

from clb_discovery.datapath.bpf import SYSCALLS, Command
from clb_discovery.datapath.seccomp import confine

libc = ctypes.CDLL(None, use_errno=True)


def refused() -> list[str]:
    """Return the names of the commands that fail with EPERM; with empty arguments, all others fail otherwise."""
    names = []
    for command in Command:
        attr = ctypes.create_string_buffer(128)
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(SYSCALLS[platform.machine()]), command, attr, len(attr))
        if result < 0 and ctypes.get_errno() == errno.EPERM:
            names.append(command.name)
    return names


before = refused()
with ThreadPoolExecutor(1) as thread:
    thread.submit(threading.get_ident).result()  # the thread runs already
    confine()
    found = {"before": before, "refused": refused(), "thread": thread.submit(refused).result()}
print(json.dumps(found))
