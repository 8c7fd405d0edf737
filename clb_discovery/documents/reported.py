"""The state that a sidecar has written of itself, as far as its shape is the one that `status` knows.

The sidecar may be of another version than the reader, and less trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

_Shape = Callable[[object], bool]


def _text(value: object) -> bool:
    return isinstance(value, str)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _moment(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _maybe(shape: _Shape) -> _Shape:
    return lambda value: value is None or shape(value)


def _list(shape: _Shape) -> _Shape:
    return lambda value: isinstance(value, list) and all(map(shape, value))


def _by_name(shape: _Shape) -> _Shape:
    return lambda value: isinstance(value, dict) and all(map(shape, value.values()))


def _object(since: Mapping[str, _Shape] = MappingProxyType({}), /, **shapes: _Shape) -> _Shape:
    """Return the shape of an object with these keys; others are no fault.

    :param since: keys that sidecars of earlier versions do not write.
    """
    return lambda value: (
        isinstance(value, dict)
        and all(key in value and shape(value[key]) for key, shape in shapes.items())
        and all(shape(value[key]) for key, shape in since.items() if key in value)
    )


SHAPES: Final[Mapping[str, _Shape]] = {
    "last_sync": _maybe(_moment),
    "config_error": _maybe(_text),
    "metrics_error": _maybe(_text),
    "unpublished": _list(_object(service=_text, source=_text, virtual_servers=_number, reason=_text)),
    "parts": _by_name(_list(_object(source=_text, priority=_number, share=_maybe(_number)))),
    "checks": _list(_object(address=_text, port=_number, protocol=_text, check=_text, down=_by_name(_text))),
    "zone": _maybe(_object(name=_maybe(_text), auto=_flag, error=_maybe(_text))),
    "zones": _by_name(_by_name(_list(_text))),
    "sources": _list(
        _object(
            {"rejected": _number},
            name=_text,
            state=_text,
            last_success=_maybe(_moment),
            error=_maybe(_text),
            stale=_flag,
            reason=_maybe(_text),
        )
    ),
}
"""The shape of each key that `document` uses."""


def usable(state: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the keys that can be used, and why others cannot, if there are any. A key may be missing."""
    wrong = {key for key, shape in SHAPES.items() if key in state and not shape(state[key])}
    if not wrong:
        return dict(state), None
    names = ", ".join(map(repr, sorted(wrong)))
    objection = f"cannot read all of the sidecar's state: {names} {'has' if len(wrong) == 1 else 'have'} another shape"
    usable_ones = {key: value for key, value in state.items() if key not in wrong}
    return usable_ones, f"{objection} than in this version; restart the sidecar"
