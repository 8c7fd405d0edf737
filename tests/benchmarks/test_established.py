"""What is read from redis-benchmark and from /proc/stat."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.established import Run, Said, busy, parse, summary, together
from benchmarks.ways import DIRECT, HAPROXY

PRINTED = """\
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"PING_INLINE","40000.00","1.200","0.300","1.135","1.900","2.311","4.000"
"PING_MBULK","60000.00","0.900","0.200","0.815","1.300","1.7","3.000"
"""
STAT = """\
cpu  100 20 30 4000 500 6 7 80 9 1
cpu0 100 20 30 4000 500 6 7 80 9 1
intr 1
"""


def test_each_test_of_redis_benchmark_is_read() -> None:
    """Each test has its name, requests per second, and microseconds."""
    assert parse(PRINTED) == {"PING_INLINE": Said(40000, 1135, 2311), "PING_MBULK": Said(60000, 815, 1700)}


def test_requests_of_both_kinds_together() -> None:
    """Equal numbers of both kinds take the time of both: 48,000 a second, and not 50,000."""
    assert together(parse(PRINTED)) == pytest.approx(48000)


def test_busy_time_is_without_idle_and_stolen_time() -> None:
    """Idle time, waiting for disks and time of the hypervisor are left out; guests are included in the first number."""
    assert busy(STAT) == 100 + 20 + 30 + 6 + 7


def test_the_real_proc_stat_is_read() -> None:
    """The real /proc/stat grows, by no more than there are processors."""
    stat = Path("/proc/stat").read_text()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < busy(stat) <= uptime * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1) * 1.1


def test_ratios_are_those_of_the_same_round() -> None:
    """More requests per second give a ratio above 1, and so does more CPU time."""
    direct = [Run(50000, 1000, 2000, 40), Run(25000, 2000, 4000, 42), Run(50000, 1000, 2000, 44)]
    proxied = [Run(25000, 2000, 4000, 80), Run(12500, 4000, 8000, 84), Run(20000, 2500, 5000, 110)]
    found = summary({DIRECT: direct, HAPROXY: proxied})
    assert found[HAPROXY] == {
        "per_second": 20000,
        "to_direct": 0.5,
        "low": 0.4,
        "high": 0.5,
        "p50_us": 2500,
        "p99_us": 5000,
        "cpu_us": 84,
        "cpu_to_direct": 2.0,
    }
    assert found[DIRECT]["to_direct"] == 1
