"""The problems in a document of `status`: its last line sums them up, and `--problems` lists them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from clb_discovery.documents.names import Identity, endpoint, identity, sources_of, titles
from clb_discovery.hints import load_command, outcomes_command, unload_others_command
from clb_discovery.publication.outcomes import WITHOUT_OUTCOMES
from clb_discovery.text import some_of

_NAMED: Final = 3  # at most so many names in one remark
_SOURCE_WORDS: Final = {
    "retrying": ("no answer from", "no answer from {}: {}"),
    "held": ("held (see above):", "{} held: {}"),
    "rejected": ("partly rejected (see above):", "{} partly rejected: {}"),
    "incomplete": ("answer incomplete (see above):", "{} answer incomplete: {}"),
}
"""What is wrong with a source, by the trouble that it has: for the last line, and for a list."""


class Problem(NamedTuple):
    """Something that is wrong."""

    subject: str
    """The service with the problem, as `titles` has it, or its source if no virtual server is known, or a part such as
    the sidecar."""
    text: str
    """The whole problem."""
    kind: str = ""
    """The words that the last line puts before the names of all subjects with a problem of this kind."""
    name: str = ""
    """The subject in that list."""


def problems(status: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems in the document of `status --json`, the worst first."""
    datapath, sidecar = status["datapath"], status["sidecar"]
    yield from _loaded(status)
    called = titles(status)
    in_need = dict.fromkeys(called[identity(one)] for one in status["virtual_servers"] if one["needs_outcomes"])
    if datapath["loaded"] and in_need and not datapath["outcomes"]:
        command = outcomes_command(status["instance"], datapath["cgroup"])
        fix = f"if the sidecar loads the programs, its log has the reason; else run: {command}"
        yield Problem("data plane", f"outcomes not followed for {_list(list(in_need))}: {WITHOUT_OUTCOMES}; {fix}")
    for overlap in datapath["overlaps"]:
        vips = _list(overlap["vips"])
        where = "same cgroup" if overlap["relation"] == "same" else f"{overlap['cgroup']}, {overlap['relation']}"
        text = f"instance {overlap['instance']} ({where}) serves the same VIPs: {vips}; give each instance its own"
        yield Problem("data plane", text)
    if sidecar["config_error"]:
        text = f"configuration rejected, the previous one stays in effect: {sidecar['config_error']}"
        yield Problem("configuration", text)
    if sidecar["metrics_error"]:
        yield Problem("metrics", f"metrics are not served: {sidecar['metrics_error']}")
    if sidecar["state_error"]:
        yield Problem("sidecar", sidecar["state_error"])
    yield from _zone(status.get("zone"))
    for one in status["unpublished"]:
        text = f"{one['virtual_servers']} of its virtual servers not published: {one['reason']}"
        name = called[identity(one)]
        yield Problem(name, text, "not published in full (see above):", name)
    yield from _pools(status["virtual_servers"], called)
    yield from _sources(status, called)
    if datapath["loaded"] and not sidecar["running"]:
        yield Problem("sidecar", "sidecar not running: pools will not be updated")


def layouts(numbers: Sequence[int]) -> str:
    """Return the words for map layouts of other versions; empty if there are none."""
    return f"layout {', '.join(f'v{number}' for number in numbers)}" if numbers else ""


