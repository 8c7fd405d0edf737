"""What is known of all services: which outcomes are news, and the line about all of them."""

from __future__ import annotations

from typing import Final

from clb_discovery.announce import Announcer
from clb_discovery.core.address import parse_address
from clb_discovery.core.lastgood import LastGood
from clb_discovery.core.model import Answer, Failure, Policy, RealServer, Service
from clb_discovery.core.spec import parse_vip
from clb_discovery.knowledge import Heard, Knowledge

SERVERS: Final = tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in range(1, 4))
NOTHING, CONTENT, BOTH, HEALTH = Heard(False, False), Heard(True, False), Heard(True, True), Heard(False, True)


def service(source: str) -> Service:
    """Return a service with a hold of 30 s."""
    return Service(source.partition(":")[2], source, (parse_vip("10.64.0.1:80"),), policy=Policy(hold=30))


def knowledge(*sources: str) -> Knowledge:
    """Return what is known at the start."""
    return Knowledge([service(source) for source in sources], Announcer())


def test_equal_content_is_no_news() -> None:
    """The same set, again or in another order, is nothing, also while what came before waits to be published."""
    found = knowledge("srv:web")
    assert found.hear("srv:web", Answer(SERVERS[:2]), 0) == BOTH
    assert found.hear("srv:web", Answer(SERVERS[:2]), 1) == NOTHING
    assert found.hear("srv:web", Answer(SERVERS), 2) == CONTENT
    for answer in (SERVERS, SERVERS[::-1]):
        assert found.hear("srv:web", Answer(answer), 3) == NOTHING


def test_first_answer_is_news_though_it_says_what_was_known() -> None:
    """Once every source has answered, what nobody names may go."""
    found = knowledge("srv:web")
    found.seed(["srv:web"], {"srv:web": SERVERS}, {})
    assert found.hear("srv:web", Answer(SERVERS), 0) == BOTH


def test_failure_is_news_for_people_alone() -> None:
    """An error shows when it begins, changes and ends, and not while it goes on."""
    found = knowledge("srv:web")
    found.hear("srv:web", Answer(SERVERS), 0)
    assert found.hear("srv:web", Failure("SERVFAIL"), 1) == HEALTH
    assert found.hear("srv:web", Failure("SERVFAIL"), 2) == NOTHING
    assert found.hear("srv:web", Failure("REFUSED"), 3) == HEALTH
    assert found.hear("srv:web", Answer(SERVERS), 4) == HEALTH


def test_held_answer_counts_when_its_time_has_come() -> None:
    """An answer that removes much shows at once, gives a deadline, and is news when that has passed."""
    found = knowledge("srv:web")
    found.hear("srv:web", Answer(SERVERS), 0)
    assert found.hear("srv:web", Answer(SERVERS[:1]), 1) == HEALTH
    assert found.hear("srv:web", Answer(SERVERS[:1]), 2) == NOTHING
    assert list(found.deadlines) == [31]
    assert not found.elapse(30.9)
    assert found.elapse(31)
    assert (list(found.deadlines), found.known) == ([], {"srv:web": LastGood(SERVERS[:1])})


def test_what_the_kernel_holds_goes_before_the_disk() -> None:
    """The disk is for what the kernel has lost; what neither has is not known."""
    found = knowledge("srv:a", "srv:b", "srv:c")
    disk = {"srv:a": LastGood(SERVERS[:1], 99), "srv:b": LastGood(SERVERS[:2], 100)}
    assert not knowledge("srv:a").seed(["srv:a"], {"srv:a": SERVERS}, disk)
    assert found.seed(["srv:a", "srv:b", "srv:c"], {"srv:a": SERVERS}, disk)
    assert found.known == {"srv:a": LastGood(SERVERS), "srv:b": LastGood(SERVERS[:2])}
    assert [following.answered_at for following in found] == [99, 100, None]
    assert not found.complete
    assert found.last_good({"srv:b": LastGood(SERVERS[:2])}) == {"srv:b": LastGood(SERVERS[:2], 100)}


def test_complete_is_more_than_tried() -> None:
    """A failure is a try; only an answer of everyone is complete."""
    found = knowledge("srv:a", "srv:b")
    found.hear("srv:a", Answer(SERVERS), 0)
    assert (found.tried, found.complete) == (False, False)
    found.hear("srv:b", Failure("SERVFAIL"), 1)
    assert (found.tried, found.complete) == (True, False)
    found.hear("srv:b", Answer(()), 2)
    assert (found.tried, found.complete) == (True, True)


def test_other_services_keep_what_is_known_of_those_that_stay() -> None:
    """What stays goes on under its new settings; what is new starts from nothing; what has gone is forgotten."""
    found = knowledge("srv:a", "srv:b")
    found.hear("srv:a", Answer(SERVERS), 0)
    assert found.adopt([service("srv:a"), service("srv:c")]) == {"srv:c"}
    assert found.known == {"srv:a": LastGood(SERVERS)}
    assert [following.service.source for following in found] == ["srv:a", "srv:c"]


def test_summary_is_one_short_line() -> None:
    """However many sources there are, and whatever their names hold, nobody gets more than a line to read."""
    found = knowledge(*(f"srv:{number}" for number in range(6)), "srv:evil\nMAINPID=1" + "x" * 1000)
    assert found.summary == "7 of 7 without any answer: srv:0, srv:1, srv:2, srv:3, and 3 more"
    for number in range(6):
        found.hear(f"srv:{number}", Answer(SERVERS), 0)
    found.hear("srv:0", Failure("SERVFAIL"), 1)
    waiting, stale = found.summary.split("; ")
    assert waiting.startswith(r"1 of 7 without any answer: srv:evil\nMAINPID=1xxx")
    assert len(waiting) < 120
    assert stale == "1 of 7 served from the last known set: srv:0"
    assert knowledge().summary == "following 0, all answered"
