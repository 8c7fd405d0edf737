"""What a confined process may do: the filter as the kernel would run it, instruction by instruction."""

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
    """Return what the filter answers, by the rules of classic BPF."""
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
    """Of all commands of bpf(2), those to come included, a few are allowed; the upper half of the word is no matter."""
    wanted = ALLOW if command in ALLOWED else FAILS
    assert verdict(X86_64, BPF, command) == verdict(X86_64, BPF, 1 << 32 | command) == wanted


def test_loading_making_and_attaching_are_not_left() -> None:
    """Nothing that gets a program, a map or a link into the kernel is among what is allowed, nor pinning."""
    makes = {
        Command.MAP_CREATE,
        Command.PROG_LOAD,
        Command.BTF_LOAD,
        Command.LINK_CREATE,
        Command.LINK_UPDATE,
        Command.ITER_CREATE,
        Command.OBJ_PIN,
    }
    assert makes.isdisjoint(ALLOWED)
    assert makes | set(ALLOWED) == set(Command)


def test_other_calls_are_left_alone() -> None:
    """What is not bpf(2) is for the service manager to filter."""
    assert verdict(X86_64, READ) == ALLOW


def test_calls_by_other_numbers_fail() -> None:
    """Calls of 32-bit programs and of x32, whose numbers mean something else, fail all of them."""
    assert verdict(I386, BPF, Command.MAP_LOOKUP_ELEM) == verdict(I386, READ) == FAILS
    assert verdict(X86_64, 0x40000000 | BPF, Command.MAP_LOOKUP_ELEM) == FAILS


def test_a_confined_process_is_refused_by_the_kernel() -> None:
    """Root, with every capability, is told EPERM for each command that is not left, in all threads."""
    program = [sys.executable, "-m", "tests.programs.confined"]
    said = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert said["before"] == []
    assert set(said["refused"]) == {command.name for command in Command if command not in ALLOWED}
    assert said["thread"] == said["refused"]
