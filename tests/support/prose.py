"""The prose of files: documents, docstrings and comments as paragraphs of one line; and the phrases kept out of it."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Final

PHRASES: Final = ("way out", "ways out", "anew", "of before", "whoever", "nobody knows")
WHO: Final = (
    "who is", "who has", "who wants", "who asks", "who may",
    "who takes", "who writes", "who holds", "who reads", "who talks",
)  # fmt: skip
"""Allowed in questions."""

_PHRASE: Final = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE)
_WHO: Final = re.compile(rf"\b(?:{'|'.join(WHO)})\b(?!(?:[^.!?]|[.!?](?!\s|$))*\?)", re.IGNORECASE)
_C_COMMENT_OR_STRING: Final = re.compile(r'/\*.*?\*/|(?://[^\n]*(?:\n\s*(?=//))?)+|"(?:\\.|[^"\\])*"', re.DOTALL)
_C_MARKER: Final = re.compile(r"^\s*(?://+|/?\*+/?)|\*/$", re.MULTILINE)
_QUOTE_MARKER: Final = re.compile(r"^\s*>", re.MULTILINE)
_HASH: Final = re.compile(r"(?:^|(?<=\s))#+(?!!)(.*)$")


def found_in(paragraph: str) -> list[str]:
    """Return each unwanted phrase of a paragraph, as written."""
    return _PHRASE.findall(paragraph) + _WHO.findall(paragraph)


def prose_of(file: Path) -> Iterator[str]:
    """Return the paragraphs of a file, by its name: Markdown and text, Python, C, or any other with `#` comments."""
    return _READERS.get(file.suffix, hash_prose)(file.read_text())


def document_prose(text: str) -> Iterator[str]:
    """Return the paragraphs of a document."""
    return paragraphs([_QUOTE_MARKER.sub("", text)])


def python_prose(source: str) -> Iterator[str]:
    """Return the paragraphs of docstrings, including those of attributes, and of comments."""
    docstrings = (
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    yield from paragraphs(docstrings)
    if "#" in source:
        comments = (
            (token.start[0], token.line.lstrip().startswith("#"), token.string.lstrip("#"))
            for token in tokenize.generate_tokens(StringIO(source).readline)
            if token.type == tokenize.COMMENT
        )
        yield from paragraphs(_joined(comments))


def c_prose(source: str) -> Iterator[str]:
    """Return the paragraphs of C comments; `//` comments on consecutive lines are one."""
    comments = (match[0] for match in _C_COMMENT_OR_STRING.finditer(source))
    return paragraphs(_C_MARKER.sub("", comment) for comment in comments if not comment.startswith('"'))


def hash_prose(source: str) -> Iterator[str]:
    """Return the paragraphs of comments of shell scripts, units, YAML and others that begin comments with `#`."""
    comments = (
        (number, line.lstrip().startswith("#"), match[1])
        for number, line in enumerate(source.splitlines())
        if (match := _HASH.search(line))
    )
    return paragraphs(_joined(comments))


def paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """Split texts at blank lines; return each part with single spaces between its words."""
    for text in texts:
        for paragraph in re.split(r"\n\s*\n", text):
            yield " ".join(paragraph.split())


def _joined(comments: Iterable[tuple[int, bool, str]]) -> Iterator[str]:
    """Join own-line comments on consecutive lines; a comment behind code stays separate."""
    numbered = ((number - index, alone, number, text) for index, (number, alone, text) in enumerate(comments))
    for _, block in groupby(numbered, key=lambda comment: (comment[0], comment[1] or -comment[2])):
        yield "\n".join(text for *_, text in block)


_READERS: Final[dict[str, Callable[[str], Iterator[str]]]] = {
    ".md": document_prose,
    ".txt": document_prose,
    ".py": python_prose,
    ".c": c_prose,
    ".h": c_prose,
}
