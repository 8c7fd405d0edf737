"""The entry point: one command, one exit code, and errors as one line.

The module of a command is imported only for that command: `status` does not wait for the Consul client, and the sidecar
does not load the tables of `terminal`.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from clb_discovery.cli.output import discard_output, open_closed_streams
from clb_discovery.cli.parser import PROGRAM, make_parser
from clb_discovery.errors import ClbError
from clb_discovery.stderr import internal_error, priority, say
from clb_discovery.text import printable, without_passwords

_OUTPUT_FAILS: Final = frozenset({errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG})
"""Errors of writing. One without a file name comes from standard output."""
_SILENT: Final = frozenset({"run", "load", "unload"})  # commands that need no standard output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process; return the exit code."""
    given = _with_command(list(sys.argv[1:] if arguments is None else arguments))
    is_closed = sys.stdout is None
    open_closed_streams()
    if is_closed and given[0] not in _SILENT:
        return _failed("cannot write to standard output: it is closed; give it a file, or /dev/null", 1)
    try:
        typed = make_parser().parse_args(given)
        result: int = import_module(f"clb_discovery.cli.{typed.command}").main(typed)
        sys.stdout.flush()
    except ClbError as error:
        return _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    except BrokenPipeError:  # the reader of a command without a verdict has gone, which ends it
        discard_output()
        return 0
    except Exception as error:  # noqa: BLE001 - a bug is one line, too
        message = internal_error(error)
        if isinstance(error, OSError) and error.errno in _OUTPUT_FAILS and error.filename is None:
            discard_output()
            message = f"cannot write to standard output: {error.strerror}; is there room?"
        return _failed(message, 1)
    return result


def _failed(message: str, exit_code: int) -> int:
    # The message may repeat the command line or the answer of a server.
    say(f"{priority('error')}{PROGRAM}: {printable(without_passwords(message))}")
    return exit_code


def _with_command(arguments: list[str]) -> list[str]:
    """Put `run` in front if there is no command."""
    first = arguments[0] if arguments else ""
    if first in {"-h", "--help", "--version"} or (first and not first.startswith("-")):
        return arguments
    return ["run", *arguments]
