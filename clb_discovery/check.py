"""`check`: what works on this host, and what to do about the rest."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from clb_discovery.core.layout import FEATURE_ERRNO
from clb_discovery.core.model import Listing, Service
from clb_discovery.datapath import bcc, cgroup, libbpf, loader, probe
from clb_discovery.datapath.loader import Loader
from clb_discovery.datapath.pins import BPFFS, Pins, is_bpffs
from clb_discovery.discovery import open_sources, read_services
from clb_discovery.errors import ClbError, HostError, SourceError


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    error: ClbError | None
    detail: str = ""


def report(options: argparse.Namespace) -> int:
    """Print a line for each thing that was looked at.

    :returns: 0 if all of them work, else the exit code of the first that does not.
    """
    failed: ClbError | None = None
    named = options.consul is not None or options.service or options.srv or options.config
    services = read_services(options) if named else ()
    for finding in _findings(options, services):
        mark = "ok  " if finding.error is None else "FAIL"
        detail = finding.detail if finding.error is None else str(finding.error)
        print(f"{mark}  {finding.what}{': ' if detail else ''}{detail}")  # noqa: T201 - this is the output
        failed = failed or finding.error
    return failed.exit_code if failed else 0


def _findings(options: argparse.Namespace, services: Sequence[Service]) -> Iterator[Finding]:
    pins = Pins(options.instance)
    probe.raise_memlock_limit()
    hooks = _look("connect hooks", _hooks)
    yield hooks
    if hooks.error is None:
        yield _look("errno of an empty pool", _errno)
    yield _look("cgroup v2", lambda: str(cgroup.resolve(options.cgroup)))
    yield _look("BPF file system", _bpffs)
    yield from _loaders(options.loader)
    plane = _look(f"data plane of instance {pins.instance}", lambda: _effective(pins, options.cgroup))
    if plane.error or plane.detail:
        yield plane
    if services:
        yield from asyncio.run(_ask(options, services))


def _loaders(wanted: str) -> Iterator[Finding]:
    """Look at the loaders: what is missing is a fault where it is wanted, or where the other cannot stand in for it."""
    by_object, by_bcc = _look("libbpf", libbpf.require), _look("BCC", bcc.require)
    if wanted == Loader.AUTO and by_object.error is None and by_bcc.error:
        by_bcc = Finding(by_bcc.what, None, f"not needed beside libbpf: {by_bcc.error}")
    elif wanted == Loader.AUTO and by_object.error and by_bcc.error is None:
        by_object = Finding(by_object.what, None, f"BCC stands in for it: {by_object.error}")
    if wanted != Loader.BCC:
        yield by_object
    if wanted != Loader.OBJECT:
        yield by_bcc


def _look(what: str, look: Callable[[], str | None]) -> Finding:
    try:
        return Finding(what, None, look() or "")
    except ClbError as error:
        return Finding(what, error)


def _hooks() -> str:
    probe.require_hooks()
    return f"kernel {os.uname().release}"


def _errno() -> str:
    return "ECONNREFUSED" if probe.features() & FEATURE_ERRNO else "EPERM, since the kernel is older than 6.1"


def _bpffs() -> str:
    return f"mounted at {BPFFS}" if is_bpffs(BPFFS) else f"not mounted at {BPFFS}; load mounts it"


def _effective(pins: Pins, path: str | None) -> str | None:
    if not pins.have_maps():
        return None
    target = cgroup.resolve(path)
    reason = loader.objection(pins, target)
    if reason:
        raise HostError(reason)
    return f"effective in {target}"


async def _ask(options: argparse.Namespace, services: Sequence[Service]) -> list[Finding]:
    """Ask each source once."""
    findings = []
    async with open_sources(options, services) as sources:
        for name, source in sources.items():
            try:
                answer = await source.next()
                if isinstance(answer, Listing):
                    said = f"{len(answer.names)} services may opt in"
                else:
                    said = f"{len(answer.servers)} real servers"
                findings.append(Finding(name, None, said))
            except SourceError as error:
                findings.append(Finding(name, error))
    return findings
