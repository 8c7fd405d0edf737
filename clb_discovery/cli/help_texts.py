"""Texts of the help and of the manual page: values that options take, examples, and exit codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

VALUES: Final[Mapping[str, str]] = {
    "VIP": "the address of a virtual server: 10.64.0.1:6379, or 10.64.0.1 for every port; IPv6 in brackets: "
    "[fd00:64::1]:6379. It is for TCP; /udp at its end means UDP. For an SRV name such as _dns._udp.example it is for "
    "UDP; /tcp means TCP.",
    "NAME[=VIP,...]": "a name in discovery, and the VIPs that lead to its servers: redis=10.64.0.1:6379. If a name is "
    "given twice, its VIPs add up. A name without a VIP gets an automatic one of each family from --vip-range, for "
    "every port, the same on every host.",
    "NAME:PORT[=VIP,...]": "the same with the servers' port: db:80=10.64.0.3.",
    "TIME": "30s, 500ms, 2m or 1h; a number without a unit is in seconds.",
    "SHARE": "a number from 0 to 1; 0.5 is a half.",
    "N": "a whole number from 0 to 1000000.",
    "CHECK": "tcp, a connect; http://NAME[:PORT]/PATH or https://..., a GET with NAME as its Host that each server has "
    "to answer with 2xx or 3xx; or off.",
    "CIDR": "a network: 10.0.0.0/8 or fd00::/8.",
    "ZONE": "the name of a zone, 1 to 64 bytes of printable text: eu-1a.",
    "CIDR=ZONE": "a network and its zone: 10.1.0.0/16=eu-1a.",
    "ADDR:PORT": "an address of this host: 127.0.0.1:17100 or [::1]:17100.",
    "IP[:PORT]": "a DNS server: 10.0.0.53, [fd00::53]:5353, tcp://10.0.0.53 to query it by TCP only, or "
    "tls://10.0.0.53#dns.example for DNS over TLS. Its certificate must have the name after #, or the address.",
    "URL": "the address of a Consul agent: http://127.0.0.1:8500, https://consul.example:8501, [::1]:8500 or "
    "unix:///run/consul.sock.",
}
"""Values by the names that the help of options has for them, unless a name says enough, such as FILE."""

EXAMPLES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "": (
        ("balance Redis, which Consul knows, under a VIP", "clb-discovery --consul --service redis=10.64.0.1:6379"),
        ("the same from DNS SRV", "clb-discovery --srv _redis._tcp.example.com=10.64.0.1:6379"),
        ("look at it", "clb-discovery status"),
    ),
    "run": (
        ("a service in Consul, under a VIP", "clb-discovery run --consul --service redis=10.64.0.1:6379"),
        ("the addresses of a name in DNS, once", "clb-discovery run --once --dns db.example.com:5432=10.64.0.3:5432"),
        (
            "services of a file, with a page of statistics",
            "clb-discovery run --config /etc/clb-discovery.toml --metrics 127.0.0.1:17100",
        ),
    ),
    "status": (
        ("problems only", "clb-discovery status --problems"),
        ("some services, refreshed every second", "clb-discovery status --watch --interval 1s --service 'web-*'"),
        ("the document for scripts", "clb-discovery status --json --instance shop"),
    ),
    "instances": (
        ("all instances of this host", "clb-discovery instances"),
        ("the document for scripts", "clb-discovery instances --json"),
    ),
    "plan": (
        ("before a change of the file is reloaded", "clb-discovery plan --config /etc/clb-discovery.toml"),
        ("before a service is added", "clb-discovery plan --consul --service redis=10.64.0.1:6379 --json"),
    ),
    "load": (
        ("all connects of this host", "clb-discovery load"),
        ("connects of one systemd unit", "clb-discovery load --instance shop --unit shop.service"),
        ("connects of all systemd services", "clb-discovery load --cgroup /sys/fs/cgroup/system.slice"),
    ),
    "unload": (
        ("the default instance", "clb-discovery unload"),
        ("another instance", "clb-discovery unload --instance shop"),
    ),
    "trace": (
        ("connects that do not succeed", "clb-discovery trace --outcome failed --outcome refused"),
        ("ten connects of one service, for scripts", "clb-discovery trace --service redis --limit 10 --json"),
    ),
    "check": (
        ("this host", "clb-discovery check"),
        ("this host, and the services of a file", "clb-discovery check --config /etc/clb-discovery.toml"),
        ("this host, and a service in Consul", "clb-discovery check --consul --service redis=10.64.0.1:6379"),
    ),
    "demo": (
        ("on a terminal", "clb-discovery demo"),
        ("in a log", "clb-discovery demo --no-color"),
    ),
    "help": (
        ("the options of a command", "clb-discovery help trace"),
        ("the values that options take", "clb-discovery help values"),
    ),
}
"""Examples by command, each with a comment; those of the program have an empty name."""

EXIT_CODES: Final[Mapping[int, str]] = {
    0: "done",
    1: "failed while running; status --problems: any found",
    2: "wrong usage or configuration; plan: there are changes",
    3: "kernel feature or privilege missing",
    4: "another process holds the instance",
}


def examples(command: str) -> str:
    """Return the examples of a command as lines that can be copied; empty if it has none."""
    lines = (f"  # {comment}\n  {line}" for comment, line in EXAMPLES.get(command, ()))
    return "\n".join(("examples:", *lines)) if command in EXAMPLES else ""
