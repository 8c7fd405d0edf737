"""Read imports and names from the source, without running it: rooms that a room uses, and impure parts of modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ALLOWED_STDLIB: Final = frozenset(
    {
        "__future__", "bisect", "collections", "collections.abc", "dataclasses", "datetime", "difflib", "enum",
        "fnmatch", "fractions", "functools", "hashlib", "heapq", "ipaddress", "itertools", "json", "math", "operator",
        "re", "reprlib", "shlex", "string", "struct", "tomllib", "types", "typing", "zlib",
    }
)  # fmt: skip
"""Modules that compute and nothing else. A clock, randomness, a socket, a file or a log is not among them."""

IMPURE_BUILTINS: Final = frozenset({"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"})
"""Built-in names that reach outside without an import."""
CLOCKS: Final = frozenset({"datetime.now", "datetime.today", "datetime.utcnow", "date.today"})
"""The only functions of the module `datetime` that read a clock."""


def violations(root: Path, package: str, modules: frozenset[str]) -> list[str]:
    """Return what the modules use beyond the pure standard library and each other.

    Importing a module runs the `__init__` of each package above it, so those are checked as well.

    :param root: the directory that holds the package.
    :param modules: dotted names of the modules that claim to be pure.
    """
    parents = {".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 1)}
    checked = modules | parents
    found = []
    for module in sorted(checked):
        tree = ast.parse(_source(root, module).read_bytes())
        for imported in _imports(root, tree):
            inside = imported == package or imported.startswith(f"{package}.")
            if imported not in (checked if inside else ALLOWED_STDLIB):
                found.append(f"{module} imports {imported}")
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        found += (f"{module} uses {name}" for name in sorted(names & IMPURE_BUILTINS))
        attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found += (f"{module} uses {name}" for name in sorted(attributes & CLOCKS))
    return found


def rooms_used(root: Path, package: str) -> dict[str, dict[str, list[str]]]:
    """Return, for each package or module directly inside a package, which others it imports, and where.

    :param root: the directory that holds the package.
    :returns: by room and used room, the modules that import it.
    """
    used: dict[str, dict[str, list[str]]] = {}
    for module in sorted(module_names(root, package) - {package}):
        own = used.setdefault(module.split(".")[1], {})
        for imported in _imports(root, ast.parse(_source(root, module).read_bytes())):
            parts = imported.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] != module.split(".")[1]:
                own.setdefault(parts[1], []).append(module)
    return used


def importers(root: Path, package: str, imported: str) -> frozenset[str]:
    """Return the modules of a package that import a module of the standard library."""
    modules = module_names(root, package)
    return frozenset(one for one in modules if imported in _imports(root, ast.parse(_source(root, one).read_bytes())))


def module_names(root: Path, package: str) -> frozenset[str]:
    """Return the dotted names of a package and all modules below it."""
    files = (root / Path(*package.split("."))).rglob("*.py")
    names = (".".join(file.relative_to(root).with_suffix("").parts) for file in files)
    return frozenset(name.removesuffix(".__init__") for name in names)


def _imports(root: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import is returned with its dots, which no list contains: absolute imports are the rule here.
            name = "." * node.level + (node.module or "")
            for alias in node.names:
                submodule = f"{name}.{alias.name}"
                yield submodule if node.level == 0 and _source(root, submodule).exists() else name


def _source(root: Path, module: str) -> Path:
    path = root / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
