"""Random schedules of faults, and a sidecar without a kernel that is checked against the rules after every step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol, Self

from hypothesis import strategies as st

from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer, Listing, Outcome
from clb_discovery.model.servers import RealServer
from clb_discovery.model.service import RemovalPolicy, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.desired import desired
from clb_discovery.sources.base import Source
from clb_discovery.sources.follow import follow
from clb_discovery.state.service import ServiceState
from tests.support.pace import patient

HOLD: Final = 30.0
"""Seconds of the sidecar's clock, which advances only in steps of the schedule."""
LAST: Final = 9
"""The real server at the end of a schedule; no other step has it."""

Servers = frozenset[RealServer]

_VIP: Final = parse_vip("10.64.0.1:80")
_SOON: Final = patient(20.0)


class Publish(NamedTuple):
    """From now on discovery has these real servers, by number."""

    numbers: frozenset[int]


class Inject(NamedTuple):
    """The fault from now on: the argument of the world's `inject`."""

    faults: object


class Pass(NamedTuple):
    """The sidecar's clock advances."""

    seconds: float


Schedule = Sequence[Publish | Inject | Pass]


class World(Protocol):
    """Discovery behind a misbehaving proxy."""

    async def publish(self, numbers: frozenset[int]) -> None:
        """Let discovery have exactly these real servers, all at once; at least one."""

    def inject(self, faults: object) -> None:
        """Misbehave in this way from now on; `None` to stop."""

    def says(self, good: Servers = frozenset()) -> Servers | None:
        """Return the result that a source should have, `None` for a failure.

        :param good: the current members; one that cannot be read now stays.
        """


def real_server(number: int) -> RealServer:
    """Return the real server of this number."""
    return RealServer(0, parse_address(f"10.0.0.{number}"), 8000 + number, number)


def schedules(faults: st.SearchStrategy[object]) -> st.SearchStrategy[Schedule]:
    """Return schedules of up to twelve steps; the first comes before the sidecar starts."""
    inject = st.builds(Inject, faults | st.none())
    publish = st.builds(Publish, st.frozensets(st.integers(1, 5)))
    step = inject | inject | publish | st.builds(Pass, st.sampled_from([HOLD / 2, HOLD]))
    return st.tuples(inject, st.lists(step, min_size=2, max_size=11)).map(lambda found: [found[0], *found[1]])


def one_after_the_other(faults: Iterable[object]) -> Schedule:
    """Return the schedule in which every fault occurs once, each for a while."""
    return [step for fault in faults for step in (Inject(fault), Pass(HOLD / 2), Inject(None))]


class Rules:
    """The members by the rules alone, for one pool whose members never move: a second implementation of the guard."""

    def __init__(self) -> None:
        self.good: Servers = frozenset()
        self.state = "retrying"
        self._gone: dict[RealServer, float] = {}
        """Members that count although they are absent, with the time of their absence."""

    def hear(self, said: Servers | None, now: float) -> None:
        """Apply an answer; `None` is a failure, which changes nothing."""
        if said is None:
            self.state = "retrying"
            return
        self._gone = {server: self._gone.get(server, now) for server in self.good - said}
        if self._is_much(said):
            self._gone = {server: since for server, since in self._gone.items() if now < since + HOLD}
        if not self._is_much(said):
            self._gone = {}
        self.good = said | frozenset(self._gone)
        self.state = "held" if self._gone else "fresh"

    def _is_much(self, said: Servers) -> bool:
        return bool(self._gone) and (not said or len(self._gone) > len(said))


class Replica:
    """The sidecar from its source to the desired state, while the block runs; the clock of its guard is `now`.

    :ivar rounds: how often the source was called for its next answer.
    :ivar last: its last outcome.
    """

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self.now = 0.0
        self.rounds = 0
        self.last: Outcome | None = None
        self._ended = 0
        self._source = source
        self._service = Service("web", source.name, (_VIP,), policy=RemovalPolicy(hold=HOLD))
        self._following = ServiceState(self._service)
        self._pools: list[Servers] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(follow(self, self._heard, first=0.01, cap=0.05))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def next(self) -> Answer | Listing:
        """Return the source's next answer, and count."""
        self.rounds += 1
        return await self._source.next()

    def hasten(self) -> None:
        """Let the source query at once."""
        self._source.hasten()

    def _heard(self, outcome: Outcome) -> None:
        self._following = self._following.after(outcome, self.now, datetime.now(UTC))
        self._ended = self.rounds
        self.last = outcome
        self._pools.append(self.pool)
        self._changed.set()

    async def settle(self) -> None:
        """Wait until a round has ended that begins after this call."""
        begun = self.rounds
        async with asyncio.timeout(_SOON):
            while self._ended <= begun:
                self._changed.clear()
                await self._changed.wait()

    def elapse(self, seconds: float) -> None:
        """Let time pass; as in the sidecar, a source with a due hold queries at once."""
        self.now += seconds
        deadline = self._following.deadline
        if deadline is not None and self.now >= deadline:
            self._following = self._following._replace(hastened=asyncio.get_running_loop().time())
            self._source.hasten()

    @property
    def state(self) -> str:
        """The source's state, as in status."""
        return self._following.state

    @property
    def pool(self) -> Servers:
        """The pool that the kernel would hold."""
        known = {self.name: self._following.guarded.good} if self._following.known else {}
        virtual = desired([self._service], known, []).virtual
        return frozenset(virtual[_VIP].pool) if virtual else frozenset()

    def pools(self) -> set[Servers]:
        """Return the pools that the kernel would have held since the last call."""
        found, self._pools = {*self._pools, self.pool}, []
        return found


async def play(schedule: Schedule, world: World, source: Source) -> Replica:
    """Play a schedule, compare with the rules after each step, and end the faults: then a change has to arrive.

    :return: the sidecar as it was at the end.
    """
    rules = Rules()
    async with Replica(source) as replica:
        for step in [*schedule, Inject(None), Publish(frozenset({LAST})), Pass(HOLD)]:
            before = rules.good
            match step:
                case Publish(numbers):
                    await world.publish(numbers)
                case Inject(faults):
                    world.inject(faults)
                case Pass(seconds):
                    replica.elapse(seconds)
            await replica.settle()
            rules.hear(world.says(rules.good), replica.now)
            assert replica.pools() <= {before, rules.good}, step
            assert (replica.pool, replica.state) == (rules.good, rules.state), (step, replica.last)
        assert replica.pool == world.says()
    return replica
