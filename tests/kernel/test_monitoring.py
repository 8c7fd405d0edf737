"""metrics.md, the alerts and the dashboard fit the metrics, checked by a real scrape and by promtool."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cgroups import run_inside
from tests.support.knot import KnotServer
from tests.support.process import free_port
from tests.support.sidecar import sidecar
from tests.support.spares import loaded_instance
from tests.support.web import get

instance = loaded_instance

ROOT: Final = Path(__file__).parent.parent.parent
RULES: Final = ROOT / "contrib" / "prometheus"
DASHBOARD: Final = ROOT / "contrib" / "grafana" / "clb-discovery.json"

PARTS: Final = """\
zone = "eu-1a"
[[service]]
name = "parts"
vip = "10.64.0.2:80"
from = [{ servers = ["127.0.0.1:1"] }, { servers = ["127.0.0.1:2"], priority = 1 }]
[[service]]
name = "down"
vip = "10.64.0.3:80"
servers = ["127.0.0.1:1", "127.0.0.1:2"]
check-interval = "0.3"
"""
"""A pool of several parts that follows zones, and a server that its checks keep out: each has metrics of its own."""


@pytest.fixture
def scrape(instance: str, cgroup: Path, tmp_path: Path) -> str:
    """Return the scrape of a sidecar that has had some traffic."""
    port, config = free_port(), tmp_path / "clb.toml"
    config.write_text(PARTS)
    with KnotServer() as knot:
        knot.write(f"_web._tcp SRV 0 1 {free_port()} one\none A 127.0.0.1")
        options = ["--srv", "_web._tcp.example=10.64.0.1:80", "--resolver", knot.address]
        options += ["--real-range", "127.0.0.0/8", "--metrics", f"127.0.0.1:{port}", "--check", "tcp"]
        options += ["--config", str(config)]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            run_inside(cgroup, "curl", "--silent", "http://10.64.0.1/")
            scrapes: list[str] = []

            def is_complete() -> bool:
                scrapes.append(get(port, "/metrics"))
                return "clb_kept_out{" in scrapes[-1]

            found.wait_for(is_complete, "a check has failed")
            return scrapes[-1]


def named(text: str) -> set[str]:
    """Return the metrics in expressions, histograms by their base names."""
    return {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in re.findall(r"\bclb_\w+(?=[{\[\s)]|$)", text)}


def test_document_lists_all_metrics(scrape: str) -> None:
    """Names, types and labels in the table are exactly those of a scrape."""
    told: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(scrape):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        told[name] = (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([\w, ]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    listed = {name: (kind, set(labels.replace(",", "").split())) for name, kind, labels in rows}
    assert listed == told


def test_prometheus_has_no_objection_to_a_scrape(scrape: str) -> None:
    """`promtool check metrics` accepts names, types and help texts."""
    check = subprocess.run(["promtool", "check", "metrics"], input=scrape, check=False, capture_output=True, text=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_alerts_and_dashboard_speak_of_metrics_that_exist(scrape: str) -> None:
    """Each metric in the rules, their test and the dashboard is part of a scrape."""
    told = set(re.findall(r"^# TYPE (\w+)", scrape, re.MULTILINE))
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    variables = [re.sub(r"label_values\((\w+),.*", r"\1", str(one["query"])) for one in dashboard["templating"]["list"]]
    expressions = re.findall(r"^ +expr: (.+)$", (RULES / "clb-discovery.rules.yml").read_text(), re.MULTILINE)
    series = re.findall(r"series: '(clb_\w+{)", (RULES / "clb-discovery.rules.test.yml").read_text())
    for text in (panels, variables, expressions, series):
        assert named("\n".join(text))
        assert named("\n".join(text)) <= told


def test_dashboard_counts_empty_pools_as_the_alert_does() -> None:
    """Both count services without real servers at any VIP: one family may be empty."""
    (alert,) = re.findall(
        r"alert: ClbPoolEmpty\n(?: +#.*\n)* +expr: (.+)\n", (RULES / "clb-discovery.rules.yml").read_text()
    )
    targets = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", ())
    ]
    (panel,) = [re.sub(r"{[^}]*}", "", expr) for expr in targets if "clb_pool_servers" in expr]
    assert panel == f"count({alert}) or vector(0)"


def test_alerts_fire_when_they_should() -> None:
    """Prometheus accepts the rules, and the test of when each fires succeeds."""
    for command in (["check", "rules", "clb-discovery.rules.yml"], ["test", "rules", "clb-discovery.rules.test.yml"]):
        result = subprocess.run(["promtool", *command], cwd=RULES, check=False, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    names = re.findall(r"alert: (\w+)", (RULES / "clb-discovery.rules.yml").read_text())
    tested = (RULES / "clb-discovery.rules.test.yml").read_text()
    assert [name for name in names if name not in tested] == []


def test_dashboard_has_valid_expressions(tmp_path: Path) -> None:
    """Every expression of the dashboard is PromQL, after Grafana's variables are filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    filled = [re.sub(r"\$(\w+)", lambda name: "5m" if "interval" in name[1] else ".*", one) for one in expressions]
    records = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(filled)]
    rules = tmp_path / "rules.yml"
    rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": records}]}))
    check = subprocess.run(["promtool", "check", "rules", rules], check=False, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
    boxes = [(panel["gridPos"], panel["title"]) for panel in panels]
    assert all(box["x"] + box["w"] <= 24 for box, _ in boxes)
    assert len({panel["id"] for panel in panels}) == len({title for _, title in boxes}) == len(panels)
