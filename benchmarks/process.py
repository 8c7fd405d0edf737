"""Programs in C, and the resources of a process, from proc(5)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

SERVER: Final = Path(__file__).parent.parent / "soak/server.c"
"""A real server that sends its number."""


def compiled(source: Path, folder: Path) -> Path:
    """Compile a program; return its path."""
    program = folder / source.stem
    subprocess.run(["clang", "-O2", "-Wall", "-Werror", "-o", program, source], check=True)
    return program


def memory(pid: int, what: str) -> float:
    """Return a line of its status in MiB: `VmRSS` for now, `VmHWM` for the maximum so far."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def cpu(pid: int) -> float:
    """Return its CPU seconds, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
