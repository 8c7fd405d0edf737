"""Loading and unloading: what is kept, replaced or left behind, and the effect on other programs on the same hooks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath import bpf, probe
from clb_discovery.datapath.bpf import AttachType
from clb_discovery.datapath.instance import RUN
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.loading.sizes import SOCKETS, pinned_sizes, sizes
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.layout.structs import FEATURE_ERRNO, Map
from clb_discovery.model.servers import Protocol
from tests.support.cgroups import frozen, made_cgroup, remove
from tests.support.clients import connecting
from tests.support.contract import assert_is_status
from tests.support.dataplane import dial, publish, refusal, snapshot, wipe
from tests.support.kernel_objects import (
    MAPS,
    KernelObject,
    detach,
    foreign_denial,
    foreign_exclusive,
    foreign_rewrite,
    pinned,
    used_maps,
)
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.loading import loader_of_tests, loading
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, clb, clb_here, load, pool, sidecar, status
from tests.support.spares import Spares

VIP4: Final = "10.64.0.1"
VIP6: Final = "fd00:64::1"
FOREIGN_VIP: Final = "10.99.0.1"
NOT_OURS: Final = "ENETUNREACH"
"""The error of a connect to a VIP in a network without any route, if no program rewrites it."""


@pytest.fixture
def loaded(spares: Spares, cgroup: Path) -> Iterator[str]:
    """Return an instance in the state after a first `load`."""
    with spares.taken(cgroup, outcomes=True) as found:
        yield found


def unload(instance: str) -> None:
    """Unload from the command line."""
    result = clb("unload", "--instance", instance)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_loading_again_touches_nothing(instance: str, cgroup: Path) -> None:
    """A second load leaves programs, maps, links and the contents of the maps as they are."""
    load(instance, cgroup)
    publish(instance, {f"{VIP4}:80": ["127.0.0.1:8080"]})
    before = snapshot(instance)
    load(instance, cgroup)
    assert snapshot(instance) == before
    links = (f"{name}_link" for name in PROGRAMS)
    pins = Pins(instance)
    iterators = {pins.records(protocol).name for protocol in Protocol}  # some kernels lack these
    assert before.objects.keys() - iterators == {*MAPS, *PROGRAMS, *links}


def test_other_build_is_replaced_in_place(loaded: str, cgroup: Path, tmp_path: Path) -> None:
    """Programs of another build are replaced in their links, over the same maps, and no connect fails."""
    port = free_port()
    publish(loaded, {f"{VIP4}:{port}": [f"127.0.0.1:{port}"]})
    before = snapshot(loaded)
    with connecting(cgroup, port, tmp_path, VIP4) as connects:
        for number in range(3):
            with Maps(Pins(loaded)) as maps:
                info = maps.info()
                assert info is not None
                maps.write_info(info._replace(build=f"build {number}"))
            load(loaded, cgroup)
    after = snapshot(loaded)
    assert [connect for connect in connects if connect.error] == []
    assert len(connects) > 50
    assert (after.installed, after.info) == (before.installed, before.info)
    for name in before.objects:
        assert (after.objects[name] == before.objects[name]) is (name not in PROGRAMS), name
    wait_until(lambda: not any(before.objects[name].exists() for name in PROGRAMS), "the old programs are gone")


def test_loading_onto_another_cgroup_moves_the_links(loaded: str, cgroup: Path) -> None:
    """After a load with another --cgroup, connects there are balanced, and no longer those in the previous one."""
    with made_cgroup() as other, listening("127.0.0.1") as (server,):
        publish(loaded, {f"{VIP4}:80": [server.name]})
        assert (dial(cgroup, VIP4, 80), dial(other, VIP4, 80)) == (["ok"], [NOT_OURS])
        load(loaded, other)
        assert (dial(cgroup, VIP4, 80), dial(other, VIP4, 80)) == ([NOT_OURS], ["ok"])
        assert status(loaded)["datapath"]["cgroup"] == str(other)
        assert server.taken() == 2


def test_move_that_was_interrupted_at_its_end_is_carried_out(loaded: str, cgroup: Path) -> None:
    """If a load ended after its last link and before its record of the cgroup, the next one writes that record."""
    with made_cgroup() as former:
        with Maps(Pins(loaded)) as maps:
            info = maps.info()
            assert info
            maps.write_info(info._replace(cgroup=str(former)))
        load(loaded, cgroup)
        assert status(loaded)["datapath"]["cgroup"] == str(cgroup)


BEFORE_LINKS: Final = "handover.prepare = die"
AFTER_FIRST_LINK: Final = "Path.rename = lambda pin, to: rename(pin, to) and str(to).endswith('_link') and die()"
BEFORE_RECORD: Final = "Maps.write_info = die"


def leave_killed_load(instance: str, cgroup: Path, *, pins_left: int = 100, moment: str = BEFORE_LINKS) -> None:
    """Kill a load with maps of other sizes.

    :param pins_left: how many of its pins stay; without some of them it was killed while it pinned maps.
    :param moment: the statement that lets it end: by default before it attaches the first program.
    """
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from clb_discovery.cli.main import main\n"
        "from clb_discovery.datapath import handover\n"
        "from clb_discovery.datapath.maps import Maps\n"
        "rename, die = Path.rename, lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{moment}\n"
        "main(sys.argv[1:])\n"
    )
    options = ["--instance", instance, "--cgroup", str(cgroup), "--room-servers", "999", *loading()]
    killed = subprocess.run([sys.executable, "-c", code, "load", *options], check=False)
    assert killed.returncode == -signal.SIGKILL
    pins = Pins(instance)
    assert pins.have_maps()
    others = [pin for pin in pins.directory.iterdir() if pin != pins.map(Map.ROWS)]
    for pin in others[max(0, pins_left - 1) :]:
        pin.unlink()


@pytest.mark.parametrize("pins_left", [1, 100])
def test_first_load_that_was_killed_counts_for_nothing(instance: str, cgroup: Path, *, pins_left: int) -> None:
    """The next load makes maps of its own sizes, and leaves nothing if it fails, as the first load does."""
    pins = Pins(instance)
    leave_killed_load(instance, cgroup, pins_left=pins_left)
    with foreign_exclusive(cgroup, AttachType.CGROUP_SOCK_OPS):
        assert clb("load", "--instance", instance, "--cgroup", cgroup).returncode == 3
    assert not pins.home.exists()
    leave_killed_load(instance, cgroup, pins_left=pins_left)
    load(instance, cgroup, "--room-servers", "5000", "--room-sockets", "4000")
    assert pinned_sizes(pins) == sizes(5000, 4000)
    assert status(instance)["datapath"]["effective"]


@pytest.mark.parametrize("moment", [AFTER_FIRST_LINK, BEFORE_RECORD], ids=["links", "record"])
def test_first_load_that_was_killed_with_links_counts_for_nothing(instance: str, cgroup: Path, moment: str) -> None:
    """No pool can have been published before its record, so nothing is lost if the next load begins from nothing."""
    leave_killed_load(instance, cgroup, moment=moment)
    assert any(Pins(instance).directory.glob("*_link"))
    load(instance, cgroup, "--room-servers", "5000")
    assert pinned_sizes(Pins(instance)) == sizes(5000, SOCKETS)
    publish(instance, {f"{VIP4}:80": []})
    assert dial(cgroup, VIP4, 80) == [refusal()]
    assert status(instance)["datapath"]["effective"]


@pytest.mark.parametrize("moment", [AFTER_FIRST_LINK, BEFORE_RECORD], ids=["links", "record"])
def test_a_repeated_load_that_was_killed_keeps_pools_and_sizes(instance: str, cgroup: Path, moment: str) -> None:
    """The record of the first load is still there."""
    load(instance, cgroup, "--room-servers", "5000")
    publish(instance, {f"{VIP4}:80": []})
    with made_cgroup() as other:
        leave_killed_load(instance, other, moment=moment)
    load(instance, cgroup)
    assert pinned_sizes(Pins(instance)) == sizes(5000, SOCKETS)
    assert dial(cgroup, VIP4, 80) == [refusal()]


@pytest.mark.parametrize("pins_left", [1, 100])
def test_killed_load_beside_another_layout_counts_for_nothing(instance: str, cgroup: Path, *, pins_left: int) -> None:
    """The other layout stays attached: after a load that was killed, after one that fails, and after one that ends."""
    load(instance, cgroup)
    publish(instance, {f"{VIP4}:80": []})
    pins = Pins(instance)
    other = pins.directory.rename(pins.home / "v0")
    before = {pin: pin.stat().st_ino for pin in other.iterdir()}
    leave_killed_load(instance, cgroup, pins_left=pins_left)
    with made_cgroup() as exclusive, foreign_exclusive(exclusive, AttachType.CGROUP_SOCK_OPS):
        assert clb("load", "--instance", instance, "--cgroup", exclusive).returncode == 3
    load(instance, cgroup, "--room-servers", "5000")
    assert pinned_sizes(pins) == sizes(5000, SOCKETS)
    assert {pin: pin.stat().st_ino for pin in other.iterdir()} == before
    assert dial(cgroup, VIP4, 80) == [refusal()]


def test_cgroup_below_is_balanced_too(loaded: str, cgroup: Path) -> None:
    """Connects in a cgroup below the given one are balanced, those beside it are not."""
    with made_cgroup(cgroup) as below, made_cgroup() as beside, listening("127.0.0.1") as (server,):
        publish(loaded, {f"{VIP4}:80": [server.name]})
        assert (dial(below, VIP4, 80), dial(beside, VIP4, 80)) == (["ok"], [NOT_OURS])


@contextmanager
def following(instance: str, cgroup: Path, directory: Path, name: str) -> Iterator[Sidecar]:
    """Run a sidecar that balances one real server."""
    with KnotServer() as knot:
        host, port = name.split(":")
        knot.write(f"_web._tcp SRV 0 1 {port} t\nt A {host}")
        options = ["--srv", f"_web._tcp.example={VIP4}:80", "--resolver", knot.address, "--real-range", "127.0.0.0/8"]
        with sidecar(instance, cgroup, directory, options) as found:
            yield found


def test_cgroup_that_is_made_anew_is_attached_again(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """If its cgroup is removed the sidecar logs it once, and attaches to the next one of that name."""
    with listening("127.0.0.1") as (server,), following(instance, cgroup, tmp_path, server.name) as found:
        assert dial(cgroup, VIP4, 80) == ["ok"]
        remove(cgroup)
        found.wait_for(
            lambda: "programs are not attached" in found.events(), "the sidecar notices that the cgroup is gone"
        )
        lost = status(instance)["datapath"]
        assert not lost["effective"]
        assert str(cgroup) in lost["reason"]
        cgroup.mkdir()
        found.wait_for(lambda: "programs attached again" in found.events(), "the sidecar attaches again")
        assert dial(cgroup, VIP4, 80) == ["ok"]
        assert status(instance)["datapath"]["effective"]
        assert found.events().count("programs are not attached") == 1


@pytest.mark.parametrize("alone", [False, True])
def test_pins_that_were_taken_away_are_made_anew(instance: str, cgroup: Path, tmp_path: Path, *, alone: bool) -> None:
    """A sidecar whose pins were removed, or that of one map, loads again and publishes the same pools again."""
    with listening("127.0.0.1") as (server,), following(instance, cgroup, tmp_path, server.name) as found:
        if alone:
            Pins(instance).map(Map.CHAINS).unlink()
        else:
            shutil.rmtree(Pins(instance).home)
        found.wait_for(lambda: "programs attached again" in found.events(), "the sidecar loads again")
        found.wait_for(lambda: bool(status(instance)["virtual_servers"]), "the pool is published again")
        assert pool(instance, VIP4) == {server.name: 1}
        assert dial(cgroup, VIP4, 80) == ["ok"]


def test_unload_leaves_nothing(instance: str, cgroup: Path) -> None:
    """After unload the instance has no pin, program, map or link, and only the lock file of its state."""
    load(instance, cgroup)
    publish(instance, {f"{VIP4}:80": ["127.0.0.1:8080"], f"[{VIP6}]:80": []})
    pins = Pins(instance)
    objects = set(pinned(pins.home).values())
    programs = [found for found in objects if found.kind == "prog"]
    objects |= {found for program in programs for found in used_maps(program)}
    iterators = sum(pins.records(protocol).exists() for protocol in Protocol)
    constants = int(loader_of_tests() is not Loader.BCC)  # libbpf's programs have a map for these
    assert len(objects) == len(MAPS) + 2 * len(PROGRAMS) + iterators + constants
    assert all(map(KernelObject.exists, objects))
    unload(instance)
    assert not pins.home.exists()
    assert [path.name for path in (RUN / instance).iterdir()] == ["lock"]
    wait_until(lambda: not any(map(KernelObject.exists, objects)), "the kernel has freed everything")
    assert dial(cgroup, VIP4, 80) == [NOT_OURS]
    again = clb("unload", "--instance", instance)
    assert again.returncode == 0
    assert again.stdout.startswith(f"nothing was loaded as instance {instance}; ")


@pytest.mark.parametrize("options", [[], ["--other-layouts"]])
def test_unload_of_a_missing_instance_leaves_no_trace(instance: str, options: list[str]) -> None:
    """Unload of an instance that never existed, such as a mistyped name, reports that, and creates no directory."""
    result = clb("unload", "--instance", instance, *options)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"nothing was loaded as instance {instance}; ")
    assert not (RUN / instance).exists()


def test_foreign_program_keeps_running(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A foreign connect4 program on the same cgroup works before, during and after load and unload."""
    port = free_port()
    with (
        foreign_rewrite(cgroup, FOREIGN_VIP, "127.0.0.7"),
        connecting(cgroup, port, tmp_path, FOREIGN_VIP) as connects,
        listening("127.0.0.1") as (server,),
    ):
        for _ in range(3):
            load(instance, cgroup)
            publish(instance, {f"{VIP4}:80": [server.name]})
            assert dial(cgroup, VIP4, 80) == ["ok"]
            unload(instance)
    assert len(connects) > 50
    assert {(connect.error, connect.reached[12:]) for connect in connects} == {(0, bytes([127, 0, 0, 7]))}


