"""The outcomes that programs report while a test listens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.ring import Ring
from clb_discovery.documents.trace import Kind
from clb_discovery.layout import elements, structs
from tests.support.plane import Plane
from tests.support.transparency import PORT


@contextmanager
def heard(plane: Plane, port: int = PORT) -> Iterator[Counter[tuple[Kind, int]]]:
    """Listen while the block runs; then fill in the counts of the outcomes that were reported for this port of VIPs."""
    found = Counter[tuple[Kind, int]]()
    with Maps(plane.pins) as maps, closing(Ring(maps.events(), structs.EVENTS_BYTES)) as ring:
        ring.skip()
        maps.listen_until(time.monotonic_ns() + 600_000_000_000)
        try:
            yield found
        finally:
            maps.listen_until(0)
        events = map(elements.unpack_event, ring.records(0))
        ours = (event for event in events if elements.unpack_vip(event.member[:20]).port == port)
        found.update((Kind(event.kind), event.cause) for event in ours)
