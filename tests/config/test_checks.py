"""The values of active checks, and how services get them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.config.checks import parse_check, parse_interval, parse_row
from clb_discovery.config.file import decode
from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services
from clb_discovery.errors import UsageError
from clb_discovery.model.check import Check, Request
from clb_discovery.model.service import Service

WEB = '[[service]]\nname = "web"\nvip = "10.64.0.1:80"\nservers = ["10.0.0.1:80"]\n'


def service(more: str, options: Options | None = None) -> Service:
    """Return the service that a file describes, with more keys."""
    (found,) = read_services(Options(entries=decode((WEB + more).encode()).entries) if options is None else options)
    return found


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("tcp", Request()),
        ("http://web.example", Request("http", "web.example", 0, "/")),
        ("http://web.example/health?deep=1&a=%20", Request("http", "web.example", 0, "/health?deep=1&a=%20")),
        ("http://web?x", Request("http", "web", 0, "/?x")),
        ("https://web.example:8443/", Request("https", "web.example", 8443, "/")),
        ("https://web.example./a", Request("https", "web.example", 0, "/a")),
        ("https://10.0.0.1/", Request("https", "10.0.0.1", 0, "/")),
        ("https://[fd00::7]:81/a", Request("https", "fd00::7", 81, "/a")),
        ("off", None),
    ],
)
def test_a_check(text: str, request_: Request | None) -> None:
    """A connect, or a request with the name for the Host header, and a port that replaces that of the server."""
    assert parse_check(text) == request_


@pytest.mark.parametrize("text", ["tcp", "http://web.example/", "https://[fd00::7]:81/a?b", "http://10.0.0.1:81/"])
def test_a_check_is_shown_as_it_is_written(text: str) -> None:
    """`check` and `status` show what can be copied."""
    assert str(parse_check(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "TCP", "tcp://a", "udp", "ftp://a/", "http://", "http:///a", "http://a b/", "http://a/b c", "http://a/\r\nX",
        "http://user@a/", "http://user:secret@a/", "http://a/#top", "http://ä.example/", "http://a/ä", "http://a:0/",
        "http://a:65536/", "http://[fd00::7/", "http://[::g]/", "http://[1:2]/", "http://-a/", "HTTP://a/",
        "http://" + 254 * "a", "http://a/" + 1024 * "b", "http://a..b/", "http://a../", "http://" + 64 * "a",
    ],
)  # fmt: skip
def test_other_checks_are_refused(text: str) -> None:
    """Nothing that is written there reaches the wire in another place than its own."""
    with pytest.raises(ValueError, match=r"not a check|port outside|no IPv6 address|empty label"):
        parse_check(text)


@given(st.text(max_size=40).map(lambda text: f"http://a/{text}") | st.text(max_size=40))
def test_what_is_accepted_fits_into_one_line(text: str) -> None:
    """A request has no control characters, and no spaces."""
    try:
        found = parse_check(text)
    except ValueError:
        return
    assert found is None or (str(found).isascii() and str(found).isprintable() and " " not in str(found))


@pytest.mark.parametrize("text", ["99ms", "2h", "0", "x"])
def test_intervals_out_of_range(text: str) -> None:
    """100 ms to 1 h."""
    with pytest.raises(ValueError, match=r"outside 100ms to 1h|not a duration"):
        parse_interval(text)


@pytest.mark.parametrize("text", ["0", "101", "-1", "1.5", "²", "", "9" * 5000])
def test_rows_out_of_range(text: str) -> None:
    """1 to 100."""
    with pytest.raises(ValueError, match="not a number from 1 to 100"):
        parse_row(text)


def test_without_a_key_nothing_is_checked() -> None:
    """Checks are opt-in, and other keys alone do not switch them on."""
    assert service("").check is None
    assert not service("").health.checked
    assert service('check-interval = "5s"\nrise = 4\n').check is None


def test_defaults() -> None:
    """2 s, at most 1 s of them for the answer, two to rise and three to fall, and certificates are verified."""
    found = service('check = "tcp"\n')
    assert found.check == Check(Request(), interval=2.0, timeout=1.0, rise=2, fall=3, verify=True)
    assert found.health.checked


def test_the_keys_of_a_service() -> None:
    """All of them."""
    keys = 'check = "https://web.example/health"\ncheck-interval = "500ms"\nrise = 1\nfall = 5\ncheck-verify = false\n'
    request = Request("https", "web.example", 0, "/health")
    assert service(keys).check == Check(request, interval=0.5, timeout=0.5, rise=1, fall=5, verify=False)
    assert service(keys + 'check-timeout = "200ms"\n').check == Check(request, 0.5, 0.2, 1, 5, verify=False)


def test_options_are_for_all_services() -> None:
    """A service may have its own check, or none."""
    file = decode(WEB.replace("1:80", "2:80").replace("web", "off").encode() + b'check = "off"\n')
    typed = Options(service=("web=10.64.0.1:80",), consul="", check=Request(), fall=1, entries=file.entries)
    checks = {one.name: one.check for one in read_services(typed)}
    assert checks == {"web": Check(Request(), fall=1), "off": None}


@pytest.mark.parametrize(
    ("check", "vips", "is_checked"),
    [
        (Request(), "10.64.0.1:53/udp", False),
        (Request(), "10.64.0.1:53/udp,10.64.0.2:53/udp", False),
        (Request(), "10.64.0.1:53/udp,10.64.0.1:53", True),
        (Request("http", "health.example"), "10.64.0.1:53/udp", False),
        (Request("http", "health.example", 9000), "10.64.0.1:53/udp", True),
    ],
)
def test_a_check_of_all_is_not_for_services_of_udp_alone(check: Request, vips: str, *, is_checked: bool) -> None:
    """Their servers need not listen on TCP at that port, so all would fail; their own check, or another port, stays."""
    (found,) = read_services(Options(service=(f"dns={vips}",), consul="", check=check))
    assert (found.check is not None, found.health.checked) == (is_checked, is_checked)
    own = 'check = "tcp"\n'
    file = decode(WEB.replace("10.64.0.1:80", "10.64.0.1:53/udp").encode() + own.encode())
    (found,) = read_services(Options(check=check, entries=file.entries))
    assert found.check == Check()


def test_a_check_of_all_is_not_for_automatic_vips_of_udp() -> None:
    """Their protocol is that of the name."""
    names = "_dns._udp.example", "_dns._tcp.example"
    udp, tcp = read_services(Options(srv=names, check=Request()))
    assert (udp.check, udp.health.checked) == (None, False)
    assert (tcp.check, tcp.health.checked) == (Check(), True)


def test_a_check_ends_before_the_next_one_begins() -> None:
    """A timeout above the interval is an error."""
    with pytest.raises(UsageError, match="web: --check-timeout 3s is more than --check-interval 2s; raise --check-int"):
        service('check = "tcp"\ncheck-timeout = "3s"\n')


@pytest.mark.parametrize("value", ['"false"', "false"])
def test_check_verify_is_a_boolean(value: str) -> None:
    """With or without quotes, in a table and for all services."""
    content = f"check-verify = {value}\n"
    (entry,) = decode((WEB + content).encode()).entries
    assert entry.settings["check_verify"] is False
    assert decode(content.encode()).arguments == ("--check-verify=false",)


@pytest.mark.parametrize("value", ["0", '"no"', "[true]"])
def test_other_values_of_check_verify_are_refused(value: str) -> None:
    """The message names the key."""
    with pytest.raises(ValueError, match="check-verify"):
        decode(f"{WEB}check-verify = {value}\n".encode())
