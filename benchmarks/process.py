"""What a process takes, by proc(5)."""

from __future__ import annotations

import os
from pathlib import Path


def memory(pid: int, what: str) -> float:
    """Return a line of its status in MiB: `VmRSS` for now, `VmHWM` for the most so far."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def cpu(pid: int) -> float:
    """Return the processor seconds that it has taken, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
