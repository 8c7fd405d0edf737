"""Load the shipped object with libbpf.so.1: it creates maps or reuses pinned ones, and the kernel verifies programs.

Only the loader imports this; writing maps needs bpf(2) alone. The names of functions and structures are those of
libbpf, whose API is stable within 1.x.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from clb_discovery.datapath import bpf
from clb_discovery.datapath.loading import timers
from clb_discovery.datapath.loading.sizes import Sizes
from clb_discovery.datapath.loading.tick import tick_ns
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.errors import HostError
from clb_discovery.layout.structs import Map

_SHIPPED: Final = Path(__file__).parents[2] / "_bpf"


class Variant(StrEnum):
    """The compiled programs in the package, by the name of their object."""

    FULL = "clb"
    """For kernels with all features."""
    NO_BTF = "clb-no-btf"
    """For kernels with all features that do not describe their own types (CONFIG_DEBUG_INFO_BTF)."""
    FLOOR = "clb-floor"
    """For all other kernels."""

    @property
    def path(self) -> Path:
        """The path of the object."""
        return _SHIPPED / f"{self}.bpf.o"


def best(*, full: bool) -> Variant:
    """Return the variant for this kernel.

    :param full: whether it has all features.
    """
    if not full:
        return Variant.FLOOR
    return Variant.FULL if bpf.KERNEL_TYPES.exists() else Variant.NO_BTF


_LIBBPF_WARN: Final = 0
_PRINT: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def load_object(pins: Pins, variant: Variant, sizes: Sizes) -> dict[str, int]:
    """Load the shipped object. Its maps are pinned; existing pinned maps are reused unchanged.

    Other Python threads run while the kernel verifies the programs.

    :param sizes: those of the pinned maps, if there are any.
    :returns: a file descriptor of each program by name, which the caller closes.
    :raises HostError: if libbpf is missing or the kernel refuses the object.
    """
    library, shipped = _library(), variant.path
    library.libbpf_set_print(None)
    try:
        return _load(library, shipped, pins, sizes, [])
    except HostError:
        # Again, with messages, to find the cause. The first attempt has none, because each message takes the lock of
        # Python, which another thread may hold for milliseconds, and there are hundreds even without an error.
        messages: list[str] = []
        printer = _PRINT(_collector(messages))
        library.libbpf_set_print(printer)
        return _load(library, shipped, pins, sizes, messages)
    finally:
        library.libbpf_set_print(None)


def _load(library: ctypes.CDLL, shipped: Path, pins: Pins, sizes: Sizes, messages: Sequence[str]) -> dict[str, int]:
    """Load an object.

    :param messages: messages of libbpf about it.
    """
    opened = library.bpf_object__open_file(os.fsencode(shipped), None)
    if not opened:
        raise HostError(_failure(f"cannot open {shipped}", messages, "reinstall clb-discovery"))
    try:
        for map_ in Map:
            handle = library.bpf_object__find_map_by_name(opened, map_.encode())
            library.bpf_map__set_pin_path(handle, os.fsencode(pins.map(map_)))
            if map_ in sizes.elements:
                library.bpf_map__set_max_entries(handle, sizes.elements[map_])
        _set_constants(library, opened, sizes.buckets)
        if library.bpf_object__load(opened) != 0:
            raise HostError(_failure("the kernel rejects the programs", messages, "run: clb-discovery check"))
        return {
            name: os.dup(library.bpf_program__fd(library.bpf_object__find_program_by_name(opened, name.encode())))
            for name in PROGRAMS
        }
    finally:
        library.bpf_object__close(opened)


def _set_constants(library: ctypes.CDLL, opened: int, buckets: int) -> None:
    """Set `clb_constants`, all constants of the programs, before they are loaded."""
    handle = library.bpf_object__find_map_by_name(opened, b".rodata")
    tick = tick_ns()
    paces = timers.paces(timers.linear_timeouts(), tick)
    value = struct.pack(f"={3 + len(paces)}I", buckets, tick, timers.longest(tick), *paces)
    library.bpf_map__set_initial_value(handle, value, len(value))


def build() -> str:
    """Return the identity of the shipped objects: SHA-256 over all of them.

    :raises HostError: if one cannot be read.
    """
    try:
        return hashlib.sha256(b"".join(variant.path.read_bytes() for variant in Variant)).hexdigest()
    except OSError as error:
        raise HostError(f"cannot read {error.filename}: {error.strerror}; reinstall clb-discovery") from error


def require() -> str:
    """Check that libbpf and the objects exist; return the version of libbpf.

    :raises HostError: naming what is missing.
    """
    library = _library()
    build()
    library.libbpf_version_string.restype = ctypes.c_char_p
    version: bytes = library.libbpf_version_string()
    return version.decode()


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise HostError(
            "libbpf.so.1, which loads the programs, is missing; install libbpf1 (Debian, Ubuntu) or libbpf (Fedora)"
        ) from error
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("libbpf_set_print", pointer, [pointer]),
        ("bpf_object__open_file", pointer, [ctypes.c_char_p, pointer]),
        ("bpf_object__find_map_by_name", pointer, [pointer, ctypes.c_char_p]),
        ("bpf_map__set_pin_path", ctypes.c_int, [pointer, ctypes.c_char_p]),
        ("bpf_map__set_max_entries", ctypes.c_int, [pointer, ctypes.c_uint32]),
        ("bpf_map__set_initial_value", ctypes.c_int, [pointer, pointer, ctypes.c_size_t]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__find_program_by_name", pointer, [pointer, ctypes.c_char_p]),
        ("bpf_program__fd", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def _collector(messages: list[str]) -> Callable[[int, bytes, int], int]:
    libc = ctypes.CDLL(None)

    def collect(level: int, template: bytes, arguments: int) -> int:
        if level == _LIBBPF_WARN:
            text = ctypes.create_string_buffer(512)
            libc.vsnprintf(text, ctypes.c_size_t(len(text)), template, ctypes.c_void_p(arguments))
            messages.append(" ".join(text.value.decode(errors="replace").split()))
        return 0

    return collect


def _failure(what: str, messages: Sequence[str], fix: str) -> str:
    reason = messages[0] if messages else os.strerror(ctypes.get_errno())
    return f"{what}: {reason}; {fix}"
