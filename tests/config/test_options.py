"""Options of command line, file and environment together; any file leads to settings or to a message of one line."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
from dataclasses import FrozenInstanceError
from pathlib import Path, PosixPath
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.file import KEYS
from clb_discovery.config.options import OPTIONS, Options
from clb_discovery.config.services import read_services
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.errors import UsageError
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sources.consul.environment import OPTIONS as CONSUL_OPTIONS

_KEYS: Final = sorted(KEYS.keys() - {"service"})
_SERVICE_KEYS: Final = (
    "name", "consul", "srv", "dns", "servers", "vip", "filter", "tags", "algorithm", "max-removal", "hold",
    "eject-after", "eject-time", "eject-max", "silent-after", "connect-timeout", "dead-after", "suspicion", "address",
    "weight", "zone", "zone-min", "zone-spill",
)  # fmt: skip
_TEXTS: Final = (
    "10.64.0.1:80", "[fd00::1]:80", "10.64.0.1,10.64.0.2", "10.0.0.0/8", "redis", "_a._udp.x", "redis=10.64.0.1:6379",
    "a.x:80", "_a._tcp.x=[fd00::1]", "30s", "0.5", "round-robin", "127.0.0.1:53", "auto", "none", "info", "off", "",
)  # fmt: skip
_SCALARS: Final = (
    st.sampled_from(_TEXTS)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.booleans()
    | st.integers()
    | st.integers(0, 70000)
    | st.just(1 << 100)
    | st.floats()
    | st.dates()
)
_LIKELY: Final = st.sampled_from(_TEXTS) | st.lists(st.sampled_from(_TEXTS), max_size=3)
_VALUES: Final = _LIKELY | st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_SERVICE_KEYS), inner, max_size=4),
    max_leaves=6,
)
_NAMES: Final = st.sampled_from(["a", "b"])
_SERVICES: Final = st.lists(
    st.dictionaries(st.sampled_from(_SERVICE_KEYS), _VALUES, max_size=4)
    | st.builds(lambda name, vip: {"name": name, "consul": name, "vip": vip}, _NAMES, _VALUES)
    | st.builds(lambda name, servers: {"name": name, "servers": servers}, _NAMES, _VALUES)
    | st.builds(lambda name, tags: {"name": name, "consul": name, "tags": tags}, _NAMES, _VALUES)
    | _VALUES,
    max_size=3,
)


def toml(value: object) -> str:
    """Return a value in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int) and abs(value) > 1 << 63:
        return f"0x{abs(value):x}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml(one)}' for key, one in value.items())} }}"
    return value.isoformat() if isinstance(value, dt.date) else str(value)


def read(*arguments: str, **environment: str) -> Options:
    """Return the options of `run` with these arguments."""
    return read_options(make_parser().parse_args(["run", *arguments]), environment)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=3), st.none() | _SERVICES)
def test_any_types_lead_to_settings_or_one_line(tmp_path: Path, options: dict[str, object], services: object) -> None:
    """Any type at any key, nested in any way, is accepted, or rejected with a message of one line."""
    document = {"consul": True} | options | ({} if services is None else {"service": services})
    file = tmp_path / "clb.toml"
    file.write_text("".join(f"{key} = {toml(value)}\n" for key, value in document.items()))
    try:
        read_services(read("--config", str(file)))
    except UsageError as error:
        assert len(str(error)) < 2000  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hold = false", ["hold = false", "needs a value"]),
        ("real-range = false", ["real-range = false", "needs a value"]),
        ("hold = true", ["--hold", "expected one argument"]),
        ("metrics = 9100", ["--metrics", "'9100' is not ADDR:PORT", "127.0.0.1:17100"]),
        ('hosts-file = "a\\u0000b"', ["hosts-file = 'a\\x00b'", "NUL"]),
        ("service = ['a=10.64.0.300']", ["service: '10.64.0.300' is not a VIP"]),
    ],
)
def test_value_of_the_wrong_type_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    """The message names file, key and value, and a valid value."""
    file = tmp_path / "clb.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        read("--config", str(file))
    assert all(word in str(error.value) for word in [str(file), *words]), str(error.value)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.group.title == "Consul"])
@pytest.mark.parametrize("text", ["", "a\tb"], ids=["empty", "control"])
def test_an_empty_text_is_refused(tmp_path: Path, name: str, text: str) -> None:
    """It would count as if the option were absent: `--tag "$TAG"` would select all instances."""
    file = tmp_path / "clb.toml"
    file.write_text(f"{name} = {json.dumps(text)}")
    for typed in ([f"--{name}", text], ["--config", str(file)]):
        with pytest.raises(UsageError, match=f"--{name}: "):
            read(*typed)


def test_an_empty_unit_is_refused() -> None:
    """Programs for all processes would be loaded instead."""
    with pytest.raises(UsageError, match=r"--unit: '': write 1 to"):
        make_parser().parse_args(["load", "--unit", ""])


def test_switches_may_be_off(tmp_path: Path) -> None:
    """An option that needs no value may be false, which is the same as leaving it out."""
    file = tmp_path / "clb.toml"
    file.write_text("no-active = false\nconsul = false\ncatalog = false\nsrv = '_a._tcp.x'\n")
    options = read("--config", str(file))
    assert (options.no_active, options.consul, options.catalog, options.srv) == (False, None, False, ("_a._tcp.x",))


