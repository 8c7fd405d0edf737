"""What metrics and `/status.json` tell about the same state of the maps."""

from __future__ import annotations

import json
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from clb_discovery.documents.status import Datapath
from clb_discovery.layout.elements import Info
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import LAYOUT
from clb_discovery.metrics.exposition import exposition
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, Pool, RealServer, VirtualServer
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan

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
    ]
    installed = plan(Installed(), {one.vip: one for one in servers}, complete=True).result
    datapath = Datapath(Info(LAYOUT, 0, "object", "build", "/sys/fs/cgroup"), installed, {}, None, 0)
    report = Report("default", datapath, (), {"config_error": None, "last_sync": None})
    pools: Counter[str] = Counter()
    for family in text_string_to_metric_families(exposition(report, Meters()).decode()):
        for sample in family.samples:
            if sample.name == "clb_pool_servers":
                pools[sample.labels["service"]] += int(sample.value)
    assert pools == {"web": 1, "mail": 0, "dns": 1}
    assert json.loads(report.status())["empty_services"] == ["mail"]
