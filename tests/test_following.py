"""What is said of a source: its state, and why it is not fresh."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Final

from clb_discovery.core.address import parse_address
from clb_discovery.core.desired import Rejected
from clb_discovery.core.model import Answer, Failure, Listing, OptIn, Policy, RealServer, Refused, Service
from clb_discovery.core.spec import parse_vip
from clb_discovery.following import STATES, Following

SERVERS: Final = tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in range(1, 4))


def following() -> Following:
    """Return a service that nothing is known of."""
    return Following(Service("web", "srv:web", (parse_vip("10.64.0.1:80"),), policy=Policy(hold=30)))


def shown(one: Following) -> tuple[str, bool, str | None]:
    """Return state, staleness and reason, as status shows them."""
    document = json.loads(json.dumps(one.document()))
    assert document["state"] in STATES
    return document["state"], document["stale"], document["reason"]


def test_source_that_has_never_answered_is_retrying() -> None:
    """Before the first answer there is nothing that could be stale; the reason is the error, once there is one."""
    one = following()
    assert shown(one) == ("retrying", False, "no answer yet")
    one.take(Failure("SERVFAIL"), 0)
    assert shown(one) == ("retrying", False, "SERVFAIL")
    assert one.document()["error"] == "SERVFAIL"


def test_source_that_answers_is_fresh() -> None:
    """A fresh source has no reason, and the time of its answer is known."""
    one = following()
    one.take(Answer(SERVERS), 0)
    assert shown(one) == ("fresh", False, None)
    assert one.guarded.good == SERVERS
    assert one.answered_at is not None


def test_source_that_fails_after_an_answer_is_stale() -> None:
    """An error keeps the last good set, and the reason says since when it may be out of date."""
    one = following()
    one.take(Answer(SERVERS), 0)
    one.take(Failure("SERVFAIL"), 1)
    state, stale, reason = shown(one)
    assert (state, stale) == ("retrying", True)
    assert re.fullmatch(r"stale since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: SERVFAIL", reason or "")
    assert one.guarded.good == SERVERS


def test_set_from_before_the_start_is_stale_until_the_source_answers() -> None:
    """What the disk or the kernel held is served, marked with when it was true, and guarded like any other set."""
    one = following()
    one.seed(SERVERS, 1_700_000_000)
    assert shown(one) == ("retrying", True, "stale since 2023-11-14T22:13:20Z: no answer yet")
    assert (one.guarded.good, one.answered_at) == (SERVERS, 1_700_000_000)
    one.take(Answer(()), 0)
    assert shown(one) == ("held", False, "an answer without 3 of 3 real servers has to stand for 30 s")
    one.elapse(30)
    assert shown(one) == ("fresh", False, None)


def test_set_of_unknown_age_is_stale_since_before_the_start() -> None:
    """What the kernel held without a word on disk has no time."""
    one = following()
    one.seed(SERVERS, None)
    assert shown(one) == ("retrying", True, "stale since before the start: no answer yet")
    assert one.answered_at is None


def test_held_answer_says_what_it_would_remove() -> None:
    """The reason of a held source counts what is missing, and does not change while time passes."""
    one = following()
    one.take(Answer(SERVERS), 0)
    one.take(Answer(SERVERS[:1]), 1)
    assert shown(one) == ("held", False, "an answer without 2 of 3 real servers has to stand for 30 s")
    one.elapse(20)
    assert shown(one) == ("held", False, "an answer without 2 of 3 real servers has to stand for 30 s")


def test_failure_ends_the_standing_of_a_held_answer() -> None:
    """Discovery that says "none" and then fails empties no pool, however long; it has to say so again, and stand by it.

    An agent that starts again and again says "none" each time, before it knows its services.
    """
    one = following()
    one.take(Answer(SERVERS), 0)
    one.take(Answer(()), 1)
    one.take(Failure("refused"), 2)
    one.elapse(1000)
    assert (one.deadline, one.guarded.good) == (None, SERVERS)
    one.take(Answer(()), 1001)
    one.elapse(1030)
    assert one.guarded.good == SERVERS
    one.elapse(1031)
    assert one.guarded.good == ()


VIP: Final = OptIn((parse_vip("10.64.0.1:80"),))


SERVICE: Final = Service("web", "consul:web", (), policy=Policy(hold=30))


def from_catalog() -> Following:
    """Return a service that a catalog lists."""
    return Following(SERVICE, from_catalog=True)


def test_service_that_no_longer_opts_in_is_held_and_then_left() -> None:
    """Its pool stays as it is for the hold, with its VIPs, whether it has gone or only says nothing any more."""
    one = from_catalog()
    one.take(Answer(SERVERS, VIP), 0)
    assert (shown(one), one.claims) == (("fresh", False, None), VIP)
    one.take(Answer(SERVERS), 1)
    reason = "an answer without 3 of 3 real servers has to stand for 30 s"
    assert (shown(one), one.claims, one.guarded.good) == (("held", False, reason), VIP, SERVERS)
    one.elapse(31)
    assert (one.claims, one.guarded.good, one.leaving) == (None, (), True)


def test_service_that_opts_in_again_in_time_never_left() -> None:
    """As a server does that lost its state and gets it back."""
    one = from_catalog()
    one.take(Answer(SERVERS, VIP), 0)
    one.take(Answer(()), 1)
    one.take(Answer(SERVERS, VIP), 2)
    one.elapse(100)
    assert (one.claims, one.guarded.good, one.leaving) == (VIP, SERVERS, False)


def test_failure_ends_the_standing_of_a_service_that_leaves() -> None:
    """It keeps its VIPs until it has said again that it does not opt in, and has stood by it."""
    one = from_catalog()
    one.take(Answer(SERVERS, VIP), 0)
    one.take(Answer(()), 1)
    one.take(Failure("refused"), 2)
    one.elapse(1000)
    assert (one.claims, one.guarded.good, one.leaving) == (VIP, SERVERS, False)
    one.take(Answer(()), 1001)
    one.elapse(1031)
    one.take(Failure("refused"), 1032)
    assert (one.claims, one.guarded.good, one.leaving) == (None, (), True)


def test_service_that_is_configured_now_keeps_its_servers() -> None:
    """What a catalog had fed goes on until the service answers anew; what had left starts from nothing."""
    wanted = replace(SERVICE, vips=(parse_vip("10.64.0.9:80"),))
    one = from_catalog()
    one.take(Answer(SERVERS, VIP), 0)
    now = one.reconfigured(wanted)
    assert (now.service, now.guarded.good, now.claims, now.known, now.answered) == (wanted, SERVERS, None, True, False)
    assert not now.from_catalog
    one.take(Answer(()), 1)
    one.elapse(31)
    assert one.reconfigured(wanted) == Following(wanted)


def test_what_nobody_can_use_is_an_answer_of_a_catalog() -> None:
    """Who registers nonsense keeps no sidecar from being ready; a service of the configuration does."""
    unusable = Failure("the port is 0", unusable=True)
    one, other = from_catalog(), following()
    one.take(unusable, 0)
    other.take(unusable, 0)
    assert (one.answered, other.answered) == (True, False)
    assert (one.useless, one.unusable, other.unusable) == (True, True, False)
    assert shown(one) == ("retrying", False, "the port is 0")
    one.take(Failure("refused"), 0)
    assert shown(one) == ("retrying", False, "refused")
    assert (one.useless, one.unusable) == (True, False)
    one.take(Answer(SERVERS, VIP), 0)
    assert not one.useless


def test_refusals_are_in_the_reason() -> None:
    """A VIP that is refused makes a source held; a real server that is refused does not; few are named."""
    one = from_catalog()
    one.take(Answer(SERVERS, VIP), 0)
    one.rejected = tuple(Rejected("web", server, "it is a VIP; go away", "consul:web") for server in SERVERS)
    assert shown(one)[0] == "fresh"
    one.refused = (Refused("VIP 10.64.0.1:80", "belongs to consul:a; register another one"),) * 2
    clash, server = str(one.refused[0]), "real server 10.0.0.{}:80 refused: it is a VIP; go away"
    reason = "; ".join([clash, clash, server.format(1), server.format(2), "and 1 more"])
    assert shown(one) == ("held", False, reason)


def test_names_that_cannot_be_asked_for_are_refused() -> None:
    """A catalog may list anything; what is no name of a service is told, bounded and escaped."""
    one = Following(Service("catalog", "catalog:consul", ()))
    one.take(Listing(frozenset({"web", "a/../b", "x\x1b[2J" + "y" * 300})), 0)
    assert one.listed == {"web"}
    state, _, reason = shown(one)
    assert state == "held"
    assert reason is not None
    assert "service 'a/../b' cannot be a Consul service: give 1 to 255 bytes of printable text" in reason
    assert r"service 'x\x1b[2J" in reason
    assert len(reason) < 500
