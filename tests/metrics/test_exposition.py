"""What metrics and `/status.json` tell about the same state of the maps."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from clb_discovery.documents.status import Datapath
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Info, Steering
from clb_discovery.layout.health import Words
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import LAYOUT
from clb_discovery.metrics.exposition import exposition
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer, Refusal
from clb_discovery.model.servers import ALL_MEMBERS, Algorithm, PassiveHealth, Pool, RealServer, Unread, VirtualServer
from clb_discovery.model.service import Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan
from clb_discovery.state.service import ServiceState
from tests.support.fake_servers import HEALTHY

UNLOADED = Datapath(None, Installed(), {}, None, 0)
ONE = RealServer(0, parse_address("10.0.0.7"), 80, 1)


def virtual(name: str, vip: str, pool: Pool = ()) -> VirtualServer:
    """Return a virtual server."""
    return VirtualServer(parse_vip(vip), name, f"consul:{name}", Algorithm.RANDOM, pool)


def test_services_without_servers_are_those_whose_pools_add_up_to_none() -> None:
    """`sum without (vip, protocol) (clb_pool_servers) == 0` finds the `empty_services` of the document."""
    servers = [
        *(virtual("web", "10.64.0.1:80", (ONE,)), virtual("web", "[fd00::1]:80")),
        *(virtual("mail", "10.64.0.2:25"), virtual("mail", "[fd00::2]:25")),
        virtual("dns", "10.64.0.3:53/udp", (ONE,)),
        replace(virtual("dns", "10.64.0.3:53"), source='srv:"_dns._tcp'),
    ]
    installed = plan(Installed(), {one.vip: one for one in servers}, complete=True).result
    datapath = Datapath(Info(LAYOUT, 0, "object", "build", "/sys/fs/cgroup"), installed, {}, None, 0)
    report = Report("default", datapath, (), {"config_error": None, "last_sync": None})
    pools: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(exposition(report, Meters()).decode()):
        for sample in family.samples:
            if sample.name == "clb_pool_servers":
                pools[sample.labels["service"], sample.labels["source"]] += int(sample.value)
    assert pools == {
        ("web", "consul:web"): 1,
        ("mail", "consul:mail"): 0,
        ("dns", "consul:dns"): 1,
        ("dns", 'srv:"_dns._tcp'): 0,
    }
    assert json.loads(report.status())["empty_services"] == ["mail", "dns"]


def samples(report: Report, meters: Meters, name: str) -> dict[str, float]:
    """Return the samples of a metric by the values of their labels."""
    families = text_string_to_metric_families(exposition(report, meters).decode())
    found = (sample for family in families for sample in family.samples if sample.name == name)
    return {" ".join(sample.labels.values()): sample.value for sample in found}


def test_servers_that_fail_their_checks() -> None:
    """Only servers of services with checks have this series."""
    two = RealServer(0, parse_address("10.0.0.8"), 80, 1)
    servers = [virtual("web", "10.64.0.1:80", (ONE, two)), virtual("mail", "10.64.0.2:25", (ONE,))]
    installed = plan(Installed(), {one.vip: one for one in servers}, complete=True).result
    counted = {member: HEALTHY for one in installed.virtual.values() for member in one.servers}
    datapath = Datapath(Info(LAYOUT, 0, "object", "build", "/sys/fs/cgroup"), installed, counted, None, 0)
    check = {"address": "10.64.0.1", "port": 80, "protocol": "tcp", "check": "tcp", "down": {"10.0.0.8:80": "no"}}
    report = Report("default", datapath, (), {"config_error": None, "last_sync": None, "checks": [check]})
    assert samples(report, Meters(), "clb_check_failing") == {
        "web 10.64.0.1:80 tcp 10.0.0.7:80": 0,
        "web 10.64.0.1:80 tcp 10.0.0.8:80": 1,
    }


def test_servers_that_the_sidecar_keeps_out() -> None:
    """Each ejected server has this series: 1 after a probe or a check, 0 if failed connects alone have ejected it."""
    checked, probed, failed, healthy = (RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in range(4))
    servers = [
        replace(virtual("web", "10.64.0.1:80", (checked, healthy)), health=PassiveHealth(checked=True)),
        virtual("mail", "10.64.0.2:25", (probed, failed, healthy)),
    ]
    installed = plan(Installed(), {one.vip: one for one in servers}, complete=True).result
    web, mail = (elements.pack_vip(one.vip) for one in servers)
    ejected = HEALTHY._replace(ejected_until=2_000, changed_at=500)
    counted = {member: HEALTHY for one in installed.virtual.values() for member in one.servers}
    counted |= {elements.pack_member(mail, one): ejected for one in (probed, failed)}
    said = {elements.pack_member(*one): Steering(600, 1_500) for one in ((web, checked), (mail, probed))}
    info = Info(LAYOUT, 0, "object", "build", "/sys/fs/cgroup")
    datapath = Datapath(info, installed, counted, None, 0, words=Words(said, 1_000))
    report = Report("default", datapath, (), {"config_error": None, "last_sync": None})
    out = {
        "web 10.64.0.1:80 tcp 10.0.0.0:80": 1,
        "mail 10.64.0.2:25 tcp 10.0.0.1:80": 1,
        "mail 10.64.0.2:25 tcp 10.0.0.2:80": 0,
    }
    assert samples(report, Meters(), "clb_kept_out") == out
    shown = samples(report, Meters(), "clb_ejected")
    assert {name for name, value in shown.items() if value} == out.keys()


def test_series_are_as_many_as_the_document_says() -> None:
    """Two VIPs of ten real servers that are healthy, or whose connects have failed by one cause, or by all of them."""
    pool = tuple(RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in range(10))
    servers = [virtual("web", "10.64.0.1:80", pool), virtual("web", "10.64.0.2:80", pool)]
    installed = plan(Installed(), {one.vip: one for one in servers}, complete=True).result
    following = [ServiceState(Service("web", "consul:web", ()), last_success=datetime.now(UTC))]
    state = {"config_error": None, "last_sync": None}
    info = Info(LAYOUT, 0, "object", "build", "/sys/fs/cgroup")
    refused = HEALTHY._replace(failures=1, refused=1)
    failed = HEALTHY._replace(failures=4, refused=1, timed_out=1, silent=1, unreachable=1)
    for server, more in ((HEALTHY, 0), (refused, 20), (failed, 80)):
        counted = {member: server for one in installed.virtual.values() for member in one.servers}
        report = Report("default", Datapath(info, installed, counted, None, 0), following, state)
        families = text_string_to_metric_families(exposition(report, Meters()).decode())
        found = [one for family in families for one in family.samples if {"service", "source"} & one.labels.keys()]
        assert len(found) == 116 + more


def test_an_answer_that_lacks_a_part_is_incomplete() -> None:
    """Its members stay, so nothing else differs from a complete answer; a member that is rejected does not count."""
    state = {"config_error": None, "last_sync": None}
    lacking, without = (Unread(ALL_MEMBERS, 80, 0, 1, is_ipv4=False),), (Refusal("target a.", "has no address"),)
    answers = {"dns:a:80": Answer((ONE,), unread=lacking), "srv:b": Answer((ONE,), left_out=without)}
    now = datetime.now(UTC)
    following = [ServiceState(Service(name, name, ())).after(answer, 0, now) for name, answer in answers.items()]
    report = Report("default", UNLOADED, following, state)
    assert samples(report, Meters(), "clb_source_incomplete") == {"dns:a:80": 1, "srv:b": 0}
    assert samples(report, Meters(), "clb_source_refused") == {"dns:a:80": 0, "srv:b": 1}
    assert {one["name"]: one["rejected"] for one in json.loads(report.status())["sources"]} == {
        "dns:a:80": 0,
        "srv:b": 1,
    }
    complete = [one.after(Answer((ONE,)), 1, now) for one in following]
    assert samples(report._replace(following=complete), Meters(), "clb_source_incomplete") == {
        "dns:a:80": 0,
        "srv:b": 0,
    }


def test_checks_are_counted_for_each_service_that_has_them() -> None:
    """One that services share counts for each; the series of a service without checks end."""
    meters, report = Meters(), Report("default", UNLOADED, (), {"config_error": None, "last_sync": None})
    meters.follow_checks({"web", "mail"})
    meters.checked({"web", "mail"}, "passed", 0.1)
    meters.checked({"web"}, "failed", 0.1)
    web = {"passed web": 1, "failed web": 1, "local web": 0}
    mail = {"passed mail": 1, "failed mail": 0, "local mail": 0}
    assert samples(report, meters, "clb_checks_total") == web | mail
    meters.follow_checks({"web"})
    meters.checked({"mail"}, "passed", 0.1)
    assert samples(report, meters, "clb_checks_total") == web
