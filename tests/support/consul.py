"""A real Consul agent for a test: one server on 127.0.0.1, with helpers to register services and set their health."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.support.pace import patient
from tests.support.process import free_port, running, wait_until

MASTER_TOKEN = "1ebf7f9a-93c8-4f1c-a1d6-6d2a9d7f0a11"  # noqa: S105  # for agents that live for a test
ACL_DENY: Mapping[str, object] = {
    "acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER_TOKEN, "agent": MASTER_TOKEN}}
}
"""Extra configuration: requests without `MASTER_TOKEN` are rejected."""


class ConsulTls(NamedTuple):
    """Files of `consul tls`, for an agent that wants client certificates."""

    authority: Path
    port: int
    """For https; the server's name is server.dc1.consul."""
    config: dict[str, object]
    """Extra configuration of the agent."""
    client: dict[str, str]
    """Environment of a client that the agent accepts."""


def make_tls(folder: Path) -> ConsulTls:
    """Make an authority, and certificates for a server and a client, with Consul's own tool."""
    for command in (("ca", "create"), ("cert", "create", "-server"), ("cert", "create", "-client")):
        subprocess.run(["consul", "tls", *command], cwd=folder, check=True, capture_output=True)
    authority, port = folder / "consul-agent-ca.pem", free_port()
    config: dict[str, object] = {
        "ports": {"https": port},
        "ca_file": str(authority),
        "cert_file": str(folder / "dc1-server-consul-0.pem"),
        "key_file": str(folder / "dc1-server-consul-0-key.pem"),
        "verify_incoming_https": True,
    }
    client = {
        "CONSUL_CACERT": str(authority),
        "CONSUL_CLIENT_CERT": str(folder / "dc1-client-consul-0.pem"),
        "CONSUL_CLIENT_KEY": str(folder / "dc1-client-consul-0-key.pem"),
        "CONSUL_TLS_SERVER_NAME": "server.dc1.consul",
    }
    return ConsulTls(authority, port, config, client)


