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

from clb_discovery.config import values, zones
from clb_discovery.config.checks import parse_check, parse_interval, parse_row
from clb_discovery.config.schema import Group, Option, definitions
from clb_discovery.config.values import Entry
from clb_discovery.datapath.instance import state_directory
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.loading.sizes import SERVERS, SOCKETS
from clb_discovery.errors import UsageError
from clb_discovery.model import text_forms
from clb_discovery.model.address import Network, parse_network
from clb_discovery.model.check import Check, Request
from clb_discovery.model.servers import Algorithm, PassiveHealth
from clb_discovery.model.service import MAX_SERVICES, RemovalPolicy
from clb_discovery.model.zones import ZoneRule
from clb_discovery.publication.automatic_vips import DEFAULT_RANGES, parse_vip_range
from clb_discovery.stderr import FORMATS, LEVELS

_DISCOVERY: Final = Group("discovery")
_VIRTUAL_SERVERS: Final = Group("virtual servers")
_CONSUL: Final = Group(
    "Consul",
    "The environment variables of the consul command are used, too. An option takes precedence over its variable, "
    "which is in parentheses.",
)
_LIMITS: Final = Group("limits on discovery")
_ZONES: Final = Group("zones")
_SCHEDULING: Final = Group("scheduling and passive health")
_CHECKS: Final = Group("active checks")
_LOGS: Final = Group("logs")
_GENERAL: Final = Group()
SERVICE_GROUPS: Final = frozenset({_DISCOVERY, _VIRTUAL_SERVERS, _CONSUL, _LIMITS, _ZONES, _SCHEDULING, _CHECKS})
"""The groups of options that `config.services` and `config.sources` read."""
LOADERS: Final = (
    "load the kernel programs with libbpf (object), or compile them on this host (bcc); auto, the default, tries "
    "object, then bcc"
)

_POLICY: Final = RemovalPolicy()
_HEALTH: Final = PassiveHealth()
_CHECK: Final = Check()
_ZONE_RULE: Final = ZoneRule()


