"""The command line: what operators type, turned into settings; errors turned into one line and an exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from clb_discovery import __version__
from clb_discovery.cli import commands, status
from clb_discovery.config import values
from clb_discovery.datapath.handover import parse_group
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.documents.trace import OUTCOMES
from clb_discovery.errors import UsageError
from clb_discovery.log import FORMATS, LEVELS
from clb_discovery.model import text_forms
from clb_discovery.model.address import parse_network
from clb_discovery.model.servers import Algorithm, PassiveHealth
from clb_discovery.model.service import MAX_SERVICES, RemovalPolicy
from clb_discovery.publication.automatic_vips import DEFAULT_RANGES, parse_vip_range

PROGRAM: Final = "clb-discovery"
_T = TypeVar("_T")
_DESCRIPTION: Final = """\
Balance connect(2) over the real servers that Consul or DNS SRV names, in the kernel, without a proxy.

Without a command it runs in the foreground, and keeps following discovery until it gets SIGTERM."""
_EPILOG: Final = """\
A VIP is 10.64.0.1:6379, 10.64.0.1 (every port) or [fd00:64::1]:6379, with /udp for UDP, or /tcp where an SRV
name such as _dns._udp.example says UDP. A service without one gets one of each family from --vip-range by its
name, for every port, the same on every host.
Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration, 3 kernel or privilege
missing, 4 instance is held."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands, which raises UsageError."""
    parser = _Parser(
        prog=PROGRAM, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(command=run)
        return sub

    run = command("run", commands.run, "follow discovery and keep the kernel's pools up to date (default)")
    _service_options(run)
    _datapath_options(run)
    _removal_options(run)
    _log_options(run)
    _names_options(run)
    run.add_argument(
        "--metrics",
        metavar="ADDR:PORT",
        type=_typed(values.parse_listener),
        help="serve a page of statistics, /status.json, /metrics for Prometheus and /healthz there; "
        "none of it asks for a password",
    )
    run.add_argument(
        "--state-dir",
        metavar="PATH",
        help="keep the last known sets there, to serve them after a reboot while discovery is down; "
        "default: STATE_DIRECTORY, which systemd sets, else none",
    )
    run.add_argument("--once", action="store_true", help="sync once, leave the data plane in place, and exit")

    reading = command("status", status.status, "show what the kernel does now; works with the sidecar dead")
    _instance_option(reading)
    reading.add_argument("--json", action="store_true", help="print the document that scripts may rely on")
    reading.add_argument(
        "--watch",
        action="store_true",
        help="show it again and again, with rates, until interrupted; with --json a line each time, with the time",
    )
    reading.add_argument(
        "--interval",
        metavar="TIME",
        type=_typed(values.parse_milliseconds),
        default=2000,
        help="for --watch; default 2s",
    )

    plan = command(
        "plan", commands.plan, "show what run would change, without changing it; exits 2 if there are changes"
    )
    _service_options(plan)
    _instance_option(plan)
    _names_options(plan)
    plan.add_argument("--json", action="store_true", help="print the document that scripts may rely on")

    load = command("load", commands.load, "load and attach the data plane only")
    cgroup = _datapath_options(load, Loader.NONE)
    cgroup.add_argument(
        "--unit",
        metavar="NAME",
        help="balance connects of this unit of systemd, which need not have been started: its cgroup is made for it",
    )
    load.add_argument(
        "--group",
        metavar="GROUP",
        type=_typed(parse_group),
        help="let this group write the maps and nothing else, for run --loader none as another user than root",
    )

    unload = command("unload", commands.unload, "detach and remove the data plane of an instance")
    _instance_option(unload)
    unload.add_argument(
        "--other-layouts",
        action="store_true",
        help="only what versions with another layout of the maps have left attached; for after an upgrade",
    )

    trace = command("trace", commands.trace, "show each connect live: whose, where it is sent, what becomes of it")
    _instance_option(trace)
    trace.add_argument("--json", action="store_true", help="print one JSON object per line")
    only = trace.add_argument_group("filters", "Repeatable: any of the same kind, and all kinds together.")
    only.add_argument("--service", metavar="NAME", action="append", default=[], help="connects to this service")
    only.add_argument(
        "--command",
        metavar="NAME",
        action="append",
        default=[],
        dest="only_command",
        help="connects of programs of this name, which the kernel cuts at 15 bytes",
    )
    only.add_argument(
        "--outcome",
        choices=OUTCOMES,
        action="append",
        default=[],
        help="connects that ended so; sent is for datagrams, which have no other outcome",
    )

    command("close", commands.close, "close sockets of removed real servers for a sidecar that may not; for its unit")

    check = command(
        "check",
        commands.check,
        "report what works on this host, what run would use of each source, and how to fix the rest",
    )
    _service_options(check)
    _datapath_options(check)

    demo = command("demo", commands.demo, "show it at work on an embedded DNS server and local real servers")
    demo.add_argument("--no-color", action="store_true", help="print plain text")
    return parser


def _service_options(parser: argparse.ArgumentParser) -> None:
    """Add what `config.services` and `config.sources` read."""
    _source_options(parser)
    _vip_options(parser)
    _consul_options(parser)
    _policy_options(parser)
    _scheduling_options(parser)


def _source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("discovery")
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML: these options by their names, one value or an array where they are repeatable, and services as "
        "[[service]]; the command line wins",
    )
    group.add_argument(
        "--consul",
        metavar="URL",
        nargs="?",
        const="",
        help="follow services in Consul, without --service all that opt in by clb-vip in their meta or the tag clb; "
        "default URL: CONSUL_HTTP_ADDR, else http://127.0.0.1:8500",
    )
    group.add_argument("--catalog", action="store_true", help="follow those that opt in beside --service, too")
    group.add_argument(
        "--max-services",
        metavar="N",
        type=_typed(values.parse_count),
        default=MAX_SERVICES,
        help="follow at most N of the services that opt in: those that are served already, then by name; default "
        f"{MAX_SERVICES:,}",
    )
    group.add_argument(
        "--service",
        metavar="NAME[=VIP,...]",
        action="append",
        default=[],
        help="a Consul service and the VIPs that reach it, automatic ones by default; repeatable, also for one "
        "NAME, whose VIPs add up",
    )
    group.add_argument(
        "--srv",
        metavar="NAME[=VIP,...]",
        action="append",
        default=[],
        help="an SRV record such as _redis._tcp.example and the VIPs that reach its targets; repeatable, as above",
    )
    group.add_argument(
        "--resolver",
        metavar="IP[:PORT]",
        action="append",
        default=[],
        help="DNS server to ask, or tcp://IP[:PORT], or tls://IP[:PORT][#NAME], whose certificate has to be good for "
        "NAME or the IP; repeatable; default: those of /etc/resolv.conf",
    )
    group.add_argument("--min-ttl", metavar="TIME", type=_typed(values.parse_duration), default=1.0, help="default 1s")
    group.add_argument(
        "--max-ttl", metavar="TIME", type=_typed(values.parse_duration), default=60.0, help="default 60s"
    )
    group.add_argument(
        "--linger",
        metavar="TIME",
        type=_typed(values.parse_duration),
        help="keep SRV records for this long after they were last seen; 0 for never; default: only where the name "
        "server returns varying subsets, for 1 to 10 minutes",
    )


