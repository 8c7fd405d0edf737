"""Names are published again and again; a file that cannot be replaced is tried ever less often."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import HostError
from clb_discovery.layout.installed import Installed
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.disk import Disk
from clb_discovery.sidecar.hosts import HostsFile

STALE = "# BEGIN clb-discovery test-names: \n10.64.0.1 redis.clb\n# END clb-discovery test-names\n"


async def test_a_file_that_cannot_be_replaced_is_tried_ever_less_often(tmp_path: Path) -> None:
    """Each try writes to disk. A success, or a reload, begins again."""
    directory = tmp_path / "above"
    directory.mkdir()
    directory.chmod(0o777)
    hosts = HostsFile(Instance("test-names"), Announcer(), Disk())
    assert not hosts.is_due(0.0)
    path = directory / "hosts"
    path.write_text(STALE)
    hosts.use(path)
    tries = [now for now in range(300) if hosts.is_due(now) and not await succeeds(hosts, now)]
    assert tries == [0, 2, 6, 14, 30, 62, 122, 182, 242]
    directory.chmod(0o755)
    assert not hosts.is_due(300)
    hosts.use(path)
    assert hosts.is_due(300)
    assert await succeeds(hosts, 300)
    assert path.read_text() == ""
    assert hosts.is_due(301)


async def succeeds(hosts: HostsFile, now: int) -> bool:
    """Publish no names; return whether that succeeds."""
    try:
        await hosts.publish(Installed(), float(now))
    except HostError:
        return False
    return True


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_file_that_must_not_be_changed_is_named(tmp_path: Path, flag: str) -> None:
    """The hint is not the one for a directory that cannot be written."""
    path = tmp_path / "hosts"
    path.write_text(STALE)
    if subprocess.run(["chattr", f"+{flag}", path], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no such flags")
    hosts = HostsFile(Instance("test-names"), Announcer(), Disk())
    hosts.use(path)
    try:
        with pytest.raises(HostError, match=r"hosts: it or its directory must not be changed; .* chattr -i -a"):
            asyncio.run(hosts.publish(Installed(), 0.0))
    finally:
        subprocess.run(["chattr", f"-{flag}", path], check=True)
    assert path.read_text() == STALE
    assert [one.name for one in tmp_path.iterdir()] == ["hosts"]
