"""The options: one frozen value, made once of the command line, the configuration file and the environment.

Each option is defined here, as a field of `Options`, and nowhere else: the parser makes an argument of each, `--help`
shows them in this order, and a configuration file takes their names as keys.
"""
# ruff: noqa: RUF009 - the methods of a `Group` return fields

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from clb_discovery.config import values
from clb_discovery.config.schema import Group, Option, definitions
from clb_discovery.config.values import Entry
from clb_discovery.datapath.instance import state_directory
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.log import FORMATS, LEVELS
from clb_discovery.model import text_forms
from clb_discovery.model.address import Network, parse_network
from clb_discovery.model.servers import Algorithm, PassiveHealth
from clb_discovery.model.service import MAX_SERVICES, RemovalPolicy
from clb_discovery.publication.automatic_vips import DEFAULT_RANGES, parse_vip_range

_DISCOVERY: Final = Group("discovery")
_VIRTUAL_SERVERS: Final = Group("virtual servers")
_CONSUL: Final = Group(
    "Consul", "The variables of Consul's own command line count, too; an option wins over its variable."
)
_LIMITS: Final = Group("what discovery may do")
_SCHEDULING: Final = Group("scheduling and passive health")
_LOGS: Final = Group("logs")
_GENERAL: Final = Group()
SERVICE_GROUPS: Final = frozenset({_DISCOVERY, _VIRTUAL_SERVERS, _CONSUL, _LIMITS, _SCHEDULING})
"""The groups of options that `config.services` and `config.sources` read."""
LOADERS: Final = "object: the shipped programs, by libbpf; bcc: compiled here by BCC; default auto: object, else bcc"

_POLICY: Final = RemovalPolicy()
_HEALTH: Final = PassiveHealth()


