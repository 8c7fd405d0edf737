"""Results as JSON, with a description of the machine that does not identify it."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).with_name("results")


def machine() -> dict[str, object]:
    """Return the relevant properties of this machine."""
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


def ratio(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Return the ratio to a direct connection: the median of its ratios, and their quartiles.

    :param pairs: for each round the value, and that of the direct connection.
    """
    ratios = [one / direct for one, direct in pairs]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"to_direct": round(median, 3), "low": round(low, 3), "high": round(high, 3)}


def table(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the lines of a table with all fields that any row has."""
    columns = list(dict.fromkeys(field for fields in rows.values() for field in fields))
    yield " " * 27 + "".join(f"{column:>18}" for column in columns)
    for name, fields in rows.items():
        yield f"{name:<27}" + "".join(f"{fields.get(column, '-'):>18}" for column in columns)


def save(name: str, measured: object) -> None:
    """Save the results."""
    FOLDER.mkdir(exist_ok=True)
    document = {"machine": machine(), "measured": measured}
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def kept() -> dict[str, Any]:
    """Return all saved results, by their names."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}
