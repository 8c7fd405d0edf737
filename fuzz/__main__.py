"""Fuzz the targets, one after the other, each in a process of its own: `python -m fuzz --seconds 600 [TARGET...]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

from fuzz.targets import TARGETS

FOUND: Final = Path(".cache/fuzz")


def main() -> int:
    """Divide the time between the targets; return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together (default: %(default)s)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    options = parser.parse_args()
    chosen = options.targets or list(TARGETS)
    if not set(chosen) <= set(TARGETS):
        parser.error(f"the targets are {', '.join(TARGETS)}")
    failed = [name for name in chosen if not _clean(name, max(1, options.seconds // len(chosen)))]
    for name in failed:
        print(f"fuzz: {name} failed; mend it, and make {FOUND / name}/found-* seeds in fuzz/seeds.py")
    return 1 if failed else 0


def _clean(name: str, seconds: int) -> bool:
    """Fuzz one target; return whether nothing was found."""
    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fuzz: {name}, {seconds} s", flush=True)
    return subprocess.run([sys.executable, "-m", "fuzz.one", name, folder, str(seconds)], check=False).returncode == 0


sys.exit(main())
