"""The document of `instances --json`, and its table."""

from __future__ import annotations

import re

from clb_discovery.documents.instances import Found, document
from clb_discovery.layout.elements import Info
from clb_discovery.terminal.instances import render
from clb_discovery.terminal.screen import as_text
from tests.support.documents import ROOT

INFO = Info(5, 3, "object", "build", "/sys/fs/cgroup/system.slice/a-service-with-a-long-name.service")
FOUND = document(
    [
        Found("shop", (5,), INFO, "1.2.3", 4711),
        Found("old", (4,)),
        Found("web", (4, 5), INFO._replace(cgroup="/sys/fs/cgroup")),
    ]
)


def test_document() -> None:
    """An instance of other layouts only has neither a known cgroup nor a version."""
    assert FOUND["format"] == 1
    assert FOUND["instances"][0] == {
        "instance": "shop",
        "cgroup": INFO.cgroup,
        "loader": "object",
        "version": "1.2.3",
        "layouts": [5],
        "sidecar": {"running": True, "pid": 4711},
    }
    assert FOUND["instances"][1] == {
        "instance": "old",
        "cgroup": None,
        "loader": None,
        "version": None,
        "layouts": [4],
        "sidecar": {"running": False, "pid": None},
    }


def test_each_key_is_described() -> None:
    """docs/status.md has a row for each key."""
    rows = re.findall(r"^\| `instances\[\]\.([\w.]+)`", (ROOT / "docs" / "status.md").read_text(), re.MULTILINE)
    one = FOUND["instances"][0]
    assert rows == [*(key for key in one if key != "sidecar"), *(f"sidecar.{key}" for key in one["sidecar"])]


def test_table_fits_80_columns() -> None:
    """Long paths are folded, and each instance shows its version and its sidecar."""
    text = as_text(render(FOUND), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^shop .*1\.2\.3 .*process 4711$", text, re.MULTILINE)
    assert re.search(r"^old +unknown +another, layout 4 +not running$", text, re.MULTILINE)
    assert re.search(r"^web +/sys/fs/cgroup +another, layout 4, 5 +not running$", text, re.MULTILINE)
    assert as_text(render(document([])), 80) == "no instance is loaded on this host\n"
