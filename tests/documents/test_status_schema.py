"""The schema of `status --json`: it fits the documents, docs/status.md, and the rule that changes only add."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from clb_discovery.cli.main import main
from tests.support.contract import status_schema
from tests.support.documents import ROOT
from tests.support.json_schema import Schema, objections, resolved

DOCUMENT: Final[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "terminal/golden/status.json").read_text())
ROW: Final = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.MULTILINE)


def keys(schema: Schema, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each key of a schema, and its type as docs/status.md writes it."""
    for name, part in resolved(schema, status_schema()).get("properties", {}).items():
        found = resolved(part, status_schema())
        below = f"{path}.{name}".removeprefix(".")
        yield below, found["type"] if isinstance(found["type"], str) else " or ".join(found["type"])
        yield from keys(found, below)
        yield from keys(found.get("items", {}), f"{below}[]")


def objects(schema: Schema) -> Iterator[Schema]:
    """Yield each part of a schema that describes an object."""
    for part in (schema, *schema["$defs"].values()):
        yield part
        yield from (one for one in part["properties"].values() if one.get("type") == "object")


def test_schema_is_printed_without_privileges(capsys: pytest.CaptureFixture[str]) -> None:
    """`status --schema` prints the schema as it is in the package."""
    assert main(["status", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == status_schema()


def test_each_key_has_a_row_in_the_document_and_no_other() -> None:
    """docs/status.md has each path once, with its type."""
    text = (ROOT / "docs" / "status.md").read_text()
    assert sorted(ROW.findall(text.split("\n## The format\n")[1].split("\n## ")[0])) == sorted(keys(status_schema()))


def test_each_part_is_described() -> None:
    """Each object and each key has a description."""
    for part in objects(status_schema()):
        assert part["description"]
        assert all(resolved(one, status_schema())["description"] for one in part["properties"].values())


def test_changes_only_add() -> None:
    """Every object accepts more keys, and no word is enumerated, so that a later document is valid, too."""
    for part in objects(status_schema()):
        assert part["additionalProperties"] is True or part["additionalProperties"] == {"type": "boolean"}
    later = copy.deepcopy(DOCUMENT)
    later["new"] = later["datapath"]["new"] = later["sources"][0]["new"] = {"any": "thing"}
    later["sources"][0]["state"] = later["virtual_servers"][0]["real_servers"][0]["state"] = "new"
    later["datapath"]["features"]["new"] = True
    assert objections(later, status_schema()) == []
    assert len(objections(later, status_schema(), closed=True)) == 4


def changed(path: list[Any], value: object) -> dict[str, Any]:
    """Return the document with one value replaced; None as the value removes the key."""
    document = copy.deepcopy(DOCUMENT)
    *above, last = path
    part: Any = document
    for step in above:
        part = part[step]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "objection"),
    [
        (["format"], 2, "$.format is 2 and not 1"),
        (["sidecar"], None, "$ lacks sidecar"),
        (["sidecar", "pid"], "4711", "$.sidecar.pid is '4711' and not integer or null"),
        (["sidecar", "pid"], True, "$.sidecar.pid is True and not integer or null"),
        (["sidecar", "last_sync"], "yesterday", "$.sidecar.last_sync is 'yesterday' and no time"),
        (["sources", 0, "stale"], 0, "$.sources[0].stale is 0 and not boolean"),
        (["virtual_servers", 0, "port"], 65536, "$.virtual_servers[0].port is 65536, which is out of range"),
        (["virtual_servers", 0, "real_servers"], {}, "$.virtual_servers[0].real_servers is {} and not array"),
        (["datapath", "features", "errno"], "yes", "$.datapath.features.errno is 'yes' and not boolean"),
        (["datapath", "overlaps"], ["b"], "$.datapath.overlaps[0] is 'b' and not object"),
    ],
)
def test_a_wrong_document_is_found(path: list[Any], value: object, objection: str) -> None:
    """A missing key, another type, and a value out of its range are found, with their places."""
    assert objections(changed(path, value), status_schema()) == [objection]


def test_a_keyword_that_the_validator_lacks_is_an_error() -> None:
    """Otherwise a part of the schema would not be checked."""
    with pytest.raises(ValueError, match="does not know \\['enum'\\]"):
        objections("a", {"enum": ["a"]})