@dataclass(frozen=True, slots=True)
class Options:
    """All options of `run`, with their defaults; `plan`, `check` and `load` read some of them. Times are in seconds."""

    config: Path | None = _DISCOVERY.value(
        None,
        "FILE",
        Path,
        "read options by their names, and services as [[service]] tables, from TOML; the command line takes precedence",
        in_file=False,
    )
    consul: str | None = _DISCOVERY.value(
        None,
        "URL",
        str,
        "follow services in Consul: those of --service, or, without any, all that opt in by clb-vip in their meta or "
        "by the tag clb; default URL: CONSUL_HTTP_ADDR, else http://127.0.0.1:8500",
        bare="",
    )
    """None if Consul is not used; empty for the default URL."""
    catalog: bool = _DISCOVERY.switch("also follow services that opt in when --service is given")
    max_services: int = _DISCOVERY.value(
        MAX_SERVICES,
        "N",
        text_forms.parse_count,
        "follow at most N of the services that opt in: first those that are served already, then by name; default "
        f"{MAX_SERVICES}",
    )
    service: tuple[str, ...] = _DISCOVERY.repeatable(
        "NAME[=VIP,...]",
        str,
        "balance connects to these VIPs over the instances of a Consul service; repeatable",
        in_file=False,
    )
    """In a file, too, where the same key also holds tables: see `config.file`."""
    srv: tuple[str, ...] = _DISCOVERY.repeatable(
        "NAME[=VIP,...]",
        str,
        "balance connects to these VIPs over the targets of an SRV record such as _redis._tcp.example; repeatable",
    )
    dns: tuple[str, ...] = _DISCOVERY.repeatable(
        "NAME:PORT[=VIP,...]",
        str,
        "the same over the addresses of a name, each with this port, such as db.example:5432=10.64.0.3; repeatable",
    )
    resolver: tuple[str, ...] = _DISCOVERY.repeatable(
        "IP[:PORT]",
        str,
        "query this DNS server, by UDP, TCP or TLS; repeatable; default: the servers in /etc/resolv.conf",
    )
    min_ttl: float = _DISCOVERY.value(
        1.0,
        "TIME",
        text_forms.parse_duration,
        "query a DNS name again after its TTL, but not earlier than this, however short the TTL is; default 1s",
    )
    max_ttl: float = _DISCOVERY.value(
        60.0,
        "TIME",
        text_forms.parse_duration,
        "query a DNS name again after this time at the latest, however long its TTL is; default 60s",
    )
    linger: float | None = _DISCOVERY.value(
        None,
        "TIME",
        text_forms.parse_duration,
        "keep records of DNS this long after an answer last had them; default: 1 to 10 minutes if answers vary, else 0",
    )

    vip_range: tuple[Network, ...] = _VIRTUAL_SERVERS.repeatable(
        "CIDR",
        parse_vip_range,
        "take automatic VIPs from this network, and accept VIPs from Consul's catalog only inside it; repeatable; "
        "default " + " and ".join(map(str, DEFAULT_RANGES)),
        default=DEFAULT_RANGES,
    )

    consul_token_file: str | None = _CONSUL.value(
        None,
        "FILE",
        values.parse_text,
        "read the ACL token from this file (CONSUL_HTTP_TOKEN_FILE; CONSUL_HTTP_TOKEN has the token itself)",
    )
    consul_ca_file: str | None = _CONSUL.value(
        None,
        "FILE",
        values.parse_text,
        "trust the certificate authorities in this file for https, in PEM form (CONSUL_CACERT); default: the system's",
    )
    consul_ca_path: str | None = _CONSUL.value(
        None,
        "DIR",
        values.parse_text,
        "trust the certificate authorities in the files of this directory (CONSUL_CAPATH)",
    )
    consul_client_cert: str | None = _CONSUL.value(
        None, "FILE", values.parse_text, "present this certificate (PEM) (CONSUL_CLIENT_CERT)"
    )
    consul_client_key: str | None = _CONSUL.value(
        None, "FILE", values.parse_text, "its unencrypted key (PEM) (CONSUL_CLIENT_KEY)"
    )
    consul_tls_server_name: str | None = _CONSUL.value(
        None, "NAME", values.parse_text, "expect this name in Consul's certificate (CONSUL_TLS_SERVER_NAME)"
    )
    datacenter: str | None = _CONSUL.value(
        None, "NAME", values.parse_text, "use this datacenter; default: that of the agent"
    )
    namespace: str | None = _CONSUL.value(
        None, "NAME", values.parse_text, "use this Enterprise namespace (CONSUL_NAMESPACE)"
    )
    partition: str | None = _CONSUL.value(
        None, "NAME", values.parse_text, "use this Enterprise partition (CONSUL_PARTITION)"
    )
    near: str | None = _CONSUL.value(
        None,
        "NODE",
        values.parse_text,
        "let Consul sort the instances in its answers by round-trip time from this node, or with _agent from the "
        "queried agent; shares of connects do not depend on the order",
    )
    filter: str | None = _CONSUL.value(
        None, "EXPRESSION", values.parse_text, "use only instances that match, such as 'Service.Meta.version == \"2\"'"
    )
    tagged_address: str | None = _CONSUL.value(
        None, "NAME", values.parse_text, "prefer tagged addresses so named, such as wan"
    )
    consul_wait: float = _CONSUL.value(
        50.0,
        "TIME",
        values.parse_consul_wait,
        "wait this long for a change in each query, 1s to 10m; below the timeout of a proxy on the way; default 50s",
    )
    tag: tuple[str, ...] = _CONSUL.repeatable(
        "TAG", values.parse_text, "use only instances with this tag; repeatable: with all tags"
    )

    real_range: tuple[Network, ...] = _LIMITS.repeatable(
        "CIDR",
        parse_network,
        "accept only real servers inside this network; repeatable; default: all networks, except loopback addresses",
    )
    max_removal: float = _LIMITS.value(
        _POLICY.max_removal,
        "SHARE",
        values.parse_share,
        f"hold a removal of more than this share of a pool, or of all of it; default {_POLICY.max_removal}",
    )
    hold: float = _LIMITS.value(
        _POLICY.hold,
        "TIME",
        text_forms.parse_duration,
        "keep the servers of a held removal this long; the next answer without them removes them; default 30s",
    )

    zone: str | None = _ZONES.value(
        None,
        "ZONE",
        zones.parse_zone,
        "prefer real servers of this zone, in which this host is; auto: the zone in the node meta of its Consul agent",
    )
    zone_key: str = _ZONES.value(
        "zone",
        "NAME",
        zones.parse_zone_key,
        "read the zone of an instance in Consul from this key of its meta, or else of its node's; default zone",
    )
    zone_map: tuple[tuple[Network, str], ...] = _ZONES.repeatable(
        "CIDR=ZONE",
        zones.parse_zone_of_network,
        "take this zone for real servers in this network that have none in Consul; the longest prefix counts; "
        "repeatable",
        is_table=True,
    )
    zone_min: int = _ZONES.value(
        _ZONE_RULE.least,
        "N",
        zones.parse_least,
        "use all zones alike while fewer than N real servers of the own zone are usable, 1 to 1000; default 2",
    )
    zone_spill: bool = _ZONES.value(
        _ZONE_RULE.spills,
        "capacity|none",
        zones.parse_spill,
        "capacity (default): if the own zone lacks capacity, leave to other zones what its usable servers cannot take "
        "with 1.4 times their part; none: leave nothing",
    )

    algorithm: Algorithm = _SCHEDULING.value(
        Algorithm.RANDOM,
        "NAME",
        text_forms.parse_algorithm,
        "schedule connects by random (default), round-robin or least-conn; each follows weights",
    )
    eject_after: int = _SCHEDULING.value(
        _HEALTH.eject_after,
        "N",
        text_forms.parse_count,
        "eject a real server after N failed connects in a row; 0 never ejects; default 3",
    )
    eject_time: int = _SCHEDULING.value(
        _HEALTH.eject_first_ms,
        "TIME",
        text_forms.parse_milliseconds,
        "let the first ejection last this long; the time doubles with each one that follows soon; default 5s",
    )
    """Milliseconds, as `eject_max`."""
    eject_max: int = _SCHEDULING.value(
        _HEALTH.eject_most_ms,
        "TIME",
        text_forms.parse_milliseconds,
        "let an ejection last at most this long; default 60s",
    )
    silent_after: int = _SCHEDULING.value(
        _HEALTH.silent_after_ms,
        "TIME",
        text_forms.parse_silent_after,
        "count a connect that the application gives up as failed if it was unanswered this long: 1ms to 24h, or off; "
        "it has to be above the round trip to the servers, else clients that try several servers at once eject distant "
        "ones; default 200ms",
    )
    """Milliseconds; 0 for never."""
    no_suspicion: bool = _SCHEDULING.switch(
        "let only --eject-after eject a server; without this option the first connect that fails, or waits for about a "
        "second, makes it suspect: it gets none for a second at most, while the sidecar probes it, and is ejected if "
        "the probe fails"
    )
    connect_timeout: int = _SCHEDULING.value(
        _HEALTH.connect_timeout_ms,
        "TIME",
        text_forms.parse_connect_timeout,
        "end a TCP connect that is unanswered this long with ETIMEDOUT: 200ms to 2m, or off; default 5s",
    )
    """Milliseconds; 0 for the kernel's own."""
    dead_after: int = _SCHEDULING.value(
        _HEALTH.dead_after_ms,
        "TIME",
        values.parse_dead_after,
        "end an open TCP connection with ETIMEDOUT if its server has not answered, or not read, for this long: 3s to "
        "10m, or off; it sets TCP_USER_TIMEOUT and keepalive, unless the application has set them; needs Linux 6.1; "
        "default off",
    )
    """Milliseconds; 0 for the kernel's own."""
    no_active: bool = _SCHEDULING.switch(
        "do not count the open connections to each server, which makes connects cheaper; `status` and metrics then "
        "show 0; services with least-conn count them anyway"
    )

    check: Request | None = _CHECKS.value(None, "CHECK", parse_check, "check each real server so; default: off")
    check_interval: float = _CHECKS.value(
        _CHECK.interval, "TIME", parse_interval, "check each server this often; default 2s"
    )
    check_timeout: float | None = _CHECKS.value(
        None, "TIME", parse_interval, "limit a check to this; default: at most 1s"
    )
    """None for the interval, at most 1 s."""
    rise: int = _CHECKS.value(_CHECK.rise, "N", parse_row, "use a failed server again after N passed checks; default 2")
    fall: int = _CHECKS.value(
        _CHECK.fall, "N", parse_row, "stop using a server after N failed checks in a row; default 3"
    )
    check_verify: bool = _CHECKS.boolean("verify certificates of https; default true", default=True)

    instance: str = _GENERAL.value(
        "default", "NAME", str, "use the data plane with this name, of letters, digits, _, - and @; default: default"
    )
    cgroup: str | None = _GENERAL.value(
        None, "PATH", str, "balance connects of the processes in this cgroup and below it; default: the cgroup v2 root"
    )
    loader: Loader = _GENERAL.choice(
        Loader.AUTO,
        tuple(map(str, Loader)),
        f"{LOADERS}; none takes what `clb-discovery load` has loaded",
    )
    room_servers: int = _GENERAL.value(
        SERVERS,
        "N",
        text_forms.parse_count,
        "make fast memory for N real servers of all virtual servers, each twice while its pool changes; connects to "
        f"pools beyond it cost more; default {SERVERS}",
    )
    room_sockets: int = _GENERAL.value(
        SOCKETS,
        "N",
        text_forms.parse_count,
        f"make fast memory for N connected sockets; connects beyond it cost more; default {SOCKETS}",
    )
    on_remove: str = _GENERAL.choice(
        "drain",
        ("drain", "reset"),
        "drain (default) keeps TCP connections to a removed real server, reset closes them; UDP sockets always",
    )

    log_format: str = _LOGS.choice(
        "auto", FORMATS, "format of log lines; auto, the default, is console on a terminal, else json"
    )
    log_level: str = _LOGS.choice(
        "info",
        LEVELS,
        "lowest level of lines that are logged: debug has also why something happens late or not at all, info each "
        "change of a pool, warning and error what may need an operator; default info",
    )

    hosts_file: Path | None = _GENERAL.value(
        None,
        "PATH",
        Path,
        "write the name of each service as NAME.clb into a block of this file; in /etc/hosts every program finds it",
    )
    metrics: tuple[str, int] | None = _GENERAL.value(
        None,
        "ADDR:PORT",
        values.parse_listener,
        "serve a page of statistics, /status.json, /metrics for Prometheus and /healthz at this address, without a "
        "password",
    )
    state_dir: Path | None = _GENERAL.value(
        None,
        "PATH",
        lambda text: Path(text) if text else None,
        "keep the last known good sets in this directory, for a start while discovery is down; default: "
        "systemd's STATE_DIRECTORY",
    )
    once: bool = _GENERAL.switch("publish once, and exit; --metrics has no effect", in_file=False)

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
    :raises UsageError: if two of them contradict each other.
    """
    given = {name: value for name, value in {**from_file, **typed}.items() if name.replace("_", "-") in OPTIONS}
    found: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in given.items()}
    if "loader" in found:
        found["loader"] = Loader(found["loader"])
        if found["loader"] is Loader.NONE and found.get("cgroup") is not None:
            raise UsageError(
                "--loader none ignores --cgroup, because another process loads; use: clb-discovery load --cgroup PATH"
            )
    found["state_dir"] = found.get("state_dir") or state_directory(environment)
    variables = {name: value for name, value in environment.items() if name.startswith("CONSUL_")}
    return Options(**found, entries=tuple(entries), consul_environment=variables)