def test_typed_option_replaces_the_one_of_the_file(tmp_path: Path) -> None:
    """Repeatable options are replaced, too, and do not add up. All other options of the file count."""
    file = tmp_path / "clb.toml"
    file.write_text("hold = 5\ntag = ['a', 'b']\nresolver = '10.0.0.53'\nloader = 'bcc'\nno-active = true\n")
    options = read("--config", str(file), "--hold", "1m", "--tag", "c", "--loader", "object")
    assert (options.hold, options.tag, options.loader) == (60, ("c",), Loader.OBJECT)
    assert (options.resolver, options.no_active, options.log_level) == (("10.0.0.53",), True, "info")


@pytest.mark.parametrize("typed", [("--loader", "none"), ("--cgroup", "/a"), ()], ids=str)
def test_options_that_contradict_each_other(tmp_path: Path, typed: tuple[str, ...]) -> None:
    """Wherever the two are, a cgroup is of no use to a sidecar that loads nothing; the message has the fix."""
    file = tmp_path / "clb.toml"
    lines = {"--loader": "loader = 'none'\n", "--cgroup": "cgroup = '/b'\n"}
    file.write_text("".join(line for option, line in lines.items() if option not in typed))
    with pytest.raises(UsageError, match=r"--loader none ignores --cgroup.*load --cgroup PATH"):
        read("--config", str(file), *typed)


def test_file_is_read_again(tmp_path: Path) -> None:
    """The same command line gives other options after the file has changed."""
    file = tmp_path / "clb.toml"
    typed = make_parser().parse_args(["plan", "--config", str(file), "--tag", "a"])
    for hold in (1, 2):
        file.write_text(f"hold = {hold}\ntag = 'b'\n")
        options = read_options(typed, {})
        assert (options.hold, options.tag) == (hold, ("a",))


def test_environment_is_part_of_the_options() -> None:
    """STATE_DIRECTORY counts if no directory is given. The variables of Consul are kept, and never shown."""
    environment = {"STATE_DIRECTORY": "/b:/c", "CONSUL_HTTP_TOKEN": "s3cr3t", "HOME": "/root"}
    options = read(**environment)
    assert options.state_dir == Path("/b")
    assert options.consul_environment == {"CONSUL_HTTP_TOKEN": "s3cr3t"}
    assert "s3cr3t" not in repr(options)
    assert read("--state-dir", "/a", **environment).state_dir == Path("/a")
    assert read("--state-dir", "", **environment).state_dir == Path("/b")
    assert read().state_dir is None


def test_options_of_consul_and_their_variables_have_fields() -> None:
    """Each option that wins over a variable of Consul exists."""
    assert {name.removeprefix("--") for name in CONSUL_OPTIONS.values()} <= OPTIONS.keys()


def test_options_are_frozen() -> None:
    """No code changes an option after it was read."""
    with pytest.raises(FrozenInstanceError):
        read().hold = 1  # type: ignore[misc]


@pytest.mark.parametrize("option", ["--service", "--srv", "--dns"])
def test_name_that_is_given_twice_adds_up_its_vips(option: str) -> None:
    """VIPs of one name add up in order, each once. Automatic ones are added if the name is also given without a VIP."""
    name = {"--service": "redis", "--srv": "_redis._tcp.x", "--dns": "redis.x:6379"}[option]

    def services(*assignments: str) -> list[tuple[str, tuple[str, ...], bool]]:
        given = [word for one in assignments for word in (option, f"{name}{one}")]
        options = read("--consul", *given, "--service", "other=10.64.0.9")
        return [
            (one.source, tuple(map(str, one.vips)), one.automatic is not None)
            for one in read_services(options)
            if one.name == "redis"
        ]

    ((source, vips, automatic),) = services("=10.64.0.1:6379", "=10.64.0.2:6379,10.64.0.1:6379", "=[fd00::1]:1")
    assert source.endswith(name)
    assert (vips, automatic) == (("10.64.0.1:6379", "10.64.0.2:6379", "[fd00::1]:1"), False)
    for order in (("", "=10.64.0.1:6379"), ("=10.64.0.1:6379", "")):
        ((_, vips, automatic),) = services(*order)
        assert (len(vips), str(parse_vip("10.64.0.1:6379")) in vips, automatic) == (3, True, True)


def test_what_is_typed_takes_the_place_of_a_table(tmp_path: Path) -> None:
    """A typed name replaces the table of the same source with all its settings, and no other table."""
    file = tmp_path / "clb.toml"
    file.write_text(
        "consul = true\n[[service]]\nname = 'db'\nconsul = 'redis'\nvip = ['10.64.0.1', '10.64.0.2']\nhold = 5\n"
        "[[service]]\nname = 'ldap'\nservers = '10.0.0.5:389'\nvip = '10.64.0.3'\n"
    )
    options = read("--config", str(file), "--service", "redis=10.64.0.8", "--service", "redis=10.64.0.9")
    redis, ldap = read_services(options)
    assert (redis.name, tuple(map(str, redis.vips)), redis.policy.hold) == ("redis", ("10.64.0.8", "10.64.0.9"), 30)
    assert (ldap.name, ldap.source) == ("ldap", "static:ldap")


class Forbidden(PosixPath):
    """A file that only other users can read, also for tests as root."""

    def read_bytes(self) -> bytes:
        """Fail as open(2) does."""
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))


def test_file_that_the_user_may_not_read() -> None:
    """The error names the user that must be able to read the file: the units do not run as root."""
    typed = make_parser().parse_args(["run", "--config", "/etc/clb.toml"])
    typed.config = Forbidden(typed.config)
    with pytest.raises(UsageError, match=r"/etc/clb.toml: Permission denied; the user .* clb-discovery, must"):
        read_options(typed, {})
