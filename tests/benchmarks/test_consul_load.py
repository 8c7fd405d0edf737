"""What is read from a Consul cluster under load, and what follows for a fleet."""

from __future__ import annotations

import pytest

from benchmarks.consul_load import Cell, bytes_of, costs_of, live
from benchmarks.fleet import Costs, Fleet, load

SOCKETS = """\
ESTAB 0 0 127.0.0.1:40000 127.0.0.1:8300 users:(("consul",pid=7,fd=9)) cubic rto:204 bytes_sent:100 bytes_acked:99 bytes_received:20
ESTAB 0 0 127.0.0.1:8300 127.0.0.1:40000 users:(("consul",pid=5,fd=9)) cubic bytes_sent:20 bytes_received:100
ESTAB 0 0 127.0.0.1:40001 127.0.0.1:8300 users:(("consul",pid=5,fd=8)) cubic bytes_sent:1000 bytes_received:2000
ESTAB 0 0 127.0.0.1:40002 127.0.0.1:9000 users:(("consul",pid=7,fd=3)) cubic bytes_sent:5000 bytes_received:5000
ESTAB 0 0 127.0.0.1:40003 127.0.0.1:8300 users:(("consul",pid=77,fd=3)) cubic bytes_sent:5000
ESTAB 0 0 [::1]:40004 [::1]:8300 users:(("consul",pid=7,fd=4)) cubic bytes_sent:3
"""  # noqa: E501  # one line for each socket
HEAP = """\
heap profile: 1: 2 [3: 4] @ heap/1048576
# runtime.MemStats
# Alloc = 1
# HeapAlloc = 3145728
# HeapInuse = 9999999
# Stack = 1048576 / 2097152
"""


def test_bytes_are_those_between_agents_and_servers() -> None:
    """Sockets are counted at the agents, once, in both directions; traffic between servers and others is left out."""
    assert bytes_of(SOCKETS, [7, 8], [8300, 8301]) == 100 + 20 + 3


def test_live_memory_is_heap_and_stacks() -> None:
    """Live memory is in MiB, without the reserve of the heap."""
    assert live(HEAP) == 4


def cell(sidecars: int) -> Cell:
    """Return a measurement in which everything grows as it should."""
    return Cell(
        sidecars=sidecars,
        watches=10 * sidecars,
        goroutines=200 + 20 * sidecars,
        memory_mib=16 + sidecars / 4,
        idle_cpu_ms_a_second=30,
        idle_answers_a_second=0,
        change_cpu_ms=5 + 0.2 * sidecars,
        change_kb=3.5 * sidecars,
        felt_ms=1,
        felt_ms_worst=1,
    )


def test_an_answer_costs_the_slope_over_sidecars() -> None:
    """The cost of the change itself is not that of the sidecars."""
    costs = costs_of([cell(0), cell(100), cell(300)])
    assert costs == Costs(answer_cpu_us=200, answer_kb=3.5, watch_kib=25.6, watch_goroutines=2)


def test_a_fleet_queries_by_the_clock_and_by_changes() -> None:
    """With 20 services of each of 1,000 hosts: a query each 51 s or so, and one for each change."""
    found = load(Costs(100, 5, 32, 2), Fleet(1000, services=2000, followed=20, changes=0.01))
    assert found["watches"] == 20_000
    assert found["answers_a_second_idle"] == round(20_000 / 51.5625)
    assert found["answers_a_second_changes"] == 200
    assert found["followers_of_a_service"] == 10
    assert found["processors"] == pytest.approx((387.9 + 200) * 100e-6, abs=0.01)
    assert found["megabytes_a_second"] == pytest.approx((387.9 + 200) * 5 / 1000, abs=0.01)
    assert found["memory_gib"] == pytest.approx(20_000 * 32 / 2**20, abs=0.01)


def test_a_fleet_ten_times_as_large_is_ten_times_the_load() -> None:
    """Hosts share nothing here, so the load is proportional."""
    small, large = (load(Costs(100, 5, 32, 2), Fleet(hosts)) for hosts in (10_000, 100_000))
    for what, value in small.items():
        assert large[what] == pytest.approx(10 * value, rel=0.02), what