@dataclass(frozen=True, slots=True)
class Options:
    """All options of `run`, with their defaults; `plan`, `check` and `load` read some of them. Times are in seconds."""

    config: Path | None = _DISCOVERY.value(
        None,
        "FILE",
        Path,
        "TOML: these options by their names, one value or an array where they are repeatable, and services as "
        "[[service]]; the command line wins",
        in_file=False,
    )
    consul: str | None = _DISCOVERY.value(
        None,
        "URL",
        str,
        "follow services in Consul, without --service all that opt in by clb-vip in their meta or the tag clb; "
        "default URL: CONSUL_HTTP_ADDR, else http://127.0.0.1:8500",
        bare="",
    )
    """None if Consul is not used; empty for the default URL."""
    catalog: bool = _DISCOVERY.switch("follow those that opt in beside --service, too")
    max_services: int = _DISCOVERY.value(
        MAX_SERVICES,
        "N",
        values.parse_count,
        "follow at most N of the services that opt in: those that are served already, then by name; default "
        f"{MAX_SERVICES:,}",
    )
    service: tuple[str, ...] = _DISCOVERY.repeatable(
        "NAME[=VIP,...]",
        str,
        "a Consul service and the VIPs that reach it, automatic ones by default; repeatable, also for one "
        "NAME, whose VIPs add up",
        in_file=False,
    )
    """In a file, too, where the same key also holds tables: see `config.file`."""
    srv: tuple[str, ...] = _DISCOVERY.repeatable(
        "NAME[=VIP,...]",
        str,
        "an SRV record such as _redis._tcp.example and the VIPs that reach its targets; repeatable, as above",
    )
    resolver: tuple[str, ...] = _DISCOVERY.repeatable(
        "IP[:PORT]",
        str,
        "DNS server to ask, or tcp://IP[:PORT], or tls://IP[:PORT][#NAME], whose certificate has to be good for "
        "NAME or the IP; repeatable; default: those of /etc/resolv.conf",
    )
    min_ttl: float = _DISCOVERY.value(1.0, "TIME", values.parse_duration, "default 1s")
    max_ttl: float = _DISCOVERY.value(60.0, "TIME", values.parse_duration, "default 60s")
    linger: float | None = _DISCOVERY.value(
        None,
        "TIME",
        values.parse_duration,
        "keep SRV records for this long after they were last seen; 0 for never; default: only where the name "
        "server returns varying subsets, for 1 to 10 minutes",
    )

    vip_range: tuple[Network, ...] = _VIRTUAL_SERVERS.repeatable(
        "CIDR",
        parse_vip_range,
        "where automatic VIPs come from, and where those of Consul's catalog have to lie; repeatable; default "
        + " and ".join(map(str, DEFAULT_RANGES)),
        default=DEFAULT_RANGES,
    )

    consul_token_file: str | None = _CONSUL.value(
        None, "FILE", str, "ACL token (CONSUL_HTTP_TOKEN_FILE, or the token itself in CONSUL_HTTP_TOKEN)"
    )
    consul_ca_file: str | None = _CONSUL.value(
        None, "FILE", str, "authorities for https, in PEM form (CONSUL_CACERT); default: the system's"
    )
    consul_ca_path: str | None = _CONSUL.value(None, "DIR", str, "directory of such files (CONSUL_CAPATH)")
    consul_client_cert: str | None = _CONSUL.value(
        None, "FILE", str, "client certificate, in PEM form (CONSUL_CLIENT_CERT)"
    )
    consul_client_key: str | None = _CONSUL.value(None, "FILE", str, "its key, not encrypted (CONSUL_CLIENT_KEY)")
    consul_tls_server_name: str | None = _CONSUL.value(
        None, "NAME", str, "name in Consul's certificate (CONSUL_TLS_SERVER_NAME)"
    )
    datacenter: str | None = _CONSUL.value(None, "NAME", str, "default: the agent's own")
    namespace: str | None = _CONSUL.value(None, "NAME", str, "Consul Enterprise (CONSUL_NAMESPACE)")
    partition: str | None = _CONSUL.value(None, "NAME", str, "Consul Enterprise (CONSUL_PARTITION)")
    near: str | None = _CONSUL.value(
        None, "NODE", str, "let Consul sort by the distance from this node; _agent for the agent's"
    )
    filter: str | None = _CONSUL.value(
        None, "EXPRESSION", str, "only instances that fit, such as 'Service.Meta.version == \"2\"'"
    )
    tagged_address: str | None = _CONSUL.value(
        None, "NAME", str, "use the tagged address of this name, such as wan, where an instance has it"
    )
    consul_wait: float = _CONSUL.value(
        50.0,
        "TIME",
        values.parse_consul_wait,
        "how long a query waits for news, 1s to 10m; keep it below the time after which a proxy between here and "
        "Consul cuts requests; default 50s",
    )
    tag: tuple[str, ...] = _CONSUL.repeatable("TAG", str, "only instances with this tag; repeatable: with all")

    real_range: tuple[Network, ...] = _LIMITS.repeatable(
        "CIDR",
        parse_network,
        "accept real servers from these networks and no others; loopback only where one names it; repeatable",
    )
    max_removal: float = _LIMITS.value(
        _POLICY.max_removal,
        "SHARE",
        values.parse_share,
        "keep absent servers while they are more than this share of a pool, or all of it; default 0.5",
    )
    hold: float = _LIMITS.value(
        _POLICY.hold,
        "TIME",
        values.parse_duration,
        "how long they stay before an answer may confirm that they are gone; default 30s",
    )

    algorithm: Algorithm = _SCHEDULING.value(
        Algorithm.RANDOM,
        "NAME",
        text_forms.parse_algorithm,
        "random (default), round-robin or least-conn; all follow weights",
    )
    eject_after: int = _SCHEDULING.value(
        _HEALTH.eject_after,
        "N",
        values.parse_count,
        "failed connects in a row that eject a real server; 0 for never; default 3",
    )
    eject_time: int = _SCHEDULING.value(
        _HEALTH.eject_first_ms,
        "TIME",
        values.parse_milliseconds,
        "how long the first time; doubles with each repetition; default 5s",
    )
    """Milliseconds, as `eject_max`."""
    eject_max: int = _SCHEDULING.value(
        _HEALTH.eject_most_ms, "TIME", values.parse_milliseconds, "how long at most; default 60s"
    )
    no_active: bool = _SCHEDULING.switch(
        "do not count active connections, for a little less work per connect; least-conn counts them anyway"
    )

    instance: str = _GENERAL.value("default", "NAME", str, "which data plane; default: default")
    cgroup: str | None = _GENERAL.value(
        None, "PATH", str, "balance connects in this cgroup; default: the cgroup v2 root"
    )
    loader: Loader = _GENERAL.choice(
        Loader.AUTO,
        tuple(map(str, Loader)),
        f"{LOADERS}; none: they are there by clb-discovery load, and only maps are written",
    )
    on_remove: str = _GENERAL.choice(
        "drain",
        ("drain", "reset"),
        "TCP connections to a removed real server: drain (default) leaves them, reset closes them; "
        "UDP sockets are always closed",
    )

    log_format: str = _LOGS.choice("auto", FORMATS, "default auto: console on a terminal")
    log_level: str = _LOGS.choice("info", LEVELS, "default info")

    hosts_file: Path | None = _GENERAL.value(
        None,
        "PATH",
        Path,
        "publish NAME.clb for every service there, in a block of its own; /etc/hosts tells every program",
    )
    metrics: tuple[str, int] | None = _GENERAL.value(
        None,
        "ADDR:PORT",
        values.parse_listener,
        "serve a page of statistics, /status.json, /metrics for Prometheus and /healthz there; "
        "none of it asks for a password",
    )
    state_dir: Path | None = _GENERAL.value(
        None,
        "PATH",
        lambda text: Path(text) if text else None,
        "keep the last known sets there, to serve them after a reboot while discovery is down; "
        "default: STATE_DIRECTORY, which systemd sets, else none",
    )
    once: bool = _GENERAL.switch("sync once, leave the data plane in place, and exit", in_file=False)

    entries: tuple[Entry, ...] = ()
    """The tables of the file."""
    consul_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The variables of Consul's own command line; one of them may be a token."""


OPTIONS: Final[Mapping[str, Option]] = definitions(Options)
"""All options, by their names as operators type them."""


def make_options(
    typed: Mapping[str, Any], from_file: Mapping[str, Any], entries: Sequence[Entry], environment: Mapping[str, str]
) -> Options:
    """Join the command line, the configuration file and the environment.

    An option that was typed replaces the file's. This holds for a repeatable one, too: their values do not add up.

    :param typed: values by the names of fields, with lists of repeatable ones; other names are left out.
    :param from_file: the same of the file, whose tables are the entries.
    """
    given = {name: value for name, value in {**from_file, **typed}.items() if name.replace("_", "-") in OPTIONS}
    found: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in given.items()}
    if "loader" in found:
        found["loader"] = Loader(found["loader"])
    found["state_dir"] = found.get("state_dir") or state_directory(environment)
    variables = {name: value for name, value in environment.items() if name.startswith("CONSUL_")}
    return Options(**found, entries=tuple(entries), consul_environment=variables)
