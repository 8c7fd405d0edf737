"""Other instances that serve the same VIPs: which of them matter, and their record."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.neighbours import Neighbour, overlaps, recorded, remembered
from clb_discovery.model.text_forms import parse_vip
from tests.support.strategies import VIP

ROOT: Final = "/sys/fs/cgroup"
SHOP: Final = "/sys/fs/cgroup/shop.slice"
WEB: Final = parse_vip("10.64.0.1:80")


@pytest.mark.parametrize(
    ("own", "other", "relation"),
    [
        (SHOP, SHOP, "same"),
        (SHOP, SHOP + "/", "same"),
        (SHOP, ROOT, "above"),
        (ROOT, SHOP, "below"),
        (ROOT, f"{SHOP}/web.service", "below"),
        (SHOP, f"{ROOT}/shop.slice2", None),
        (SHOP, f"{ROOT}/mail.slice", None),
    ],
)
def test_cgroups_that_share_processes_matter(own: str, other: str, relation: str | None) -> None:
    """An instance on the same cgroup, above or below shares processes with ours; one on a sibling cgroup does not."""
    found = overlaps(own, [WEB], [Neighbour("b", other, [WEB])])
    assert [one.relation for one in found] == ([relation] if relation else [])


@pytest.mark.parametrize(
    ("other", "overlap"),
    [
        ("10.64.0.1:80", True),
        ("10.64.0.1", True),
        ("10.64.0.1:81", False),
        ("10.64.0.1:80/udp", False),
        ("10.64.0.2:80", False),
    ],
)
def test_vips_that_one_connect_may_mean_overlap(other: str, *, overlap: bool) -> None:
    """The same address, port and protocol, or every port of the address, in both directions."""
    vip = parse_vip(other)
    assert bool(overlaps(ROOT, [WEB], [Neighbour("b", ROOT, [vip])])) is overlap
    assert bool(overlaps(ROOT, [vip], [Neighbour("b", ROOT, [WEB])])) is overlap


def test_an_overlap_is_told_on_one_line() -> None:
    """It names the other instance, its cgroup, the VIPs, the instance that decides, and the fix."""
    (found,) = overlaps(SHOP, [WEB], [Neighbour("b", ROOT, [WEB])])
    assert str(found) == (
        "instance 'b' on /sys/fs/cgroup, above ours, serves 10.64.0.1:80 as well: ours decides for the processes of "
        "our cgroup; give each instance its own VIPs"
    )
    assert found.document() == {"instance": "b", "cgroup": ROOT, "relation": "above", "vips": ["10.64.0.1:80"]}


@given(st.lists(st.builds(Neighbour, st.text(), st.text(), st.lists(VIP)), max_size=3))
def test_what_is_recorded_is_remembered(others: list[Neighbour]) -> None:
    """The record of the loader parses to the same neighbours."""
    assert remembered(recorded(others)) == others


@pytest.mark.parametrize(
    "content", [None, {}, "x", [None], [{}], [{"instance": "b", "cgroup": "/", "vips": [["zz", 1, 6]]}], [{"vips": 7}]]
)
def test_nonsense_is_nothing(content: object) -> None:
    """Entries in another format are left out."""
    assert remembered(content) == []
