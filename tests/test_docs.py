"""What the documents say about the tests is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent


def test_tests_that_documents_name_exist() -> None:
    """Every `test_...` that a document names as a proof is a test or a file of tests."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    known = {
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    known |= {file.stem for file in files}
    assert named_in_documents(r"\btest_\w+") <= known


def test_paths_of_tests_that_documents_name_exist() -> None:
    """Every `tests/...` that a document names is there."""
    assert {path for path in named_in_documents(r"`(tests/[\w/.]+)`") if not (ROOT / path).exists()} == set()


def named_in_documents(pattern: str) -> set[str]:
    """Return what matches in any document, which is something."""
    named = {name for file in (ROOT / "docs").rglob("*.md") for name in re.findall(pattern, file.read_text())}
    assert named
    return named
