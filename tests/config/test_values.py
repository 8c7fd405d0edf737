"""The values that operators write: valid forms, and a helpful message about every other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.config import values
from clb_discovery.model import text_forms
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import MAX_NAME, Protocol, Vip
from clb_discovery.model.usable import never_usable

TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.mark.parametrize(
    ("text", "address", "port", "protocol"),
    [
        ("10.64.0.1:6379", "10.64.0.1", 6379, TCP),
        ("10.64.0.1", "10.64.0.1", 0, TCP),
        ("10.64.0.1:1", "10.64.0.1", 1, TCP),
        ("10.64.0.1:65535", "10.64.0.1", 65535, TCP),
        ("10.64.0.1:53/udp", "10.64.0.1", 53, UDP),
        ("10.64.0.1:53/tcp", "10.64.0.1", 53, TCP),
        ("10.64.0.1/udp", "10.64.0.1", 0, UDP),
        ("[fd00::1]:6379", "fd00::1", 6379, TCP),
        ("[fd00::1]", "fd00::1", 0, TCP),
        ("[fd00::1]:53/udp", "fd00::1", 53, UDP),
        ("[FD00:0:0::1]:80", "fd00::1", 80, TCP),
        ("127.0.0.99:80", "127.0.0.99", 80, TCP),
    ],
)
def test_every_form_of_a_vip(text: str, address: str, port: int, protocol: Protocol) -> None:
    """A VIP is an address, IPv6 in brackets, with an optional port and protocol."""
    assert text_forms.parse_vip(text) == Vip(parse_address(address), port, protocol)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":6379",
        "redis",
        "redis:6379",
        "10.64.0",
        "10.64.0.256",
        "010.64.0.1:80",
        "10.64.0.1:",
        "10.64.0.1:port",
        "10.64.0.1:-1",
        "10.64.0.1:123456",
        "10.64.0.1:+80",
        "10.64.0.1:\u0668\u0660",
        "10.64.0.1:80/",
        "10.64.0.1:80/udp/tcp",
        "10.64.0.1:80/UDP",
        "10.64.0.1:80 ",
        " 10.64.0.1:80",
        "10.64.0.1:80\n",
        "10.64.0.0/16",
        "http://10.64.0.1:80",
        "[]:80",
        "[fd00::1",
        "fd00::1]:80",
        "[fd00::1]80",
        "[[fd00::1]]:80",
        "[fd00::1%eth0]:80",
        "[fd00::1]:80:81",
        "fd00::1",
        "fd00::1:6379",
        "[redis]:6379",
    ],
)
def test_what_is_no_vip_gets_the_forms(text: str) -> None:
    """The message names an invalid VIP, and the valid forms."""
    with pytest.raises(ValueError, match=r"is not a VIP: write 10\.64\.0\.1:6379") as error:
        text_forms.parse_vip(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.64.0.1:0", "port outside 1 to 65535; omit it for every port"),
        ("10.64.0.1:65536", "port outside 1 to 65535"),
        ("10.64.0.1:80/sctp", "protocol 'sctp'; use /tcp or /udp"),
        ("[10.64.0.1]:80", "IPv6 needs brackets, and IPv4 has none"),
        ("[::ffff:10.64.0.1]:80", "IPv6 needs brackets, and IPv4 has none"),
        ("0.0.0.0:80", "unspecified"),
        ("0.1.2.3:80", "unspecified"),
        ("[::]:80", "unspecified"),
        ("224.0.0.251:80", "multicast"),
        ("[ff02::fb]:80", "multicast"),
        ("255.255.255.255:80", "broadcast"),
        ("169.254.169.254:80", "link-local"),
        ("[fe80::1]:80", "link-local"),
    ],
)
def test_vip_that_cannot_be_used_gets_the_reason(text: str, reason: str) -> None:
    """The message names an address that cannot be a VIP, and the reason."""
    with pytest.raises(ValueError, match=reason) as error:
        text_forms.parse_vip(text)
    assert repr(text) in str(error.value)


@given(
    st.ip_addresses().map(lambda address: parse_address(str(address).partition("%")[0])),
    st.integers(0, 65535),
    st.sampled_from(Protocol),
)
def test_a_vip_is_written_as_it_is_read(address: Address, port: int, protocol: Protocol) -> None:
    """The command line accepts a VIP as logs and messages print it."""
    vip = Vip(address, port, protocol)
    text = str(vip)
    if never_usable(address):
        with pytest.raises(ValueError, match="cannot be a VIP"):
            text_forms.parse_vip(text)
    else:
        assert text_forms.parse_vip(text) == vip


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """Every text leads to a value, or to a message of one line."""
    for parse in (text_forms.parse_vip, values.parse_assignment, text_forms.parse_duration, values.parse_share):
        message = ""
        try:
            parse(text)
        except ValueError as error:
            message = str(error)
        assert message.isprintable()


def test_assignment_names_a_service_and_its_vips() -> None:
    """A name may hold any characters. The VIPs after it have the default protocol."""
    assert values.parse_assignment("redis=10.64.0.1:6379,[fd00::1]:6379") == (
        "redis",
        (text_forms.parse_vip("10.64.0.1:6379"), text_forms.parse_vip("[fd00::1]:6379")),
    )
    assert values.parse_assignment("a=b=10.64.0.1:53", UDP) == ("a=b", (text_forms.parse_vip("10.64.0.1:53/udp"),))
    assert values.parse_assignment("a=10.64.0.1:53/tcp", UDP) == ("a", (text_forms.parse_vip("10.64.0.1:53"),))


def test_assignment_without_a_vip_is_a_name_alone() -> None:
    """A name without VIPs gets automatic ones."""
    assert values.parse_assignment("redis") == ("redis", ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no name of 1 to 255 bytes"),
        ("=10.64.0.1:80", "has no name of 1 to 255 bytes"),
        ("a\x1b[2J=10.64.0.1:80", "has no name of 1 to 255 bytes of printable text"),
        ("é" * 128 + "=10.64.0.1:80", "has no name of 1 to 255 bytes"),
        ("redis=", "is not a VIP"),
        ("redis=10.64.0.1:80,", "'' is not a VIP"),
        ("redis=10.64.0.1:80,fd00::1", "'fd00::1' is not a VIP"),
    ],
)
def test_broken_assignment_gets_the_reason(text: str, reason: str) -> None:
    """The message names the wrong part."""
    with pytest.raises(ValueError, match=reason):
        values.parse_assignment(text)


def test_longest_name_is_taken() -> None:
    """A name may be as long as a map element allows."""
    name = "é" * (MAX_NAME // 2) + "a"
    assert values.parse_assignment(f"{name}=10.64.0.1:80")[0] == name


@pytest.mark.parametrize(
    ("record", "protocol", "service"),
    [
        ("_redis._tcp.example", TCP, "redis"),
        ("_dns._udp.example", UDP, "dns"),
        ("_DNS._UDP.EXAMPLE.", UDP, "DNS"),
        ("_dns._udp", UDP, "dns"),
        ("redis.service.consul", TCP, "redis"),
        ("web._udp.example", UDP, "web"),
        ("_a._tcp._udp.example", TCP, "a"),
        ("redis", TCP, "redis"),
        ("_", TCP, "_"),
    ],
)
def test_srv_name_says_service_and_protocol(record: str, protocol: Protocol, service: str) -> None:
    """The labels of an SRV record's name (RFC 2782) give the protocol and the service; others are TCP."""
    assert values.srv_protocol(record) is protocol
    assert values.srv_service(record) == service


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("db.example.com:5432", "db", "dns:db.example.com:5432"),
        ("db.example.com.:05432", "db", "dns:db.example.com.:5432"),
        ("web:80", "web", "dns:web:80"),
        ("bücher.example:65535", "bücher", "dns:bücher.example:65535"),
        ("10.0.0.1:80", "10", "dns:10.0.0.1:80"),
        ("[fd00::1]:80", "[fd00::1]", "dns:[fd00::1]:80"),
    ],
)
def test_dns_name_says_service_and_source(text: str, name: str, source: str) -> None:
    """The first label is the service; the source, which refuses addresses and bad names, keeps name and port."""
    assert values.dns_source(text) == (name, source)
    assert values.dns_entry(f"{text}=10.64.0.1:80").service.vips == (text_forms.parse_vip("10.64.0.1:80"),)
    assert values.dns_entry(text).service.automatic is TCP


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("db", "'db' has no port for the servers"),
        (":80", "':80' has no port for the servers"),
        ("db:", "'db:' has a port that is not 1 to 65535"),
        ("db:0", "has a port that is not 1 to 65535"),
        ("db:65536", "has a port that is not 1 to 65535"),
        ("db:postgresql", "has a port that is not 1 to 65535"),
        ("db:٣", "has a port that is not 1 to 65535"),
        ("db:-1", "has a port that is not 1 to 65535"),
    ],
)
def test_dns_name_without_a_port_is_refused(text: str, words: str) -> None:
    """The message has the form; there is no default port, because the VIP may have none."""
    with pytest.raises(ValueError, match=words) as error:
        values.dns_entry(f"{text}=10.64.0.1:80")
    assert "write NAME:PORT, such as db.example.com:5432" in str(error.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1.5m", 90), ("200ms", 0.2), ("1h", 3600), ("7", 7), ("0", 0), ("0s", 0), ("0.5", 0.5)],
)
def test_every_form_of_a_duration(text: str, seconds: float) -> None:
    """A duration is a number with an optional unit."""
    assert math.isclose(text_forms.parse_duration(text), seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1 s", "1d", "1S", "1e3", ".5s", "1.", "nan", "inf", "1s\n", "1m30s", "٣s"]
)
def test_what_is_no_duration_gets_the_forms(text: str) -> None:
    """The message names an invalid duration, and the valid forms."""
    with pytest.raises(ValueError, match="is not a duration: write 30s, 500ms, 2m or 1h"):
        text_forms.parse_duration(text)


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("50", 50), ("1500ms", 1.5), ("10m", 600)])
def test_every_form_of_consuls_wait(text: str, seconds: float) -> None:
    """It is from one second to the longest that Consul allows."""
    assert values.parse_consul_wait(text) == seconds


@pytest.mark.parametrize("text", ["0", "999ms", "601", "11m", "1h"])
def test_another_wait_of_consul_is_refused(text: str) -> None:
    """The message names a value out of range, and the range."""
    with pytest.raises(ValueError, match=f"'{text}' is outside 1s to 10m"):
        values.parse_consul_wait(text)


@pytest.mark.parametrize(("text", "share"), [("0", 0), ("1", 1), ("0.5", 0.5), (".25", 0.25), ("1e-3", 0.001)])
def test_every_form_of_a_share(text: str, share: float) -> None:
    """A share is a number from 0 to 1."""
    assert values.parse_share(text) == share


@pytest.mark.parametrize("text", ["", "half", "50%", "-0.1", "1.01", "nan", "inf", "1/2"])
def test_what_is_no_share_gets_an_example(text: str) -> None:
    """The message names an invalid share, and a valid one."""
    with pytest.raises(ValueError, match=r"is not a share: write a number from 0 to 1, such as 0\.5"):
        values.parse_share(text)
