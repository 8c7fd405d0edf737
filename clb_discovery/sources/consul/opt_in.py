"""Parse the meta and tags by which instances in Consul's catalog claim virtual servers for their service.

An instance opts its service in by the meta `clb-vip` (VIPs, or `auto`), by the tag `clb.vip=` with the same value, or
by the plain tag `clb` for an automatic VIP; `clb-algorithm`, `clb-protocol` and settings of passive health, such as
`clb-silent-after`, in the meta add to that. All of it is untrusted text.

Instances of one service may differ, for example while they are registered again one after the other. The VIPs of all of
them count. Of the schedulers, and of each setting, the one that most instances name counts; on a tie, the lower one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from clb_discovery.model.answer import MAX_VIPS, OptIn, Refusal
from clb_discovery.model.servers import HealthClaim, Protocol, Vip
from clb_discovery.model.text_forms import HEALTH, parse_algorithm, parse_vip

META_VIP: Final = "clb-vip"
META_ALGORITHM: Final = "clb-algorithm"
META_PROTOCOL: Final = "clb-protocol"
META_EJECT_TIME, META_EJECT_MAX = "clb-eject-time", "clb-eject-max"
META_HEALTH: Final = {
    "clb-connect-timeout": "connect_timeout_ms",
    "clb-silent-after": "silent_after_ms",
    "clb-eject-after": "eject_after",
    META_EJECT_TIME: "eject_first_ms",
    META_EJECT_MAX: "eject_most_ms",
}
"""Meta of settings of passive health, each with its field of `HealthClaim`."""
TAG: Final = "clb"
TAG_VIP: Final = "clb.vip="
AUTOMATIC: Final = "auto"

MAX_TEXT: Final = 512
"""Longest meta or tag that is parsed, in characters; Consul's own agents accept no longer meta."""
MAX_READ: Final = 1024
"""Maximum number of VIPs of one service that are parsed, most frequent first: instances may register any number."""
MAX_REFUSED: Final = 8
"""Maximum number of reports about one service."""

_SHOWN: Final = 80
_Setting = TypeVar("_Setting")
_PROTOCOLS: Final = {protocol.name.lower(): protocol for protocol in Protocol}


class Claims(NamedTuple):
    """The claims of one instance, as text."""

    vips: tuple[str, ...]
    """Each with the name of its meta or tag in front: `clb-vip=auto`."""
    algorithm: str | None
    protocol: str | None
    health: tuple[tuple[str, str], ...] = ()
    """Settings of passive health, each with the name of its meta."""


def claims(meta: object, tags: object) -> Claims | None:
    """Return the claims of an instance, or None if it does not opt in.

    :param meta: decoded JSON, which should be an object of strings.
    :param tags: decoded JSON, which should be a list of strings.
    """
    meta = meta if isinstance(meta, Mapping) else {}
    tags = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    vips = [tag for tag in tags if tag.startswith(TAG_VIP)]
    if TAG in tags:
        vips.append(f"{TAG_VIP}{AUTOMATIC}")
    if META_VIP in meta:
        vips.append(f"{META_VIP}={_text(meta[META_VIP]) or ''}")
    if not vips:
        return None
    health = tuple((name, text) for name in META_HEALTH if (text := _text(meta.get(name))) is not None)
    return Claims(tuple(vips), _text(meta.get(META_ALGORITHM)), _text(meta.get(META_PROTOCOL)), health)


def opt_in(instances: Iterable[Claims | None]) -> OptIn | None:
    """Combine the claims of all instances of a service; their order does not matter.

    :returns: None if no instance opts in.
    """
    counts = Counter(one for one in instances if one is not None)
    if not counts:
        return None
    reading = _Reading()
    for one in sorted(counts, key=lambda one: (-counts[one], repr(one))):
        reading.read(one, counts[one])
    algorithm = reading.elect(META_ALGORITHM, {one: one.algorithm for one in counts}, counts, parse_algorithm, str)
    health = _elect_health(reading, counts)
    # Most frequent first, so that a single instance cannot displace VIPs that the others register.
    vips = sorted(reading.vips, key=lambda vip: (-reading.vips[vip], vip))
    if reading.unread:
        reading.refuse(
            f"{reading.unread} VIPs", f"are more than the {MAX_READ} that are read for one service; register fewer"
        )
    elif len(vips) > MAX_VIPS:
        reading.refuse(
            f"{len(vips)} VIPs", f"are more than {MAX_VIPS}; those that most instances name count; register fewer"
        )
    refused = sorted(reading.refused)
    return OptIn(
        tuple(sorted(vips[:MAX_VIPS])),
        tuple(sorted(reading.automatic)),
        algorithm,
        tuple(refused[:MAX_REFUSED]),
        health,
    )


