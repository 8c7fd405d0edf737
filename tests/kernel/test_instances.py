"""`instances`: the instances that are loaded on this host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from clb_discovery import __version__
from clb_discovery.datapath.pins import BPFFS
from tests.support.pace import patient
from tests.support.plane import Plane
from tests.support.sidecar import clb, sidecar
from tests.support.spares import loaded_instance

instance = loaded_instance


def test_instances_are_listed(plane: Plane, instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Each has its cgroup, its version, and its sidecar if that runs; one of another version is there, too."""
    config = tmp_path / "clb.toml"
    config.write_text('[[service]]\nname = "web"\nvip = "10.64.0.1:80"\nservers = ["10.0.0.1:80"]\n')
    old = BPFFS / "clb-discovery" / f"{instance}-old" / "v1"
    old.mkdir(parents=True)
    try:
        with sidecar(instance, cgroup, tmp_path, ["--config", str(config)]) as found:
            document = json.loads(clb("instances", "--json").stdout)
            text = clb("instances").stdout
        ours = {one["instance"]: one for one in document["instances"]}
        assert ours[instance]["cgroup"] == str(cgroup)
        assert ours[instance]["version"] == __version__
        assert ours[instance]["sidecar"] == {"running": True, "pid": found.process.pid}
        assert ours[plane.instance]["cgroup"] == str(plane.cgroup)
        assert ours[plane.instance]["sidecar"] == {"running": False, "pid": None}
        assert ours[f"{instance}-old"]["layouts"] == [1]
        assert (ours[f"{instance}-old"]["cgroup"], ours[f"{instance}-old"]["version"]) == (None, None)
        assert re.search(rf"^{instance} +{cgroup} +{__version__} +process {found.process.pid}$", text, re.MULTILINE)
        assert re.search(rf"^{plane.instance} +{plane.cgroup} +\S+ +not running$", text, re.MULTILINE)
        assert re.search(rf"^{instance}-old +unknown +another, layout 1 +not running$", text, re.MULTILINE)
    finally:
        old.rmdir()
        old.parent.rmdir()


def test_ordinary_user_gets_an_error() -> None:
    """Without privileges it is one line and exit code 3."""
    nobody = (sys.executable, "-m", "tests.programs.as_nobody", "instances")
    result = subprocess.run(nobody, check=False, capture_output=True, text=True, timeout=patient(60))
    assert (result.returncode, result.stdout) == (3, "")
    assert re.fullmatch(r"clb-discovery: .*run as root.*\n", result.stderr)
