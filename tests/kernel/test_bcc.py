"""Programs that BCC compiles on this host: they work as those of the object do, and errors name what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import pytest

from clb_discovery.datapath import bpf
from clb_discovery.datapath.loading import bcc, libbpf
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.layout.structs import Map
from tests.support.cgroups import made_cgroup
from tests.support.clients import connecting
from tests.support.dataplane import dial, publish, snapshot, wipe
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.mounts import in_own_mounts
from tests.support.pace import patient
from tests.support.process import free_port
from tests.support.sidecar import COMMAND, clb, load, sidecar, status

VIP4: Final = "10.64.0.1"
VIP6: Final = "fd00:64::1"
UNIT: Final = Path(__file__).parents[2] / "contrib" / "systemd" / "clb-discovery-datapath.service"
PACKAGES: Final = ("python3-bpfcc", "python3-bcc")
FOREIGN: Final = '"""Lattices: what PyPI calls bcc."""\n\n\nclass Lattice:\n    pass\n'


def loader_of(instance: str) -> str:
    """Return the loader of the data plane, which has to be in effect."""
    found = status(instance)["datapath"]
    assert found["effective"]
    loader: str = found["loader"]
    return loader


def assert_fails(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that the command fails because the host lacks something, with one line that contains these words."""
    assert result.returncode == 3, result.stderr
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words), (line, words)


def loading(loader: str, instance: str, cgroup: Path) -> tuple[str, ...]:
    """Return the command line that loads."""
    return (*COMMAND, "load", "--loader", loader, "--instance", instance, "--cgroup", str(cgroup))


def without_bcc() -> str:
    """Return a shell script that hides BCC from the system's Python."""
    find = "import importlib.util as u; print(u.find_spec('bcc').submodule_search_locations[0])"
    found = subprocess.run(["/usr/bin/python3", "-c", find], check=True, capture_output=True, text=True)
    return f"mount -t tmpfs none {found.stdout.strip()}"


class Compiled(NamedTuple):
    """A data plane that BCC has loaded."""

    instance: str
    cgroup: Path


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compiled]:
    """Load with BCC once for several tests, because it compiles for seconds."""
    instance = f"test-{uuid4().hex[:8]}"
    with made_cgroup() as cgroup:
        try:
            load(instance, cgroup, "--loader", "bcc")
            yield Compiled(instance, cgroup)
        finally:
            wipe(instance)


def test_connects_are_balanced(compiled: Compiled) -> None:
    """Connects of both families and of dual-stack sockets reach the pool by its weights and are counted."""
    instance, cgroup = compiled
    assert loader_of(instance) == "bcc"
    with listening("127.0.0.1", "127.0.0.2", "::1") as (one, three, six):
        publish(instance, {f"{VIP4}:80": [one.name, f"{three.name}*3"], f"[{VIP6}]": [six.name]})
        assert dial(cgroup, VIP4, 80, 200) + dial(cgroup, f"::ffff:{VIP4}", 80, 200) == ["ok"] * 400
        assert dial(cgroup, VIP6, 443, 7) == ["ok"] * 7
        counts = [one.taken(), three.taken(), six.taken()]
    assert counts[0] + counts[1] == 400
    assert 50 < counts[0] < 150  # fails by chance once in 10^8 runs
    assert counts[2] == 7
    assert [found["connects"] for found in status(instance)["virtual_servers"]] == [400, 7]


def test_empty_pool_refuses(compiled: Compiled) -> None:
    """An empty pool refuses with the errno that status shows, as with the programs of the object."""
    instance, cgroup = compiled
    publish(instance, {f"{VIP4}:80": [], f"[{VIP6}]:80": []})
    expected = "ECONNREFUSED" if status(instance)["datapath"]["features"]["errno"] else "EPERM"
    assert dial(cgroup, VIP4, 80) + dial(cgroup, VIP6, 80) == [expected] * 2


