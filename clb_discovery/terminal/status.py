"""`status` for people: the data plane, the sidecar, the sources, the pools, and the problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from clb_discovery.documents.rates import Key, Rate
from clb_discovery.documents.verdict import troubles
from clb_discovery.terminal.pools import Pools
from clb_discovery.terminal.screen import endpoint, padded, plain
from clb_discovery.text import printable, some_of

DEGRADATIONS: Final = {
    "errno": "connects to an empty pool fail with EPERM instead of ECONNREFUSED; kernel 6.1 can do better",
    "loop": "in a pool of more than 896 servers (BCC: 384) only some of a tier are tried for one that is not ejected",
}
"""The effect of each feature that is missing."""

_STATES: Final = {"fresh": "green", "held": "yellow", "retrying": "red"}
_NAMED: Final = 3  # at most so many VIPs in one remark
_LONGEST: Final = 40
"""The column of sources is at most so many cells wide; a longer name pushes its own line to the right."""
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Status:
    """The document of `status --json`, as people see it."""

    def __init__(self, status: Mapping[str, Any], now: datetime, rates: Mapping[Key, Rate] | None = None) -> None:
        """Take the document, the present time with its zone, and the rates of real servers, for `--watch`."""
        self._status = status
        self._now = now
        self._pools = Pools(status["virtual_servers"], rates)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from self.body()
        yield self.verdict()

    def body(self) -> Iterator[RenderableType]:
        """Yield all parts except the last line."""
        yield from self._head()
        yield from self._sources()
        yield self._pools
        yield from self._listeners()
        yield ""

    def verdict(self) -> Text:
        """Return the last line: the problems, or that there are none."""
        wrong = "; ".join(troubles(self._status))
        if wrong:
            return Text("wrong  ", style="bold red", overflow="fold") + plain(wrong, "red")
        virtual = self._status["virtual_servers"]
        count = f"virtual servers {len(virtual)}, real servers {sum(len(server['real_servers']) for server in virtual)}"
        return Text("ok     ", style="bold green") + plain(count)

    def _head(self) -> Iterator[RenderableType]:
        status, datapath, sidecar = self._status, self._status["datapath"], self._status["sidecar"]
        yield plain(f"clb-discovery {status['version']}, instance {status['instance']}, kernel {datapath['kernel']}")
        yield ""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        if not datapath["loaded"]:
            table.add_row(plain("data plane"), plain("not loaded", "red"))
        else:
            loaded = f"loaded ({datapath['loader']}) on {datapath['cgroup']}, "
            effective = plain(f"{loaded}effective", "green")
            ineffective = plain(f"{loaded}NOT EFFECTIVE: {datapath['reason']}", "red")
            table.add_row(plain("data plane"), effective if datapath["effective"] else ineffective)
        for name, there in datapath["features"].items():
            if not there:
                table.add_row(plain("degraded"), plain(f"{name}: {DEGRADATIONS.get(name, 'missing')}", "yellow"))
        running = f"running, process {sidecar['pid']}" if sidecar["running"] else "not running"
        style = "green" if sidecar["running"] else "red"
        table.add_row(plain("sidecar"), plain(f"{running}, last change {self._age(sidecar['last_sync'])}", style))
        if sidecar["config_error"]:
            table.add_row(plain("config"), plain(f"REFUSED: {sidecar['config_error']}", "red"))
        yield table

    def _sources(self) -> Iterator[RenderableType]:
        sources = self._status["sources"]
        if not sources:
            return
        head = "source" if self._status["sidecar"]["running"] else "source, as last told"
        name = min(_LONGEST, max(len(head), *(cell_len(printable(source["name"])) for source in sources)))
        state = max(len(word) for word in _STATES)
        yield ""
        yield plain(f"{head:<{name}}  {'state':<{state}}  last answer", "dim")
        for source in sources:
            yield Text("  ", overflow="fold").join(
                [
                    plain(padded(printable(source["name"]), name)),
                    plain(source["state"].ljust(state), _STATES.get(source["state"], "")),
                    plain(self._age(source["last_success"])),
                ]
            )
            if source["reason"]:
                yield Padding(plain(source["reason"]), (0, 0, 0, 2), expand=False)

    def _listeners(self) -> Iterator[RenderableType]:
        """Yield a note on VIPs on which a program of this host listens. That works, but operators may not expect it."""
        found = [f"{endpoint(one)}/{one['protocol']}" for one in self._status["virtual_servers"] if one["listens_here"]]
        if found:
            text = f"a program of this host listens on {', '.join(some_of(found, _NAMED))}: "
            yield ""
            yield plain("note   ", "yellow") + plain(text + "its clients on this host get real servers instead")

    def _age(self, moment: str | None) -> str:
        if moment is None:
            return "never"
        seconds = max(0, int((self._now - datetime.fromisoformat(moment)).total_seconds()))
        size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
        return f"{seconds // size} {unit} ago"


class Frame:
    """A status that fits on the screen. Lines that do not fit are counted, and the last line is always shown."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [line for part in self._status.body() for line in console.render_lines(part, options, pad=False)]
        last = console.render_lines(self._status.verdict(), options, pad=False)
        room = max(1, (options.height or console.height) - len(last))
        if len(lines) > room:
            more = plain(f"{len(lines) - room + 1} more lines: enlarge the window, or leave out --watch", "dim")
            lines = lines[: room - 1] + console.render_lines(more, options, pad=False)
        for line in [*lines, *last]:
            yield from line
            yield Segment.line()