def _elect_health(reading: _Reading, counts: Mapping[Claims, int]) -> HealthClaim:
    texts = {one: dict(one.health) for one in counts}
    elected = {
        field: reading.elect(meta, {one: found.get(meta) for one, found in texts.items()}, counts, HEALTH[field], int)
        for meta, field in META_HEALTH.items()
    }
    health = HealthClaim(**elected)
    if health.eject_first_ms and health.eject_most_ms and health.eject_first_ms > health.eject_most_ms:
        reading.refuse(
            f"{META_EJECT_TIME} {health.eject_first_ms}ms",
            f"is more than {META_EJECT_MAX} {health.eject_most_ms}ms; register a shorter one",
        )
        return health._replace(eject_first_ms=None, eject_most_ms=None)
    return health


class _Reading:
    """The claims parsed so far."""

    def __init__(self) -> None:
        self.vips: Counter[Vip] = Counter()
        """The number of instances that name each VIP."""
        self.unread = 0
        self.automatic: set[Protocol] = set()
        self.refused: set[Refusal] = set()
        self._left = MAX_READ

    def refuse(self, value: str, reason: str) -> None:
        self.refused.add(Refusal(value, reason))

    def read(self, one: Claims, count: int) -> None:
        """Take the VIPs of `count` instances with the same claims."""
        if self._left <= 0:
            self.unread += len(one.vips)
            return
        protocol = _PROTOCOLS.get(one.protocol or "tcp")
        if protocol is None:  # its VIPs cannot be assigned to a protocol
            self.refuse(_shown(META_PROTOCOL, one.protocol or ""), "is not a protocol; register tcp or udp")
            return
        found: set[Vip | None] = set()
        for text in one.vips:
            name, _, value = text.partition("=")
            if len(value) > MAX_TEXT or not value.isprintable():
                self.refuse(
                    _shown(name, value),
                    f"is longer than {MAX_TEXT} characters or not printable; register VIPs such as 10.64.0.1:6379",
                )
                continue
            found.update(self._take(name, item, protocol) for item in map(str.strip, value.split(",")))
        self.vips.update({vip: count for vip in found if vip is not None})

    def _take(self, name: str, item: str, protocol: Protocol) -> Vip | None:
        self._left -= 1
        if self._left < 0:
            self.unread += 1
        elif item == AUTOMATIC:
            self.automatic.add(protocol)
        else:
            try:
                return parse_vip(item, protocol)
            except ValueError as error:
                self.refuse(_shown(name, item), str(error).removeprefix(f"{item!r} "))
        return None

    def elect(
        self,
        meta: str,
        named: Mapping[Claims, str | None],
        counts: Mapping[Claims, int],
        parse: Callable[[str], _Setting],
        order: Callable[[_Setting], str | int],
    ) -> _Setting | None:
        """Return the value of a setting that most instances name; on a tie, the lower one.

        :param named: the text that instances with these claims name.
        """
        votes: Counter[_Setting] = Counter()
        names: dict[_Setting, str] = {}
        for one, text in named.items():
            if text is None:
                continue
            try:
                value = parse(text)
            except ValueError as error:
                self.refuse(_shown(meta, text), _reason(text, error))
            else:
                votes[value] += counts[one]
                names[value] = text
        ranked = sorted(votes, key=lambda value: (-votes[value], order(value)))
        for loser in ranked[1:]:
            self.refuse(
                _shown(meta, names[loser]),
                f"is outvoted by instances that register {names[ranked[0]]}; register all of them with one",
            )
        return ranked[0] if ranked else None


def _reason(text: str, error: ValueError) -> str:
    """Return why a text is no value of a setting, without the text."""
    return (
        str(error).removeprefix(f"{text!r} ").replace(": use ", "; register one of ").replace(": write ", "; register ")
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _shown(name: str, value: str) -> str:
    """Return a name and its value, escaped and bounded."""
    return f"{name} {value[:_SHOWN]!r}{'…' if len(value) > _SHOWN else ''}"
