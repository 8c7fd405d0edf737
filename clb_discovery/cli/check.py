"""`check`: report what works on this host, what `run` would use of each source, and how to fix everything else."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from rich.text import Text

from clb_discovery import log
from clb_discovery.cli.host_checks import LOOKED_AT, Finding, host_findings, privileges, target
from clb_discovery.cli.look_ahead import Outlook, look_ahead, read_installed
from clb_discovery.cli.output import need_not_be_read
from clb_discovery.cli.read_options import read_options
from clb_discovery.cli.unit_user import unreadable_files
from clb_discovery.config.options import Options
from clb_discovery.config.services import read_services
from clb_discovery.config.settings import ineffective
from clb_discovery.datapath import probe
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.maps import read_info
from clb_discovery.datapath.neighbours import others
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.listening import listening_here
from clb_discovery.documents.usage import Usage, count_servers, usage
from clb_discovery.errors import ClbError, HostError, SourceError
from clb_discovery.hints import outcomes_command
from clb_discovery.layout.installed import Installed, holders
from clb_discovery.model.neighbours import BELOW, overlaps
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Vip
from clb_discovery.model.service import CATALOG, Service
from clb_discovery.publication import dead_peers
from clb_discovery.publication.outcomes import WITHOUT_OUTCOMES, services_in_need
from clb_discovery.terminal.screen import plain, show
from clb_discovery.text import some_of, without_passwords

_SHOWN: Final = 8  # at most so many warnings about one source, and VIPs in one line
_OPT_IN: Final = 'add the tag clb to a service, or clb-vip = "auto" to its meta'


def main(typed: argparse.Namespace) -> int:
    """Print a line for each check, and their numbers; return 0, or the exit code of the first that fails."""
    log.configure("auto", "error")
    options = read_options(typed, os.environ)
    named = options.consul is not None or options.service or options.srv or options.dns or options.config
    services = read_services(options) if named else ()
    findings: list[Finding] = []
    for finding in _findings(options, services, offline=typed.offline):
        with need_not_be_read():
            show(_line(finding))
        findings.append(finding)
    with need_not_be_read():
        show(plain(_verdict(findings), "bold"))
    return next((finding.error.exit_code for finding in findings if finding.error), 0)


def _verdict(findings: Sequence[Finding]) -> str:
    failed = sum(finding.error is not None for finding in findings)
    warnings = sum(finding.warns for finding in findings)
    left_out = sum(finding.left_out for finding in findings)
    looked = len(findings) - warnings - left_out
    words = [f"{failed} of {looked} fail" if failed else f"all {looked} work"]
    if warnings:
        words.append(f"{warnings} warning{'' if warnings == 1 else 's'}")
    if left_out:
        words.append(f"{left_out} not checked")
    return ", ".join(words)


def _line(finding: Finding) -> Text:
    detail = finding.detail if finding.error is None else without_passwords(str(finding.error))
    mark = ("ok    ", "green")
    if finding.error:
        mark = ("FAIL  ", "bold red")
    elif finding.warns or finding.left_out:
        mark = ("warn  " if finding.warns else "skip  ", "yellow")
    return plain(*mark) + plain(f"{finding.what}{': ' if detail else ''}{detail}")


def _findings(options: Options, services: Sequence[Service], *, offline: bool) -> Iterator[Finding]:
    """Check the configuration, this host, each source, and the VIPs.

    A file can be checked anywhere: without privileges, its exit code is that of the file and its sources alone.
    """
    pins, allowed = Pins(options.instance), privileges()
    if options.config:
        count = sum(service.source != CATALOG for service in services)
        yield Finding("configuration", None, f"{options.config}: {count} service{'' if count == 1 else 's'}")
    warnings = (f"{option} has no effect: {reason}" for option, reason in ineffective(options))
    for text in (*warnings, *unreadable_files(options)):
        yield Finding("configuration", None, text, warns=True)
    if options.config and allowed.error:
        yield Finding("this host", None, f"{LOOKED_AT} are not checked: {allowed.error}", left_out=True)
    else:
        yield allowed
        yield from host_findings(options, pins)
        yield from _dead_peers(services)
    installed = Installed()
    with suppress(HostError):  # without permission
        installed = read_installed(pins)
    before = installed
    if services:
        ahead = look_ahead(options, services, installed, offline=offline)
        yield from _zone(options, ahead)
        yield from _sources(ahead)
        yield from _zones(ahead)
        installed = ahead.publication.plan.result
    vips = installed.virtual.keys() - {vip for vip, source in holders(installed).items() if is_own(source)}
    yield from _outcomes(pins, installed if options.loader is Loader.NONE else before)
    yield from _neighbours(options, pins, vips)
    yield from _listeners(installed, vips)


def _dead_peers(services: Sequence[Service]) -> Iterator[Finding]:
    """Check what services that close silent connections need of the kernel."""
    objection = dead_peers.objection(services, probe.features())
    if objection:
        yield Finding("dead peers", HostError(objection))


def _zone(options: Options, ahead: Outlook) -> Iterator[Finding]:
    """Report the zone of this host, if pools follow zones."""
    if ahead.zone_error:
        yield Finding("zone of this host", ahead.zone_error)
    elif ahead.zone:
        yield Finding("zone of this host", None, ahead.zone)
    elif options.zone:
        yield Finding("zone of this host", None, "the agent is not queried", left_out=True)


def _zones(ahead: Outlook) -> Iterator[Finding]:
    """Warn about pools without a real server in the zone of this host: a name may be wrong."""
    for source, zones in ahead.publication.desired.zones.items():
        pools = (one.pool for one in ahead.publication.desired.virtual.values() if one.source == source)
        found = {zones.get(server.endpoint) for pool in pools for server in pool}
        if found and ahead.zone not in found:
            named = ", ".join(some_of(sorted(map(repr, found - {None})), _SHOWN))
            others = f"they are in {named}" if named else "none of them has a zone"
            text = f"no real server is in the zone {ahead.zone!r}, so all zones are used alike; {others}"
            yield Finding(source, None, f"{text}; are --zone and --zone-key right?", warns=True)


def _sources(ahead: Outlook) -> Iterator[Finding]:
    """Report, for each source, the servers that would be used and those that would not."""
    used = usage(ahead.publication, ahead.why_empty)
    for source, one in ahead.following.items():
        if len(one.service.parts) > 1:
            yield from _part(ahead, source, used)
            continue
        if one.error is not None:
            yield Finding(source, ahead.failed.get(source) or SourceError(one.error))
        elif source not in ahead.outcomes:  # offline
            vips = ", ".join(some_of([str(vip) for vip in one.service.vips], _SHOWN))
            yield Finding(source, None, f"{vips}{'; ' if vips else ''}not queried", left_out=True)
        elif source == CATALOG:
            yield _catalog(ahead)
        elif source in used:
            yield _use(one.service, used[source], held=source in ahead.waiting)
        else:  # a service of the catalog that does not opt in
            continue
        left_out = [*map(str, (*ahead.left_out(source), *one.refused))]
        left_out += (*used[source].left_out, *used[source].without_vip) if source in used else ()
        note = ahead.note(source)
        for text in some_of([*([note] if note else []), *left_out], _SHOWN):
            yield Finding(source, None, text, warns=True)


def _part(ahead: Outlook, source: str, used: Mapping[str, Usage]) -> Iterator[Finding]:
    """Report one of several parts of a service; after the last one, the service as a whole.

    A part without real servers is no failure as long as the service has some.
    """
    one = ahead.following[source]
    service, part = one.service, one.part
    place = f"priority {part.priority}" + ("" if part.share is None else f", share {part.share}")
    if one.error is not None:
        yield Finding(source, ahead.failed.get(source) or SourceError(one.error))
    elif source not in ahead.outcomes:  # offline
        yield Finding(source, None, "not queried", left_out=True)
    else:
        count = len(one.guarded.good)
        why = ahead.why_empty.get(source)
        text = f"part of {service.name}, {place}: {count_servers(count)}{f': {why}' if why else ''}"
        yield Finding(source, None, text, warns=not count)
    for text in some_of([*filter(None, [ahead.note(source)]), *map(str, ahead.left_out(source))], _SHOWN):
        yield Finding(source, None, text, warns=True)
    if one.place < len(service.parts) - 1 or service.source not in used:
        return
    whole, remark = used[service.source], ahead.publication.desired.remarks.get(service.source)
    held = any(part.source in ahead.waiting for part in service.parts)
    if any(part.source in ahead.outcomes for part in service.parts):
        yield _use(service, whole, held=held)
    for text in some_of([*filter(None, [remark]), *whole.left_out, *whole.without_vip], _SHOWN):
        yield Finding(service.source, None, text, warns=True)


def _catalog(ahead: Outlook) -> Finding:
    """Count the services of the catalog that opt in."""
    count = len(ahead.publication.wanted.claims)
    if not count:
        return Finding(CATALOG, None, f"no service opts in; {_OPT_IN}", warns=True)
    return Finding(CATALOG, None, f"{count} service{' opts' if count == 1 else 's opt'} in")


def _outcomes(pins: Pins, installed: Installed) -> Iterator[Finding]:
    """Warn if services need the outcomes of connects, and nothing follows them. A sidecar that loads sees to that."""
    needy = services_in_need(installed)
    try:
        info = read_info(pins) if needy else None
        if info is None or loader.follows_outcomes(pins, Path(info.cgroup)):
            return
    except ClbError:  # not loaded, or without permission
        return
    names, fix = ", ".join(some_of(needy, _SHOWN)), outcomes_command(pins.instance, info.cgroup)
    text = f"not followed, which {names} need{'s' if len(needy) == 1 else ''}: {WITHOUT_OUTCOMES}; run: {fix}"
    yield Finding("outcomes of connects", None, text, warns=True)


def _neighbours(options: Options, pins: Pins, vips: Collection[Vip]) -> Iterator[Finding]:
    """Report other instances that serve the same VIPs. One on a cgroup below ours is a warning: it may be intended."""
    try:
        where = str(target(options, pins))
    except ClbError:  # another check reports it
        return
    for overlap in overlaps(where, vips, others(pins, where)):
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


def _use(service: Service, used: Usage, *, held: bool) -> Finding:
    if used.objection:
        return Finding(service.source, SourceError(used.objection))
    counts = some_of([f"{count_servers(count)} at {vip}" for vip, count in used.pools.items()], _SHOWN)
    words = [", ".join(counts)]
    words += [f"checked by {service.check}"] if service.check else []
    words += ["held first: it removes much"] if held else []
    return Finding(service.source, None, "; ".join(words))
