"""Zones in Consul: of instances, by their meta or that of their nodes, and of the agent's own node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import MAX_WEIGHT
from clb_discovery.model.zones import NO_PLACES, Places, is_zone
from clb_discovery.sources.consul.answer import parse_entries
from clb_discovery.sources.consul.members import Known, to_answer
from clb_discovery.sources.consul.server import ConsulServer
from tests.support.fake_consul import FakeConsul, Reply


def entry(host: int, status: str = "passing", *, node: object = None, **service: object) -> dict[str, Any]:
    """Return the entry of the instance 10.0.0.HOST:80, with the meta of its node."""
    return {
        "Node": {"Node": f"n{host}", "Address": "10.9.9.9", "Meta": node},
        "Service": {"ID": f"s{host}", "Address": f"10.0.0.{host}", "Port": 80} | service,
        "Checks": [{"CheckID": "c", "Status": status}],
    }


def endpoint(host: int) -> tuple[Address, int]:
    """Return 10.0.0.HOST:80."""
    return parse_address(f"10.0.0.{host}"), 80


def answer(*entries: object, key: str | None = "zone", **names: Known) -> Answer:
    """Return the answer of entries."""
    return to_answer(parse_entries(list(entries), None, key), names)


def test_the_meta_of_an_instance_comes_before_that_of_its_node() -> None:
    """An empty one is none; a key of another name counts if it is the one of the options."""
    found = answer(
        entry(1, Meta={"zone": "a"}, node={"zone": "b"}),
        entry(2, node={"zone": "b"}),
        entry(3, Meta={"zone": ""}, node={"zone": "c"}),
        entry(4, Meta={"rack": "r1"}),
        entry(5, Meta=None, node=[]),
    )
    assert found.places == Places({endpoint(1): "a", endpoint(2): "b", endpoint(3): "c"})
    assert found.note is None
    assert answer(entry(4, Meta={"rack": "r1"}), key="rack").places.zones == {endpoint(4): "r1"}


def test_without_zones_nothing_is_read() -> None:
    """An answer is then what it was, whatever is registered."""
    found = answer(entry(1, Meta={"zone": "a\n"}), entry(2, "critical", node={"zone": "b"}), key=None)
    assert found.places is NO_PLACES
    assert found.note is None


def test_members_that_are_out_have_the_weight_with_which_they_pass() -> None:
    """Also one in maintenance; a weight that cannot be read is 1, and one of 0 is no capacity."""
    found = answer(
        entry(1, node={"zone": "a"}),
        entry(2, "critical", node={"zone": "a"}, Weights={"Passing": 7, "Warning": 1}),
        entry(3, "critical", Weights={"Passing": "x"}),
        entry(4, Weights={"Passing": 0}),
        entry(5, "warning", Weights={"Passing": 9, "Warning": 0}),
    )
    assert found.places.out == {endpoint(2): 7, endpoint(3): 1, endpoint(5): 9}
    assert found.places.zones == {endpoint(1): "a", endpoint(2): "a"}
    assert found.out == tuple(sorted(endpoint(host) for host in (2, 3, 4, 5)))


def test_members_without_known_addresses_are_registered() -> None:
    """Whether they are out, their name does not exist, or it cannot be looked up; a last known address is one."""
    last = (parse_address("10.0.0.9"),)
    names = {
        "none": Known(cause="has no address in DNS"),
        "gone": Known(cause="has no address in DNS", last=last),
        "silent": Known(cause="no answer", unread=frozenset({True})),
        "kept": Known(cause="no answer", unread=frozenset({True}), last=last),
    }

    def found(status: str) -> Places:
        """Return the places of an instance with each name, and of one without a zone."""
        weights = {"Passing": 3, "Warning": 1}
        named = [
            entry(host, status, Address=name, Weights=weights, Meta={"zone": "a"})
            for host, name in enumerate(["new", *names], 1)
        ]
        return to_answer(parse_entries([*named, entry(9, status, Address="other")], None, "zone"), names).places

    assert found("passing").unlocated == {f"n{host}/s{host}": ("a", 3) for host in (1, 2, 3, 4)}
    assert found("critical").unlocated == {f"n{host}/s{host}": ("a", 3) for host in (1, 2, 4)}
    assert found("critical").out == {(last[0], 80): 3}
    assert answer(entry(1, "critical", Address="new"), key=None).places is NO_PLACES


def test_a_shared_endpoint_is_out_only_if_all_of_its_instances_are() -> None:
    """Its zone is the lowest that is named, so that the order of the answer does not matter."""
    shared = {"Address": "10.0.0.1"}
    both = entry(1, Meta={"zone": "b"}), entry(2, "critical", **shared, Meta={"zone": "a"})
    for entries in (both, both[::-1]):
        assert answer(*entries).places == Places({endpoint(1): "a"})


@pytest.mark.parametrize("zone", ["a\n", "x" * 65, 7, ["a"], {"a": "b"}])
def test_strange_zones_are_reported_and_unknown(zone: object) -> None:
    """The instance serves; its zone may follow from its network, and that of its node does not count."""
    found = answer(entry(1, Meta={"zone": zone}, node={"zone": "b"}), entry(2, node={"zone": "b"}))
    assert [server.endpoint for server in found.servers] == [endpoint(1), endpoint(2)]
    assert found.places.zones == {endpoint(2): "b"}
    assert found.note
    assert found.note.startswith("instance 's1' on node 'n1' has the zone ")
    assert found.note.endswith("register 1 to 64 bytes of text")
    assert found.note.isprintable()
    assert len(found.note) < 300


def test_reports_about_zones_are_bounded() -> None:
    """Two are named, and the others counted."""
    found = answer(*(entry(host, Meta={"zone": "x" * 65}) for host in range(1, 9)))
    assert found.note
    assert "and 6 more" in found.note


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("eu-1a"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["zone", "Passing"]), inner, max_size=3)
    ),
)


@given(JUNK, JUNK, JUNK, st.sampled_from(["passing", "warning", "critical"]))
def test_any_meta_and_weights_leave_an_answer(node: object, meta: object, weights: object, status: str) -> None:
    """The zone is a valid one, or unknown; a weight is in range; an instance beside it is not affected."""
    found = answer(entry(1, status, node=node, Meta=meta, Weights=weights), entry(2, Meta={"zone": "b"}))
    assert found.places.zones[endpoint(2)] == "b"
    assert endpoint(2) in [server.endpoint for server in found.servers]
    assert all(is_zone(name) for name in found.places.zones.values())
    assert all(1 <= weight <= MAX_WEIGHT for weight in found.places.out.values())
    assert found.note is None or found.note.isprintable()


async def zone(*replies: Reply, key: str = "zone") -> str:
    """Return the zone of an agent that sends these replies."""
    async with FakeConsul(*replies) as consul:
        server = ConsulServer(consul.url)
        try:
            return await server.zone(key)
        finally:
            await server.close()
            assert [request.path for request in consul.asked] == ["/v1/agent/self"]


async def test_the_zone_of_the_agent_is_in_the_meta_of_its_node() -> None:
    """Under the key of the options."""
    assert await zone(Reply({"Meta": {"zone": "eu-1a", "rack": "r1"}})) == "eu-1a"
    assert await zone(Reply({"Meta": {"zone": "eu-1a", "rack": "r1"}}), key="rack") == "r1"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(status=403, body=b"Permission denied"), ["lacks agent:read", 'agent_prefix ""', "--zone NAME"]),
        (Reply(status=500, body=b"no"), ["returned 500"]),
        (Reply({"Meta": {}}), ["has no meta 'zone' of its own node", "node_meta", "--zone NAME"]),
        (Reply({"Meta": None}), ["has no meta 'zone'"]),
        (Reply([]), ["has no meta 'zone'"]),
        (Reply({"Meta": {"zone": 7}}), ["has no meta 'zone'"]),
        (Reply({"Meta": {"zone": "a\n"}}), ["has 'a\\n' as the zone", "1 to 64 bytes", "node_meta"]),
        (Reply({"Meta": {"zone": "auto"}}), ["has 'auto' as the zone"]),
    ],
)
async def test_why_the_zone_of_the_agent_is_not_known(reply: Reply, words: list[str]) -> None:
    """One sentence names the agent, the cause and the fix."""
    with pytest.raises(SourceError) as error:
        await zone(reply)
    assert all(word in str(error.value) for word in ["Consul at http://127.0.0.1", *words]), str(error.value)
