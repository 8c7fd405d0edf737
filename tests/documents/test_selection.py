"""Parts of a status: services by patterns, and those with problems."""

from __future__ import annotations

from typing import Any

import pytest

from clb_discovery.documents.selection import of_problems, of_services, unmatched
from tests.support.contract import assert_is_status
from tests.support.statuses import source, status, virtual_server


def scene() -> dict[str, Any]:
    """Return services with a problem in the pool, in the source, and without room; a source that never answered."""
    return status(
        virtual_servers=[virtual_server("web-1"), virtual_server("web-2", ejected=1), virtual_server("mail")],
        sources=[
            *(source(f"consul:{name}") for name in ("web-1", "web-2")),
            source("consul:mail", "held", "2 of 3 real servers absent"),
            source("srv:_new._tcp.example", "retrying", "SERVFAIL"),
        ],
        unpublished=[{"service": "big", "source": "consul:big", "virtual_servers": 1, "reason": "no room"}],
    )


def names(document: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Return the names of virtual servers, sources and unpublished services, after checking the document."""
    assert_is_status(document)
    return (
        [one["service"] for one in document["virtual_servers"]],
        [one["name"] for one in document["sources"]],
        [one["service"] for one in document["unpublished"]],
    )


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["mail"], (["mail"], ["consul:mail"], [])),
        (["consul:mail"], (["mail"], ["consul:mail"], [])),
        (["web-*"], (["web-1", "web-2"], ["consul:web-1", "consul:web-2"], [])),
        (["web-?", "big"], (["web-1", "web-2"], ["consul:web-1", "consul:web-2"], ["big"])),
        (["_new._tcp.example"], ([], ["srv:_new._tcp.example"], [])),
        (["srv:*"], ([], ["srv:_new._tcp.example"], [])),
        (["WEB-1"], ([], [], [])),
    ],
)
def test_services_are_found_by_patterns(patterns: list[str], expected: tuple[list[str], ...]) -> None:
    """Patterns name services, or sources with or without their kind, and a service brings its source."""
    assert names(of_services(scene(), patterns)) == expected


@pytest.mark.parametrize("name", ["web[1]", "[!a]", "a*b?"])
@pytest.mark.parametrize("kind", ["", "consul:"])
def test_a_name_finds_itself_whatever_it_means_as_a_pattern(name: str, kind: str) -> None:
    """Names come from discovery, and any of their characters may have a meaning in patterns."""
    found = status(virtual_servers=[virtual_server(name), virtual_server("other")], sources=[source(f"consul:{name}")])
    assert names(of_services(found, [kind + name])) == ([name], [f"consul:{name}"], [])
    assert unmatched(found, [kind + name]) is None


def test_the_rest_of_the_document_stays() -> None:
    """Data plane and sidecar concern every service."""
    whole, part = scene(), of_services(scene(), ["mail"])
    assert (part["datapath"], part["sidecar"]) == (whole["datapath"], whole["sidecar"])


def test_only_problems_are_left() -> None:
    """Services and sources without a problem are left out."""
    assert names(of_problems(scene())) == (
        ["web-2", "mail"],
        ["consul:web-2", "consul:mail", "srv:_new._tcp.example"],
        ["big"],
    )


def test_of_services_with_one_name_only_that_with_a_problem_is_left() -> None:
    """The name selects all of them, the title that problems use selects one."""
    both = [virtual_server("db", 1, servers=0), virtual_server("db", 2) | {"source": "consul:db-2"}]
    document = status(virtual_servers=both)
    assert of_problems(document)["virtual_servers"] == both[:1]
    assert of_services(document, ["db"])["virtual_servers"] == both
    assert of_services(document, ["db (consul:db-2)"])["virtual_servers"] == both[1:]
    assert unmatched(document, ["db", "db (consul:db)"]) is None
    assert (
        unmatched(document, ["xyz"])
        == "no service or source matches 'xyz'; there are: db (consul:db), db (consul:db-2)"
    )


def test_virtual_servers_of_other_programs_are_found_by_their_address() -> None:
    """They have no service and no source."""
    foreign = virtual_server("x") | {"service": None, "source": None}
    found = status(virtual_servers=[foreign])
    assert of_services(found, [foreign["address"]])["virtual_servers"] == [foreign]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("maill", "'maill'; did you mean mail?"),
        ("zzzzz", "'zzzzz'; there are: big, mail, web-1, web-2"),
        ("zzz*", "'zzz*'; there are: "),
    ],
)
def test_a_name_that_matches_nothing_is_answered(pattern: str, words: str) -> None:
    """The answer has the names it may mean, or the existing ones."""
    found = unmatched(scene(), ["web-*", pattern])
    assert found is not None
    assert words in found
    assert unmatched(scene(), ["web-*", "mail"]) is None
    assert unmatched(status(), ["mail"]) == "no service or source matches 'mail'; there are: none"
