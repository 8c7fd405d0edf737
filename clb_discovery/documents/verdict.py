"""The problems that the last line of `status` lists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from clb_discovery.hints import load_command
from clb_discovery.text import some_of

_NAMED: Final = 3  # at most so many names in one remark


def troubles(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems in the document of `status --json`, the worst first."""
    datapath, sidecar = status["datapath"], status["sidecar"]
    if not datapath["loaded"]:
        fix = "its sidecar loads it; with --loader none" if sidecar["running"] else "start the sidecar, or"
        yield f"the data plane is not loaded: nothing is balanced; {fix} run: {load_command(status['instance'])}"
    elif not datapath["effective"]:
        yield f"connects do not meet the programs: {datapath['reason']}"
    for overlap in datapath["overlaps"]:
        vips = _list(overlap["vips"])
        where = "same cgroup" if overlap["relation"] == "same" else f"{overlap['cgroup']}, {overlap['relation']}"
        yield f"instance {overlap['instance']} ({where}) serves the same VIPs: {vips}; give each instance its own"
    if sidecar["config_error"]:
        yield f"the configuration is refused, and the one before it goes on: {sidecar['config_error']}"
    unpublished = [one["service"] for one in status["unpublished"]]
    if unpublished:
        yield f"not published as it should be, for the reason above: {_list(unpublished)}"
    yield from _pools(status["virtual_servers"])
    for state, words in (("retrying", "no answer from"), ("held", "held back, for the reason above:")):
        names = [source["name"] for source in status["sources"] if source["state"] == state]
        if names:
            yield f"{words} {_list(names)}"
    refused = [source["name"] for source in status["sources"] if source["state"] == "fresh" and source["reason"]]
    if refused:
        yield f"refused in part, for the reason above: {_list(refused)}"
    if datapath["loaded"] and not sidecar["running"]:
        yield "no sidecar runs: pools stay as they are"


def empty_services(virtual_servers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the services without real servers at any VIP, by name, or by address if the name is unknown.

    A VIP of one family is no problem while the service has real servers of the other: automatic VIPs have both.
    """
    found: defaultdict[str, int] = defaultdict(int)
    for server in virtual_servers:
        found[server["service"] or server["address"]] += len(server["real_servers"])
    return [name for name, count in found.items() if not count]


def _pools(virtual_servers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    services: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for server in virtual_servers:
        services[server["service"] or server["address"]].extend(server["real_servers"])
    empty = empty_services(virtual_servers)
    if empty:
        yield f"no real servers, connects are refused: {_list(empty)}"
    out = {
        name: f"{name} ({len(ejected)} of {len(servers)})"
        for name, servers in services.items()
        if (ejected := [server for server in servers if server["state"] == "ejected"])
    }
    if out:
        yield f"ejected after failed connects: {_list(list(out.values()))}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(some_of(names, _NAMED))
