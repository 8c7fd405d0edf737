"""`status --watch`: the status at intervals, on one screen or as lines."""

from __future__ import annotations

import glob
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, NoReturn

from rich.console import RenderableType
from rich.live import Live

from clb_discovery.documents.rates import Key, Rate, rates
from clb_discovery.documents.selection import of_services
from clb_discovery.documents.verdict import problems
from clb_discovery.terminal.keyboard import Keyboard, keyboard
from clb_discovery.terminal.problems import ProblemLines, Problems, summary
from clb_discovery.terminal.screen import is_terminal, plain, show, terminal
from clb_discovery.terminal.screenful import Screenful
from clb_discovery.terminal.status import Status
from clb_discovery.terminal.view import View

_LOOK: Final = 0.05  # seconds between two looks whether the next document has been read


class Form(NamedTuple):
    """What is shown of each document."""

    as_json: bool = False
    """A line of JSON, whatever the output is."""
    only_problems: bool = False
    all_sources: bool = False


class _Moment(NamedTuple):
    status: Mapping[str, Any]
    time: datetime
    clock: float
    """The time of a clock that is never set."""
    rates: Mapping[Key, Rate] | None
    """None at the first moment."""


def watch(read: Callable[[], Mapping[str, Any]], seconds: float, form: Form) -> int:
    """Show the status every few seconds, until interrupted or until `q` on a terminal; return the exit code.

    :param read: returns the document of `status --json`.
    :raises KeyboardInterrupt: by SIGINT; the terminal is restored before.
    :raises SystemExit: by SIGTERM, likewise.
    """
    # The exit code is that of shells for signals.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if form.as_json or not is_terminal(sys.stdout):
        _print(read, seconds, form)
    first = _next(read, None)  # an error is reported on the ordinary screen
    with (
        ThreadPoolExecutor(1) as reader,  # the last to end, so that the terminal is restored without waiting for it
        Live(console=terminal(sys.stdout), screen=True, auto_refresh=False, redirect_stdout=False) as live,
        keyboard() as keys,
    ):
        view = View(has_keys=keys.exists)
        for moment, pressed in _news(first, lambda before: reader.submit(_next, read, before), seconds, keys):
            for key in pressed:
                view.press(key)
            if view.ended:
                break
            live.update(_screenful(moment, view, form), refresh=True)
    return 0


def _news(
    moment: _Moment, submit: Callable[[_Moment], Future[_Moment]], seconds: float, keys: Keyboard
) -> Iterator[tuple[_Moment, list[str]]]:
    """Yield the moment and the keys pressed, at first and whenever either is new.

    :param submit: starts to read the moment after another one, without waiting for it, as keys must not wait either.
    """
    following: Future[_Moment] | None = None
    pressed: list[str] = []
    is_new, due = True, time.monotonic() + seconds
    while True:
        if is_new or pressed:
            yield moment, pressed
        if following is None and time.monotonic() >= due:
            following = submit(moment)
        pressed = keys.read(_LOOK if following else max(0.0, due - time.monotonic()))
        is_new = following is not None and following.done()
        if following and is_new:
            moment, due, following = following.result(), time.monotonic() + seconds, None


def _print(read: Callable[[], Mapping[str, Any]], seconds: float, form: Form) -> NoReturn:
    moment = None
    while True:
        moment = _next(read, moment)
        if form.as_json:
            stamp = moment.time.isoformat().replace("+00:00", "Z")
            print(json.dumps({"time": stamp, **moment.status}), flush=True)  # noqa: T201 - this is the output
        elif form.only_problems:
            show(Problems(moment.status))
        else:
            show(Status(moment.status, moment.time, moment.rates, all_sources=form.all_sources))
        time.sleep(seconds)


def _next(read: Callable[[], Mapping[str, Any]], before: _Moment | None) -> _Moment:
    status, clock = read(), time.monotonic()
    grown = rates(before.status, status, clock - before.clock) if before else None
    return _Moment(status, datetime.now(UTC), clock, grown)


def _screenful(moment: _Moment, view: View, form: Form) -> Screenful:
    """Return the screen: problems first, then all other parts, of the services that the filter names."""
    found = of_services(moment.status, [f"*{glob.escape(view.filter)}*"]) if view.filter else moment.status
    status = Status(found, moment.time, moment.rates, all_sources=form.all_sources)
    wrong = list(problems(found))
    parts: list[RenderableType] = [*status.head()]
    if wrong:
        parts += ["", ProblemLines(wrong, cut=not form.only_problems)]
    if not form.only_problems:
        parts += status.body()
    if view.filter and not found["virtual_servers"]:
        parts += ["", plain(f"no virtual server is of a service with {view.filter!r} in its name")]
    return Screenful(parts, summary(found, wrong), view)
