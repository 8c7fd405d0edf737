"""The rooms of the package keep to the import matrix, and pure modules only compute.

The matrix is that of docs/architecture.md; docs/decisions/0023-rooms.md gives the reasons.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.support.imports import ALLOWED_STDLIB, importers, module_names, rooms_used, violations

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = "clb_discovery"
EVERYTHING: Final = frozenset({"*"})
MATRIX: Final = {
    room: frozenset(uses.split())
    for room, uses in {
        "text": "",
        "errors": "",
        "hints": "",
        "repeats": "",
        "sentences": "",
        "stderr": "",
        "files": "errors",
        "log": "repeats sentences stderr text",
        "model": "text",
        "layout": "model",
        "sources": "model errors text",
        "checks": "model stderr text",
        "state": "model layout text",
        "publication": "model layout",
        "datapath": "model layout publication errors files hints text",
        "hosts_file": "model layout errors files",
        "documents": "model layout publication hints text",
        "metrics": "model layout state documents errors stderr",
        "config": "model sources publication datapath errors stderr text",
        "terminal": "documents text",
        "sidecar": "model layout sources checks state publication datapath hosts_file documents metrics config "
        "errors files log repeats stderr text",
        "demo": "model datapath documents terminal errors",
        "cli": "*",
        "__main__": "cli",
    }.items()
}
"""The rooms that each room may import. A room is a package or a module directly inside `clb_discovery`."""
PURE_ROOMS: Final = ("model", "layout", "state", "publication", "documents")
PURE_MODULES: Final = frozenset(
    {
        "clb_discovery.errors",
        "clb_discovery.hints",
        "clb_discovery.repeats",
        "clb_discovery.sentences",
        "clb_discovery.text",
        "clb_discovery.checks.choice",
        "clb_discovery.checks.health",
        "clb_discovery.checks.response",
        "clb_discovery.checks.schedule",
        "clb_discovery.checks.table",
        "clb_discovery.datapath.close_request",
        "clb_discovery.datapath.sockets.btf",
        "clb_discovery.datapath.sockets.listeners",
        "clb_discovery.datapath.sockets.sock_diag",
        "clb_discovery.hosts_file.block",
        "clb_discovery.sidecar.health.cases",
        "clb_discovery.sidecar.health.reached",
        "clb_discovery.sidecar.unhealthy",
        "clb_discovery.sources.consul.answer",
        "clb_discovery.sources.consul.blocking",
        "clb_discovery.sources.consul.members",
        "clb_discovery.sources.consul.opt_in",
        "clb_discovery.sources.dns.answer",
        "clb_discovery.sources.dns.linger",
        "clb_discovery.sources.dns.varying",
    }
)
"""Pure modules in other rooms."""
IMPURE: Final = (
    "asyncio", "ctypes", "logging", "os", "pathlib", "random", "secrets", "select", "socket",
    "structlog", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request", "uuid",
)  # fmt: skip


def package(root: Path, **sources: str) -> frozenset[str]:
    """Write a package named pure with these modules; return their dotted names."""
    folder = root / "pure"
    folder.mkdir()
    for name, source in {"__init__": "", **sources}.items():
        (folder / f"{name}.py").write_text(source)
    return frozenset(f"pure.{name}" for name in sources)


def test_rooms_import_what_the_matrix_allows() -> None:
    """No room imports more than the matrix allows, every room is in it, and every permission is used."""
    used = rooms_used(ROOT, PACKAGE)
    assert used.keys() == MATRIX.keys()
    for room, uses in used.items():
        allowed = MATRIX[room]
        if allowed != EVERYTHING:
            assert {other: where for other, where in uses.items() if other not in allowed} == {}, room
            assert allowed <= uses.keys(), f"{room} does not use {sorted(allowed - uses.keys())}"


def test_only_the_command_line_imports_argparse() -> None:
    """Everything behind it sees the frozen `Options`, and no namespace."""
    assert {module.split(".")[1] for module in importers(ROOT, PACKAGE, "argparse")} == {"cli"}


def test_pure_rooms_and_the_pure_modules_of_others_are_pure() -> None:
    """They import the pure part of the standard library, each other, and nothing else."""
    rooms = frozenset[str]().union(*(module_names(ROOT, f"{PACKAGE}.{room}") for room in PURE_ROOMS))
    assert f"{PACKAGE}.publication.plan" in rooms
    assert violations(ROOT, PACKAGE, rooms | PURE_MODULES) == []


def test_no_allowed_module_is_known_to_be_impure() -> None:
    """The list of allowed modules has none with a clock, randomness, network, file, process or log."""
    assert not ALLOWED_STDLIB & set(IMPURE)


@pytest.mark.parametrize("module", IMPURE)
def test_an_impure_import_is_found(tmp_path: Path, module: str) -> None:
    """An impure module is found in each form that an import can take."""
    for number, source in enumerate([f"import {module}", f"from {module} import x", f"def f():\n    import {module}"]):
        root = tmp_path / str(number)
        root.mkdir()
        assert violations(root, "pure", package(root, one=source)) == [f"pure.one imports {module}"]


@pytest.mark.parametrize("source", ["from pure import other", "import pure.other", "from pure.other import name"])
def test_an_import_of_a_module_that_is_not_pure_is_found(tmp_path: Path, source: str) -> None:
    """A pure module may not use anything impure through another module."""
    package(tmp_path, one=source, other="import time\nname = time.time")
    assert violations(tmp_path, "pure", frozenset({"pure.one"})) == ["pure.one imports pure.other"]
    assert violations(tmp_path, "pure", frozenset({"pure.one", "pure.other"})) == ["pure.other imports time"]


def test_an_impure_package_above_is_found(tmp_path: Path) -> None:
    """The `__init__` above a pure module runs when it is imported, so it has to be pure too."""
    modules = package(tmp_path, one="import math")
    (tmp_path / "pure" / "__init__.py").write_text("import socket")
    assert violations(tmp_path, "pure", modules) == ["pure imports socket"]


def test_a_clock_is_found(tmp_path: Path) -> None:
    """Moments are values; a module that reads the clock for them is impure."""
    modules = package(tmp_path, one="from datetime import UTC, datetime\nnow = datetime.now(UTC)")
    assert violations(tmp_path, "pure", modules) == ["pure.one uses datetime.now"]


@pytest.mark.parametrize("source", ["open('x')", "print(1)", "__import__('os')", "f = open", "eval('1')"])
def test_a_builtin_that_reaches_outside_is_found(tmp_path: Path, source: str) -> None:
    """Files, the terminal and `eval` need no import, and are found by name."""
    (found,) = violations(tmp_path, "pure", package(tmp_path, one=source))
    assert found.startswith("pure.one uses ")


def test_a_relative_import_is_found(tmp_path: Path) -> None:
    """A relative import is always rejected, because it could lead anywhere."""
    modules = package(tmp_path, one="from . import two", two="")
    assert violations(tmp_path, "pure", modules) == ["pure.one imports ."]
