"""`make audit`, as far as it can be tested without the service that it queries."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
FAKE: Final = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = --requirement ] && cat "$2"; echo "argument $1"; shift; done
exit 7
"""


def test_every_installed_package_is_looked_up(tmp_path: Path) -> None:
    """All of them are looked up by name and version, except ours; a failed look-up or an advisory is a failure."""
    fake = tmp_path / "pip-audit"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    env = {**os.environ, "PIP_AUDIT": str(fake)}
    result = subprocess.run(
        [ROOT / "scripts" / "audit", "--dry-run"], check=False, capture_output=True, text=True, env=env
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 7, result.stderr
    names = {line.partition("==")[0] for line in lines if "==" in line}
    assert {"aiohttp", "dnspython", "python-consul2", "requests", "urllib3", "structlog"} <= names
    assert not any("clb" in name for name in names)
    assert {"argument --strict", "argument --no-deps", "argument --disable-pip", "argument --dry-run"} <= set(lines)


def test_target_sets_up_and_then_audits() -> None:
    """The target passes its arguments on."""
    command = ["make", "--no-print-directory", "--dry-run", "audit", "AUDIT_ARGS=--dry-run"]
    # This test may run under make.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=alone).stdout
    assert said.splitlines() == ["scripts/setup audit", "scripts/audit --dry-run"]
