"""Parse resolv.conf as glibc does (resolv/res_init.c), and apply its search list to names. No I/O."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import dns.name
from dns.exception import DNSException

MAX_SERVERS: Final = 3
"""MAXNS: glibc ignores all others."""
_MOST_NDOTS: Final = 15
_MOST_SECONDS: Final = 30
_MOST_ATTEMPTS: Final = 5
_NUMBER: Final = re.compile(r"\s*([+-]?\d{1,9})", re.ASCII)
"""The text that atoi(3) parses; anything else is 0."""


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """The settings of the file."""

    nameservers: tuple[str, ...] = ()
    """IPv4 and IPv6 literals, at most `MAX_SERVERS`, in the order of the file."""
    search: tuple[dns.name.Name, ...] = ()
    """Absolute, in the order of the file; it ends before the first domain that is not a DNS name."""
    bad_search: str = ""
    """The first search domain that is not a DNS name, bounded and escaped."""
    ndots: int = 1
    """A relative name with at least so many dots is tried as it is before the search list."""
    timeout: int = 5
    """Seconds to wait for the first server; at least 1."""
    attempts: int = 2
    """Passes through the list of servers; at least 1."""
    rotate: bool = False
    """Whether each query starts with the next server in turn."""
    use_tcp: bool = False
    """`use-vc`: whether all queries use TCP."""

    def waits(self) -> tuple[float, ...]:
        """Return the seconds to wait for each server at every attempt (send_dg in resolv/res_send.c)."""
        count = len(self.nameservers)
        return tuple(float(max(1, (self.timeout << place) // (count if place else 1))) for place in range(count))


def parse_resolv_conf(text: str, host_name: str = "") -> ResolvConf:
    """Parse resolv.conf(5). Unknown keywords, unknown options and bad addresses are ignored, as in glibc.

    :param host_name: of this host; its domain is the search list if the file has none.
    """
    read = ResolvConf()
    search: list[str] | None = None
    for line in text.splitlines():
        keyword, rest = _keyword(line)
        if keyword == "nameserver" and len(read.nameservers) < MAX_SERVERS:
            address = _address(re.split(r"[;# \t]", rest.lstrip(" \t"), maxsplit=1)[0])
            if address:
                read = replace(read, nameservers=(*read.nameservers, address))
        elif keyword == "domain" and rest.split():
            search = rest.split()[:1]
        elif keyword == "search" and rest.split():
            search = rest.split()
        elif keyword == "options":
            read = _with_options(read, rest)
    if search is None:
        _, _, domain = host_name.partition(".")
        search = [domain] if domain else []
    return _with_search(read, search)


class Candidate(NamedTuple):
    """An absolute name that may be meant by another name."""

    name: dns.name.Name
    is_listed: bool
    """Whether it comes from the search list; after a failure other than SERVFAIL, no more of these are queried."""


def candidates(name: dns.name.Name, search: Sequence[dns.name.Name], ndots: int) -> list[Candidate]:
    """Return the names to query, in order (res_search in resolv/res_query.c).

    :param name: relative, or absolute, which is the only candidate then.
    """
    as_it_is = Candidate(name.derelativize(dns.name.root), is_listed=False)
    if name.is_absolute():
        return [as_it_is]
    listed = [Candidate(full, is_listed=True) for domain in search if (full := _joined(name, domain)) is not None]
    if len(name) - 1 >= ndots:
        return [as_it_is, *listed]
    return listed if dns.name.root in search else [*listed, as_it_is]


def _keyword(line: str) -> tuple[str, str]:
    """Split a line: it starts with a keyword and a blank; a comment starts with `;` or `#`."""
    match = re.match(r"([a-z]+)[ \t](.*)", line)
    return (match[1], match[2]) if match else ("", "")


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.IPv6Address(text)) if ":" in text else socket.inet_ntoa(socket.inet_aton(text))
    except (ValueError, OSError):
        return None


def _with_options(read: ResolvConf, options: str) -> ResolvConf:
    """Apply one line of options (res_setoptions); blanks may precede a number, and text after a name is ignored."""
    for match in re.finditer(r"[^ \t]+", options):
        option = match[0]
        value = _NUMBER.match(options, match.start() + option.find(":") + 1)
        number = int(value[1]) if value else 0
        if option.startswith("ndots:"):
            read = replace(read, ndots=min(number, _MOST_NDOTS) & _MOST_NDOTS)  # glibc keeps it in four bits
        elif option.startswith("timeout:"):
            read = replace(read, timeout=min(max(0, number), _MOST_SECONDS))
        elif option.startswith("attempts:"):
            read = replace(read, attempts=min(max(1, number), _MOST_ATTEMPTS))
        elif option.startswith("rotate"):
            read = replace(read, rotate=True)
        elif option.startswith("use-vc"):
            read = replace(read, use_tcp=True)
    return read


def _with_search(read: ResolvConf, search: Sequence[str]) -> ResolvConf:
    domains: list[dns.name.Name] = []
    for text in search:
        try:
            domains.append(dns.name.from_text(text.removeprefix(".")))  # as res_search does
        except (DNSException, ValueError, struct.error):  # struct.error: an escape above \\255, up to dnspython 2.7
            return replace(read, search=tuple(domains), bad_search=ascii(text[:80]))
    return replace(read, search=tuple(domains))


def _joined(name: dns.name.Name, domain: dns.name.Name) -> dns.name.Name | None:
    try:
        return name.concatenate(domain)
    except DNSException:  # the name is too long
        return None
