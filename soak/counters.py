"""Compare the kernel's counters with the clients' own, after all clients have ended. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from soak.judge import Judge, Key
from soak.scene import SERVICES, Service, port


def differences(instance: str, document: Mapping[str, Any], judge: Judge) -> Iterator[str]:
    """Yield each difference.

    Servers that come and go are left out: their counters restart each time.

    :param document: of `status --json`.
    """
    for found in document["virtual_servers"]:
        key = Key(instance, found["address"], found["protocol"])
        service = next(one for one in SERVICES if key.vip in {one.ipv4, one.ipv6})
        servers = {server["port"] - port(0): server for server in found["real_servers"]}
        where = f"counters of {service.name} ({instance}) at {key.vip}/{key.protocol}"
        if found["refused"]:
            yield f"{where}: {found['refused']} connects were refused, and the pool was never empty"
        for what in (*_of_servers(service, key, servers, judge), *_of_pools(service, key, servers.values(), judge)):
            yield f"{where}: {what}"


def _of_servers(service: Service, key: Key, servers: Mapping[int, Mapping[str, Any]], judge: Judge) -> Iterator[str]:
    for number in service.core:
        server = servers.get(number)
        if server is None:
            yield f"real server {number} is not in the pool"
            continue
        if server["active"]:
            yield f"{server['active']} active at real server {number}, and no client is left"
        if number not in service.mortal and server["failures"]:
            yield f"{server['failures']} failures of real server {number}, which never died"
        # An unconnected socket is counted once, with any number of datagrams.
        if not service.mortal and key.protocol == "tcp" and server["connects"] != judge.reached[key, number]:
            ours = judge.reached[key, number]
            yield f"the kernel counts {server['connects']} connects to real server {number}, clients {ours}"


def _of_pools(service: Service, key: Key, servers: Iterable[Mapping[str, Any]], judge: Judge) -> Iterator[str]:
    if not service.mortal:
        return
    servers = list(servers)  # no actor changes these
    for what, ours in (("connects", judge.tries[key]), ("failures", judge.failed[key])):
        counted = sum(server[what] for server in servers)
        if counted != ours:
            yield f"the kernel counts {counted} {what}, clients {ours}"
