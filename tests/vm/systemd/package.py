"""A later version of the package, whose maps have another layout."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tests.vm.debian import run
from tests.vm.errors import VmError

_INSTALLED: Final = Path("usr/lib/clb-discovery/clb_discovery")
_CHANGES: Final = (
    # The number of the layout, on both sides.
    ("_bpf/src/clb.h", r"#define CLB_LAYOUT (\d+)", 1),
    ("layout/structs.py", r"LAYOUT: Final = (\d+)", 1),
    # The size of the elements of clb_labels, on both sides.
    ("_bpf/src/clb.h", r"char source\[(\d+)\]", 16),
    ("_bpf/src/clb.h", r"sizeof\(struct clb_label\) == (\d+)", 16),
    ("layout/structs.py", r'\("source", "(\d+)s"\)', 16),
    ("layout/elements.py", r"label\.source, (\d+)\)", 16),
)
"""The file, the pattern of its number, and the number to add."""


def make_later(checkout: Path, package: Path, work: Path) -> Path:
    """Make the later package from this version's; return its path.

    :param checkout: whose scripts compile it.
    :param work: an empty directory.
    :raises VmError: if it cannot be made.
    """
    source, tree = work / "source", work / "tree"
    run(["dpkg-deb", "--raw-extract", package, tree])
    for name, pattern, more in _CHANGES:
        _add(tree / _INSTALLED / name, pattern, more)
    shutil.copytree(tree / _INSTALLED / "_bpf/src", source / "bpf")
    shutil.copytree(checkout / "scripts", source / "scripts")
    run([sys.executable, source / "scripts/build_bpf.py"])
    shutil.copytree(source / "clb_discovery/_bpf", tree / _INSTALLED / "_bpf", dirs_exist_ok=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^(Version: .*)$", r"\1+later", control.read_text(), flags=re.MULTILINE))
    (tree / "DEBIAN/md5sums").unlink()
    run(["dpkg-deb", "--build", "--root-owner-group", tree, work / "later.deb"])
    return work / "later.deb"


def _add(file: Path, pattern: str, more: int) -> None:
    text = file.read_text()
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise VmError(f"{pattern!r} is {len(found)} times in {file.name}; bring tests/vm/systemd/package.py up to date")
    file.write_text(re.sub(pattern, lambda match: match[0].replace(match[1], str(int(match[1]) + more)), text))
