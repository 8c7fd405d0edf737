"""Close the sockets of removed real servers, and print what came of it as JSON.

Usage: closer.py MAP-DESCRIPTORS-OF-RECORDS... MEMBER-IN-HEX...
"""

from __future__ import annotations

import json
import sys

from clb_discovery.core.model import Protocol
from clb_discovery.datapath.records import RecordMaps
from clb_discovery.datapath.sockets import close_sockets

owners, places, stored, *members = sys.argv[1:]
maps = RecordMaps(int(owners), int(places), int(stored))
closed = close_sockets([*map(bytes.fromhex, members)], maps, protocols=tuple(Protocol))
print(json.dumps({"count": closed.count, "failures": sorted(closed.failures), "hidden": closed.hidden}))
