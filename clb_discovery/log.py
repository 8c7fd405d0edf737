"""Logs: lines for people on a terminal, one JSON object per line for a service. All of it goes to stderr."""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "console", "json")


def configure(form: str, level: str) -> None:
    """Set up structlog.

    :param form: one of `FORMATS`; auto is console on a terminal, else json.
    :param level: one of `LEVELS`; what is below it is dropped.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderers = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