def test_loaders_replace_each_other_under_connects(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Switching to the other loader and back replaces the programs over the same maps, and no connect fails."""
    load(instance, cgroup, "--loader", "object")
    port = free_port()
    publish(instance, {f"{VIP4}:{port}": [f"127.0.0.1:{port}"], f"[{VIP6}]:{port}": [f"[::1]:{port}"]})
    before = snapshot(instance)
    with connecting(cgroup, port, tmp_path, VIP4, VIP6) as connects:
        for loader in ("bcc", "object"):
            last = snapshot(instance)
            load(instance, cgroup, "--loader", loader)
            assert loader_of(instance) == loader
            after = snapshot(instance)
            kept = {name for name in after.objects if after.objects[name] == last.objects[name]}
            assert kept == set(after.objects) - set(PROGRAMS)
    assert [connect for connect in connects if connect.error] == []
    assert len(connects) > 50
    assert {connect.reached[-4:] for connect in connects} == {bytes([127, 0, 0, 1]), bytes([0, 0, 0, 1])}
    assert after.installed == before.installed


def test_loading_again_touches_nothing(compiled: Compiled) -> None:
    """Programs that BCC has loaded stay as they are if they are current, also with the default loader."""
    instance, cgroup = compiled
    before = snapshot(instance)
    load(instance, cgroup, "--loader", "bcc")
    load(instance, cgroup, "--loader", "auto")
    assert snapshot(instance) == before


def test_auto_takes_the_object_first(instance: str, cgroup: Path) -> None:
    """If both loaders work, the default is the shipped object."""
    load(instance, cgroup, "--loader", "auto")
    assert loader_of(instance) == "object"


def test_auto_falls_back_to_bcc(instance: str, cgroup: Path) -> None:
    """If the object cannot be loaded the default is BCC; if BCC fails too, the error names both."""
    no_object = f"mount --bind /dev/null {libbpf.Variant.FULL.path}"
    neither = in_own_mounts(f"{no_object}; {without_bcc()}", *loading("auto", instance, cgroup))
    assert_fails(neither, str(libbpf.Variant.FULL.path), "--loader bcc", *PACKAGES)
    assert not Pins(instance).home.exists()
    result = in_own_mounts(no_object, *loading("auto", instance, cgroup))
    assert (result.returncode, result.stderr) == (0, "")
    assert loader_of(instance) == "bcc"


def test_compiler_does_not_stay(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A sidecar that has loaded with BCC has neither BCC nor LLVM in its memory, and no child process."""
    with KnotServer() as knot:
        knot.write("_web._tcp SRV 0 1 80 t\nt A 10.0.0.1")
        options = ["--loader", "bcc", "--srv", f"_web._tcp.example={VIP4}:80", "--resolver", knot.address]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            number = found.process.pid
            libraries = Path(f"/proc/{number}/maps").read_text()
            children = Path(f"/proc/{number}/task/{number}/children").read_text()
    assert loader_of(instance) == "bcc"
    assert "libc.so" in libraries
    assert not any(name in libraries for name in ("libbcc", "libLLVM", "libbpf"))
    assert children == ""


def test_powers_of_the_unit_are_enough(instance: str, cgroup: Path) -> None:
    """With only the capabilities that the systemd unit leaves to root, BCC loads, first and over existing maps."""
    as_unit = (sys.executable, "-m", "tests.programs.as_unit", str(UNIT))
    for loader in ("bcc", "object", "bcc"):
        command = [*as_unit, *loading(loader, instance, cgroup)]
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))
        assert (result.returncode, result.stderr) == (0, "")
        assert loader_of(instance) == loader


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (FOREIGN, ["another package of that name"]),
        ("import no_such_module\n", ["cannot be imported", "no_such_module"]),
        ("raise SystemError('bad\\nday')\n", ["cannot be imported", "bad"]),
    ],
)
def test_wrong_module_is_named(instance: str, cgroup: Path, tmp_path: Path, module: str, words: list[str]) -> None:
    """If the module `bcc` is something else, the error names its file, and the package that has the right one."""
    file = tmp_path / "bcc.py"
    file.write_text(module)
    where = ("--instance", instance, "--cgroup", cgroup)
    result = clb("load", "--loader", "bcc", *where, env={"PYTHONPATH": str(tmp_path)})
    assert_fails(result, str(file), *words, *PACKAGES)
    assert not Pins(instance).home.exists()


