"""What `check`, `plan` and `run` report about one configuration, so that tests can compare it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clb_discovery.model.text_forms import parse_vip
from tests.support.sidecar import clb_here, status


class Case(NamedTuple):
    """An answer of discovery, and the expected result."""

    answer: str
    """Lines of a zone, or addresses and ports of instances."""
    used: Mapping[str, int]
    """The number of real servers behind each VIP."""
    words: Sequence[str] = ()
    """Words that `check` has to print about it."""
    options: Sequence[str] = ()


class Checked(NamedTuple):
    """The lines of `check` about one source, or about all."""

    numbers: dict[str, int]
    """The number of real servers, by VIP."""
    warnings: list[str]
    failures: list[str]


def said_by_check(result: subprocess.CompletedProcess[str], source: str = "") -> Checked:
    """Return the report of `check` about a source, by default about all of discovery."""
    assert result.stderr == ""
    about = re.compile(rf"(?:ok  |FAIL|warn)  {re.escape(source) if source else '(?:consul|srv|static):'}")
    lines = [line for line in result.stdout.splitlines() if about.match(line)]
    numbers: dict[str, int] = {}
    for line in lines:
        if line[:4] == "warn":
            continue
        numbers |= {vip: int(count) for count, vip in re.findall(r"(\d+) real servers? at ([^\s,;]+)", line)}
        for vips in re.findall(r"no real server at ([^;]+), so", line):
            numbers |= dict.fromkeys(vips.split(", "), 0)
    kinds = ([line for line in lines if line.startswith(kind)] for kind in ("warn", "FAIL"))
    return Checked(numbers, *kinds)


class Planned(NamedTuple):
    """The result of `plan` with nothing loaded."""

    servers: dict[str, list[Any]]
    """The real servers that it would add, by VIP."""
    rejected: list[str]
    """Members."""
    notes: list[str]


def said_by_plan(options: Sequence[str | Path]) -> Planned:
    """Return the result of `plan`, which has to add everything."""
    result = clb_here("plan", "--json", *options)
    assert result.stderr == ""
    document = json.loads(result.stdout)
    changes: list[dict[str, Any]] = document["changes"]
    assert all(change["action"] == "add" for change in changes)
    return Planned(
        {vip_of(one): _servers(one["added"]) for one in changes},
        [one["server"] for one in document["refused"]],
        [one["note"] for one in document["notes"]],
    )


def said_by_status(instance: str) -> tuple[dict[str, list[Any]], str]:
    """Return the real servers of each VIP after `run`, and the reasons of all sources."""
    document = status(instance)
    reasons = " ".join(source["reason"] or "" for source in document["sources"])
    return {vip_of(one): _servers(one["real_servers"]) for one in document["virtual_servers"]}, reasons


def vip_of(found: Mapping[str, Any]) -> str:
    """Return the VIP of a virtual server in a document."""
    address = f"[{found['address']}]" if ":" in found["address"] else found["address"]
    port = f":{found['port']}" if found["port"] else ""
    return str(parse_vip(f"{address}{port}/{found['protocol']}"))


def _servers(found: Sequence[Mapping[str, Any]]) -> list[Any]:
    return sorted((one["priority"], one["address"], one["port"], one["weight"]) for one in found)


def assert_agreement(instance: str, cgroup: Path, case: Case, options: Sequence[str | Path], source: str = "") -> str:
    """Compare what the three commands report with each other and with the case, `run` last; return the lines of check.

    The real servers are those of plan and status, by address, port, weight and priority; check counts them. Each member
    that plan rejects has a line in check, and a reason in status. Real servers of a family without a VIP have a line in
    both. `check` and `plan` are about an instance that is not loaded.

    :param instance: for `run`.
    """
    options = [*options, *case.options]
    not_loaded = ["--instance", f"{instance}-ahead", *options]
    checked = clb_here("check", *not_loaded, "--cgroup", cgroup)
    numbers, warnings, failures = said_by_check(checked, source)
    planned, rejected, notes = said_by_plan(not_loaded)
    run = clb_here("run", "--once", "--instance", instance, *options, "--cgroup", cgroup)
    assert run.returncode == 0, run.stderr
    served, reasons = said_by_status(instance)
    assert served == planned
    sizes = {vip: len(servers) for vip, servers in served.items()}
    assert (sizes, numbers) == (case.used,) * 2, checked.stdout
    for member in rejected:
        name = re.compile(rf"{re.escape(member)}[ ,]")
        assert len(list(filter(name.search, warnings))) == 1, (member, checked.stdout)
        assert name.search(reasons)
    without_vip = [line for line in warnings if "VIP; add one" in line]
    assert [line.partition(f"{source}: ")[2] for line in without_vip] == [note for note in notes if "VIP; add" in note]
    assert (checked.returncode != 0) == any(line.startswith("FAIL") for line in checked.stdout.splitlines())
    assert bool(failures) == (0 in case.used.values()), checked.stdout
    assert all(word in checked.stdout for word in case.words), checked.stdout
    return checked.stdout
