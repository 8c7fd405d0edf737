"""From the health endpoint's JSON to real servers."""

from __future__ import annotations

import re
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.answer import Answer, OptIn
from clb_discovery.model.servers import MAX_WEIGHT, Protocol, RealServer, Unread
from clb_discovery.model.service import RemovalPolicy
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sources.consul.answer import (
    MAX_NAMES,
    MAX_REPORTS,
    Check,
    parse_checks,
    parse_entries,
    parse_names,
    parse_summaries,
)
from clb_discovery.sources.consul.members import BOTH, Known, to_answer
from clb_discovery.state.guard import Guarded, admit

STATUSES = st.lists(st.sampled_from(["passing", "warning", "critical"]), max_size=6)


def parse(entries: object, tagged: str | None = None, **names: Known) -> Answer:
    """Return the answer of entries, with the state of host names (`_` for their dots)."""
    return to_answer(parse_entries(entries, tagged), {name.replace("_", "."): known for name, known in names.items()})


def endpoint(address: str = "10.0.0.1", port: int = 80) -> tuple[Address, int]:
    """Return an endpoint."""
    return parse_address(address), port


def entry(*statuses: str, node: object = "10.9.9.9", **service: object) -> dict[str, object]:
    """Return an entry whose Service has these fields besides an ID, a port and an address."""
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
    """The service's address, else the node's; the weight of its health; 1 if no weight is given."""
    assert parse([given]).servers == (expected,)


@pytest.mark.parametrize(
    "given",
    [
        entry("critical"),
        entry("passing", "critical", "warning"),
        entry("warning", Weights={"Passing": 1, "Warning": 0}),
        entry(Weights={"Passing": 0, "Warning": 1}),
        entry(Weights={"Passing": -5}),
        entry("critical", "strange", Weights="none"),
    ],
)
def test_an_instance_that_must_not_serve_is_out(given: dict[str, dict[str, object]]) -> None:
    """A critical check or a weight below 1 takes an instance out by its name, even if the entry is malformed."""
    given["Service"] |= {"ID": "s2", "Port": 81}
    answer = parse([entry(), given])
    assert answer == Answer(
        (server(),), out=(endpoint(port=81),), identities={endpoint(): "n1/s1", endpoint(port=81): "n1/s2"}
    )


@pytest.mark.parametrize(
    "given", [entry("critical", Port=0), entry("critical", Address="a b"), entry("critical") | {"Service": 1}]
)
def test_an_instance_that_is_out_may_have_any_address(given: object) -> None:
    """An instance that is out is neither a server nor reported; without others the answer is empty, not an error."""
    assert replace(parse([entry(), given]), out_members=()) == parse([entry()])
    assert replace(parse([given]), out_members=()) == Answer(())


def test_an_endpoint_of_two_instances_is_usable_if_one_of_them_is() -> None:
    """A passing instance takes precedence over a critical one, and gives the endpoint its identity; then the lower."""
    answer = parse([entry("critical", ID="a"), entry(ID="c"), entry(ID="b"), entry("critical", ID="d")])
    assert answer == Answer((server(), server()), identities={endpoint(): "n1/b"})


@given(statuses=STATUSES, passing=st.integers(-2, 100_000), warning=st.integers(-2, 100_000))
def test_health_and_weight_follow_consuls_rule(statuses: list[str], passing: int, warning: int) -> None:
    """Any critical check is out; any warning gives the warning weight; below 1 is out; higher values are clamped."""
    answer = parse([entry(*statuses, Weights={"Passing": passing, "Warning": warning})])
    weight = warning if "warning" in statuses else passing
    out = "critical" in statuses or weight < 1
    assert answer.servers == (() if out else (server(weight=min(weight, MAX_WEIGHT)),))
    assert answer.out == ((endpoint(),) if out else ())


def test_an_empty_list_is_an_empty_answer() -> None:
    """An empty list is a valid answer."""
    assert parse([]) == Answer(())


def test_duplicates_are_left_to_the_desired_state() -> None:
    """Two IDs with one address and port stay two entries."""
    assert parse([entry(ID="a"), entry(ID="b")]).servers == (server(), server())


