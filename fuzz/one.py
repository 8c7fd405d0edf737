"""Fuzz one target in this process: `python -m fuzz.one TARGET FOLDER SECONDS`; findings are written to the folder."""

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
"""Seconds of CPU time for one input; on a busy machine it may take longer."""
HUNG: Final = 30
"""Seconds after which a waiting input counts as hung."""
MEMORY: Final = 200
"""Maximum memory of the whole process, in MiB."""
LONGEST: Final = 16384
"""Maximum size of an input, in bytes."""


class TooSlow(BaseException):
    """An input took too long; no handler of ordinary errors catches this."""


def too_slow(_signal: int, _frame: FrameType | None) -> None:
    """Abort the current input, as a signal handler."""
    raise TooSlow


def main() -> None:
    """Fuzz; the exit code is not 0 if anything was found."""
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
