"""Evaluation of what clients saw of a failure, and the rows of its tables. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from benchmarks.charts import percent

FIRST: Final = 10.0
"""Seconds after the failure that are reported by themselves."""
SLOW: Final = 0.1
HANGS: Final = 1.0
"""Seconds without a response after which a request on an open connection hangs."""
CALM: Final = 5.0
"""Seconds without a failed request at the end after which none is expected."""
PERIODS: Final = {"before": (float("-inf"), 0.0), "first": (0.0, FIRST), "after": (FIRST, float("inf"))}
Fields = Mapping[str, Any]


class Request(NamedTuple):
    """One request of a client, in seconds from the failure."""

    began: float
    took: float
    answered: bool


def counts(runs: Sequence[Sequence[Request]]) -> dict[str, float]:
    """Return how many requests there were, failed, and were slow, in each period of all runs together.

    `longest_failed_s` is how long a client waited for its failure; those that are not over at the end count until then.
    `none_fails_after_s` is the start of the last failed request, in the run where it was latest. It is left out if
    requests of any run failed until the end.
    """
    found: dict[str, float] = {}
    for period, (after, before) in PERIODS.items():
        these = [one for run in runs for one in run if after <= one.began < before]
        found[f"requests_{period}"] = len(these)
        found[f"failed_{period}"] = sum(not one.answered for one in these)
        found[f"slow_{period}"] = sum(one.answered and one.took > SLOW for one in these)
    waited = (one.took for run in runs for one in run if one.began >= 0 and not one.answered)
    found["longest_failed_s"] = round(max(waited, default=0.0), 2)
    calm = [_calm_after(run) for run in runs]
    if None not in calm:
        found["none_fails_after_s"] = round(max((one for one in calm if one), default=0.0), 1)
    return found


def _calm_after(run: Sequence[Request]) -> float | None:
    last = max((one.began for one in run), default=0.0)
    failed = max((one.began for one in run if one.began >= 0 and not one.answered), default=0.0)
    return failed if failed <= last - CALM else None


def waits(requests: Sequence[Request], connections: int) -> dict[str, float]:
    """Return how long requests on open connections had no response after the other end had vanished.

    `hanging` counts those that had none when the client ended.

    :param connections: how many the client kept.
    """
    end = max(one.began + one.took for one in requests)
    stuck = [one for one in requests if one.began + one.took > 0 and one.took > HANGS]
    hanging = [one for one in stuck if not one.answered and one.began + one.took > end - HANGS]
    found: dict[str, float] = {"connections": connections, "hung": len(stuck), "hanging": len(hanging)}
    if len(stuck) > len(hanging):
        found["longest_s"] = round(max(one.took for one in stuck if one not in hanging), 1)
    return found


def share(fields: Fields, period: str, *kinds: str) -> float:
    """Return the share of requests of these kinds (`failed`, `slow`) in a period, in percent."""
    whole = fields[f"requests_{period}"]
    return 100 * sum(fields[f"{kind}_{period}"] for kind in kinds) / whole if whole else 0.0


def shares(scenes: Mapping[str, Fields], patience: str, kind: str) -> Iterator[tuple[str, ...]]:
    """Yield rows of shares, in the first seconds and after, by scenes and systems."""
    for scene, by_patience in scenes.items():
        systems = by_patience[patience].values()
        yield (
            scene,
            *(" / ".join(percent(share(one, period, kind)) for period in ("first", "after")) for one in systems),
        )


def times(scenes: Mapping[str, Fields], patience: str) -> Iterator[tuple[str, ...]]:
    """Yield rows of the times until no request failed."""
    for scene, by_patience in scenes.items():
        found = (one.get("none_fails_after_s") for one in by_patience[patience].values())
        yield scene, *("" if one is None else f"{one:.1f} s" for one in found)


def pools(systems: Mapping[str, Fields]) -> Iterator[tuple[str, ...]]:
    """Yield rows of what happened to open connections."""
    for system, fields in systems.items():
        longest = f"{fields['longest_s']:.1f} s" if "longest_s" in fields else ""
        yield system, *(f"{fields[name]}" for name in ("connections", "hung")), longest, f"{fields['hanging']}"


def most_noise(scenes: Mapping[str, Fields]) -> tuple[float, float]:
    """Return the largest shares of failed and of slow requests before the failure, of all runs."""
    found = [fields for by_patience in scenes.values() for rows in by_patience.values() for fields in rows.values()]
    return max(share(one, "before", "failed") for one in found), max(share(one, "before", "slow") for one in found)


def patiences(scenes: Mapping[str, Fields]) -> list[str]:
    """Return the patiences that were measured."""
    return list(dict.fromkeys(patience for by_patience in scenes.values() for patience in by_patience))


def systems(scenes: Mapping[str, Fields]) -> list[str]:
    """Return the systems that were measured."""
    return list(dict.fromkeys(name for rows in scenes.values() for fields in rows.values() for name in fields))
