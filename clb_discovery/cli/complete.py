"""`complete`: print the words that a shell offers for a value: instances, or services. It is not for people.

It prints nothing if nothing can be read. Shells expand the words that they complete, `$(…)` included, and names of
services come from the network. So only words without a meaning to any shell are offered.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins, instance_names
from clb_discovery.errors import ClbError
from clb_discovery.layout.installed import service_names

_SAFE: Final = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_@.-]*")


def main(typed: argparse.Namespace) -> int:
    """Print the words of a kind, one a line."""
    with suppress(ClbError):  # an ordinary user may not look
        for word in sorted(set(_services() if typed.kind == "services" else instance_names())):
            if _SAFE.fullmatch(word):
                print(word)  # noqa: T201 - this is the output
    return 0


def _services() -> Iterator[str]:
    """Yield the services of every instance that can be read."""
    for name in instance_names():
        with suppress(ClbError), Maps(Pins(name)) as maps:
            yield from service_names(maps.read())
