"""Untrusted text that is shown to people."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.text import nearest, printable, some_of, without_passwords


@given(st.text())
def test_shown_text_is_printable(text: str) -> None:
    """The result has no control characters, and printable text is unchanged."""
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()


@given(st.text(alphabet="abc:@/\"' \\"), st.text(alphabet="pqr!:", min_size=1))
def test_no_password_of_a_url_is_left(around: str, password: str) -> None:
    """User and password of every URL are removed, with any text around it."""
    assert f"user:{password}@" not in without_passwords(f"{around} http://user:{password}@host/{around}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at http://user:secret@consul:8500/v1: refused", "at http://***@consul:8500/v1: refused"),
        ('{"error": "https://a@b"}', '{"error": "https://***@b"}'),
        ("mail me@example.com // or not", "mail me@example.com // or not"),
        ("http://consul:8500/v1?near=a@b", "http://consul:8500/v1?near=a@b"),
        ("tls://10.0.0.53#dns.example", "tls://10.0.0.53#dns.example"),
    ],
)
def test_the_rest_of_a_url_stays(text: str, expected: str) -> None:
    """Only a possible password is removed."""
    assert without_passwords(text) == expected


def test_a_few_names_and_how_many_more() -> None:
    """A short list is complete; a longer one ends with the number of the remaining names."""
    assert some_of(["a", "b"], 2) == ["a", "b"]
    assert some_of(["a", "b", "c", "d"], 2) == ["a", "b", "and 2 more"]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("redsi", ("redis",)),
        ("REDIS-WEB", ("redis-web", "redis")),
        ("stauts", ("status",)),
        ("--min-tll", ("--min-ttl", "--max-ttl")),
        ("postgres", ()),
        ("", ()),
    ],
)
def test_names_that_a_mistyped_one_may_mean(wrong: str, expected: tuple[str, ...]) -> None:
    """The most similar known names come first, whatever their case; there are none if nothing is similar."""
    known = ["redis", "web", "redis-web", "status", "--min-ttl", "--max-ttl"]
    assert nearest(wrong, known) == expected


@given(st.text(max_size=200), st.lists(st.text(max_size=200)))
def test_nearest_names_are_known_ones(wrong: str, known: list[str]) -> None:
    """At most three names are returned, none twice, and each as it is known."""
    found = nearest(wrong, known)
    assert len(found) == len(set(found)) <= 3
    assert set(found) <= set(known)


def test_nearest_of_many_long_names_takes_seconds_at_most() -> None:
    """Names that are hard to compare, as many and as long as anybody can register, do not stop a command."""
    started = time.monotonic()
    nearest("ab" * 64, ["ba" * 63 + str(number) for number in range(100_000)])
    assert time.monotonic() - started < 5
