"""Preparation of the sources for BCC: one text, and no macro around a function of a map."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.loading.bcc_child.compile import expand, flatten

DIALECT: Final = """\
#ifdef CLB_BCC
#define clb_lookup(map, key) map.lookup(key)
#define clb_of_socket(map, sk, flags) map.sk_storage_get(sk, 0, flags)
#define CLB_PROGRAM(section)
#else
#define clb_lookup(map, key) bpf_map_lookup_elem(&map, key)
#endif
"""


@pytest.mark.parametrize(
    ("call", "expanded"),
    [
        ("clb_lookup(slots, &key)", "slots.lookup(&key)"),
        ("clb_lookup(slots, f(a, (b, c)))", "slots.lookup(f(a, (b, c)))"),
        ("clb_of_socket(sockets, ctx->sk, 0)", "sockets.sk_storage_get(ctx->sk, 0, 0)"),
        ("clb_lookup(a, clb_lookup(b, c))", "a.lookup(b.lookup(c))"),
        ("clb_lookup(a,\n\t   b) + clb_lookup(c, d)", "a.lookup(b) + c.lookup(d)"),
        ("clb_lookup(keys, key)", "keys.lookup(key)"),
        ("clb_lookup(map, map)", "map.lookup(map)"),
    ],
)
def test_calls_of_map_functions_are_expanded(call: str, expanded: str) -> None:
    """Each argument replaces its parameter, once, also if it is such a call itself."""
    assert expand(f"{DIALECT}x = {call};\n").endswith(f"\nx = {expanded};\n")


@pytest.mark.parametrize(
    "text",
    ["clb_lookup(slots)", "clb_lookup(a, b, c)", "clb_lookup(a, b", "my_clb_lookup(a, b)", "clb_lookup", "f(a, b)"],
)
def test_other_calls_stay(text: str) -> None:
    """Other names, other numbers of arguments and calls without an end are left to the compiler."""
    assert expand(f"{DIALECT}{text}\n").endswith(f"\n{text}\n")


def test_lines_keep_their_numbers() -> None:
    """Definitions leave an empty line behind, so that errors have the right line number; other macros stay."""
    lines = expand(DIALECT).splitlines()
    assert lines[:4] == ["#ifdef CLB_BCC", "", "", "#define CLB_PROGRAM(section)"]
    assert len(lines) == len(DIALECT.splitlines())


def test_text_without_macros_stays() -> None:
    """Without macros to expand nothing is changed."""
    assert expand("int x;\n") == "int x;\n"


def test_included_files_take_the_place_of_their_names(tmp_path: Path) -> None:
    """Files that are included by name appear once, in order, with lines that name their origin."""
    (tmp_path / "a.c").write_text('#include "b.h"\n#include <linux/bpf.h>\n#include "c.h"\nint a;\n')
    (tmp_path / "b.h").write_text("int b;\n")
    (tmp_path / "c.h").write_text('#include "b.h"\nint c;\n')
    text = flatten(tmp_path / "a.c", set())
    assert [line for line in text.splitlines() if line and not line.startswith("#line")] == [
        "int b;",
        "#include <linux/bpf.h>",
        "int c;",
        "int a;",
    ]
    assert '#line 4 "a.c"\nint a;' in text
    assert '#line 2 "c.h"\nint c;' in text
