"""SIGHUP applies each option, or names it as one that needs a restart. It ignores none."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import pytest

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.file import KEYS
from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services
from clb_discovery.config.settings import read_settings, without_restart
from clb_discovery.config.sources import open_sources
from clb_discovery.errors import HostError

RESTART: Final = {
    "room-servers": "1000",
    "room-sockets": "1000",
    "instance": '"other"',
    "cgroup": '"/sys/fs/cgroup/other"',
    "loader": '"bcc"',
    "metrics": '"127.0.0.1:17100"',
    "state-dir": '"/var/lib/other"',
}
"""Options that need a restart, each with a value that is not the default."""
SETTINGS: Final = {
    "srv": '["_new._tcp.example"]',
    "dns": '["new.example:80"]',
    "catalog": "true",
    "max-services": "10",
    "filter": """\'Service.Meta.version == "2"\'""",
    "tag": '["primary"]',
    "vip-range": '["10.9.0.0/24"]',
    "real-range": '["10.0.0.0/8"]',
    "max-removal": "0.1",
    "hold": '"1s"',
    "linger": '"2m"',
    "algorithm": '"least-conn"',
    "eject-after": "9",
    "eject-time": '"1s"',
    "eject-max": '"90s"',
    "silent-after": '"1s"',
    "connect-timeout": '"2m"',
    "dead-after": '"10m"',
    "no-suspicion": "true",
    "check": '"tcp"',
    "check-interval": '"5s"',
    "check-timeout": '"500ms"',
    "rise": "3",
    "fall": "5",
    "check-verify": "false",
    "zone": '"eu-1a"',
    "zone-min": "3",
    "zone-spill": '"none"',
    "zone-map": '{ "10.1.0.0/16" = "eu-1a" }',
    "no-active": "true",
    "on-remove": '"reset"',
    "hosts-file": '"/etc/hosts"',
    "log-format": '"json"',
    "log-level": '"debug"',
}
"""Options that change the settings, likewise."""
SOURCES: Final = {
    "consul",
    "consul-token-file",
    "consul-ca-file",
    "consul-ca-path",
    "consul-client-cert",
    "consul-client-key",
    "consul-tls-server-name",
    "consul-wait",
    "zone-key",
    "datacenter",
    "namespace",
    "partition",
    "near",
    "tagged-address",
    "resolver",
    "min-ttl",
    "max-ttl",
}
"""Options about queries, which count when sources are opened again."""
SERVICES: Final = """
[[service]]
name = "one"
consul = "one"
[[service]]
name = "two"
srv = "_two._tcp.example"
"""


class Watched:
    """Options that remember which of them were read."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.read.add(name.replace("_", "-"))
        return getattr(self._options, name)


def from_file(directory: Path, line: str) -> Options:
    """Return the options of a sidecar whose file has this line."""
    config = directory / "clb.toml"
    config.write_text(f"consul = true\n{line}\n{SERVICES}", encoding="utf-8")
    return read_options(make_parser().parse_args(["run", "--config", str(config)]), {})


def test_every_option_has_its_place() -> None:
    """Each option is in one of the three lists above; add a new one to the list that fits."""
    assert KEYS.keys() - {"service"} == RESTART.keys() | SETTINGS.keys() | SOURCES


@pytest.mark.parametrize("option", RESTART)
def test_option_that_needs_a_restart_is_named(tmp_path: Path, option: str) -> None:
    """The running value stays, and the option is named. No option is named if nothing has changed."""
    running = read_settings(from_file(tmp_path, ""))
    wanted = read_settings(from_file(tmp_path, f"{option} = {RESTART[option]}"))
    assert wanted[:2] != running[:2]
    found, named = without_restart(wanted, running)
    assert (found[:2], named) == (running[:2], (option,))
    assert without_restart(running, running) == (running, ())


def test_only_a_start_needs_the_cgroup(tmp_path: Path) -> None:
    """The settings are read without it, as at a reload while its unit is stopped; the data plane is not made."""
    found = read_settings(from_file(tmp_path, 'cgroup = "/no/such/cgroup"'))
    assert without_restart(found, found) == (found, ())
    with pytest.raises(HostError, match="/no/such/cgroup"):
        found.plane()


@pytest.mark.parametrize("option", SETTINGS)
def test_option_of_the_settings_is_taken(tmp_path: Path, option: str) -> None:
    """The sidecar goes on with the new value in the file."""
    running = read_settings(from_file(tmp_path, ""))
    wanted = read_settings(from_file(tmp_path, f"{option} = {SETTINGS[option]}"))
    assert wanted[:2] != running[:2]
    assert without_restart(wanted, running) == (wanted, ())


async def test_options_about_queries_are_read_when_sources_are_opened(tmp_path: Path) -> None:
    """Opening sources reads each of these options, and no other."""
    options = from_file(tmp_path, "")
    watched = Watched(options)
    async with open_sources(cast("Options", watched), read_services(options)) as sources:
        assert len(sources) == 2
    assert watched.read == SOURCES | {"consul-environment"}
