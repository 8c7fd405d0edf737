"""The version of the running kernel."""

from __future__ import annotations

import os
from typing import Final

KERNEL: Final = tuple(map(int, os.uname().release.split(".")[:2]))
"""Its first two numbers."""
