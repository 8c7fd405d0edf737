"""`check`: report what works on this host, and how to fix everything else."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from rich.text import Text

from clb_discovery import log
from clb_discovery.cli.look_ahead import Outlook, look_ahead, read_installed
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services
from clb_discovery.datapath import cgroup, probe
from clb_discovery.datapath.loading import bcc, libbpf, loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.neighbours import others
from clb_discovery.datapath.pins import BPFFS, Pins, is_bpffs
from clb_discovery.datapath.sockets.listening import listening_here
from clb_discovery.documents.usage import Usage, count_servers, usage
from clb_discovery.errors import ClbError, HostError, SourceError
from clb_discovery.layout.installed import Installed, holders
from clb_discovery.layout.structs import FEATURE_ERRNO
from clb_discovery.model.neighbours import BELOW, overlaps
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Vip
from clb_discovery.model.service import CATALOG, Service
from clb_discovery.terminal.screen import plain, show
from clb_discovery.text import some_of, without_passwords

_STATUS: Final = Path("/proc/self/status")
_CAP_NET_ADMIN: Final = 12  # linux/capability.h, as all of these
_CAP_SYS_ADMIN: Final = 21
_CAPABILITIES: Final = {"CAP_PERFMON": 38, "CAP_BPF": 39}  # CAP_SYS_ADMIN includes each of them
_SHOWN: Final = 8  # at most so many warnings about one source, and VIPs in one line


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    error: ClbError | None
    detail: str = ""
    warns: bool = False
    """Whether it works, but an operator should look at it."""


def main(typed: argparse.Namespace) -> int:
    """Print a line for each check, and their numbers; return 0, or the exit code of the first that fails."""
    log.configure("auto", "error")
    options = read_options(typed, os.environ)
    named = options.consul is not None or options.service or options.srv or options.config
    services = read_services(options) if named else ()
    findings: list[Finding] = []
    for finding in _findings(options, services):
        show(_line(finding))
        findings.append(finding)
    errors = [finding.error for finding in findings if finding.error]
    warnings = sum(finding.warns for finding in findings)
    looked = len(findings) - warnings
    verdict = f"{len(errors)} of {looked} fail" if errors else f"all {looked} work"
    show(plain(verdict + (f", {warnings} warning{'' if warnings == 1 else 's'}" if warnings else ""), "bold"))
    return errors[0].exit_code if errors else 0


def _line(finding: Finding) -> Text:
    detail = finding.detail if finding.error is None else without_passwords(str(finding.error))
    mark = ("warn  ", "yellow") if finding.warns else ("FAIL  ", "bold red") if finding.error else ("ok    ", "green")
    return plain(*mark) + plain(f"{finding.what}{': ' if detail else ''}{detail}")


def _findings(options: Options, services: Sequence[Service]) -> Iterator[Finding]:
    pins = Pins(options.instance)
    probe.raise_memlock_limit()
    yield _look("privileges", _privileges)
    yield (hooks := _look("connect hooks", _hooks))
    if hooks.error is None:
        yield _look("errno of an empty pool", _errno)
    yield _look("cgroup v2", lambda: str(cgroup.resolve(options.cgroup)))
    yield _look("BPF file system", _bpffs)
    yield from _loaders(options.loader)
    plane = _look(f"data plane of instance {pins.instance}", lambda: _effective(pins, options.cgroup))
    if plane.error or plane.detail:
        yield plane
    installed = Installed()
    with suppress(HostError):  # without permission
        installed = read_installed(pins)
    if services:
        ahead = look_ahead(options, services, installed)
        yield from _sources(ahead)
        installed = ahead.publication.plan.result
    vips = installed.virtual.keys() - {vip for vip, source in holders(installed).items() if is_own(source)}
    yield from _neighbours(pins, options.cgroup, vips)
    yield from _listeners(installed, vips)


def _loaders(wanted: Loader) -> Iterator[Finding]:
    """Check the loaders. A missing one fails if it was chosen, or if the other one is missing, too."""
    by_object, by_bcc = _look("libbpf", libbpf.require), _look("BCC", bcc.require)
    if wanted is Loader.NONE:  # another process loads, with either loader
        wanted = Loader.AUTO
    if wanted is Loader.AUTO and by_object.error is None and by_bcc.error:
        by_bcc = Finding(by_bcc.what, None, f"not needed beside libbpf: {by_bcc.error}")
    elif wanted is Loader.AUTO and by_object.error and by_bcc.error is None:
        by_object = Finding(by_object.what, None, f"BCC stands in for it: {by_object.error}")
    if wanted is not Loader.BCC:
        yield by_object
    if wanted is not Loader.OBJECT:
        yield by_bcc


def _look(what: str, look: Callable[[], str | None]) -> Finding:
    try:
        return Finding(what, None, look() or "")
    except ClbError as error:
        return Finding(what, error)


def _privileges() -> str:
    """Check the capabilities for loading and attaching programs (capabilities(7)); root has all of them."""
    status = dict(line.split(":\t") for line in _STATUS.read_text(encoding="utf-8").splitlines() if ":\t" in line)
    capabilities = int(status["CapEff"], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not capabilities & (1 << bit | 1 << _CAP_SYS_ADMIN)]
    if not capabilities & 1 << _CAP_NET_ADMIN:
        missing.append("CAP_NET_ADMIN")
    if missing:
        raise HostError(f"{', '.join(missing)} is missing; run as root")
    return f"user {os.geteuid()} with {', '.join([*_CAPABILITIES, 'CAP_NET_ADMIN'])}"


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


def _sources(ahead: Outlook) -> Iterator[Finding]:
    """Report, for each source, the servers that would be used and those that would not."""
    used = usage(ahead.publication)
    for source, one in ahead.following.items():
        if one.error is not None:
            yield Finding(source, ahead.failed.get(source) or SourceError(one.error))
        elif source == CATALOG:
            count = len(one.listed)
            yield Finding(source, None, f"{count} services may opt in", warns=not count)
        elif source in used:
            yield _use(source, used[source], held=source in ahead.waiting)
        else:  # a service of the catalog that does not opt in
            continue
        left_out = [*map(str, (*ahead.left_out(source), *one.refused))]
        left_out += used[source].left_out if source in used else ()
        note = ahead.note(source)
        for text in some_of([*([note] if note else []), *left_out], _SHOWN):
            yield Finding(source, None, text, warns=True)


def _neighbours(pins: Pins, path: str | None, vips: Collection[Vip]) -> Iterator[Finding]:
    """Report other instances that serve the same VIPs. One on a cgroup below ours is a warning: it may be intended."""
    try:
        target = str(cgroup.resolve(path))
    except ClbError:  # another check reports it
        return
    for overlap in overlaps(target, vips, others(pins)):
        what = f"instance {overlap.instance}"
        if overlap.relation == BELOW:
            yield Finding(what, None, str(overlap), warns=True)
        else:
            yield Finding(what, HostError(str(overlap)))


def _listeners(installed: Installed, vips: Collection[Vip]) -> Iterator[Finding]:
    """Warn about programs of this host that listen on a VIP."""
    for vip, listener in sorted(listening_here(vips).items()):
        label = installed.virtual[vip].label
        text = f"a program of this host listens on {listener}; its clients on this host get real servers of {vip}"
        yield Finding(label.source if label else "a VIP", None, f"{text} instead", warns=True)


def _use(source: str, used: Usage, *, held: bool) -> Finding:
    if used.objection:
        return Finding(source, SourceError(used.objection))
    counts = some_of([f"{count_servers(count)} at {vip}" for vip, count in used.pools.items()], _SHOWN)
    return Finding(source, None, f"{', '.join(counts)}{'; held first: it removes much' if held else ''}")
