"""docs/kernels.md, from the results of the machines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from tests.vm.features import FEATURES, Finding
from tests.vm.kernels import Kernel
from tests.vm.machine import Found

HEAD = """\
# Features by kernel

`make test-kernels` wrote this file. It boots Debian's kernels in emulated machines, probes the features of each kernel
there, and runs the tests of `tests/kernel` against the same wheel. `tests/vm/kernels.py` lists the features that each
kernel lacks: `make test-kernels` fails if a kernel lacks other ones.
"""


def document(versions: Mapping[Kernel, str], found: Mapping[Kernel, Found]) -> str:
    """Return the text of the file.

    :param versions: of Debian's packages.
    """
    rows = [["", *(kernel.name for kernel in found)], ["---"] * (len(found) + 1)]
    rows.append(["Debian's package", *(f"{versions[kernel]} ({kernel.suite})" for kernel in found)])
    rows += [
        [feature.name, *(_cell(results.features[feature.name]) for results in found.values())] for feature in FEATURES
    ]
    rows.append(["tests", *(_outcome(results) for results in found.values())])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    meanings = "\n".join(
        textwrap.fill(f"- **{feature.name}**: {feature.meaning}", 120, subsequent_indent="  ") for feature in FEATURES
    )
    return f"{HEAD}\n{table}\nMeaning of the rows:\n\n{meanings}\n"


def _cell(finding: Finding) -> str:
    has = "yes" if finding.has else "lacks"
    return f"{has}: {finding.detail}" if finding.detail else has


def _outcome(found: Found) -> str:
    skipped = f", {len(found.tests.skipped)} do not apply" if found.tests.skipped else ""
    return f"{found.tests.passed} passed{skipped}"
