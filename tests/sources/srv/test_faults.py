"""The SRV source over random schedules of faults: what counts is always the last whole answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from clb_discovery.core.address import Address, parse_address
from clb_discovery.core.model import Failure, Policy, RealServer, Service
from clb_discovery.core.spec import parse_vip
from clb_discovery.errors import SourceError
from clb_discovery.following import Following
from clb_discovery.sources.srv.resolvers import Resolvers
from clb_discovery.sources.srv.source import SrvSource
from tests.support.fake_dns import FakeDns, Reply
from tests.support.pace import effort, patient

NAME: Final = "_web._tcp.example"
TARGETS: Final = ("a", "b", "c")

WELL: Final = Reply()
HARMLESS: Final = (WELL, WELL, WELL, Reply(truncated=True))
"""What leaves an answer as it is: TCP brings what UDP could not."""
AT_ONCE: Final = (
    Reply(rcode="SERVFAIL"),
    Reply(rcode="REFUSED"),
    Reply(rcode="NOTIMP"),
    Reply(truncated=True, truncated_tcp=True),
)
SLOW: Final = (Reply(silent=True), Reply(garbage=True), Reply(wrong_id=True))
"""What costs a time-out."""
FAULTS: Final = st.sampled_from([*HARMLESS * 5, *AT_ONCE, *SLOW])


class Round(NamedTuple):
    """What the server says for a while."""

    targets: frozenset[str]
    records: Reply
    addresses: dict[str, Reply]

    def is_whole(self) -> bool:
        """Tell whether every question has a proper answer."""
        return all(reply in HARMLESS for reply in (self.records, *(self.addresses[name] for name in self.targets)))

    def servers(self) -> set[RealServer]:
        """Return what an answer has to say."""
        return {RealServer(0, address_of(name), 80, 1) for name in self.targets}

    def play(self, server: FakeDns) -> None:
        """Let the server say so from now on."""
        records = [f"{NAME}. 9 SRV 0 1 80 {name}.example." for name in sorted(self.targets)]
        server.replies[f"{NAME}.", "SRV"] = replace(self.records, answer=records)
        for name, reply in self.addresses.items():
            lines = [f"{name}.example. 9 A 10.0.0.{ord(name)}"]
            server.replies[f"{name}.example.", "A"] = replace(reply, answer=lines)


def address_of(name: str) -> Address:
    """Return the address of a target."""
    return parse_address(f"10.0.0.{ord(name)}")


ROUNDS: Final = st.lists(
    st.builds(
        Round,
        st.frozensets(st.sampled_from(TARGETS)),
        FAULTS,
        st.fixed_dictionaries(dict.fromkeys(TARGETS, FAULTS)),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=effort(60, 10), deadline=None)
@given(ROUNDS)
def test_last_whole_answer_counts(rounds: list[Round]) -> None:
    """Whatever fails in whatever order, a round is whole or a failure, and what is good is what was whole last."""
    asyncio.run(_play(rounds))


async def _play(rounds: list[Round]) -> None:
    following = Following(Service("web", f"srv:{NAME}", (parse_vip("10.64.0.1:80"),), policy=Policy(hold=0)))
    good: set[RealServer] = set()
    async with FakeDns() as server:
        source = SrvSource(NAME, Resolvers([server.address], lifetime=patient(0.8)), 0.001, 0.001)
        for one in rounds:
            one.play(server)
            before = len(server.asked)
            try:
                following.take(await source.next(), 0)
            except SourceError as error:
                following.take(Failure(str(error)), 0)
            assert (following.state == "fresh") is one.is_whole()
            if one.is_whole():
                good = one.servers()
            assert set(following.guarded.good) == good
            assert len(server.asked) - before < 100
