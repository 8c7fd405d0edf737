"""When a server that fails is probed, and what follows from each probe. No clock, no sockets."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout import elements
from clb_discovery.layout.elements import Change, ChangeKind, Server, Steering
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.health.cases import (
    DOUBT,
    FIRST_WITHIN,
    LEASE,
    MOST_RECALLED,
    SECOND,
    Cases,
    Kind,
    News,
    Terms,
    endpoint_of,
)
from tests.support.plane import real

TERMS = Terms(5 * SECOND, 60 * SECOND)
NOW = 1_000 * SECOND
HEALTHY = elements.unpack_server(elements.NEW_SERVER)
SILENCE = Steering(0, 0)


def member(server: str, vip: str = "10.64.0.1:80") -> bytes:
    """Return a packed member."""
    return elements.pack_member(elements.pack_vip(parse_vip(vip)), real(server))


ONE, TWO = member("10.0.0.1:80"), member("10.0.0.2:80")
SHARED = member("10.0.0.1:80", "10.64.0.2:80")
AT_ONE = endpoint_of(ONE)


def report(kind: ChangeKind, time: int = NOW, in_row: int = 1) -> Change:
    """Return a report of the programs."""
    return Change(time, 7, 1, kind, in_row, 3)


class World:
    """Cases with the least random pauses, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.cases = Cases(lambda: 1.0)
        self.now = NOW

    def heard(
        self, kind: ChangeKind, at: int | None = None, *, of: bytes = ONE, terms: Terms | None = TERMS
    ) -> list[News]:
        """Take a report; return what follows."""
        return list(self.cases.heard(of, terms, report(kind, self.now if at is None else at), self.now))

    def due(self) -> list[bytes]:
        """Return the endpoints to probe now."""
        return self.cases.due(self.now, 99)

    def probed(self, is_up: bool | None, *, reached: bool = True, took: int = 0) -> list[News]:
        """End the probe of the first endpoint; return what follows."""
        began, self.now = self.now, self.now + took
        news = list(self.cases.probed(AT_ONE, is_up, began, self.now, reached=reached))
        self.cases.release(AT_ONE, self.now)
        return news

    def wait(self) -> int:
        """Wait for the next probe, which has to be due; return how long that took."""
        due = self.cases.next_due
        assert due is not None
        waited, self.now = max(0, due - self.now), max(self.now, due)
        assert self.due() == [AT_ONE]
        return waited


@pytest.fixture
def world() -> World:
    """Return a world without cases."""
    return World()


def kinds(news: list[News]) -> list[Kind]:
    """Return what has happened."""
    return [one.kind for one in news]


def test_a_suspect_is_probed_at_once_and_cleared(world: World) -> None:
    """A server that answers is back from the moment at which the probe began; that was no ejection."""
    assert kinds(world.heard(ChangeKind.SUSPECT, NOW - 1)) == [Kind.SUSPECTED]
    assert world.cases.next_due == 0
    assert world.due() == [AT_ONE]
    (news,) = world.probed(True, took=5)
    assert (news.kind, news.verdict) == (Kind.CLEARED, Steering(NOW, 0))
    assert world.cases.next_due is None
    assert ONE not in world.cases


def test_a_probe_that_began_before_the_failure_counts_from_its_end(world: World) -> None:
    """Otherwise the programs would take the failure as the later word."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.heard(ChangeKind.SUSPECT, NOW + 3, of=SHARED)
    assert [one.verdict for one in world.probed(True, took=5)] == [Steering(NOW + 5, 0)] * 2


@pytest.mark.parametrize("is_up", [True, False])
def test_a_probe_that_ended_before_the_failure_decides_nothing(world: World, *, is_up: bool) -> None:
    """The report was heard first, because the conclusion had to wait for the maps; another probe comes soon."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    assert kinds(world.heard(ChangeKind.EJECTED, NOW + 7)) == [Kind.EJECTED]
    assert world.probed(is_up, took=5) == []
    assert ONE in world.cases.out
    assert world.wait() <= FIRST_WITHIN[1] + 2
    assert kinds(world.probed(True)) == [Kind.RETURNED]


def test_a_server_that_passes_and_fails_again_is_doubtful(world: World) -> None:
    """It may lose packets, so one answer proves nothing, until it has been well for two minutes."""
    assert not world.cases.is_doubtful(AT_ONE, world.now)
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.probed(True)
    assert world.cases.is_doubtful(AT_ONE, world.now + DOUBT - 1)
    assert not world.cases.is_doubtful(AT_ONE, world.now + DOUBT)


