"""The page of statistics: one document, put together from three files, that loads nothing but `/status.json`."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import NamedTuple


class Page(NamedTuple):
    """A document and what it may do."""

    body: bytes
    policy: str
    """Its Content-Security-Policy: no script and no style but its own, and text from elsewhere never becomes markup."""


def read_page() -> Page:
    """Put the page together."""
    files = resources.files(__name__)
    document, style, script = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    body = document.replace("<style></style>", f"<style>{style}</style>").replace(
        "<script></script>", f"<script>{script}</script>"
    )
    policy = (
        "default-src 'none'",
        f"script-src {_source(script)}",
        f"style-src {_source(style)}",
        "img-src data:",  # its icon
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return Page(body.encode(), "; ".join(policy))


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