def test_foreign_program_that_denies_is_obeyed(loaded: str, cgroup: Path) -> None:
    """A connect that a foreign program denies fails with EPERM after our decision; status cannot show that."""
    with listening("127.0.0.1") as (server,):
        publish(loaded, {f"{VIP4}:80": [server.name]})
        with foreign_denial(cgroup):
            assert dial(cgroup, VIP4, 80, 2) == ["EPERM"] * 2
            found = status(loaded)
            assert found["datapath"]["effective"]
            assert found["virtual_servers"][0]["connects"] == 2
        assert dial(cgroup, VIP4, 80) == ["ok"]
        assert server.taken() == 1


@pytest.mark.parametrize("hook", list(AttachType))
def test_foreign_program_that_allows_no_other_is_named(instance: str, cgroup: Path, hook: AttachType) -> None:
    """If a foreign program excludes all others, load fails with one line and leaves nothing half loaded."""
    before = snapshot(instance)
    with foreign_exclusive(cgroup, hook):
        result = clb("load", "--instance", instance, "--cgroup", cgroup)
    assert result.returncode == 3
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in (str(cgroup), "exclusively", "bpftool cgroup show")), line
    assert snapshot(instance)._replace(files={}) == before
    load(instance, cgroup)


@pytest.mark.parametrize("hook", list(AttachType))
def test_failed_move_leaves_the_links_where_they_were(loaded: str, cgroup: Path, hook: AttachType) -> None:
    """If a load onto a cgroup fails because of a foreign program, everything stays attached to the previous cgroup."""
    before = snapshot(loaded)
    with made_cgroup() as other, foreign_exclusive(other, hook):
        result = clb("load", "--instance", loaded, "--cgroup", other)
        assert (result.returncode, str(other) in result.stderr) == (3, True)
    after = snapshot(loaded)
    assert str(other) in after.files["failed-load.json"]  # for status
    assert after._replace(files=before.files) == before
    found = status(loaded)["datapath"]
    assert (found["effective"], found["cgroup"]) == (True, str(cgroup))


