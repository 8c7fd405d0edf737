"""Results as JSON, with a description of the machine that says nothing about whose it is."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("results")


def machine() -> dict[str, object]:
    """Return what matters of this machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) >> 20
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "memory_gib": memory,
        "virtual": any(line.startswith("flags") and "hypervisor" in line.split() for line in lines),
        "kernel": ".".join(os.uname().release.split(".")[:2]),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def save(name: str, measured: object) -> None:
    """Keep what was measured."""
    FOLDER.mkdir(exist_ok=True)
    document = {"machine": machine(), "measured": measured}
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
