"""The names in a hosts file; nothing else in the file changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.hosts_file.block import host_name, names, with_block
from clb_discovery.layout.elements import Label
from clb_discovery.layout.installed import Published
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.own_servers import SOURCE
from clb_discovery.model.servers import Algorithm, PassiveHealth, RealServer, Vip
from clb_discovery.model.text_forms import parse_vip

ONE, TWO, SIX = map(parse_address, ("10.64.0.1", "10.64.0.2", "fd00:64::1"))
ADDRESSES = st.dictionaries(
    st.sampled_from(["redis.clb", "web.clb", "a.b.clb"]),
    st.lists(st.sampled_from([ONE, TWO, SIX]), min_size=1, unique=True).map(tuple),
)
LINES = st.lists(
    st.sampled_from(
        ["127.0.0.1 localhost", "", "# BEGIN", "10.0.0.1\thost\r", "\udcff", "# BEGIN clb-discovery other: x"]
    )
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")),
    max_size=6,
).map("\n".join)


def published(service: str, vips: list[str], *, servers: bool = True, source: str = "srv:x") -> dict[Vip, Published]:
    """Return installed virtual servers."""
    pool = (RealServer(0, ONE, 80, 1),) if servers else ()
    return {
        parse_vip(vip): Published(
            1, 1, 0, (), Algorithm.RANDOM, pool, PassiveHealth(), Label(service, source), servers={}
        )
        for vip in vips
    }


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("redis", "redis.clb"),
        ("Redis", "redis.clb"),
        ("a.b", "a.b.clb"),
        ("3-com", "3-com.clb"),
        ("a" * 63, "a" * 63 + ".clb"),
        ("a" * 64, None),
        (".".join(["a" * 50] * 5), None),
        ("", None),
        ("a..b", None),
        ("a.", None),
        ("-a", None),
        ("a-", None),
        ("my_service", None),
        ("größe", None),
        ("a b", None),
        ("a\n127.0.0.1 bank.example", None),
        ("a\n", None),
    ],
)
def test_host_names(service: str, name: str | None) -> None:
    """The name of a service becomes a host name if its labels are letters, digits and hyphens."""
    assert host_name(service) == name


def test_names_are_those_of_what_the_kernel_balances() -> None:
    """Each service has its addresses once, in both families; the self-test has no name; bad names are reported."""
    found = names(
        published("redis", ["10.64.0.1:6379", "10.64.0.1:6380", "[fd00:64::1]:6379"])
        | published("a/b", ["10.64.0.2:80"])
        | published("self-test", ["10.64.0.3:80"], source=SOURCE)
    )
    assert found.addresses == {"redis.clb": (ONE, SIX)}
    assert found.left_out == {"a/b": "use letters, digits and hyphens"}


def test_family_without_servers_has_no_name_while_the_other_has() -> None:
    """A name has the addresses with real servers, or all addresses if none has any."""
    ipv4, ipv6 = published("web", ["10.64.0.1"]), published("web", ["[fd00:64::1]"], servers=False)
    assert names(ipv4 | ipv6).addresses == {"web.clb": (ONE,)}
    assert names(ipv6).addresses == {"web.clb": (SIX,)}


@pytest.mark.parametrize(
    ("others", "addresses"),
    [
        (["10.64.0.2:6379"], None),
        (["10.64.0.1:53/udp", "[fd00:64::1]:53/udp"], (ONE, SIX)),
        (["10.64.0.1:53/udp"], (ONE,)),
    ],
)
@pytest.mark.parametrize("empty", [0, 1, 2])
@pytest.mark.parametrize("name", ["redis", "Redis"])
def test_name_of_several_services_leads_only_where_all_of_them_are(
    others: list[str], addresses: tuple[Address, ...] | None, name: str, empty: int
) -> None:
    """A client of one service never gets to another one, whichever of the pools are empty."""
    found = names(
        published("redis", ["10.64.0.1:6379", "[fd00:64::1]:6379"], servers=empty < 1, source="srv:_redis._tcp.orders")
        | published(name, others, servers=empty < 2, source="srv:_redis._tcp.users")
    )
    assert found.addresses == ({"redis.clb": addresses} if addresses else {})
    reason = "redis.clb is the name of several services at different addresses; give each a name of its own"
    assert found.left_out == ({} if addresses else {"redis": reason, name: reason})


def test_block_is_readable() -> None:
    """The block names its instance and has a line for each address."""
    assert with_block("127.0.0.1 localhost", "default", {"redis.clb": (ONE, SIX)}) == (
        "127.0.0.1 localhost\n"
        "# BEGIN clb-discovery default: written by the sidecar, changes are lost\n"
        "10.64.0.1 redis.clb\n"
        "fd00:64::1 redis.clb\n"
        "# END clb-discovery default\n"
    )


@given(LINES, LINES, ADDRESSES, ADDRESSES)
def test_the_rest_of_the_file_stays(
    before: str, after: str, first: dict[str, tuple[Address, ...]], second: dict[str, tuple[Address, ...]]
) -> None:
    """A block is replaced in its place; writing it again changes nothing; removing it restores the file."""
    before = before + "\n" if before else ""
    written = with_block(before, "default", first) + after
    if first:
        replaced = with_block(written, "default", second)
        assert replaced == with_block(before, "default", second) + after
        assert with_block(replaced, "default", second) == replaced
    assert with_block(written, "default", {}) == before + after


def test_blocks_of_two_instances_live_in_one_file() -> None:
    """An instance changes only its own block, also if its name is a prefix of another name."""
    both = with_block(with_block("", "a", {"redis.clb": (ONE,)}), "a-b", {"web.clb": (TWO,)})
    assert with_block(both, "a", {}) == with_block("", "a-b", {"web.clb": (TWO,)})
    assert with_block(both, "a-b", {}) == with_block("", "a", {"redis.clb": (ONE,)})


@pytest.mark.parametrize(
    "text",
    [
        "# BEGIN clb-discovery default: x\n10.64.0.1 redis.clb\n",
        "# END clb-discovery default\n",
        "# BEGIN clb-discovery default: x\n# END clb-discovery default\n" * 2,
        "# BEGIN clb-discovery default: x\n127.0.0.1 localhost\n" * 2 + "# END clb-discovery default\n",
        "# END clb-discovery default\n# BEGIN clb-discovery default: x\n",
    ],
)
def test_block_that_somebody_broke_is_left_alone(text: str) -> None:
    """If a mark is missing, the extent of the block is unknown: the file stays, and the error names the fix."""
    with pytest.raises(ValueError, match="or one of them twice; remove these lines"):
        with_block(text, "default", {"redis.clb": (ONE,)})
