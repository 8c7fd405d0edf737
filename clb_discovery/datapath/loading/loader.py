"""Load and unload the data plane of an instance: pin maps and programs, and attach the programs to a cgroup.

There are two loaders: libbpf loads the shipped object, BCC the shipped sources. Both give programs over the same pinned
maps. Loading is repeatable: whatever is current stays untouched; programs of another build or loader are replaced in
their links, so that a program is in effect at every moment; maps of the same layout keep their content.

The program that learns outcomes is always loaded, and attached only while something needs it. Only the holder of the
lock for loading attaches or detaches it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from clb_discovery.datapath import bpf, cgroup, handover, hidden, probe
from clb_discovery.datapath import selftest as proof
from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.loading import bcc, libbpf
from clb_discovery.datapath.loading.home import make_home
from clb_discovery.datapath.loading.sizes import Sizes, pinned_sizes
from clb_discovery.datapath.maps import Maps, read_info
from clb_discovery.datapath.pins import OUTCOMES, PROGRAMS, Pins, detach
from clb_discovery.errors import BusyError, HostError
from clb_discovery.hints import load_command
from clb_discovery.layout.elements import Info
from clb_discovery.layout.structs import FEATURE_ERRNO, FEATURE_LOOP, FEATURE_OPTIONS, LAYOUT, Map
from clb_discovery.model import own_servers
from clb_discovery.publication.plan import plan


class Loader(StrEnum):
    """How programs get into the kernel, with the names of `--loader` and `clb_info`."""

    AUTO = "auto"
    """The object, or BCC if the object cannot be loaded. Current programs stay, whichever loader loaded them."""
    OBJECT = "object"
    BCC = "bcc"
    NONE = "none"
    """Another process loads: see `datapath.handover` and `datapath.plane`. Only for `run`."""


def load(  # noqa: PLR0913 - independent choices of two commands
    pins: Pins,
    target: Path,
    loader: Loader = Loader.AUTO,
    *,
    room: Sizes | None = None,
    alone: bool = True,
    outcomes: bool = True,
) -> bool:
    """Make sure that the current programs are attached to the cgroup. The caller holds the lock for loading.

    The network namespace of the caller becomes home, see `clb_home`.

    Attached programs stay until everything that replaces them is ready. A first load that fails leaves nothing, and
    after one that was killed, the next load is the first.

    :param room: the sizes of new maps; existing ones keep theirs.
    :param alone: whether no other process writes the maps. Another writer keeps the self-test servers in them itself.
    :param outcomes: attach the program that learns outcomes, too. Otherwise it stays as it is, attached or not.
    :returns: whether the instance had no pins before.
    :raises HostError: naming the missing kernel feature, file system or privilege.
    """
    if is_current(pins, target, loader):
        make_home(pins, target)
        if outcomes:
            follow_outcomes(pins, target)
        return False
    probe.raise_memlock_limit()
    probe.require_hooks()
    if not _was_loaded(pins):
        pins.remove_layout()
    is_first = not pins.layouts()
    try:
        _load(pins, target, loader, room or Sizes(), alone=alone, outcomes=outcomes)
        make_home(pins, target)
    except BaseException:
        if is_first:
            pins.remove()
        raise
    return is_first


def _was_loaded(pins: Pins) -> bool:
    """Tell whether a load of this layout has ended: it then wrote the record, and before that nothing is published.

    Otherwise its pins are those of a load that was killed: not all of them, or maps of other sizes than wanted now.
    A map of the record that was taken away tells nothing about links that are there.
    """
    return read_info(pins) is not None if pins.map(Map.INFO).exists() else pins.have_links()


def _load(  # noqa: PLR0913 - those of `load`
    pins: Pins, target: Path, loader: Loader, room: Sizes, *, alone: bool, outcomes: bool
) -> None:
    pins.create_directory()
    features = probe.features()
    used, descriptors = programs(pins, loader, features, room)
    with ExitStack() as stack, Maps(pins) as maps:
        for program in descriptors.values():
            stack.callback(os.close, program)
        if alone or maps.info() is None:  # a writer opens new maps only after the load
            maps.apply(plan(maps.read(), own_servers.virtual_servers(pins.instance), complete=False).steps)
        try:
            handover.prepare(pins)
            _attach(pins, descriptors, target, outcomes=outcomes)
            # Programs compiled by BCC cannot pass a function to a helper.
            granted = features if used is Loader.OBJECT else features & ~FEATURE_LOOP
            maps.write_info(Info(LAYOUT, granted, used, build(used), str(target)))
        except OSError as error:
            raise HostError(
                f"cannot pin the programs in {pins.directory}: {error.strerror}; is the BPF file system writable?"
            ) from error


def programs(pins: Pins, loader: Loader, features: int, room: Sizes | None = None) -> tuple[Loader, dict[str, int]]:
    """Load the programs over the pinned maps, without attaching them; missing maps are created.

    :param features: CLB_FEATURE_* bits that the programs can use.
    :param room: the sizes of missing maps.
    :returns: the loader that was used, and a descriptor of each program by name, which the caller closes.
    :raises HostError: naming what is missing, or what the kernel has refused.
    """
    can_set_errno, can_read_options = bool(features & FEATURE_ERRNO), bool(features & FEATURE_OPTIONS)
    sizes = _sizes(pins) or room or Sizes()
    if loader is Loader.BCC:
        return Loader.BCC, bcc.load_sources(pins, sizes, can_set_errno=can_set_errno, can_read_options=can_read_options)
    try:
        return Loader.OBJECT, libbpf.load_object(pins, libbpf.best(full=can_set_errno), sizes)
    except HostError as error:
        if loader is Loader.OBJECT:
            raise
        try:
            return Loader.BCC, bcc.load_sources(
                pins, sizes, can_set_errno=can_set_errno, can_read_options=can_read_options
            )
        except HostError as other:
            raise HostError(f"{error}; --loader bcc fails, too: {other}") from error


def _sizes(pins: Pins) -> Sizes | None:
    try:
        return pinned_sizes(pins)
    except OSError as error:
        raise HostError(f"cannot open the maps in {pins.directory}: {error.strerror}; run as root") from error


def is_current(pins: Pins, target: Path, loader: Loader = Loader.AUTO) -> bool:
    """Tell whether this build of the programs is loaded and attached to the cgroup, not to a former one of its name."""
    if not pins.are_there():
        return False
    with Maps(pins) as maps:
        info = maps.info()
    return (
        info is not None
        and loader in {Loader.AUTO, info.loader}
        and info.build == build(info.loader)
        and info.cgroup == str(target)  # it is written after the last link, also that of `OUTCOMES`
        and is_attached(pins, target)
    )


def is_attached(pins: Pins, target: Path) -> bool:
    """Tell whether every link is attached to the present cgroup, except that of `OUTCOMES`: see `follows_outcomes`."""
    here = cgroup.identity(target)
    return here is not None and all(_attached_to(pins.link(name)) == here for name in PROGRAMS if name != OUTCOMES)


def follows_outcomes(pins: Pins, target: Path) -> bool:
    """Tell whether the program that learns outcomes is attached to the present cgroup."""
    here = cgroup.identity(target)
    return here is not None and _attached_to(pins.link(OUTCOMES)) == here


def follow_outcomes(pins: Pins, target: Path) -> None:
    """Attach the program that learns outcomes, if it is not attached. The caller holds the lock for loading.

    :raises HostError: naming the cause.
    """
    if follows_outcomes(pins, target):
        return
    try:
        with _opened(pins.program(OUTCOMES)) as program:
            link = _create_link(program, OUTCOMES, target)
            try:
                _replace_pin(link, pins.link(OUTCOMES))
            finally:
                os.close(link)
    except OSError as error:
        raise HostError(f"cannot attach {OUTCOMES} to {target}: {error.strerror}") from error


def leave_outcomes(pins: Pins) -> None:
    """Detach the program that learns outcomes. The caller holds the lock for loading.

    :raises HostError: if the file system does not allow it.
    """
    try:
        detach(pins.link(OUTCOMES))
    except OSError as error:
        raise HostError(f"cannot detach {OUTCOMES}: {error.strerror}") from error


def leave_outcomes_unless_traced(pins: Pins) -> None:
    """Detach it and let no trace begin meanwhile; a trace that runs keeps it. Otherwise as `leave_outcomes`."""
    with suppress(BusyError), Instance(pins.instance).tracing():
        leave_outcomes(pins)


def objection(pins: Pins, target: Path) -> str | None:
    """Return why connects in the cgroup are not balanced as they should be, or None if they are.

    The self-test connect checks the connect hooks, unless the cgroup is frozen. The links show the state of all hooks.
    Neither shows programs in front of ours.
    """
    reason = proof.run(pins.instance, target)
    if reason is None and not is_attached(pins, target):
        return f"not every program is attached to {target}; run: {load_command(pins.instance, target)}"
    return reason or hidden.objection(pins, target)


def unload(pins: Pins) -> None:
    """Detach the programs and remove every pin of the instance; the kernel frees the objects."""
    pins.remove()


def build(loader: str) -> str:
    """Return the identity of the programs that a loader of this version loads, as it is in `Info`.

    :raises HostError: if the package lacks them.
    """
    return bcc.build() if loader == Loader.BCC else libbpf.build()


def _attached_to(link: Path) -> int | None:
    try:
        with _opened(link) as fd:
            return bpf.link_cgroup(fd)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise HostError(f"not allowed to open {link}; run as root, or with CAP_BPF") from error


def _attach(pins: Pins, programs: Mapping[str, int], target: Path, *, outcomes: bool) -> None:
    here = cgroup.identity(target)
    left_out = set() if outcomes or pins.link(OUTCOMES).exists() else {OUTCOMES}
    elsewhere = [name for name in programs if name not in left_out and _attached_to(pins.link(name)) != here]
    with ExitStack() as stack:
        links = {}  # create all links before pinning the first: if one fails, none stays
        for name in elsewhere:
            links[name] = _create_link(programs[name], name, target)
            stack.callback(os.close, links[name])
        for name, program in programs.items():
            if name in links:
                _replace_pin(links[name], pins.link(name))
            elif name not in left_out:
                with _opened(pins.link(name)) as link:
                    bpf.link_update(link, program)
            _replace_pin(program, pins.program(name))


def _create_link(program: int, name: str, target: Path) -> int:
    try:
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError(f"cannot open {target}: {error.strerror}; --cgroup needs a cgroup that exists") from error
    try:
        return bpf.link_create(program, directory, PROGRAMS[name])
    except OSError as error:
        raise HostError(
            f"cannot attach {name} to {target}: {error.strerror}; is a program attached there exclusively? "
            f"see: bpftool cgroup show {target}"
        ) from error
    finally:
        os.close(directory)


def _replace_pin(fd: int, path: Path) -> None:
    """Pin under a temporary name and rename, so that the old object stays until the new one replaces it."""
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
