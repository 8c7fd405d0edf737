"""A bar chart in plain text: measured shares beside expected ones. Pure: rows in, lines out.

    10.64.0.1:6379              weight  2,114 connects         expected  measured
      redis-1  127.0.0.11:7001      60  ############|             60.0%     59.1%

The bar shows the measured share, and the mark shows where it should end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from clb_discovery.terminal.bar import ASCII, WIDTH, Glyphs, bar

_ADDRESS: Final = 15
"""Least cells of an address. It puts the bars of charts of both families in one column."""


class Row(NamedTuple):
    """One bar and the text beside it."""

    name: str
    address: str
    weight: str
    expected: float
    """Share, 0 to 1."""
    measured: int
    """Number of connects."""


def chart(title: str, rows: Sequence[Row], glyphs: Glyphs = ASCII) -> list[str]:
    """Draw a chart with a head. Measured shares are relative to the sum of all rows."""
    total = sum(row.measured for row in rows)
    name = max(len(row.name) for row in rows)
    address = max(_ADDRESS, len(title) - 2 - name - 2, *(len(row.address) for row in rows))
    weight = max(len("weight"), *(len(row.weight) for row in rows))
    head = f"{title:<{2 + name + 2 + address}}  {'weight':>{weight}}  {f'{total:,} connects':<{WIDTH + 1}}"
    lines = [f"{head}  expected  measured"]
    for row in rows:
        share = row.measured / total if total else 0.0
        lines.append(
            f"  {row.name:<{name}}  {row.address:<{address}}  {row.weight:>{weight}}  "
            f"{bar(share, row.expected, glyphs):<{WIDTH + 1}}  {row.expected:>8.1%}  {share:>8.1%}"
        )
    return lines
