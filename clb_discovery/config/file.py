"""Read a configuration file: options by their names, and services as tables.

Every function raises ValueError with a message that names the table, the key, the value and how to fix it. The caller
adds the name of the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from clb_discovery.config import parts, toml_values
from clb_discovery.config.options import OPTIONS
from clb_discovery.config.schema import Option
from clb_discovery.config.values import Entry, consul_entry, dns_entry, srv_entry
from clb_discovery.model import text_forms
from clb_discovery.model.servers import MAX_NAME, Protocol, Vip
from clb_discovery.model.service import Service, pool_name

KEYS: Final[Mapping[str, Option]] = {
    **{name: option for name, option in OPTIONS.items() if option.in_file},
    "service": OPTIONS["service"],
}
"""The options that a file may set. `service` may also hold tables."""
_SETTINGS: Final[Mapping[str, Callable[[str], object]]] = {
    name: OPTIONS[name].parse
    for name in (
        *("algorithm", "max-removal", "hold", "linger", "eject-after", "eject-time", "eject-max", "silent-after"),
        *("connect-timeout", "dead-after"),
        *("check", "check-interval", "check-timeout", "rise", "fall", "check-verify", "zone-min", "zone-spill"),
    )
}
"""The options that a service may set for itself, each with the parser of its value."""
_SERVICE: Final = ("name", *parts.KINDS, "from", "vip", *parts.SELECTION, *_SETTINGS, "suspicion", "zone")


@dataclass(frozen=True, slots=True)
class Config:
    """The content of a file."""

    arguments: tuple[str, ...] = ()
    """Its options, each as an argument of a command line: `--hold=30s`. A repeatable one has several arguments."""
    entries: tuple[Entry, ...] = ()
    """Its tables."""


def decode(content: bytes) -> Config:
    """Read a file."""
    try:
        # With the added line end, an error in the last line names that line, and not "end of document".
        document = tomllib.loads(content.decode() + "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 (at line {line}); save it as UTF-8") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:  # of tomllib, or of int for thousands of digits
        raise ValueError(f"is not TOML: {error}") from None
    toml_values.refuse_unknown_tables(document, KEYS, "service")
    document["service"], tables = _services(document.get("service", []))
    arguments = tuple(argument for name, value in document.items() for argument in _arguments(name, value))
    entries = []
    for position, table in enumerate(tables, 1):
        where = f"[[service]] {toml_values.shown(table.get('name', position))}"
        try:
            entries.append(replace(_entry(table), place=where))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    _refuse_repeated(_typed(document), entries)
    for name, value in document.items():
        option = KEYS[name]
        if value is False and not (option.is_switch or option.is_boolean or option.bare is not None):
            raise ValueError(f"{name} = false: needs a value; remove it to use the default")
    return Config(arguments, tuple(entries))


def _services(value: object) -> tuple[list[object], list[dict[str, object]]]:
    """Return the values of `--service`, and the tables of services."""
    if isinstance(value, dict):
        what = f"service = {toml_values.shown(value)}"
        raise ValueError(f"{what}: a service is a table; write [[service]] above its keys")  # noqa: TRY004 - as all
    services = value if isinstance(value, list) else [value]
    return [one for one in services if not isinstance(one, dict)], [one for one in services if isinstance(one, dict)]


def _arguments(name: str, value: object) -> list[str]:
    """Return an option of the file as arguments of a command line."""
    toml_values.refuse_unknown((name,), KEYS)
    value = _in_words(name, value)
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if KEYS[name].is_table and isinstance(value, dict):
        given = toml_values.pairs(name, value)
    else:
        given = toml_values.texts(name, value) if KEYS[name].repeatable else [toml_values.text(name, value)]
    return [f"--{name}={one}" for one in given]


def _in_words(name: str, value: object) -> object:
    """Return a boolean as the command line has it, if the option takes one."""
    return str(value).lower() if KEYS[name].is_boolean and isinstance(value, bool) else value


def _typed(document: Mapping[str, object]) -> list[Entry]:
    """Return the services that `service`, `srv` and `dns` name."""
    return [
        replace(toml_values.parsed(name, parse, one), place=f"{name} = {toml_values.shown(one)}")
        for name, parse in (("service", consul_entry), ("srv", srv_entry), ("dns", dns_entry))
        for one in toml_values.texts(name, document.get(name, []))
    ]


def _entry(table: Mapping[str, object]) -> Entry:
    toml_values.refuse_unknown(table, _SERVICE)
    name = toml_values.text("name", table.get("name", ""))
    if not 1 <= len(name.encode()) <= MAX_NAME or not name.isprintable():
        raise ValueError(f'has no name of 1 to {MAX_NAME} bytes of printable text; add name = "..."')
    found = parts.read_parts(name, table)
    settings = {
        key.replace("-", "_"): toml_values.parsed(key, parse, _in_words(key, table[key]))
        for key, parse in _SETTINGS.items()
        if key in table
    }
    if "from" not in table:
        settings |= parts.selection(table)
    if "suspicion" in table:
        settings["no_suspicion"] = not toml_values.boolean("suspicion", table["suspicion"])
    if "zone" in table and not _boolean_zone(table["zone"]):
        settings["zone"] = None
    protocol = parts.protocol_of(found)
    vips = _vips(table["vip"], protocol) if "vip" in table else ()
    if "from" in table:
        parts.refuse_without_vip(found, vips)
    service = Service(name, pool_name(found), vips, parts=found, automatic=None if vips else protocol)
    return Entry(service, settings)


def _boolean_zone(value: object) -> bool:
    """Return whether a service follows zones; the zone of the host is one for all services."""
    if isinstance(value, str):
        what = f"zone = {toml_values.shown(value)}"
        hint = "the zone of this host is for all services; move it to the top, or write zone = false"
        raise ValueError(f"{what}: {hint}")  # noqa: TRY004 - as all
    return toml_values.boolean("zone", value)


def _vips(value: object, protocol: Protocol) -> tuple[Vip, ...]:
    """Read VIPs from texts, each with one VIP or several separated by commas; a repeated one counts once."""
    names = [name for one in toml_values.texts("vip", value) for name in one.split(",")]
    if not names:
        raise ValueError("vip = []: has no VIP; remove it for automatic VIPs")
    vips = (toml_values.parsed("vip", lambda name: text_forms.parse_vip(name, protocol), name) for name in names)
    return tuple(dict.fromkeys(vips))


def _refuse_repeated(typed: Iterable[Entry], tables: Iterable[Entry]) -> None:
    """Make sure that each source has one table, and that no option of the file, which may repeat one, names it, too."""
    places = {entry.service.source: entry.place for entry in typed}
    for position, entry in enumerate(tables, 1):
        source, place = entry.service.source, f"[[service]] {entry.service.name!r} (table {position})"
        other = places.setdefault(source, place)
        if other is not place:
            raise ValueError(
                f'{place}: {other} already follows {source}; list all VIPs in one of them, vip = ["A", "B"]'
            )
