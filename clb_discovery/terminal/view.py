"""The part of a long output that a screen shows, and the filter, as keys change them."""

from __future__ import annotations

from typing import Final

UP: Final = "up"
DOWN: Final = "down"
PAGE_UP: Final = "page up"
PAGE_DOWN: Final = "page down"
HOME: Final = "home"
END: Final = "end"
ENTER: Final = "enter"
ESCAPE: Final = "escape"
BACKSPACE: Final = "backspace"

_HINT: Final = "arrows and page keys scroll, / filters, q quits"


class View:
    """A window on lines. Keys are the constants above, and single characters."""

    def __init__(self, *, has_keys: bool) -> None:
        """Show everything from the first line on.

        :param has_keys: whether keys can be read, which are named to the user then.
        """
        self.filter = ""
        """Only services with this in their name are shown."""
        self.ended = False
        self._has_keys = has_keys
        self._typed: str | None = None
        self._top = 0
        self._page = 1
        self._lines = 0

    def press(self, key: str) -> None:
        """Take a key."""
        if self._typed is not None:
            self._edit(self._typed, key)
        elif key == "/":
            self._typed = self.filter
        elif key == "q":
            self.ended = True
        elif key == ESCAPE:
            self._show("")
        else:
            self._move(key)

    def window(self, lines: int, room: int) -> slice:
        """Return which of so many lines are shown in a room of so many; the last ones are never scrolled away."""
        self._page = max(1, room)
        self._lines = lines
        self._top = max(0, min(self._top, lines - self._page))
        return slice(self._top, self._top + self._page)

    def footer(self) -> str:
        """Return the line below the window."""
        if self._typed is not None:
            return f"/{self._typed}_  Enter shows the services with this in their name, Esc leaves"
        last = min(self._top + self._page, self._lines)
        parts = [f"lines {self._top + 1}-{last} of {self._lines}"] if self._lines > self._page else []
        parts += [f"filter {self.filter!r} (Esc: none)"] if self.filter else []
        return "; ".join([*parts, _HINT] if self._has_keys else parts)

    def _move(self, key: str) -> None:
        page = max(1, self._page - 1)  # one line stays as a landmark
        by = {UP: -1, DOWN: 1, PAGE_UP: -page, PAGE_DOWN: page, " ": page, HOME: -self._lines, END: self._lines}
        self._top = max(0, self._top + by.get(key, 0))

    def _edit(self, typed: str, key: str) -> None:
        if key == ENTER:
            self._show(typed)
        elif key == ESCAPE:
            self._typed = None
        elif key == BACKSPACE:
            self._typed = typed[:-1]
        elif len(key) == 1 and key.isprintable():
            self._typed = typed + key

    def _show(self, found: str) -> None:
        self.filter, self._typed, self._top = found, None, 0
