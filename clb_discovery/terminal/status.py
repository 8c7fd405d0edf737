"""`status` for people: the data plane, the sidecar, the sources, the pools, and the problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from clb_discovery.documents.names import endpoint
from clb_discovery.documents.rates import Key, Rate
from clb_discovery.documents.verdict import layouts, problems, remarks, servers_of
from clb_discovery.terminal.pools import Pools
from clb_discovery.terminal.screen import padded, plain
from clb_discovery.terminal.zones import own
from clb_discovery.text import printable, some_of

DEGRADATIONS: Final = {
    "errno": "connects to an empty pool fail with EPERM instead of ECONNREFUSED; kernel 6.1 can do better",
    "options": "a socket keeps the connect limit for later connects to other addresses; --dead-after is not possible",
    "loop": "in a pool of more than 896 servers (BCC: 384) only some of a tier are tried for one that is not ejected",
}
"""The effect of each feature that is missing."""

_STATES: Final = {"fresh": "green", "held": "yellow", "retrying": "red"}
_NAMED: Final = 3  # at most so many VIPs in one remark
_MOST_SOURCES: Final = 200
"""At most so many sources are listed without being asked for, because an outage concerns all of them."""
_LONGEST: Final = 40
"""The column of sources is at most so many cells wide; a longer name pushes its own line to the right."""
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Status:
    """The document of `status --json`, as people see it."""

    def __init__(
        self,
        status: Mapping[str, Any],
        now: datetime,
        rates: Mapping[Key, Rate] | None = None,
        *,
        all_sources: bool = False,
        note: str | None = None,
    ) -> None:
        """Take the document, the present time with its zone, and the rates of real servers, for `--watch`.

        :param all_sources: list also those that are fresh.
        :param note: a remark of the command.
        """
        self._status = status
        self._now = now
        self._all_sources = all_sources
        self._note = note
        self._wrong = list(problems(status))
        self._pools = Pools(status, rates, [problem.subject for problem in self._wrong])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from self.head()
        yield from self.body()
        yield ""
        wrong = "; ".join(remarks(self._wrong))
        yield wrong_line(wrong) if wrong else ok_line(self._status)

    def head(self) -> Iterator[RenderableType]:
        """Yield the parts about the whole instance."""
        status, datapath, sidecar = self._status, self._status["datapath"], self._status["sidecar"]
        yield plain(f"clb-discovery {status['version']}, instance {status['instance']}, kernel {datapath['kernel']}")
        yield ""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        if not datapath["loaded"]:
            others = layouts(datapath["other_layouts"])
            found = plain(f"loaded by another version ({others})", "yellow") if others else plain("not loaded", "red")
            table.add_row(plain("data plane"), found)
        else:
            loaded = f"loaded ({datapath['loader']}) on {datapath['cgroup']}, "
            effective = plain(f"{loaded}in effect", "green")
            ineffective = plain(f"{loaded}NOT IN EFFECT: {datapath['reason']}", "red")
            table.add_row(plain("data plane"), effective if datapath["effective"] else ineffective)
        for name, there in datapath["features"].items():
            if not there:
                table.add_row(plain("degraded"), plain(f"{name}: {DEGRADATIONS.get(name, 'missing')}", "yellow"))
        table.add_row(plain("sidecar"), self._sidecar())
        if sidecar["config_error"]:
            table.add_row(plain("config"), plain(f"rejected, the previous one stays: {sidecar['config_error']}", "red"))
        if status.get("zone"):
            table.add_row(plain("zone"), plain(own(status["zone"]), "" if status["zone"]["name"] else "red"))
        if status["sources"]:
            states = Counter(source["state"] for source in status["sources"])
            counts = ", ".join(f"{states[state]} {state}" for state in _STATES if states[state])
            table.add_row(plain("sources"), plain(counts if sidecar["running"] else f"{counts}, as last reported"))
        yield table

    def body(self) -> Iterator[RenderableType]:
        """Yield the sources, the pools and the notes."""
        yield from self._sources()
        yield self._pools
        yield from self._notes()

    def _sidecar(self) -> Text:
        sidecar = self._status["sidecar"]
        last = f"last change {self._age(sidecar['last_sync'])}" if sidecar["last_sync"] else ""
        if sidecar["running"]:
            unknown = "its state cannot be read" if sidecar["state_error"] else "no change since start"
            return plain(f"running, process {sidecar['pid']}, {last or unknown}", "green")
        return plain(f"not running{last and f', {last}'}", "red")

    def _sources(self) -> Iterator[RenderableType]:
        sources = [
            source
            for source in self._status["sources"]
            if self._all_sources or source["state"] != "fresh" or source["reason"]
        ]
        if not sources:
            return
        shown = sources if self._all_sources else sources[:_MOST_SOURCES]
        name = min(_LONGEST, max(len("source"), *(cell_len(printable(source["name"])) for source in shown)))
        state = max(len(word) for word in _STATES)
        yield ""
        yield plain(f"{'source':<{name}}  {'state':<{state}}  last answer", "dim")
        for source in shown:
            yield Text("  ", overflow="fold").join(
                [
                    plain(padded(printable(source["name"]), name)),
                    plain(source["state"].ljust(state), _STATES.get(source["state"], "")),
                    plain(self._age(source["last_success"]) if source["last_success"] else "never"),
                ]
            )
            if source["reason"]:
                yield Padding(plain(source["reason"]), (0, 0, 0, 2), expand=False)
        if len(shown) < len(sources):
            yield plain(f"and {len(sources) - len(shown):,} more; --sources lists all", "dim")

    def _notes(self) -> Iterator[RenderableType]:
        """Yield facts that are no problems, but that operators may not expect."""
        found = [f"{endpoint(one)}/{one['protocol']}" for one in self._status["virtual_servers"] if one["listens_here"]]
        if found:
            text = f"a program of this host listens on {', '.join(some_of(found, _NAMED))}: "
            yield from _note(text + "its clients on this host get real servers instead")
        if self._note:
            yield from _note(self._note)

    def _age(self, moment: str) -> str:
        seconds = max(0, int((self._now - datetime.fromisoformat(moment)).total_seconds()))
        size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
        return f"{seconds // size} {unit} ago"


def wrong_line(text: str) -> Text:
    """Return a last line with problems."""
    return Text("wrong  ", style="bold red", overflow="fold") + plain(text, "red")


def ok_line(status: Mapping[str, Any]) -> Text:
    """Return the last line of a status without problems."""
    virtual = status["virtual_servers"]
    real = sum(map(len, servers_of(virtual).values()))
    return Text("ok     ", style="bold green") + plain(f"virtual servers {len(virtual):,}, real servers {real:,}")


def _note(text: str) -> Iterator[RenderableType]:
    yield ""
    yield plain("note   ", "yellow") + plain(text)