class ConsulAgent:
    """A `consul agent`, started and stopped at will on the same ports. Leave its block, or call `stop`, to end it.

    In development mode it loses everything when it stops; a persistent one keeps its services.
    """

    def __init__(
        self,
        directory: Path,
        *,
        http_port: int | None = None,
        dns_port: int | None = None,
        config: Mapping[str, object] | None = None,
        token: str | None = None,
        persistent: bool = False,
    ) -> None:
        """Choose ports; nothing is started yet.

        :param directory: for the configuration, the log and, if persistent, the data.
        :param config: extra configuration, as the agent's JSON (`ACL_DENY`).
        :param token: sent by the helpers below.
        :param persistent: keep the services over a restart, as outside development mode (starts in about 3 s, not 1).
        """
        spare = _free_ports(4)
        self.http_port = http_port or spare.pop()
        self.dns_port = dns_port or spare.pop()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.log = directory / "consul.log"
        self.data = directory / "consul-data"
        self._token = token
        self._persistent = persistent
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        ports = {"http": self.http_port, "dns": self.dns_port, "grpc": -1, "serf_wan": -1}
        ports |= {"server": spare.pop(), "serf_lan": spare.pop()}
        settings: dict[str, object] = {
            "node_name": "test",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": True,
            "performance": {"raft_multiplier": 1},
        }
        if persistent:
            settings |= {"server": True, "bootstrap_expect": 1, "data_dir": str(self.data)}
        extra = dict(config or {})
        ports |= extra.pop("ports", {})  # type: ignore[call-overload]  # JSON
        file = directory / "consul.json"
        file.write_text(json.dumps(settings | extra | {"ports": ports}), encoding="utf-8")
        self._command = ["consul", "agent", *([] if persistent else ["-dev"]), f"-config-file={file}"]

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self._process
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # nothing of it is needed any more, and an orderly end takes half a second

    def start(self) -> None:
        """Start it, and wait until it has a leader and knows its own node."""
        self._process = self._stack.enter_context(running(self._command, self.log))
        wait_until(self.ready, f"Consul serves on {self.url} (see {self.log})")

    def stop(self) -> None:
        """End the process (SIGTERM); it does not deregister anything."""
        self._stack.close()

    def kill(self) -> None:
        """End the process as a power cut does (SIGKILL)."""
        if self._process:
            self._process.kill()
        self._stack.close()

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def lose_state(self) -> None:
        """Stop a persistent agent and start it as if it had never run."""
        self.stop()
        shutil.rmtree(self.data)
        self.start()

    def ready(self) -> bool:
        """Return whether it answers from its catalog."""
        try:
            return bool(self.request("GET", "/v1/catalog/nodes"))
        except OSError:
            return False

    def leads(self) -> bool:
        """Return whether this server is the leader."""
        raft = self.request("GET", "/v1/agent/self")["Stats"]["raft"]
        return bool(raft["state"] == "Leader")

    def register(
        self,
        name: str,
        port: int,
        address: str = "",
        *,
        service_id: str | None = None,
        weights: tuple[int, int] | None = None,
        status: str = "passing",
        **more: object,
    ) -> str:
        """Register an instance with the agent, with one check that `set_status` sets.

        :param address: empty for the node's own.
        :param service_id: by default made of name, address and port.
        :param weights: for passing and for warning.
        :param more: other fields of the registration, such as `Meta` and `Tags`.
        :return: the service id.
        """
        service_id = service_id or f"{name}-{address}-{port}"
        body: dict[str, object] = {"Name": name, "ID": service_id, "Address": address, "Port": port}
        body["Check"] = {"CheckID": f"check:{service_id}", "Name": "set by the test", "TTL": "1h", "Status": status}
        if weights is not None:
            body["Weights"] = {"Passing": weights[0], "Warning": weights[1]}
        self.request("PUT", "/v1/agent/service/register", body | more)
        if self._persistent:  # the agent saves the last status of a check, not the one of its registration
            self.set_status(service_id, status)
        return service_id

    def deregister(self, service_id: str) -> None:
        """Remove an instance from the agent and the catalog."""
        self.request("PUT", f"/v1/agent/service/deregister/{urllib.parse.quote(service_id, safe='')}")

    def set_status(self, service_id: str, status: str) -> None:
        """Set the instance's check to `passing`, `warning` or `critical`."""
        check = urllib.parse.quote(f"check:{service_id}", safe="")
        self.request("PUT", f"/v1/agent/check/update/{check}", {"Status": status})

    def set_maintenance(self, service_id: str, *, enable: bool) -> None:
        """Put the instance into maintenance, or end it."""
        service = urllib.parse.quote(service_id, safe="")
        self.request("PUT", f"/v1/agent/service/maintenance/{service}?enable={str(enable).lower()}")

    def register_external(self, node: str, node_address: str, service: Mapping[str, object]) -> None:
        """Register an instance on a node without an agent in the catalog itself (`Service`, `Port`, `Address`…)."""
        self.request("PUT", "/v1/catalog/register", {"Node": node, "Address": node_address, "Service": service})

    def request(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON
        """Send a request to the HTTP API and return the decoded JSON, `None` for an empty answer.

        :raises OSError: if the agent cannot be reached or rejects it (`urllib.error.HTTPError`).
        """
        headers = {"Content-Type": "application/json"} | ({"X-Consul-Token": self._token} if self._token else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  # our own URL
        try:
            with urllib.request.urlopen(request, timeout=patient(10)) as answer:  # noqa: S310  # as above
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                error.add_note(error.read().decode(errors="replace"))
            raise
        return json.loads(text) if text.strip() else None


class ConsulCluster:
    """Three servers on 127.0.0.1, each a `ConsulAgent`."""

    def __init__(self, directory: Path, config: Mapping[str, object] | None = None) -> None:
        """Choose ports; nothing is started yet.

        :param config: extra configuration of the servers, as the agent's JSON.
        """
        ports = [_free_ports(2) for _ in range(3)]
        lans = [lan for lan, _ in map(sorted, ports)]
        self._join = [f"127.0.0.1:{port}" for port in lans]
        self.servers: list[ConsulAgent] = []
        for number, (lan, server) in enumerate(map(sorted, ports)):
            home = directory / str(number)
            home.mkdir()
            settings: dict[str, object] = {
                "node_name": f"server-{number}",
                "bootstrap_expect": 3,
                "retry_join": [f"127.0.0.1:{port}" for port in lans if port != lan],
                "retry_interval": "1s",
                "ports": {"serf_lan": lan, "server": server},
            }
            self.servers.append(ConsulAgent(home, config={**(config or {}), **settings}, persistent=True))

    def __enter__(self) -> Self:
        with ThreadPoolExecutor(3) as pool:  # none is ready before all are running
            list(pool.map(ConsulAgent.start, self.servers))
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.kill()

    def client(self, directory: Path, name: str = "client", config: Mapping[str, object] | None = None) -> ConsulAgent:
        """Return a client agent of the cluster, as on ordinary hosts; it is not started yet.

        :param name: of its node.
        :param config: extra configuration, as the agent's JSON.
        """
        settings: dict[str, object] = {"node_name": name, "server": False, "bootstrap_expect": 0}
        settings |= {"retry_join": self._join, "retry_interval": "1s"}
        return ConsulAgent(directory, config={**(config or {}), **settings}, persistent=True)

    def leader(self) -> ConsulAgent:
        """Return the server that reports itself as the leader."""
        (leader,) = (server for server in self.servers if server.leads())
        return leader


def _free_ports(count: int) -> set[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return ports
