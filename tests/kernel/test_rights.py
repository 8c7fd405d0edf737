"""The rights that the systemd units give are sufficient and minimal: without any of them something fails."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import pytest

from clb_discovery.datapath.instance import RUN
from tests.programs.as_unit import HERE, STATE, read_unit, system_calls
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import dial, wipe
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.process import free_port
from tests.support.sidecar import sidecar, status
from tests.support.sockets import socket_maker
from tests.support.srv_web import LOOPBACK, VIP, WEB, serve
from tests.support.units import BESIDE, CLOSE, DATAPATH, as_unit, closing_service, load_as_unit, without
from tests.support.web import get
from tests.support.web_servers import web_servers


class Right(NamedTuple):
    """A word of a setting that gives a right, and the log event, or the end, if it is missing."""

    setting: str
    word: str
    lost: str
    """Empty for a process that ends without a message."""
    resolver: str = "127.0.0.1"


CALLS: Final = "SystemCallFilter"
FAMILIES: Final = "RestrictAddressFamilies"
PATHS: Final = "BindReadOnlyPaths"
RIGHTS: Final = (
    Right("Group", "clb-discovery", "Permission denied"),
    Right(PATHS, "-/sys/fs/bpf/clb-discovery/%i", "is not loaded"),
    Right(PATHS, "/sys/fs/cgroup", "programs are not in effect"),
    Right("ReadWritePaths", "-/run/clb-discovery/%i", "Read-only file system"),
    Right(FAMILIES, "AF_INET", "source fails"),
    Right(FAMILIES, "AF_INET6", "source fails", "[::1]"),
    Right(FAMILIES, "AF_UNIX", "cannot notify the service manager"),
    Right(CALLS, "@basic-io", ""),
    Right(CALLS, "@file-system", ""),
    Right(CALLS, "@io-event", "internal error"),
    Right(CALLS, "@network-io", "internal error"),
    Right(CALLS, "@process", "cannot drop the right to load programs"),
    Right(CALLS, "@signal", "internal error"),
    Right(CALLS, "bpf", "not allowed to open BPF maps"),
    Right(CALLS, "flock", "cannot lock"),
    Right(CALLS, "fsync", "cannot save the last known good sets"),
    Right(CALLS, "ioctl", "internal error"),
    Right(CALLS, "seccomp", "cannot drop the right to load programs"),
    Right(CALLS, "uname", "Operation not permitted"),
)
"""All rights of the sidecar's unit, except StateDirectory=, whose absence is not reported."""
LOADING: Final = {"CAP_BPF": "not allowed", "CAP_PERFMON": "rejects the programs", "CAP_NET_ADMIN": "not allowed"}
"""The capabilities of the loader's unit, and the error without each."""


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    """Return a cgroup for ordinary clients."""
    with made_cgroup() as path:
        yield path


@pytest.fixture(scope="module")
def loaded(cgroup: Path) -> Iterator[str]:
    """Return an instance with a data plane that the loader's unit has loaded."""
    name = f"test-{uuid4().hex[:8]}"
    try:
        result = load_as_unit(name, cgroup)
        assert (result.returncode, result.stderr) == (0, "")
        yield name
    finally:
        wipe(name)


@pytest.fixture(scope="module")
def knot() -> Iterator[KnotServer]:
    """Run a DNS server."""
    with KnotServer() as server:
        serve(server, "127.0.0.1:8080")
        yield server


def follows(knot: KnotServer, directory: Path, address: str = "127.0.0.1") -> tuple[list[str], dict[str, str]]:
    """Return options and environment of a sidecar that follows SRV records."""
    state = directory / "state"
    state.mkdir(exist_ok=True)
    hosts = ["--hosts-file", str(HERE / "state" / "hosts")]
    return [*WEB, "--resolver", f"{address}:{knot.port}", *LOOPBACK, *hosts], {STATE: str(state)}


def test_sidecar_works_as_the_units_run_it(loaded: str, cgroup: Path, knot: KnotServer, directory: Path) -> None:
    """Without any capability it follows DNS, publishes pools and names, saves the last known good sets, and stops."""
    unit = without(BESIDE, directory, loaded)
    options, env = follows(knot, directory)
    with listening("127.0.0.1", "127.0.0.2") as servers:
        serve(knot, *(server.name for server in servers))
        with sidecar(loaded, None, directory, options, wrapper=as_unit(unit), env=env) as found:
            assert dial(cgroup, VIP, 80, 20) == ["ok"] * 20
            assert status(loaded)["datapath"]["effective"]
            assert found.stop() == 0
    assert [line for line in found.lines() if line["level"] != "info"] == []
    assert "127.0.0.2" in (directory / "state" / f"{loaded}.json").read_text()
    assert VIP in (directory / "state" / "hosts").read_text()