def test_doubt_lasts_while_a_doubtful_server_fails(world: World) -> None:
    """Otherwise a server that loses packets would be back by chance after each time out of service."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.probed(True)
    world.now += SECOND
    world.heard(ChangeKind.SUSPECT)
    world.due()
    for _ in range(10):
        world.probed(False)
        world.wait()
        assert world.cases.is_doubtful(AT_ONE, world.now)


def test_a_server_that_only_fails_is_not_doubtful(world: World) -> None:
    """One connect that succeeds shows that it is back."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.probed(False)
    assert not world.cases.is_doubtful(AT_ONE, world.now)


def test_a_suspect_that_does_not_answer_is_ejected(world: World) -> None:
    """It stays out for three intervals, is probed after each, and each failure renews that; intervals double."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    (news,) = world.probed(False, took=SECOND)
    assert (news.kind, news.failed_probe) == (Kind.EJECTED, True)
    assert news.verdict == Steering(world.now, world.now + LEASE * 5 * SECOND)
    for interval in (5, 10, 20, 40, 60, 60):
        assert world.wait() == interval * SECOND
        (news,) = world.probed(False, took=SECOND)
        longer = min(2 * interval, 60)
        assert (news.kind, news.verdict) == (
            Kind.STAYS_OUT,
            Steering(world.now, world.now + LEASE * longer * SECOND),
        )
    world.wait()
    (news,) = world.probed(True)
    assert (news.kind, news.verdict, news.out_for) == (Kind.RETURNED, Steering(world.now, 0), world.now - NOW)


@pytest.mark.parametrize(("is_up", "reached"), [(False, False), (None, True), (None, False)])
def test_without_evidence_there_is_no_verdict(world: World, is_up: bool | None, reached: bool) -> None:
    """A server that was never reached, and an error of this host, leave a suspect to the programs."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    (news,) = world.probed(is_up, reached=reached)
    assert (news.kind, news.verdict) == (Kind.UNKNOWN, None)
    assert world.cases.next_due is None


@pytest.mark.parametrize(("is_up", "reached"), [(False, False), (None, True)])
def test_without_evidence_an_ejected_server_is_probed_on(world: World, is_up: bool | None, reached: bool) -> None:
    """It may be reached one day; meanwhile the programs probe by connects of applications."""
    world.heard(ChangeKind.EJECTED)
    world.wait()
    assert world.probed(is_up, reached=reached) == []
    assert world.wait() == 5 * SECOND
    assert kinds(world.probed(True)) == [Kind.RETURNED]


def test_an_ejection_by_the_programs_is_probed_within_a_second(world: World) -> None:
    """Not at once: its cause may last for a moment."""
    (news,) = world.heard(ChangeKind.EJECTED)
    assert (news.kind, news.probe_in, news.failed_probe) == (Kind.EJECTED, FIRST_WITHIN[1], False)
    assert world.due() == []
    assert world.wait() == FIRST_WITHIN[1] < SECOND
    (news,) = world.probed(False)
    assert news.kind is Kind.STAYS_OUT


def test_a_return_by_itself_is_told(world: World) -> None:
    """A connect of an application has succeeded; the running probe then changes nothing."""
    world.heard(ChangeKind.EJECTED)
    world.wait()
    (news,) = world.heard(ChangeKind.RETURNED, NOW + 3 * SECOND)
    assert (news.kind, news.out_for, news.verdict) == (Kind.RETURNED, 3 * SECOND, None)
    assert world.probed(False) == []


