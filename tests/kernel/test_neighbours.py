"""If another instance on the same cgroup, or above, has the same VIP, loader, sidecar and status report it."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

from clb_discovery.datapath.neighbours import others
from clb_discovery.datapath.pins import Pins
from clb_discovery.model.text_forms import parse_vip
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import publish, wipe
from tests.support.process import wait_until
from tests.support.sidecar import clb, clb_here, sidecar, status
from tests.support.spares import Spares, loaded_instance

instance = loaded_instance

VIP, OWN = "10.64.0.1", "10.64.0.2"


def options(directory: Path, *vips: str) -> list[str]:
    """Write a configuration with a service behind these VIPs; return the options that name it."""
    directory.mkdir()
    config = directory / "clb.toml"
    config.write_text(
        f'[[service]]\nname = "web"\nvip = "{",".join(f"{vip}:80" for vip in vips)}"\nservers = ["10.0.0.1:80"]\n'
    )
    return ["--config", str(config)]


def test_a_second_instance_with_the_same_vip_is_told(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """On the same cgroup and below it, each instance reports the other one, once in the log."""
    other = f"test-{uuid4().hex[:8]}"
    inner = cgroup / "inner"
    inner.mkdir()
    try:
        with sidecar(instance, cgroup, tmp_path, options(tmp_path / "a", VIP, OWN)) as first:
            assert status(instance)["datapath"]["overlaps"] == []
            with sidecar(other, inner, tmp_path / "b", options(tmp_path / "b", VIP)) as second:
                second.wait_for(lambda: "another instance serves the same VIP" in second.events(), "it is logged")
                line = next(one for one in second.lines() if one["event"] == "another instance serves the same VIP")
                assert line["instance"] == instance
                assert "10.64.0.1:80 as well" in line["reason"]
                overlap = {"instance": instance, "cgroup": str(cgroup), "relation": "above", "vips": ["10.64.0.1:80"]}
                assert status(other)["datapath"]["overlaps"] == [overlap]
                assert [one["relation"] for one in status(instance)["datapath"]["overlaps"]] == ["below"]
                config = options(tmp_path / "c", VIP)
                checked = clb_here("check", "--instance", other, "--cgroup", inner, *config)
                assert f"FAIL  instance {instance}: instance '{instance}' on {cgroup}, above ours," in checked.stdout
                checked = clb_here("check", "--instance", instance, "--cgroup", cgroup, *config)
                assert f"warn  instance {other}: instance '{other}' on {inner}, below ours," in checked.stdout
                last = clb_here("status", "--instance", instance).stdout.splitlines()[-1]
                assert f"instance {other} ({inner}, below) serves the same VIPs: 10.64.0.1:80" in last
                again = clb("load", "--instance", other, "--cgroup", cgroup)
                assert again.returncode == 4  # the sidecar loads
                assert second.events().count("another instance serves the same VIP") == 1
                assert second.stop() == 0
            loaded = clb("load", "--instance", other, "--cgroup", cgroup)
            assert loaded.returncode == 0
            assert loaded.stderr.startswith(
                f"clb-discovery: warning: instance '{instance}' on the same cgroup serves 10."
            )
            recorded = json.loads(Path(f"/run/clb-discovery/{other}/loaded.json").read_text())["neighbours"]
            assert instance in [one["instance"] for one in recorded]
            assert first.stop() == 0
    finally:
        wipe(other)
        inner.rmdir()


def test_instances_with_vips_of_their_own_are_silent(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Two instances on one cgroup are fine as long as they share no VIP."""
    other = f"test-{uuid4().hex[:8]}"
    try:
        with (
            sidecar(instance, cgroup, tmp_path, options(tmp_path / "a", VIP)) as first,
            sidecar(other, cgroup, tmp_path / "b", options(tmp_path / "b", OWN)) as second,
        ):
            wait_until(lambda: len(status(other)["virtual_servers"]) == 1, "both serve")
            assert [status(name)["datapath"]["overlaps"] for name in (instance, other)] == [[], []]
            for found in (first, second):
                assert "another instance serves the same VIP" not in found.events()
                assert found.stop() == 0
    finally:
        wipe(other)


def test_only_vips_that_can_overlap_are_read(spares: Spares, cgroup: Path) -> None:
    """Reading takes 30 ms an instance, so those on cgroups beside ours are named without their VIPs."""
    with (
        made_cgroup() as beside,
        spares.taken(cgroup) as own,
        spares.taken(cgroup) as near,
        spares.taken(beside) as far,
    ):
        for name in (near, far):
            publish(name, {f"{VIP}:80": ["10.0.0.1:80"]})
        found = {one.instance: one.vips for one in others(Pins(own), cgroup)}
        assert (found[near], found[far]) == ([parse_vip(f"{VIP}:80")], ())
