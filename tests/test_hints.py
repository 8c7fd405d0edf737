"""Commands in messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from clb_discovery.hints import load_command, only_other_layouts, unload_command


@pytest.mark.parametrize(
    ("instance", "cgroup", "command"),
    [
        ("default", None, "clb-discovery load"),
        ("shop", None, "clb-discovery load --instance shop"),
        ("default", Path("/sys/fs/cgroup/a b"), "clb-discovery load --cgroup '/sys/fs/cgroup/a b'"),
        ("default", r"/a\x2db's", r"""clb-discovery load --cgroup '/a\x2db'"'"'s'"""),
        ("shop", "/sys/fs/cgroup", "clb-discovery load --instance shop --cgroup /sys/fs/cgroup"),
    ],
)
def test_load_is_of_the_instance_and_its_cgroup(instance: str, cgroup: object, command: str) -> None:
    """The command can be typed as it is: with the instance unless it is the default, and the cgroup if it is known."""
    assert load_command(instance, cgroup) == command


def test_unload_is_of_the_instance() -> None:
    """The command never unloads another instance."""
    assert unload_command("shop") == "clb-discovery unload --instance shop"
    assert unload_command("default") == "clb-discovery unload"


def test_programs_of_other_layouts_stay_until_a_load() -> None:
    """The line names them, the cause and the command of the instance."""
    empty = only_other_layouts("shop", ["v2"], loaded=True)
    assert empty == "no pool of this version is published, so the programs of layout v2 stay; start the sidecar"
    found = only_other_layouts("shop", ["v1", "v2"], loaded=False)
    assert found == (
        "nothing of this version is loaded, so the programs of layout v1, v2 stay; start the sidecar, or run: "
        "clb-discovery load --instance shop"
    )
