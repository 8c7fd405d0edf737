"""The documents are right about tests, commands, options, files, metrics and log lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.cli.main import main
from clb_discovery.cli.parser import make_parser
from clb_discovery.config.file import decode
from clb_discovery.config.options import make_options
from clb_discovery.config.services import read_services
from tests.support.documents import DOCUMENTS, ROOT, blocks, command_lines
from tests.support.log_events import Logged, events, logged

FOREIGN_OPTIONS: Final = frozenset(
    {"--now", "--offline", "--threshold", "--seconds", "--seed", "--keep", "--save", "--port", "--daemonize", "--only"}
)
"""Options of other programs: systemctl and systemd-analyze, the soak, benchmarks, redis-server, test-kernels."""
ASKS: Final = frozenset({"run", "plan", "check"})
"""Commands that take services."""

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def known_options() -> set[str]:
    """Return every option that --help names."""
    general = make_parser().format_help()
    told = StringIO()
    for command in re.findall(r"^    ([a-z]+)  ", general, re.MULTILINE):
        with redirect_stdout(told), pytest.raises(SystemExit):
            main([command, "--help"])
    return set(re.findall(r"--[a-z][a-z-]+", general + told.getvalue()))


def anchors(document: Path) -> set[str]:
    """Return the headings of a document in the form of GitHub's anchors."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def expanded(path: str) -> Iterator[str]:
    """Return the paths that a shell makes of one pair of braces."""
    before, brace, rest = path.partition("{")
    inside, _, after = rest.partition("}")
    yield from (before + word + after for word in inside.split(",")) if brace else (path,)


def test_tests_that_documents_name_exist() -> None:
    """Every `test_...` that a document names as a proof is a test or a file of tests."""
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests/vm/systemd/guest").glob("*.py")]
    known = {
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    known |= {file.stem for file in files}
    named = {name for file in (ROOT / "docs").rglob("*.md") for name in re.findall(r"\btest_\w+", file.read_text())}
    assert named
    assert named <= known


@each_document
def test_command_lines_are_taken(document: Path) -> None:
    """Each `clb-discovery` command line is one that the program takes, down to the names and addresses in it."""
    for arguments in command_lines(document.read_text()):
        words = arguments if arguments and not arguments[0].startswith("-") else ["run", *arguments]
        typed = make_parser().parse_args([word for word in words if word != "--help"])
        options = make_options(vars(typed), {}, (), {})
        is_example = not any(word in " ".join(words) for word in ("NAME", "VIP"))
        if is_example and words[0] in ASKS and (options.service or options.srv):
            assert read_services(options), words


def test_readme_is_short() -> None:
    """A newcomer reads README in a few minutes: all else is behind its links."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_sections_that_are_typed_exist() -> None:
    """Each section of README that scripts/try-readme types in a bare system is there, with command lines."""
    typed = re.findall(r'^type_\w+ "(.+)"$', (ROOT / "scripts" / "try-readme").read_text(), re.MULTILINE)
    sections = dict(section.split("\n", 1) for section in (ROOT / "README.md").read_text().split("\n## ")[1:])
    assert len(typed) > 2
    assert [title for title in typed if not re.search(r"^    [a-z]", sections[title], re.MULTILINE)] == []


def test_command_lines_are_found() -> None:
    """The test above finds lines that people copy: in blocks and in text, with a comment or without."""
    found = list(command_lines((ROOT / "README.md").read_text()))
    assert ["unload"] in found
    assert any("--consul" in words for words in found)
    assert [*command_lines("    sudo .venv/bin/clb-discovery plan …  # later\n\n`clb-discovery check`")] == [
        ["plan"],
        ["check"],
    ]


@each_document
def test_options_exist(document: Path) -> None:
    """Each option that a document names is in the help of a command."""
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", document.read_text())) <= known_options() | FOREIGN_OPTIONS


def test_configuration_files_are_taken() -> None:
    """Each example of a configuration file is one that the program reads."""
    examples = [
        block for document in DOCUMENTS for block in blocks(document.read_text()) if "\n    [[service]]" in block
    ]
    assert examples
    for example in examples:
        assert decode(example.encode()).entries


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    """Each link to a file of this repository leads to one, and each anchor to a heading there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each_document
def test_files_exist(document: Path) -> None:
    """Each path into this repository that a document names is there."""
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._")
    named = re.findall(rf"`((?:{tops})/[\w./{{}},-]*)`", document.read_text())
    paths = {path for name in named for path in expanded(name)}
    assert [path for path in paths if not (ROOT / path).exists()] == []


@each_document
def test_metrics_and_maps_exist(document: Path) -> None:
    """Each name that begins with clb_ is a metric of docs/metrics.md, in the C, or a pin."""
    metrics = set(re.findall(r"^\| `(clb_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    c_names = {name for file in (ROOT / "bpf").glob("*.[ch]") for name in re.findall(r"\bclb_\w+", file.read_text())}
    pins = set(re.findall(r"\bclb_\w+", (ROOT / "clb_discovery" / "datapath" / "pins.py").read_text()))
    assert set(re.findall(r"\bclb_\w+", document.read_text())) <= metrics | c_names | pins | {"clb_discovery"}


@each_document
def test_alerts_exist(document: Path) -> None:
    """Each alert in a document is one of the rules."""
    rules = (ROOT / "contrib" / "prometheus" / "clb-discovery.rules.yml").read_text()
    assert set(re.findall(r"\bClb[A-Z]\w+", document.read_text())) <= set(re.findall(r"alert: (\w+)", rules))


@each_document
def test_log_events_exist(document: Path) -> None:
    """Each event of the log, in documents `"source fails"`, is one that the program logs."""
    assert set(re.findall(r'`"([^`"]+)"`', document.read_text())) <= events()


def logged_in_document() -> set[Logged]:
    """Return the rows of the tables in docs/log.md: event, level and fields."""
    rows = re.findall(
        r"^\| `([^`|]+)` \| ([a-z ]+) \| [^|]+ \|([^|]*)\|$", (ROOT / "docs/log.md").read_text(), re.MULTILINE
    )
    return {Logged(event, level, frozenset(re.findall(r"`(\w+)`", fields))) for event, level, fields in rows}


def test_every_event_is_in_the_document() -> None:
    """docs/log.md has each event that the package logs, with its level and its fields, and no other."""
    fields: dict[tuple[str, str], frozenset[str]] = {}
    for one in logged():
        fields[one.event, one.level] = fields.get((one.event, one.level), frozenset()) | one.fields
    assert logged_in_document() == {Logged(event, level, names) for (event, level), names in fields.items()}


def test_each_alert_leads_to_its_row() -> None:
    """`runbook_url` of each alert leads to a row of docs/operating.md that names it, as the Debian package has it."""
    rules = (ROOT / "contrib/prometheus/clb-discovery.rules.yml").read_text()
    alerts = re.findall(r"alert: (\w+)\n(?:(?! +- alert).*\n)*? +runbook_url: (\S+)", rules)
    assert [name for name, _ in alerts] == re.findall(r"alert: (\w+)", rules)
    rows = (ROOT / "docs/operating.md").read_text().splitlines()
    for name, url in alerts:
        place, _, anchor = url.partition("#")
        assert place == "file:///usr/share/doc/clb-discovery/docs/operating.md"
        (row,) = (line for line in rows if f'<a id="{anchor}"></a>' in line)
        assert name in row
