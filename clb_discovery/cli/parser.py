"""The parser of the command line: it turns words into values, and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, Final

from clb_discovery import __version__
from clb_discovery.cli.command_parser import CommandParser
from clb_discovery.cli.help_texts import EXIT_CODES, VALUES, examples
from clb_discovery.config.options import LOADERS, OPTIONS, SERVICE_GROUPS
from clb_discovery.config.schema import Group, Option
from clb_discovery.config.values import parse_text
from clb_discovery.datapath.handover import parse_group
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.documents.trace import OUTCOMES
from clb_discovery.model import text_forms

PROGRAM: Final = "clb-discovery"
_DESCRIPTION: Final = """\
Balance connect(2) over the real servers that Consul or DNS lists, in the kernel, without a proxy.

Without a command it runs in the foreground, and follows discovery until it gets SIGTERM."""
_SEE_VALUES: Final = f"`{PROGRAM} help values` explains values such as VIP and TIME."
_SEE_COMMANDS: Final = f"`{PROGRAM} help COMMAND` lists the options of a command."
_EXIT_CODES: Final = "\n".join(("exit codes:", *(f"  {code}  {text}" for code, text in EXIT_CODES.items())))
_DOCUMENT: Final = "print a document for scripts"
_FOR_SERVICES: Final = frozenset(name for name, option in OPTIONS.items() if option.group in SERVICE_GROUPS)
_TAKES_ALL: Final = "This command takes all options of `run`; those that change nothing here are not listed."


def make_parser() -> CommandParser:
    """Return the parser of all commands, which raises UsageError.

    Its namespaces hold `command`, the name of a module of this package; those of `config.options.OPTIONS` that were
    given; and all other options of the command.
    """
    parser = CommandParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [COMMAND] [OPTION]...",
        description=_DESCRIPTION,
        epilog="\n\n".join((examples(""), f"{_SEE_COMMANDS} {_SEE_VALUES}", _EXIT_CODES)),
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", prog=PROGRAM, required=True)

    def command(name: str, text: str, *, hidden: bool = False) -> CommandParser:
        listed: dict[str, Any] = {} if hidden else {"help": text}
        sub = subparsers.add_parser(
            name,
            usage=f"{PROGRAM} {name} [OPTION]...",
            description=text[0].upper() + text[1:] + ".",
            epilog=f"{examples(name)}\n\n{_SEE_VALUES}",
            **listed,
        )
        sub.set_defaults(command=name)
        if not hidden:
            parser.commands[name] = sub
        return sub

    _add(command("run", "follow discovery, and keep the pools up to date (default)"), OPTIONS)

    _complete_status(command("status", "show the state of the kernel; works without the sidecar"))

    instances = command("instances", "list the instances that are loaded on this host")
    instances.add_argument("--json", action="store_true", help=_DOCUMENT)

    plan = command("plan", "show what `run` would change; exits 2 if there are changes")
    _add_all(plan, _FOR_SERVICES | {"instance", "hosts-file"})
    text = (
        "query no source, and need no root: check the configuration, and show its virtual servers with static real "
        "servers; others come from the kernel's maps, if readable"
    )
    plan.add_argument("--offline", action="store_true", help=text)
    plan.add_argument("--json", action="store_true", help=_DOCUMENT)

    _complete_load(command("load", "load and attach the kernel programs, without following discovery"))

    unload = command("unload", "detach and remove the kernel programs and pools of an instance")
    _add(unload, ["instance"])
    text = "remove only programs of other map layouts"
    unload.add_argument("--other-layouts", action="store_true", help=text)

    _complete_trace(command("trace", "show each connect live: its process, real server and outcome"))

    text = "close sockets of removed servers on behalf of an unprivileged sidecar (used by its unit)"
    command("close", text, hidden=True)

    complete = command("complete", "print words for the completion of a shell (used by its script)", hidden=True)
    complete.add_argument("kind", choices=("instances", "services"))

    text = "test this host, and show which servers `run` would use"
    check = command("check", text)
    _add_all(check, _FOR_SERVICES | {"instance", "cgroup", "loader"})
    text = (
        "query no source and use no network; with --config, and without root, this checks a file anywhere: its syntax, "
        "its names, and VIPs that are claimed twice"
    )
    check.add_argument("--offline", action="store_true", help=text)

    demo = command("demo", "show it at work, with an embedded DNS server and local servers")
    demo.add_argument("--no-color", action="store_true", help="print plain text")

    topic = command("help", "explain a command, or the values that options take")
    topic.usage = f"{PROGRAM} help [COMMAND | values]"
    topic.add_argument("topic", nargs="?", default="", metavar="COMMAND", help="a command, or values")
    return parser


def make_values() -> CommandParser:
    """Return a parser whose help explains the values of options."""
    parser = CommandParser(prog=PROGRAM, usage=argparse.SUPPRESS, add_help=False)
    group = parser.add_argument_group("values of options, and of keys in a configuration file")
    for name, text in VALUES.items():
        group.add_argument(name, metavar=name, help=text)
    return parser


def _complete_status(parser: argparse.ArgumentParser) -> None:
    _add(parser, ["instance"])
    parser.add_argument("--json", action="store_true", help=_DOCUMENT)
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of that document; needs no root")
    text = "only this service, by name, or by a pattern such as 'web-*'; repeatable"
    parser.add_argument("--service", metavar="NAME", action="append", default=[], dest="only_service", help=text)
    text = "only problems; exits 1 if there are any"
    parser.add_argument("--problems", action="store_true", help=text)
    parser.add_argument("--sources", action="store_true", help="list all sources, not only those with a problem")
    text = "refresh it, with rates: on a terminal arrow and page keys scroll, / filters, q quits; --json prints lines "
    text += "with the time"
    parser.add_argument("--watch", action="store_true", help=text)
    interval, text = _typed(text_forms.parse_milliseconds), "time between refreshes of --watch; default 2s"
    parser.add_argument("--interval", metavar="TIME", type=interval, default=2000, help=text)


def _complete_load(parser: argparse.ArgumentParser) -> None:
    _add(parser, ["instance"])
    target = parser.add_mutually_exclusive_group()
    _add_option(target, "cgroup", OPTIONS["cgroup"])
    choices = tuple(loader for loader in OPTIONS["loader"].choices if loader != Loader.NONE)
    _add_option(parser, "loader", replace(OPTIONS["loader"], choices=choices, help=LOADERS))
    text = "balance connects of this systemd unit only, which may not have been started yet"
    target.add_argument("--unit", metavar="NAME", type=_typed(parse_text), help=text)
    text = (
        "whether to follow how TCP connects end, which ejection, active connections and --connect-timeout need: on, "
        "the default; or off, if no service uses any of these, so that every TCP connect in the cgroup costs less; a "
        "sidecar that loads the data plane itself decides this by its services"
    )
    parser.add_argument("--outcomes", choices=("on", "off"), default="on", help=text)
    _add(parser, ["room-servers", "room-sockets"])
    text = "let members of GROUP write the maps, so that `run --loader none` works without root"
    parser.add_argument("--group", metavar="GROUP", type=_typed(parse_group), help=text)


def _complete_trace(parser: argparse.ArgumentParser) -> None:
    _add(parser, ["instance"])
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    text = "end after N connects; 0, the default, for no limit"
    parser.add_argument("--limit", metavar="N", type=_typed(text_forms.parse_count), default=0, help=text)
    text = "Each can be given several times: a connect must match one value of each kind."
    only = parser.add_argument_group("filters", text)
    for name, text in (
        ("service", "only connects to this service"),
        ("command", "only connects of programs with this name; the kernel cuts names at 15 bytes"),
    ):
        only.add_argument(f"--{name}", metavar="NAME", action="append", default=[], dest=f"only_{name}", help=text)
    text = f"only connects with this outcome: {', '.join(OUTCOMES)}; datagrams have `sent` only"
    only.add_argument("--outcome", metavar="NAME", choices=OUTCOMES, action="append", default=[], help=text)


def _add_all(parser: argparse.ArgumentParser, listed: Collection[str]) -> None:
    """Add all options of `OPTIONS`, so that it takes each command line of `run`; its help lists some."""
    _add(parser, OPTIONS, listed)
    parser.epilog = f"{parser.epilog} {_TAKES_ALL}"


def _add(parser: argparse.ArgumentParser, names: Iterable[str], listed: Collection[str] = OPTIONS) -> None:
    """Add options of `OPTIONS` under the headings of their groups; the help lists some."""
    headings: dict[Group, argparse._ActionsContainer] = {Group(): parser}
    for name in names:
        group = OPTIONS[name].group
        if group not in headings:
            headings[group] = parser.add_argument_group(group.title, group.description)
        option = OPTIONS[name]
        _add_option(headings[group], name, option if name in listed else replace(option, help=argparse.SUPPRESS))


def _add_option(container: argparse._ActionsContainer, name: str, option: Option) -> None:
    """Add an option that leaves no trace where it is not given, because its default is in `Options`."""
    taken: dict[str, Any] = {"action": "store_true"}
    if option.choices:
        taken = {"choices": option.choices}
    elif not option.is_switch:
        taken = {"metavar": option.metavar, "type": _typed(option.parse)}
    if option.repeatable:
        taken["action"] = "append"
    if option.bare is not None:
        taken |= {"nargs": "?", "const": option.bare}
    container.add_argument(f"--{name}", default=argparse.SUPPRESS, help=option.help, **taken)


def _typed(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Keep the message of a ValueError, which argparse would replace by its own."""

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