UNUSABLE = [
    (entry(Port=0), "has the port 0; register one from 1 to 65535"),
    (entry(Port=65536), "has the port 65536"),
    (entry(Port=True), "has the port True"),
    (entry(Port="80"), "has the port '80'"),
    (entry(Port=None), "has the port None"),
    (
        entry(Address="http://10.1.1.1"),
        "has the address 'http://10.1.1.1', which is neither an IP address nor a host name; ",
    ),
    (entry(Address="10.1.1.1:8080"), "has the address '10.1.1.1:8080'"),
    (entry(Address="10.1.1.1 "), "has the address '10.1.1.1 '"),
    (entry(Address="$(id)"), "has the address '$(id)'"),
    (entry(Address="redis example"), "has the address 'redis example'"),
    (entry(Address="10.0.0.300"), "has the address '10.0.0.300'"),
    (entry(Address="a..b"), "has the address 'a..b'"),
    (entry(Address="a." * 127), "which is neither an IP address"),
    (entry(Address=f"{'a' * 64}.example"), "which is neither an IP address"),
    (entry(Address="fe80::1%eth0"), "has the address 'fe80::1%eth0'"),
    (entry(Address="", node=""), "has the address ''"),
    (entry(Address=["10.0.0.1"]), "has the address ['10.0.0.1']"),
    (entry(Weights={"Passing": 1.5}), "has 1.5 as Weights.Passing; register an integer"),
    (entry(Weights={"Passing": True}), "has True as Weights.Passing"),
    (entry(Weights=3), "has 3 as Weights instead of an object"),
    (entry("fine"), "has a check with status 'fine' instead of passing, warning or critical"),
    (entry() | {"Checks": "passing"}, "has 'passing' as Checks instead of a list"),
    (entry() | {"Checks": [1]}, "has 1 as one of its Checks"),
    (entry() | {"Checks": [{}]}, "has a check with status None"),
]


@pytest.mark.parametrize(("given", "complaint"), UNUSABLE, ids=[complaint for _, complaint in UNUSABLE])
def test_an_instance_that_cannot_be_used_is_left_out_alone(given: object, complaint: str) -> None:
    """The others count, and the report names node, service ID and value; without others it is an error."""
    other = entry("passing", Address="10.0.0.2", ID="s2")
    answer = parse([given, other])
    assert answer.servers == (server("10.0.0.2"),)
    (report,) = answer.left_out
    assert report.value == "instance 's1' on node 'n1'"
    assert report.reason.startswith(complaint) or complaint in report.reason
    with pytest.raises(UnusableError, match=re.escape(complaint)):
        parse([given])
    assert parse([given, entry("critical", ID="s3")]).servers == ()


@pytest.mark.parametrize(
    "given", [None, [], {}, 7, {"Node": {}}, {"Node": {}, "Service": 1}, {"Service": {}, "Node": 1}]
)
def test_an_entry_of_another_shape_is_left_out_alone(given: object) -> None:
    """An entry that is not an instance is left out, too."""
    answer = parse([given, entry()])
    assert answer.servers == (server(),)
    assert "is this Consul?" in str(answer.left_out)
    with pytest.raises(UnusableError, match="no instance can be used: instance "):
        parse([given])


@pytest.mark.parametrize("given", [None, {}, "text", 1])
def test_another_shape_of_the_whole_is_an_error(given: object) -> None:
    """JSON that is not a list is rejected."""
    with pytest.raises(SourceError, match="is this Consul"):
        parse_entries(given)


def test_untrusted_text_is_bounded_and_escaped() -> None:
    """A long or malicious name, address or nested list gives one short printable line, and a bounded identity."""
    nest: object = []
    for _ in range(900):
        nest = [nest]
    for value in ("x" * 10**6, "\x1b[2J\n", "\u2028\u202e", nest, {"k": "v" * 10**6}):
        answer = parse([entry(), entry(ID=value, Address=value) | {"Node": {"Node": value}}])
        (report,) = map(str, answer.left_out)
        assert len(report) < 500
        assert report.isprintable()
        identities = parse([entry(ID=value) | {"Node": {"Node": value}}]).identities.values()
        assert all(len(identity) <= 255 and identity.isprintable() for identity in identities)


def test_reports_are_bounded() -> None:
    """Of many unusable instances the first are reported, in any order of the entries, and the number of the others."""
    bad = [entry(ID=f"s{number:03}", Port=0) for number in range(4200)]
    reports = parse([entry(), *bad]).left_out
    assert reports == parse([*reversed(bad), entry()]).left_out
    assert len(reports) == MAX_REPORTS + 1
    assert str(reports[-1]) == f"{4200 - MAX_REPORTS} more instances cannot be used either; correct those first"


