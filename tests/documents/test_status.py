"""The document of `status --json`, built without a kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from clb_discovery.documents.status import Datapath, document, virtual_servers
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Info, Label
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.structs import FEATURE_ERRNO, LAYOUT
from clb_discovery.model import own_servers
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, Pool, Protocol, RealServer, Vip
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan
from tests.support.contract import assert_is_status

CAUSES = {"refused": 0, "timed_out": 0, "silent": 0, "unreachable": 0}
NEW = elements.unpack_server(elements.NEW_SERVER)
INFO = Info(LAYOUT, FEATURE_ERRNO, "object", "build", "/sys/fs/cgroup/web")
VIP4, VIP6, EVERY = parse_vip("10.64.0.1:6379"), parse_vip("[fd00::1]:53/udp"), parse_vip("10.64.0.2")
ONE = RealServer(0, parse_address("10.0.0.7"), 31001, 10)
TWO = RealServer(1, parse_address("10.0.0.8"), 31002, 0)
SIX = RealServer(0, parse_address("fd00::7"), 53, 1)
STATE = {
    "pid": 99,
    "last_sync": "2026-01-02T03:04:05Z",
    "unpublished": [{"service": "large", "source": "consul:large", "virtual_servers": 2, "reason": "no room"}],
    "sources": [
        {
            "name": "srv:_redis._tcp.example",
            "state": "held",
            "last_success": "2026-01-02T03:04:05Z",
            "error": None,
            "stale": False,
            "reason": "2 of 3 real servers absent or out since 2026-01-02T03:04:05Z; kept until …",
        },
        {
            "name": "consul:dns",
            "state": "retrying",
            "last_success": None,
            "error": "Consul answered 500",
            "stale": False,
            "reason": "Consul answered 500",
        },
    ],
}


def published(
    pool: Pool | None, generation: int = 12, algorithm: Algorithm | None = Algorithm.RANDOM, *, named: bool = True
) -> Published:
    """Return a virtual server as the kernel holds it."""
    label = Label("redis", "srv:_redis._tcp.example") if named else None
    return Published(
        generation=generation,
        index=generation,
        row=0,
        rows=range(elements.rows(len(pool or ()))),
        algorithm=algorithm,
        pool=pool,
        health=None if pool is None else PassiveHealth(),
        label=label,
        servers={},
    )


def status(
    virtual: Mapping[Vip, Published] | None, *, ineffective: str | None = None, pid: int | None = None
) -> dict[str, Any]:
    """Return the document for these virtual servers, checked; None is an instance that is not loaded."""
    key = elements.pack_vip(VIP4)
    servers = {
        elements.pack_member(key, ONE): NEW._replace(connects=5, active=4),
        elements.pack_member(key, TWO): NEW._replace(connects=2, failures=1, silent=1, ejected_until=1, probing=1),
        elements.refusal(key): NEW._replace(connects=3),
    }
    found = document(
        instance="default",
        version="1.2.3",
        kernel="6.1.0",
        datapath=None if virtual is None else Datapath(INFO, Installed(virtual=virtual), servers, ineffective, 6),
        pid=pid,
        state=STATE,
    )
    assert_is_status(found)
    return found


def test_vips_on_which_a_program_of_this_host_listens_are_marked() -> None:
    """`listens_here` is true of these virtual servers only."""
    installed = Installed(virtual={VIP4: published((ONE,)), EVERY: published(())})
    found = document(
        instance="default",
        version="1.2.3",
        kernel="6.1.0",
        datapath=Datapath(INFO, installed, {}, None, 0),
        pid=None,
        state={},
        listening={EVERY},
    )
    assert {server["address"]: server["listens_here"] for server in found["virtual_servers"]} == {
        "10.64.0.1": False,
        "10.64.0.2": True,
    }


@pytest.mark.parametrize("attached", [True, False])
def test_outcomes_and_the_services_that_need_them(*, attached: bool) -> None:
    """`outcomes` tells whether the program is attached; services need it that eject, count or limit over TCP."""
    lean = replace(published((ONE,)), health=PassiveHealth(active=False, eject_after=0, connect_timeout_ms=0))
    udp = VIP4._replace(protocol=Protocol.UDP)
    installed = Installed(virtual={VIP4: published((ONE,)), EVERY: lean, udp: published((ONE,))})
    found = document(
        instance="default",
        version="1.2.3",
        kernel="6.1.0",
        datapath=Datapath(INFO, installed, {}, None, 0, outcomes=attached),
        pid=None,
        state={},
    )
    assert found["datapath"]["outcomes"] is attached
    assert [server["needs_outcomes"] for server in found["virtual_servers"]] == [True, False, False]
    assert status(None)["datapath"]["outcomes"] is False


def test_document_has_everything_under_the_names_of_the_contract() -> None:
    """It has data plane, sidecar, sources, and each virtual server with the counters of its real servers."""
    found = status({VIP4: published((ONE, TWO))}, pid=99)
    assert found == {
        "format": 1,
        "instance": "default",
        "version": "1.2.3",
        "datapath": {
            "loaded": True,
            "loader": "object",
            "cgroup": "/sys/fs/cgroup/web",
            "kernel": "6.1.0",
            "effective": True,
            "reason": None,
            "features": {"errno": True, "loop": False, "options": False},
            "records_lost": 6,
            "outcomes": True,
            "overlaps": [],
            "load_error": None,
            "other_layouts": [],
        },
        "sidecar": {
            "running": True,
            "pid": 99,
            "last_sync": "2026-01-02T03:04:05Z",
            "config_error": None,
            "metrics_error": None,
            "state_error": None,
        },
        "zone": None,
        "sources": STATE["sources"],
        "virtual_servers": [
            {
                "service": "redis",
                "source": "srv:_redis._tcp.example",
                "address": "10.64.0.1",
                "port": 6379,
                "protocol": "tcp",
                "algorithm": "random",
                "generation": 12,
                "connects": 7,
                "refused": 3,
                "needs_outcomes": True,
                "real_servers": [
                    real_server("10.0.0.7", 31001, weight=10, priority=0, target=1.0) | {"connects": 5, "active": 4},
                    real_server("10.0.0.8", 31002, weight=0, priority=1, target=0.0)
                    | {"connects": 2, "failures": 1, "causes": CAUSES | {"silent": 1}}
                    | {"state": "ejected", "probing": True},
                ],
                "listens_here": False,
                "check": None,
            }
        ],
        "unpublished": [{"service": "large", "source": "consul:large", "virtual_servers": 2, "reason": "no room"}],
        "empty_services": [],
    }
    assert json.loads(json.dumps(found)) == found


def real_server(address: str, port: int, *, weight: int, priority: int, target: float) -> dict[str, Any]:
    """Return the document of a new real server."""
    health = {"state": "active", "suspect": False, "probing": False}
    counts = {"connects": 0, "active": 0, "failures": 0, "causes": CAUSES, "check_failure": None}
    known = {"address": address, "port": port, "weight": weight, "priority": priority, "target_share": target}
    return known | health | counts


def test_every_kind_of_virtual_server_has_the_shape() -> None:
    """IPv6, UDP, wildcard ports and empty pools have the same keys as all others."""
    found = status({VIP6: published((SIX,)), EVERY: published(())})
    every, six = found["virtual_servers"]
    assert (every["port"], every["real_servers"]) == (0, [])
    assert (six["address"], six["protocol"], six["real_servers"][0]["address"]) == ("fd00::1", "udp", "fd00::7")


def test_an_instance_that_is_not_loaded_has_the_shape() -> None:
    """The document has the reason, and the last state of a sidecar that does not run."""
    found = status(None)
    assert (found["datapath"]["loaded"], found["datapath"]["effective"]) == (False, False)
    assert found["sidecar"] == {
        "running": False,
        "pid": None,
        "last_sync": "2026-01-02T03:04:05Z",
        "config_error": None,
        "metrics_error": None,
        "state_error": None,
    }
    assert found["sources"] == STATE["sources"]
    assert found["virtual_servers"] == []


def test_a_loaded_data_plane_may_be_ineffective() -> None:
    """The document then has the reason."""
    datapath = status({}, ineffective="the cgroup is gone")["datapath"]
    assert (datapath["loaded"], datapath["effective"], datapath["reason"]) == (True, False, "the cgroup is gone")


def test_selftest_is_not_shown() -> None:
    """The virtual servers of the self-test are not in the document."""
    own = plan(Installed(), own_servers.virtual_servers("default"), complete=True).result.virtual
    assert status(own)["virtual_servers"] == []


def test_target_shares_follow_ejections() -> None:
    """A tier whose servers are all ejected leaves its share to the next one."""
    key = elements.pack_vip(VIP4)
    servers = {elements.pack_member(key, ONE): NEW._replace(ejected_until=1)}
    (found,) = virtual_servers(Installed(virtual={VIP4: published((ONE, TWO))}), servers)
    assert [real["target_share"] for real in found["real_servers"]] == [0.0, 1.0]


def test_foreign_elements_do_not_break_the_document() -> None:
    """A virtual server that another program or a newer version wrote is shown with null for unknown values."""
    (found,) = status({VIP4: published(None, algorithm=None, named=False)})["virtual_servers"]
    assert (found["service"], found["source"], found["algorithm"], found["real_servers"]) == (None, None, None, [])
    assert found["refused"] == 3
