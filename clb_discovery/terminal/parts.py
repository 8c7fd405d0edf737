"""The parts of a pool that is put together from several, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def part_lines(server: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each part in the document of a virtual server: none if it does not list them.

    The first one may be `part 0  consul:web  share 90  3 real servers in tier 0  90.0% of connects`.
    """
    parts = server.get("parts", [])
    for number, part in enumerate(parts):
        words = [f"part {number}", part["source"] or "from an unknown source"]
        if any(other["priority"] for other in parts):
            words.append(f"priority {part['priority']}")
        if part["share"] is not None:
            words.append(f"share {part['share']}")
        yield "  ".join([*words, *_use(part)])


def _use(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a part adds to the pool now."""
    count = part["real_servers"]
    if not count:
        yield "no real servers of its own" if part["share"] is None else _without_share(part["share"])
        return
    tiers = part["tiers"]
    where = f"tier{'' if len(tiers) == 1 else 's'} {', '.join(map(str, tiers))}"
    yield f"{count:,} real server{'' if count == 1 else 's'} in {where}"
    yield f"{part['target_share']:.1%} of connects"


def _without_share(share: int) -> str:
    return "no real servers of its own, its share goes to the others" if share else "not used while others are"