def test_two_instances_share_a_cgroup(instance: str, cgroup: Path) -> None:
    """Two instances on one cgroup each serve their own virtual servers, and the second is unloaded alone."""
    second = f"{instance}-two"
    try:
        with listening("127.0.0.1", "127.0.0.2") as (one, two):
            for name, vip, server in ((instance, VIP4, one), (second, "10.64.0.2", two)):
                load(name, cgroup)
                publish(name, {f"{vip}:80": [server.name]})
            assert dial(cgroup, VIP4, 80, 3) + dial(cgroup, "10.64.0.2", 80, 5) == ["ok"] * 8
            assert (one.taken(), two.taken()) == (3, 5)
            assert [status(name)["datapath"]["effective"] for name in (instance, second)] == [True, True]
            unload(instance)
            wait_until(
                lambda: dial(cgroup, VIP4, 80) == [NOT_OURS], "its programs are detached: at once since Linux 5.11"
            )
            assert dial(cgroup, "10.64.0.2", 80) == ["ok"]
    finally:
        wipe(second)


def test_wildcard_takes_every_port_that_has_no_server_of_its_own(loaded: str, cgroup: Path) -> None:
    """A VIP without a port serves every port, and connects keep their port; an exact port wins."""
    with listening("127.0.0.1", "127.0.0.2", "::1") as (every, exact, six):
        publish(loaded, {VIP4: [every.name], f"{VIP4}:443": [exact.name], f"[{VIP6}]": [six.name]})
        for port in (1, 80, 65535):
            assert dial(cgroup, VIP4, port) + dial(cgroup, VIP6, port) == ["ok", "ok"]
        assert dial(cgroup, VIP4, 443, 4) == ["ok"] * 4
        assert (every.taken(), exact.taken(), six.taken()) == (3, 4, 3)


