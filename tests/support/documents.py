"""The documents, and the commands in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FRONT: Final = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Documents beside docs/."""
DOCUMENTS: Final = (*(ROOT / name for name in FRONT), *sorted((ROOT / "docs").rglob("*.md")))
EXAMPLES: Final = tuple(sorted((ROOT / "docs" / "examples").glob("*.toml")))
"""Complete configuration files."""


def blocks(text: str) -> Iterator[str]:
    """Return the blocks of code of a document, indented or fenced."""
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"(?:^(?: {4}.*|\s*)\n)+", text, re.MULTILINE)


def command_lines(text: str) -> Iterator[list[str]]:
    """Return the arguments of each `clb-discovery` command line of a document, in blocks and in the text.

    `…` in a line stands for options that the document shows elsewhere.
    """
    lines = [line.strip() for block in blocks(text) for line in block.splitlines()]
    lines += re.findall(r"`(clb-discovery [^`]*)`", text)
    for line in lines:
        found = re.fullmatch(r"(?:sudo )?(?:\.venv/bin/)?clb-discovery(?!\S)(?! \d)(.*)", re.sub(r"\s#.*", "", line))
        if found:
            yield [word for word in shlex.split(found[1]) if word != "…"]


def other_command_lines(text: str, *programs: str) -> Iterator[str]:
    """Return each line of a document, in blocks and in the text, that runs one of these programs with arguments."""
    begins = rf"(?:{'|'.join(programs)})"
    found = [line.strip() for block in blocks(text) for line in block.splitlines()]
    found += re.findall(rf"`({begins} [^`]*)`", text)
    for line in found:
        command = re.sub(r"\s#.*", "", line).strip()
        if re.match(rf"{begins}(?: |$)", command):
            yield command


def drop_ins(text: str) -> Iterator[tuple[str, str]]:
    """Return the drop-ins of a document: the unit, and the text for `systemctl edit`."""
    for block in blocks(text):
        found = re.fullmatch(r"# systemctl edit (\S+)\n(.*)", textwrap.dedent(block).strip("\n"), re.DOTALL)
        if found:
            yield found[1], f"{found[2]}\n"
