"""The parser of the command line: it turns words into values, and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, NoReturn

from clb_discovery import __version__
from clb_discovery.config import values
from clb_discovery.config.options import LOADERS, OPTIONS, SERVICE_GROUPS
from clb_discovery.config.schema import Group, Option
from clb_discovery.datapath.handover import parse_group
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.documents.trace import OUTCOMES
from clb_discovery.errors import UsageError

PROGRAM: Final = "clb-discovery"
_DESCRIPTION: Final = """\
Balance connect(2) over the real servers that Consul or DNS SRV names, in the kernel, without a proxy.

Without a command it runs in the foreground, and keeps following discovery until it gets SIGTERM."""
_EPILOG: Final = """\
A VIP is 10.64.0.1:6379, 10.64.0.1 (every port) or [fd00:64::1]:6379, with /udp for UDP, or /tcp where an SRV
name such as _dns._udp.example says UDP. A service without one gets one of each family from --vip-range by its
name, for every port, the same on every host.
Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration, 3 kernel or privilege
missing, 4 instance is held."""
_DOCUMENT: Final = "print the document that scripts may rely on"
_FOR_SERVICES: Final = tuple(name for name, option in OPTIONS.items() if option.group in SERVICE_GROUPS)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, which raises UsageError.

    Its namespaces hold `command`, the name of a module of this package; those of `config.options.OPTIONS` that were
    given; and all other options of the command.
    """
    parser = _Parser(
        prog=PROGRAM, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(command=name)
        return sub

    _add(command("run", "follow discovery and keep the kernel's pools up to date (default)"), OPTIONS)

    _complete_status(command("status", "show what the kernel does now; works with the sidecar dead"))

    instances = command("instances", "list the instances that are loaded on this host")
    instances.add_argument("--json", action="store_true", help=_DOCUMENT)

    plan = command("plan", "show what run would change, without changing it; exits 2 if there are changes")
    _add(plan, (*_FOR_SERVICES, "instance", "hosts-file"))
    plan.add_argument("--json", action="store_true", help=_DOCUMENT)

    _complete_load(command("load", "load and attach the data plane only"))

    unload = command("unload", "detach and remove the data plane of an instance")
    _add(unload, ["instance"])
    text = "only what versions with another layout of the maps have left attached; for after an upgrade"
    unload.add_argument("--other-layouts", action="store_true", help=text)

    _complete_trace(command("trace", "show each connect live: whose, where it is sent, what becomes of it"))

    command("close", "close sockets of removed real servers for a sidecar that may not; for its unit")

    text = "report what works on this host, what run would use of each source, and how to fix the rest"
    _add(command("check", text), (*_FOR_SERVICES, "instance", "cgroup", "loader"))

    demo = command("demo", "show it at work on an embedded DNS server and local real servers")
    demo.add_argument("--no-color", action="store_true", help="print plain text")
    return parser


def _complete_status(parser: argparse.ArgumentParser) -> None:
    _add(parser, ["instance"])
    parser.add_argument("--json", action="store_true", help=_DOCUMENT)
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of that document; needs no root")
    text = "only this service, by name, or by a pattern such as 'web-*'; repeatable"
    parser.add_argument("--service", metavar="NAME", action="append", default=[], dest="only_service", help=text)
    text = "only problems; the exit code is 1 if there are any, else 0"
    parser.add_argument("--problems", action="store_true", help=text)
    parser.add_argument("--sources", action="store_true", help="list all sources, not only those with a problem")
    text = "refresh it, with rates: on a terminal arrow and page keys scroll, / filters, q quits; with --json print a "
    text += "line each time, with the time"
    parser.add_argument("--watch", action="store_true", help=text)
    interval = _typed(values.parse_milliseconds)
    parser.add_argument("--interval", metavar="TIME", type=interval, default=2000, help="for --watch; default 2s")


def _complete_load(parser: argparse.ArgumentParser) -> None:
    _add(parser, ["instance"])
    target = parser.add_mutually_exclusive_group()
    _add_option(target, "cgroup", OPTIONS["cgroup"])
    choices = tuple(loader for loader in OPTIONS["loader"].choices if loader != Loader.NONE)
    _add_option(parser, "loader", replace(OPTIONS["loader"], choices=choices, help=LOADERS))
    text = "balance connects of this unit of systemd, which need not have been started: its cgroup is made for it"
    target.add_argument("--unit", metavar="NAME", help=text)
    text = "let this group write the maps and nothing else, for run --loader none as another user than root"
    parser.add_argument("--group", metavar="GROUP", type=_typed(parse_group), help=text)


def _complete_trace(parser: argparse.ArgumentParser) -> None:
    _add(parser, ["instance"])
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    only = parser.add_argument_group("filters", "Repeatable: any of the same kind, and all kinds together.")
    for name, text in (
        ("service", "connects to this service"),
        ("command", "connects of programs of this name, which the kernel cuts at 15 bytes"),
    ):
        only.add_argument(f"--{name}", metavar="NAME", action="append", default=[], dest=f"only_{name}", help=text)
    text = "connects that ended so; sent is for datagrams, which have no other outcome"
    only.add_argument("--outcome", choices=OUTCOMES, action="append", default=[], help=text)


def _add(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add options of `OPTIONS` under the headings of their groups."""
    headings: dict[Group, argparse._ActionsContainer] = {Group(): parser}
    for name in names:
        group = OPTIONS[name].group
        if group not in headings:
            headings[group] = parser.add_argument_group(group.title, group.description)
        _add_option(headings[group], name, OPTIONS[name])


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
