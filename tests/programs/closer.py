"""Close the sockets of removed real servers, and print the result as JSON.

Usage: closer.py MAP-DESCRIPTORS-OF-RECORDS... INSTANCE MEMBER-IN-HEX... The pinned iterators of INSTANCE are read;
empty for none.
"""

from __future__ import annotations

import json
import sys

from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.closing import close_sockets
from clb_discovery.datapath.sockets.records import RecordMaps
from clb_discovery.model.servers import Protocol

owners, places, stored, instance, *members = sys.argv[1:]
maps = RecordMaps(int(owners), int(places), int(stored))
pinned = {protocol: Pins(instance).records(protocol) for protocol in Protocol} if instance else {}
closed = close_sockets([*map(bytes.fromhex, members)], maps, protocols=tuple(Protocol), pinned=pinned)
print(json.dumps({"count": closed.count, "failures": sorted(closed.failures), "hidden": closed.hidden}))
