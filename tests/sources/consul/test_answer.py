"""From the health endpoint's JSON to real servers."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.core.address import parse_address
from clb_discovery.core.model import MAX_WEIGHT, Answer, OptIn, Protocol, RealServer
from clb_discovery.core.spec import parse_vip
from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.answer import (
    Check,
    Instance,
    host_names,
    parse_checks,
    parse_entries,
    parse_names,
    parse_summaries,
    read_opt_in,
    to_servers,
)

STATUSES = st.lists(st.sampled_from(["passing", "warning", "critical"]), max_size=6)


def parse(entries: object, tagged: str | None = None) -> Answer:
    """Return the answer of entries without host names."""
    return Answer(to_servers(parse_entries(entries, tagged), {}))


def entry(*statuses: str, node: object = "10.9.9.9", **service: object) -> dict[str, object]:
    """Return an entry whose Service has these fields beside an id, a port and an address."""
    return {
        "Node": {"Node": "n1", "Address": node},
        "Service": {"ID": "s1", "Address": "10.0.0.1", "Port": 80} | service,
        "Checks": [{"CheckID": f"c{number}", "Status": status} for number, status in enumerate(statuses)],
    }


def server(address: str = "10.0.0.1", port: int = 80, weight: int = 1) -> RealServer:
    """Return a real server of the first tier."""
    return RealServer(0, parse_address(address), port, weight)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (entry(), server()),
        (entry(Address="fd00::1"), server("fd00::1")),
        (entry(Address="::ffff:10.0.0.3"), server("10.0.0.3")),
        (entry(Address=""), server("10.9.9.9")),
        (entry(Address=None), server("10.9.9.9")),
        (entry(Port=1), server(port=1)),
        (entry(Port=65535), server(port=65535)),
        (entry(Weights=None), server()),
        (entry(Weights={}), server()),
        (entry(Weights={"Passing": 7}), server(weight=7)),
        (entry("warning", Weights={"Passing": 7, "Warning": 2}), server(weight=2)),
        (entry("passing", "warning", Weights={"Passing": 7}), server(weight=1)),
        (entry(Weights={"Passing": 10**9}), server(weight=MAX_WEIGHT)),
        (entry() | {"Checks": None}, server()),
    ],
)
def test_an_instance_becomes_a_real_server(given: object, expected: RealServer) -> None:
    """Service address, else the node's; the weight of its health; 1 where nothing is said."""
    assert parse([given]) == Answer((expected,))


@pytest.mark.parametrize(
    "given",
    [
        entry("critical"),
        entry("passing", "critical", "warning"),
        entry("warning", Weights={"Passing": 1, "Warning": 0}),
        entry(Weights={"Passing": 0, "Warning": 1}),
        entry(Weights={"Passing": -5}),
        entry("critical", Address="no address", Port=0, Weights="none"),
    ],
)
def test_an_instance_that_must_not_serve_is_out(given: object) -> None:
    """A critical check or a weight below 1 takes an instance out, whatever else it says."""
    assert parse([entry(), given]) == Answer((server(),))


@given(statuses=STATUSES, passing=st.integers(-2, 100_000), warning=st.integers(-2, 100_000))
def test_health_and_weight_follow_consuls_rule(statuses: list[str], passing: int, warning: int) -> None:
    """Any critical check is out; any warning gives the warning weight; below 1 is out; the rest is clamped."""
    answer = parse([entry(*statuses, Weights={"Passing": passing, "Warning": warning})])
    weight = warning if "warning" in statuses else passing
    out = "critical" in statuses or weight < 1
    assert answer.servers == (() if out else (server(weight=min(weight, MAX_WEIGHT)),))


def test_an_empty_list_is_an_empty_answer() -> None:
    """No instances is what Consul may say."""
    assert parse([]) == Answer(())


def test_duplicates_are_left_to_the_desired_state() -> None:
    """Two ids with one address and port stay two entries."""
    assert parse([entry(ID="a"), entry(ID="b")]).servers == (server(), server())


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (entry(Port=0), "the port is 0"),
        (entry(Port=65536), "the port is 65536"),
        (entry(Port=True), "the port is True"),
        (entry(Port="80"), "the port is '80'"),
        (entry(Address="redis example"), "'redis example' is no IP address"),
        (entry(Address="10.0.0.300"), "'10.0.0.300' is no IP address"),
        (entry(Address="a..b"), "'a..b' is no IP address"),
        (entry(Address="a." * 127), "is no IP address"),
        (entry(Address=f"{'a' * 64}.example"), "is no IP address"),
        (entry(Address="fe80::1%eth0"), "'fe80::1%eth0' is no IP address"),
        (entry(Address="", node=""), "'' is no IP address"),
        (entry(Address=["10.0.0.1"]), "['10.0.0.1'] is no IP address"),
        (entry(Weights={"Passing": 1.5}), "Weights.Passing is 1.5"),
        (entry(Weights=3), "Weights is 3"),
        (entry("fine"), "a check is 'fine'"),
        (entry() | {"Checks": "passing"}, "Checks is 'passing'"),
        (entry() | {"Checks": [1]}, "a check is 1"),
    ],
)
def test_an_instance_that_cannot_be_used_is_an_error(given: object, complaint: str) -> None:
    """The whole answer is refused, and the message names node, service id and value."""
    with pytest.raises(SourceError, match=re.escape(complaint)) as caught:
        parse_entries([entry(), given])
    assert "instance 's1' on node 'n1': " in str(caught.value)


@pytest.mark.parametrize(
    "given", [None, {}, "text", 1, [None], [[]], [{}], [{"Node": {}}], [{"Node": {}, "Service": 1}]]
)
def test_another_shape_is_an_error(given: object) -> None:
    """JSON that is no list of instances is refused."""
    with pytest.raises(SourceError, match="is this Consul"):
        parse_entries(given)


