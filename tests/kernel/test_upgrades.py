"""Restarts of the sidecar while clients connect at full rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.model.address import parse_address
from tests.support.clients import connecting
from tests.support.dataplane import snapshot
from tests.support.process import free_port
from tests.support.sidecar import Sidecar, sidecar

VIPS: Final = ("10.64.0.1", "fd00:64::1", "::ffff:10.64.0.1")
SERVERS: Final = ("127.0.0.1", "127.0.0.2", "::1")
ENDS: Final[tuple[Callable[[Sidecar], object], ...]] = (Sidecar.stop, Sidecar.kill)


@contextmanager
def serving(instance: str, cgroup: Path, directory: Path, port: int) -> Iterator[Sidecar]:
    """Run a sidecar with static servers for the VIPs."""
    config = directory / "clb.toml"
    config.write_text(
        'real-range = ["127.0.0.0/8", "::1/128"]\n[[service]]\nname = "web"\n'
        f'vip = "10.64.0.1:{port},[fd00:64::1]:{port}"\n'
        f'servers = ["127.0.0.1:{port}", "127.0.0.2:{port}", "[::1]:{port}"]\n'
    )
    with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
        yield found


def name_another_build(instance: str) -> None:
    """Change the build of the loaded programs, so that the next load replaces them."""
    with Maps(Pins(instance)) as maps:
        info = maps.info()
        assert info is not None
        maps.write_info(info._replace(build="another"))


def test_no_connect_fails_while_the_sidecar_is_stopped_killed_and_upgraded(
    instance: str, cgroup: Path, tmp_path: Path
) -> None:
    """Clients of both families connect at full rate: no connect fails, and all servers have their share."""
    port = free_port()
    with serving(instance, cgroup, tmp_path, port):
        before = snapshot(instance)
    with connecting(cgroup, port, tmp_path, *VIPS, apart=True) as connects:
        for end in ENDS:
            name_another_build(instance)
            with serving(instance, cgroup, tmp_path, port) as found:
                end(found)
    after = snapshot(instance)
    assert [connect for connect in connects if connect.error] == []
    reached = Counter(connect.reached for connect in connects)
    print(f"\n{len(connects)} connects, none failed: {dict(reached)}")
    assert set(reached) == set(map(parse_address, SERVERS))
    assert min(reached.values()) > 100
    assert after.installed == before.installed
    assert not any(before.objects[name] == after.objects[name] for name in ("clb_connect4", "clb_connect6"))
