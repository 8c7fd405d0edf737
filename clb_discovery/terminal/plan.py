"""`plan` for people, with a sign before each line as in a diff: + added, - removed, ~ changed, ! rejected or noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from clb_discovery.documents.names import endpoint
from clb_discovery.terminal.parts import part_lines
from clb_discovery.terminal.screen import plain
from clb_discovery.terminal.zones import zone_lines

_SIGNS: Final = {"add": "+", "change": "~", "remove": "-"}
_STYLES: Final = {"+": "green", "~": "yellow", "-": "red", "!": "magenta"}
_SERVERS: Final = {"added": "+", "changed": "~", "removed": "-"}


def render(document: Mapping[str, Any]) -> Group:
    """Return the lines for the document of `plan --json`; the last one has the counts."""
    return Group(*_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[Text]:
    for change in document["changes"]:
        sources = [change["source"], *(part["source"] for part in change.get("parts", ()))]
        yield _virtual_server(change, queried=not set(sources) & set(document["unqueried"]))
        yield from (plain(f"    {line}", "dim") for line in (*part_lines(change), *zone_lines(change)))
        for kind, sign in _SERVERS.items():
            yield from (
                _signed(sign, f"{endpoint(server)}{_share(server, sign)}{_zone(server)}", "    ")
                for server in change[kind]
            )
    for item in document["refused"]:
        yield _signed("!", f"{item['service']}: {item['server']} is rejected: {item['reason']}")
    for item in document["notes"]:
        yield _signed("!", f"{item['service']}: {item['note']}")
    if document["unread"]:
        yield _signed("!", f"compared with nothing installed: {document['unread']}")
    for change in document["names"]:
        yield _signed("~", change["file"])
        yield from (_signed("+", line, "    ") for line in change["added"])
        yield from (_signed("-", line, "    ") for line in change["removed"])
    changed = document["changes"] or document["names"]
    yield plain("; ".join([*([] if changed else ["no changes"]), *_counts(document)]), "bold")


def _virtual_server(change: Mapping[str, Any], *, queried: bool) -> Text:
    settings = "".join(f"  {name} {old} -> {new}" for name, (old, new) in change["settings"].items())
    held = "  (held first: it removes much)" if change["held"] else ""
    title = f"{endpoint(change)}/{change['protocol']}  {change['service']} ({change['source']})"
    offline = "" if queried else "  (real servers not queried)"
    return _signed(_SIGNS[change["action"]], title + settings + held + offline)


def _counts(document: Mapping[str, Any]) -> Iterator[str]:
    changes = document["changes"]
    if changes:
        actions = [change["action"] for change in changes]
        virtual = ", ".join(f"{actions.count(action)} to {action}" for action in _SIGNS if action in actions)
        real = " ".join(f"{sign}{sum(len(change[kind]) for change in changes)}" for kind, sign in _SERVERS.items())
        yield f"virtual servers: {virtual}"
        yield f"real servers: {real}"
    if document["names"]:
        yield f"hosts files: {len(document['names'])} to change"
    if document["unqueried"]:
        yield f"sources: {len(document['unqueried'])} not queried"


def _share(server: Mapping[str, Any], sign: str) -> str:
    if sign == "-":
        return ""
    was = server.get("was", server)
    return "".join(
        f"  {name} {server[name]}" if was[name] == server[name] else f"  {name} {was[name]} -> {server[name]}"
        for name in ("weight", "priority")
    )


def _zone(server: Mapping[str, Any]) -> str:
    return f"  zone {server['zone']}" if server.get("zone") else ""


def _signed(sign: str, text: str, indent: str = "") -> Text:
    return plain(f"{indent}{sign} {text}", _STYLES[sign])
