"""Bringing the data plane of an instance up and down: maps and programs pinned, programs attached to a cgroup.

Loading is repeatable: what is there and current stays untouched, programs of another build are replaced in their links
without a moment in which a connect meets none, and maps of the same layout keep what they hold.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clb_discovery.core import selftest
from clb_discovery.core.layout import FEATURE_ERRNO, LAYOUT, Info
from clb_discovery.core.plan import plan
from clb_discovery.datapath import bpf, cgroup, libbpf, probe
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.errors import HostError


def load(pins: Pins, target: Path) -> None:
    """Make sure that the current programs run on connects in the cgroup; the caller holds the instance.

    What was attached stays so until everything that replaces it is there; a first load that fails leaves nothing.

    :raises HostError: naming what the kernel, a file system or a privilege lacks.
    """
    if is_current(pins, target):
        return
    probe.raise_memlock_limit()
    probe.require_hooks()
    is_first = not pins.home.exists()
    try:
        _load(pins, target)
    except BaseException:
        if is_first:
            pins.remove()
        raise


def _load(pins: Pins, target: Path) -> None:
    pins.create_directory()
    features = probe.features()
    programs = libbpf.load_object(pins, full=bool(features & FEATURE_ERRNO))
    with ExitStack() as stack, Maps(pins) as maps:
        for program in programs.values():
            stack.callback(os.close, program)
        maps.apply(plan(maps.read(), selftest.virtual_servers(pins.instance), complete=False).steps)
        try:
            _attach(pins, programs, target)
            maps.write_info(Info(LAYOUT, features, "object", _build(), str(target)))
        except OSError as error:
            raise HostError(
                f"cannot pin the programs in {pins.directory}: {error.strerror}; is the BPF file system writable?"
            ) from error


def is_current(pins: Pins, target: Path) -> bool:
    """Tell whether this build of the programs is loaded and attached to the cgroup, which may have been made anew."""
    if not pins.are_there():
        return False
    with Maps(pins) as maps:
        info = maps.info()
    return info is not None and info.build == _build() and is_attached(pins, target)


def is_attached(pins: Pins, target: Path) -> bool:
    """Tell whether every link is attached to the cgroup as it is now."""
    wanted = cgroup.identity(target)
    return wanted is not None and all(_attached_to(pins.link(name)) == wanted for name in PROGRAMS)


def unload(pins: Pins) -> None:
    """Detach the programs and remove every pin of the instance; the kernel frees the rest."""
    pins.remove()


def _build() -> str:
    try:
        return hashlib.sha256(b"".join(shipped.read_bytes() for shipped in libbpf.OBJECTS.values())).hexdigest()
    except OSError as error:
        raise HostError(f"cannot read {error.filename}: {error.strerror}; reinstall clb-discovery") from error


def _attached_to(link: Path) -> int | None:
    try:
        with _opened(link) as fd:
            return bpf.link_cgroup(fd)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise HostError(f"not allowed to open {link}; run as root, or with CAP_BPF") from error


def _attach(pins: Pins, programs: Mapping[str, int], target: Path) -> None:
    here = cgroup.identity(target)
    elsewhere = [name for name in programs if _attached_to(pins.link(name)) != here]
    with ExitStack() as stack:
        links = {}  # all of them before the first is pinned: one that cannot be made takes the others with it
        for name in elsewhere:
            links[name] = _create_link(programs[name], name, target)
            stack.callback(os.close, links[name])
        for name, program in programs.items():
            if name in links:
                _replace_pin(links[name], pins.link(name))
            else:
                with _opened(pins.link(name)) as link:
                    bpf.link_update(link, program)
            _replace_pin(program, pins.program(name))


def _create_link(program: int, name: str, target: Path) -> int:
    try:
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError(f"cannot open {target}: {error.strerror}; --cgroup takes a cgroup that exists") from error
    try:
        return bpf.link_create(program, directory, PROGRAMS[name])
    except OSError as error:
        raise HostError(
            f"cannot attach {name} to {target}: {error.strerror}; is a program there that allows no other? "
            f"see: bpftool cgroup show {target}"
        ) from error
    finally:
        os.close(directory)


def _replace_pin(fd: int, path: Path) -> None:
    """Pin under a temporary name and rename, so that an old object holds its place until the new one has it."""
    temporary = path.with_name(path.name + "_new")
    temporary.unlink(missing_ok=True)
    bpf.pin(fd, temporary)
    temporary.rename(path)


@contextmanager
def _opened(pin: Path) -> Iterator[int]:
    fd = bpf.open_pin(pin)
    try:
        yield fd
    finally:
        os.close(fd)
