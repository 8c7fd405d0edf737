"""The permissions of a confined process: the filter is run as in the kernel, instruction by instruction."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
import sys
from typing import Final

import pytest

from clb_discovery.datapath.bpf import Command
from clb_discovery.datapath.seccomp import ALLOWED, instructions

X86_64, I386, BPF, READ = 0xC000003E, 0x40000003, 321, 0  # linux/audit.h, and numbers of x86_64
ALLOW, FAILS = 0x7FFF0000, 0x00050000 | errno.EPERM
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
LAST_COMMAND: Final = 64


def verdict(architecture: int, number: int, command: int = 0) -> int:
    """Return the result of the filter, by the rules of classic BPF."""
    code = list(struct.iter_unpack("=HBBI", instructions(X86_64, BPF)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, command, *(0,) * 5)  # struct seccomp_data
    at = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == RETURN:
            return int(operand)
        if operation == LOAD:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        else:
            is_true = accumulator == operand if operation == IF_EQUAL else accumulator >= operand
            assert operation in {IF_EQUAL, IF_AT_LEAST}
            at += if_true if is_true else if_false


@pytest.mark.parametrize("command", range(LAST_COMMAND))
def test_commands_that_read_and_write_maps_are_left(command: int) -> None:
    """Of all commands of bpf(2), also future ones, only a few are allowed; the upper half of the word is ignored."""
    wanted = ALLOW if command in ALLOWED else FAILS
    assert verdict(X86_64, BPF, command) == verdict(X86_64, BPF, 1 << 32 | command) == wanted


def test_loading_making_and_attaching_are_not_left() -> None:
    """Loading programs, creating maps and links, pinning, and opening objects by their ids are not allowed."""
    makes = {
        Command.MAP_CREATE,
        Command.PROG_LOAD,
        Command.BTF_LOAD,
        Command.LINK_CREATE,
        Command.LINK_UPDATE,
        Command.LINK_DETACH,
        Command.ITER_CREATE,
        Command.OBJ_PIN,
    }
    finds = {Command.PROG_QUERY, Command.PROG_GET_FD_BY_ID, Command.MAP_GET_FD_BY_ID}
    assert (makes | finds).isdisjoint(ALLOWED)
    assert makes | finds | set(ALLOWED) == set(Command)


def test_other_calls_are_left_alone() -> None:
    """Other system calls are allowed; the service manager filters them."""
    assert verdict(X86_64, READ) == ALLOW


def test_calls_by_other_numbers_fail() -> None:
    """All calls of 32-bit programs and of x32, which have other numbers, fail."""
    assert verdict(I386, BPF, Command.MAP_LOOKUP_ELEM) == verdict(I386, READ) == FAILS
    assert verdict(X86_64, 0x40000000 | BPF, Command.MAP_LOOKUP_ELEM) == FAILS


def test_a_confined_process_is_refused_by_the_kernel() -> None:
    """Root with every capability gets EPERM for each forbidden command, in all threads."""
    program = [sys.executable, "-m", "tests.programs.confined"]
    said = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert said["before"] == []
    assert set(said["refused"]) == {command.name for command in Command if command not in ALLOWED}
    assert said["thread"] == said["refused"]
