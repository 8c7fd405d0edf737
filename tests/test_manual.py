"""The manual page: made without any other tool, with each option once, and short."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from typing import Final

from clb_discovery.cli.help_texts import EXAMPLES, EXIT_CODES, VALUES
from clb_discovery.config import file, parts
from tests.cli.test_help import HIDDEN
from tests.support.documents import ROOT
from tests.test_outside import commands

SECTIONS: Final = (
    "NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "VALUES", "CONFIGURATION FILE", "EXAMPLES", "EXIT STATUS",
    "FILES", "SEE ALSO",
)  # fmt: skip
MOST_LINES: Final = 300


@cache
def source() -> str:
    """Return the page in the language of man(7)."""
    script = [sys.executable, "scripts/manual.py"]
    return subprocess.run(script, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def section(name: str) -> str:
    """Return the words of a section, without what makes them bold."""
    text = re.split(r"^\.SH (.*)\n", source(), flags=re.MULTILINE)
    found = dict(zip(text[1::2], text[2::2], strict=True))[name]
    found = re.sub(r"\\f[BIR]|^\.(?:BR|[BI]|BI) ", "", found, flags=re.MULTILINE).replace('"', "")
    return found.replace(r"\-", "-").replace(r"\(ga", "`").replace(r"\(aq", "'").replace(r"\ ", " ")


def test_sections() -> None:
    """The page has the usual sections, the values of options, and the configuration file."""
    assert tuple(re.findall(r"^\.SH (.*)$", source(), re.MULTILINE)) == SECTIONS


def test_each_option_is_there_once() -> None:
    """Each option of each command for people has one entry, and so has each command."""
    options = {
        action.option_strings[-1]
        for name, parser in commands().items()
        if name not in {"", *HIDDEN}
        for action in parser._actions  # noqa: SLF001 - argparse has no public access
        if action.option_strings
    }
    entries = re.findall(r"^\.HP 4\n(?:-h, )?(--[a-z-]+)", section("OPTIONS"), re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert set(entries) == options
    listed = re.findall(r"^\.HP 4\n([a-z]+)", section("COMMANDS"), re.MULTILINE)
    assert listed == [name for name in commands() if name not in {"", *HIDDEN}]


def test_values_examples_and_exit_codes_are_those_of_the_help() -> None:
    """The page repeats what the command line defines."""
    assert all(f"{name}  {text}" in section("VALUES") for name, text in VALUES.items())
    assert all(line in section("EXAMPLES") for _, line in EXAMPLES[""])
    assert all(f"{code}  {text}" in section("EXIT STATUS") for code, text in EXIT_CODES.items())


def test_keys_of_a_configuration_file_are_named() -> None:
    """Each key of a service and of a server is named, and the example is a file that the program reads."""
    text = section("CONFIGURATION FILE")
    known = {*file._SERVICE, *parts._OF_PART, *parts._SERVER}  # noqa: SLF001 - the keys are of no use elsewhere
    assert known <= set(re.findall(r"[a-z-]+", text))
    example = (ROOT / "contrib/man/example.toml").read_text()
    assert example.replace('"', "") in text
    assert len(file.decode(example.encode()).entries) == 2


def test_files_are_those_of_the_units() -> None:
    """Each file of the units that an operator meets is named."""
    assert {
        "/etc/default/clb-discovery", "/sys/fs/bpf/clb-discovery/", "/run/clb-discovery/", "/var/lib/clb-discovery/",
    } <= set(section("FILES").split())  # fmt: skip


def test_page_is_short() -> None:
    """Rendered at 80 columns it has no warning, and at most so many lines, none of which is longer."""
    groff = ["groff", "-man", "-Tutf8", "-P-cbou", "-rLL=78n", "-ww"]
    page = subprocess.run(groff, input=source(), check=True, capture_output=True, text=True)
    assert page.stderr == ""
    lines = page.stdout.splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 80