def _vip_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("virtual servers")
    group.add_argument(
        "--vip-range",
        metavar="CIDR",
        type=_typed(parse_vip_range),
        action="append",
        default=[],
        help="where automatic VIPs come from, and where those of Consul's catalog have to lie; repeatable; default "
        + " and ".join(map(str, DEFAULT_RANGES)),
    )


def _consul_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "Consul", "The variables of Consul's own command line count, too; an option wins over its variable."
    )
    for option, metavar, text in (
        (
            "--consul-token-file",
            "FILE",
            "ACL token (CONSUL_HTTP_TOKEN_FILE, or the token itself in CONSUL_HTTP_TOKEN)",
        ),
        ("--consul-ca-file", "FILE", "authorities for https, in PEM form (CONSUL_CACERT); default: the system's"),
        ("--consul-ca-path", "DIR", "directory of such files (CONSUL_CAPATH)"),
        ("--consul-client-cert", "FILE", "client certificate, in PEM form (CONSUL_CLIENT_CERT)"),
        ("--consul-client-key", "FILE", "its key, not encrypted (CONSUL_CLIENT_KEY)"),
        ("--consul-tls-server-name", "NAME", "name in Consul's certificate (CONSUL_TLS_SERVER_NAME)"),
        ("--datacenter", "NAME", "default: the agent's own"),
        ("--namespace", "NAME", "Consul Enterprise (CONSUL_NAMESPACE)"),
        ("--partition", "NAME", "Consul Enterprise (CONSUL_PARTITION)"),
        ("--near", "NODE", "let Consul sort by the distance from this node; _agent for the agent's"),
        ("--filter", "EXPRESSION", "only instances that fit, such as 'Service.Meta.version == \"2\"'"),
        ("--tagged-address", "NAME", "use the tagged address of this name, such as wan, where an instance has it"),
    ):
        group.add_argument(option, metavar=metavar, help=text)
    group.add_argument(
        "--consul-wait",
        metavar="TIME",
        type=_typed(values.parse_consul_wait),
        default=50.0,
        help="how long a query waits for news, 1s to 10m; keep it below the time after which a proxy between here and "
        "Consul cuts requests; default 50s",
    )
    group.add_argument(
        "--tag", metavar="TAG", action="append", default=[], help="only instances with this tag; repeatable: with all"
    )