@pytest.mark.parametrize("kind", [ChangeKind.EJECTED, ChangeKind.SUSPECT])
def test_a_failure_from_before_the_verdict_is_late(world: World, kind: ChangeKind) -> None:
    """The later word counts, as in the programs."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.probed(True, took=SECOND)
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.probed(False, took=SECOND)
    assert world.heard(kind, world.now - 1) == []


def test_a_return_from_before_the_verdict_counts_in_pools_without_checks(world: World) -> None:
    """The programs heed a verdict on a server that they have not put out only in pools with checks."""
    for terms, counts in ((TERMS._replace(checked=True), False), (TERMS, True)):
        world.heard(ChangeKind.SUSPECT, terms=terms)
        world.due()
        world.probed(False, took=SECOND)
        assert (kinds(world.heard(ChangeKind.RETURNED, world.now - 1, terms=terms)) == [Kind.RETURNED]) is counts
        assert (ONE in world.cases) is not counts
        world.heard(ChangeKind.RETURNED, world.now + 1)
        assert ONE not in world.cases


def test_one_ejection_is_told_once(world: World) -> None:
    """More failed connects to it, which were on their way, are no news, and do not delay the probe."""
    assert kinds(world.heard(ChangeKind.SUSPECT)) == [Kind.SUSPECTED]
    assert kinds(world.heard(ChangeKind.EJECTED, NOW + 1)) == [Kind.EJECTED]
    assert world.heard(ChangeKind.EJECTED, NOW + 2) == []
    assert world.due() == [AT_ONE]
    assert kinds(world.probed(False, took=3)) == [Kind.STAYS_OUT]


def test_a_server_that_is_out_and_fails_again_is_probed_at_once(world: World) -> None:
    """The programs have taken it back, because the verdict came late or its lease was over."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.probed(False, took=SECOND)
    assert world.heard(ChangeKind.SUSPECT, world.now + 1) == []
    assert world.due() == [AT_ONE]


def test_one_probe_answers_for_all_virtual_servers(world: World) -> None:
    """A server in two pools is probed once at a time; one that is not to be probed is not concerned."""
    world.heard(ChangeKind.SUSPECT)
    assert world.due() == [AT_ONE]
    world.heard(ChangeKind.SUSPECT, of=SHARED)
    world.heard(ChangeKind.EJECTED, of=member("10.0.0.1:80", "10.64.0.3:80"), terms=None)
    assert world.due() == []
    news = world.probed(False)
    assert {one.member for one in news} == {ONE, SHARED}
    assert kinds(news) == [Kind.EJECTED] * 2


def test_a_server_that_is_needed_recalls_those_that_are_out(world: World) -> None:
    """They are probed at once, as often as one a second, and their intervals and leases stay as they are."""
    world.heard(ChangeKind.EJECTED)
    world.wait()
    world.probed(False)
    world.wait()
    world.probed(False)
    world.now += SECOND
    assert world.due() == []
    for waited in (0, SECOND, SECOND):
        (news,) = world.heard(ChangeKind.NEEDED, of=TWO)
        assert (news.kind, news.member, news.verdict) == (Kind.NEEDED, TWO, None)
        assert world.wait() == waited
        (news,) = world.probed(False)
        assert news.verdict == Steering(world.now, world.now + LEASE * 10 * SECOND)
    world.now += 9 * SECOND
    assert world.due() == []
    world.now += SECOND
    assert world.due() == [AT_ONE]


def test_a_server_whose_checks_have_no_say_any_more_is_recalled(world: World) -> None:
    """Its next probe is soon, with no longer interval after it; one that is not probed, or not out, is left alone."""
    world.heard(ChangeKind.EJECTED)
    world.heard(ChangeKind.EJECTED, of=TWO, terms=None)
    world.wait()
    world.probed(is_up=False)
    for each in (ONE, TWO, SHARED):
        world.cases.recall(each, world.now)
    assert world.wait() == SECOND
    (news,) = world.probed(is_up=False)
    assert news.probe_in == TERMS.first


def test_a_recall_concerns_one_virtual_server(world: World) -> None:
    """Those that are out for another one are not needed there."""
    world.heard(ChangeKind.EJECTED, of=SHARED)
    world.heard(ChangeKind.NEEDED, of=ONE)
    assert world.due() == []
    world.heard(ChangeKind.NEEDED, of=member("10.0.0.9:80", "10.64.0.2:80"))
    assert world.due() == [AT_ONE]
    assert kinds(world.probed(True)) == [Kind.RETURNED]


def test_large_pools_are_recalled_a_part_at_a_time(world: World) -> None:
    """Those that were not probed for longest come first, so each one has its turn."""
    many = [member(f"10.0.1.{number}:80") for number in range(MOST_RECALLED + 10)]
    for one in many:
        world.heard(ChangeKind.EJECTED, of=one)
    seen: list[bytes] = []
    for _ in range(2):
        world.heard(ChangeKind.NEEDED, of=TWO)
        found = world.cases.due(world.now, 999)
        for endpoint in found:
            assert list(world.cases.probed(endpoint, False, world.now, world.now, reached=True))
            world.cases.release(endpoint, world.now)
        seen += found
        world.now += 1
    assert len(seen) == len(set(seen)) == len(many)


