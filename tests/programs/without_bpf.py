"""Run a program without one command of bpf(2), as on a kernel that lacks it, or in a container that forbids it.

Usage: without_bpf.py COMMAND ERRNO PROGRAM [ARGUMENT...], such as `without_bpf.py PROG_LOAD EINVAL clb-discovery load`.
The filter sees only the command of the call, so it cannot simulate a kernel that lacks some program types.
"""

from __future__ import annotations

import errno
import os
import sys

from clb_discovery.datapath.bpf import Command
from tests.programs.as_unit import ALLOW, EQUAL, Filter, failing


def main(command: Command, number: int, program: list[str]) -> None:
    """Replace this process by the program."""
    denied = Filter(ALLOW)
    denied.rule(failing(number), "bpf", (0, EQUAL, command, 0))
    denied.load()
    os.execvp(program[0], program)  # noqa: S606 - the purpose of this program


if __name__ == "__main__":
    main(Command[sys.argv[1]], getattr(errno, sys.argv[2]), sys.argv[3:])