def test_umask_of_an_earlier_sidecar_does_not_lock_the_unit_out(
    instance: str, directory: Path, knot: KnotServer
) -> None:
    """A sidecar of root has made the directories of the pins for itself alone; the loader's unit opens them."""
    options, env = follows(knot, directory)
    strict = ("sh", "-c", 'umask 077; exec "$@"', "sh")
    with made_cgroup() as own:
        with sidecar(instance, own, directory, options[:-2], wrapper=strict) as root:
            assert root.stop() == 0
        assert load_as_unit(instance, own).returncode == 0
        unit = without(BESIDE, directory, instance)
        with sidecar(instance, None, directory, options, wrapper=as_unit(unit), env=env) as found:
            assert found.stop() == 0


@pytest.mark.parametrize(
    ("check", "cause"),
    [
        ("off", "a failed connect, refused, and a failed probe"),
        ("tcp", "check: Connection refused"),
        ("http://web.example/health", "check: Connection refused"),
        ("https://web.example/health", "check: TLS: wrong version number"),
    ],
)
def test_servers_are_checked_and_probed_as_the_units_run_it(
    loaded: str, cgroup: Path, knot: KnotServer, directory: Path, *, check: str, cause: str
) -> None:
    """Without any capability: a server that fails goes out and comes back, and certificate authorities are read."""
    unit, port = without(BESIDE, directory, loaded), free_port()
    options, env = follows(knot, directory)
    options += ["--hold", "0s", "--check", check, "--check-interval", "300ms", "--metrics", f"127.0.0.1:{port}"]
    with web_servers("127.0.0.1", "127.0.0.2", "127.0.0.3") as servers:
        serve(knot, *(server.name for server in servers))
        with sidecar(loaded, None, directory, options, wrapper=as_unit(unit), env=env) as found:
            found.wait_for(lambda: 'clb_probes_total{result="up"} 3.0' in get(port, "/metrics"), "all are reached")
            if not check.startswith("https"):  # else no server passes
                servers[0].stop()
            if check == "off":
                dial(cgroup, VIP, 80, 200)  # it has the least weight
            found.wait_for(lambda: "server ejected" in found.events(), "it is ejected")
            if not check.startswith("https"):
                servers[0].start()
                found.wait_for(lambda: "server returned" in found.events(), "it returns")
                assert dial(cgroup, VIP, 80, 20) == ["ok"] * 20
            assert found.stop() == 0
    (line,) = [line for line in found.lines() if line["level"] != "info"]
    assert (line["event"], line["cause"]) == ("server ejected", cause)


def test_user_of_its_own_is_enough_and_keeps_others_out(
    loaded: str, cgroup: Path, knot: KnotServer, directory: Path
) -> None:
    """With another user in the same group it works, and the usual user cannot access the processes of the other one."""
    usual = without(BESIDE, directory, loaded)
    unit = usual.with_name("own.service")
    unit.write_text(usual.read_text().replace("User=clb-discovery\n", "User=nobody\n"))
    state = RUN / loaded / "state.json"
    enters = []
    with listening("127.0.0.1") as (server,):
        serve(knot, server.name)
        for whose in (usual, unit):
            state.unlink(missing_ok=True)  # belongs to the other user
            own = directory / whose.stem
            own.mkdir()
            options, env = follows(knot, own)
            options += ["--hold", "0s"]  # another test may have left servers
            with sidecar(loaded, None, directory, options, wrapper=as_unit(whose), env=env) as found:
                assert dial(cgroup, VIP, 80, 20) == ["ok"] * 20
                process = str(status(loaded)["sidecar"]["pid"])
                pins = f"/proc/{process}/root/sys/fs/bpf/clb-discovery/{loaded}"
                tries = [["ls", pins], ["cat", f"/proc/{process}/environ"], ["kill", "-0", process]]
                ends = [subprocess.run([*as_unit(usual), *one], check=False, capture_output=True) for one in tries]
                enters.append([end.returncode == 0 for end in ends])
                assert found.stop() == 0
            assert [line for line in found.lines() if line["level"] != "info"] == []
    state.unlink()
    assert enters == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("capability", ["", "CAP_NET_ADMIN"])
