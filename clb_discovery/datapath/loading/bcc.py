"""Load with BCC: the sources in the package are compiled on this host, without kernel headers.

A short-lived child (`bcc_child/compile.py`) compiles them: the 130 MB of LLVM are freed with it, and it can run under
another Python interpreter, because BCC is part of the distribution and only visible to the system interpreter. The
package `bcc` on PyPI is unrelated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from clb_discovery.datapath import bpf, executables
from clb_discovery.datapath.loading import timers
from clb_discovery.datapath.loading.sizes import Sizes
from clb_discovery.datapath.loading.tick import tick_ns
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.errors import HostError
from clb_discovery.hints import unload_command
from clb_discovery.layout.structs import Map

SOURCES: Final = Path(__file__).parents[2] / "_bpf" / "src"
"""The contents of bpf/ in the package."""

_CHILD: Final = Path(__file__).parent / "bcc_child" / "compile.py"
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
_TIMEOUT: Final = 600.0
_ANSWER_SIZE: Final = 65536
_INSTALL: Final = "install python3-bpfcc (Debian, Ubuntu) or python3-bcc (Fedora)"


class _Answer(NamedTuple):
    """The answer of the child; `fields` are those of its messages."""

    python: str
    fields: Mapping[str, Any]
    descriptors: list[int]
    stderr: str


def load_sources(pins: Pins, sizes: Sizes, *, can_set_errno: bool, can_read_options: bool) -> dict[str, int]:
    """Compile and load the shipped sources. Their maps are pinned; existing pinned maps are reused.

    :param sizes: those of the pinned maps, if there are any.
    :returns: a file descriptor of each program by name, which the caller closes.
    :raises HostError: if BCC is missing, or BCC or the kernel refuses the sources.
    """
    tick = tick_ns()
    paces = timers.paces(timers.linear_timeouts(), tick)
    request = {
        "source": str(SOURCES / "clb.bpf.c"),
        "headers": str(SOURCES / "bcc"),
        "defines": {
            "CLB_CAN_SET_ERRNO": int(can_set_errno),
            "CLB_CAN_LOOP": 0,
            "CLB_CAN_READ_OPTIONS": int(can_read_options),
            "CLB_CAN_EXCHANGE": 0,
            "CLB_CAN_READ_KERNEL": 0,
            "CLB_ROWS": sizes.rows,
            "CLB_BUCKETS": sizes.buckets,
            "CLB_TICK_NS": tick,
            "CLB_LONGEST": timers.longest(tick),
            **{f"CLB_PACE_{repeats}": one for repeats, one in enumerate(paces, 1)},
        },
        "programs": [
            {"name": name, "type": attach_type.program_type, "attach_type": attach_type}
            for name, attach_type in PROGRAMS.items()
        ],
    }
    with ExitStack() as stack:
        maps = {map_: _open(pins.map(map_), stack) for map_ in Map}
        pinned = [descriptor for descriptor in maps.values() if descriptor is not None]
        answer = _ask(json.dumps({**request, "maps": maps}), pinned)
        if "loaded" in answer.fields:
            made = [map_ for map_, descriptor in maps.items() if descriptor is None]
            return _kept(pins, made, answer.descriptors)
    match answer.fields.get("failed"):
        case "maps":
            fix = unload_command(pins.instance)
            raise HostError(f"{answer.fields['reason']}, so it is not a map of this version; run: {fix}")
        case "load":
            raise HostError(f"the kernel rejects the programs: {_verdict(answer)}; run: clb-discovery check")
        case _:
            raise HostError(f"BCC cannot compile the programs: {_first_error(answer)}; please report it")


def build() -> str:
    """Return the identity of the shipped sources: SHA-256 over their names and contents.

    :raises HostError: if they cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(path for path in SOURCES.rglob("*") if path.is_file())
        for path in files:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(SOURCES)} {len(content)}\n".encode() + content)
    except OSError as error:
        raise HostError(f"cannot read {SOURCES}: {error.strerror}; reinstall clb-discovery") from error
    if not files:
        raise HostError(f"{SOURCES} is missing; reinstall clb-discovery")
    return digest.hexdigest()


def require() -> str:
    """Check that BCC and the sources exist; return the version of BCC and the interpreter that has it.

    :raises HostError: naming what is missing.
    """
    build()
    answer = _ask()
    return f"{answer.fields['version']} in {answer.python}"


