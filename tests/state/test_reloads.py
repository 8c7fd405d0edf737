"""What a reload publishes before any source has been queried, and afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer, Failure
from clb_discovery.model.servers import Pool, RealServer, Vip
from clb_discovery.model.service import Part, Service, pool_name
from clb_discovery.model.text_forms import parse_vip
from tests.support.host import Host

VIP: Final = parse_vip("10.64.0.1:80")
OTHER: Final = parse_vip("10.64.0.2:80")


def servers(*hosts: int) -> Pool:
    """Return the real servers 10.0.0.HOST:80."""
    return tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in hosts)


def names(*hosts: int) -> list[str]:
    """Return the names of these real servers."""
    return [f"10.0.0.{host}:80" for host in hosts]


def service(parts: Sequence[Part], vip: Vip = VIP, name: str = "web") -> Service:
    """Return the service with these parts."""
    return Service(name, pool_name(parts), (vip,), parts=tuple(parts))


def static(*hosts: int, name: str = "web", priority: int = 0) -> Part:
    """Return a part with servers of the configuration."""
    return Part(f"static:{name}", servers=servers(*hosts), priority=priority, hold=0.0)


def test_a_list_takes_the_name_of_another_one_with_its_own_servers() -> None:
    """The first list of a service is removed, and the second one has its name then: its servers serve at once."""
    second = static(2, name="web#2", priority=1)
    host = Host([service([static(1), second])])
    host.publishes()
    assert host.pool(VIP) == names(1, 2)
    host.reloads([service([static(2)])])
    assert host.pool(VIP) == names(2)


def test_services_that_exchange_their_names_change_no_pool() -> None:
    """The VIPs and their servers are the same in both files."""
    host = Host([service([static(1)]), service([static(2, name="mail")], OTHER, "mail")])
    host.publishes()
    before = host.installed
    host.reloads([service([static(1, name="mail")], VIP, "mail"), service([static(2)], OTHER)])
    assert (host.pool(VIP), host.pool(OTHER)) == (names(1), names(2))
    assert host.found.plan.dropped == ()
    assert {vip: one.pool for vip, one in host.installed.virtual.items()} == {
        vip: one.pool for vip, one in before.virtual.items()
    }


def test_a_new_list_counts_before_the_one_that_the_kernel_or_the_disk_has_of_its_name() -> None:
    """A start and a reload know the lists of their configuration, whatever had their names before."""
    old = Host([service([static(1)])])
    old.publishes()
    started = Host([service([static(2)])], installed=old.installed, stored=old.disk)
    started.publishes()
    assert started.pool(VIP) == names(2)


@pytest.mark.parametrize("priority", [0, 1])
def test_other_servers_of_a_list_serve_at_once(priority: int) -> None:
    """Alone, and as a standby behind a part that stays."""
    first = [Part("consul:web")] if priority else []
    host = Host([service([*first, static(1, priority=priority)])])
    host.hears({"consul:web": Answer(servers(9))} if priority else {})
    host.reloads([service([*first, static(2, priority=priority)])])
    assert host.pool(VIP) == names(*([9] if priority else []), 2)
    host.hears({"consul:web": Failure("down")} if priority else {})
    assert host.pool(VIP) == names(*([9] if priority else []), 2)


@pytest.mark.parametrize("more", [(), (static(7, priority=1),)], ids=["alone", "with a last resort"])
def test_an_outage_during_a_reload_switches_no_part_on(more: tuple[Part, ...]) -> None:
    """The first part has other tags, and its first query fails: what is switched off gets no connects for that."""

    def parts(tag: str) -> tuple[Part, ...]:
        return Part(f"consul:web?tag={tag}", "web", share=100), Part("consul:canary", share=0), *more

    host = Host([service(parts("v1"))])
    host.hears({"consul:web?tag=v1": Answer(servers(1, 2)), "consul:canary": Answer(servers(9))})
    before = host.pool(VIP)
    host.reloads([service(parts("v2"))])
    assert host.pool(VIP) == before
    host.hears({"consul:canary": Answer(servers(9)), "consul:web?tag=v2": Failure("500 No cluster leader")})
    assert host.pool(VIP) == (names(7) if more else before)
    host.hears({"consul:web?tag=v2": Answer(servers(3))})
    assert host.pool(VIP) == names(3, *([7] if more else []))


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_vip_that_a_reload_takes_from_a_service_goes_whatever_parts_it_has_then(before: int, after: int) -> None:
    """Another service has never answered: it does not keep the previous VIP, with a pool that nothing updates."""
    parts = (Part("consul:web"), Part("consul:web?dc=dc2", "web", priority=1), Part("srv:web", priority=2))
    silent = Service("silent", "srv:silent", (parse_vip("10.64.0.9:1"),))
    host = Host([service(parts[:before]), silent])
    host.hears({"consul:web": Answer(servers(1)), "consul:web?dc=dc2": Answer(servers(5))})
    host.hears({"srv:silent": Failure("SERVFAIL")})
    assert (host.table.is_complete, host.pool(VIP)) == (False, names(1, 5) if before > 1 else names(1))
    host.reloads([service(parts[:after], OTHER), silent])
    assert host.pool(OTHER) is not None
    assert host.pool(VIP) is None


def test_a_vip_goes_to_another_service_only_with_its_answer() -> None:
    """The service that had it has answered, and has another VIP and another name of its pools now."""
    host = Host([service([Part("consul:web")])])
    host.hears({"consul:web": Answer(servers(1))})
    parts = (Part("consul:web"), Part("srv:web", priority=1))
    host.reloads([service(parts, OTHER), service([Part("srv:new")], name="new")])
    assert (host.pool(VIP), host.pool(OTHER)) == (names(1), names(1))
    host.hears({"srv:new": Answer(servers(7))})
    assert host.pool(VIP) == names(7)
