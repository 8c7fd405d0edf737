"""Close the sockets of removed real servers, and print what came of it as JSON.

Usage: closer.py MAP-DESCRIPTORS-OF-RECORDS... ITERATOR MEMBER-IN-HEX...
ITERATOR is a pin, or empty for none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clb_discovery.core.model import Protocol
from clb_discovery.datapath.records import RecordMaps
from clb_discovery.datapath.sockets import close_sockets

owners, places, stored, iterator, *members = sys.argv[1:]
maps = RecordMaps(int(owners), int(places), int(stored))
pinned = Path(iterator) if iterator else None
closed = close_sockets([*map(bytes.fromhex, members)], maps, protocols=tuple(Protocol), pinned=pinned)
print(json.dumps({"count": closed.count, "failures": sorted(closed.failures), "hidden": closed.hidden}))
