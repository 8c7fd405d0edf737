"""Names of services in a hosts file, hosts(5): `<name>.clb` for the VIPs of a service, in a marked block."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final, NamedTuple

from clb_discovery.layout.elements import Label
from clb_discovery.layout.installed import Published
from clb_discovery.model.address import Address, format_address
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Vip

DOMAIN: Final = "clb"

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 section 2.1
_LONGEST: Final = 253


class Names(NamedTuple):
    """The names that a hosts file should contain."""

    addresses: Mapping[str, tuple[Address, ...]]
    """By host name."""
    left_out: Mapping[str, str]
    """Services without a host name, each with the reason."""


def names(virtual: Mapping[Vip, Published]) -> Names:
    """Return the names of installed services, so that no name resolves to an address that is not balanced.

    A VIP whose pool is empty is left out if the service has another one with real servers, because many programs try
    only the first address of a name. If services have the same host name, it leads only to addresses that all of them
    have: at any other one a client would find the servers of another service, or none.
    """
    found: defaultdict[str, defaultdict[Label, dict[Address, bool]]] = defaultdict(lambda: defaultdict(dict))
    left_out: dict[str, str] = {}
    for vip, published in virtual.items():
        if published.label is None or is_own(published.label.source):
            continue
        name = host_name(published.label.service)
        if name is None:
            left_out[published.label.service] = "use letters, digits and hyphens"
        else:
            own = found[name][published.label]
            own[vip.address] = own.get(vip.address, False) or bool(published.pool)
    addresses = {}
    for name, services in sorted(found.items()):
        shared = frozenset.intersection(*map(frozenset, services.values()))
        used = [address for address in shared if any(own[address] for own in services.values())]
        if shared:
            addresses[name] = tuple(sorted(used or shared))
        else:
            reason = f"{name} is the name of several services at different addresses; give each a name of its own"
            left_out |= {label.service: reason for label in services}
    return Names(addresses, dict(sorted(left_out.items())))


def host_name(service: str) -> str | None:
    """Return `redis.clb` for the service redis; None if that is not a host name (RFC 1123 section 2.1)."""
    name = f"{service.lower()}.{DOMAIN}"
    return name if len(name) <= _LONGEST and all(map(_LABEL.fullmatch, name.split("."))) else None


def with_block(text: str, instance: str, addresses: Mapping[str, tuple[Address, ...]]) -> str:
    """Return the file with the block of an instance replaced, or added at the end; without names, removed.

    :param text: the content of the file. Everything outside the block is kept.
    :raises ValueError: if there is a mark without the other one, so that the extent of the block is unknown.
    """
    begin, end = f"# BEGIN clb-discovery {instance}", f"# END clb-discovery {instance}"
    lines = "".join(f"{format_address(address)} {name}\n" for name, own in addresses.items() for address in own)
    block = f"{begin}: written by the sidecar, changes are lost\n{lines}{end}\n" if addresses else ""
    marks = [match.start() for match in re.finditer(rf"^({begin}: .*|{end})$", text, re.MULTILINE)]
    whole = re.compile(rf"{begin}: .*?^{end}$\n?", re.MULTILINE | re.DOTALL).match(text, *marks[:1])
    if marks and not (whole and len(marks) == 2):
        raise ValueError(f"has only one of the marks {begin!r} and {end!r}, or one of them twice; remove these lines")
    if whole:
        return text[: whole.start()] + block + text[whole.end() :]
    return text + ("\n" if text and block and not text.endswith("\n") else "") + block
