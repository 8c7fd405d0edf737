"""A service as an operator wrote it: on the command line, or as a table of the configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clb_discovery.config import values
from clb_discovery.model.servers import Protocol
from clb_discovery.model.service import CONSUL, SRV, Service


@dataclass(frozen=True, slots=True)
class Entry:
    """A service, and its own settings."""

    service: Service
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of options that replace the general ones, by the names of their fields in `Options`."""
    place: str = field(default="", compare=False)
    """Where it is written, for messages: `--service redis=10.64.0.1`, `[[service]] 'redis'`."""


def consul_entry(text: str) -> Entry:
    """Read the value of `--service`: `NAME[=VIP,...]`.

    :raises ValueError: naming the value and how to fix it.
    """
    name, vips = values.parse_assignment(text)
    service = Service(name, CONSUL + name, vips, automatic=None if vips else Protocol.TCP)
    return Entry(service, place=f"--service {text}")


def srv_entry(text: str) -> Entry:
    """Read the value of `--srv`: `NAME[=VIP,...]`; raises as `consul_entry`."""
    protocol = values.srv_protocol(text.rpartition("=")[0] or text)
    record, vips = values.parse_assignment(text, protocol)
    service = Service(values.srv_service(record), SRV + record, vips, automatic=None if vips else protocol)
    return Entry(service, place=f"--srv {text}")
