"""Services from the options and the file: own settings of a service, and catalog mode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.services import merge_services, read_services
from clb_discovery.errors import UsageError
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, RealServer
from clb_discovery.model.service import CATALOG, Part, RemovalPolicy, Service
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
silent-after = "off"
connect-timeout = "700ms"
dead-after = "15s"
suspicion = false
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
        health=PassiveHealth(
            eject_after=7,
            eject_first_ms=2000,
            eject_most_ms=9000,
            silent_after_ms=0,
            connect_timeout_ms=700,
            dead_after_ms=15_000,
            suspicion=False,
        ),
        policy=RemovalPolicy(0.25, 5.0),
        parts=(Part("consul:shop-web", filter='Service.Meta.version == "2"', tags=("primary", "v2")),),
    )
    assert found["consul:plain"] == Service(
        "plain",
        "consul:plain",
        (parse_vip("10.64.0.2:80"),),
        policy=RemovalPolicy(hold=20.0),
        parts=(Part("consul:plain", tags=("all",)),),
    )


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        (["--consul"], {CATALOG}),
        (["--consul", "--srv", "_a._tcp.x=10.64.0.1"], {CATALOG, "srv:_a._tcp.x"}),
        (["--consul", "--service", "a=10.64.0.1"], {"consul:a"}),
        (["--consul", "--catalog", "--service", "a=10.64.0.1"], {CATALOG, "consul:a"}),
        (["--srv", "_a._tcp.x=10.64.0.1"], {"srv:_a._tcp.x"}),
        (["--dns", "a.x:80=10.64.0.1"], {"dns:a.x:80"}),
    ],
)
def test_catalog_mode_is_consul_without_a_service(arguments: list[str], sources: set[str]) -> None:
    """If services of Consul are named, only those are followed there, unless --catalog is given."""
    assert read(*arguments).keys() == sources


def test_the_catalog_has_the_settings_of_all_that_opt_in() -> None:
    """The catalog has the settings of the options, and no VIPs."""
    found = read("--consul", "--algorithm", "least-conn", "--hold", "3s", "--tag", "x", "--filter", "y")[CATALOG]
    assert (found.vips, found.algorithm, found.policy.hold) == ((), Algorithm.LEAST_CONN, 3.0)
    assert found.parts == (Part(CATALOG, filter="y", tags=("x",)),)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "add --consul to follow the services that opt in"),
        (["--catalog", "--srv", "_a._tcp.x"], r"--catalog follows services in Consul; add --consul \[URL\]"),
    ],
)
def test_nothing_to_follow_is_refused(arguments: list[str], words: str) -> None:
    """The message names the options to add."""
    with pytest.raises(UsageError, match=words):
        read(*arguments)


PLACES: Final = {"srv:a": "--srv a", "srv:b": "--srv b", "consul:a": "[[service]] 'a'", "static:b": "a table"}


def service(source: str, *vips: str) -> Service:
    """Return a service behind these VIPs."""
    return Service(source.partition(":")[2], source, tuple(map(parse_vip, vips)))


def test_services_of_one_source_are_joined() -> None:
    """Naming a source twice adds up its VIPs, in order and each once."""
    merged = merge_services(
        [
            service("srv:a", "10.64.0.1:80"),
            service("srv:b", "10.64.0.2:80"),
            service("srv:a", "[fd00::1]:80", "10.64.0.1:80"),
        ],
        PLACES,
    )
    assert merged == (service("srv:a", "10.64.0.1:80", "[fd00::1]:80"), service("srv:b", "10.64.0.2:80"))


def test_vip_that_two_sources_claim_is_refused() -> None:
    """A VIP has one source. The message names the VIP and both places that claim it."""
    with pytest.raises(
        UsageError,
        match=r"10\.64\.0\.1:80 is claimed by --srv a and by \[\[service\]\] 'a'; give each service its own VIP",
    ):
        merge_services([service("srv:a", "10.64.0.1:80"), service("consul:a", "10.64.0.1:80")], PLACES)


def test_a_real_server_at_a_vip_is_refused() -> None:
    """Connects would go in a circle, whatever the ports are. The message names both places."""
    servers = (RealServer(0, parse_address("10.64.0.1"), 9, 1),)
    static = replace(service("static:b", "10.64.0.2:80"), parts=(Part("static:b", servers=servers),))
    with pytest.raises(
        UsageError, match=r"10\.64\.0\.1:9 of a table has the address of the VIP 10\.64\.0\.1:80 of --srv a, "
    ):
        merge_services([service("srv:a", "10.64.0.1:80"), static], PLACES)
    servers = (RealServer(0, parse_address("10.64.0.2"), 80, 1),)
    own = replace(static, parts=(Part("static:b", servers=servers),))
    with pytest.raises(UsageError, match=r"of a table has the address of the VIP 10\.64\.0\.2:80 of a table"):
        merge_services([own], PLACES)


@pytest.mark.parametrize("other", ["10.64.0.1:81", "10.64.0.1:80/udp", "10.64.0.1", "10.64.0.2:80", "[fd00::1]:80"])
def test_vips_that_differ_in_anything_are_apart(other: str) -> None:
    """A source claims address, port and protocol together."""
    assert len(merge_services([service("srv:a", "10.64.0.1:80"), service("srv:b", other)], PLACES)) == 2
