"""Instances of the real Consul that are registered with host names, in a real Knot DNS or nowhere."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import RealServer, Unread
from clb_discovery.sources.consul import names as names_module
from clb_discovery.sources.consul.answer import parse_entries
from clb_discovery.sources.consul.members import BOTH, Known, to_answer
from clb_discovery.sources.consul.names import Names, Watched
from clb_discovery.sources.consul.server import ConsulServer
from clb_discovery.sources.consul.source import GRACE, ConsulSource
from clb_discovery.sources.dns.gate import MOST
from clb_discovery.sources.dns.host_names import MAX_ADDRESSES, HostNames
from clb_discovery.sources.dns.resolvers import Resolvers
from tests.support.consul import ConsulAgent
from tests.support.fake_consul import FakeConsul, Reply, instance
from tests.support.fake_dns import FakeDns, SilentDns
from tests.support.fake_dns import Reply as DnsReply
from tests.support.knot import KnotServer
from tests.support.pace import patient

SOON = patient(5.0)
IPV4 = frozenset({True})

Connect = Callable[..., ConsulServer]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """One agent for all tests; each has a service of its own."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as running:
        yield running


@pytest.fixture
def knot() -> Iterator[KnotServer]:
    """Run a DNS server for one test."""
    with KnotServer({"example": "", "other": ""}) as running:
        yield running


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    """Return a function that makes a server with a DNS server and a hosts file; all servers are closed at the end."""
    made: list[ConsulServer] = []
    (tmp_path / "hosts").write_text("10.0.0.77 local.example\n127.0.0.1 localhost\n")

    def make(url: str, resolver: str, min_ttl: float = 0.1) -> ConsulServer:
        host_names = HostNames(Resolvers([resolver]), hosts=tmp_path / "hosts", bounds=(min_ttl, 60.0))
        made.append(ConsulServer(url, names=Names(lambda: host_names)))
        return made[-1]

    yield make
    for server in made:
        await server.close()


def server(address: str, port: int = 1, weight: int = 1) -> RealServer:
    """Return a real server of the first tier."""
    return RealServer(0, parse_address(address), port, weight)


def endpoint(address: str, port: int = 1) -> tuple[Address, int]:
    """Return an endpoint."""
    return parse_address(address), port


async def until(source: ConsulSource, *expected: RealServer, unread: tuple[Unread, ...] = ()) -> Answer:
    """Follow the source until it returns exactly these."""
    async with asyncio.timeout(SOON):
        while True:
            answer = await source.next()
            if sorted(answer.servers) == sorted(expected) and answer.unread == unread:
                return answer


async def asked_again(source: ConsulSource) -> Answer:
    """Hasten the source, and return its first answer to what was asked afterwards."""
    since = time.monotonic()
    source.hasten()
    async with asyncio.timeout(SOON):
        while (answer := await source.next()).asked < since:
            pass
    return answer


async def test_a_host_name_stands_for_its_addresses_as_they_change(
    agent: ConsulAgent, knot: KnotServer, connect: Connect
) -> None:
    """Both families count, the hosts file takes precedence, and new addresses give a new answer without Consul."""
    knot.write("a A 10.0.0.1\na AAAA fd00::1\nlocal A 10.0.0.66")
    agent.register("named", 1, "A.example", service_id="a", weights=(4, 1))
    agent.register("named", 1, "local.example", service_id="local")
    source = ConsulSource(connect(agent.url, knot.address), "named")
    answer = await until(source, server("10.0.0.1", weight=4), server("fd00::1", weight=4), server("10.0.0.77"))
    assert answer.identities[endpoint("10.0.0.1")] == "test/a"
    waiting = asyncio.create_task(source.next())
    await asyncio.wait((waiting,), timeout=2)
    assert not waiting.done()  # the same addresses again are not a new answer
    knot.write("a A 10.0.0.2")
    answer = await asyncio.wait_for(waiting, SOON)
    if endpoint("10.0.0.2") not in answer.identities or len(answer.servers) != 2:  # each family has its own query
        answer = await until(source, server("10.0.0.2", weight=4), server("10.0.0.77"))
    assert set(answer.servers) == {server("10.0.0.2", weight=4), server("10.0.0.77")}
    assert answer.identities[endpoint("10.0.0.2")] == "test/a"


