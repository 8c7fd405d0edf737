"""Close the sockets of removed real servers, and print what came of it as JSON.

Usage: closer.py PLACES-MAP-DESCRIPTOR STORAGE-MAP-DESCRIPTOR MEMBER-IN-HEX...
"""

from __future__ import annotations

import json
import sys

from clb_discovery.core.model import Protocol
from clb_discovery.datapath.sockets import close_sockets

places, storage, *members = sys.argv[1:]
closed = close_sockets([*map(bytes.fromhex, members)], int(places), int(storage), protocols=tuple(Protocol))
print(json.dumps({"count": closed.count, "failures": sorted(closed.failures), "hidden": closed.hidden}))
