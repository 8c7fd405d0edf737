"""Parts of the document of `status`: of some services, or of those with problems. Each is again such a document."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from clb_discovery.documents.names import identity, sources_of, titles
from clb_discovery.documents.verdict import empty_services, problems
from clb_discovery.text import did_you_mean, some_of

_NAMED: Final = 10  # at most so many names in one message


def of_services(status: Mapping[str, Any], patterns: Collection[str]) -> dict[str, Any]:
    """Return the document with the services that match any of the patterns, and with their sources.

    :param patterns: names, with `*`, `?` and `[…]` as in a shell, of services, also as `titles` has them, or of
        sources. A source is also found without its kind: `consul:redis` by `redis`.
    """
    return _part(status, lambda name: any(_matches(name, pattern) for pattern in patterns))


def of_problems(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with the services and sources that have a problem."""
    return _part(status, {problem.subject for problem in problems(status)}.__contains__)


def unmatched(status: Mapping[str, Any], patterns: Collection[str]) -> str | None:
    """Return which pattern matches nothing, with the names nearest to it, or None if each matches something."""
    called = titles(status)
    services = sorted(called.values())
    names = [*services, *(one.name for one in called), *(source["name"] for source in status["sources"])]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            known = ", ".join(some_of(services or names, _NAMED)) or "none"
            return f"no service or source matches {pattern!r}{did_you_mean(pattern, names, f'there are: {known}')}"
    return None


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern matches a name; a name itself always does, whatever it would match as a pattern."""
    short = name.partition(":")[2]
    return pattern in (name, short) or fnmatchcase(name, pattern) or fnmatchcase(short, pattern)


def _part(status: Mapping[str, Any], is_wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return the document with the services and sources whose names are wanted, and with the sources of the former."""
    called = titles(status)

    def concerned(one: Mapping[str, Any]) -> bool:
        service = identity(one)
        return any(map(is_wanted, (service.name, called[service], *sources_of(one))))

    parts = {part: [*filter(concerned, status[part])] for part in ("virtual_servers", "unpublished")}
    of_them = {source for part in parts.values() for one in part for source in sources_of(one)}
    sources = [one for one in status["sources"] if one["name"] in of_them or is_wanted(one["name"])]
    return {**status, "sources": sources, **parts, "empty_services": empty_services(parts["virtual_servers"])}