async def test_a_host_name_that_nobody_can_look_up_now_keeps_what_it_had(
    agent: ConsulAgent, knot: KnotServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported, and the others count meanwhile; a name that certainly has no address has none."""
    monkeypatch.setattr(names_module, "RETRY", 0.2)
    knot.write("a A 10.0.0.1")
    agent.register("lost", 1, "a.example", service_id="a", weights=(4, 1))
    second = agent.register("lost", 2, "10.0.0.2")
    source = ConsulSource(connect(agent.url, knot.address), "lost", families=IPV4)
    await until(source, server("10.0.0.1", weight=4), server("10.0.0.2", 2))
    knot.purge()
    unread = (Unread("test/a", None, 0, 4, is_ipv4=True),)
    answer = await until(source, server("10.0.0.2", 2), unread=unread)
    (report,) = map(str, answer.left_out)
    assert report.startswith(
        "instance 'a' on node 'test' has the host name 'a.example' as its address, which cannot be "
    )
    assert report.endswith("; register an IP address, or fix DNS")
    third = agent.register("lost", 3, "10.0.0.3")
    agent.deregister(second)
    await until(source, server("10.0.0.3", 3), unread=unread)
    knot.write("b A 10.0.0.9")
    answer = await until(source, server("10.0.0.3", 3))
    assert len(answer.left_out) == 1
    agent.deregister(third)
    with pytest.raises(SourceError, match=r"no instance can be used: instance 'a' on node 'test' has the host name"):
        await until(source)
    knot.write("a A 10.0.0.4")
    await until(source, server("10.0.0.4", weight=4))


async def test_a_hastened_source_looks_names_up_again(agent: ConsulAgent, knot: KnotServer, connect: Connect) -> None:
    """An earlier DNS answer does not confirm that an address has gone; without a new answer the instance is unread."""
    knot.write("a A 10.0.0.1", ttl=60, negative_ttl=60)
    agent.register("again", 1, "a.example", service_id="a")
    agent.register("again", 2, "10.0.0.2")
    source = ConsulSource(connect(agent.url, knot.address), "again", families=IPV4)
    await until(source, server("10.0.0.1"), server("10.0.0.2", 2))
    for records, found in (("a A 10.0.0.3", "10.0.0.3"), ("b A 10.0.0.3", None), ("a A 10.0.0.4", "10.0.0.4")):
        knot.write(records, ttl=60, negative_ttl=60)
        answer = await asked_again(source)
        assert {*answer.servers} == {server("10.0.0.2", 2), *([server(found)] if found else [])}
        assert answer.unread == ()
    knot.purge()
    answer = await asked_again(source)
    assert (answer.servers, answer.unread) == ((server("10.0.0.2", 2),), (Unread("test/a", None, 0, 1, is_ipv4=True),))


async def test_a_critical_instance_is_out_at_the_addresses_of_its_name(
    agent: ConsulAgent, knot: KnotServer, connect: Connect
) -> None:
    """Its name's last addresses are out, also when the name cannot be looked up any more."""
    knot.write("a A 10.0.0.1")
    one = agent.register("critical", 1, "a.example", service_id="a")
    agent.register("critical", 2, "10.0.0.2")
    source = ConsulSource(connect(agent.url, knot.address), "critical", families=IPV4)
    await until(source, server("10.0.0.1"), server("10.0.0.2", 2))
    knot.purge()
    agent.set_status(one, "critical")
    answer = await until(source, server("10.0.0.2", 2))
    assert answer.out == (endpoint("10.0.0.1"),)


async def test_addresses_of_one_name_are_bounded(agent: ConsulAgent, knot: KnotServer, connect: Connect) -> None:
    """Of a name with thousands of addresses the lowest count, and the number of the others is reported."""
    knot.write("\n".join(f"a A 10.1.{number // 256}.{number % 256}" for number in range(1000)))
    agent.register("wide", 1, "a.example")
    answer = await asyncio.wait_for(ConsulSource(connect(agent.url, knot.address), "wide", families=IPV4).next(), SOON)
    assert len(answer.servers) == MAX_ADDRESSES
    assert "which has 744 addresses beyond the 256 that count" in str(answer.left_out[0])


async def test_a_name_that_nobody_answers_for_holds_up_nothing(agent: ConsulAgent, connect: Connect) -> None:
    """Changes of other instances arrive at once, the first time after a short grace, and the name is reported."""
    agent.register("held-up", 1, "10.0.0.1")
    agent.register("held-up", 9, "silent.example", service_id="silent")
    async with SilentDns() as fake:
        source = ConsulSource(connect(agent.url, fake.address), "held-up")
        started = time.monotonic()
        unread = (Unread("test/silent", None, 0, 1),)
        answer = await until(source, server("10.0.0.1"), unread=unread)
        assert time.monotonic() - started < GRACE + 1
        assert "it is still being looked up" in str(answer.left_out[0])
        for number in range(2, 5):
            started = time.monotonic()
            agent.register("held-up", 1, f"10.0.0.{number}")
            known = [server(f"10.0.0.{one}") for one in range(1, number + 1)]
            await until(source, *known, unread=unread)
            assert time.monotonic() - started < GRACE + 1


async def test_an_answer_without_anybody_waits_longer_and_ends_with_news(agent: ConsulAgent, connect: Connect) -> None:
    """While no instance has an address yet, a new instance with one counts at once."""
    agent.register("nobody", 9, "silent.example")
    async with SilentDns() as fake:
        source = ConsulSource(connect(agent.url, fake.address), "nobody")
        waiting = asyncio.create_task(source.next())
        await asyncio.wait((waiting,), timeout=GRACE + 1)
        assert not waiting.done()
        agent.register("nobody", 1, "10.0.0.1")
        answer = await asyncio.wait_for(waiting, 1)
        assert answer.servers == (server("10.0.0.1"),)


async def test_a_look_up_that_is_void_is_given_up(connect: Connect) -> None:
    """When Consul no longer returns a host name, or the service is not followed, the name is not queried any more."""
    named = [instance(address=f"h{number}.example") for number in range(100)]
    replies = (Reply(entries=[instance(), *named]), Reply(hang=True))
    async with SilentDns() as fake, FakeConsul(*replies) as consul:
        source = ConsulSource(connect(consul.url, fake.address), "redis")
        names = asyncio.all_tasks()
        await source.next()
        assert len(asyncio.all_tasks()) > len(names) + 100
        consul.replies = [Reply(index="8"), Reply(hang=True)]
        source.hasten()
        await source.next()
        async with asyncio.timeout(1):
            while len(asyncio.all_tasks()) > len(names) + 10:  # noqa: ASYNC110  # nothing signals their end
                await asyncio.sleep(0.02)


async def test_many_names_that_nobody_answers_for_take_bounded_means(connect: Connect) -> None:
    """Five services with a thousand such names each: no threads, bounded descriptors, and they stop at once."""
    named = [instance(address=f"h{number}.example") for number in range(1000)]
    async with SilentDns() as fake, FakeConsul(Reply(entries=[instance(), *named]), Reply(hang=True)) as consul:
        consul.replies = [Reply(entries=[instance(), *named])] * 5 + [Reply(hang=True)]
        one = connect(consul.url, fake.address)
        threads, descriptors = threading.active_count(), _descriptors()
        sources = [ConsulSource(one, f"s{number}") for number in range(5)]
        answers = await asyncio.wait_for(asyncio.gather(*(source.next() for source in sources)), SOON)
        assert all(len(answer.servers) == 1 for answer in answers)
        waiting = [asyncio.create_task(source.next()) for source in sources]
        await asyncio.sleep(1)
        assert threading.active_count() == threads
        assert _descriptors() - descriptors <= MOST + 20
        started = time.monotonic()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert time.monotonic() - started < 1
        await asyncio.sleep(0.1)
        assert _descriptors() - descriptors <= 20


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Broken(Names):
    """Looks up names, with one bug."""

    def __init__(self) -> None:
        super().__init__(lambda: HostNames(Resolvers(["192.0.2.1"])))
        self.bugs: list[Exception] = [KeyError("a.example")]

    async def look_up(self, name: str, before: Known | None, since: float) -> tuple[Known, float]:
        """Raise once, and then find an address."""
        del before, since
        await asyncio.sleep(0)
        if name == "a.example" and self.bugs:
            raise self.bugs.pop()
        return Known((parse_address("10.0.0.1"),)), 60.0


async def test_a_look_up_that_ends_by_a_bug_is_reported_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug is logged with the source, is the reason why the name has no address, and other names do not notice."""
    monkeypatch.setattr(names_module, "RETRY", 0.05)
    changed = asyncio.Event()
    watched = Watched(Broken(), "consul:web", changed.set)
    with capture_logs() as logs:
        watched.want(["a.example", "b.example"])
        await asyncio.wait_for(changed.wait(), SOON)
        assert watched.is_complete
        assert watched.known["a.example"].cause == "internal error: KeyError('a.example'); please report it"
        assert watched.known["a.example"].unread == BOTH
        assert watched.known["b.example"].addresses
        async with asyncio.timeout(SOON):
            while watched.known["a.example"] != watched.known["b.example"]:
                changed.clear()
                await changed.wait()
        watched.stop()
    errors = [(line["event"], line["source"]) for line in logs if line["log_level"] == "error"]
    assert errors == [("source failed unexpectedly", "consul:web")]


class Slow(Names):
    """Looks up names, each only once."""

    def __init__(self) -> None:
        super().__init__(lambda: HostNames(Resolvers(["192.0.2.1"])))
        self.asked: set[str] = set()

    async def look_up(self, name: str, before: Known | None, since: float) -> tuple[Known, float]:
        """Find an address the first time."""
        del before, since
        if name in self.asked:
            await asyncio.Event().wait()
        self.asked.add(name)
        return Known((parse_address("10.0.0.1"),), last=(parse_address("10.0.0.1"),)), 60.0


async def test_a_critical_instance_stays_registered_while_its_name_is_looked_up_again() -> None:
    """Otherwise its zone would keep more connects than it can take, each time that a removal has to be confirmed."""
    changed = asyncio.Event()
    watched = Watched(Slow(), "consul:web", changed.set)
    entries = [instance("10.0.0.2"), instance("a.example", status="critical")]
    for number, entry in enumerate(entries):
        entry["Service"] |= {"ID": f"s{number}", "Meta": {"zone": "a"}}
    reading = parse_entries(entries, zone_key="zone")
    watched.want(reading.host_names)
    await asyncio.wait_for(changed.wait(), SOON)
    before = to_answer(reading, watched.known)
    assert before.out == (endpoint("10.0.0.1", 80),)
    watched.renew(time.monotonic())
    assert not watched.is_renewed
    assert to_answer(reading, watched.renewed) == before
    watched.stop()


class Prompted(Names):
    """Finds what a test says, when it says it."""

    def __init__(self) -> None:
        super().__init__(lambda: HostNames(Resolvers(["192.0.2.1"])))
        self.asked = 0
        self.third = asyncio.Event()
        self.found: asyncio.Queue[str | None] = asyncio.Queue()

    async def look_up(self, name: str, before: Known | None, since: float) -> tuple[Known, float]:
        """Wait for an address, or for None: the name has none."""
        del name, since
        self.asked += 1
        if self.asked == 3:
            self.third.set()
        text = await self.found.get()
        addresses = (parse_address(text),) if text else ()
        cause = None if text else "it has no address"
        return Known(addresses, 0, cause, last=addresses or (before.last if before else ())), 0.1


def two_instances() -> list[dict[str, Any]]:
    """Return an instance with an address, and one with a host name."""
    entries = [instance("10.0.0.2"), instance("a.example")]
    entries[1]["Service"] |= {"ID": "named"}
    return entries


async def test_unchanged_names_are_an_answer_to_what_was_asked_for() -> None:
    """Consul answers first; when the names have been looked up again, too, the answer is repeated at once."""
    names = Prompted()
    async with FakeConsul(Reply(entries=two_instances()), Reply(hang=True)) as consul:
        consul_server = ConsulServer(consul.url, names=names)
        source = ConsulSource(consul_server, "redis", families=IPV4)
        names.found.put_nowait("10.0.0.1")
        first = await source.next()
        waiting = asyncio.create_task(source.next())
        await asyncio.wait((waiting,), timeout=0.5)
        consul.replies = [Reply(entries=two_instances()), Reply(hang=True)]
        hastened = time.monotonic()
        source.hasten()
        early = await waiting
        assert early.asked < hastened
        names.found.put_nowait("10.0.0.1")
        names.found.put_nowait("10.0.0.1")
        fresh = await asyncio.wait_for(source.next(), SOON)
        assert first == early == fresh
        assert fresh.asked >= hastened
        await consul_server.close()


async def test_a_slow_look_up_that_was_under_way_may_end_an_absence() -> None:
    """It ends after the time that others wait for it; nothing that it lacks is gone."""
    names = Prompted()
    async with FakeConsul(Reply(entries=two_instances()), Reply(hang=True)) as consul:
        consul_server = ConsulServer(consul.url, names=names)
        source = ConsulSource(consul_server, "redis", families=IPV4)
        names.found.put_nowait(None)
        assert len((await source.next()).servers) == 1
        waiting = asyncio.create_task(source.next())
        await asyncio.wait((waiting,), timeout=0.5)  # meanwhile Consul is queried, and the name looked up again
        consul.replies = [Reply(entries=two_instances()), Reply(hang=True)]
        hastened = time.monotonic()
        source.hasten()
        assert (await waiting).asked < hastened
        unread = await source.next()
        assert (unread.servers, len(unread.unread), unread.asked >= hastened) == ((server("10.0.0.2", 80),), 1, True)
        names.found.put_nowait("10.0.0.1")
        early = await source.next()
        assert (len(early.servers), len(early.unread)) == (2, 1)
        names.found.put_nowait(None)
        fresh = await source.next()
        assert (len(fresh.servers), fresh.unread) == (1, ())
        await consul_server.close()


async def test_a_look_up_that_was_under_way_counts_before_the_next_one() -> None:
    """It may end an absence; it confirms none, because it was begun before the source was hastened."""
    names, entries = Prompted(), two_instances()
    async with FakeConsul(Reply(entries=entries), Reply(hang=True)) as consul:
        consul_server = ConsulServer(consul.url, names=names)
        source = ConsulSource(consul_server, "redis", families=IPV4)
        names.found.put_nowait("10.0.0.1")
        assert len((await source.next()).servers) == 2
        names.found.put_nowait(None)
        assert len((await source.next()).servers) == 1
        waiting = asyncio.create_task(source.next())
        await asyncio.wait_for(names.third.wait(), SOON)
        consul.replies = [Reply(entries=entries), Reply(hang=True)]
        hastened = time.monotonic()
        source.hasten()
        unchanged = await waiting  # Consul's, at once, while the look-up is under way
        assert (len(unchanged.servers), unchanged.asked < hastened) == (1, True)
        for found in ("10.0.0.1", None):
            names.found.put_nowait(found)
        early, fresh = await source.next(), await source.next()
        assert (len(early.servers), early.asked < hastened) == (2, True)
        assert (len(fresh.servers), fresh.asked >= hastened) == (1, True)
        assert sum("consistent" in query for query in consul.queries) == 1
        await consul_server.close()


async def test_a_name_without_an_address_ends_no_query() -> None:
    """While it is the only one the answer cannot be used; the query waits on, and the name counts when it is back."""
    names = Prompted()
    async with FakeConsul(Reply(entries=[instance("a.example")]), Reply(hang=True)) as consul:
        consul_server = ConsulServer(consul.url, names=names)
        source = ConsulSource(consul_server, "redis", families=IPV4)
        names.found.put_nowait("10.0.0.1")
        first = await source.next()
        waiting = asyncio.create_task(source.next())
        await asyncio.wait((waiting,), timeout=0.5)
        names.found.put_nowait(None)
        with pytest.raises(UnusableError, match="it has no address"):
            await waiting
        names.found.put_nowait("10.0.0.1")
        assert await asyncio.wait_for(source.next(), SOON) == first
        assert len(consul.queries) == 2
        await consul_server.close()


class Varied(Names):
    """Finds two of five addresses, in turn, or fails."""

    def __init__(self) -> None:
        super().__init__(lambda: HostNames(Resolvers(["192.0.2.1"])))
        self.turn = 0
        self.fails = False

    async def look_up(self, name: str, before: Known | None, since: float) -> tuple[Known, float]:
        """Return the addresses of this turn."""
        del name, since
        if self.fails:
            return Known(cause="SERVFAIL", unread=BOTH, last=before.last if before else ()), 0.1
        self.turn += 1
        addresses = tuple(parse_address(f"10.0.0.{(self.turn + number) % 5}") for number in range(2))
        return Known(addresses, last=addresses), 0.1


@pytest.mark.parametrize("lingers", [True, False])
async def test_a_name_whose_server_varies_its_answers_has_all_of_its_addresses(*, lingers: bool) -> None:
    """As for `--dns`, also after a failed look-up and a failure of Consul, unless `--linger 0` switches it off."""
    names = Varied()
    async with FakeConsul(Reply(entries=[instance("a.example")]), Reply(hang=True)) as consul:
        consul_server = ConsulServer(consul.url, names=names)
        source = ConsulSource(consul_server, "redis", families=IPV4, lingers=lingers)
        async with asyncio.timeout(SOON):
            while len((answer := await source.next()).servers) < 5 and names.turn < 15:
                assert len(answer.servers) == 2
        assert ("the DNS server varies the addresses of a.example: " in str(answer.note)) is lingers
        if lingers:
            names.fails = True
            assert (await source.next()).unread
            consul.replies = [Reply(status=500), Reply(entries=[instance("a.example")]), Reply(hang=True)]
            source.hasten()
            with pytest.raises(SourceError):
                await source.next()
            names.fails = False
            async with asyncio.timeout(SOON):
                while (answer := await source.next()).unread:
                    pass
            assert len(answer.servers) == 5
        await consul_server.close()


async def test_the_agents_own_name_is_looked_up_alike(agent: ConsulAgent, knot: KnotServer, connect: Connect) -> None:
    """Its name is looked up in the hosts file and with the given DNS server."""
    agent.register("far", 1, "10.0.0.1")
    knot.write("consul A 127.0.0.1")
    for host in ("localhost", "consul.example"):
        source = ConsulSource(connect(f"http://{host}:{agent.http_port}", knot.address), "far")
        await until(source, server("10.0.0.1"))


@pytest.mark.parametrize(
    ("rcode", "cause"),
    [
        ("NXDOMAIN", "has no address in DNS; is the name right?"),
        ("SERVFAIL", "A: SERVFAIL from {} (UDP); repeat the query with: dig @127.0.0.1 -p {} consul.example A"),
    ],
)
async def test_a_name_of_the_agent_that_cannot_be_looked_up_is_the_error(
    connect: Connect, rcode: str, cause: str
) -> None:
    """It is a failure of DNS: the message has its cause and the query to repeat, and does not blame the agent."""
    async with FakeDns() as fake:
        for kind in ("A", "AAAA"):
            fake.replies["consul.example.", kind] = DnsReply(rcode=rcode)
        source = ConsulSource(connect("http://consul.example:8500", fake.address), "redis")
        with pytest.raises(SourceError) as error:
            await source.next()
        expected = cause.format(fake.address.replace(":", "@"), fake.port)
    assert str(error.value) == (
        f"Consul at http://consul.example:8500 cannot be reached: cannot look up consul.example: {expected}"
    )