@pytest.mark.parametrize("terms", [TERMS, None])
def test_a_recall_costs_no_more_in_a_larger_pool(world: World, terms: Terms | None) -> None:
    """A failing pool reports once a second, and may have thousands of servers that are out."""
    others = [member(f"10.1.{number // 250}.{1 + number % 250}:80") for number in range(20 * MOST_RECALLED)]

    def calls() -> int:
        """Return the number of functions that one report calls, when it has been taken once."""
        found = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal found
            found += event in {"call", "c_call"}

        world.heard(ChangeKind.NEEDED, of=TWO, terms=terms)
        sys.setprofile(count)
        try:
            world.heard(ChangeKind.NEEDED, of=TWO, terms=terms)
        finally:
            sys.setprofile(None)
        return found

    for one in others[: 2 * MOST_RECALLED]:
        world.heard(ChangeKind.EJECTED, of=one, terms=terms)
    before = calls()
    for one in others[2 * MOST_RECALLED :]:
        world.heard(ChangeKind.EJECTED, of=one, terms=terms)
    assert calls() == before


def test_servers_that_are_not_probed_have_lines_only(world: World) -> None:
    """Without suspicion the programs alone eject and take back."""
    (news,) = world.heard(ChangeKind.EJECTED, terms=None)
    assert (news.kind, news.probe_in) == (Kind.EJECTED, None)
    assert world.cases.next_due is None
    world.cases.retime(ONE, TERMS)
    assert world.due() == [AT_ONE]
    world.cases.retime(ONE, None)
    assert world.probed(False) == []
    assert kinds(world.heard(ChangeKind.RETURNED, NOW + 1)) == [Kind.RETURNED]


def test_servers_that_only_checks_keep_out_are_theirs(world: World) -> None:
    """They log that, and look after it."""
    checked, said = TERMS._replace(checked=True), Steering(NOW - 1, NOW + SECOND)
    assert list(world.cases.found(ONE, checked, HEALTHY, said, NOW)) == []
    assert ONE not in world.cases


def test_a_probe_without_conclusions_is_repeated(world: World) -> None:
    """The maps could not be used: the case is not forgotten."""
    world.heard(ChangeKind.SUSPECT)
    world.due()
    world.cases.release(AT_ONE, world.now)
    assert world.wait() == 5 * SECOND


def test_checks_that_bring_a_server_back_end_its_case_unless_it_has_failed_since(world: World) -> None:
    """The later word counts: a report that is newer than the decision of the checks stays."""
    world.heard(ChangeKind.EJECTED, NOW)
    assert not world.cases.overrule(ONE, NOW - 1)
    assert ONE in world.cases
    assert world.cases.overrule(ONE, NOW + 1)
    assert ONE not in world.cases
    assert world.cases.overrule(ONE, NOW + 1)


def test_a_server_that_nothing_ejects_any_more_has_returned(world: World) -> None:
    """Its virtual server has other settings; a suspect was never out."""
    world.heard(ChangeKind.EJECTED, NOW)
    world.heard(ChangeKind.SUSPECT, NOW, of=TWO)
    (returned,) = world.cases.end(ONE, NOW + 7 * SECOND)
    assert (returned.kind, returned.out_for) == (Kind.RETURNED, 7 * SECOND)
    assert returned.verdict == Steering(NOW + 7 * SECOND, 0)
    assert kinds(list(world.cases.end(TWO, NOW))) == [Kind.CLEARED]
    assert list(world.cases.end(ONE, NOW)) == []
    assert not world.cases.members


def test_a_server_that_has_left_is_forgotten(world: World) -> None:
    """Its probes stop, and a running one has no consequences."""
    world.heard(ChangeKind.EJECTED)
    world.wait()
    world.cases.forget(ONE)
    assert world.probed(False) == []
    assert world.due() == []


def test_at_most_so_many_probes(world: World) -> None:
    """The others wait, suspects first."""
    world.heard(ChangeKind.EJECTED)
    world.now += SECOND
    world.heard(ChangeKind.SUSPECT, of=TWO)
    assert world.cases.due(world.now, 0) == []
    assert world.cases.due(world.now, 1) == [endpoint_of(TWO)]
    assert world.due() == [AT_ONE]


