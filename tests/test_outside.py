"""The outside that scripts, dashboards and units rely on: options, exit codes, JSON documents and metrics.

`outside.json` is the recorded list, and these tests compare it with the code. A line that disappears or changes breaks
somebody's script; a new line is an addition. Record the list again after a change that is meant:

    .venv/bin/python -m tests.test_outside
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from clb_discovery import errors
from clb_discovery.cli.look_ahead import Outlook
from clb_discovery.cli.main import main
from clb_discovery.cli.parser import make_parser
from clb_discovery.documents import instances
from clb_discovery.documents.causes import Cause
from clb_discovery.documents.instances import Found
from clb_discovery.documents.parts import configured
from clb_discovery.documents.status import Datapath, document
from clb_discovery.documents.trace import Joiner, Kind, dropped
from clb_discovery.errors import ClbError, HostError
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Event, Info, Server
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import FEATURE_ERRNO, LAYOUT
from clb_discovery.metrics.exposition import exposition
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.model.address import format_address, parse_address
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.servers import Algorithm, PassiveHealth, RealServer, Unpublished, Vip, VirtualServer
from clb_discovery.model.service import Part, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan
from clb_discovery.state.service import ServiceState
from clb_discovery.state.services import ServiceTable
from tests.support.contract import assert_is_status

RECORDED: Final = Path(__file__).with_suffix("").with_name("outside.json")
NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WEB, MAIL, FOREIGN, DNS = (parse_vip(f"10.64.0.{number}:80") for number in (1, 2, 3, 4))
ONE, TWO, THREE = (RealServer(0, parse_address("10.0.0.1"), port, 1) for port in (81, 82, 83))
INFO: Final = Info(LAYOUT, FEATURE_ERRNO, "object", "build", "/sys/fs/cgroup")
SERVICE: Final = Service("web", "static:web", (WEB,))
OWN_ZONE: Final = {"name": "eu-1a", "auto": True, "error": "the token lacks agent:read"}
COMPOSED: Final = Service("dns", "pool:srv:a + srv:b", (DNS,), parts=(Part("srv:a", share=3), Part("srv:b", share=1)))
ZONES: Final = {COMPOSED.source: {"eu-1a": ["10.0.0.1:81"]}}
JSON_TYPES: Final = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
CONFIG: Final = """
zone = "eu-1a"
zone-map = { "10.0.0.1/32" = "eu-1a" }
[[service]]
name = "web"
vip = "10.64.0.1:80"
servers = [{ address = "10.0.0.1:81", weight = 5 }, "10.0.0.1:82", "127.0.0.1:80"]
algorithm = "least-conn"
eject-after = 5
eject-time = "1s"
eject-max = "2s"
silent-after = "50ms"
connect-timeout = "2s"
dead-after = "15s"
suspicion = false
[[service]]
name = "db"
vip = "10.64.0.5:80"
from = [{ servers = "10.0.0.1:81", share = 1 }, { servers = "10.0.0.1:82", share = 2 }]
"""


def outside() -> dict[str, dict[str, Any]]:
    """Return the outside of the present code: a table of names for each kind."""
    return {
        "exit codes": exit_codes(),
        "options": {name: dict(options(command)) for name, command in commands().items()},
        "status --json": paths(*statuses()),
        "instances --json": paths(listed()),
        "plan --json": paths(*planned()),
        "trace --json": paths(*traced()),
        "metrics": metrics(),
    }


def exit_codes() -> dict[str, int]:
    """Return the exit code of each error."""
    found = (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ClbError))
    return {one.__name__: one.exit_code for one in found}


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each command, and that of the program under an empty name."""
    parser = make_parser()
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001 - argparse has no public access
    return {"": parser, **found.choices}


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield the options of a command, and whether each takes a value."""
    for action in parser._actions:  # noqa: SLF001 - as above
        value = "no value" if action.nargs == 0 else "optional value" if action.nargs == "?" else "value"
        if action.choices and action.option_strings:
            value = f"one of {', '.join(action.choices)}"
        many = ", repeatable" if isinstance(action, argparse._AppendAction) else ""  # noqa: SLF001 - as above
        yield from ((name, value + many) for name in action.option_strings)


def paths(*documents: Any) -> dict[str, str]:  # noqa: ANN401 - as in JSON
    """Return the paths of all values in some documents, with their types."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for one in documents:
        for path, kind in _paths(json.loads(json.dumps(one)), ""):
            found[path].add(kind)
    return {path: " or ".join(sorted(kinds)) for path, kinds in found.items()}


