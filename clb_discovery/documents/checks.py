"""What active checks have found, in the document of `status`: the sidecar knows it, and the kernel does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from clb_discovery.documents.names import endpoint

_KEYS: Final = ("address", "port", "protocol")


def add_checks(virtual_servers: Iterable[dict[str, Any]], found: Iterable[Mapping[str, Any]]) -> None:
    """Add the key `check` to virtual servers, and `check_failure` to their real servers.

    :param found: the report of a running sidecar: for each checked virtual server, its `check`, and the real servers
        that are `down`, each with the reason.
    """
    checked = {tuple(one[key] for key in _KEYS): one for one in found}
    for virtual in virtual_servers:
        own = checked.get(tuple(virtual[key] for key in _KEYS))
        virtual["check"] = own["check"] if own else None
        for real in virtual["real_servers"]:
            real["check_failure"] = own["down"].get(endpoint(real)) if own else None
