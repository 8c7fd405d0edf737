"""Client-side load balancing of connect(2) by eBPF, fed by Consul or DNS."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