def _open(pin: Path, stack: ExitStack) -> int | None:
    """Open a pinned map until the stack is closed; return None if it does not exist."""
    try:
        descriptor = bpf.open_pin(pin)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot open {pin}: {error.strerror}; run as root, or with CAP_BPF") from error
    stack.callback(os.close, descriptor)
    return descriptor


def _kept(pins: Pins, made: Sequence[Map], descriptors: Sequence[int]) -> dict[str, int]:
    """Pin the maps that are new, and return the programs."""
    programs = dict(zip(PROGRAMS, descriptors, strict=False))
    maps = dict(zip(made, descriptors[len(PROGRAMS) :], strict=True))
    try:
        for map_, descriptor in maps.items():
            bpf.pin(descriptor, pins.map(map_))
    except OSError as error:
        for descriptor in programs.values():
            os.close(descriptor)
        raise HostError(
            f"cannot pin the maps in {pins.directory}: {error.strerror}; is the BPF file system writable?"
        ) from error
    finally:
        for descriptor in maps.values():
            os.close(descriptor)
    return programs


def _ask(request: str | None = None, inherited: Sequence[int] = ()) -> _Answer:
    """Send a request to a child under the first interpreter that has BCC; without a request, only look for one."""
    unusable = ""
    for python in _interpreters():
        answer = _ask_one(python, request, inherited)
        if "version" in answer.fields:
            return answer
        unusable = unusable or answer.fields.get("unusable") or ""
    raise HostError(f"no Python of this host has BCC{': ' if unusable else ''}{unusable}; {_INSTALL}")


def _ask_one(python: str, request: str | None, inherited: Sequence[int]) -> _Answer:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            command = [python, str(_CHILD), str(theirs.fileno()), *([request] if request else [])]
            try:
                result = subprocess.run(  # noqa: S603 - an interpreter of this host and our own code
                    command,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    pass_fds=[theirs.fileno(), *inherited],
                    env=executables.environment(),
                    timeout=_TIMEOUT,
                )
            except subprocess.TimeoutExpired as error:
                raise HostError(
                    f"BCC in {python} did not end within {_TIMEOUT:g} s; is the host overloaded?"
                ) from error
            except OSError:  # not a working interpreter
                return _Answer(python, {}, [], "")
        fields, descriptors = _received(ours)
    return _Answer(python, fields, descriptors, result.stderr.decode(errors="replace"))


def _received(child: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the messages and descriptors that the child sent before it ended."""
    fields, descriptors = dict[str, Any](), list[int]()
    while True:
        message, received, _, _ = socket.recv_fds(child, _ANSWER_SIZE, len(PROGRAMS) + len(Map))
        if not message:
            return fields, descriptors
        fields |= json.loads(message)
        descriptors += received


def _interpreters() -> Iterator[str]:
    """Yield our own interpreter, that of the system, and every other in the system directories; each once."""
    yield sys.executable
    # A virtual environment counts separately, although its interpreter is a link to one of these.
    seen = {os.path.realpath(sys.executable)} if sys.prefix == sys.base_prefix else set[str]()
    for path in (_SYSTEM_PYTHON, *(path for folder in executables.PATH.split(":") for path in _pythons(folder))):
        real = os.path.realpath(path)
        if real not in seen and path != sys.executable and os.access(path, os.X_OK):
            seen.add(real)
            yield path


def _pythons(folder: str) -> list[str]:
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError:  # the directory may not exist
        return []
    return [str(path) for path in paths if re.fullmatch(r"python3(\.\d+)?", path.name)]


def _first_error(answer: _Answer) -> str:
    """Return the first error of the compiler with its place, or else the last line of output."""
    lines = [line for line in answer.stderr.splitlines() if line.strip()] or ["no reason was given"]
    return next((line for line in lines if "error:" in line.lower()), lines[-1])


def _verdict(answer: _Answer) -> str:
    """Return the name of the refused program and the last message of the verifier before its statistics."""
    verdicts = [line for line, after in pairwise(answer.stderr.splitlines()) if after.startswith("processed ")]
    return f"{answer.fields['program']}: {verdicts[-1] if verdicts else answer.fields['reason']}"
