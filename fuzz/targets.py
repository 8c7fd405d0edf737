"""The parsers of untrusted input, each as a function of bytes.

It returns the result, or None if the parser rejected the input with an error that it declares. Every other error is a
finding.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from dns.message import QueryMessage
from multidict import CIMultiDict

from clb_discovery.checks.response import status_of
from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config import values
from clb_discovery.config.checks import parse_check
from clb_discovery.config.services import read_services
from clb_discovery.datapath import close_request
from clb_discovery.errors import SourceError, UsageError
from clb_discovery.hosts_file import block
from clb_discovery.model import text_forms
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import pools
from clb_discovery.model.service import Service
from clb_discovery.publication.desired import desired
from clb_discovery.sources.consul.address import ConsulAddress
from clb_discovery.sources.consul.answer import parse_checks, parse_entries, parse_names, parse_summaries
from clb_discovery.sources.consul.blocking import next_index
from clb_discovery.sources.consul.client import ALL, OWN, Client
from clb_discovery.sources.consul.library import base
from clb_discovery.sources.consul.members import to_answer
from clb_discovery.sources.consul.transport import Transport
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.hosts_table import parse_hosts
from clb_discovery.sources.dns.nameservers import parse_nameserver
from clb_discovery.sources.dns.resolv_conf import ResolvConf, parse_resolv_conf
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from clb_discovery.state import last_good
from fuzz import seeds
from tests.support.memory_dns import InMemory, Only

_VIP: Final = text_forms.parse_vip("10.64.0.1:80")
_LIFETIME: Final = 0.2
_FILE: Final = os.memfd_create("configuration")
_TYPED: Final = make_parser().parse_args(["run", "--config", f"/proc/self/fd/{_FILE}"])
_loop: Final = asyncio.new_event_loop()


class Target(NamedTuple):
    """A parser, and well-formed inputs to start from."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


class _Canned(Transport):
    """A transport with the same response to every request."""

    def __init__(self, said: bytes) -> None:
        super().__init__(ConsulAddress.parse("127.0.0.1:8500"), None)
        head, _, self._said = said.partition(b"\n\n")
        lines = (line.partition(":") for line in head.decode("latin-1").split("\n"))
        self._headers = CIMultiDict((name, value.strip()) for name, _, value in lines)

    async def _request(
        self,
        method: str,
        uri: str,  # noqa: ARG002 - the shape of its base class
        headers: Mapping[str, str] | None,  # noqa: ARG002 - as above
        limit: float,  # noqa: ARG002 - as above
        data: str | None = None,  # noqa: ARG002 - as above
    ) -> base.Response:
        entries, _, rights = self._said.partition(b"\n\n")
        return base.Response(200, self._headers.copy(), "", rights if method == "POST" else entries)


def consul(data: bytes) -> Answer | None:
    """Read the answer of each endpoint: headers, an empty line, the body; an answer about rights follows another."""
    client = Client(_Canned(data), None, OWN)
    with suppress(SourceError):
        _, checks = _loop.run_until_complete(client.checks(7, 60))
        parse_checks(checks)
    with suppress(SourceError):
        _, services = _loop.run_until_complete(client.services(7, 60))
        parse_names(services)
    with suppress(SourceError):
        parse_summaries(_loop.run_until_complete(client.summaries()))
    with suppress(SourceError):
        header, entries = _loop.run_until_complete(client.entries("web", ALL, 7, 60))
        next_index(header, 7)
        return _used(to_answer(parse_entries(entries, "wan", "zone"), {}))
    return None


class _Canned53(InMemory):
    """A server with prepared answers: each is the part of a message after the id, without the question.

    Each has its length in two bytes before it. After the last one the connection is closed.
    """

    def __init__(self, said: bytes) -> None:
        super().__init__()
        self._said = said

    def wire(self, request: QueryMessage) -> bytes:
        """Return the next answer."""
        if not self._said:
            raise EOFError
        size = int.from_bytes(self._said[:2], "big")
        said, self._said = self._said[2 : 2 + size], self._said[2 + size :]
        question = request.to_wire()[12 : 16 + len(request.question[0].name.to_wire() or b"")]
        return request.id.to_bytes(2, "big") + said[:2] + b"\0\1" + said[2:8] + question + said[8:]


def _answering(said: bytes) -> Only:
    return Only(_Canned53(said), _LIFETIME)