def test_wrong_module_of_ours_is_passed_over(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """If only our own environment has the wrong module, the system's interpreter compiles."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages"
    (packages / "bcc.py").write_text(FOREIGN)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "ours.pth").write_text("\n".join([*ours, str(UNIT.parents[2])]))
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-c", "import bcc; bcc.Lattice"], check=True)
    command = [python, *loading("bcc", instance, cgroup)[1:]]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))
    assert (result.returncode, result.stderr) == (0, "")
    assert loader_of(instance) == "bcc"


def test_missing_bcc_is_named_with_its_package(instance: str, cgroup: Path) -> None:
    """If no interpreter has BCC, the error names the packages that contain it, and check reports it."""
    result = in_own_mounts(without_bcc(), *loading("bcc", instance, cgroup))
    assert_fails(result, "no Python of this host has BCC", *PACKAGES)
    assert not Pins(instance).home.exists()
    check = in_own_mounts(without_bcc(), *COMMAND, "check", "--instance", instance, "--cgroup", str(cgroup))
    assert check.returncode == 0, check.stdout
    assert "ok    BCC: not needed beside libbpf: no Python of this host has BCC" in check.stdout
    check = in_own_mounts(without_bcc(), *COMMAND, "check", "--loader", "bcc", "--cgroup", str(cgroup))
    assert check.returncode == 3
    assert "FAIL  BCC: no Python of this host has BCC" in check.stdout


def test_check_names_bcc() -> None:
    """Check reports which version of BCC would load, and with which interpreter."""
    found = {line[6:].partition(": ")[0]: line[:4] for line in clb("check").stdout.splitlines()}
    assert (found["libbpf"], found["BCC"]) == ("ok  ", "ok  ")
    lines = clb("check", "--loader", "bcc").stdout.splitlines()
    assert [line for line in lines if line.startswith("ok    BCC: 0.") and " in /" in line]
    assert not [line for line in lines if "libbpf" in line]


def test_first_error_of_the_compiler_is_reported(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """If the sources do not compile, the error is one line: the first error of the compiler, with its file and line."""
    header = bcc.SOURCES / "maps.h"
    broken = tmp_path / "maps.h"
    broken.write_text(header.read_text() + "\n#line 1000\nint broken = nonsense;\nint more = rubbish;\n")
    result = in_own_mounts(f"mount --bind {broken} {header}", *loading("bcc", instance, cgroup))
    assert_fails(result, "BCC cannot compile", "maps.h:1000", "nonsense")
    assert not Pins(instance).home.exists()


def test_verdict_of_the_verifier_is_reported(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """If the kernel rejects programs, the error is one line with program and reason; earlier programs stay attached."""
    load(instance, cgroup, "--loader", "object")
    before = snapshot(instance)
    source = bcc.SOURCES / "clb.bpf.c"
    bad = tmp_path / source.name
    signature = "int clb_connect6(struct bpf_sock_addr *ctx)\n{\n"
    wild = "\tif (ctx->user_ip4 == 1)\n\t\treturn 0;\n"
    assert signature in source.read_text()
    bad.write_text(source.read_text().replace(signature, signature + wild))
    result = in_own_mounts(f"mount --bind {bad} {source}", *loading("bcc", instance, cgroup))
    assert_fails(result, "the kernel rejects", "clb_connect6: invalid bpf_context access")
    assert snapshot(instance)._replace(files=before.files) == before
    assert status(instance)["datapath"]["effective"]


def test_map_of_another_shape_is_refused(instance: str, cgroup: Path) -> None:
    """A pinned map with other properties than the sources declare is not used."""
    load(instance, cgroup, "--loader", "object")
    pin = Pins(instance).map(Map.OVERFLOW)
    map_ = bpf.open_pin(pin)
    key_size, value_size = bpf.map_sizes(map_)
    os.close(map_)
    pin.unlink()
    map_ = bpf.create_map(1, key_size, value_size, 16, flags=1)  # a hash without preallocation
    bpf.pin(map_, pin)
    os.close(map_)
    with made_cgroup() as other:
        result = clb("load", "--loader", "bcc", "--instance", instance, "--cgroup", other)
    assert_fails(result, "clb_overflow", "max_entries", "16", "clb-discovery unload")
