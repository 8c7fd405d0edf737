"""What a fleet of sidecars is for the servers of Consul, by what an answer and a watch cost: nothing but arithmetic."""

from __future__ import annotations

from typing import Final, NamedTuple

from clb_discovery.sources.consul.blocking import WAIT

JITTER: Final = 1 / 32
"""Consul adds up to a sixteenth of the wait by chance."""


class Costs(NamedTuple):
    """What the servers pay together."""

    answer_cpu_us: float
    answer_kb: float
    watch_kib: float
    watch_goroutines: float


class Fleet(NamedTuple):
    """Hosts and services; which of these a host follows is chance."""

    hosts: int
    services: int = 2_000
    """Of all."""
    followed: int = 20
    """Services that a host follows."""
    changes: float = 1 / 600
    """Of one service in a second."""


def load(costs: Costs, fleet: Fleet) -> dict[str, float]:
    """Return what a fleet is for all servers together; `stale` queries are spread over them."""
    watches = fleet.hosts * fleet.followed
    idle = watches / (WAIT * (1 + JITTER))
    news = watches * fleet.changes
    answers = idle + news
    return {
        "hosts": fleet.hosts,
        "watches": watches,
        "answers_a_second_idle": round(idle),
        "answers_a_second_changes": round(news),
        "followers_of_a_service": round(watches / fleet.services),
        "megabytes_a_second": round(answers * costs.answer_kb / 1000, 2),
        "processors": round(answers * costs.answer_cpu_us / 1e6, 2),
        "memory_gib": round(watches * costs.watch_kib / 2**20, 2),
    }
