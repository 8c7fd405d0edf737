"""JSON Schema (draft 2020-12), as far as the schemas of our documents use it; any other keyword is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

Schema = Mapping[str, Any]

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_NOTES: Final = frozenset({"$schema", "$comment", "$defs", "title", "description"})
_KEYWORDS: Final = _NOTES | {
    "$ref", "type", "const", "minimum", "maximum", "format", "items", "properties", "required", "additionalProperties",
}  # fmt: skip


def objections(document: object, schema: Schema, *, closed: bool = False) -> list[str]:
    """Return where a document differs from a schema, each with the path and the reason.

    :param closed: whether a key that the schema does not name is a difference, although the schema allows more.
    """
    return list(_Check(schema, closed=closed).differences(document, schema, "$"))


def resolved(schema: Schema, whole: Schema) -> Schema:
    """Return a part of a schema, or the definition that it refers to."""
    reference = schema.get("$ref")
    return whole["$defs"][reference.removeprefix("#/$defs/")] if reference else schema


class _Check:
    def __init__(self, whole: Schema, *, closed: bool) -> None:
        self._whole = whole
        self._closed = closed

    def differences(self, found: object, schema: Schema, path: str) -> Iterator[str]:
        schema = resolved(schema, self._whole)
        if not schema.keys() <= _KEYWORDS:
            raise ValueError(f"{path}: this validator does not know {sorted(schema.keys() - _KEYWORDS)}")
        allowed = schema.get("type", list(_TYPES))
        names = [allowed] if isinstance(allowed, str) else allowed
        if type(found) not in {kind for name in names for kind in _TYPES[name]}:
            yield f"{path} is {found!r} and not {' or '.join(names)}"
        elif isinstance(found, dict):
            yield from self._object(found, schema, path)
        elif isinstance(found, list):
            for place, one in enumerate(found):
                yield from self.differences(one, schema.get("items", {}), f"{path}[{place}]")
        elif found is not None:
            yield from self._value(found, schema, path)

    def _object(self, found: Mapping[str, Any], schema: Schema, path: str) -> Iterator[str]:
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{path} lacks {key}" for key in schema.get("required", ()) if key not in found)
        for key, value in found.items():
            if key in known:
                yield from self.differences(value, known[key], f"{path}.{key}")
            elif self._closed or more is False:
                yield f"{path} has {key}, which is not described"
            elif more is not True:
                yield from self.differences(value, more, f"{path}.{key}")

    @staticmethod
    def _value(found: Any, schema: Schema, path: str) -> Iterator[str]:  # noqa: ANN401 - as in JSON
        if "const" in schema and found != schema["const"]:
            yield f"{path} is {found!r} and not {schema['const']!r}"
        if found < schema.get("minimum", found) or found > schema.get("maximum", found):
            yield f"{path} is {found!r}, which is out of range"
        if schema.get("format") == "date-time":
            try:
                datetime.fromisoformat(found)
            except ValueError:
                yield f"{path} is {found!r} and no time"
