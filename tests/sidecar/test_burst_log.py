"""Of a burst of the same event the log has a few lines, and the number of the others."""

from __future__ import annotations

from structlog.testing import capture_logs

from clb_discovery.sidecar.burst_log import BURST, MOST, BurstLog


def test_lines_of_a_burst_are_counted_beyond_a_few() -> None:
    """The number comes once, when the burst is over: at the next look, or before the next line of the event."""
    now = 100.0
    log = BurstLog(lambda: now)
    with capture_logs() as lines:
        for look in (log.flush, lambda: log.info("a", x=-1)):
            lines.clear()
            for number in range(MOST + 68):
                log.info("a", x=number)
            log.flush()
            assert lines == [{"log_level": "info", "event": "a", "x": number} for number in range(MOST)]
            now += BURST
            look()
            log.flush()
            more = {"log_level": "warning", "event": "more lines left out", "of": "a", "count": 68}
            assert lines[MOST] == more
        assert lines[MOST + 1 :] == [{"log_level": "info", "event": "a", "x": -1}]


def test_events_do_not_displace_each_other() -> None:
    """A burst of one event leaves all lines of others, at each level; a few lines are no burst."""
    log = BurstLog(lambda: 0.0)
    with capture_logs() as lines:
        for _ in range(MOST + 1):
            log.info("a")
        log.warning("b")
        log.error("c")
        log.flush()
    assert [(line["event"], line["log_level"]) for line in lines[MOST:]] == [("b", "warning"), ("c", "error")]
