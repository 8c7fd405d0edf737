"""Whether a server is out of service: every row of the rule that the programs follow."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout.elements import NEW_SERVER, Steering, unpack_server
from clb_discovery.layout.health import NO_WORDS, Health, Words, health_of

NEW: Final = unpack_server(NEW_SERVER)
NOW: Final = 1_000
SILENT: Final = Steering(0, 0)


@pytest.mark.parametrize(
    ("ejected_until", "suspect", "steering", "checked", "health"),
    [
        (0, 0, SILENT, False, Health.ACTIVE),
        (2_000, 0, SILENT, False, Health.EJECTED),
        (900, 0, SILENT, False, Health.EJECTED),  # it waits for its probe
        (2_000, 1, SILENT, False, Health.SUSPECT),
        (900, 1, SILENT, False, Health.ACTIVE),  # without a word, suspicion ends with its time
        (2_000, 0, Steering(600, 0), False, Health.ACTIVE),
        (2_000, 1, Steering(600, 0), False, Health.ACTIVE),
        (2_000, 1, Steering(600, 1_500), False, Health.EJECTED),
        (900, 0, Steering(600, 1_500), False, Health.EJECTED),
        (2_000, 0, Steering(600, 900), False, Health.EJECTED),  # the lease is over, and it waits for its probe
        (2_000, 0, Steering(500, 0), False, Health.EJECTED),  # the kernel's word is later
        (2_000, 1, Steering(500, 0), False, Health.SUSPECT),
        (0, 0, Steering(600, 1_500), False, Health.ACTIVE),
        (0, 0, Steering(600, 1_500), True, Health.EJECTED),
        (0, 0, Steering(600, 900), True, Health.ACTIVE),  # a stopped sidecar holds nobody out
        (0, 0, Steering(600, 0), True, Health.ACTIVE),
        (0, 0, Steering(500, 1_500), True, Health.ACTIVE),
    ],
)
def test_the_later_word_decides(
    ejected_until: int, suspect: int, steering: Steering, health: Health, *, checked: bool
) -> None:
    """The kernel's last word is of moment 500."""
    server = NEW._replace(ejected_until=ejected_until, suspect=suspect, changed_at=500)
    assert health_of(server, steering, NOW, checked=checked) is health
    assert Words({b"a": steering}, NOW).health(b"a", server, checked=checked) is health


@given(*[st.integers(0, 3)] * 5, st.booleans(), st.booleans())
def test_who_is_out_gets_no_connect_now(  # noqa: PLR0917 - numbers that are drawn
    now: int, changed_at: int, ejected_until: int, decided_at: int, out_until: int, suspect: bool, checked: bool
) -> None:
    """Everyone whose time is not over is out, by the formula of the programs."""
    server = NEW._replace(changed_at=changed_at, ejected_until=ejected_until, suspect=int(suspect))
    said = decided_at > changed_at and (ejected_until > 0 or checked)
    until = out_until if said else ejected_until
    health = health_of(server, Steering(decided_at, out_until), now, checked=checked)
    if now < until:
        assert health is not Health.ACTIVE
    elif not ejected_until or not until:
        assert health is Health.ACTIVE


@pytest.mark.parametrize(
    ("ejected_until", "steering", "checked", "decides"),
    [
        (2_000, SILENT, True, False),
        (2_000, Steering(500, 1_500), True, False),  # the kernel's word is later
        (2_000, Steering(600, 1_500), False, True),
        (2_000, Steering(600, 900), False, True),  # it waits for its probe, which the sidecar has ordered
        (0, Steering(600, 1_500), False, False),  # nobody looks at the word
        (0, Steering(600, 1_500), True, True),
    ],
)
def test_whose_word_decides(ejected_until: int, steering: Steering, *, checked: bool, decides: bool) -> None:
    """It is the sidecar's if that is later, and is looked at."""
    server = NEW._replace(ejected_until=ejected_until, changed_at=500)
    assert Words({b"a": steering}, NOW).decide(b"a", server, checked=checked) is decides


def test_without_words_the_kernel_decides() -> None:
    """A server of which nothing is said is as the kernel has it."""
    assert NO_WORDS.health(b"a", NEW, checked=True) is Health.ACTIVE
    assert NO_WORDS.health(b"a", NEW._replace(ejected_until=1), checked=True) is Health.EJECTED
