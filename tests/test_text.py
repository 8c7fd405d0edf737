"""Untrusted text on its way to a person's eyes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.text import printable, some_of, without_passwords


@given(st.text())
def test_what_is_shown_can_be_seen(text: str) -> None:
    """Whatever it was, afterwards no character is obeyed, and text that was fit to be seen is as it was."""
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()


@given(st.text(alphabet="abc:@/\"' \\"), st.text(alphabet="pqr!:", min_size=1))
def test_no_password_of_a_url_is_left(around: str, password: str) -> None:
    """The user and the password of every URL are taken out, whatever stands around it."""
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
    """Only what may be a password goes."""
    assert without_passwords(text) == expected


def test_a_few_names_and_how_many_more() -> None:
    """A list that is short is whole; a longer one is counted."""
    assert some_of(["a", "b"], 2) == ["a", "b"]
    assert some_of(["a", "b", "c", "d"], 2) == ["a", "b", "and 2 more"]
