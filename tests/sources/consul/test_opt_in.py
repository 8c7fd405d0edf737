"""The claims of instances for their service: every accepted form, and one sentence about every rejected one."""

from __future__ import annotations

from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.answer import MAX_VIPS, OptIn, Refusal
from clb_discovery.model.servers import Algorithm, HealthClaim, Protocol
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sources.consul.opt_in import (
    MAX_READ,
    MAX_REFUSED,
    MAX_TEXT,
    META_HEALTH,
    Claims,
    claims,
    opt_in,
)

TEXT: Final = st.sampled_from(
    ["auto", "", ",", "10.64.0.1:80", "10.64.0.1,[fd00::1]", "10.64.0.1:0", "127.0.0.1:x", "224.0.0.1", "least-conn"]
) | st.text(max_size=8)
SAID: Final = st.builds(
    Claims,
    st.lists(TEXT.map("clb-vip={}".format), min_size=1, max_size=3).map(tuple),
    st.none() | st.sampled_from(["random", "least-conn", "best"]) | TEXT,
    st.none() | st.sampled_from(["tcp", "udp", "sctp"]),
)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT | st.sampled_from(["clb", "clb.vip=10.64.0.1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["clb-vip", "clb-algorithm", "clb-protocol", *META_HEALTH]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
)


def read(*instances: tuple[dict[str, str], list[str]]) -> OptIn | None:
    """Return the combined claims of instances with this meta and these tags."""
    return opt_in(claims(meta, tags) for meta, tags in instances)


def refusals(meta: dict[str, str], *tags: str) -> list[str]:
    """Return what was rejected of the claims of one instance."""
    found = read((meta, list(tags)))
    assert found is not None
    return [str(refused) for refused in found.refused]


@pytest.mark.parametrize(
    ("meta", "tags", "expected"),
    [
        ({"clb-vip": "10.64.0.1:6379"}, [], OptIn((parse_vip("10.64.0.1:6379"),))),
        (
            {"clb-vip": "10.64.0.1:6379, [fd00:64::1]:6379"},
            [],
            OptIn((parse_vip("10.64.0.1:6379"), parse_vip("[fd00:64::1]:6379"))),
        ),
        ({"clb-vip": "auto"}, [], OptIn((), (Protocol.TCP,))),
        ({"clb-vip": "auto", "clb-protocol": "udp"}, [], OptIn((), (Protocol.UDP,))),
        ({"clb-vip": "10.64.0.1:53", "clb-protocol": "udp"}, [], OptIn((parse_vip("10.64.0.1:53/udp"),))),
        ({"clb-vip": "10.64.0.1:53/tcp", "clb-protocol": "udp"}, [], OptIn((parse_vip("10.64.0.1:53"),))),
        (
            {"clb-vip": "auto", "clb-algorithm": "least-conn"},
            [],
            OptIn((), (Protocol.TCP,), Algorithm.LEAST_CONN),
        ),
        (
            {"clb-vip": "auto", "clb-connect-timeout": "700ms"},
            [],
            OptIn((), (Protocol.TCP,), health=HealthClaim(connect_timeout_ms=700)),
        ),
        (
            {"clb-vip": "auto", "clb-connect-timeout": "off"},
            [],
            OptIn((), (Protocol.TCP,), health=HealthClaim(connect_timeout_ms=0)),
        ),
        (
            {
                "clb-vip": "auto",
                "clb-silent-after": "1s",
                "clb-eject-after": "5",
                "clb-eject-time": "2s",
                "clb-eject-max": "30s",
            },
            [],
            OptIn((), (Protocol.TCP,), health=HealthClaim(None, 1_000, 5, 2_000, 30_000)),
        ),
        (
            {"clb-vip": "auto", "clb-silent-after": "off", "clb-eject-after": "0"},
            [],
            OptIn((), (Protocol.TCP,), health=HealthClaim(silent_after_ms=0, eject_after=0)),
        ),
        ({}, ["clb"], OptIn((), (Protocol.TCP,))),
        ({"clb-algorithm": "round-robin"}, ["x", "clb"], OptIn((), (Protocol.TCP,), Algorithm.ROUND_ROBIN)),
        ({}, ["clb.vip=10.64.0.1:6379"], OptIn((parse_vip("10.64.0.1:6379"),))),
        ({}, ["clb.vip=auto", "clb"], OptIn((), (Protocol.TCP,))),
        (
            {"clb-vip": "10.64.0.1"},
            ["clb.vip=10.64.0.2", "clb"],
            OptIn((parse_vip("10.64.0.1"), parse_vip("10.64.0.2")), (Protocol.TCP,)),
        ),
    ],
)
def test_every_form_is_read(meta: dict[str, str], tags: list[str], expected: OptIn) -> None:
    """Meta and tags opt in, alone and together."""
    assert read((meta, tags)) == expected


@pytest.mark.parametrize(
    ("meta", "tags"),
    [({}, []), ({"clb-algorithm": "random"}, []), ({"vip": "10.64.0.1"}, ["CLB", "clb.vip", "xclb.vip=10.64.0.1"])],
)
def test_other_words_do_not_opt_in(meta: dict[str, str], tags: list[str]) -> None:
    """Other meta and tags do not opt in, nor does a scheduler alone."""
    assert read((meta, tags)) is None


def test_vips_of_all_instances_add_up() -> None:
    """While instances are registered again one after the other, both VIPs are served; one without claims has none."""
    old, new = {"clb-vip": "10.64.0.1:80"}, {"clb-vip": "10.64.0.2:80"}
    assert read((old, []), ({}, []), (new, []), (new, [])) == OptIn(
        (parse_vip("10.64.0.1:80"), parse_vip("10.64.0.2:80"))
    )


@pytest.mark.parametrize(
    ("votes", "winner", "loser"),
    [
        (["random", "least-conn", "random"], Algorithm.RANDOM, "least-conn"),
        (["least-conn", "random", "least-conn"], Algorithm.LEAST_CONN, "random"),
        (["random", "least-conn"], Algorithm.LEAST_CONN, "random"),
    ],
)
def test_the_scheduler_that_most_instances_name_counts(votes: list[str], winner: Algorithm, loser: str) -> None:
    """On a tie the lower name counts; the other one is reported, and an instance without a scheduler has no vote."""
    found = read(*(({"clb-vip": "auto", "clb-algorithm": vote}, []) for vote in votes), ({"clb-vip": "auto"}, []))
    assert found is not None
    assert found.algorithm is winner
    reason = f"is outvoted by instances that register {winner}; register all of them with one"
    assert found.refused == (Refusal(f"clb-algorithm '{loser}'", reason),)


def test_the_limit_that_most_instances_name_counts() -> None:
    """On a tie the shorter one counts; the other one is reported as it was registered."""
    short, long = ({"clb-vip": "auto", "clb-connect-timeout": text} for text in ("500ms", "1m"))
    assert read((short, []), (long, [])) == OptIn(
        (),
        (Protocol.TCP,),
        refused=(
            Refusal(
                "clb-connect-timeout '1m'",
                "is outvoted by instances that register 500ms; register all of them with one",
            ),
        ),
        health=HealthClaim(connect_timeout_ms=500),
    )


@pytest.mark.parametrize(
    ("meta", "tags", "words"),
    [
        ({"clb-vip": ""}, [], ["clb-vip ''", "is not a VIP: write 10.64.0.1:6379"]),
        ({"clb-vip": "10.64.0.300"}, [], ["clb-vip '10.64.0.300'", "is not a VIP: write"]),
        ({"clb-vip": "10.64.0.1:0"}, [], ["clb-vip '10.64.0.1:0'", "a port outside 1 to 65535; omit it"]),
        ({"clb-vip": "10.64.0.1:65536"}, [], ["clb-vip '10.64.0.1:65536'", "a port outside 1 to 65535"]),
        ({"clb-vip": "10.64.0.1/sctp"}, [], ["the protocol 'sctp'", "use /tcp or /udp"]),
        ({"clb-vip": "224.0.0.1:80"}, [], ["cannot be a VIP: it is multicast; use an unused private address"]),
        ({"clb-vip": "0.0.0.0:80"}, [], ["it is unspecified"]),
        ({"clb-vip": "255.255.255.255:80"}, [], ["it is broadcast"]),
        ({"clb-vip": "[fe80::1]:80"}, [], ["it is link-local"]),
        ({"clb-vip": "AUTO"}, [], ["clb-vip 'AUTO' is not a VIP"]),
        ({"clb-vip": "10.64.0.1\n10.64.0.2"}, [], [r"clb-vip '10.64.0.1\n10.64.0.2'", "not printable; register"]),
        ({"clb-vip": "10.64.0.1\x1b[2J"}, [], [r"'10.64.0.1\x1b[2J'", "not printable"]),
        ({"clb-vip": "x" * (MAX_TEXT + 1)}, [], ["clb-vip 'xxx", "'… is longer than 512 characters"]),
        ({}, ["clb.vip=10.64.0.1:http"], ["clb.vip '10.64.0.1:http'", "is not a VIP"]),
        ({}, [f"clb.vip={'9' * 10_000}"], ["clb.vip '999", "is longer than 512 characters"]),
        (
            {"clb-vip": "auto", "clb-algorithm": "best"},
            [],
            ["clb-algorithm 'best' is not a scheduler; register one of"],
        ),
        ({"clb-vip": "auto", "clb-algorithm": "\x07" * 999}, [], [r"clb-algorithm '\x07\x07", "is not a scheduler"]),
        (
            {"clb-vip": "auto", "clb-connect-timeout": "1h"},
            [],
            ["clb-connect-timeout '1h' is outside 200ms to 2m, or off"],
        ),
        (
            {"clb-vip": "auto", "clb-silent-after": "2d"},
            [],
            ["clb-silent-after '2d' is not a duration; register 30s", ", or off"],
        ),
        ({"clb-vip": "auto", "clb-silent-after": "25h"}, [], ["clb-silent-after '25h' is outside 1ms to 24h, or off"]),
        ({"clb-vip": "auto", "clb-eject-after": "-1"}, [], ["clb-eject-after '-1' is not a number from 0 to 1000000"]),
        ({"clb-vip": "auto", "clb-eject-after": "9" * 9999}, [], ["clb-eject-after '999"]),
        ({"clb-vip": "auto", "clb-eject-time": "0s"}, [], ["clb-eject-time '0s' is outside 1ms to 24h"]),
        (
            {"clb-vip": "auto", "clb-eject-time": "2m", "clb-eject-max": "1m"},
            [],
            ["clb-eject-time 120000ms is more than clb-eject-max 60000ms; register a shorter one"],
        ),
        (
            {"clb-vip": "auto", "clb-protocol": "sctp"},
            [],
            ["clb-protocol 'sctp' is not a protocol; register tcp or udp"],
        ),
    ],
)
def test_what_is_wrong_is_named(meta: dict[str, str], tags: list[str], words: list[str]) -> None:
    """Key, value, cause and fix are in one short line."""
    (reason,) = refusals(meta, *tags)
    assert all(word in reason for word in words), reason
    assert reason.isprintable()
    assert len(reason) < 500


def test_what_is_right_beside_it_counts() -> None:
    """An invalid VIP does not remove any other."""
    found = read(({"clb-vip": "10.64.0.1:80,10.64.0.300,auto"}, []))
    assert found is not None
    assert (found.vips, found.automatic) == ((parse_vip("10.64.0.1:80"),), (Protocol.TCP,))
    assert len(found.refused) == 1


def test_of_too_many_vips_those_that_most_instances_name_count() -> None:
    """One instance cannot displace the VIPs of others, however often it repeats its own."""
    common: list[Any] = [({"clb-vip": f"10.64.9.{host}"}, []) for host in range(MAX_VIPS)] * 2
    rogue: Any = (
        {},
        [f"clb.vip=10.64.1.{host},10.64.1.{host},10.64.1.{host}" for host in range(MAX_VIPS)],
    )
    found = read(*common, rogue)
    assert found == read(rogue, *common)
    assert found is not None
    assert found.vips == tuple(parse_vip(f"10.64.9.{host}") for host in range(MAX_VIPS))


def test_reading_is_bounded() -> None:
    """For any number of instances and VIPs, parsing is bounded, and the most frequent VIPs are parsed."""
    common: list[Any] = [({"clb-vip": "10.64.9.9"}, [])] * 2
    found = read(*common, *(({}, [f"clb.vip=10.{one}.{two}.1" for two in range(256)]) for one in range(64, 128)))
    assert found is not None
    assert parse_vip("10.64.9.9") in found.vips
    assert len(found.vips) == MAX_VIPS
    unread = 64 * 256 + 1 - MAX_READ
    assert found.refused == (
        Refusal(f"{unread} VIPs", f"are more than the {MAX_READ} that are read for one service; register fewer"),
    )


def test_vips_and_reports_are_bounded() -> None:
    """One service cannot fill the kernel, the log or the status."""
    many = [({"clb-vip": f"10.64.1.{host}"}, [f"clb.vip=x{host}"]) for host in range(MAX_VIPS + 1)]
    found = read(*many)
    assert found is not None
    assert len(found.vips) == MAX_VIPS
    assert len(found.refused) == MAX_REFUSED
    assert (
        Refusal(
            f"{MAX_VIPS + 1} VIPs", f"are more than {MAX_VIPS}; those that most instances name count; register fewer"
        )
        in found.refused
    )


@given(st.lists(st.none() | SAID, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_instances_does_not_matter(instances: list[Claims | None], random: Random) -> None:
    """Consul may return instances in any order."""
    shuffled = list(instances)
    random.shuffle(shuffled)
    assert opt_in(shuffled) == opt_in(instances)


@given(st.lists(SAID, min_size=1, max_size=6))
def test_whatever_opts_in_is_applied_or_refused(instances: list[Claims]) -> None:
    """A service that opts in has a VIP, or a report that explains why not."""
    found = opt_in(instances)
    assert found is not None
    assert found.vips or found.automatic or found.refused
    assert list(found.vips) == sorted(set(found.vips))
    assert all(parse_vip(str(vip)) == vip for vip in found.vips)
    assert all(len(str(refused)) < 700 for refused in found.refused)


@given(JSON, JSON)
def test_any_json_is_read(meta: object, tags: object) -> None:
    """Any JSON opts in or does not, without an error."""
    found = claims(meta, tags)
    assert opt_in([found]) is None or found is not None
