"""Reading a configuration file: the words of the command line in TOML, and services as tables.

Everything raises ValueError with a message that names the table, the key, the value and the way out; whoever reads the
file adds its name.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from clb_discovery.core import spec
from clb_discovery.core.address import parse_address
from clb_discovery.core.model import MAX_NAME, MAX_PRIORITY, MAX_WEIGHT, Protocol, RealServer, Service, Vip

CONSUL: Final = "consul:"
SRV: Final = "srv:"
STATIC: Final = "static:"
"""What the names of sources begin with."""
CATALOG: Final = "catalog:consul"
"""Name of the source that lists which services of Consul opt in."""

_SOURCES: Final = ("consul", "srv", "servers")
_SETTINGS: Final[Mapping[str, Callable[[str], object]]] = {
    "algorithm": spec.parse_algorithm,
    "max-removal": spec.parse_share,
    "hold": spec.parse_duration,
    "linger": spec.parse_duration,
    "eject-after": spec.parse_count,
    "eject-time": spec.parse_milliseconds,
    "eject-max": spec.parse_milliseconds,
}
"""What a service may have its own of, as the options of the same names read it."""
_SELECTION: Final = ("filter", "tags")
"""Which of Consul's instances a service may have its own of."""
_SERVICE: Final = ("name", *_SOURCES, "vip", *_SELECTION, *_SETTINGS)
_LONGEST_TEXT: Final = 1024
_SERVER: Final = ("address", "weight", "priority")


@dataclass(frozen=True, slots=True)
class Entry:
    """A service as it was asked for, and what it has of its own."""

    service: Service
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of options, by their names with underscores."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says."""

    arguments: tuple[tuple[str, str], ...]
    """Names of options, and each as a command line would have it: `--hold=30s`. Repeatable ones come repeatedly."""
    entries: tuple[Entry, ...]


def decode(content: bytes, options: Mapping[str, bool]) -> Config:
    """Read a file.

    :param options: by the name of each option that may stand there, whether it is repeatable.
    :raises ValueError: naming what is wrong and the way out.
    """
    try:
        document = tomllib.loads(content.decode() + "\n")  # what is wrong in the last line is not "at end of document"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 (at line {line}); TOML has to be") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is not TOML: {error}") from None
    except RecursionError:
        raise ValueError("nests too deeply") from None
    tables = document.pop("service", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"service = {tables!r}: a service is a table; write [[service]] above its keys")
    arguments = [(name, argument) for name, value in document.items() for argument in _arguments(name, value, options)]
    entries = [_named(f"[[service]] {table.get('name', number)!r}", table) for number, table in enumerate(tables, 1)]
    _refuse_repeated(entries)
    return Config(tuple(arguments), tuple(entries))


def consul_entry(text: str) -> Entry:
    """Read what `--service` takes: `NAME[=VIP,...]`."""
    name, vips = spec.parse_assignment(text)
    return Entry(Service(name, CONSUL + name, vips, automatic=None if vips else Protocol.TCP))


def srv_entry(text: str) -> Entry:
    """Read what `--srv` takes: `NAME[=VIP,...]`."""
    protocol = spec.srv_protocol(text.rpartition("=")[0] or text)
    record, vips = spec.parse_assignment(text, protocol)
    return Entry(Service(spec.srv_service(record), SRV + record, vips, automatic=None if vips else protocol))


def _arguments(name: str, value: object, options: Mapping[str, bool]) -> list[str]:
    _refuse_unknown((name,), options)
    if isinstance(value, list):
        if not options[name]:
            raise ValueError(f"{name} = {value!r}: takes one value, not an array")
        return [f"--{name}={_text(name, item)}" for item in value]
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if options[name]:
        raise ValueError(f"{name} = {value!r}: is repeatable; write an array: {name} = [{value!r}]")
    return [f"--{name}={_text(name, value)}"]


