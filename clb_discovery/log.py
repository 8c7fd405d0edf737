"""Logging to stderr: sentences on a terminal, one JSON object per line with all fields otherwise.

In the journal, systemd removes the priority of each line, so that the message is the JSON object alone. Passwords in
URLs are removed here as a second line of defence. Tracebacks have no local variables, because these may hold a token.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import lru_cache
from typing import Any, Final, TextIO, cast

from clb_discovery.repeats import Repeats
from clb_discovery.sentences import sentence
from clb_discovery.stderr import Lines, described, priority
from clb_discovery.text import printable, without_passwords

# If rich is installed, structlog imports it for its tracebacks, which are not used here: 5 MB and 60 ms per sidecar.
_HIDDEN = sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None makes an import fail
import structlog  # noqa: E402
from structlog.tracebacks import ExceptionDictTransformer  # noqa: E402
from structlog.typing import EventDict, Processor, WrappedLogger  # noqa: E402

if _HIDDEN is None:
    del sys.modules["rich"]

_COLORS: Final = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_PLAIN: Final = "\x1b[0m"
_FOR_PROGRAMS: Final[tuple[Processor, ...]] = (
    structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
    structlog.processors.JSONRenderer(),
)


def configure(form: str, level: str) -> None:
    """Set up structlog, and route log records of libraries to it, from warnings on.

    :param form: one of `stderr.FORMATS`; auto is console on a terminal, else json.
    :param level: one of `stderr.LEVELS`; lines below it are dropped.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *(_for_people() if console else _FOR_PROGRAMS),
        _finish,
    ]
    lossy = _lossy(sys.stderr)
    warns = structlog.make_filtering_bound_logger(logging.WARNING)
    lossy.own_log = structlog.wrap_logger(structlog.ReturnLogger(), processors, warns)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", lossy)),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[_Libraries()], force=True)


class _Lossy:
    """A stream that loses the lines which cannot be written, and then has their number. Balancing matters more."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._lost = 0
        self.own_log: Any
        """A log whose methods return the line instead of writing it."""

    def write(self, text: str) -> None:
        """Write a line, or lose it."""
        if self._lost:
            text = f"{self.own_log.warning('lines of the log were lost', count=self._lost)}\n{text}"
        self._lost = 0 if self._lines.write(text) else self._lost + 1

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""


@lru_cache(1)
def _lossy(stream: TextIO) -> _Lossy:
    """Return the same one for each configuration, so that no lost line is forgotten."""
    return _Lossy(Lines(stream))


def _for_people() -> list[Processor]:
    colors = not os.environ.get("NO_COLOR") and sys.stderr.isatty()
    return [structlog.processors.format_exc_info, _Sentences(colors=colors)]


class _Sentences:
    """Renders time, level and a sentence, and a traceback below it."""

    def __init__(self, *, colors: bool) -> None:
        self._colors = _COLORS if colors else {}

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> str:
        """Return the line of an event."""
        moment, level, what = str(event.pop("timestamp")), str(event.pop("level")), str(event.pop("event"))
        traceback_ = str(event.pop("exception", "")).split("\n")
        said = printable(sentence(what, event))
        begin, end = self._colors.get(level, ""), _PLAIN if level in self._colors else ""
        lines = [f"{moment[:19]}Z {begin}{level:7}{end} {said}", *map(printable, filter(None, traceback_))]
        return "\n".join(lines)


def _finish(_logger: WrappedLogger, level: str, line: EventDict | str) -> str:
    return priority(level) + without_passwords(str(line))


class _Libraries(logging.Handler):
    """Logs records of libraries in our form: one line each, and repeated ones less and less often."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record."""
        # asyncio adds details on further lines, with numbers that differ each time.
        event = record.getMessage().partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        times = self._repeats.happened(record.name, f"{event} {type(error).__name__}", time.monotonic())
        if times is None:
            return
        log = structlog.stdlib.get_logger()
        say = log.error if record.levelno >= logging.ERROR else log.warning
        more = {**({"error": described(error)} if error else {}), **({"times": times} if times else {})}
        say(event, logger=record.name, **more)
