"""The help: examples, values that are defined once, and lines that fit the terminal."""

from __future__ import annotations

import argparse
import re
import shlex
from typing import Final

import pytest

from clb_discovery.cli.command_parser import CommandParser
from clb_discovery.cli.help_texts import EXAMPLES, EXIT_CODES, VALUES
from clb_discovery.cli.main import main
from clb_discovery.cli.parser import make_parser
from clb_discovery.config.options import make_options
from clb_discovery.config.services import read_services
from tests.support.sidecar import COMMAND
from tests.support.terminal import on_terminal
from tests.test_outside import commands, exit_codes, options

HIDDEN: Final = ("close", "complete")
PLAIN: Final = frozenset(
    {"FILE", "PATH", "DIR", "NAME", "NODE", "TAG", "GROUP", "EXPRESSION", "true|false", "capacity|none"}
)
"""Values whose names say enough."""
COMMANDS: Final = tuple(name for name in commands() if name and name not in HIDDEN)
each_command = pytest.mark.parametrize("command", COMMANDS)
each_help = pytest.mark.parametrize("arguments", [[], ["values"], *([name] for name in COMMANDS)], ids=str)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the output of a command that ends with 0."""
    try:
        assert main(arguments) == 0
    except SystemExit as end:  # of --help
        assert end.code == 0  # noqa: PT017 - it may also return
    out, err = capsys.readouterr()
    assert err == ""
    return out


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line of wrong usage."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@each_command
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """`help COMMAND` prints the same as `COMMAND --help`: two or three examples, and where values are explained."""
    text = printed(capsys, "help", command)
    assert text == printed(capsys, command, "--help")
    lines = [line for _, line in EXAMPLES[command]]
    assert 2 <= len(lines) <= 3
    assert re.findall(r"^  (clb-discovery .*)$", text, re.MULTILINE) == lines
    assert "clb-discovery help values" in text


def test_help_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """`help` prints the same as `--help`: every command that is for people, examples, and exit codes."""
    text = printed(capsys, "help")
    assert text == printed(capsys, "--help")
    assert tuple(re.findall(r"^    ([a-z]+)  ", text, re.MULTILINE)) == COMMANDS
    assert all(line in text for _, line in EXAMPLES[""])
    assert [int(code) for code in re.findall(r"^  (\d)  ", text, re.MULTILINE)] == list(EXIT_CODES)
    assert set(EXIT_CODES) == {0, *exit_codes().values()}


def test_hidden_commands_still_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that only programs run is in no list, and has a help of its own."""
    for command in HIDDEN:
        assert command not in make_parser().commands
        assert "(used by its " in " ".join(printed(capsys, command, "--help").split())


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_taken(command: str) -> None:
    """Each example is a command line that the program takes, down to the names and addresses in it."""
    for _, line in EXAMPLES[command]:
        program, *words = shlex.split(line)
        assert program == "clb-discovery"
        words = words if words and not words[0].startswith("-") else ["run", *words]
        typed = make_parser().parse_args(words)
        assert typed.command == command or not command
        options = make_options({**vars(typed), "config": None}, {}, (), {})
        if options.service or options.srv:
            assert read_services(options)


@pytest.mark.parametrize("command", ["check", "plan"])
def test_command_lines_of_run_are_taken(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Commands that try a command line of `run` take all of its options, and list those that change their result."""
    own, of_run = dict(options(commands()[command])), dict(options(commands()["run"]))
    assert own.items() >= of_run.items()
    text = printed(capsys, command, "--help")
    listed = {name for name in own if re.search(rf"{name}\b(?!-)", text)}
    assert own.keys() - listed == of_run.keys() - listed
    assert {"--metrics", "--state-dir", "--room-servers", "--log-level", "--once"} <= own.keys() - listed
    assert {"--instance", "--vip-range", "--offline"} <= listed
    assert "all options of `run`" in " ".join(text.split())


def test_values_are_defined_once(capsys: pytest.CaptureFixture[str]) -> None:
    """`help values` explains every kind of value that an option takes, and no command repeats it."""
    text = " ".join(printed(capsys, "help", "values").split())
    for name, parser in commands().items():
        if name in {"", "help", *HIDDEN}:
            continue
        metavars = {action.metavar for action in parser._actions if action.metavar}  # noqa: SLF001 - argparse has no public access
        assert metavars <= VALUES.keys() | PLAIN, name
        help_ = " ".join(parser.format_help().split())
        assert not [value for value in VALUES.values() if value in help_]
    assert all(f"{name} {value}" in text for name, value in VALUES.items())


def test_every_option_says_what_it_does() -> None:
    """No option has only a default or a variable as its help."""
    for name, parser in commands().items():
        listed = (action for action in parser._actions if action.help != argparse.SUPPRESS)  # noqa: SLF001 - as above
        for action in listed:
            said = re.sub(r"default:? .*|\([^)]*\)", "", action.help or "")
            assert len(said.split()) >= 3 or action.help is None, (name, action.option_strings)


@each_help
@pytest.mark.parametrize("columns", [60, 80, 132])
def test_help_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], columns: int
) -> None:
    """No line is longer than the terminal is wide, but for examples, which are copied."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = printed(capsys, "help", *arguments).splitlines()
    assert [line for line in lines if len(line) > columns and "  clb-discovery " not in line] == []
    assert max(map(len, lines)) <= max(columns, 80)


@each_help
def test_help_on_a_terminal(arguments: list[str]) -> None:
    """On a terminal of 80 columns the help fits without COLUMNS, too."""
    command = [*COMMAND, "help", *arguments]
    with on_terminal(command, {"TERM": "xterm-256color"}, columns=80, lines=24) as terminal:
        assert terminal.end() == 0
    assert max(map(len, terminal.text().splitlines())) <= 80


@each_command
def test_mistyped_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """A command with two letters exchanged is suggested, as a command and as a topic of help."""
    wrong = command[0] + command[2] + command[1] + command[3:]
    for arguments in ([wrong], ["help", wrong]):
        line = failed(capsys, *arguments)
        assert f"unknown command {wrong!r}; did you mean {command}" in line
        assert line.endswith("? See clb-discovery --help\n")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is similar, the commands for people are listed."""
    line = failed(capsys, "quux")
    assert f"unknown command 'quux'; commands are {', '.join(COMMANDS)}; see clb-discovery --help" in line


def parsers() -> list[CommandParser]:
    """Return the parser of each command for people."""
    return list(make_parser().commands.values())


def test_mistyped_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of every command is suggested if its last letter is missing, without its value."""
    for parser in parsers():
        for option in (name for name in parser._option_string_actions if name.startswith("--")):  # noqa: SLF001 - as above
            line = failed(capsys, parser.prog.split()[1], f"{option[:-1]}=s3cr3t")
            assert option in line.partition("; did you mean ")[2] or "--consul-token-file FILE" in line
            assert f"ee {parser.prog} --help" in line
            assert "s3cr3t" not in line


def test_value_out_of_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value of an option with choices is answered with all of them."""
    assert "argument --loader: invalid choice: 'objekt'" in (line := failed(capsys, "run", "--loader", "objekt"))
    assert all(choice in line for choice in ("auto", "object", "bcc", "none"))
