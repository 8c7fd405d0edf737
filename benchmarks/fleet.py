"""The load of a fleet of sidecars on the servers of Consul, computed from the costs of an answer and of a watch."""

from __future__ import annotations

from typing import Final, NamedTuple

from clb_discovery.sources.consul.blocking import WAIT

JITTER: Final = 1 / 32
"""Consul adds a random part of up to a sixteenth of the wait."""


class Costs(NamedTuple):
    """The costs for all servers together."""

    answer_cpu_us: float
    answer_kb: float
    watch_kib: float
    watch_goroutines: float


class Fleet(NamedTuple):
    """Hosts and services; each host follows some of these at random."""

    hosts: int
    services: int = 2_000
    """All services of the fleet."""
    followed: int = 20
    """Services that a host follows."""
    changes: float = 1 / 600
    """Changes of one service per second."""


def load(costs: Costs, fleet: Fleet) -> dict[str, float]:
    """Return the load of a fleet for all servers together; `stale` queries are spread over them."""
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
