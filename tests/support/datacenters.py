"""Two real Consul datacenters that know each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.consul import ConsulAgent
from tests.support.process import free_port, wait_until


class Datacenters:
    """An agent for each of two datacenters, `dc1` and `dc2`."""

    def __init__(self, directory: Path) -> None:
        """Choose ports; nothing is started yet."""
        self._wan = [free_port(), free_port()]
        self.agents: list[ConsulAgent] = []
        for number, port in enumerate(self._wan, 1):
            home = directory / f"dc{number}"
            home.mkdir()
            config = {"datacenter": f"dc{number}", "ports": {"serf_wan": port}}
            self.agents.append(ConsulAgent(home, config=config))

    def join(self) -> None:
        """Let the running agents meet over their WAN; again after one was started again."""
        here, _ = self.agents
        here.request("PUT", f"/v1/agent/join/127.0.0.1:{self._wan[1]}?wan=1")
        wait_until(lambda: set(here.request("GET", "/v1/catalog/datacenters")) == {"dc1", "dc2"}, "they have met")


@contextmanager
def datacenters(directory: Path) -> Iterator[Datacenters]:
    """Run both while the block runs."""
    found = Datacenters(directory)
    with ExitStack() as stack:
        for agent in found.agents:
            stack.enter_context(agent)
        found.join()
        yield found
