"""Events of the log as sentences for people. Programs get the same events as JSON, with all fields.

A sentence has fields in braces. A part in square brackets is left out if one of its fields is empty or zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

SENTENCES: Final = {
    "a program of this host listens on a VIP": "{listener} listens on the VIP {vip}[ of {service}]: {reason}",
    "another instance serves the same VIP": "Instance {instance} serves the same VIP: {reason}",
    "answer has a caveat": "Answer of {source} has a caveat: {note}",
    "answer is complete again": "Answer of {source} is complete again",
    "answer is incomplete": "Answer of {source} is incomplete[ ({times} more times)]: {error}",
    "changed options need a restart": "Changed options need a restart: {options}",
    "configuration reloaded": "Configuration reloaded: {services} services",
    "lines of the log were lost": "{count} lines of the log were lost, because nothing could be written to stderr",
    "maps were recreated": "Maps for {cgroup} were recreated; every pool is published again",
    "member left out": "{member} of {service} is left out: {reason}",
    "more lines left out": "{count} more lines of this kind are left out: {of}",
    "more members left out": "{count} more members of {service} are left out",
    "more real servers rejected": "{count} more real servers are rejected",
    "names published": "{names} names published in {file}",
    "no host name for a service": "{service} has no host name: {reason}",
    "not published": "{source} is not published[ ({times} more times)]: {error}",
    "option has no effect": "{option} has no effect: {reason}",
    "part has no real servers": "Part {source} of {service} has no real servers",
    "part has real servers again": "Part {source} of {service} has {servers} real servers again",
    "pool published": "Pool of {service} at {vip}: {change}[; added {added}][; removed {removed}][; changed {changed}]"
    "[; {settings}]; {servers} servers, generation {generation}",
    "programs attached again": "Programs attached to {cgroup} again",
    "published because there is room again": "{source} is published because there is room again",
    "ready": "Ready: {virtual_servers} virtual servers[, {stale} sources stale]",
    "real servers rejected": "Rejected {servers} of {service}: {reason}",
    "registration rejected": "Registration {value} of {service} is rejected: {reason}",
    "removal held": "Removal of {removed} of {of} real servers by {source} is held until an answer confirms it"
    "[ after {seconds} s]: {servers}",
    "removal no longer held": "Removal by {source} is no longer held[; removed {removed}][; back {back}]",
    "saved last known good sets ignored": "Saved last known good sets in {file} are ignored: {reason}",
    "secret reload failed; keeping the previous one": "Reload of {what} failed; keeping the previous one: {error}",
    "secret reloaded": "Reloaded {what}",
    "server ejected": "{server} of {service} at {vip} is ejected: {cause}"
    "[; probed in {probe_in} s][; ejection number {ejections}]",
    "server returned": "{server} of {service} at {vip} has returned[ after {out_for} s]",
    "servers cannot be checked": "{servers} cannot be checked[ ({times} more times)]: {error}",
    "serving the last known good set": "Serving the last known good set of {source}: {servers} servers[, from {since}]",
    "sockets closed": "{count} sockets of removed real servers closed",
    "source answers again": "{source} answers again",
    "source failed unexpectedly": "{source} failed unexpectedly",
    "source fails": "{source} fails[ ({times} more times)]: {error}",
    "started": "Version {version} started: instance {instance} on {cgroup}, {services} services",
    "zone of this host": "This host is in the zone {zone}, by its {source}",
    "virtual server removed": "Virtual server {vip}[ of {service}] removed",
}
"""By event; others are the event itself, which may be the text of a library, with the reason."""
_OTHERS: Final = "[ ({times} more times)][: {error}][: {reason}]"
_PARTS: Final = re.compile(r"\[([^]]*)\]|([^[]+)")
_FIELD: Final = re.compile(r"\{(\w+)\}")
_EMPTY: Final[tuple[object, ...]] = (None, "", [], ())


def sentence(event: str, fields: Mapping[str, Any]) -> str:
    """Return an event with its fields as one sentence; fields that the sentence does not name follow in brackets."""
    template = SENTENCES.get(event, _OTHERS)
    parts = [] if event in SENTENCES else [event[:1].upper() + event[1:]]
    for optional, required in _PARTS.findall(template):
        if required or all(fields.get(name) for name in _FIELD.findall(optional)):
            parts.append(_FIELD.sub(lambda found: _text(fields.get(found[1])), optional or required))
    named = set(_FIELD.findall(template))
    others = [f"{name} {_text(value)}" for name, value in fields.items() if name not in named and value not in _EMPTY]
    return "".join(parts) + (f" ({', '.join(others)})" if others else "")


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
