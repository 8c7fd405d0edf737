"""Run a program for which one command of bpf(2) fails, as on a kernel that lacks it, or in a container that forbids it.

Usage: without_bpf.py COMMAND ERRNO PROGRAM [ARGUMENT...], such as `without_bpf.py PROG_LOAD EINVAL clb-discovery load`.
The filter sees the command and nothing else of the call, so a kernel that has only some program types is not shown.
"""

from __future__ import annotations

import errno
import os
import sys

from clb_discovery.datapath.bpf import Command
from tests.programs.as_unit import ALLOW, EQUAL, Filter, failing


def main(command: Command, number: int, program: list[str]) -> None:
    """Become the program."""
    denied = Filter(ALLOW)
    denied.rule(failing(number), "bpf", (0, EQUAL, command, 0))
    denied.load()
    os.execvp(program[0], program)  # noqa: S606 - that is what this is for


if __name__ == "__main__":
    main(Command[sys.argv[1]], getattr(errno, sys.argv[2]), sys.argv[3:])
