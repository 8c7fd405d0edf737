"""The real sidecar, killed by SIGKILL as soon as it has published names in one hosts file.

Usage: fatal_names.py FILE ARGUMENT...
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from clb_discovery.cli import main
from clb_discovery.layout.installed import Installed
from clb_discovery.sidecar.hosts import HostsFile

FILE = str(Path(sys.argv[1]).resolve())
_publish = HostsFile.publish


async def _publish_and_die(self: HostsFile, installed: Installed, now: float) -> None:
    await _publish(self, installed, now)
    if FILE in self.files:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    HostsFile.publish = _publish_and_die  # type: ignore[method-assign]  # nothing else happens between the two
    sys.exit(main.main(sys.argv[2:]))
