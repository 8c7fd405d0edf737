"""The configuration file: valid forms, and messages that name the table, the key, the value and how to fix it."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.config.file import Config, decode
from clb_discovery.config.values import Entry, consul_entry, srv_entry
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, Protocol, RealServer
from clb_discovery.model.service import Part, Service
from clb_discovery.model.text_forms import parse_vip

EXAMPLE: Final = """
consul = "http://127.0.0.1:8500"
real-range = ["10.0.0.0/8", "fd00::/8"]
[[service]]
name = "redis"
consul = "redis"
vip = "10.64.0.1:6379,[fd00:64::1]:6379"
algorithm = "least-conn"
[[service]]
name = "ldap"
vip = "10.64.0.2"
servers = ["10.0.0.5:389", { address = "10.0.0.6:3389", weight = 3, priority = 0 }]
"""


def read(text: str) -> Config:
    """Read a file."""
    return decode(text.encode())


def test_the_example_of_the_contract_is_read() -> None:
    """Options become arguments and tables become services; static ones have servers."""
    config = read(EXAMPLE)
    assert config.arguments == (
        "--consul=http://127.0.0.1:8500",
        "--real-range=10.0.0.0/8",
        "--real-range=fd00::/8",
    )
    redis, ldap = config.entries
    vips = (parse_vip("10.64.0.1:6379"), parse_vip("[fd00:64::1]:6379"))
    assert redis == Entry(Service("redis", "consul:redis", vips), {"algorithm": Algorithm.LEAST_CONN})
    servers = (
        RealServer(0, parse_address("10.0.0.5"), 389, 1),
        RealServer(0, parse_address("10.0.0.6"), 3389, 3),
    )
    assert ldap == Entry(
        Service("ldap", "static:ldap", (parse_vip("10.64.0.2"),), parts=(Part("static:ldap", servers=servers),))
    )


def test_values_are_written_as_on_a_command_line() -> None:
    """Numbers need no quotes, true is an option without a value, and false is no option."""
    assert read("hold = 30\nmax-removal = 0.5\nconsul = true\nno-active = false").arguments == (
        "--hold=30",
        "--max-removal=0.5",
        "--consul",
    )


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ('real-range = "10.0.0.0/8"', 'real-range = ["10.0.0.0/8"]'),
        ('service = "a=10.64.0.1:80,10.64.0.2"', 'service = ["a=10.64.0.1:80,10.64.0.2"]'),
        ('srv = "_a._tcp.x"', 'srv = ["_a._tcp.x"]'),
        ('dns = "a.x:80"', 'dns = ["a.x:80"]'),
        *(
            (f'[[service]]\nname = "a"\n{one}', f'[[service]]\nname = "a"\n{several}')
            for one, several in (
                ('consul = "a"\nvip = "10.64.0.1:80"', 'consul = "a"\nvip = ["10.64.0.1:80"]'),
                ('consul = "a"\nvip = "10.64.0.1,[fd00::1]:6"', 'consul = "a"\nvip = ["10.64.0.1", "[fd00::1]:6"]'),
                ('consul = "a"\nvip = "10.64.0.1"', 'consul = "a"\nvip = ["10.64.0.1", "10.64.0.1"]'),
                ('srv = "_a._udp.x"\nvip = "10.64.0.1,10.64.0.2"', 'srv = "_a._udp.x"\nvip = ["10.64.0.1,10.64.0.2"]'),
                ('dns = "a.x:80"\nvip = "10.64.0.1:80"', 'dns = "a.x:80"\nvip = ["10.64.0.1:80"]'),
                ('consul = "a"\ntags = "b"', 'consul = "a"\ntags = ["b"]'),
                ('servers = "10.0.0.1:80"', 'servers = ["10.0.0.1:80", "10.0.0.1:80"]'),
                ('servers = { address = "10.0.0.1:80" }', 'servers = ["10.0.0.1:80"]'),
            )
        ),
    ],
)
def test_what_may_be_several_may_be_one(one: str, several: str) -> None:
    """A key that takes an array takes one element, too; a repeated element counts once."""
    assert read(one) == read(several)


def test_services_of_options_stand_beside_tables() -> None:
    """`service` holds values of --service and tables, in any order. VIPs of one name add up, as on the command line."""
    config = read('srv = ["_a._tcp.x=10.64.0.1", "_a._tcp.x"]\nservice = ["a", { name = "b", servers = [] }, "c"]')
    assert config.arguments == (
        "--srv=_a._tcp.x=10.64.0.1",
        "--srv=_a._tcp.x",
        "--service=a",
        "--service=c",
    )
    assert [entry.service.name for entry in config.entries] == ["b"]


def test_service_has_settings_of_its_own() -> None:
    """A table may have its own values of some options."""
    keys = """
        max-removal = 1
        hold = "5s"
        linger = "1m"
        eject-after = 0
        eject-time = "1s"
        eject-max = "2s"
        silent-after = "50ms"
        connect-timeout = "off"
        dead-after = "3s"
        suspicion = true
    """
    (entry,) = read(f'[[service]]\nname = "a"\nsrv = "_a._tcp.x"\n{keys}').entries
    assert entry.settings == {
        "max_removal": 1,
        "hold": 5,
        "linger": 60,
        "eject_after": 0,
        "eject_time": 1000,
        "eject_max": 2000,
        "silent_after": 50,
        "connect_timeout": 0,
        "dead_after": 3_000,
        "no_suspicion": False,
    }


@pytest.mark.parametrize("value", ["'off'", "0", "[false]"])
def test_suspicion_is_true_or_false(value: str) -> None:
    """Anything else is refused with the key."""
    with pytest.raises(ValueError, match=r"suspicion = .*: is neither true nor false"):
        read(f'[[service]]\nname = "a"\nsrv = "_a._tcp.x"\nsuspicion = {value}')


def test_service_of_consul_has_instances_of_its_own_choice() -> None:
    """`filter` and `tags` replace the options --filter and --tag."""
    (entry,) = read('[[service]]\nname = "a"\nconsul = "a"\nfilter = "Node.Node == x"\ntags = ["b", "c d"]').entries
    assert entry.settings == {"filter": "Node.Node == x", "tag": ("b", "c d")}


def test_service_without_a_vip_gets_automatic_ones() -> None:
    """The protocol of automatic VIPs is that of the SRV name, as on the command line."""
    tables = '[[service]]\nname = "dns"\nsrv = "_dns._udp.x"\n[[service]]\nname = "web"\nconsul = "web"'
    assert [entry.service.automatic for entry in read(tables).entries] == [Protocol.UDP, Protocol.TCP]
    assert consul_entry("web").service.automatic is Protocol.TCP
    assert srv_entry("_dns._udp.x").service.automatic is Protocol.UDP
    assert srv_entry("_dns._udp.x=10.64.0.1:53").service.vips == (parse_vip("10.64.0.1:53/udp"),)
    (named,) = read('[[service]]\nname = "dns"\nsrv = "_dns._udp.x"\nvip = "10.64.0.1:53"').entries
    assert named.service.vips == (parse_vip("10.64.0.1:53/udp"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hold = ", ["is not TOML", "line 1"]),
        ('a = 1\nhold = "x" y', ["is not TOML", "line 2"]),
        ("hold = 1\nhold = 2", ["is not TOML", "line 2"]),
        ("real_range = []", ["unknown key 'real_range'", "did you mean real-range?"]),
        ('[[services]]\nname = "a"', ["unknown table 'services'; did you mean [[service]]?"]),
        ('[[Service]]\nname = "a"', ["unknown table 'Service'; did you mean [[service]]?"]),
        ('[srvice]\nname = "a"', ["unknown table 'srvice'; did you mean [[service]]?"]),
        ("[database]\nx = 1", ["unknown table 'database'; services are [[service]] tables"]),
        ("zzz = 1", ["unknown key 'zzz'", "use consul, catalog"]),
        ("real-range = [[]]", ["real-range = []", "one value, not an array"]),
        ('hold = ["1s"]', ["hold = ['1s']", "one value"]),
        ("hold = 2020-01-01", ["hold = ", "neither text nor a number"]),
        ("[hold]\nx = 1", ["hold = {'x': 1}", "neither text nor a number"]),
        ("real-range = [true]", ["real-range = True", "neither text"]),
        ('service = ["a", true]', ["service = True", "neither text nor a number"]),
        ('service = ["a=10.64.0.300"]', ["service: '10.64.0.300'", "write 10.64.0.1"]),
        ('srv = "_a._tcp.x=:80"', ["srv: ':80' is not a VIP", "write 10.64.0.1"]),
        ('dns = "a.x:80=:80"', ["dns: ':80' is not a VIP", "write 10.64.0.1"]),
        ('dns = "a.x"', ["dns: 'a.x' has no port for the servers", "write NAME:PORT, such as db.example.com:5432"]),
        ('[[service]]\nname = "a"\ndns = "a.x"', ["[[service]] 'a': dns: 'a.x' has no port for the servers"]),
        ('[[service]]\nname = "a"\ndns = "a.x:0"', ["dns: 'a.x:0' has a port that is not 1 to 65535"]),
        ('[[service]]\nname = "a"\ndns = 80', ["dns: '80' has no port for the servers"]),
        ('[[service]]\nname = "a"\ndns = "a.x:80"\ntags = "b"', ["applies to consul only"]),
        ('[service]\nname = "a"', ["a service is a table", "write [[service]]"]),
        ("[[service]]", ["[[service]] 1", "has no name"]),
        ('[[service]]\nname = "a"', ["[[service]] 'a'", "has no source", "consul", "srv", "servers"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nsrv = "a"', ["[[service]] 'a'", "consul and srv", "exactly one of"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nvips = "x"', ["[[service]] 'a'", "'vips'", "did you mean vip?"]),
        (
            '[[service]]\nname = "a"\nconsul = "a"\nvip = "10.64.0.300"',
            ["[[service]] 'a': vip: '10.64.0.300'", "write 10"],
        ),
        ('[[service]]\nname = "a"\nconsul = "a"\nalgorithm = "best"', ["'a': algorithm: 'best'", "least-conn"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nhold = true', ["'a': hold = True"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nvip = []', ["'a': vip = []", "remove it for automatic VIPs"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nvip = [["10.64.0.1"]]', ["'a': vip = ['10.64.0.1']", "one value"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nvip = [6379]', ["'a': vip: '6379' is not a VIP", "10.64.0.1:6379"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nvip = ["10.64.0.1", "x"]', ["'a': vip: 'x' is not a VIP"]),
        ('[[service]]\nname = ["a"]\nconsul = "a"', ["[[service]] ['a']: name = ['a']", "one value"]),
        ('[[service]]\nname = "a"\nconsul = ["a", "b"]', ["'a': consul = ['a', 'b']", "one value"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nhold = ["1s"]', ["'a': hold = ['1s']", "one value"]),
        ('[[service]]\nname = "a"\nconsul = "a\\u0000"', ["'a': consul = 'a\\x00'", "NUL"]),
        (f"hold = 0x{'f' * 5000}", ["hold = 0xfff", "too large"]),
        (f"hold = {'9' * 5000}", ["is not TOML", "5000 digits"]),
        (
            '[[service]]\nname = "a"\nconsul = "a"\ntags = [""]',
            ["'a': tags: '': write 1 to 4096 printable"],
        ),
        ('[[service]]\nname = "a"\nconsul = "a"\ntags = [true]', ["'a': tags = True", "neither text"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nfilter = "a\\nb"', ["'a': filter: 'a\\nb'", "printable characters"]),
        (
            f'[[service]]\nname = "a"\nconsul = "a"\nfilter = "{"x" * 4097}"',
            ["'a': filter: 'xxx", "write 1 to 4096"],
        ),
        ('[[service]]\nname = "a"\nsrv = "a"\nfilter = "b"', ["'a': filter = 'b'", "applies to consul only"]),
        ('[[service]]\nname = "a"\nservers = []\ntags = ["b"]', ["'a': tags = ['b']", "applies to consul only"]),
        ('[[service]]\nname = "a"\nconsul = "a"\nlinger = "1m"', ["'a': linger = '1m'", "applies to srv and dns only"]),
        ('[[service]]\nname = "a\\u001b"\nsrv = "a"', ["has no name of 1 to 255 bytes of printable text"]),
        (f'[[service]]\nname = "{"a" * 256}"\nsrv = "a"', ["has no name of 1 to 255 bytes"]),
        (
            '[[service]]\nname = "a"\nservers = ["10.0.0.1:80", {address = "10.0.0.1:80", weight = 2}]',
            ["'a': servers: 10.0.0.1:80 is listed twice", "keep one entry"],
        ),
        ('[[service]]\nname = "a"\nservers = [["10.0.0.1:80"]]', ["'a': servers: address = ['10.0.0.1:80']"]),
        ('[[service]]\nname = "a"\nservers = ["db:80"]', ["'a': servers: 'db:80' is a host name", "use `dns`"]),
        (
            '[[service]]\nname = "a"\nservers = ["redis-1.example.com"]',
            ["'redis-1.example.com' is a host name; give an IP address"],
        ),
        ('[[service]]\nname = "a"\nservers = ["10.0.0.1"]', ["'a': servers: '10.0.0.1'", "write 10.0.0.7:6379"]),
        ('[[service]]\nname = "a"\nservers = [1]', ["'a': servers: '1'", "ADDR:PORT"]),
        ('[[service]]\nname = "a"\nservers = [{weight = 1}]', ["'a': servers: ''", "ADDR:PORT"]),
        (
            '[[service]]\nname = "a"\nservers = [{wait = 1}]',
            ["'a': servers: unknown key 'wait'", "did you mean weight?"],
        ),
        (
            '[[service]]\nname = "a"\nservers = [{address = "10.0.0.1:80", weight = 65536}]',
            ["'a': servers: weight = 65536", "0 to 65535"],
        ),
        (
            '[[service]]\nname = "a"\nsrv = "x"\n[[service]]\nname = "b"\nsrv = "x"',
            ["[[service]] 'b' (table 2)", "[[service]] 'a' (table 1) already follows srv:x", "vip"],
        ),
        (
            '[[service]]\nname = "a"\nservers = []\n[[service]]\nname = "a"\nservers = []',
            ["[[service]] 'a' (table 2)", "[[service]] 'a' (table 1) already follows static:a"],
        ),
        (
            'dns = "a.x:80=10.64.0.1"\n[[service]]\nname = "b"\ndns = "a.x:080"',
            ["[[service]] 'b' (table 1)", "dns = 'a.x:80=10.64.0.1' already follows dns:a.x:80"],
        ),
        (
            'srv = "_a._tcp.x=10.64.0.1"\n[[service]]\nname = "b"\nsrv = "_a._tcp.x"',
            ["[[service]] 'b' (table 1)", "srv = '_a._tcp.x=10.64.0.1' already follows srv:_a._tcp.x"],
        ),
        (
            'service = ["a", { name = "b", consul = "a" }]',
            ["[[service]] 'b' (table 1)", "service = 'a' already follows consul:a"],
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, words: list[str]) -> None:
    """The message names the table, the key, the value and how to fix it; for a syntax error, the line."""
    with pytest.raises(ValueError, match=r".") as error:
        read(text)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_bytes_that_are_no_text_are_named_with_their_line() -> None:
    """A file that is not UTF-8 is rejected with the line of the first wrong byte."""
    with pytest.raises(ValueError, match=r"not UTF-8 \(at line 2\)"):
        decode(b"hold = 1\n\xff")


@given(
    st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(EXAMPLE.split())).map(" ".join).map(str.encode)
)
def test_any_file_is_read_or_refused(content: bytes) -> None:
    """Every content leads to a configuration or to a message."""
    try:
        decode(content)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either is right
