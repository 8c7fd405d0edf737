"""Services from the options and the file: own settings of a service, and catalog mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.services import read_services
from clb_discovery.errors import UsageError
from clb_discovery.model.servers import Algorithm, PassiveHealth
from clb_discovery.model.service import CATALOG, RemovalPolicy, Service
from clb_discovery.model.text_forms import parse_vip

EVERY_KEY = """
hold = "20s"
tag = ["all"]
[[service]]
name = "web"
consul = "shop-web"
vip = "10.64.0.1:80,[fd00:64::1]:80"
algorithm = "round-robin"
filter = 'Service.Meta.version == "2"'
tags = ["primary", "v2"]
max-removal = 0.25
hold = "5s"
eject-after = 7
eject-time = "2s"
eject-max = "9s"
[[service]]
name = "plain"
consul = "plain"
vip = "10.64.0.2:80"
"""


def read(*arguments: str) -> dict[str, Service]:
    """Return the services of a command line, by source."""
    options = read_options(make_parser().parse_args(["run", *arguments]), {})
    return {service.source: service for service in read_services(options)}


def test_every_key_of_a_service_counts(tmp_path: Path) -> None:
    """A table has its own settings; the options fill in the others."""
    config = tmp_path / "clb.toml"
    config.write_text(EVERY_KEY)
    found = read("--consul", "--config", str(config))
    assert found["consul:shop-web"] == Service(
        name="web",
        source="consul:shop-web",
        vips=(parse_vip("10.64.0.1:80"), parse_vip("[fd00:64::1]:80")),
        algorithm=Algorithm.ROUND_ROBIN,
        health=PassiveHealth(eject_after=7, eject_first_ms=2000, eject_most_ms=9000),
        policy=RemovalPolicy(0.25, 5.0),
        filter='Service.Meta.version == "2"',
        tags=("primary", "v2"),
    )
    assert found["consul:plain"] == Service(
        "plain", "consul:plain", (parse_vip("10.64.0.2:80"),), policy=RemovalPolicy(hold=20.0), tags=("all",)
    )


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        (["--consul"], {CATALOG}),
        (["--consul", "--srv", "_a._tcp.x=10.64.0.1"], {CATALOG, "srv:_a._tcp.x"}),
        (["--consul", "--service", "a=10.64.0.1"], {"consul:a"}),
        (["--consul", "--catalog", "--service", "a=10.64.0.1"], {CATALOG, "consul:a"}),
        (["--srv", "_a._tcp.x=10.64.0.1"], {"srv:_a._tcp.x"}),
    ],
)
def test_catalog_mode_is_consul_without_a_service(arguments: list[str], sources: set[str]) -> None:
    """If services of Consul are named, only those are followed there, unless --catalog is given."""
    assert read(*arguments).keys() == sources


def test_the_catalog_has_the_settings_of_all_that_opt_in() -> None:
    """The catalog has the settings of the options, and no VIPs."""
    found = read("--consul", "--algorithm", "least-conn", "--hold", "3s", "--tag", "x", "--filter", "y")[CATALOG]
    assert (found.vips, found.algorithm, found.policy.hold) == ((), Algorithm.LEAST_CONN, 3.0)
    assert (found.tags, found.filter) == (("x",), "y")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "add --consul for the services that opt in"),
        (["--catalog", "--srv", "_a._tcp.x"], r"--catalog follows services in Consul; add --consul \[URL\]"),
    ],
)
def test_nothing_to_follow_is_refused(arguments: list[str], words: str) -> None:
    """The message names the options to add."""
    with pytest.raises(UsageError, match=words):
        read(*arguments)