@pytest.mark.parametrize(
    ("server", "steering", "expected"),
    [
        (HEALTHY, SILENCE, []),
        (HEALTHY._replace(ejected_until=NOW, changed_at=NOW - 9), SILENCE, [Kind.EJECTED]),
        (HEALTHY._replace(ejected_until=NOW + 1, changed_at=NOW - 9, suspect=1), SILENCE, [Kind.SUSPECTED]),
        (HEALTHY._replace(ejected_until=NOW, changed_at=NOW - 9, suspect=1), SILENCE, []),
        (HEALTHY._replace(ejected_until=NOW, changed_at=NOW - 9), Steering(NOW - 8, 0), []),
        (HEALTHY._replace(ejected_until=NOW, changed_at=NOW - 9), Steering(NOW - 10, 0), [Kind.EJECTED]),
        (HEALTHY._replace(ejected_until=NOW, changed_at=NOW - 9, suspect=1), Steering(NOW - 8, NOW), [Kind.EJECTED]),
        (HEALTHY._replace(changed_at=NOW - 9), Steering(NOW - 10, NOW + 5), []),
    ],
)
def test_a_look_finds_those_that_are_out(
    world: World, server: Server, steering: Steering, expected: list[Kind]
) -> None:
    """The later word decides; a second look has nothing new, and one that finds it healthy ends the case."""
    assert kinds(list(world.cases.found(ONE, TERMS, server, steering, world.now))) == expected
    assert kinds(list(world.cases.found(ONE, TERMS, server, steering, world.now))) == []
    was = {Kind.EJECTED: [Kind.RETURNED], Kind.SUSPECTED: [Kind.CLEARED]}
    after = was[expected[0]] if expected else []
    assert kinds(list(world.cases.found(ONE, TERMS, HEALTHY, SILENCE, world.now))) == after


_MEMBERS = st.sampled_from([ONE, TWO, SHARED])
_REPORTS = st.tuples(st.just("report"), _MEMBERS, st.sampled_from(ChangeKind), st.integers(0, 2 * SECOND))
_PROBES = st.tuples(st.just("probe"), st.sampled_from([True, False, None]), st.booleans(), st.integers(0, SECOND))
_OTHERS = st.one_of(
    st.tuples(st.just("wait"), st.integers(0, 100 * SECOND)),
    st.tuples(st.just("forget"), _MEMBERS),
    st.tuples(st.just("overrule"), _MEMBERS),
    st.tuples(st.just("end"), _MEMBERS),
    st.tuples(st.just("retime"), _MEMBERS, st.sampled_from([None, TERMS, Terms(1, 2)])),
)


def _story(steps: list[tuple[object, ...]]) -> Iterator[tuple[Cases, list[News], int]]:
    """Play a story; yield what follows from each step."""
    cases, now, running = Cases(lambda: 0.5), NOW, list[tuple[bytes, int]]()
    for step in steps:
        news: list[News] = []
        match step:
            case ("report", bytes(of), ChangeKind() as kind, int(ago)):
                news = list(cases.heard(of, TERMS, report(kind, now - ago), now))
            case ("probe", (bool() | None) as is_up, bool(reached), int(took)):
                now += took
                if running:
                    endpoint, began = running.pop(0)
                    news = list(cases.probed(endpoint, is_up, began, now, reached=reached))
                    cases.release(endpoint, now)
                    assert all(reached and is_up is False for one in news if one.verdict and one.verdict.out_until)
            case ("wait", int(pause)):
                now += pause
            case ("forget", bytes(of)):
                cases.forget(of)
                news = [News(Kind.RETURNED, of)]
            case ("overrule", bytes(of)):
                news = [News(Kind.RETURNED, of)] * cases.overrule(of, now)
            case ("end", bytes(of)):
                news = list(cases.end(of, now))
            case ("retime", bytes(of), (None | Terms()) as terms):
                cases.retime(of, terms)
        started = cases.due(now, 2)
        assert not {endpoint for endpoint, _ in running} & set(started)
        running += [(endpoint, now) for endpoint in started]
        yield cases, news, now


@given(st.lists(st.one_of(_REPORTS, _PROBES, _OTHERS), max_size=60))
def test_in_any_order(steps: list[tuple[object, ...]]) -> None:
    """Each ejection is told once until the return, and no lease ends before the next probe has answered."""
    out: set[bytes] = set()
    for cases, news, now in _story(steps):
        for one in news:
            if one.kind is Kind.EJECTED:
                assert one.member not in out
                out.add(one.member)
            elif one.kind is Kind.STAYS_OUT:
                assert one.member in out
            elif one.kind is Kind.RETURNED:
                out.discard(one.member)
            if one.verdict and one.verdict.out_until:
                assert one.probe_in is not None
                assert one.verdict.out_until > now + 2 * one.probe_in
        assert out <= set(cases.members)
        due = cases.next_due
        assert due is None or due < now + 61 * SECOND