def _named(where: str, table: Mapping[str, object]) -> Entry:
    try:
        return _entry(table)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _entry(table: Mapping[str, object]) -> Entry:
    _refuse_unknown(table, _SERVICE)
    name = _text("name", table.get("name", ""))
    if not 1 <= len(name.encode()) <= MAX_NAME or not name.isprintable():
        raise ValueError(f'has no name of 1 to {MAX_NAME} bytes of printable text; add name = "..."')
    kinds = [kind for kind in _SOURCES if kind in table]
    if len(kinds) != 1:
        raise ValueError(
            f"has {' and '.join(kinds) or 'nobody to ask'}; give one of consul (a service's name), srv (a record's "
            "name) and servers (an array of addresses)"
        )
    settings = {
        key.replace("-", "_"): _parsed(key, parse, table[key]) for key, parse in _SETTINGS.items() if key in table
    }
    settings |= _selection(table, kinds[0])
    protocol = Protocol.TCP
    servers: tuple[RealServer, ...] = ()
    if kinds == ["servers"]:
        source, servers = STATIC + name, _servers(table["servers"])
        settings = {"hold": 0.0, **settings}  # the operator's own word does not have to stand for a while
    else:
        asked = _text(kinds[0], table[kinds[0]])
        source = f"{kinds[0]}:{asked}"
        if kinds == ["srv"]:
            protocol = spec.srv_protocol(asked)
    vips = _vips(table["vip"], protocol) if "vip" in table else ()
    return Entry(Service(name, source, vips, servers=servers, automatic=None if vips else protocol), settings)


def _selection(table: Mapping[str, object], kind: str) -> dict[str, Any]:
    """Read which instances are wanted; values of the options `--filter` and `--tag`."""
    given = [key for key in _SELECTION if key in table]
    if given and kind != "consul":
        raise ValueError(f"{given[0]} = {table[given[0]]!r}: only Consul's instances have it; use it beside consul")
    found: dict[str, Any] = {}
    if "filter" in table:
        found["filter"] = _words("filter", table["filter"])
    if "tags" in table:
        tags = table["tags"]
        if not isinstance(tags, list):
            raise ValueError(f'tags = {tags!r}: write an array: tags = ["primary"]')
        found["tag"] = [_words("tags", tag) for tag in tags]
    return found


def _words(key: str, value: object) -> str:
    text = _text(key, value)
    if not text or not text.isprintable() or len(text) > _LONGEST_TEXT:
        raise ValueError(f"{key} = {value!r}: write 1 to {_LONGEST_TEXT} printable characters")
    return text


def _vips(value: object, protocol: Protocol) -> tuple[Vip, ...]:
    return tuple(
        _parsed("vip", lambda text: spec.parse_vip(text, protocol), vip) for vip in _text("vip", value).split(",")
    )


def _servers(value: object) -> tuple[RealServer, ...]:
    if not isinstance(value, list):
        raise ValueError(f'servers = {value!r}: write an array: servers = ["10.0.0.5:389"]')  # noqa: TRY004 - as all
    return tuple(_server(server) for server in value)


def _server(value: object) -> RealServer:
    table = value if isinstance(value, dict) else {"address": value}
    try:
        _refuse_unknown(table, _SERVER)
        host, port = spec.parse_listener(_text("address", table.get("address", "")))
        weight, priority = _number(table, "weight", 1, MAX_WEIGHT), _number(table, "priority", 0, MAX_PRIORITY)
    except ValueError as error:
        raise ValueError(f"servers: {error}") from None
    return RealServer(priority, parse_address(host), port, weight)


def _number(table: Mapping[str, object], key: str, default: int, most: int) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{key} = {value!r}: is not a number from 0 to {most}")
    return value


def _parsed(key: str, parse: Callable[[str], Any], value: object) -> Any:  # noqa: ANN401 - whatever it reads
    text = _text(key, value)
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _text(key: str, value: object) -> str:
    """Return a string, or a number as somebody would type it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key} = {value!r}: is neither text nor a number")  # noqa: TRY004 - as all
    return str(value)


def _refuse_unknown(keys: Collection[str], known: Collection[str]) -> None:
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use {', '.join(known)}"
            raise ValueError(f"{key!r} is no key here; {hint}")


def _refuse_repeated(entries: Sequence[Entry]) -> None:
    names: dict[str, str] = {}
    for entry in entries:
        source, name = entry.service.source, entry.service.name
        if source in names:
            raise ValueError(
                f'[[service]] {name!r}: {source} is followed by {names[source]!r}; give one table all VIPs, vip = "A,B"'
            )
        names[source] = name
