"""The last good sets on disk: every written set is read again, and anything else is rejected with one reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import OptIn
from clb_discovery.model.servers import Algorithm, HealthClaim, Pools, Protocol, RealServer, pools
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.model.zones import NO_PLACES, Places
from clb_discovery.state import last_good as lastgood
from clb_discovery.state.last_good import LastGood, decode, encode
from tests.support.strategies import OPT_IN, REAL_SERVER

SERVERS = st.lists(REAL_SERVER, max_size=5).map(pools)
ZONE = st.sampled_from(["eu-1a", "eu 1b", "é" * 32])
OUT = st.sampled_from([(parse_address(f"192.0.2.{host}"), 80) for host in range(4)])


@st.composite
def places(draw: st.DrawFn, servers: Pools) -> Places:
    """Draw zones of some members, and some members that are out."""
    out = draw(st.dictionaries(OUT, st.integers(0, 65535), max_size=3))
    members = [*(server.endpoint for server in servers), *out]
    unlocated = draw(
        st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(ZONE, st.integers(0, 65535)), max_size=3)
    )
    return Places(draw(st.fixed_dictionaries({}, optional=dict.fromkeys(members, ZONE))), out, unlocated)


SET = SERVERS.flatmap(
    lambda servers: st.builds(
        LastGood,
        st.just(servers),
        st.none() | st.integers(0, 253402300799),
        st.none() | OPT_IN,
        st.fixed_dictionaries(
            {}, optional={(server.address, server.port): st.text(min_size=1, max_size=5) for server in servers}
        ),
        places(servers),
    )
)
SETS = st.dictionaries(st.text(max_size=20), SET, max_size=4)
WEB = LastGood(
    pools((RealServer(0, parse_address("10.0.0.1"), 80, 1), RealServer(7, parse_address("fd00::1"), 8080, 0))), 99
)
OPTED_IN: dict[str, Any] = {"vips": [], "automatic": [], "algorithm": None}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def is_read_or_refused(document: bytes) -> None:
    """Read a document; it may be rejected in one short line."""
    reason = ""
    try:
        decode(document)
    except ValueError as error:
        reason = str(error)
    assert "\n" not in reason
    assert len(reason) < 300


@given(SETS)
def test_what_is_written_is_read(sets: dict[str, LastGood]) -> None:
    """Every source, server and time comes back as it was."""
    assert decode(encode(sets)).sets == sets


def test_document() -> None:
    """Files on disk have this format, so it changes with its version only."""
    opt_in = OptIn(
        (parse_vip("10.64.0.1:53/udp"),), (Protocol.TCP,), Algorithm.LEAST_CONN, (), HealthClaim(None, 1_000, 0)
    )
    assert json.loads(encode({"consul:web": LastGood(Pools(), None, opt_in)}))["sources"]["consul:web"]["opt_in"] == {
        "vips": ["10.64.0.1:53/udp"],
        "automatic": ["tcp"],
        "algorithm": "least-conn",
        "connect_timeout_ms": None,
        "silent_after_ms": 1_000,
        "eject_after": 0,
        "eject_first_ms": None,
        "eject_most_ms": None,
    }
    document = (
        b'{"version":1,"sources":{"srv:web":{"answered":99,"servers":[[0,"10.0.0.1",80,1],[7,"fd00::1",8080,0]]}}}'
    )
    assert encode({"srv:web": WEB}) == document
    assert decode(document).sets == {"srv:web": WEB}


def test_identities_are_kept_beside_the_servers() -> None:
    """There is one for each server, null if unknown; a reader without them reads the remaining document."""
    identities = {WEB.servers.ipv6[0].endpoint: "node/web-1"}
    document = encode({"srv:web": WEB._replace(identities=identities)})
    written = json.loads(document)["sources"]["srv:web"]
    assert written["identities"] == [None, "node/web-1"]
    assert {key: written[key] for key in ("answered", "servers")} == json.loads(encode({"srv:web": WEB}))["sources"][
        "srv:web"
    ]
    assert decode(document).sets == {"srv:web": WEB._replace(identities=identities)}


def test_identities_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too long is dropped, not cut; if the document would be too long, all are dropped."""
    ends = [(server.address, server.port) for server in WEB.servers]
    both = WEB._replace(identities={ends[0]: "x" * 1025, ends[1]: "x" * 1024})
    assert decode(encode({"srv:web": both})).sets["srv:web"].identities == {ends[1]: "x" * 1024}
    monkeypatch.setattr(lastgood, "MAX_BYTES", len(encode({"srv:web": WEB})))
    assert decode(encode({"srv:web": both})).sets == {"srv:web": WEB}


@pytest.mark.parametrize("identities", [{}, ["a"], ["a", 1], "ab", None, ["a", "b", "c"]])
def test_wrong_identities_are_refused(identities: object) -> None:
    """Identities of another type or number are rejected."""
    servers = [[0, "10.0.0.1", 80, 1], [0, "10.0.0.2", 80, 1]]
    with pytest.raises(ValueError, match="identities"):
        decode(json.dumps({"version": 1, "sources": {"a": {"servers": servers, "identities": identities}}}).encode())