def test_sockets_of_a_removed_server_are_closed_by_the_service_for_it(
    loaded: str, cgroup: Path, knot: KnotServer, directory: Path, capability: str
) -> None:
    """The UDP socket to a removed server is closed, unless the service lacks the right to close sockets."""
    setting = "CapabilityBoundingSet" if capability else ""
    unit, close = without(BESIDE, directory, loaded), without(CLOSE, directory, loaded, setting, capability)
    options, env = follows(knot, directory)
    dns = ["--srv", f"_dns._udp.example={VIP}:53", "--hold", "0s"]
    with (
        socket_maker(cgroup) as client,
        listening("127.0.0.1", "127.0.0.2", udp=True) as (stays, leaves),
        closing_service(close) as ended,
    ):
        serve(knot, leaves.name, name="_dns._udp")
        with sidecar(loaded, None, directory, [*options[2:], *dns], wrapper=as_unit(unit), env=env) as found:
            client.connected((VIP, 53), udp=True)
            serve(knot, stays.name, name="_dns._udp")
            said = "with CAP_NET_ADMIN" if capability else "sockets closed"
            found.wait_for(lambda: said in found.log.read_text(), f"it says {said!r}")
            assert found.stop() == 0
        assert set(ended) == {0}
        client.close()


def test_sidecar_follows_consul_by_name_as_the_unit_runs_it(loaded: str, directory: Path) -> None:
    """Within the unit's restrictions the sidecar resolves Consul's host name; a refused connection is reported."""
    options = ["--consul", "http://localhost:9", "--service", f"web={VIP}:80"]
    unit = without(BESIDE, directory, loaded)
    with sidecar(loaded, None, directory, options, wrapper=as_unit(unit), ready=False) as found:
        found.wait_for(lambda: "source fails" in found.events(), "the source fails")
        (failure,) = (line for line in found.lines() if line["event"] == "source fails")
        assert "refused" in failure["error"]
        assert found.stop() == 0


@pytest.mark.parametrize("right", RIGHTS, ids=lambda right: f"{right.setting}-{right.word}")
def test_no_right_of_the_sidecar_is_too_much(loaded: str, knot: KnotServer, directory: Path, right: Right) -> None:
    """Without each right the sidecar ends, or goes on and reports what it cannot do."""
    unit = without(BESIDE, directory, loaded, right.setting, right.word)
    options, env = follows(knot, directory, right.resolver)
    is_allowed_anyway = right.word in system_calls(["@default"])  # such as seccomp since systemd 256
    said = '"event": "ready"' if is_allowed_anyway else right.lost
    with sidecar(loaded, None, directory, options, wrapper=as_unit(unit), env=env, ready=False) as found:
        if said:
            found.wait_for(lambda: said in found.log.read_text(), f"it says {said!r}")
        else:
            assert found.process.wait(timeout=20) != 0
            assert found.events() == []


def test_without_a_state_directory_nothing_is_kept(loaded: str, knot: KnotServer, directory: Path) -> None:
    """The last known good sets are saved only if the unit has a state directory."""
    unit = without(BESIDE, directory, loaded, "StateDirectory", "clb-discovery")
    options, env = follows(knot, directory)
    with sidecar(loaded, None, directory, options, wrapper=as_unit(unit), env=env) as found:
        assert found.stop() == 0
    assert list((directory / "state").iterdir()) == []


def test_root_without_capabilities_writes_hosts_files(loaded: str, knot: KnotServer, directory: Path) -> None:
    """With the drop-in of docs/systemd.md names are written where only root may write, and all else works."""
    hosts = directory / "etc"
    hosts.mkdir(mode=0o700)
    unit = without(BESIDE, directory, loaded)
    text = re.sub(r"^User=.*$", "User=root", unit.read_text(), flags=re.MULTILINE)
    unit.write_text(re.sub(r"^(ReadWritePaths=.*)$", rf"\1 {hosts}", text, flags=re.MULTILINE))
    options, env = follows(knot, directory)
    options[-1] = str(hosts / "hosts")
    with sidecar(loaded, None, directory, options, wrapper=as_unit(unit), env=env) as found:
        found.wait_for(lambda: "names published" in found.events(), "names are published")
        assert found.stop() == 0
    assert [line for line in found.lines() if line["level"] != "info"] == []
    assert VIP in (hosts / "hosts").read_text()


def test_every_right_is_tested() -> None:
    """The rights of the unit are exactly those that the tests above remove."""
    settings = read_unit(BESIDE)
    given = {(name, word) for name in {right.setting for right in RIGHTS} for word in settings[name].split()}
    assert given == {(right.setting, right.word) for right in RIGHTS}
    assert (settings["CapabilityBoundingSet"], "AmbientCapabilities" in settings) == ("", False)


@pytest.mark.parametrize("capability", LOADING)
def test_no_capability_of_the_loader_is_too_much(instance: str, cgroup: Path, tmp_path: Path, capability: str) -> None:
    """Without each of them nothing is loaded, and the error names what is missing."""
    assert set(read_unit(DATAPATH)["CapabilityBoundingSet"].split()) == LOADING.keys()
    result = load_as_unit(instance, cgroup, without(DATAPATH, tmp_path, instance, "CapabilityBoundingSet", capability))
    assert result.returncode == 3
    assert LOADING[capability] in result.stderr
