"""Close the sockets of removed real servers, and print what came of it as JSON.

Usage: closer.py STORAGE-MAP-DESCRIPTOR MEMBER-IN-HEX...
"""

from __future__ import annotations

import json
import sys

from clb_discovery.core.model import Protocol
from clb_discovery.datapath.sockets import close_sockets

closed = close_sockets([*map(bytes.fromhex, sys.argv[2:])], int(sys.argv[1]), protocols=tuple(Protocol))
print(json.dumps({"count": closed.count, "failures": sorted(closed.failures), "hidden": closed.hidden}))
