"""The charts of docs/benchmarks.md: they are readable, and they show the results."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, fromstring

import pytest

from benchmarks.charts import RADIUS, STYLE, Bar, Column, Series, Span, bars, decades, grid, lines, spans, steps
from benchmarks.plot import PICTURES, growth, pictures, ratios
from benchmarks.results import kept

SVG = "{http://www.w3.org/2000/svg}"
CHARTS = {
    "bars": bars("T", "times", [Bar("direct", 1, 1, 1), Bar("ours", 2, 1.5, 2.5, is_ours=True)], reference=1),
    "spans": spans("T", "ms", [Span("ours", 50, 60, 70, is_ours=True), Span("<others> & co", 500, 900, 1000)]),
    "grid": grid("T", "percent", [Column("ours, killed", is_ours=True), Column("other")], {"reset": [0.25, 100]}),
    "lines": lines("T", "servers", "s", [Series("a", [(0, 1), (10, 2)]), Series("b", [(5, 3)])]),
}

each_chart = pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)


def drawn(chart: str) -> Element:
    """Return a chart as SVG."""
    return fromstring(chart)  # noqa: S314  # our own text


def words(chart: str) -> list[str | None]:
    """Return all text in a chart."""
    return [element.text for element in drawn(chart).iter(f"{SVG}text")]


def test_pictures_are_those_of_the_results() -> None:
    """`make bench-plots` would change no chart, and draws all that are there."""
    there = {file.name: file.read_text(encoding="utf-8") for file in PICTURES.glob("*.svg")}
    assert there.keys() == pictures(kept()).keys()
    assert there == pictures(kept())


@each_chart
def test_a_picture_can_be_read_aloud(chart: str) -> None:
    """Each chart has a title, and a description with the numbers."""
    picture = drawn(chart)
    named = picture.attrib["aria-labelledby"].split()
    found = {element.attrib.get("id"): element for element in picture}
    assert [found[name].tag.removeprefix(SVG) for name in named] == ["title", "desc"]
    assert found["title"].text == "T"
    assert re.search(r"\d", found["desc"].text or "")


@each_chart
def test_a_picture_has_its_own_background(chart: str) -> None:
    """A chart has a background in both colour schemes, because the page may have any."""
    first = next(element for element in drawn(chart) if element.tag == f"{SVG}rect")
    assert first.attrib["class"] == "back"
    assert chart.count(".back {") == 2
    assert "prefers-color-scheme: dark" in chart


@each_chart
def test_a_picture_uses_defined_styles(chart: str) -> None:
    """The style defines each class that is used."""
    used = {name for element in drawn(chart).iter() for name in element.attrib.get("class", "").split()}
    assert used <= set(re.findall(r"\.(\w+) ", STYLE))


@each_chart
def test_a_picture_stays_inside(chart: str) -> None:
    """Nothing is drawn beyond its edges."""
    picture = drawn(chart)
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    for element in picture.iter():
        for name, value in element.attrib.items():
            assert not re.fullmatch("c?x[12]?", name) or 0 <= float(value) <= width
            assert not re.fullmatch("c?y[12]?", name) or 0 <= float(value) <= height


def test_bars_are_proportional() -> None:
    """Bars start at 0."""
    widths = [
        float(bar.attrib["width"])
        for bar in drawn(CHARTS["bars"]).iter(f"{SVG}rect")
        if bar.attrib["class"] in {"ours", "others"}
    ]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.02)


def test_numbers_stand_beside_bars() -> None:
    """The numbers include quartiles if these differ."""
    assert {"1", "2 (1.5 to 2.5)"} <= set(words(CHARTS["bars"]))


def test_discs_have_the_area_of_their_share() -> None:
    """A disc of 100 % has the full radius, and a head has a line for each part of its name."""
    radii = [float(disc.attrib["r"]) for disc in drawn(CHARTS["grid"]).iter(f"{SVG}circle")]
    assert radii == pytest.approx([RADIUS / 20, RADIUS], abs=0.01)
    assert {"ours", "killed", "other", "reset", "0.25", "100"} <= set(words(CHARTS["grid"]))


def test_names_are_text() -> None:
    """Special characters in names are escaped."""
    assert "<others> & co" in words(CHARTS["spans"])


@pytest.mark.parametrize("most", [0.003, 0.9, 1, 1.5, 2.578, 99, 100, 180.5, 110000])
def test_an_axis_has_a_few_round_numbers(most: float) -> None:
    """Numbers go from 0 to beyond the largest value."""
    found = steps(most)
    assert found[0] == 0
    assert found[-2] < most <= found[-1]
    assert 4 <= len(found) <= 8


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(50, 10100, [10, 100, 1000, 10000, 100000]), (10, 10, [10, 100]), (0.5, 3, [0.1, 1, 10])],
)
def test_powers_of_ten_hold_all_values(least: float, most: float, expected: list[float]) -> None:
    """There are at least two powers."""
    assert decades(least, most) == pytest.approx(expected)


def test_ratios_are_those_that_were_measured() -> None:
    """Cases without a ratio, and those that only check the measurement, are left out."""
    measured = {
        "direct": {"x": 1.0, "low": 1.0, "high": 1.0},
        "direct again": {"x": 1.01},
        "clb-discovery, random": {"x": 1.1, "low": 1.0, "high": 1.2},
        "HAProxy, TCP": {"y": 2.0},
    }
    assert ratios(measured, "x", "low", "high") == [
        Bar("direct", 1.0, 1.0, 1.0),
        Bar("clb-discovery, random", 1.1, 1.0, 1.2, is_ours=True),
    ]


def test_growth_is_over_all_servers() -> None:
    """Lines are ordered by size, not by the order of measurements; pools of several parts are only in the table."""
    cells = [
        {"virtual": 100, "real": 10, "parts": 1, "s": 3.0},
        {"virtual": 100, "real": 10, "parts": 2, "s": 9.0},
        {"virtual": 1, "real": 10, "parts": 1, "s": 2.0},
        {"virtual": 1, "real": 1, "parts": 1, "s": 1.0},
    ]
    assert [series.points for series in growth(cells, "s")] == [[(11, 2), (1100, 3)], [(2, 1)], [(2, 1), (11, 2)]]
