"""The checks of this host: privileges, kernel, file systems, loaders, and the data plane of an instance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.config.options import Options
from clb_discovery.datapath import cgroup, probe
from clb_discovery.datapath.loading import bcc, libbpf, loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.maps import read_info
from clb_discovery.datapath.mountinfo import read_proc
from clb_discovery.datapath.pins import BPFFS, Pins, is_bpffs
from clb_discovery.errors import ClbError, HostError
from clb_discovery.layout.structs import FEATURE_ERRNO

_STATUS: Final = Path("/proc/self/status")
_CAP_NET_ADMIN: Final = 12  # linux/capability.h, as all of these
_CAP_SYS_ADMIN: Final = 21
_CAPABILITIES: Final = {"CAP_PERFMON": 38, "CAP_BPF": 39}  # CAP_SYS_ADMIN includes each of them
LOOKED_AT: Final = "kernel, cgroup, file systems, loaders, and other instances"
"""The subjects of these checks, for people."""


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    error: ClbError | None
    detail: str = ""
    warns: bool = False
    """Whether it works, but an operator should look at it."""
    left_out: bool = False
    """Whether it was not checked."""


def privileges() -> Finding:
    """Check the capabilities for loading and attaching programs."""
    return _look("privileges", _privileges)


def host_findings(options: Options, pins: Pins) -> Iterator[Finding]:
    """Check whatever else loading needs, and the data plane if it is loaded."""
    probe.raise_memlock_limit()
    yield (hooks := _look("connect hooks", _hooks))
    if hooks.error is None:
        yield _look("errno of an empty pool", _errno)
    yield _look("cgroup v2", lambda: str(target(options, pins)))
    yield _look("BPF file system", _bpffs)
    yield from _loaders(options.loader)
    plane = _look(f"data plane of instance {pins.instance}", lambda: _effective(options, pins))
    if plane.error or plane.detail:
        yield plane


def target(options: Options, pins: Pins) -> Path:
    """Return the cgroup that `run` would balance; raises HostError if there is none.

    If another process loads, this is the cgroup of its last load, or the default of `load`.
    """
    if options.loader is not Loader.NONE:
        return cgroup.resolve(options.cgroup)
    info = None
    with suppress(HostError):  # nothing is loaded, or without permission
        info = read_info(pins)
    return cgroup.resolve(info.cgroup if info else None)


def _look(what: str, check: Callable[[], str | None]) -> Finding:
    """Return the finding of a check that returns a detail, or raises ClbError."""
    try:
        return Finding(what, None, check() or "")
    except ClbError as error:
        return Finding(what, error)


def _privileges() -> str:
    """Check capabilities(7); root has all of them."""
    status = dict(line.split(":\t", 1) for line in read_proc(_STATUS).splitlines() if ":\t" in line)
    capabilities = int(status["CapEff"], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not capabilities & (1 << bit | 1 << _CAP_SYS_ADMIN)]
    if not capabilities & 1 << _CAP_NET_ADMIN:
        missing.append("CAP_NET_ADMIN")
    if missing:
        raise HostError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; run as root")
    return f"user {os.geteuid()} with {', '.join([*_CAPABILITIES, 'CAP_NET_ADMIN'])}"


def _hooks() -> str:
    probe.require_hooks()
    return f"kernel {os.uname().release}"


def _errno() -> str:
    return "ECONNREFUSED" if probe.features() & FEATURE_ERRNO else "EPERM, because the kernel is older than 6.1"


def _bpffs() -> str:
    return f"mounted at {BPFFS}" if is_bpffs(BPFFS) else f"not mounted at {BPFFS}; load mounts it"


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


def _effective(options: Options, pins: Pins) -> str | None:
    if not pins.have_maps():
        return None
    where = target(options, pins)
    reason = loader.objection(pins, where)
    if reason:
        raise HostError(reason)
    return f"effective in {where}"