def test_exact_port_that_is_empty_does_not_fall_back(loaded: str, cgroup: Path) -> None:
    """An exact port without real servers refuses, although a wildcard beside it could serve."""
    with listening("127.0.0.1") as (every,):
        publish(loaded, {VIP4: [every.name], f"{VIP4}:443": []})
        assert dial(cgroup, VIP4, 443) + dial(cgroup, VIP4, 442) == [refusal(), "ok"]


@pytest.mark.parametrize(("vip", "hosts"), [(VIP4, ("127.0.0.1", "127.0.0.2")), (VIP6, ("::1", "::1"))])
def test_connected_udp_is_balanced(loaded: str, cgroup: Path, vip: str, hosts: tuple[str, str]) -> None:
    """A connected UDP socket stays with one real server, and several sockets are spread over all servers."""
    written = f"[{vip}]" if ":" in vip else vip
    with listening(*hosts, udp=True) as servers:
        publish(loaded, {f"{written}:53/udp": [server.name for server in servers]})
        assert dial(cgroup, vip, 53, 200, udp=True) == ["ok"] * 200
        counts = [server.taken() for server in servers]
    assert sum(counts) == 200
    assert min(counts) > 50  # fails by chance once in 10^13 runs


def test_tcp_and_udp_of_one_vip_are_apart(loaded: str, cgroup: Path) -> None:
    """An address and port has a pool for each protocol; if only one is a virtual server, the other is not affected."""
    with listening("127.0.0.1") as (tcp,), listening("127.0.0.2", udp=True) as (udp,):
        publish(loaded, {f"{VIP4}:53": [tcp.name], f"{VIP4}:53/udp": [udp.name], f"{VIP4}:54/udp": [udp.name]})
        assert dial(cgroup, VIP4, 53, 2) + dial(cgroup, VIP4, 53, 3, udp=True) == ["ok"] * 5
        assert (tcp.taken(), udp.taken()) == (2, 3)
        assert dial(cgroup, VIP4, 54) == [NOT_OURS]


