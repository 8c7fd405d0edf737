"""The page of statistics: one document, built from the files beside this one. It loads only `/status.json`."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Final, NamedTuple

_SCRIPTS: Final = ("dom.js", "numbers.js", "groups.js", "views.js", "page.js")
"""Parts of one script. Each uses only parts before it while it is loaded."""


class Page(NamedTuple):
    """A document and its policy."""

    body: bytes
    policy: str
    """Its Content-Security-Policy: only its own script and style, and no text from elsewhere as markup."""


def read_page() -> Page:
    """Build the page."""
    files = resources.files(__name__)
    document, style = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css"))
    script = "".join(files.joinpath(part).read_text("utf-8") for part in _SCRIPTS)
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
