"""Programs of this product that run before ours over pools that nothing here can see.

Programs stay attached while their links have a pin in any BPF file system: one that another mount covers, one of a
container, or another directory of ours. If they decide connects to our VIPs, our pools are not in effect. The self-test
does not show that, because the kernel runs all programs, and those in front refuse its connect like ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from clb_discovery.datapath import bpf
from clb_discovery.datapath.neighbours import pinned_vips, read_vips
from clb_discovery.datapath.pins import BPFFS, PROGRAMS, Pins
from clb_discovery.layout import structs
from clb_discovery.layout.structs import Map
from clb_discovery.model import own_servers
from clb_discovery.model.neighbours import shared_vips
from clb_discovery.model.servers import Vip
from clb_discovery.text import some_of

_DECIDING: Final = ("clb_connect4", "clb_connect6")
"""The programs that stand for all of one load."""
_SHAPES: Final = {
    (*structs.SIZES[Map.CHAINS], 1 << structs.CHAIN_BITS): Map.CHAINS,
    (*structs.SIZES[Map.VIRTUAL], structs.VIRTUAL_ELEMENTS): Map.VIRTUAL,
}
"""The maps that have the VIPs, by sizes of key and value and number of elements, which differ in other layouts."""
_NAMED: Final = 3  # at most so many VIPs in the message


def objection(pins: Pins, target: Path) -> str | None:
    """Return why hidden programs keep connects in the cgroup from our pools, and the fix; None if none does.

    Also None if we are not allowed to look: that needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    """
    try:
        effect = _effect(pins, target)
    except OSError:
        return None
    if effect is None:
        return None
    return (
        f"programs of clb-discovery without pins in {pins.home.parent} run before ours in {target} and {effect}; "
        f"if a second mount covers their pins (findmnt {BPFFS}), run: umount -l {BPFFS}; if their pins were moved, "
        "remove them; if a container has them, unload them there, or use other VIPs and another --instance"
    )


def _effect(pins: Pins, target: Path) -> str | None:
    found = {maps for name in _DECIDING for maps in _hidden(pins, name, target)}
    if not found:
        return None
    theirs: set[Vip] = set()
    for maps in found:
        vips = _vips(maps)
        if vips is None:
            return "may decide any connect, because their maps are of another version"
        theirs |= vips
    own = own_servers.virtual_servers(pins.instance)
    shared = shared_vips([*own, *pinned_vips(pins)], theirs)
    named = some_of([vip for vip in shared if vip not in own], _NAMED)
    if named:
        return f"decide connects to {', '.join(named)}"
    return "have the name of this instance" if shared else None


def _hidden(pins: Pins, name: str, target: Path) -> Iterator[frozenset[int]]:
    """Yield the ids of the maps of each program of this name that runs before ours and has no link pinned here."""
    directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        running = bpf.effective_programs(directory, PROGRAMS[name])
    finally:
        os.close(directory)
    before = running[: running.index(own)] if (own := _program(pins.link(name))) in running else ()
    seen = {_program(link) for link in pins.home.parent.glob(f"*/*/{name}_link*")} if before else set()
    for number in before:
        if number in seen:
            continue
        with suppress(FileNotFoundError):  # detached meanwhile
            program = bpf.open_program(number)
            try:
                called, maps = bpf.name_and_maps(program)
            finally:
                os.close(program)
            if called == name:
                yield frozenset(maps)


def _program(link: Path) -> int | None:
    """Return the id of the program of a pinned link; None if the pin is gone."""
    try:
        fd = bpf.open_pin(link)
    except FileNotFoundError:
        return None
    try:
        return bpf.link_program(fd)
    finally:
        os.close(fd)


def _vips(maps: frozenset[int]) -> set[Vip] | None:
    """Return the VIPs in maps; None if they are of another layout.

    :param maps: the ids of the maps of one program.
    """
    with ExitStack() as stack:
        fds = {}
        for number in maps:
            fd = bpf.open_map(number)
            stack.callback(os.close, fd)
            shape = (*bpf.map_sizes(fd), bpf.map_entries(fd))
            if shape in _SHAPES:
                fds[_SHAPES[shape]] = fd
        return {*read_vips(fds)} if len(fds) == len(_SHAPES) else None