def test_counters_equal_the_connects_of_servers(loaded: str, cgroup: Path) -> None:
    """Connects and refusals in status equal those of servers and clients, also over republications."""
    with listening("127.0.0.1", "127.0.0.2", "127.0.0.3") as servers:
        for weights in ((1, 2, 5), (5, 1, 1)):
            weighted = [f"{server.name}*{weight}" for server, weight in zip(servers, weights, strict=True)]
            publish(loaded, {f"{VIP4}:80": weighted, f"{VIP4}:81": []})
            assert dial(cgroup, VIP4, 80, 500) == ["ok"] * 500
        assert dial(cgroup, VIP4, 81, 7) == [refusal()] * 7
        seen = {server.name: server.taken() for server in servers}
    found = status(loaded)
    assert_is_status(found)
    served, refused = found["virtual_servers"]
    counted = {f"{real['address']}:{real['port']}": real["connects"] for real in served["real_servers"]}
    assert counted == seen
    assert (served["connects"], served["refused"]) == (1000, 0)
    assert (refused["connects"], refused["refused"]) == (0, 7)


def test_errno_of_an_empty_pool_is_what_status_says(instance: str, cgroup: Path) -> None:
    """An empty pool refuses with ECONNREFUSED if the kernel supports it, else with EPERM; status shows which."""
    load(instance, cgroup)
    publish(instance, {f"{VIP4}:80": [], f"[{VIP6}]:80": []})
    can_choose = status(instance)["datapath"]["features"]["errno"]
    assert can_choose is bool(probe.features() & FEATURE_ERRNO)
    expected = "ECONNREFUSED" if can_choose else "EPERM"
    assert [*dial(cgroup, VIP4, 80), *dial(cgroup, VIP6, 80), *dial(cgroup, f"::ffff:{VIP4}", 80)] == [expected] * 3


