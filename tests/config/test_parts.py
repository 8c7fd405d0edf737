"""`from`: a service whose pools are put together from parts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.file import decode
from clb_discovery.config.services import read_services
from clb_discovery.errors import UsageError
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Protocol, RealServer
from clb_discovery.model.service import MAX_PARTS, Part, Service

STATIC: Final = (RealServer(0, parse_address("10.9.0.1"), 6379, 1),)


def table(*parts: str, more: str = 'vip = "10.64.0.1:6379"') -> bytes:
    """Return a file with one service that has these parts."""
    return f'[[service]]\nname = "redis"\n{more}\nfrom = [{", ".join(parts)}]\n'.encode()


def entry(*parts: str, more: str = 'vip = "10.64.0.1:6379"') -> Service:
    """Return the service of such a file, before the options complete it."""
    (found,) = decode(table(*parts, more=more)).entries
    return found.service


def completed(tmp_path: Path, content: bytes, *arguments: str) -> dict[str, Service]:
    """Return the services of a file with these options, by the names of their pools."""
    file = tmp_path / "clb.toml"
    file.write_bytes(content)
    options = read_options(make_parser().parse_args(["run", "--config", str(file), *arguments]), {})
    return {service.source: service for service in read_services(options)}


def test_each_part_has_its_source_and_its_place() -> None:
    """The names of sources tell parts of one service of Consul apart; those of all make that of the pools."""
    found = entry(
        '{ consul = "redis" }',
        '{ consul = "redis", datacenter = "dc2", tags = ["a", "b"], priority = 1 }',
        '{ srv = "_redis._tcp.example", priority = 1 }',
        '{ servers = ["10.9.0.1:6379"], priority = 2 }',
    )
    assert found.parts == (
        Part("consul:redis"),
        Part("consul:redis?dc=dc2&tag=a&tag=b", "redis", (), 1, datacenter="dc2", tags=("a", "b")),
        Part("srv:_redis._tcp.example", priority=1),
        Part("static:redis", servers=STATIC, priority=2),
    )
    assert [part.name for part in found.parts] == ["redis", "redis", "_redis._tcp.example", "redis"]
    assert found.source == (
        "pool:consul:redis + consul:redis?dc=dc2&tag=a&tag=b + srv:_redis._tcp.example + static:redis"
    )


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ('{ consul = "redis" }', 'consul = "redis"'),
        ('{ srv = "_redis._udp.example" }', 'srv = "_redis._udp.example"'),
        ('{ servers = ["10.9.0.1:6379"] }', 'servers = ["10.9.0.1:6379"]'),
    ],
)
def test_one_part_is_the_same_as_one_source(tmp_path: Path, part: str, key: str) -> None:
    """Both forms give the same service: its name, its VIPs and all that it does."""
    short = f'[[service]]\nname = "redis"\nvip = "10.64.0.1:6379"\n{key}\n'.encode()
    assert completed(tmp_path, table(part), "--consul", "--hold", "7s") == completed(
        tmp_path, short, "--consul", "--hold", "7s"
    )


def test_a_part_has_the_options_that_it_does_not_set(tmp_path: Path) -> None:
    """Filter and tags are for parts without their own, and `tags = []` is. A static list is not held."""
    content = table(
        '{ consul = "a", tags = "x" }',
        '{ consul = "b" }',
        '{ servers = "10.9.0.1:6379" }',
        '{ consul = "c", tags = [] }',
    )
    (found,) = completed(tmp_path, content, "--consul", "--tag", "y", "--filter", "f", "--hold", "9s").values()
    assert [part.tags for part in (*found.parts[:2], found.parts[3])] == [("x",), ("y",), ()]
    assert [part.filter for part in found.parts[:2]] == ["f", "f"]
    assert [found.policy_of(part).hold for part in found.parts] == [9.0, 9.0, 0.0, 9.0]
    held = table('{ consul = "a" }', '{ servers = "10.9.0.1:6379" }', more='vip = "10.64.0.1"\nhold = "3s"')
    (found,) = completed(tmp_path, held, "--consul").values()
    assert [found.policy_of(part).hold for part in found.parts] == [3.0, 3.0]


def test_parts_need_consul_if_one_is_there(tmp_path: Path) -> None:
    """A service with a part in Consul needs --consul, as a service in Consul does."""
    with pytest.raises(UsageError, match="redis is a service in Consul; add --consul"):
        completed(tmp_path, table('{ servers = "10.9.0.1:6379" }', '{ consul = "redis" }'))


def test_vips_have_the_protocol_of_srv_records_of_udp() -> None:
    """That of other parts is TCP, and so is that of records that do not agree."""
    udp, tcp = '{ srv = "_dns._udp.example" }', '{ srv = "_dns._tcp.example" }'
    assert entry(udp, '{ servers = "10.9.0.1:53" }').vips[0].protocol is Protocol.UDP
    assert entry(udp, tcp).vips[0].protocol is Protocol.TCP
    assert entry('{ consul = "dns" }', '{ servers = "10.9.0.1:53" }').vips[0].protocol is Protocol.TCP


def test_static_parts_of_one_service_have_names() -> None:
    """They have no name of their own, so they are numbered."""
    found = entry('{ servers = "10.9.0.1:1" }', '{ consul = "redis" }', '{ servers = "10.9.0.2:1", priority = 1 }')
    assert [part.source for part in found.parts] == ["static:redis", "consul:redis", "static:redis#2"]
    empty = entry('{ servers = "10.9.0.1:1" }', "{ servers = [] }")
    assert [part.source for part in empty.parts] == ["static:redis", "static:redis#2"]


def test_names_of_many_parts_fit_into_the_kernel() -> None:
    """A name that is too long is cut, and other parts still have another one."""
    parts = [f'{{ consul = "{"x" * 60}-{number}" }}' for number in range(6)]
    first, other = entry(*parts).source, entry(*parts[:-1], '{ consul = "y" }').source
    assert first != other
    assert len(first.encode()) <= 262


A, B = '{ consul = "a" }', '{ consul = "b" }'


@pytest.mark.parametrize(
    ("parts", "more", "reason"),
    [
        ([], "", "from = []: is not a list of 1 to 64 parts"),
        ([f'{{ consul = "{number}" }}' for number in range(MAX_PARTS + 1)], "", "is not a list of 1 to 64 parts"),
        (["3"], "", "from, part 1: 3 is not a part"),
        ([A, "{ priority = 1 }"], "", "from, part 2: has no source; set exactly one of consul, srv, dns, servers"),
        ([A, '{ consul = "b", srv = "c" }'], "", "from, part 2: has consul and srv; set exactly one of"),
        ([A, '{ consul = "b", shares = 3 }'], "", "from, part 2: unknown key 'shares'; did you mean share?"),
        (['{ consul = "a", share = -1 }'], "", "from, part 1: share = -1: is not a number from 0 to 65535"),
        (['{ consul = "a", share = 0.5 }'], "", "from, part 1: share = 0.5: is not a number from 0 to 65535"),
        (['{ consul = "a", priority = 65536 }'], "", "from, part 1: priority = 65536: is not a number"),
        (['{ srv = "a", datacenter = "dc2" }'], "", "from, part 1: datacenter = 'dc2': applies to consul only"),
        (['{ servers = "10.9.0.1:1", tags = "x" }'], "", "from, part 1: tags = 'x': applies to consul only"),
        (['{ consul = "a", datacenter = "" }'], "", "datacenter: '': write 1 to 4096 printable characters"),
        (['{ servers = "10.9.0.1" }'], "", "from, part 1: servers: '10.9.0.1' is not ADDR:PORT"),
        ([A, B, A], "", "from: parts 1 and 3 are equal; remove one of them"),
        ([A, '{ consul = "a", priority = 3 }'], "", "from: parts 1 and 2 are equal"),
        (["{ servers = [] }", "{ servers = [] }"], "", "from: parts 1 and 2 are equal"),
        (['{ servers = "10.9.0.1:1" }', '{ servers = ["10.9.0.1:1"] }'], "", "from: parts 1 and 2 are equal"),
        (
            [A, '{ consul = "b", share = 3 }'],
            "",
            "from: only 1 of the 2 parts of priority 0 have a share; give each of them one, or none",
        ),
        (
            ['{ consul = "a", share = 0 }', '{ consul = "b", share = 0 }', '{ consul = "c", priority = 1 }'],
            "",
            "from: every share of the parts of priority 0 is 0; one must be above 0",
        ),
        ([A], 'filter = "x"', "filter = 'x': write it into the parts of from that it is for"),
        ([A], 'linger = "1m"', "linger = '1m': applies to srv and dns only"),
        ([A], 'consul = "b"', "has consul and from; set exactly one of consul, srv, dns, servers or from"),
        (
            [A, '{ servers = "[fd00::1]:1" }'],
            'vip = "10.64.0.1"',
            "from: part 2 has real servers of IPv6 only, and no VIP is of IPv6; add one, or remove the part",
        ),
    ],
)
def test_a_wrong_part_is_refused(parts: list[str], more: str, reason: str) -> None:
    """The message names the service, the part, the value and the fix."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        decode(table(*parts, more=more))
    assert str(caught.value).startswith("[[service]] 'redis': ")
    assert reason in str(caught.value)


def test_automatic_vips_are_of_both_families() -> None:
    """So each part has one."""
    assert entry(A, '{ servers = "[fd00::1]:1" }', more="").automatic is Protocol.TCP


def test_a_source_is_in_one_service_only(tmp_path: Path) -> None:
    """One cannot be a part of two services: it has one state and one name in metrics."""
    content = table(A, B) + b'[[service]]\nname = "b"\nconsul = "b"\nvip = "10.64.0.2"\n'
    with pytest.raises(UsageError, match=r"consul:b is in .*'redis' and in .*'b'; a source can be in one service only"):
        completed(tmp_path, content, "--consul")
    with pytest.raises(UsageError, match=r"consul:b is in --service b=10\.64\.0\.3 and in"):
        completed(tmp_path, table(A, B), "--consul", "--service", "b=10.64.0.3")


def test_a_real_server_of_a_part_at_a_vip_is_refused(tmp_path: Path) -> None:
    """As for any service, because connects would loop."""
    with pytest.raises(UsageError, match="has the address of the VIP"):
        completed(tmp_path, table(A, '{ servers = "10.64.0.1:1" }'), "--consul")