def test_untrusted_text_is_bounded_and_escaped() -> None:
    """A long or hostile name, address or nest of lists gives one short printable line."""
    nest: object = []
    for _ in range(900):
        nest = [nest]
    for value in ("x" * 10**6, "\x1b[2J\n", nest, {"k": "v" * 10**6}):
        with pytest.raises(SourceError) as caught:
            parse_entries([entry(ID=value, Address=value)])
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()


def test_a_host_name_stands_for_all_its_addresses() -> None:
    """Names are reported for a look-up, in lower case; each address becomes a real server of that weight and port."""
    instances = parse_entries([entry(Address="Redis.example", Weights={"Passing": 3}), entry(), entry(Address="a_b-1")])
    assert instances[0] == Instance("redis.example", 80, 3)
    assert host_names(instances) == {"redis.example", "a_b-1"}
    both = [parse_address("10.0.0.8"), parse_address("fd00::8")]
    servers = to_servers(instances, {"redis.example": both, "a_b-1": []})
    assert servers == (server("10.0.0.8", weight=3), server("fd00::8", weight=3), server())


WAN = {"wan": {"Address": "10.8.8.8", "Port": 8080}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (entry(TaggedAddresses=WAN), server("10.8.8.8", 8080)),
        (entry(TaggedAddresses={"wan": {"Address": "10.8.8.8"}}), server("10.8.8.8")),
        (entry(TaggedAddresses={"lan": {"Address": "10.8.8.8", "Port": 1}}), server()),
        (entry(TaggedAddresses=None), server()),
        (
            entry(Address="") | {"Node": {"Address": "10.9.9.9", "TaggedAddresses": {"wan": "10.7.7.7"}}},
            server("10.7.7.7"),
        ),
        (entry() | {"Node": {"Address": "10.9.9.9", "TaggedAddresses": {"wan": "10.7.7.7"}}}, server()),
        (entry(Address="") | {"Node": {"Address": "10.9.9.9", "TaggedAddresses": None}}, server("10.9.9.9")),
    ],
)
def test_a_tagged_address_is_used_where_there_is_one(given: object, expected: RealServer) -> None:
    """The service's, with its own port; else the service's plain address; else the node's tagged, then plain one."""
    assert parse([given], "wan") == Answer((expected,))


def test_a_tagged_address_is_not_used_unasked() -> None:
    """Without a name the plain address counts."""
    assert parse([entry(TaggedAddresses=WAN)]) == Answer((server(),))


def test_a_tagged_address_of_another_shape_is_an_error() -> None:
    """It is refused with node and service id."""
    with pytest.raises(SourceError, match=r"instance 's1' on node 'n1': TaggedAddresses.wan is 'x'"):
        parse([entry(TaggedAddresses={"wan": "x"})], "wan")


def test_checks_say_who_may_have_changed() -> None:
    """Node, check, service and status count; output and index do not."""
    check = {"Node": "n1", "CheckID": "c1", "ServiceName": "redis", "Status": "critical"}
    assert parse_checks([check | {"Output": "a"}]) == parse_checks([check | {"Output": "b", "ModifyIndex": 7}])
    assert parse_checks([check]) == {Check("n1", "c1", "redis", "critical")}
    assert parse_checks([{"Node": "n1"}]) == {Check("n1", "", "", "")}


@pytest.mark.parametrize("given", [None, {}, [1]])
def test_what_is_no_list_of_checks_is_an_error(given: object) -> None:
    """JSON of another shape is refused."""
    with pytest.raises(SourceError, match="is this Consul"):
        parse_checks(given)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(entries=st.lists(JSON | st.fixed_dictionaries({"Node": JSON, "Service": JSON, "Checks": JSON})) | JSON)
def test_no_json_breaks_the_parser(entries: object) -> None:
    """Any JSON gives an answer or a SourceError, nothing else; what opts in or not is no error at all."""
    assert isinstance(read_opt_in(entries), OptIn | None)
    for parse_one in (parse_checks, parse_names, parse_summaries):
        with suppress(SourceError):
            assert isinstance(parse_one(entries), frozenset)
    with suppress(SourceError):
        instances = parse_entries(entries, "wan")
        assert isinstance(to_servers(instances, dict.fromkeys(host_names(instances), ())), tuple)


INSTANCE = {"Service": {"Kind": "", "Meta": {"clb-vip": "10.64.0.1:80"}, "Tags": ["clb"]}}
PROXY = {"Service": {"Kind": "connect-proxy", "Meta": {"clb-vip": "10.64.0.2:80"}, "Tags": ["clb"]}}


def test_opt_in_is_read_from_meta_and_tags() -> None:
    """All instances count, whatever their checks say, but no proxy of Connect, which copies them from its service."""
    assert read_opt_in([INSTANCE, PROXY, entry("critical")]) == OptIn((parse_vip("10.64.0.1:80"),), (Protocol.TCP,))
    assert read_opt_in([PROXY, entry()]) is None
    assert read_opt_in([]) is None


def test_names_of_the_catalog_are_those_that_may_opt_in() -> None:
    """Tags tell for themselves; the summaries are of services whose meta opts in, in this cluster or in another."""
    tags = {"a": ["clb"], "b": ["x", "clb.vip=10.64.0.1"], "c": ["clbx", "clb.v"], "d": [], "e": None}
    assert parse_names(tags) == {"a", "b"}
    assert parse_summaries([{"Name": "m", "Tags": None}, {"Name": "far", "PeerName": "west"}, {}]) == {"m"}
    assert parse_summaries(None) == frozenset()
