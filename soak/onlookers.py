"""Onlookers: `trace --json`, started and ended repeatedly, and clients of metrics and status."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.client import HTTPException
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from clb_discovery.documents.trace import DROPPED, OUTCOMES
from soak.failures import Ejection
from soak.scene import SERVICES, ipv4, ipv6, port
from soak.stage import Stage
from soak.traffic import KEPT, KILLED
from tests.support.sidecar import COMMAND

METRICS: Final[Mapping[str, str]] = {KILLED: "127.0.0.1:9464", KEPT: "127.0.0.1:9465"}
"""The addresses of `--metrics`, by instance."""
PATIENCE: Final = 10.0
"""Seconds within which an answer comes, on a busy machine, too."""
NOT_POSSIBLE: Final = frozenset({1, 3})
"""The exit codes of `trace` if it cannot begin: nothing is loaded, or the run-time directory is read-only."""
SERVERS: Final = {
    service.name: {
        f"{address}:{port(number)}" for number in service.servers for address in (ipv4(number), f"[{ipv6(number)}]")
    }
    for service in SERVICES
}


def watch_connects(stage: Stage, dice: random.Random) -> None:
    """Read the trace of one instance for a moment."""
    if stage.stop.wait(dice.uniform(1.0, 6.0)):
        return
    instance, seconds = dice.choice(list(METRICS)), dice.uniform(0.1, 2.0)
    end = dice.choice([signal.SIGTERM, signal.SIGKILL])
    moment = stage.history.note("trace", f"of {instance} for {seconds:.1f} s, until {end.name}")
    with tempfile.TemporaryFile("w+") as told:
        command = [*COMMAND, "trace", "--json", "--instance", instance]
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.PIPE)
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(end)
            _, errors = process.communicate()
        told.seek(0)
        *whole, _ = told.read().split("\n")  # the last line was cut off
    for objection in (*objections_to_end(process.returncode, errors.decode(), end), *objections_to_lines(whole)):
        stage.objections.append((moment, f"trace of {instance}: {objection}"))


def objections_to_end(code: int, errors: str, sent: signal.Signals) -> Iterator[str]:
    """Return what is wrong with the end of a trace.

    :param sent: the signal that ended it, unless it had ended by itself.
    """
    could_not = code in NOT_POSSIBLE and errors.startswith("clb-discovery: ") and errors.count("\n") == 1
    if not could_not and (code not in {-sent, 128 + sent} or errors):
        yield f"ended with {code}: {errors!r}"


def objections_to_lines(lines: Iterable[str]) -> Iterator[str]:
    """Return what is wrong with the lines of a trace."""
    for line in lines:
        try:
            found = json.loads(line)
            outcome, service, server = found["outcome"], found["service"], found["real_server"]
        except (ValueError, KeyError, TypeError):
            yield f"no line of trace: {line!r}"
            continue
        if outcome == DROPPED:
            continue
        if outcome not in OUTCOMES:
            yield f"unknown outcome: {line}"
        elif service not in SERVERS or (server is not None and server not in SERVERS[service]):
            yield f"not of this service: {line}"


def watch_ejections(stage: Stage, _: random.Random) -> None:
    """Note the ejections that the sidecars log."""
    places = dict.fromkeys((stage.killed, stage.kept), 0)
    while not stage.stop.wait(0.1):
        for keeper, place in places.items():
            with keeper.log.open("rb") as file:
                file.seek(place)
                whole = file.read().rpartition(b"\n")[0]
            places[keeper] += len(whole)
            for line in whole.splitlines():
                if b'"server ejected"' in line:
                    found = json.loads(line)
                    what = f"{found['server']} at {found['vip']}: {found['cause']}"
                    moment = stage.history.note(keeper.name, f"ejects {what}")
                    number = int(found["server"].rpartition(":")[2]) - port(0)
                    stage.ejections.append(Ejection(moment, keeper.instance, number, found["cause"]))


def ask(stage: Stage, dice: random.Random) -> None:
    """Send a query to each sidecar; only the one that is killed may fail to answer."""
    if stage.stop.wait(dice.uniform(0.2, 1.0)):
        return
    path, check = dice.choice(list(CHECKS.items()))
    for instance, address in METRICS.items():
        moment = time.monotonic_ns()
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE) as answer:
                check(answer.read().decode())
        except (OSError, HTTPException) as error:  # an answer may be cut in its middle, too
            if instance == KEPT:
                stage.objections.append((moment, f"{instance} does not answer for {path}: {error}"))
        except (ValueError, KeyError) as error:
            stage.objections.append((moment, f"{instance} answers nonsense for {path}: {error!r}"))


def _check_metrics(text: str) -> None:
    families = {family.name for family in text_string_to_metric_families(text)}
    if "clb_pool_servers" not in families:
        raise ValueError(", ".join(families))


def _check_status(text: str) -> None:
    json.loads(text)["virtual_servers"][0]["real_servers"]


def _check_page(text: str) -> None:
    if "</html>" not in text:
        raise ValueError(text[-80:])


CHECKS: Final[Mapping[str, Callable[[str], None]]] = {
    "/metrics": _check_metrics,
    "/status.json": _check_status,
    "/": _check_page,
}

ONLOOKERS: Final = (watch_connects, watch_ejections, ask)
"""All of them."""
