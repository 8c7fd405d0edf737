"""The results of glibc's own res_search(3) for a resolv.conf, in a process that sees that file as /etc/resolv.conf."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import dns.message
import dns.rdatatype

from tests.support.pace import patient

_SRV: Final = 33
_PROGRAM: Final = f"""
import ctypes, json, sys
libc, resolv = ctypes.CDLL("libc.so.6"), ctypes.CDLL("libresolv.so.2")
search = getattr(resolv, "res_search", None) or resolv.__res_search
libc.__h_errno_location.restype = ctypes.POINTER(ctypes.c_int)
for name in json.loads(sys.argv[1]):
    answer = ctypes.create_string_buffer(65536)
    size = search(name.encode(), 1, {_SRV}, answer, len(answer))
    failed = libc.__h_errno_location().contents.value if size < 0 else 0
    print(json.dumps([answer.raw[:max(size, 0)].hex(), failed]), flush=True)
"""
HOST_NOT_FOUND: Final = 1
TRY_AGAIN: Final = 2
NO_RECOVERY: Final = 3
NO_DATA: Final = 4


class Outcome(NamedTuple):
    """The result of res_search for one name."""

    owner: str | None
    """The owner of the records."""
    h_errno: int
    """From netdb.h; 0 if there are records."""


async def res_search(conf: Path, names: Sequence[str]) -> list[Outcome]:
    """Search for SRV records of each name."""
    script = 'mount --bind "$1" /etc/resolv.conf; shift; exec "$@"'
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(conf), sys.executable, "-c", _PROGRAM]
    process = await asyncio.create_subprocess_exec(
        *command, json.dumps(names), stdout=asyncio.subprocess.PIPE, env={"LC_ALL": "C"}
    )
    try:
        stdout, _ = await asyncio.wait_for(process.communicate(), patient(120))
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return [_outcome(*json.loads(line)) for line in stdout.decode().splitlines()]


def _outcome(answer: str, h_errno: int) -> Outcome:
    if not answer:
        return Outcome(None, h_errno)
    message = dns.message.from_wire(bytes.fromhex(answer))
    owners = [rrset.name.to_text() for rrset in message.answer if rrset.rdtype == dns.rdatatype.SRV]
    return Outcome(owners[0], 0)


_ADDRESSES: Final = """
import json, socket, sys
for name in json.loads(sys.argv[1]):
    try:
        infos = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        print(json.dumps([]), flush=True)
    else:
        print(json.dumps(sorted({info[4][0] for info in infos})), flush=True)
"""


async def getaddrinfo(conf: Path, hosts: Path, folder: Path, names: Sequence[str]) -> list[list[str]]:
    """Return the addresses that glibc finds for each name by `hosts: files dns`, sorted as text."""
    switch = folder / "nsswitch.conf"
    switch.write_text("hosts: files dns\n")
    script = (
        'mount --bind "$1" /etc/resolv.conf; mount --bind "$2" /etc/hosts; mount --bind "$3" /etc/nsswitch.conf; '
        'shift 3; exec "$@"'
    )
    files = map(str, (conf, hosts, switch))
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-ec", script, "sh", *files, sys.executable, "-c", _ADDRESSES, json.dumps(names)),
        stdout=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C"},
    )
    try:
        stdout, _ = await asyncio.wait_for(process.communicate(), patient(60))
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return [json.loads(line) for line in stdout.decode().splitlines()]
