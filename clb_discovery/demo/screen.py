"""The output of the demo, to a terminal or to another stream of text."""

from __future__ import annotations

import os
from typing import Final, TextIO

from clb_discovery.terminal.bar import ASCII, UNICODE, Glyphs
from clb_discovery.terminal.screen import is_terminal

_CLEAR_LINE: Final = "\r\x1b[K"


class Screen:
    """Lines for people, with colour and progress on terminals only."""

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        """Find out which characters and colours the stream can show; only a terminal gets colour."""
        self._stream = stream
        self._is_terminal = is_terminal(stream)
        self._color = color and self._is_terminal and not os.environ.get("NO_COLOR")
        self._under_way = ""
        self.glyphs: Final = UNICODE if _can_show(stream, UNICODE) else ASCII

    def say(self, text: str = "") -> None:
        """Print a line that stays."""
        self.end_progress()
        print(text, file=self._stream, flush=True)

    def title(self, text: str) -> None:
        """Print the heading of a step."""
        self.say()
        self.say(f"\x1b[1m{text}\x1b[0m" if self._color else text)

    def figure(self, lines: list[str]) -> None:
        """Print a chart, its head dim and its bars green."""
        self.say()
        for number, line in enumerate(lines):
            shade = 2 if number == 0 else 32
            self.say(f"   \x1b[{shade}m{line}\x1b[0m" if self._color else f"   {line}")

    def progress(self, text: str) -> None:
        """Show progress until the next line is printed; only on a terminal."""
        if self._is_terminal and text != self._under_way:
            self._under_way = text
            print(f"{_CLEAR_LINE}   {text}", end="", file=self._stream, flush=True)

    def end_progress(self) -> None:
        """Remove the text that `progress` showed last."""
        if self._under_way:
            self._under_way = ""
            print(_CLEAR_LINE, end="", file=self._stream, flush=True)


def _can_show(stream: TextIO, glyphs: Glyphs) -> bool:
    try:
        "".join(glyphs).encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
