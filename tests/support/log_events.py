"""The events that the package logs, read from its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2] / "clb_discovery"
LEVELS: Final = frozenset({"debug", "info", "warning", "error"})
TROUBLE: Final = frozenset({"error", "times"})
"""The fields of a trouble that may repeat."""


class Logged(NamedTuple):
    """A call that logs an event."""

    event: str
    level: str
    fields: frozenset[str]


@cache
def logged() -> frozenset[Logged]:
    """Return every event with a constant name that the package logs."""
    trees = (ast.parse(file.read_text()) for file in ROOT.rglob("*.py"))
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return frozenset(found for call in calls for found in _found(call))


def events(*levels: str) -> set[str]:
    """Return the names of events, of these levels or of all."""
    return {one.event for one in logged() if not levels or one.level in levels}


def named(tree: ast.AST) -> set[str]:
    """Return the events whose presence or absence in a log a program of tests checks."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Compare(
                ast.Constant(str(event)), [ast.In() | ast.NotIn()], [ast.Call(ast.Attribute(attr="events"))]
            ):
                found.add(event)
            case ast.Call(ast.Attribute(ast.Call(ast.Attribute(attr="events")), "count"), [ast.Constant(str(event))]):
                found.add(event)
            case ast.Call(ast.Name("has_logged"), [_, ast.Constant(str(event))]):
                found.add(event)
    return found


def _found(call: ast.Call) -> Iterator[Logged]:
    function, arguments = call.func, call.args
    if isinstance(function, ast.Name) and function.id == "partial" and arguments:
        function, *arguments = arguments
    names = [ast.unparse(one).rpartition(".")[2] for one in (function, *arguments) if _is_name(one)]
    texts = [one.value for one in arguments if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    fields = frozenset(one.arg for one in call.keywords if one.arg) - {"exc_info"}
    if not names or not texts:
        return
    name = names[0].removeprefix("_")
    if name in LEVELS and "log" in ast.unparse(function):
        yield Logged(texts[0], name, fields)
    elif name == "log":
        yield Logged(texts[0], "info or warning", fields)
    elif name in {"trouble", "trying"}:
        yield Logged(texts[0], "error", fields | TROUBLE)
    elif name == "say" and isinstance(call.func, ast.Attribute) and call.func.attr == "_say":
        yield Logged(texts[0], names[1], fields | TROUBLE)


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute | ast.Name)
