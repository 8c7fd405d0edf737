"""What a DNS answer says, read from the wire without building a message, to see at little cost that it is the same.

dnspython builds an object of every record, which costs milliseconds for an answer of twenty. Names are bytes as on the
wire, in lower case and without compression.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dns import flags as flag
from dns import rdatatype

_HEADER: Final = struct.Struct("!HHHHHH")
"""RFC 1035 section 4.1.1."""
_RECORD: Final = struct.Struct("!HHIH")
"""Type, class, TTL and length of the data: what follows the owner of a record (RFC 1035 section 4.1.3)."""
_TTL_IN_RECORD: Final = 4
_SAYS: Final = int(flag.QR) | 0xF
"""Of the flags what counts: that it is a response, and the response code."""
_TC: Final = int(flag.TC)
_CNAME: Final = int(rdatatype.CNAME)  # comparing with its enumerations takes as long as all else
_NS: Final = int(rdatatype.NS)
_OPT: Final = int(rdatatype.OPT)
_SOA: Final = int(rdatatype.SOA)
_SRV: Final = int(rdatatype.SRV)
_MAX_LABEL: Final = 63
_MAX_STEPS: Final = 256
"""Labels and pointers of one name, more than any server writes; with pointers in a circle it would never end."""
_MIN_SOA: Final = 22
"""Bytes of two names and five numbers (RFC 1035 section 3.3.13)."""
_TTL: Final = struct.Struct("!I")
_MAX_TTL: Final = 2**31 - 1
"""A greater one is to be taken as 0 (RFC 2181 section 8)."""


@dataclass(frozen=True, slots=True)
class Outline:
    """One answer, without its id."""

    question: bytes
    """Name, type and class."""
    said: bytes
    """The same for answers with the same response code and records, in any order and whatever their TTLs."""
    ttl: int
    """Seconds: the smallest of its records, and of a negative answer (RFC 2308 section 5); 0 without any."""
    truncated: bool
    """Whether records may be missing (TC)."""
    places: tuple[int, ...]
    """Where the TTLs stand that count, in bytes from the start of the message."""
    rest: bytes
    """The message with id and these TTLs set to 0."""

    def holds(self, wire: bytes) -> int:
        """Read another answer to the same question.

        :return: the seconds that it holds, if it says the same and may be kept, else 0.
        :raises ValueError: if it is malformed.
        """
        if len(wire) == len(self.rest) and not self.truncated and _rest(wire, self.places) == self.rest:
            return _smallest(wire, self.places)
        other = outline(wire)  # many servers rotate their records
        return other.ttl if (other.question, other.said, other.truncated) == (self.question, self.said, False) else 0


def query(question: bytes, number: int, payload: int) -> bytes:
    """Return the message that asks a question over UDP, with recursion desired and EDNS 0 (RFC 6891).

    :param question: of an `Outline`.
    :param number: the message's id, 0 to 65535.
    :param payload: bytes of UDP answer that we take.
    """
    return _HEADER.pack(number, flag.RD, 1, 0, 0, 1) + question + b"\0" + _RECORD.pack(_OPT, payload, 0, 0)


def outline(wire: bytes) -> Outline:
    """Read an answer to one question.

    What does not count is left out: NS records, options but for the response code in them, and the data of SOA records.

    :raises ValueError: if it is malformed.
    """
    try:
        return _outline(wire)
    except (IndexError, struct.error):
        raise ValueError("the message is cut off") from None


def _outline(wire: bytes) -> Outline:
    _, flags, questions, *sections = _HEADER.unpack_from(wire)
    if questions != 1:
        raise ValueError(f"{questions} questions instead of one")
    names: dict[int, tuple[bytes, int]] = {}
    name, at = _name(wire, _HEADER.size, names)
    question = name + wire[at : at + 4]
    at += 4
    records, places, extended = set[bytes](), list[int](), 0
    for _ in range(sum(sections)):
        owner, at = _name(wire, at, names)
        rdtype, rdclass, ttl, size = _RECORD.unpack_from(wire, at)
        place = at + _TTL_IN_RECORD
        at += _RECORD.size
        end = at + size
        if end > len(wire):
            raise ValueError("a record is cut off")
        if rdtype == _OPT:
            extended = ttl >> 24  # RFC 6891 section 6.1.3
        elif rdtype != _NS:
            places.append(place)
            if rdtype == _SOA:
                if size < _MIN_SOA:
                    raise ValueError("a SOA record is cut off")
                places.append(end - _TTL.size)  # MINIMUM
            records.add(owner + _RECORD.pack(rdtype, rdclass, 0, 0) + _data(wire, rdtype, at, end, names))
        at = end
    said = b"".join([(flags & _SAYS).to_bytes(2), bytes((extended,)), *sorted(records)])
    truncated = bool(flags & _TC)
    return Outline(question, said, _smallest(wire, places), truncated, tuple(places), _rest(wire, places))


def _smallest(wire: bytes, places: Sequence[int]) -> int:
    """Return the smallest of the TTLs that stand there, 0 where there are none."""
    ttls = [_TTL.unpack_from(wire, place)[0] for place in places]
    return min(ttls, default=0) if max(ttls, default=0) <= _MAX_TTL else 0


def _rest(wire: bytes, places: Sequence[int]) -> bytes:
    """Return the message without its id, and without the TTLs that stand there."""
    rest = bytearray(wire)
    rest[:2] = bytes(2)
    for place in places:
        rest[place : place + _TTL.size] = bytes(_TTL.size)
    return bytes(rest)


def _data(wire: bytes, rdtype: int, at: int, end: int, names: dict[int, tuple[bytes, int]]) -> bytes:
    """Return the data of a record, its names written out."""
    if rdtype == _SRV:
        head = at + 6
    elif rdtype == _CNAME:
        head = at
    else:
        return b"" if rdtype == _SOA else wire[at:end]
    target, after = _name(wire, head, names)
    if after != end:
        raise ValueError("a name does not end with its record")
    return wire[at:head] + target


def _name(wire: bytes, start: int, names: dict[int, tuple[bytes, int]]) -> tuple[bytes, int]:
    """Return a name, and where what follows it begins (RFC 1035 section 4.1.4).

    :param names: those read so far, by their place; the new one is added.
    """
    known = names.get(start)
    if known is not None:
        return known
    labels, at, after = list[bytes](), start, 0
    for _ in range(_MAX_STEPS):
        length = wire[at]
        if length > _MAX_LABEL:
            after = after or at + 2
            at = (length << 8 | wire[at + 1]) & 0x3FFF
            continue
        labels.append(wire[at : at + 1 + length])
        at += 1 + length
        if not length:
            found = names[start] = b"".join(labels).lower(), after or at
            return found
    raise ValueError("a name does not end")
