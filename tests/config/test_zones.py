"""The values of zones, and how services get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.services import read_services
from clb_discovery.errors import UsageError
from clb_discovery.model.address import parse_network
from clb_discovery.model.service import Service
from clb_discovery.model.zones import ZoneRule

WEB = '[[service]]\nname = "web"\nvip = "10.64.0.1:80"\nservers = ["10.0.0.1:80"]\n'


def service(folder: Path, text: str, *arguments: str) -> Service:
    """Return the last service of a file."""
    file = folder / "clb.toml"
    file.write_text(text)
    options = read_options(make_parser().parse_args(["run", "--config", str(file), *arguments]), {})
    return read_services(options)[-1]


def test_without_a_zone_nothing_follows_zones(tmp_path: Path) -> None:
    """Other settings of zones alone switch nothing on."""
    assert service(tmp_path, f'zone-min = 5\nzone-map = {{ "10.0.0.0/8" = "a" }}\n{WEB}').zones is None


def test_all_services_follow_the_zone_of_the_host(tmp_path: Path) -> None:
    """The rule has defaults, and a service has its own, or none."""
    assert service(tmp_path, f'zone = "eu-1a"\n{WEB}').zones == ZoneRule(2, spills=True)
    assert service(tmp_path, f'zone = "eu-1a"\nzone-min = 9\nzone-spill = "none"\n{WEB}').zones == ZoneRule(
        9, spills=False
    )
    own = f'zone = "eu-1a"\n{WEB}zone-min = 3\nzone-spill = "none"\n'
    assert service(tmp_path, own).zones == ZoneRule(3, spills=False)
    assert service(tmp_path, f'zone = "eu-1a"\n{WEB}zone = false\n').zones is None
    assert service(tmp_path, f'zone = "eu-1a"\n{WEB}zone = true\n').zones == ZoneRule()
    assert service(tmp_path, f"{WEB}zone = true\n").zones is None


def test_networks_are_a_table_or_arguments(tmp_path: Path) -> None:
    """The command line has `CIDR=ZONE`, which replaces the table of the file."""
    text = f'zone = "a"\n[zone-map]\n"10.1.0.0/16" = "a"\n"fd00::/8" = "b = c"\n{WEB}'
    expected = ((parse_network("10.1.0.0/16"), "a"), (parse_network("fd00::/8"), "b = c"))
    assert service(tmp_path, text).zones == ZoneRule(map=expected)
    found = service(tmp_path, text, "--zone-map", "10.2.3.4/16=x", "--zone-map", "10.2.0.0/16=x").zones
    assert found == ZoneRule(map=((parse_network("10.2.0.0/16"), "x"),))


def test_the_catalog_and_options_follow_zones(tmp_path: Path) -> None:
    """Services that opt in have the rule of the options."""
    assert service(tmp_path, 'consul = true\nzone = "auto"\n').zones == ZoneRule()
    assert service(tmp_path, "", "--srv", "_a._tcp.x=10.64.0.1:80", "--zone", "b", "--zone-min", "1").zones == ZoneRule(
        1
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('zone = ""', ["zone", "'' is not a zone", "1 to 64 bytes"]),
        (f'zone = "{65 * "a"}"', ["zone", "is not a zone"]),
        ("zone-min = 0", ["zone-min", "'0' is not a number from 1 to 1000"]),
        ("zone-min = 1001", ["zone-min", "from 1 to 1000"]),
        ('zone-spill = "all"', ["zone-spill", "'all' is neither capacity nor none"]),
        ('zone-key = ""', ["zone-key", "is not the key of a meta"]),
        ('zone-map = { "10.0.0.0/33" = "a" }', ["zone-map", "'10.0.0.0/33=a' has no network", "10.1.0.0/16=eu-1a"]),
        ('zone-map = { "10.0.0.0/8" = "auto" }', ["zone-map", "has no valid zone"]),
        ('zone-map = { "10.0.0.0/8" = "" }', ["zone-map", "has no valid zone"]),
        ('zone-map = { "10.0.0.0/8" = true }', ["zone-map, '10.0.0.0/8' = True", "neither text nor a number"]),
        ('zone-map = "10.0.0.0/8"', ["zone-map", "has no zone"]),
        ('zone-map = { "10.0.0.0/8" = "a", "::ffff:10.0.0.0/104" = "b" }', ["--zone-map: 10.0.0.0/8", "keep one"]),
        ('zone-map = { "10.0.0.0/8" = "a", "10.1.0.0/8" = "b" }', ["--zone-map: 10.0.0.0/8", "'a'", "'b'", "keep one"]),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    """The message names the key, the value, the cause and the fix."""
    with pytest.raises(UsageError) as error:
        service(tmp_path, f"{text}\n{WEB}")
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('zone = "eu-1a"', ["[[service]] 'web': zone = 'eu-1a'", "for all services", "zone = false"]),
        ("zone = 1", ["[[service]] 'web': zone = 1", "neither true nor false"]),
        ("zone-min = 0", ["[[service]] 'web': zone-min: '0'"]),
        ('zone-key = "az"', ["[[service]] 'web': unknown key 'zone-key'"]),
    ],
)
def test_wrong_values_of_a_service_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    """Likewise, with the name of the service."""
    with pytest.raises(UsageError) as error:
        service(tmp_path, f'zone = "a"\n{WEB}{text}\n')
    assert all(word in str(error.value) for word in words), str(error.value)
