"""`trace` for people: columns that fit the terminal, and full cells in a pipe."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from clb_discovery.documents.trace import dropped
from clb_discovery.terminal.trace import header, row

ID: Final = "3f2a1b9c0d1e" + "0" * 52
DOCUMENT: Final[dict[str, Any]] = {
    "time": "2026-01-02T03:04:05.678901Z",
    "pid": 1234567,
    "command": "redis-cli",
    "cgroup": "/system.slice/shop.service",
    "unit": "shop.service",
    "container": None,
    "service": "redis",
    "virtual_server": "10.64.0.1:6379",
    "real_server": "192.168.100.200:31001",
    "outcome": "established",
    "cause": None,
    "errno": [],
    "latency_ms": 0.21,
}
ERRORS: Final = ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH"]
WIDTHS: Final = (80, 100, 120, 160, 200, 400)
SLOWER: Final = ((0.2149, "0.21 ms"), (99.994, "99.99 ms"), (3021.4, "3021 ms"), (127_000.0, "127.0 s"))


def shown(width: int | None = 80, **changes: Any) -> str:  # noqa: ANN401 - as in JSON
    """Return the line of the document with these changes, without its time."""
    clock, _, rest = row(DOCUMENT | changes, width).partition(" ")
    assert clock.count(":") == 2
    return " ".join(rest.split())


def test_narrow_terminal() -> None:
    """80 columns have the time, the origin, the service, the real server, and the outcome with its cause."""
    assert header(80) == "TIME     FROM          SERVICE  REAL SERVER           OUTCOME"
    assert shown() == "shop.service redis 192.168.100.200:31001 established 0.21 ms"
    assert shown(outcome="failed", cause="unreachable", errno=ERRORS).endswith(" failed unreachable 0.21 ms")
    assert shown(outcome="failed", errno=ERRORS).endswith(" failed ECONNREFUSED/EHOST…")
    assert shown(outcome="refused", real_server=None, errno=["ECONNREFUSED"], latency_ms=None).endswith(
        " none refused ECONNREFUSED"
    )


def test_wide_terminal() -> None:
    """A wide terminal has every column, and nothing is shortened."""
    assert " ".join(header(400).split()) == "TIME PID COMMAND FROM SERVICE VIRTUAL SERVER REAL SERVER OUTCOME"
    assert shown(400, outcome="failed", errno=ERRORS) == (
        "1234567 redis-cli shop.service redis 10.64.0.1:6379 192.168.100.200:31001 "
        "failed ECONNREFUSED/EHOSTUNREACH/ENETUNREACH 0.21 ms"
    )


@pytest.mark.parametrize(("latency", "expected"), SLOWER)
def test_latency_has_a_fitting_unit(latency: float, expected: str) -> None:
    """Short times have hundredths of a millisecond, long ones are in seconds."""
    assert shown(latency_ms=latency).endswith(f" established {expected}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"unit": "a-long-name-of-a.service"}, "a-long-name-…"),
        ({"unit": f"docker-{ID}.scope", "container": f"docker:{ID}"}, "3f2a1b9c0d1e"),
        ({"unit": "dev:a-long-name.service"}, "dev:a-long-n…"),
        ({"unit": None, "cgroup": "/mine"}, "redis-cli"),
        ({"unit": None, "cgroup": None, "command": None}, "?"),
    ],
)
def test_origin_on_a_narrow_terminal(changes: dict[str, Any], expected: str) -> None:
    """It is the container, else the unit, else the command; of a container the id remains."""
    assert shown(**changes).startswith(f"{expected} redis ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"unit": f"docker-{ID}.scope", "container": f"docker:{ID}"}, "docker:3f2a1b9c0d1e"),
        ({"unit": None, "cgroup": "/mine\x1b[2J"}, r"/mine\x1b[2J"),
        ({"unit": "evil\u202e.service"}, r"evil\u202e.service"),
        ({"unit": None, "cgroup": None}, "?"),
    ],
)
def test_origin_in_a_pipe(changes: dict[str, Any], expected: str) -> None:
    """Without a unit and a container it is the path of the cgroup, escaped."""
    assert shown(None, **changes).split()[2] == expected


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("[fd00:64::1]:6379", "[fd00:64::1]:6379"),
        ("[2001:db8:85a3::8a2e:370:7334]:6379", "[2001:…:7334]:6379"),
        ("[2001:db8:85a3:1:2:3:4:5]:31001", "[2001:…:3:4:5]:31001"),
    ],
)
def test_ipv6_is_shortened_between_its_groups(server: str, expected: str) -> None:
    """The first group, the last groups and the port remain on a narrow terminal; a pipe has the whole address."""
    assert shown(real_server=server).split()[2] == expected
    assert server in shown(None, real_server=server)


@given(
    st.fixed_dictionaries(
        {
            "command": st.none() | st.text(max_size=15),
            "cgroup": st.none() | st.text(max_size=200),
            "unit": st.none() | st.text(max_size=200),
            "service": st.none() | st.text(max_size=255),
            "real_server": st.sampled_from([None, "10.0.0.1:80", f"[{'2001:'.rstrip(':') + ':ffff' * 7}]:65535"]),
            "virtual_server": st.sampled_from(["192.168.100.200:31001/udp", f"[{'2001' + ':ffff' * 7}]:65535/udp"]),
            "errno": st.sampled_from([[], ["EPERM"], ERRORS]),
        }
    )
)
def test_no_line_is_longer_than_the_terminal(changes: dict[str, Any]) -> None:
    """Whatever names are in a line, it fits, in characters of any width, and is printable."""
    for width in WIDTHS:
        line = row(DOCUMENT | changes, width)
        assert cell_len(line) <= width
        assert line.isprintable()
        assert cell_len(header(width)) <= width


def test_columns_are_below_their_names() -> None:
    """Each cell begins where the name of its column does."""
    for width in (*WIDTHS, None):
        line = row(DOCUMENT, width)
        for name, cell in (("FROM", "shop.service"), ("REAL SERVER", "192.168"), ("OUTCOME", "established")):
            assert line.index(cell) == header(width).index(name), width


def test_gap_is_a_sentence() -> None:
    """A line for dropped connects says what is missing."""
    assert "connects are missing here" in row(dropped(1).document(DOCUMENT["time"], None, None), 80)