def test_kernel_that_cannot_choose_the_errno_gets_eperm(loaded: str, cgroup: Path) -> None:
    """Programs as loaded on a kernel before 6.1 refuse with EPERM, the only errno that it supports."""
    publish(loaded, {f"{VIP4}:80": [], f"[{VIP6}]:80": []})
    pins = Pins(loaded)
    _, programs = loader.programs(pins, loader_of_tests(), features=0)
    for name, program in programs.items():
        link = bpf.open_pin(pins.link(name))
        bpf.link_update(link, program)
        os.close(link)
        os.close(program)
    assert dial(cgroup, VIP4, 80) + dial(cgroup, VIP6, 80) == ["EPERM"] * 2
    assert status(loaded)["datapath"]["effective"]


@pytest.mark.parametrize("lose", [detach, Path.unlink])
@pytest.mark.parametrize("name", ["clb_connect4", "clb_sock_release"])
def test_lost_link_is_reported(loaded: str, cgroup: Path, name: str, lose: Callable[[Path], None]) -> None:
    """If one of the links is gone status and check report that connects are not balanced, and load repairs it."""
    lose(Pins(loaded).link(name))
    wait_until(lambda: not status(loaded)["datapath"]["effective"], "status tells")
    found = status(loaded)
    assert_is_status(found)
    assert found["datapath"]["loaded"]
    assert found["datapath"]["reason"].endswith(f"run: clb-discovery load --instance {loaded} --cgroup {cgroup}")
    check = clb_here("check", "--instance", loaded, "--cgroup", cgroup)
    assert check.returncode == 3
    assert "FAIL  data plane" in check.stdout
    load(loaded, cgroup)
    assert status(loaded)["datapath"]["effective"]
    assert clb_here("check", "--instance", loaded, "--cgroup", cgroup).returncode == 0