def test_zones_and_members_that_are_out_are_kept() -> None:
    """A start divides pools as before, and knows the zone of the agent; earlier documents have none of it."""
    gone = (parse_address("10.0.0.9"), 81)
    zones = {WEB.servers.ipv6[0].endpoint: "eu-1b", gone: "eu-1a"}
    zoned = WEB._replace(places=Places(zones, {gone: 7}, {"n3/web": ("eu-1a", 2)}))
    document = encode({"srv:web": zoned}, "eu-1a")
    written = json.loads(document)
    assert written["zone"] == "eu-1a"
    assert written["sources"]["srv:web"]["zones"] == [None, "eu-1b"]
    assert written["sources"]["srv:web"]["out"] == [["10.0.0.9", 81, 7, "eu-1a"]]
    assert written["sources"]["srv:web"]["unlocated"] == [["n3/web", "eu-1a", 2]]
    assert decode(document) == ({"srv:web": zoned}, "eu-1a")
    assert decode(encode({"srv:web": WEB})).sets["srv:web"].places is NO_PLACES
    assert decode(encode({"srv:web": WEB})).zone is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"zones": ["a"]},
        {"zones": ["a", 1]},
        {"zones": ["a\n", None]},
        {"out": {}},
        {"out": [["10.0.0.9", 80, 1]]},
        {"out": [["10.0.0.9", 0, 1, None]]},
        {"out": [["10.0.0.9", 80, 1, []]]},
        {"unlocated": {}},
        {"unlocated": [["n3/web", "a"]]},
        {"unlocated": [["", "a", 1]]},
        {"unlocated": [["n3/web", "", 1]]},
        {"unlocated": [["n3/web", "a", 65536]]},
    ],
)
def test_wrong_zones_are_refused(wrong: dict[str, object]) -> None:
    """Zones of another type, number or form are rejected, and so are strange members that are out."""
    servers = [[0, "10.0.0.1", 80, 1], [0, "10.0.0.2", 80, 1]]
    with pytest.raises(ValueError, match=r"zone|out|real server|weight"):
        decode(json.dumps({"version": 1, "sources": {"a": {"servers": servers, **wrong}}}).encode())
    with pytest.raises(ValueError, match="zone"):
        decode(b'{"version": 1, "sources": {}, "zone": 7}')


@given(st.binary())
def test_bytes_are_refused(document: bytes) -> None:
    """Arbitrary bytes raise ValueError and nothing else."""
    is_read_or_refused(document)


@given(ANYTHING)
def test_other_json_is_refused(found: Any) -> None:  # noqa: ANN401 - that is what it is about
    """JSON of another meaning raises ValueError, in any place of the document."""
    for document in (
        found,
        {"version": 1, "sources": found},
        {"version": found, "sources": {}},
        {"version": 1, "sources": {"a": found}},
        {"version": 1, "sources": {"a": {"answered": found, "servers": []}}},
        {"version": 1, "sources": {"a": {"answered": 1, "servers": found}}},
        {"version": 1, "sources": {"a": {"answered": 1, "servers": [found]}}},
        {"version": 1, "sources": {"a": {"servers": [], "opt_in": found}}},
        {"version": 1, "sources": {"a": {"servers": [[0, "10.0.0.1", 80, 1]], "identities": found}}},
        {"version": 1, "sources": {"a": {"servers": [[0, "10.0.0.1", 80, 1]], "identities": [found]}}},
        *(
            {"version": 1, "sources": {"a": {"servers": [], "opt_in": OPTED_IN | {key: found}}}}
            for key in ("vips", "automatic", "algorithm")
        ),
        {"version": 1, "sources": {"a": {"answered": 1, "servers": [[found, "10.0.0.1", 80, 1]]}}},
        {"version": 1, "sources": {"a": {"answered": 1, "servers": [[0, found, 80, 1]]}}},
        {"version": 1, "sources": {"a": {"answered": 1, "servers": [[0, "10.0.0.1", found, found]]}}},
    ):
        is_read_or_refused(json.dumps(document).encode())


@given(SETS, st.data())
def test_damage_is_read_or_refused(sets: dict[str, LastGood], data: st.DataObject) -> None:
    """A truncated or changed document raises ValueError, or is read as it stands now."""
    document = bytearray(encode(sets))
    for _ in range(data.draw(st.integers(0, 3))):
        document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
    is_read_or_refused(bytes(document[: data.draw(st.integers(0, len(document)))]))


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"version":1,"sources":{"a":' + b"[" * 900 + b"]" * 900 + b"}}"])
def test_nesting_is_refused(nested: bytes) -> None:
    """Neither a parser nor an error message goes deeper than the stack."""
    with pytest.raises(ValueError, match=r"it is not JSON|not a set of real servers"):
        decode(nested)


@pytest.mark.parametrize(
    "server",
    [
        [0, "10.0.0.1", 0, 1],
        [0, "10.0.0.1", 65536, 1],
        [-1, "10.0.0.1", 80, 1],
        [0, "10.0.0.1", 80, 65536],
        [0, "10.0.0.1", True, 1],
        [0, "10.0.0.1", 80.0, 1],
        [0, "host", 80, 1],
        [0, 167772161, 80, 1],
        [0, "fe80::1%eth0", 80, 1],
        [0, "10.0.0.1", 80],
    ],
)
def test_values_out_of_range_are_refused(server: list[object]) -> None:
    """Values that no discovery could return are rejected."""
    with pytest.raises(ValueError, match="is not a real server"):
        decode(json.dumps({"version": 1, "sources": {"a": {"servers": [server]}}}).encode())


def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that is too long to be read is not written, and not parsed."""
    document = encode({"srv:web": WEB})
    monkeypatch.setattr(lastgood, "MAX_BYTES", len(document) - 1)
    with pytest.raises(ValueError, match="are more than"):
        encode({"srv:web": WEB})
    with pytest.raises(ValueError, match="longer than"):
        decode(document)
