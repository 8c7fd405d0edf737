"""`plan` for people: a diff with a line for each server."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from clb_discovery.terminal.plan import render
from clb_discovery.terminal.screen import as_text


def server(address: str, port: int, weight: int = 1, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - as in JSON
    """Return a real server of the document."""
    return {"address": address, "port": port, "weight": weight, "priority": 0, **more}


def change(action: str, address: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    """Return a change of the document."""
    found = {"action": action, "service": "web", "source": "srv:web", "address": address, "port": 80, "protocol": "tcp"}
    empty: dict[str, Any] = {"held": False, "settings": {}, "added": [], "removed": [], "changed": []}
    return {**found, **empty, **more}


DOCUMENT = {
    "changes": [
        change("remove", "10.64.0.1", port=0, removed=[server("10.0.0.9", 80)]),
        change(
            "change",
            "10.64.0.2",
            held=True,
            settings={"algorithm": ["random", "least-conn"]},
            added=[server("10.0.0.1", 82)],
            removed=[server("10.0.0.1", 81)],
            changed=[server("10.0.0.1", 80, 3, was={"weight": 1, "priority": 0})],
        ),
        change("add", "fd00:64::1", service="\x1b[2Jweb", added=[server("fd00::1", 80), server("fd00::2", 80)]),
    ],
    "refused": [{"service": "web", "server": "127.0.0.1:80", "reason": "it is loopback"}],
    "notes": [{"service": "web", "note": "the answer may be incomplete"}],
    "names": [],
    "unqueried": [],
    "unread": None,
}
NOTHING: dict[str, Any] = {"changes": [], "refused": [], "notes": [], "names": [], "unqueried": [], "unread": None}


def test_every_server_has_a_line_and_the_last_line_counts() -> None:
    """Lines show added, removed and changed servers with former and new values, held changes and rejected servers."""
    assert as_text(render(DOCUMENT), 1000).splitlines() == [
        "- 10.64.0.1:*/tcp  web (srv:web)",
        "    - 10.0.0.9:80",
        "~ 10.64.0.2:80/tcp  web (srv:web)  algorithm random -> least-conn  (held first: it removes much)",
        "    + 10.0.0.1:82  weight 1  priority 0",
        "    ~ 10.0.0.1:80  weight 1 -> 3  priority 0",
        "    - 10.0.0.1:81",
        r"+ [fd00:64::1]:80/tcp  \x1b[2Jweb (srv:web)",
        "    + [fd00::1]:80  weight 1  priority 0",
        "    + [fd00::2]:80  weight 1  priority 0",
        "! web: 127.0.0.1:80 is rejected: it is loopback",
        "! web: the answer may be incomplete",
        "virtual servers: 1 to add, 1 to change, 1 to remove; real servers: +3 ~1 -2",
    ]


def test_nothing_to_change() -> None:
    """Without changes there is one line, which reports that."""
    assert as_text(render(NOTHING), 80) == "no changes\n"


def test_lines_of_hosts_files_are_shown() -> None:
    """They are shown below their file, and files are counted separately."""
    name = {"file": "/etc/hosts", "added": ["10.64.0.1 web.clb"], "removed": ["10.64.0.2 web.clb"]}
    assert as_text(render({**NOTHING, "names": [name]}), 80).splitlines() == [
        "~ /etc/hosts",
        "    + 10.64.0.1 web.clb",
        "    - 10.64.0.2 web.clb",
        "hosts files: 1 to change",
    ]
    both = as_text(render({**DOCUMENT, "names": [name]}), 200)
    assert both.splitlines()[-1].endswith("real servers: +3 ~1 -2; hosts files: 1 to change")


def test_signs_have_colours_on_a_terminal() -> None:
    """Added servers are green and removed ones red. Other streams get no colour."""
    output = io.StringIO()
    Console(file=output, force_terminal=True, color_system="standard", width=200).print(render(DOCUMENT))
    assert "\x1b[31m- 10.64.0.1:*/tcp" in output.getvalue()
    assert "\x1b[32m    + 10.0.0.1:82" in output.getvalue()
    assert "\x1b" not in as_text(render(DOCUMENT), 200)


def test_offline_plan_shows_which_real_servers_are_unknown() -> None:
    """Changes of sources that were not queried are marked; a line reports that the maps were not read."""
    queried = change("add", "10.64.0.2", source="static:web", added=[server("10.0.0.1", 80)])
    changes = [change("add", "10.64.0.1"), queried]
    document = {**NOTHING, "changes": changes, "unqueried": ["srv:web", "consul:api"], "unread": "run as root"}
    assert as_text(render(document), 1000).splitlines() == [
        "+ 10.64.0.1:80/tcp  web (srv:web)  (real servers not queried)",
        "+ 10.64.0.2:80/tcp  web (static:web)",
        "    + 10.0.0.1:80  weight 1  priority 0",
        "! compared with nothing installed: run as root",
        "virtual servers: 2 to add; real servers: +1 ~0 -0; sources: 2 not queried",
    ]
    assert as_text(render({**NOTHING, "unqueried": ["srv:web"]}), 80) == "no changes; sources: 1 not queried\n"
