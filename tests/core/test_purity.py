"""What calls itself pure is pure: it computes, and reaches neither clock, chance, network, file nor log."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.core.purity import ALLOWED_STDLIB, module_names, violations

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "clb_discovery"
PURE_OUTSIDE_CORE: Final = frozenset(
    {
        "clb_discovery.errors",
        "clb_discovery.sources.consul.answer",
        "clb_discovery.sources.consul.blocking",
        "clb_discovery.sources.consul.members",
        "clb_discovery.sources.srv.answer",
        "clb_discovery.sources.srv.linger",
    }
)
IMPURE: Final = (
    "asyncio", "ctypes", "datetime", "logging", "os", "pathlib", "random", "secrets", "select", "socket",
    "structlog", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request", "uuid",
)  # fmt: skip


def package(root: Path, **sources: str) -> frozenset[str]:
    """Write a package named pure with these modules; return their dotted names."""
    folder = root / "pure"
    folder.mkdir()
    for name, source in {"__init__": "", **sources}.items():
        (folder / f"{name}.py").write_text(source)
    return frozenset(f"pure.{name}" for name in sources)


def test_the_core_and_the_pure_halves_of_the_sources_are_pure() -> None:
    """They import the pure part of the standard library, each other, and nothing else."""
    core = module_names(ROOT, "clb_discovery.core")
    assert "clb_discovery.core.plan" in core
    assert violations(ROOT, PACKAGE, core | PURE_OUTSIDE_CORE) == []


def test_no_allowed_module_is_known_to_be_impure() -> None:
    """The list of what is allowed holds no module with a clock, chance, network, file, process or log."""
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
    """A pure module may not reach anything impure through a neighbour."""
    package(tmp_path, one=source, other="import time\nname = time.time")
    assert violations(tmp_path, "pure", frozenset({"pure.one"})) == ["pure.one imports pure.other"]
    assert violations(tmp_path, "pure", frozenset({"pure.one", "pure.other"})) == ["pure.other imports time"]


def test_an_impure_package_above_is_found(tmp_path: Path) -> None:
    """The `__init__` above a pure module runs when it is imported, so it has to be pure too."""
    modules = package(tmp_path, one="import math")
    (tmp_path / "pure" / "__init__.py").write_text("import socket")
    assert violations(tmp_path, "pure", modules) == ["pure imports socket"]


@pytest.mark.parametrize("source", ["open('x')", "print(1)", "__import__('os')", "f = open", "eval('1')"])
def test_a_builtin_that_reaches_outside_is_found(tmp_path: Path, source: str) -> None:
    """Files, the terminal and code from text need no import, and are found by name."""
    (found,) = violations(tmp_path, "pure", package(tmp_path, one=source))
    assert found.startswith("pure.one uses ")


def test_a_relative_import_is_found(tmp_path: Path) -> None:
    """A relative import is refused as it stands, since it could lead anywhere."""
    modules = package(tmp_path, one="from . import two", two="")
    assert violations(tmp_path, "pure", modules) == ["pure.one imports ."]
