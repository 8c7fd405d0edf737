"""Commands that see the file systems of this machine changed, while nobody else does."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.pace import patient


def in_own_mounts(script: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command after a shell script has changed the mounts, which nobody else sees."""
    own = ["unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh", *command]
    return subprocess.run(own, check=False, capture_output=True, text=True, timeout=patient(60))
