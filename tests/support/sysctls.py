"""Settings of the kernel for this network namespace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sysctl(name: str, value: int) -> Iterator[None]:
    """Change a setting while the block runs.

    :param name: below /proc/sys, such as `net/ipv4/tcp_fastopen`.
    """
    setting = Path("/proc/sys", name)
    before = setting.read_text()
    setting.write_text(str(value))
    try:
        yield
    finally:
        setting.write_text(before)
