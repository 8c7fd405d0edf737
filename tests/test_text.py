"""Untrusted text that is shown to people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.text import printable, some_of, without_passwords


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
