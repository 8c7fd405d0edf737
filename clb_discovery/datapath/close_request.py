"""A request to close sockets of removed real servers, and its answer, as bytes.

A request is a head of fixed size, the name of the instance, and packed members (`struct clb_member`), so that its size
is known, and bounded, before any of it is read. An answer is text, a line for each thing. Both sides are of one
package. During an upgrade they may be of two: then the answer is an error that says so.
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
"""Of one request; those who have more to ask send several."""
LONGEST_ANSWER: Final = 1 << 16
"""Bytes."""

HEAD: Final = struct.Struct("!4sBBHI")
"""The mark, the version, protocols, bytes of the instance's name, and how many members there are."""
_MARK: Final = b"CLBC"
_VERSION: Final = 1
_PROTOCOLS: Final = {1: Protocol.TCP, 2: Protocol.UDP}
"""By their bit."""
_MOST_FAILURES: Final = 32
_SHOWN: Final = 500
"""Characters of a line."""


class Request(NamedTuple):
    """What is to be closed."""

    instance: str
    protocols: tuple[Protocol, ...]
    members: tuple[bytes, ...]
    """Packed `struct clb_member` of each removed real server."""


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing brought."""

    count: int
    failures: tuple[str, ...]
    """Why sockets may be left, for people, each reason once."""
    hidden: int
    """Processes whose network namespace could not be seen."""


def requests(instance: str, members: Iterable[bytes], protocols: Collection[Protocol]) -> list[bytes]:
    """Return requests that together name all of the members."""
    bits = sum(bit for bit, protocol in _PROTOCOLS.items() if protocol in protocols)
    name = instance.encode()
    return [
        HEAD.pack(_MARK, _VERSION, bits, len(name), len(some)) + name + b"".join(some)
        for some in _batched(tuple(members), MOST_MEMBERS)
    ]


def length_behind(head: bytes) -> int:
    """Return how many bytes come behind the head of a request.

    :raises ValueError: if it is none of this version, or too long.
    """
    if len(head) < HEAD.size or not head.startswith(_MARK):
        raise ValueError("it is of no known form")
    _, version, _, name, count = HEAD.unpack(head)
    if version != _VERSION:
        raise ValueError(f"it is of version {version}, and this is version {_VERSION}")
    if count > MOST_MEMBERS:
        raise ValueError(f"it has {count} members of at most {MOST_MEMBERS}")
    return int(name + count * structs.MEMBER.size)


def parse_request(head: bytes, rest: bytes) -> Request:
    """Read a request.

    :param head: for which `length_behind` returns the length of the rest.
    :raises ValueError: if it is none; nothing else is ever raised.
    """
    if length_behind(head) != len(rest):
        raise ValueError("it is cut off")
    _, _, bits, length, _ = HEAD.unpack(head)
    if not bits or bits >> len(_PROTOCOLS):
        raise ValueError("it names no protocol, or an unknown one")
    name, packed = rest[:length], rest[length:]
    size = structs.MEMBER.size
    members = tuple(packed[start : start + size] for start in range(0, len(packed), size))
    for member in members:
        elements.unpack_vip(elements.unpack_member(member)[0])  # is it one?
    return Request(name.decode("ascii"), tuple(protocol for bit, protocol in _PROTOCOLS.items() if bits & bit), members)


def answer(closed: Closed) -> bytes:
    """Return the answer to a request that was carried out."""
    failures = closed.failures[:_MOST_FAILURES]
    lines = [f"closed {closed.count} {closed.hidden}", *(f"failure {_line(failure)}" for failure in failures)]
    return "".join(f"{line}\n" for line in lines).encode()


def refusal(reason: str) -> bytes:
    """Return the answer to one that was not."""
    return f"error {_line(reason)}\n".encode()


def parse_answer(said: bytes) -> Closed:
    """Read an answer; one that is none is a failure to close anything."""
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