def _paths(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _paths(below, f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for below in value:
            yield from _paths(below, f"{path}[]")
    else:
        yield path, JSON_TYPES[type(value)]


def installed() -> Installed:
    """Return the state of the maps: three virtual servers of ours, and one that another program wrote."""
    virtual = {
        WEB: VirtualServer(WEB, "old", "static:old", Algorithm.RANDOM, (ONE, THREE), PassiveHealth(active=False)),
        MAIL: VirtualServer(MAIL, "mail", "srv:mail", Algorithm.ROUND_ROBIN, (ONE,)),
        DNS: VirtualServer(DNS, "dns", COMPOSED.source, Algorithm.RANDOM, (ONE, THREE._replace(part=1))),
        FOREIGN: VirtualServer(FOREIGN, "", "", Algorithm.RANDOM, ()),
    }
    found = plan(Installed(), virtual, complete=True).result
    foreign = replace(found.virtual[FOREIGN], label=None, algorithm=None)
    return replace(found, virtual={**found.virtual, FOREIGN: foreign})


def counted() -> dict[bytes, Server]:
    """Return the counters of its servers."""
    new = elements.unpack_server(elements.NEW_SERVER)
    failed = new._replace(failures=1, refused=1, ejected_until=1)
    return {member: failed for one in installed().virtual.values() for member in one.servers}


def following() -> list[ServiceState]:
    """Return a source that has never answered, one that is fresh, and one that fails now."""
    silent, fresh, failing = (Service("web", f"srv:{name}", (WEB,)) for name in ("silent", "fresh", "failing"))
    return [
        ServiceState(silent),
        ServiceState(fresh, answered=True, known=True, last_success=NOW),
        ServiceState(failing, answered=True, known=True, last_success=NOW, error="SERVFAIL"),
        ServiceState(COMPOSED),
        ServiceState(COMPOSED, 1),
    ]


def unpublished() -> list[Mapping[str, Any]]:
    """Return the services without room, as in the state of the sidecar."""
    table = ServiceTable([SERVICE])
    table.refuse({}, {}, [Unpublished(WEB, SERVICE.name, SERVICE.source, "the maps are full")])
    return list(table.unpublished)


def statuses() -> Iterator[dict[str, Any]]:
    """Yield a document of `status` with all keys, and one of an instance that is not loaded."""
    virtual = (Vip(WEB.address, 0, WEB.protocol),)
    overlaps = [Overlap("other", "/sys/fs/cgroup", "same", virtual)]
    state = {
        "last_sync": "2026-01-02T03:04:05Z",
        "config_error": "line 3",
        "metrics_error": "the port is in use",
        "sources": [one.document for one in following()],
        "unpublished": unpublished(),
        "parts": {COMPOSED.source: configured(COMPOSED)},
        "zone": OWN_ZONE,
        "zones": ZONES,
    }
    for datapath, pid, written in (
        (Datapath(INFO, installed(), counted(), None, 0, overlaps), 99, state),
        (None, None, {}),
    ):
        found = document(
            instance="default",
            version="1.2.3",
            kernel="6.1.0",
            datapath=datapath,
            pid=pid,
            state=written,
            state_error="cannot read it" if written else None,
            load_error="no such cgroup" if written else None,
            other_layouts=[LAYOUT - 1] if written else [],
        )
        assert_is_status(found)
        yield found


def listed() -> dict[str, Any]:
    """Return the document of `instances`, with an instance of this version and one of another layout."""
    return instances.document([Found("shop", (LAYOUT,), INFO, "1.2.3", 99), Found("old", (LAYOUT - 1,))])


def planned() -> Iterator[dict[str, Any]]:
    """Yield documents of `plan`, from the command itself: changes of every kind, and an offline one without maps."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        config, hosts = Path(directory) / "clb.toml", Path(directory) / "hosts"
        config.write_text(CONFIG)
        hosts.write_text("# BEGIN clb-discovery outside: written\n10.64.0.9 old.clb\n# END clb-discovery outside\n")
        patch.setattr("clb_discovery.cli.plan.read_installed", lambda _: installed())
        patch.setattr(Outlook, "note", lambda *_: "the answer may be incomplete")
        patch.setattr("clb_discovery.log.configure", lambda *_: None)
        files = ["--config", str(config), "--hosts-file", str(hosts)]
        yield printed("plan", "--json", "--instance", "outside", *files)
        patch.setattr("clb_discovery.cli.plan.read_installed", forbidden)
        yield printed("plan", "--json", "--instance", "outside", "--offline", "--srv", "_web._tcp.example")


def forbidden(_: object) -> Installed:
    """Fail as for an ordinary user."""
    raise HostError("not allowed")


def printed(*arguments: str) -> dict[str, Any]:
    """Return the document that a command with changes prints."""
    with io.StringIO() as output:
        with redirect_stdout(output):
            assert main(arguments) == 2
        document: dict[str, Any] = json.loads(output.getvalue())
        return document


def traced() -> Iterator[dict[str, Any]]:
    """Yield lines of `trace`: a connect and its outcome, an outcome alone, and a gap."""
    sent = Event(1, 0, 7, 8, 9, Kind.SENT, 0, elements.pack_member(elements.pack_vip(WEB), ONE), "curl")
    joiner = Joiner()
    outcome = sent._replace(process=0)
    ejected = outcome._replace(kind=Kind.EJECTED, cause=Cause.REFUSED)
    for event in (sent, outcome._replace(kind=Kind.ESTABLISHED), ejected):
        line = joiner.feed(event)
        if line:
            yield line.document("2026-01-02T03:04:05Z", "/web", "web")
    yield dropped(1).document("2026-01-02T03:04:05Z", None, None)


def metrics() -> dict[str, str]:
    """Return the metrics of a sidecar, each with its type and labels."""
    return {
        sample.name: " ".join([family.type, *sorted(sample.labels)])
        for family in families()
        for sample in family.samples
    }


def families() -> list[Metric]:
    """Return the families of metrics of a sidecar, with their samples."""
    datapath = Datapath(INFO, installed(), counted(), None, 0)
    checks = [{"address": format_address(WEB.address), "port": WEB.port, "protocol": "tcp", "down": {}}]
    state = {"config_error": None, "metrics_error": None, "checks": checks, "zone": OWN_ZONE, "zones": ZONES}
    report = Report("default", datapath, following(), state)
    meters = Meters()
    meters.follow_checks({"web"})
    return list(text_string_to_metric_families(exposition(report, meters).decode()))


def test_outside_is_as_recorded() -> None:
    """Options, exit codes, keys of documents, and metrics are exactly those of the list."""
    assert outside() == json.loads(RECORDED.read_text())


def test_every_metric_has_a_sample() -> None:
    """A metric without samples would be missing in the list."""
    assert [family.name for family in families() if not family.samples] == []


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(outside(), indent=1) + "\n")
