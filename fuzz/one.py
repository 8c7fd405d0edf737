"""Fuzz one target in this process: `python -m fuzz.one TARGET FOLDER SECONDS`; what it finds is left in the folder."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Final

import atheris

with atheris.instrument_imports(include=["clb_discovery", "consul", "dns"]):
    from clb_discovery import log
    from fuzz.targets import TARGETS

SLOWEST: Final = 1.0
"""Seconds of processor time that an input may take: others may keep the machine busy."""
HUNG: Final = 30
"""Seconds after which an input that only waits has hung."""
MEMORY: Final = 200
"""MiB that the whole process may have."""
LONGEST: Final = 16384
"""Bytes of an input."""


class TooSlow(BaseException):
    """An input took too long; nothing that handles ordinary errors handles this."""


def too_slow(_signal: int, _frame: FrameType | None) -> None:
    """Break off what runs, as the handler of a signal."""
    raise TooSlow


def main() -> None:
    """Fuzz; ends with another code than 0 where something was found."""
    name, folder, seconds = sys.argv[1:]
    log.configure("json", "error")
    target, corpus = TARGETS[name], Path(folder) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "timeout": HUNG,
        "rss_limit_mb": MEMORY,
        "max_len": LONGEST,
        "artifact_prefix": f"{folder}/found-",
        "print_final_stats": 1,
        "verbosity": 0,
    }

    def once(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SLOWEST)
        target.read(data)
        signal.setitimer(signal.ITIMER_PROF, 0)

    signal.signal(signal.SIGPROF, too_slow)
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)], once)
    atheris.Fuzz()


main()