@given(
    pairs=st.lists(
        st.tuples(st.text("a/~\n\\%é", min_size=1), st.text("a/~\n\\%é", min_size=1)),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_each_pair_of_node_and_service_id_has_an_identity_of_its_own(pairs: list[tuple[str, str]]) -> None:
    """Identities are unique, so that no registration can take the place of another one."""
    identities = {
        identity
        for node, own in pairs
        for identity in parse([entry(ID=own) | {"Node": {"Node": node}}]).identities.values()
    }
    assert len(identities) == 2


def test_an_instance_without_a_name_has_no_identity() -> None:
    """It serves, but it has no identity."""
    assert parse([entry(ID="")]) == parse([entry() | {"Node": {}}]) == Answer((server(),))


EIGHT = parse_address("10.0.0.8")
EIGHT_V6 = parse_address("fd00::8")


def test_a_host_name_stands_for_all_its_addresses() -> None:
    """Names are looked up in lower case; each address becomes a real server with that weight, port and identity."""
    entries = [
        entry(Address="Redis.example", Weights={"Passing": 3}),
        entry(ID="s2"),
        entry("critical", Address="a_b-1"),
    ]
    assert parse_entries(entries).host_names == {"redis.example", "a_b-1"}
    answer = parse(entries, redis_example=Known((EIGHT, EIGHT_V6), last=(EIGHT, EIGHT_V6)))
    assert answer.servers == (server("10.0.0.8", weight=3), server("fd00::8", weight=3), server())
    assert answer.identities == {endpoint("10.0.0.8"): "n1/s1", endpoint("fd00::8"): "n1/s1", endpoint(): "n1/s2"}
    assert (answer.unread, answer.left_out, answer.out) == ((), (), ())


@pytest.mark.parametrize(
    ("known", "families", "unread", "reported"),
    [
        (Known(cause="no answer", unread=BOTH), BOTH, [None], True),
        (Known(cause="no answer", unread=BOTH, last=(EIGHT,)), BOTH, [None], True),
        (Known(cause="no answer", unread=BOTH), frozenset({True}), [True], True),
        (Known((EIGHT,), cause="SERVFAIL", unread=frozenset({False}), last=(EIGHT,)), BOTH, [False], True),
        (Known((EIGHT,), cause="SERVFAIL", unread=frozenset({False}), last=(EIGHT,)), frozenset({True}), [], False),
        (Known(cause="SERVFAIL", unread=frozenset({False})), frozenset({True}), [], True),
        (Known(cause="has no address in DNS"), BOTH, [], True),
        (Known((EIGHT,), surplus=300, last=(EIGHT,)), BOTH, [], True),
        (None, BOTH, [None], True),
    ],
)
def test_a_host_name_that_cannot_be_looked_up(
    known: Known | None, families: frozenset[bool], unread: list[bool | None], *, reported: bool
) -> None:
    """Its instance keeps its last addresses in families whose look-up failed, unless the name certainly has none.

    Families that no virtual server has are ignored.
    """
    entries = [entry(), entry(ID="s2", Address="a.example", Weights={"Passing": 3})]
    answer = to_answer(parse_entries(entries), {} if known is None else {"a.example": known}, families)
    assert list(answer.unread) == [Unread("n1/s2", None, 0, 3, family) for family in unread]
    assert bool(answer.left_out) is reported
    addresses = known.addresses if known else ()
    assert answer.servers == (server(), *(RealServer(0, address, 80, 3) for address in addresses))
    if reported:
        (report,) = map(str, answer.left_out)
        assert report.startswith("instance 's2' on node 'n1' has the host name 'a.example' as its address, which ")


def test_only_host_names_that_certainly_have_no_address_are_an_error() -> None:
    """A name whose look-up failed keeps its last addresses, so that the answer is not an error."""
    entries = [entry(Address="a.example")]
    assert parse(entries, a_example=Known(cause="no answer", unread=BOTH)).servers == ()
    with pytest.raises(UnusableError, match=r"'a\.example' as its address, which cannot be looked up: has no address"):
        parse(entries, a_example=Known(cause="has no address in DNS"))


def test_a_critical_instance_with_a_host_name_is_out_where_it_was_last() -> None:
    """Its name's last addresses are out, also while the name cannot be looked up."""
    entries = [entry(), entry("critical", ID="s2", Address="a.example")]
    answer = parse(entries, a_example=Known(cause="no answer", unread=BOTH, last=(EIGHT,)))
    assert (answer.out, answer.unread, answer.left_out) == ((endpoint("10.0.0.8"),), (), ())


@pytest.mark.parametrize("given", [{"Address": "a.example"}, {"Address": "$(id)"}, {"Port": 0}], ids=str)
def test_a_critical_instance_is_out_by_its_name_where_nobody_can_tell_its_endpoint(given: dict[str, object]) -> None:
    """For example after a registration with invalid fields, or with a name that cannot be looked up."""
    entries = [entry(Port=port, ID=f"s{port}") for port in (81, 82, 83)]
    before = parse(entries)
    lost = [entry("critical", **{"ID": f"s{port}", "Port": port, **given}) for port in (81, 82)]
    answer = parse([*lost, entries[2]])
    assert (answer.out, answer.out_members) == ((), ("n1/s81", "n1/s82"))
    state = admit(admit(Guarded(), before, RemovalPolicy(), 0), answer, RemovalPolicy(), 1)
    assert tuple(state.good) == answer.servers


def test_a_name_that_cannot_be_looked_up_is_not_out_where_another_instance_serves_by_it() -> None:
    """For example an instance with a new ID, while the old one turns critical and waits for its removal."""
    names = {"a.example": Known((parse_address("10.0.0.1"),), last=(parse_address("10.0.0.1"),))}
    old, new = entry("critical", ID="a", Address="a.example"), entry(ID="b", Address="a.example")
    serving = to_answer(parse_entries([old, new]), names)
    assert (serving.out, [*serving.identities.values()]) == ((), ["n1/b"])
    lost = {"a.example": Known((), 0, "SERVFAIL", BOTH, (parse_address("10.0.0.1"),))}
    answer = to_answer(parse_entries([old, new, entry(ID="c", Address="10.0.0.2")]), lost)
    assert answer.out == ()
    state = admit(admit(Guarded(), serving, RemovalPolicy(max_removal=0), 0), answer, RemovalPolicy(hold=0), 1)
    assert {server.address for server in state.good} == {parse_address("10.0.0.1"), parse_address("10.0.0.2")}


def test_names_of_one_service_are_bounded() -> None:
    """Only the lowest names are looked up; instances with other names are reported."""
    entries = [entry(ID=f"s{number}", Address=f"h{number:04}.example") for number in range(MAX_NAMES + 1)]
    reading = parse_entries([entry(), *entries])
    assert len(reading.host_names) == MAX_NAMES
    answer = to_answer(reading, dict.fromkeys(reading.host_names, Known((EIGHT,))))
    (report,) = map(str, answer.left_out)
    assert f"'h{MAX_NAMES}.example'" in report


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
    """The service's, with its port; else the service's plain address; else the node's tagged, then plain address."""
    assert parse([given], "wan").servers == (expected,)


def test_a_tagged_address_is_not_used_unasked() -> None:
    """Without the option the plain address counts."""
    assert parse([entry(TaggedAddresses=WAN)]).servers == (server(),)


@pytest.mark.parametrize("given", [{"wan": "x"}, "wan", {"wan": {"Address": 7}}])
def test_an_instance_with_a_tagged_address_of_another_shape_is_left_out(given: object) -> None:
    """It is reported with node and service ID."""
    answer = parse([entry(ID="s2"), entry(TaggedAddresses=given)], "wan")
    assert answer.servers == (server(),)
    assert str(answer.left_out[0]).startswith("instance 's1' on node 'n1' has ")


def test_checks_name_the_services_that_may_have_changed() -> None:
    """Node, check, service and status count; output and index do not."""
    check = {"Node": "n1", "CheckID": "c1", "ServiceName": "redis", "Status": "critical"}
    assert parse_checks([check | {"Output": "a"}]) == parse_checks([check | {"Output": "b", "ModifyIndex": 7}])
    assert parse_checks([check]) == {Check("n1", "c1", "redis", "critical")}
    assert parse_checks([{"Node": "n1"}]) == {Check("n1", "", "", "")}


@pytest.mark.parametrize("given", [None, {}, [1]])
def test_what_is_no_list_of_checks_is_an_error(given: object) -> None:
    """JSON of any other shape is rejected."""
    with pytest.raises(SourceError, match="is this Consul"):
        parse_checks(given)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(entries=st.lists(JSON | st.fixed_dictionaries({"Node": JSON, "Service": JSON, "Checks": JSON})) | JSON)
def test_no_json_breaks_the_parser(entries: object) -> None:
    """Any JSON gives an answer or a SourceError, and no other error."""
    for parse_one in (parse_checks, parse_names, parse_summaries):
        with suppress(SourceError):
            assert isinstance(parse_one(entries), frozenset)
    with suppress(SourceError):
        assert isinstance(parse(entries, "wan"), Answer)


PATHS = [
    (),
    *((part,) for part in ("Node", "Service", "Checks")),
    *(("Node", key) for key in ("Node", "Address", "TaggedAddresses")),
    *(("Service", key) for key in ("ID", "Address", "Port", "Weights", "Meta", "Tags", "Kind", "TaggedAddresses")),
    *(("Service", "Weights", key) for key in ("Passing", "Warning")),
    *(("Service", "TaggedAddresses", *path) for path in (["wan"], ["wan", "Address"], ["wan", "Port"])),
    *(("Checks", *path) for path in ([0], [0, "Status"], [0, "CheckID"])),
]


@given(path=st.sampled_from(PATHS), value=JSON, tagged=st.sampled_from([None, "wan"]))
def test_no_part_of_an_entry_changes_what_others_give(path: tuple[str | int, ...], value: object, tagged: str) -> None:
    """Whatever one registration contains in any part, the answer has all others as it would without that one."""
    whole: dict[str | int, Any] = {
        "entry": entry("passing", Address="10.0.0.9", TaggedAddresses=deepcopy(WAN), Weights={})
    }
    part: Any = whole
    for key in ("entry", *path)[:-1]:
        part = part[key]
    part[("entry", *path)[-1]] = value
    others = [
        entry("passing", ID="s2", Port=82),
        entry("warning", ID="s3", Port=83),
        entry("critical", ID="s4", Port=84),
    ]
    alone, answer = parse(others, tagged), parse([others[0], whole["entry"], *others[1:]], tagged)
    assert set(alone.servers) <= set(answer.servers)
    assert len(answer.servers) <= len(alone.servers) + 1
    assert set(alone.out) <= set(answer.out)
    assert alone.identities.items() <= answer.identities.items()
    assert all(str(report).isprintable() and len(str(report)) < 500 for report in answer.left_out)


INSTANCE = {"Service": {"Kind": "", "Meta": {"clb-vip": "10.64.0.1:80"}, "Tags": ["clb"]}}
PROXY = {"Service": {"Kind": "connect-proxy", "Meta": {"clb-vip": "10.64.0.2:80"}, "Tags": ["clb"]}}


def test_opt_in_is_read_from_meta_and_tags() -> None:
    """All instances count, whatever their checks are, but not proxies of Connect, which copy their service's claims."""
    assert parse_entries([INSTANCE, PROXY, entry("critical")]).opt_in == OptIn(
        (parse_vip("10.64.0.1:80"),), (Protocol.TCP,)
    )
    assert parse_entries([PROXY, entry()]).opt_in is None
    nodes = {"Node": {"Node": "n"}}
    found = parse_entries(
        [
            INSTANCE,
            {**nodes, "Service": {**INSTANCE["Service"], "ID": "1"}},
            {**nodes, "Service": {"ID": "2"}},
            {**nodes, "Service": {**PROXY["Service"], "ID": "3"}},
        ]
    )
    assert found.opt_in is not None
    assert found.opt_in.instances == {"n/1", "n/2"}
    assert parse_entries([]).opt_in is None


def test_names_of_the_catalog_are_those_that_may_opt_in() -> None:
    """Tags are in the list itself; the summaries are of services whose meta opts in, of this cluster or a peer."""
    tags = {"a": ["clb"], "b": ["x", "clb.vip=10.64.0.1"], "c": ["clbx", "clb.v"], "d": [], "e": None}
    assert parse_names(tags) == {"a", "b"}
    assert parse_summaries([{"Name": "m", "Tags": None}, {"Name": "far", "PeerName": "west"}, {}]) == {"m"}
    assert parse_summaries(None) == frozenset()
