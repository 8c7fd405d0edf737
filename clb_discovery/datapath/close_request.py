"""The format of a request to close sockets of removed real servers, and of its answer.

A request is a header of fixed size, the name of the instance, and packed members (`struct clb_member`). So its size is
known and bounded before the body is read. An answer is lines of text. Both sides are of the same package; during an
upgrade their versions may differ, and the answer is an error then.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from clb_discovery.layout import elements, structs
from clb_discovery.model.servers import Protocol
from clb_discovery.text import printable

MOST_MEMBERS: Final = 8192
"""Most members in one request; more are sent in several requests."""
LONGEST_ANSWER: Final = 1 << 16
"""Most bytes of an answer."""

HEAD: Final = struct.Struct("!4sBBHI")
"""Magic number, version, bits of protocols, length of the instance name in bytes, number of members."""
_MARK: Final = b"CLBC"
_VERSION: Final = 1
_PROTOCOLS: Final = {1: Protocol.TCP, 2: Protocol.UDP}
"""By bit."""
_MOST_FAILURES: Final = 32
_SHOWN: Final = 500
"""Most characters of a line."""


class Request(NamedTuple):
    """The sockets to close."""

    instance: str
    protocols: tuple[Protocol, ...]
    members: tuple[bytes, ...]
    """Packed `struct clb_member` of each removed real server."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The result of closing."""

    count: int
    failures: tuple[str, ...]
    """Reasons why some sockets may still be open, each once."""
    hidden: int
    """Number of processes whose network namespace could not be read."""


def requests(instance: str, members: Iterable[bytes], protocols: Collection[Protocol]) -> list[bytes]:
    """Return requests that together contain all members."""
    bits = sum(bit for bit, protocol in _PROTOCOLS.items() if protocol in protocols)
    name = instance.encode()
    return [
        HEAD.pack(_MARK, _VERSION, bits, len(name), len(some)) + name + b"".join(some)
        for some in _batched(tuple(members), MOST_MEMBERS)
    ]


def length_behind(head: bytes) -> int:
    """Return the number of bytes after the header of a request.

    :raises ValueError: if it is not a header of this version, or the request is too long.
    """
    if len(head) < HEAD.size or not head.startswith(_MARK):
        raise ValueError("its format is unknown")
    _, version, _, name, count = HEAD.unpack(head)
    if version != _VERSION:
        raise ValueError(f"its version is {version} instead of {_VERSION}")
    if count > MOST_MEMBERS:
        raise ValueError(f"it has {count} members, more than {MOST_MEMBERS}")
    return int(name + count * structs.MEMBER.size)


def parse_request(head: bytes, rest: bytes) -> Request:
    """Parse a request.

    :param head: the header.
    :param rest: the bytes after it, as many as `length_behind` returns.
    :raises ValueError: if it is malformed; no other exception is raised.
    """
    if length_behind(head) != len(rest):
        raise ValueError("it is truncated")
    _, _, bits, length, _ = HEAD.unpack(head)
    if not bits or bits >> len(_PROTOCOLS):
        raise ValueError("its protocol is missing or unknown")
    name, packed = rest[:length], rest[length:]
    size = structs.MEMBER.size
    members = tuple(packed[start : start + size] for start in range(0, len(packed), size))
    for member in members:
        elements.unpack_vip(elements.unpack_member(member)[0])  # raises ValueError if it is not a member
    return Request(name.decode("ascii"), tuple(protocol for bit, protocol in _PROTOCOLS.items() if bits & bit), members)


def answer(closed: Closed) -> bytes:
    """Return the answer to a request that was carried out."""
    failures = closed.failures[:_MOST_FAILURES]
    lines = [f"closed {closed.count} {closed.hidden}", *(f"failure {_line(failure)}" for failure in failures)]
    return "".join(f"{line}\n" for line in lines).encode()


def refusal(reason: str) -> bytes:
    """Return the answer to a request that was not carried out."""
    return f"error {_line(reason)}\n".encode()


def parse_answer(said: bytes) -> Closed:
    """Parse an answer; a malformed one counts as a failure to close anything."""
    try:
        first, *rest = said[:LONGEST_ANSWER].decode().splitlines() or [""]
        kind, _, words = first.partition(" ")
        if kind == "closed":
            count, hidden = map(_count, words.split(" "))
            failures = tuple(line.removeprefix("failure ") for line in rest[:_MOST_FAILURES])
            return Closed(count, tuple(map(_line, failures)), hidden)
    except ValueError:
        kind, words = "", ""
    if kind == "error":
        return Closed(0, (_line(words),), 0)
    return Closed(0, ("no answer, or of no known form: is the service of another version?",), 0)


def _count(word: str) -> int:
    if not word.isascii() or not word.isdecimal() or len(word) > len(str(1 << 32)):
        raise ValueError(word)
    return int(word)


def _line(text: str) -> str:
    return printable(text)[:_SHOWN]


def _batched(things: Sequence[bytes], most: int) -> list[Sequence[bytes]]:
    return [things[start : start + most] for start in range(0, len(things), most)]
