"""Tests that need a machine of their own are told from those that do not."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.selection import MACHINE, TOOLS, needs_machine

TESTS: Final = Path(__file__).parent
PROGRAM: Final = """
import json, os, shutil, subprocess
from tests.support.selection import without_machine

with without_machine():
    cat = subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True)
    print(json.dumps([cat.stdout, sorted(os.listdir(os.environ["PATH"])), shutil.which("uname")]))
"""


@pytest.mark.parametrize("entry", MACHINE)
def test_every_entry_names_tests(entry: str) -> None:
    """A room, a file or a function that is renamed is renamed in the list, too."""
    path, _, function = entry.partition("::")
    assert (TESTS / path).exists()
    if function:
        tree = ast.parse((TESTS / path).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in names


def test_rooms_files_and_functions_are_found() -> None:
    """An entry stands for all that is below it, and for nothing whose name only begins like it."""
    assert needs_machine("kernel/transparency/test_peer.py", "test_any")
    assert needs_machine("sources/dns/test_knot.py", "test_any")
    assert needs_machine("test_wheel.py", "test_wheel_needs_no_compiler")
    assert not needs_machine("test_wheel.py", "test_wheel_runs_its_own_code")
    assert not needs_machine("kernel_log/test_any.py", "test_any")
    assert not needs_machine("state/test_guard.py", "test_any")


def test_without_machine_there_are_no_means() -> None:
    """Neither the process nor a program that it starts has a capability, and no server is on PATH."""
    said = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, cwd=TESTS.parent)
    status, tools, other = json.loads(said.stdout)
    capabilities = {line.split()[0]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")}
    assert capabilities["CapEff:"] == capabilities["CapPrm:"] == capabilities["CapInh:"] == 0
    assert set(tools) <= set(TOOLS)
    assert other is None