def srv(data: bytes) -> Answer | None:
    """Follow an SRV record with the answers of a server."""
    source = SrvSource("_web._tcp.example", _answering(data), rng=random.Random(0))  # noqa: S311 - jitter
    with suppress(SourceError):
        return _used(_loop.run_until_complete(source.next()))
    return None


def plain_name(data: bytes) -> Answer | None:
    """Follow the addresses of a name with the answers of a server."""
    source = AddressSource("web.example", 80, _answering(data), rng=random.Random(0))  # noqa: S311 - jitter
    with suppress(SourceError):
        return _used(_loop.run_until_complete(source.next()))
    return None


def resolv_conf(data: bytes) -> ResolvConf | None:
    """Read resolv.conf."""
    with suppress(ValueError):
        return parse_resolv_conf(data.decode("utf-8", "replace"))
    return None


def hosts_table(data: bytes) -> object:
    """Read the system's hosts file."""
    return parse_hosts(data.decode("utf-8", "replace")) or None


def _used(answer: Answer) -> Answer:
    built = desired([Service("web", "web", (_VIP,))], {"web": pools(answer.servers)}, [])
    assert len(built.virtual[_VIP].pool) <= len(answer.servers)
    return answer


def configuration(data: bytes) -> tuple[Service, ...] | None:
    """Read a configuration file, its options, and its services."""
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, data, 0)
    with suppress(UsageError):
        return read_services(read_options(_TYPED, {}))
    return None


def disk(data: bytes) -> Mapping[str, last_good.LastGood] | None:
    """Read the last good sets."""
    with suppress(ValueError):
        found = last_good.decode(data)
        assert last_good.decode(last_good.encode(*found)) == found
        return found.sets
    return None


def hosts_file(data: bytes) -> str | None:
    """Write our block into a hosts file, and remove it again."""
    with suppress(ValueError):
        text = data.decode()
        without = block.with_block(text, "default", {})
        again = block.with_block(block.with_block(text, "default", {"web.clb": (_VIP.address,)}), "default", {})
        assert again in {without, without + "\n"}
        return without
    return None


def close(data: bytes) -> close_request.Request | close_request.Closed | None:
    """Read a request to close sockets; and the same bytes as its answer."""
    closed = close_request.parse_answer(data)
    assert close_request.parse_answer(close_request.answer(closed)) == closed
    with suppress(ValueError):
        head, rest = data[: close_request.HEAD.size], data[close_request.HEAD.size :]
        close_request.length_behind(head)
        found = close_request.parse_request(head, rest)
        again = close_request.requests(found.instance, found.members, found.protocols)
        assert again == ([data] if found.members else [])
        return found
    return None


def words(data: bytes) -> list[object]:
    """Read command line values: VIPs, assignments, durations, resolvers, addresses of Consul, SRV names."""
    text, found = data.decode("utf-8", "surrogateescape"), list[object]()
    for read in _WORDS:
        with suppress(ValueError, UsageError):
            found.append(read(text))
    return found


def check_response(data: bytes) -> int | None:
    """Read the answer of a real server to a check, which arrives in two parts."""
    with suppress(ValueError):
        first = status_of(data[: len(data) // 2])
        whole = status_of(data)
        assert first in {None, whole}
        return whole
    return None


_WORDS: Final[tuple[Callable[[str], object], ...]] = (
    text_forms.parse_vip,
    values.parse_assignment,
    text_forms.parse_duration,
    text_forms.parse_connect_timeout,
    values.parse_dead_after,
    values.parse_share,
    values.parse_listener,
    parse_check,
    parse_nameserver,
    ConsulAddress.parse,
    lambda name: SrvSource(name, Resolvers(["127.0.0.1"])),
    values.dns_entry,
    lambda name: AddressSource(name, 80, Resolvers(["127.0.0.1"])),
)

TARGETS: Final[Mapping[str, Target]] = {
    "consul": Target(consul, seeds.CONSUL),
    "srv": Target(srv, seeds.SRV),
    "plain-name": Target(plain_name, seeds.PLAIN_NAME),
    "resolv-conf": Target(resolv_conf, seeds.RESOLV_CONF),
    "hosts-table": Target(hosts_table, seeds.HOSTS_TABLE),
    "configuration": Target(configuration, seeds.CONFIGURATION),
    "disk": Target(disk, seeds.DISK),
    "hosts-file": Target(hosts_file, seeds.HOSTS_FILE),
    "close": Target(close, seeds.CLOSE),
    "check-response": Target(check_response, seeds.CHECK_RESPONSE),
    "words": Target(words, seeds.WORDS),
}
