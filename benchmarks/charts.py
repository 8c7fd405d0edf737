"""Charts as SVG text, by pure functions.

A chart has its own background and follows the reader's light or dark scheme, because inside `<img>` it inherits nothing
of the page. Its contents are also in its `desc`, for screen readers; nothing is shown by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

WIDTH: Final = 760
LABELS: Final = 264
"""Left end of the bars; names are left of it."""
VALUES: Final = 160
"""Width of the numbers right of the bars."""
ROW: Final = 28
TOP: Final = 56
BOTTOM: Final = 44
PLOT: Final = 300
"""Height of the plot area of a chart with lines."""
LEFT: Final = 64
"""Width left of the plot area, for the numbers of its axis."""
LEGEND: Final = 230
"""Width right of the plot area, for the legend."""
COLUMN: Final = 93
"""Width of a column of a grid."""
RADIUS: Final = 12
"""Of the disc of 100 % in a grid."""
STYLE: Final = """\
  .back { fill: #ffffff } .ink { fill: #1f2328 } .faint { fill: #59636e }
  .ours { fill: #0969da } .others { fill: #8c959f } .axis { stroke: #d1d9e0 } .mark { stroke: #1f2328 }
  .first { stroke: #0969da } .second { stroke: #bc4c00; stroke-dasharray: 7 4 }
  .third { stroke: #6639ba; stroke-dasharray: 2 4 }
  line, polyline { fill: none; stroke-width: 1.5 } polyline { stroke-width: 2 } .reference { stroke-dasharray: 4 3 }
  text { font: 13px system-ui, sans-serif; paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
  .title { font-size: 15px; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { stroke: #0d1117 } .back { fill: #0d1117 } .ink { fill: #f0f6fc } .faint { fill: #9198a1 }
    .ours { fill: #4493f8 } .others { fill: #656c76 } .axis { stroke: #3d444d } .mark { stroke: #f0f6fc }
    .first { stroke: #4493f8 } .second { stroke: #f0883e } .third { stroke: #ab7df8 }
  }
"""


class Bar(NamedTuple):
    """One row of a chart with bars."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    """Quartiles, if they are known."""
    is_ours: bool = False


class Span(NamedTuple):
    """One row of a chart with spans: from the usual to the worst, with a mark between."""

    name: str
    usual: float
    rare: float
    worst: float
    is_ours: bool = False


class Series(NamedTuple):
    """One line of a chart with lines."""

    name: str
    points: Sequence[tuple[float, float]]


class Column(NamedTuple):
    """One column of a grid."""

    name: str
    is_ours: bool = False


def number(value: float) -> str:
    """Return a coordinate, or a number of an axis, as text."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def text(x: float, y: float, words: str, look: str = "ink", anchor: str = "start") -> str:
    """Return a text element; `anchor` is the part of the text at x: start, middle or end."""
    return f'<text x="{number(x)}" y="{number(y)}" class="{look}" text-anchor="{anchor}">{escape(words)}</text>'


def line(start: tuple[float, float], end: tuple[float, float], look: str) -> str:
    """Return a line."""
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" class="{look}"/>'


def rectangle(x: float, y: float, width: float, height: float, look: str) -> str:
    """Return a rectangle."""
    size = f'width="{number(width)}" height="{number(height)}"'
    return f'<rect x="{number(x)}" y="{number(y)}" {size} class="{look}"/>'


def document(title: str, description: str, height: float, inside: Iterable[str]) -> str:
    """Return the whole chart."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {number(height)}" role="img" '
        'aria-labelledby="title desc">'
    )
    words = (f'<title id="title">{escape(title)}</title>', f'<desc id="desc">{escape(description)}</desc>')
    back = (rectangle(0, 0, WIDTH, height, "back"), text(16, 28, title, "ink title"))
    return "\n".join([head, *words, f"<style>\n{STYLE}</style>", *back, *inside, "</svg>", ""])


def steps(most: float) -> list[float]:
    """Return round numbers from 0 to beyond the largest value: four to eight of them."""
    rough = most / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [round(step * count, 10) for count in range(math.ceil(most / step) + 1)]


def decades(least: float, most: float) -> list[float]:
    """Return the powers of ten around these values."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _rows(names: Sequence[str], ticks: Iterable[tuple[float, str]], unit: str) -> Iterator[str]:
    bottom = TOP + ROW * len(names)
    for x, words in ticks:
        yield line((x, TOP - 6), (x, bottom), "axis")
        yield text(x, bottom + 16, words, "faint", "middle")
    yield text(LABELS, bottom + 34, unit, "faint")
    for row, name in enumerate(names):
        yield text(LABELS - 10, TOP + ROW * row + 17, name, anchor="end")


def bars(title: str, unit: str, rows: Sequence[Bar], *, reference: float | None = None) -> str:
    """Draw bars from 0, with lines over their quartiles.

    :param unit: the label of the axis.
    :param reference: a value to compare with, shown as a line.
    """
    ends = steps(max(max(row.value, row.high or 0) for row in rows))
    scale = (WIDTH - LABELS - VALUES) / ends[-1]

    def drawn(row: Bar, top: float) -> str:
        return rectangle(LABELS, top + 4, row.value * scale, ROW - 10, "ours" if row.is_ours else "others")

    def told(row: Bar, top: float) -> Iterator[str]:
        middle = top + ROW / 2 - 1
        if row.low is not None and row.high is not None:
            low, high = LABELS + row.low * scale, LABELS + row.high * scale
            yield line((low, middle), (high, middle), "mark")
            yield from (line((x, middle - 4), (x, middle + 4), "mark") for x in (low, high))
        end = LABELS + max(row.value, row.high or 0) * scale
        yield text(end + 8, top + 17, number_of(row.value) + quartiles(row))

    tops = [TOP + ROW * index for index in range(len(rows))]
    inside = chain(
        _rows([row.name for row in rows], [(LABELS + end * scale, number(end)) for end in ends], unit),
        map(drawn, rows, tops),
        [] if reference is None else [_upright(LABELS + reference * scale, len(rows))],
        *map(told, rows, tops),
    )
    described = "; ".join(f"{row.name} {number_of(row.value)}{quartiles(row)}" for row in rows)
    return document(title, f"{unit}: {described}.", TOP + ROW * len(rows) + BOTTOM, inside)


def number_of(value: float) -> str:
    """Return a value in the format of the tables."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 100 else f"{value:.4g}"


def quartiles(row: Bar) -> str:
    """Return the quartiles of a row as text, or nothing if they do not differ."""
    if row.low is None or row.high is None or row.low == row.high:
        return ""
    return f" ({number_of(row.low)} to {number_of(row.high)})"


def _upright(x: float, rows: int) -> str:
    return line((x, TOP - 6), (x, TOP + ROW * rows), "mark reference")


def spans(title: str, unit: str, rows: Sequence[Span]) -> str:
    """Draw for each row a bar from its usual value to its worst, on an axis of powers of ten."""
    ends = decades(min(row.usual for row in rows), max(row.worst for row in rows))
    lowest, width = math.log10(ends[0]), WIDTH - LABELS - VALUES

    def at(value: float) -> float:
        return LABELS + (math.log10(value) - lowest) / (math.log10(ends[-1]) - lowest) * width

    def told(row: Span) -> str:
        return " / ".join(map(number_of, row[1:4]))

    def drawn(row: Span, top: float) -> Iterator[str]:
        start, middle = at(row.usual), top + ROW / 2 - 1
        look = "ours" if row.is_ours else "others"
        yield rectangle(start, middle - 4, max(2.0, at(row.worst) - start), 8, look)
        yield line((start, middle - 8), (start, middle + 8), "mark")
        yield line((at(row.rare), middle - 5), (at(row.rare), middle + 5), "mark")
        yield text(at(row.worst) + 8, top + 17, told(row))

    inside = chain(
        _rows([row.name for row in rows], [(at(end), f"{end:,.0f}") for end in ends], unit),
        *(drawn(row, TOP + ROW * index) for index, row in enumerate(rows)),
    )
    described = "; ".join(f"{row.name} {told(row)}" for row in rows)
    return document(title, f"{unit}: {described}.", TOP + ROW * len(rows) + BOTTOM, inside)


def lines(title: str, x_unit: str, y_unit: str, series: Sequence[Series]) -> str:
    """Draw up to three lines."""
    points = [point for one in series for point in one.points]
    across, up = steps(max(x for x, _ in points)), steps(max(y for _, y in points))
    bottom, right = TOP + PLOT, WIDTH - LEGEND

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return LEFT + x / across[-1] * (right - LEFT), bottom - y / up[-1] * PLOT

    def axes() -> Iterator[str]:
        for y in up:
            height = at((0, y))[1]
            yield line((LEFT, height), (right, height), "axis")
            yield text(LEFT - 8, height + 4, number(y), "faint", "end")
        for x in across:
            yield text(at((x, 0))[0], bottom + 18, f"{x:,.0f}", "faint", "middle")
        yield text(LEFT, TOP - 10, y_unit, "faint")
        yield text(LEFT, bottom + 36, x_unit, "faint")

    def drawn(one: Series, row: int, look: str) -> Iterator[str]:
        places, height = [at(point) for point in one.points], TOP + ROW * row + 12
        yield f'<polyline points="{" ".join(f"{number(x)},{number(y)}" for x, y in places)}" class="{look}"/>'
        yield from (f'<circle cx="{number(x)}" cy="{number(y)}" r="3.5" class="ink"/>' for x, y in places)
        yield f'<polyline points="{right + 20},{height} {right + 56},{height}" class="{look}"/>'
        yield text(right + 64, height + 4, one.name)

    inside = chain(axes(), *map(drawn, series, range(3), ("first", "second", "third")))
    described = "; ".join(
        f"{one.name}: " + ", ".join(f"{number_of(y)} at {x:,.0f}" for x, y in one.points) for one in series
    )
    return document(title, f"{y_unit}, by {x_unit}. {described}.", bottom + BOTTOM, inside)


def grid(title: str, unit: str, columns: Sequence[Column], rows: Mapping[str, Sequence[float]]) -> str:
    """Draw a grid of shares in percent, each as a number with a disc of its area.

    :param unit: what they are shares of.
    :param rows: the names of rows, each with a share for every column.
    """
    top, left = TOP + ROW, WIDTH - COLUMN * len(columns)
    centres = [left + COLUMN * (place + 0.5) for place in range(len(columns))]

    def heads() -> Iterator[str]:
        for column, x in zip(columns, centres, strict=True):
            for place, words in enumerate(column.name.split(", ")):
                yield text(x, TOP - 2 + 16 * place, words, "faint", "middle")

    def drawn(name: str, shares: Sequence[float], height: float) -> Iterator[str]:
        yield line((16, height + ROW), (WIDTH - 16, height + ROW), "axis")
        yield text(16, height + 19, name)
        for column, x, share in zip(columns, centres, shares, strict=True):
            look, radius = "ours" if column.is_ours else "others", RADIUS * math.sqrt(share / 100)
            yield f'<circle cx="{number(x - 18)}" cy="{number(height + 14)}" r="{number(radius)}" class="{look}"/>'
            yield text(x + 26, height + 19, percent(share), anchor="end")

    inside = chain(
        heads(), *(drawn(name, shares, top + ROW * place) for place, (name, shares) in enumerate(rows.items()))
    )
    described = "; ".join(
        f"{name}: " + ", ".join(f"{one.name} {percent(share)}" for one, share in zip(columns, shares, strict=True))
        for name, shares in rows.items()
    )
    height = top + ROW * len(rows)
    told = text(16, height + 24, unit, "faint")
    return document(title, f"{unit}. {described}.", height + BOTTOM, chain(inside, [told]))


def percent(share: float) -> str:
    """Return a share in percent as text, with two digits; what is not zero does not look like it."""
    return f"{share:.0f}" if share >= 10 else f"{share:.2g}"