def test_what_a_killed_self_test_leaves_behind_goes(loaded: str, cgroup: Path) -> None:
    """The next self-test removes the cgroup of a killed one, and leaves that of a running one."""
    code = (
        "import pathlib, sys, time\n"
        "from clb_discovery.datapath.cgroup import temporary_child\n"
        "with temporary_child(pathlib.Path(sys.argv[1]), 'clb-discovery-selftest'):\n"
        "    print(flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, cgroup], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        (child,) = (path for path in cgroup.iterdir() if path.is_dir())
        assert loader.objection(Pins(loaded), cgroup) is None
        assert child.exists()
        process.kill()
    assert loader.objection(Pins(loaded), cgroup) is None
    assert not [path for path in cgroup.iterdir() if path.is_dir()]


@pytest.mark.parametrize("below", [False, True])
def test_frozen_cgroup_is_judged_by_its_links(
    instance: str, cgroup: Path, config: Path, tmp_path: Path, *, below: bool
) -> None:
    """No process connects there until it is thawed, and a self-test would freeze, too; also if it is frozen above."""
    config.write_text(f'[[service]]\nname = "web"\nvip = "{VIP4}:80"\nservers = ["10.0.0.1:80"]\n')
    with made_cgroup(cgroup) as child:
        target = child if below else cgroup
        with frozen(cgroup):
            load(instance, target)
            with sidecar(instance, target, tmp_path, ["--config", str(config)]) as found:
                assert status(instance)["datapath"]["effective"]
                assert found.stop() == 0
            assert {line["level"] for line in found.lines()} == {"info"}
            Pins(instance).link("clb_connect4").unlink()
            reason = status(instance)["datapath"]["reason"]
            assert reason.startswith(f"not every program is attached to {target}")
        load(instance, target)
        assert status(instance)["datapath"]["effective"]


def test_status_of_a_cgroup_that_is_gone(loaded: str, cgroup: Path) -> None:
    """Status still works when the cgroup has been removed, and reports that the programs are not in effect."""
    remove(cgroup)
    found = status(loaded)["datapath"]
    assert (found["loaded"], found["effective"]) == (True, False)
    assert str(cgroup) in found["reason"]
    cgroup.mkdir()
    load(loaded, cgroup)
    assert status(loaded)["datapath"]["effective"]


def test_cgroup_that_is_gone_is_named(instance: str) -> None:
    """Status reports that the cgroup is gone, and how to attach to it again."""
    with made_cgroup() as gone:
        load(instance, gone)
    reason = status(instance)["datapath"]["reason"]
    assert reason.startswith(f"{gone} is gone; when it is back a sidecar attaches to it again, or run: ")
    assert reason.endswith(f"clb-discovery load --instance {instance} --cgroup {gone}")


def test_maps_of_another_shape_are_refused(loaded: str, cgroup: Path) -> None:
    """Maps with another shape than expected are not written to; the message names unload, which removes them."""
    pins = Pins(loaded)
    aside = pins.directory / "aside"
    for old, new in ((pins.map(Map.OVERFLOW), aside), (pins.map(Map.LABELS), pins.map(Map.OVERFLOW))):
        old.rename(new)
    aside.rename(pins.map(Map.LABELS))
    for command in (("status",), ("load", "--cgroup", cgroup)):
        result = clb(*command, "--instance", loaded)
        assert (result.returncode, len(result.stderr.splitlines())) == (3, 1)
        assert result.stderr.endswith(f"run: clb-discovery unload --instance {loaded}\n")
    unload(loaded)
    load(loaded, cgroup)
