"""Documents, docstrings and comments are free of a few phrases that are hard to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.documents import ROOT
from tests.support.prose import PHRASES, WHO, c_prose, document_prose, found_in, hash_prose, prose_of, python_prose

CODE: Final = ("clb_discovery", "tests", "soak", "fuzz", "benchmarks", "scripts")
C: Final = ("bpf", "soak", "benchmarks")
NO_PROSE: Final = frozenset({".json", ".svg", ".png", ".pyc", ".o", ".docs", ".install", ".links", ".manpages"})
"""Data, and lists of files."""


def files_with_prose() -> list[Path]:
    """Return documents, code, scripts, units, and the packaging of contrib/."""
    texts = (file for kind in ("md", "txt", "toml") for file in (ROOT / "docs").rglob(f"*.{kind}"))
    documents = [*ROOT.glob("*.md"), *texts]
    code = [file for folder in CODE for file in (ROOT / folder).rglob("*") if file.suffix in {"", ".py", ".service"}]
    c = [file for folder in C for file in (ROOT / folder).glob("*.[ch]")]
    contrib = [file for file in (ROOT / "contrib").rglob("*") if file.suffix not in NO_PROSE]
    return sorted({file for file in (*documents, *code, *c, *contrib, ROOT / "Makefile") if file.is_file()})


@pytest.mark.parametrize("file", files_with_prose(), ids=lambda file: str(file.relative_to(ROOT)))
def test_prose_is_plain(file: Path) -> None:
    """No document, docstring or comment has one of the phrases."""
    assert [phrase for paragraph in prose_of(file) for phrase in found_in(paragraph)] == []


def test_files_of_each_kind_are_read() -> None:
    """The files include documents, decisions, Python, C, scripts without a suffix, and units."""
    names = {str(file.relative_to(ROOT)) for file in files_with_prose()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "docs/operating.md",
        "docs/examples/one-host.toml",
        "docs/decisions/0023-rooms.md",
        "clb_discovery/__init__.py",
        "bpf/clb.h",
        "bpf/clb.bpf.c",
        "soak/client.c",
        "scripts/setup",
        "tests/vm/guest/run",
        "contrib/systemd/clb-discovery.service",
    } <= names


@pytest.mark.parametrize("phrase", [*PHRASES, *WHO])
def test_each_phrase_is_found(phrase: str) -> None:
    """Each phrase is found in each kind of file, in capitals, and across the end of a line and its comment marker."""
    first, _, second = phrase.capitalize().partition(" ")
    broken = f"{first}\n{second}" if second else first
    for text in (phrase, phrase.upper(), broken):
        found = [" ".join(text.split())]
        lines = [f"Before it, {text} and".split("\n"), ["after it."]]
        plain = [line for part in lines for line in part]
        assert phrases(document_prose("\n".join(f"> {line}" for line in plain))) == found
        assert phrases(python_prose("\n".join(f"# {line}" for line in plain))) == found
        assert phrases(python_prose(f'class A:\n    b = 1\n    """{" ".join(plain)}\n    """\n')) == found
        assert phrases(c_prose("\n".join(f"// {line}" for line in plain))) == found
        assert phrases(c_prose("int a; /* " + "\n * ".join(plain) + " */")) == found
        assert phrases(hash_prose("\n".join(f"  # {line}" for line in plain))) == found


def test_questions_are_allowed() -> None:
    """A question may begin with one of the phrases; the sentence after it may not."""
    assert found_in("Who is it? Who may write 1.5 of it?") == []
    assert found_in("Who has it may write. Is it so?") == ["Who has"]


def test_code_is_not_prose() -> None:
    """Strings and names are no prose, and separate comments are not one sentence."""
    assert phrases(python_prose("a = 'anew'  # 'who'\n# is\nb = '''\n# anew'''")) == []
    assert phrases(python_prose("# who\n\n# is")) == []
    assert phrases(c_prose('a("// anew"); // who\nint is;')) == []
    assert phrases(hash_prose("#!anew\necho ${a#anew}  # who\n# is")) == []


def phrases(texts: Iterator[str]) -> list[str]:
    """Return the phrases of all paragraphs."""
    return [phrase for text in texts for phrase in found_in(text)]
