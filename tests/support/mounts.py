"""Commands with other mounts than the rest of this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.pace import patient


def in_own_mounts(script: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command after a shell script has changed the mounts, in a mount namespace of its own."""
    own = ["unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh", *command]
    return subprocess.run(own, check=False, capture_output=True, text=True, timeout=patient(60))
