"""The addresses of a plain name, for any TTLs and any sequence of answers, failures and silences; in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import dns.message
import dns.rcode
import dns.rrset
from dns.message import Message, QueryMessage
from dns.rdatatype import SRV, A
from hypothesis import example, given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import RealServer
from clb_discovery.model.service import RemovalPolicy
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.answer import JITTER
from clb_discovery.sources.dns.lookup import MAX_CNAMES
from clb_discovery.sources.dns.srv import SrvSource
from clb_discovery.state.guard import Guarded, admit
from tests.support.memory_dns import InMemory, Only
from tests.support.srv import Always

HOLD: Final = 30.0
TTLS: Final = st.integers(1, 100_000)


class Zone(InMemory):
    """Answers what `reply` returns."""

    def reply(self, name: str, kind: str) -> Sequence[str] | None:
        """Return the lines of the answer section; None for SERVFAIL."""
        raise NotImplementedError

    def respond(self, request: QueryMessage) -> Message:
        """Return the response with these lines."""
        question = request.question[0]
        response = dns.message.make_response(request, recursion_available=True)
        lines = self.reply(question.name.to_text(), question.rdtype.name)
        if lines is None:
            response.set_rcode(dns.rcode.SERVFAIL)
        for line in lines or ():
            owner, ttl, kind, data = line.split(None, 3)
            found = response.find_rrset(
                response.answer,
                dns.name.from_text(owner),
                dns.rdataclass.IN,
                dns.rdatatype.from_text(kind),
                create=True,
            )
            found.add(dns.rdata.from_text("IN", kind, data), int(ttl))
        if lines is not None and not lines:
            soa = "ns. admin. 1 3600 600 86400 100000"
            response.authority.append(dns.rrset.from_text("example.", 100_000, "IN", "SOA", soa))
        return response


class Chain(Zone):
    """A name behind CNAMEs, of which each answer has some."""

    def __init__(self, ttls: Sequence[int], cuts: Iterable[int], last: int) -> None:
        super().__init__()
        self._lines = [f"n{place}.example. {ttl} CNAME n{place + 1}.example." for place, ttl in enumerate(ttls)]
        self._cuts = frozenset(cuts)
        self._last = last

    def reply(self, name: str, kind: str) -> Sequence[str]:
        """Return the chain from this name up to the next cut, or to the address."""
        place = int(name[1 : name.index(".")])
        found = []
        for number in range(place, len(self._lines)):
            found.append(self._lines[number])
            if number in self._cuts:
                return found
        return [*found, f"n{len(self._lines)}.example. {self._last} {kind} 10.0.0.1"]


@given(
    st.lists(TTLS, max_size=MAX_CNAMES),
    st.frozensets(st.integers(0, MAX_CNAMES - 1)),
    TTLS,
    st.tuples(st.integers(1, 100), st.integers(0, 100)),
)
@example([1, 60], frozenset({0}), 60, (1, 59))
def test_smallest_ttl_of_any_chain_counts(
    cnames: Sequence[int], cuts: frozenset[int], last: int, bounds: tuple[int, int]
) -> None:
    """However the chain is spread over answers, its smallest TTL within the bounds is the wait, up to a tenth less."""
    least, most = bounds[0], bounds[0] + bounds[1]
    ttl = min([*cnames, last])
    expected = min(max(ttl, least), most)

    async def check() -> None:
        resolvers = Only(Chain(cnames, cuts, last))
        one = AddressSource("n0.example", 80, resolvers, least, most, families=(True,), rng=Always(0.5))
        clock = asyncio.get_running_loop().time
        began = clock()
        answer = await one.next()
        assert [str(server) for server in answer.servers] == ["10.0.0.1:80"]
        assert one.due is not None
        assert max(least, expected * (1 - JITTER)) <= one.due - began <= expected + (clock() - began)

    asyncio.run(check())


class Told(NamedTuple):
    """One answer of the server: the addresses of each family; None for SERVFAIL."""

    ipv4: frozenset[int] | None
    ipv6: frozenset[int] | None
    seconds: float
    """That pass before it."""


SOME: Final = st.none() | st.frozensets(st.integers(1, 5))
TOLD: Final = st.lists(st.builds(Told, SOME, SOME, st.sampled_from([1.0, HOLD / 2, HOLD])), min_size=1, max_size=10)


class Teller(Zone):
    """Returns the addresses that it was told, in another order each time."""

    def __init__(self) -> None:
        super().__init__()
        self.told = Told(None, None, 0)
        self._turn = 0

    def reply(self, name: str, kind: str) -> Sequence[str] | None:
        """Return its addresses."""
        some = self.told.ipv4 if kind == "A" else self.told.ipv6
        if some is None:
            return None
        self._turn += 1
        order = sorted(some, key=lambda number: (number * 7 + self._turn) % 5)
        form = "10.0.0.{}" if kind == "A" else "fd00::{}"
        return [f"{name} 60 {kind} {form.format(number)}" for number in order]


class Family:
    """The members of one family by the rules alone, as `tests.support.schedules.Rules` for one pool."""

    def __init__(self) -> None:
        self.good: frozenset[int] = frozenset()
        self._absent: dict[int, float] = {}

    def hear(self, said: frozenset[int], now: float) -> None:
        """Apply an answer about this family."""
        gone = {one: self._absent.get(one, now) for one in self.good - said}
        if self._is_much(gone, said):
            gone = {one: since for one, since in gone.items() if now < since + HOLD}
        self._absent = gone if self._is_much(gone, said) else {}
        self.good = said | self._absent.keys()

    @staticmethod
    def _is_much(gone: Mapping[int, float], said: frozenset[int]) -> bool:
        return bool(gone) and (not said or len(gone) > len(said))


@given(TOLD)
@example([Told(frozenset({1, 2, 3}), frozenset({1, 2, 3}), 1), Told(frozenset({1}), None, 1), Told(None, None, HOLD)])
@example(
    [
        Told(frozenset({1, 2}), frozenset({1, 2}), 1),
        Told(frozenset({1}), None, HOLD),
        Told(frozenset({1}), frozenset(), 1),
    ]
)
def test_families_are_merged_by_the_rules(told: Sequence[Told]) -> None:
    """A family that fails stays as it is, and the other follows its answers; failures without addresses do nothing."""

    async def check() -> None:
        server = Teller()
        source = AddressSource("db.example", 80, Only(server), 0.001, 0.001, linger=0)
        state, now = Guarded(), 0.0
        ipv4, ipv6 = Family(), Family()
        for one in told:
            server.told, now = one, now + one.seconds
            source.hasten()
            answer: Answer | None = None
            with suppress(SourceError):
                answer = await source.next()
            is_failure = (one.ipv4 is None or one.ipv6 is None) and not (one.ipv4 or one.ipv6)
            assert (answer is None) is is_failure
            if answer is None:
                continue
            state = admit(state, answer, RemovalPolicy(hold=HOLD), now)
            for family, said in ((ipv4, one.ipv4), (ipv6, one.ipv6)):
                if said is not None:
                    family.hear(said, now)
            assert numbers(state.good, ipv4=True) == ipv4.good
            assert numbers(state.good, ipv4=False) == ipv6.good

    asyncio.run(check())


def numbers(servers: Iterable[RealServer], *, ipv4: bool) -> frozenset[int]:
    """Return the last numbers of the addresses of one family."""
    return frozenset(server.address[-1] for server in servers if is_ipv4(server.address) is ipv4)


class Both(Zone):
    """One set of addresses, as those of a plain name and as those of the only target of an SRV record."""

    def __init__(self, addresses: Sequence[int], ttl: int) -> None:
        super().__init__()
        self._addresses = addresses
        self._ttl = ttl

    def reply(self, name: str, kind: str) -> Sequence[str]:
        """Return the records."""
        if kind == SRV.name:
            return [f"{name} {self._ttl} SRV 0 1 80 db.example."]
        return [f"{name} {self._ttl} {kind} 10.0.0.{number}" for number in self._addresses if kind == A.name]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20), TTLS)
def test_plain_name_is_as_an_srv_record_for_it(addresses: Sequence[int], ttl: int) -> None:
    """Servers and the time of the next query are those of an SRV record with this target."""

    async def check() -> None:
        resolvers = Only(Both(addresses, ttl))
        clock = asyncio.get_running_loop().time
        plain = AddressSource("db.example", 80, resolvers, families=(True,), rng=Always(0.0))
        srv = SrvSource("_db._tcp.example", resolvers, families=(True,), rng=Always(0.0))
        began = clock()
        found = [(one, await one.next()) for one in (plain, srv)]
        assert found[0][1].servers == found[1][1].servers
        for one, _ in found:
            assert one.due is not None
            assert min(max(ttl, 1), 60) * (1 - JITTER) <= one.due - began <= min(max(ttl, 1), 60) + (clock() - began)

    asyncio.run(check())
