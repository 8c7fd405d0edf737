"""The tasks that follow sources: which source can be hastened, and when that has no effect."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext

from structlog.testing import capture_logs

from clb_discovery.model.answer import Answer, Failure, Listing, Outcome
from clb_discovery.model.service import CATALOG
from clb_discovery.sources.base import Source
from clb_discovery.sources.watches import Watches
from tests.support.fake_source import Told


class Catalog(Told):
    """A catalog whose services are scripted, too."""

    def __init__(self) -> None:
        super().__init__()
        self.services: dict[str, Told] = {}

    async def next(self) -> Listing:  # type: ignore[override]  # a catalog answers with names
        """Return an empty list each time."""
        await super().next()
        return Listing(frozenset())

    def service(self, name: str) -> Source:
        """Return the source of one."""
        return self.services.setdefault(name, Told())


def watches(sources: Mapping[str, Source]) -> Watches:
    """Return watches of these sources, which are not open yet."""
    return Watches(lambda: nullcontext(sources))


async def test_source_that_is_followed_is_hastened() -> None:
    """A followed source is hastened; before start, after end, and for a name that is not followed nothing happens."""
    source, heard = Told(Answer(())), asyncio.Queue[tuple[str, Outcome]]()
    found = watches({"fake:a": source})
    found.hasten("fake:a")
    await found.open()
    found.hasten("fake:a")
    found.start(lambda name, outcome: heard.put_nowait((name, outcome)))
    assert await heard.get() == ("fake:a", Answer(()))
    found.hasten("fake:a")
    found.hasten("fake:b")
    assert await heard.get() == ("fake:a", Answer(()))
    await found.end()
    found.hasten("fake:a")
    assert source.hastens == 1


async def test_service_that_has_left_is_left_alone() -> None:
    """A service of a catalog is hastened while it is followed, and the catalog is followed throughout."""
    catalog = Catalog()
    found = watches({CATALOG: catalog})
    await found.open()
    found.start(lambda _name, _outcome: None)
    found.adjust(["consul:web", CATALOG])
    found.hasten("consul:web")
    found.adjust([CATALOG])
    found.hasten("consul:web")
    found.hasten(CATALOG)
    assert (catalog.services["web"].hastens, catalog.hastens) == (1, 1)
    await found.end()


async def test_a_change_of_what_is_followed_is_a_line_for_debugging() -> None:
    """The line counts the sources before and after; without a change there is none."""
    found = watches({CATALOG: Catalog()})
    await found.open()
    with capture_logs() as logs:
        found.start(lambda _name, _outcome: None)
        for _ in range(2):
            found.adjust({"consul:web", CATALOG})
    await found.end()
    assert [(line["event"], line["log_level"], line["before"], line["now"]) for line in logs] == [
        ("followed sources change", "debug", 0, 1),
        ("followed sources change", "debug", 1, 2),
    ]


async def test_source_whose_task_ends_by_a_bug_is_followed_again() -> None:
    """The bug is a failure of its source, with one traceback for each kind; the next round follows the source again."""
    heard, broken = asyncio.Queue[Outcome](), [True, True]

    def hear(_name: str, outcome: Outcome) -> None:
        if isinstance(outcome, Answer) and broken:
            raise KeyError(broken.pop())
        heard.put_nowait(outcome)

    found = watches({"fake:a": Told(*[Answer(())] * 3)})
    await found.open()
    with capture_logs() as logs:
        found.start(hear)
        for _ in range(2):
            assert await heard.get() == Failure("internal error: KeyError(True); please report it")
            found.adjust(())
        assert await heard.get() == Answer(())
    await found.end()
    errors = [(line["event"], line["source"]) for line in logs if line["log_level"] == "error"]
    assert errors == [("source failed unexpectedly", "fake:a")]