def _loaded(status: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the programs: which are loaded, and whether they are in effect."""
    datapath, running, instance = status["datapath"], status["sidecar"]["running"], status["instance"]
    others, load = layouts(datapath["other_layouts"]), load_command(instance)
    if not datapath["loaded"] and others:
        pools = "the pools of its sidecar" if running else "its last pools"
        fix = "restart the sidecar; with --loader none run first:" if running else "start the sidecar, or run:"
        text = f"the data plane is loaded by another version ({others}): connects are balanced over {pools}"
        yield Problem("data plane", f"{text}; {fix} {load}")
    elif not datapath["loaded"]:
        fix = "its sidecar loads it; with --loader none" if running else "start the sidecar, or"
        yield Problem("data plane", f"the data plane is not loaded: nothing is balanced; {fix} run: {load}")
    elif not datapath["effective"]:
        reason = datapath["reason"]
        yield Problem("data plane", f"the programs are not in effect: connects are not balanced: {reason}")
    if datapath["loaded"] and others:
        text = f"the programs of {others} run first: changes do not reach connects until the sidecar has removed them"
        command = unload_others_command(instance)
        yield Problem("data plane", f"{text}, once its pools are published; if they stay, run: {command}")
    if datapath["load_error"]:
        stays = "; the programs of the previous one stay as they are" if datapath["loaded"] else ""
        yield Problem("data plane", f"the last load failed: {datapath['load_error']}{stays}")


def _zone(zone: Mapping[str, Any] | None) -> Iterator[Problem]:
    if zone and zone["error"]:
        stays = f"{zone['name']} stays" if zone["name"] else "pools do not follow zones"
        yield Problem("zone", f"the zone of this host cannot be read, {stays}: {zone['error']}")


def remarks(found: Iterable[Problem]) -> Iterator[str]:
    """Yield the remarks of the last line: one for all problems of a kind."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for problem in found:
        kinds[problem.kind or problem.text].append(problem.name)
    for words, names in kinds.items():
        yield f"{words} {_list(names)}" if any(names) else words


def empty_services(virtual_servers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each service without real servers at any VIP, or its address if the name is unknown.

    A VIP of one family is no problem while the service has real servers of the other: automatic VIPs have both.
    """
    return [service.name for service, servers in servers_of(virtual_servers).items() if not servers]


def servers_of(virtual_servers: Iterable[Mapping[str, Any]]) -> dict[Identity, dict[str, list[Mapping[str, Any]]]]:
    """Return the real servers of each service by their names, each as it is at every VIP that has it.

    A server behind several VIPs of a service is one server, which fails once.
    """
    found: dict[Identity, dict[str, list[Mapping[str, Any]]]] = {}
    for virtual in virtual_servers:
        servers = found.setdefault(identity(virtual), {})
        for one in virtual["real_servers"]:
            servers.setdefault(endpoint(one), []).append(one)
    return found


def _pools(virtual_servers: Iterable[Mapping[str, Any]], called: Mapping[Identity, str]) -> Iterator[Problem]:
    services = {called[service]: servers for service, servers in servers_of(virtual_servers).items()}
    for name in [name for name, servers in services.items() if not servers]:
        yield Problem(name, "no real servers: connects are refused", "no real servers, connects are refused:", name)
    for name, servers in services.items():
        failing = {
            endpoint(one): one["check_failure"] for ones in servers.values() for one in ones if one["check_failure"]
        }
        if failing:
            failures = _list([f"{server} ({reason})" for server, reason in failing.items()])
            count = f"{len(failing)} of {len(servers)}"
            text = f"{count} real servers fail their checks: {failures}"
            yield Problem(name, text, "fail checks:", f"{name} ({count})")
        out = [server for server, ones in servers.items() if any(one["state"] == "ejected" for one in ones)]
        ejected = [server for server in out if server not in failing]
        if ejected:
            count = f"{len(ejected)} of {len(servers)}"
            text = f"{count} real servers ejected after failed connects: {_list(ejected)}"
            yield Problem(name, text, "ejected after failed connects:", f"{name} ({count})")


def _sources(status: Mapping[str, Any], called: Mapping[Identity, str]) -> Iterator[Problem]:
    ours = (*status["unpublished"], *status["virtual_servers"])
    services = {source: called[identity(one)] for one in ours if one["service"] for source in sources_of(one)}
    for trouble, (words, text) in _SOURCE_WORDS.items():
        for source in status["sources"]:
            name = source["name"]
            if _trouble(source) == trouble:
                yield Problem(services.get(name, name), text.format(name, source["reason"]), words, name)


def _trouble(source: Mapping[str, Any]) -> str | None:
    """Return the trouble of a source; None without any, or in a state of a later version."""
    if source["state"] != "fresh":
        return str(source["state"])
    if not source["reason"]:
        return None
    return "incomplete" if source.get("rejected") == 0 else "rejected"


def _list(names: Sequence[str]) -> str:
    return ", ".join(some_of(names, _NAMED))
