"""Virtual servers in one line each, without their real servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from clb_discovery.documents.names import endpoint
from clb_discovery.documents.rates import Key, Rate, connects_per_second
from clb_discovery.terminal.screen import padded, plain
from clb_discovery.text import printable

_WIDEST: Final = (24, 22, 16)
"""The columns of service, virtual server and connects are at most so many cells wide; longer ones push their line."""
_MOST: Final = 200
"""At most so many virtual servers are shown; `--json` has all of them."""


class Overview:
    """Virtual servers in one line each."""

    def __init__(self, virtual_servers: Sequence[Mapping[str, Any]], rates: Mapping[Key, Rate] | None) -> None:
        """Take the virtual servers of `status --json`, and rates if they are shown, too."""
        self._shown = virtual_servers[:_MOST]
        self._rates = rates
        self._left = len(virtual_servers) - len(self._shown)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if not self._shown:
            return
        rows = [("service", "virtual server", "connects", "real servers"), *map(self._row, self._shown)]
        widths = [min(most, max(cell_len(row[at]) for row in rows)) for at, most in enumerate(_WIDEST)]
        yield ""
        for number, (service, vip, connects, servers) in enumerate(rows):
            line = Text("  ", overflow="fold").join(
                [
                    plain(padded(service, widths[0]), "bold"),
                    plain(padded(vip, widths[1]), "cyan"),
                    plain(connects.rjust(widths[2])),
                    plain(servers, "red" if "ejected" in servers or servers == "none" else ""),
                ]
            )
            yield line if number else Text(line.plain, style="dim", overflow="fold")
        if self._left:
            yield plain(f"and {self._left:,} more; --service NAME shows them", "dim")

    def _row(self, server: Mapping[str, Any]) -> tuple[str, str, str, str]:
        """Return the cells of a virtual server."""
        reals = server["real_servers"]
        ejected = sum(real["state"] == "ejected" for real in reals)
        servers = f"{len(reals):,}, {ejected:,} ejected" if ejected else f"{len(reals):,}" if reals else "none"
        connects = f"{server['connects']:,}"
        if self._rates is not None:
            connects += f" ({connects_per_second(self._rates, server):,.1f}/s)"
        return printable(server["service"] or "unnamed"), f"{endpoint(server)}/{server['protocol']}", connects, servers