def _policy_options(parser: argparse.ArgumentParser) -> None:
    default = RemovalPolicy()
    group = parser.add_argument_group("what discovery may do")
    group.add_argument(
        "--real-range",
        metavar="CIDR",
        type=_typed(parse_network),
        action="append",
        default=[],
        help="accept real servers from these networks and no others; loopback only where one names it; repeatable",
    )
    group.add_argument(
        "--max-removal",
        metavar="SHARE",
        type=_typed(values.parse_share),
        default=default.max_removal,
        help="keep absent servers while they are more than this share of a pool, or all of it; default 0.5",
    )
    group.add_argument(
        "--hold",
        metavar="TIME",
        type=_typed(values.parse_duration),
        default=default.hold,
        help="how long they stay before an answer may confirm that they are gone; default 30s",
    )


def _names_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hosts-file",
        metavar="PATH",
        type=Path,
        help="publish NAME.clb for every service there, in a block of its own; /etc/hosts tells every program",
    )


def _removal_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-remove",
        choices=("drain", "reset"),
        default="drain",
        help="TCP connections to a removed real server: drain (default) leaves them, reset closes them; "
        "UDP sockets are always closed",
    )


def _scheduling_options(parser: argparse.ArgumentParser) -> None:
    default = PassiveHealth()
    group = parser.add_argument_group("scheduling and passive health")
    group.add_argument(
        "--algorithm",
        metavar="NAME",
        type=_typed(text_forms.parse_algorithm),
        default=Algorithm.RANDOM,
        help="random (default), round-robin or least-conn; all follow weights",
    )
    group.add_argument(
        "--eject-after",
        metavar="N",
        type=_typed(values.parse_count),
        default=default.eject_after,
        help="failed connects in a row that eject a real server; 0 for never; default 3",
    )
    group.add_argument(
        "--eject-time",
        metavar="TIME",
        type=_typed(values.parse_milliseconds),
        default=default.eject_first_ms,
        help="how long the first time; doubles with each repetition; default 5s",
    )
    group.add_argument(
        "--eject-max",
        metavar="TIME",
        type=_typed(values.parse_milliseconds),
        default=default.eject_most_ms,
        help="how long at most; default 60s",
    )
    group.add_argument(
        "--no-active",
        action="store_true",
        help="do not count active connections, for a little less work per connect; least-conn counts them anyway",
    )


def _datapath_options(parser: argparse.ArgumentParser, *without: Loader) -> argparse._ActionsContainer:
    """Add the options that say what is loaded and how.

    :param without: the loaders that this command does not take.
    :returns: where options go that exclude --cgroup.
    """
    _instance_option(parser)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--cgroup", metavar="PATH", help="balance connects in this cgroup; default: the cgroup v2 root")
    parser.add_argument(
        "--loader",
        choices=[str(loader) for loader in Loader if loader not in without],
        default=str(Loader.AUTO),
        help="object: the shipped programs, by libbpf; bcc: compiled here by BCC; default auto: object, else bcc"
        + ("" if Loader.NONE in without else "; none: they are there by clb-discovery load, and only maps are written"),
    )
    return target


def _instance_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instance", metavar="NAME", default="default", help="which data plane; default: default")


def _log_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logs")
    group.add_argument("--log-format", choices=FORMATS, default="auto", help="default auto: console on a terminal")
    group.add_argument("--log-level", choices=LEVELS, default="info", help="default info")


def _typed(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Let a parser's message through to argparse, which would otherwise replace it."""

    def convert(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
