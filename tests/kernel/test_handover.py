"""A data plane that root loads, and a sidecar that only writes its maps: `load`, and `run --loader none`."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.handover import WRITER
from clb_discovery.datapath.instance import RUN, Instance
from clb_discovery.datapath.pins import PROGRAMS, Pins
from clb_discovery.errors import HostError
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Protocol
from tests.programs.as_unit import USER
from tests.support.cgroups import remove
from tests.support.clients import connecting
from tests.support.dataplane import dial, publish, refusal
from tests.support.listeners import listening
from tests.support.loading import loading
from tests.support.process import free_port, running, wait_until
from tests.support.sidecar import COMMAND, Sidecar, clb, load, sidecar, status
from tests.support.units import BESIDE, as_unit, handing_over, load_as_unit, without

VIP: Final = "10.64.0.1"
SRV: Final = ("--srv", f"_web._tcp.example={VIP}:80", "--resolver", "127.0.0.1:1")


def serving(config: Path, server: str, port: int = 80) -> list[str]:
    """Write a configuration with one static server; return the options that name it."""
    config.write_text(
        f'real-range = ["127.0.0.0/8"]\n[[service]]\nname = "web"\nvip = "{VIP}:{port}"\nservers = ["{server}"]\n'
    )
    return ["--config", str(config)]


@contextmanager
def writing(instance: str, options: list[str], directory: Path, *, ready: bool = True) -> Iterator[Sidecar]:
    """Run a sidecar that does not load."""
    with sidecar(instance, None, directory, options, ready=ready) as found:
        yield found


def assert_refused(code: int, instance: str, *options: str, words: str) -> None:
    """Check that a sidecar that does not load ends at once, with one line."""
    result = clb("run", "--instance", instance, "--loader", "none", *options)
    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    assert words in result.stderr


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_loaded_is_named(instance: str, cgroup: Path) -> None:
    """Without maps, with maps of another layout, or with a --cgroup, the error names the command to run instead."""
    way_out = f"run: clb-discovery load --instance {instance}"
    assert_refused(3, instance, *SRV, words=f"is not loaded; {way_out}")
    load(instance, cgroup)
    pins = Pins(instance)
    pins.directory.rename(pins.home / "v0")
    assert_refused(3, instance, *SRV, words="is loaded with map layout v0 instead of v")
    assert_refused(2, instance, *SRV, "--cgroup", str(cgroup), words="clb-discovery load --cgroup")


def test_it_writes_and_cannot_load(instance: str, cgroup: Path, tmp_path: Path, config: Path) -> None:
    """It publishes into existing maps behind a filter; `load` may still repair, and no other process may write."""
    load(instance, cgroup)
    with listening("127.0.0.1") as (server,), writing(instance, serving(config, server.name), tmp_path) as found:
        assert dial(cgroup, VIP, 80) == ["ok"]
        confined = Path(f"/proc/{found.process.pid}/status").read_text()
        assert {"NoNewPrivs:	1", "Seccomp:	2"} <= set(confined.splitlines())
        load(instance, cgroup)
        assert clb("unload", "--instance", instance).returncode == 4
        assert clb("run", "--instance", instance, "--cgroup", cgroup, *SRV).returncode == 4
        assert status(instance)["sidecar"]["pid"] == found.process.pid
        assert dial(cgroup, VIP, 80) == ["ok"]
        assert found.stop() == 0
    assert {line["level"] for line in found.lines()} == {"info"}


def test_cgroup_that_is_made_anew_is_for_the_loader(instance: str, cgroup: Path, tmp_path: Path, config: Path) -> None:
    """The sidecar reports that the cgroup is gone, then that nothing is attached to the new one, until a load."""
    load(instance, cgroup)
    with listening("127.0.0.1") as (server,), writing(instance, serving(config, server.name), tmp_path) as found:
        remove(cgroup)
        found.wait_for(
            lambda: "is gone; when it exists again" in found.log.read_text(), "it sees that the cgroup is gone"
        )
        cgroup.mkdir()
        found.wait_for(lambda: "was recreated" in found.log.read_text(), "it sees that there is a new one")
        load(instance, cgroup)
        assert dial(cgroup, VIP, 80) == ["ok"]
        assert found.stop() == 0


def test_load_that_fails_beside_older_programs_is_reported(
    instance: str, cgroup: Path, tmp_path: Path, config: Path
) -> None:
    """The older programs balance on, so status names the failed load; the next load, or a sidecar's own, ends that."""
    wrong = ("load", "--instance", instance, "--cgroup", "/sys/fs/cgroup/no-such-slice")
    load(instance, cgroup)
    with listening("127.0.0.1") as (server,), writing(instance, serving(config, server.name), tmp_path) as found:
        failed = clb(*wrong)
        assert failed.returncode == 3
        document = status(instance)
        assert document["datapath"]["effective"]
        assert document["datapath"]["load_error"] in failed.stderr
        problems = clb("status", "--problems", "--instance", instance)
        assert problems.returncode == 1
        reason = " ".join(problems.stdout.split())
        assert f"the last load failed: {document['datapath']['load_error']}; the programs of the previous" in reason
        assert dial(cgroup, VIP, 80) == ["ok"]
        load(instance, cgroup)
        assert status(instance)["datapath"]["load_error"] is None
        assert found.stop() == 0
    with sidecar(instance, cgroup, tmp_path, ["--config", str(config)]):
        assert clb(*wrong).returncode == 4  # another process loads: this is no fault of the options
        assert status(instance)["datapath"]["load_error"] is None
    assert clb(*wrong).returncode == 3
    assert status(instance)["datapath"]["load_error"]
    with sidecar(instance, cgroup, tmp_path, ["--config", str(config)]):
        assert status(instance)["datapath"]["load_error"] is None


def test_maps_that_are_loaded_anew_are_taken(instance: str, cgroup: Path, tmp_path: Path, config: Path) -> None:
    """If the pins have gone and new ones appear, the sidecar fills the new maps without a restart."""
    load(instance, cgroup)
    with listening("127.0.0.1") as (server,), writing(instance, serving(config, server.name), tmp_path) as found:
        Pins(instance).remove()
        found.wait_for(lambda: "is not loaded" in found.log.read_text(), "it sees that the pins have gone")
        load(instance, cgroup)
        found.wait_for(lambda: "maps were recreated" in found.events(), "it takes the new maps")
        found.wait_for(lambda: found.events().count("pool published") == 2, "it fills them")
        assert dial(cgroup, VIP, 80) == ["ok"]
        assert found.stop() == 0


def test_pins_that_are_removed_where_they_are_mounted_end_it(instance: str, cgroup: Path, config: Path) -> None:
    """A unit sees a removed directory for ever, so the sidecar exits 3, and systemd starts it again."""
    load_as_unit(instance, cgroup)
    unit = without(BESIDE, config.parent, instance)
    options = serving(config, "127.0.0.1:8080")
    with sidecar(instance, None, config.parent, options, wrapper=as_unit(unit)) as found:
        Pins(instance).remove()
        assert found.process.wait(timeout=20) == 3
    assert "restart the sidecar" in found.log.read_text()


def test_a_group_may_write_maps_and_nothing_else(instance: str, cgroup: Path) -> None:
    """The group may open the pins that a publication needs; programs, links and the trace stay root's."""
    load(instance, cgroup, "--group", str(USER))
    pins = Pins(instance)
    shared = {pin.name: mode(pin) for pin in pins.directory.iterdir() if pin.stat().st_gid == USER}
    wanted = {str(map_): int(mode) for map_, mode in WRITER.items()} | {pin.name: 0o660 for pin in pins.waiting}
    assert shared == wanted | {pins.records(protocol).name: 0o640 for protocol in Protocol}
    others = {mode(pin) for pin in pins.directory.iterdir() if pin.name not in shared}
    assert others == {0o600}
    assert shared.keys().isdisjoint({*PROGRAMS, Map.EVENTS})
    assert (mode(pins.writer_lock), pins.writer_lock.stat().st_gid) == (0o750, USER)


def test_unknown_group_is_wrong_usage(instance: str) -> None:
    """If this host does not have the group, the error names it, and how to create it."""
    result = clb("load", "--instance", instance, "--group", "no-such-group")
    assert result.returncode == 2
    assert "groupadd --system no-such-group" in result.stderr


@contextmanager
def taking_over(instance: str, cgroup: Path, config: Path, *words: str, loads: bool) -> Iterator[Path]:
    """Run a sidecar that loads, or the units without waiting until they are ready; yield its log.

    :param words: the program before the arguments of the command.
    """
    log = config.parent / "taking-over.log"
    log.touch()
    unit = without(BESIDE, config.parent, instance)
    plane = (*loading(), "--cgroup", str(cgroup)) if loads else ("--loader", "none")
    options = ["--instance", instance, *plane, "--config", str(config), "--log-format", "json"]
    with ExitStack() as stack:
        if not loads:
            assert load_as_unit(instance, cgroup).returncode == 0
            ended = stack.enter_context(handing_over(instance, config.parent))
        stack.enter_context(running([*(() if loads else as_unit(unit)), *words, "run", *options], log))
        yield log
    assert loads or set(ended) <= {0}


@pytest.mark.parametrize("loads", [True, False])
def test_another_layout_is_taken_over_without_a_failed_connect(
    instance: str, cgroup: Path, config: Path, *, loads: bool
) -> None:
    """Connects use the programs of another layout until the new maps serve all; then those programs are removed."""
    port = free_port()
    load(instance, cgroup)
    publish(instance, {f"{VIP}:{port}": [f"127.0.0.1:{port}"]})
    pins = Pins(instance)
    serving(config, f"127.0.0.1:{port}", port)
    with connecting(cgroup, port, config.parent, VIP) as connects:
        pins.directory.rename(pins.home / "v0")
        with taking_over(instance, cgroup, config, *COMMAND, loads=loads):
            wait_until(lambda: pins.have_links() and pins.other_layouts() == [], "the other layout is gone")
            (before,) = counted(instance)
            wait_until(lambda: counted(instance)[0] > before + 20, "connects go over the new maps")
    assert [connect for connect in connects if connect.error] == []


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_service_without_an_answer_does_not_keep_another_layout(
    instance: str, cgroup: Path, config: Path, *, known: bool, loads: bool
) -> None:
    """The sidecar never gets ready; its pools take over all the same, unless it has none."""
    load(instance, cgroup)
    publish(instance, {f"{VIP}:80": []})
    pins = Pins(instance)
    pins.directory.rename(pins.home / "v0")
    never = '[[service]]\nname = "never"\nvip = "10.64.0.9:80"\ndns = "never.example:80"\n'
    hasty = (sys.executable, "-m", "tests.programs.hasty_sidecar", "3")
    with listening("127.0.0.1") as (server,):
        if known:
            serving(config, server.name)
        config.write_text('resolver = ["127.0.0.1:1"]\n' + (config.read_text() if known else "") + never)
        with taking_over(instance, cgroup, config, *hasty, loads=loads) as log:
            if known:
                wait_until(lambda: pins.other_layouts() == [], "the other layout is gone")
                assert dial(cgroup, VIP, 80) == ["ok"]
            else:
                wait_until(lambda: "source fails" in log.read_text(), "its source has been tried")
                time.sleep(4)
                assert [path.name for path in pins.other_layouts()] == ["v0"]
                assert dial(cgroup, VIP, 80) == [refusal()]
            assert '"ready"' not in log.read_text()


def test_only_other_layout_stays(instance: str, cgroup: Path) -> None:
    """`unload --other-layouts` refuses to remove the programs of another layout if no others balance anything."""
    load(instance, cgroup)
    publish(instance, {f"{VIP}:80": []})
    pins = Pins(instance)
    pins.directory.rename(pins.home / "v0")
    result = clb("unload", "--other-layouts", "--instance", instance)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert f"the programs of layout v0 stay; start the sidecar, or run: clb-discovery load --instance {instance}" in (
        result.stderr
    )
    assert dial(cgroup, VIP, 80) == [refusal()]
    shown = clb("status", "--instance", instance).stdout
    assert "data plane  loaded by another version (layout v0)\n" in shown
    assert (
        "wrong  the data plane is loaded by another version (layout v0): connects are balanced over its last" in shown
    )
    load(instance, cgroup)
    assert status(instance)["datapath"]["other_layouts"] == [0]
    shown = " ".join(clb("status", "--problems", "--instance", instance).stdout.split())
    assert "the programs of layout v0 run first: changes do not reach connects" in shown
    with Instance(instance).locked(loads=False):  # as by the sidecar of the other version
        result = clb("unload", "--other-layouts", "--instance", instance)
    assert (result.returncode, result.stderr.count("\n")) == (3, 1)
    assert "no pool of this version is published" in result.stderr
    assert dial(cgroup, VIP, 80) == [refusal()]
    publish(instance, {f"{VIP}:80": []})
    for _ in range(2):  # the second time there is nothing to remove
        assert clb("unload", "--other-layouts", "--instance", instance).returncode == 0
    assert status(instance)["datapath"]["other_layouts"] == []


def counted(instance: str) -> list[int]:
    """Return the number of connects of each virtual server."""
    return [server["connects"] for server in status(instance)["virtual_servers"]]


def test_status_does_not_wait_for_the_state_file(instance: str, cgroup: Path) -> None:
    """If the group replaces the state by a FIFO or the like, it does not block root's status."""
    load(instance, cgroup)
    state = RUN / instance / "state.json"
    os.mkfifo(state)
    found = status(instance)
    assert found["sources"] == []
    assert f"{state}: it is not a regular file" in found["sidecar"]["state_error"]


TRUNCATED: Final = '{"sources": [{"name": "consul:web", "sta'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (TRUNCATED, "state.json: Unterminated string"),
        ("", "state.json: Expecting value"),
        ("[]", "state.json: it is not an object"),
        ("[" * 100_000, "state.json: it is nested too deeply"),
        ('{"last_sync": "soon", "sources": {"web": 5}, "checks": 5}', "'checks', 'last_sync', 'sources' have another"),
        ('{"hosts_files": [5], "sources": [{"name": "consul:web"}]}', "'sources' has another"),
    ],
)
def test_a_state_that_cannot_be_read_stops_no_command(  # noqa: PLR0917 - fixtures and parameters
    instance: str, cgroup: Path, config: Path, tmp_path: Path, content: str, reason: str
) -> None:
    """Status shows all else and reports why, other commands and the next sidecar work, and that one replaces it."""
    load(instance, cgroup)
    publish(instance, {f"{VIP}:80": []})
    (RUN / instance / "state.json").write_text(content)
    for option in ("--sources", "--problems"):
        found = clb("status", "--instance", instance, option)
        (line,) = (line for line in found.stdout.splitlines() if reason in line)
        assert found.stderr == ""
    assert "restart the sidecar" in line
    assert len(status(instance)["virtual_servers"]) == 1
    assert clb("instances").returncode == 0
    load(instance, cgroup)
    options = serving(config, "127.0.0.1:8080")
    assert clb("plan", "--instance", instance, *options).returncode in {0, 2}
    with writing(instance, options, tmp_path):
        assert status(instance)["sidecar"]["state_error"] is None
    (RUN / instance / "state.json").write_text(content)
    found = clb("unload", "--instance", instance)
    assert (found.returncode, found.stdout) == (0, "")
    assert found.stderr.count("\n") == ("hosts_files" in content or "last_sync" not in content)


def test_run_time_directory_of_all_instances_is_passable_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar of root with another umask has made it for root alone; sharing an instance lets the group through."""
    run = tmp_path / "run"
    monkeypatch.setattr("clb_discovery.datapath.instance.RUN", run)
    usual = os.umask(0o077)
    try:
        with Instance("one").loading():
            assert mode(run) == 0o700
    finally:
        os.umask(usual)
    Instance("one").share(USER, alone=True)
    assert mode(run) == 0o755


def as_user(act: Callable[[], str]) -> str:
    """Do something as an ordinary user in the group; return the result."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        os.write(write, act().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        found = said.read()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    return found


def test_directory_of_an_instance_is_not_for_the_group_to_replace(instance: str, cgroup: Path) -> None:
    """The group may add files to it, and hold the lock, but cannot replace root's lock by another."""
    load(instance, cgroup, "--group", str(USER))
    directory = Path("/run/clb-discovery") / instance
    assert mode(directory) == 0o1775
    assert mode(directory / "lock") == 0o660

    def replace_lock() -> str:
        (directory / "state.json").write_text("{}")
        try:
            (directory / "lock").unlink()
        except PermissionError:
            return "refused"
        return "removed"

    assert as_user(replace_lock) == "refused"


@contextmanager
def protecting_regular_files() -> Iterator[None]:
    """Let no user open a file of another with O_CREAT in a directory that a group can write, as systemd does."""
    setting = Path("/proc/sys/fs/protected_regular")
    usual = setting.read_text()
    setting.write_text("2")
    try:
        yield
    finally:
        setting.write_text(usual)


def test_lock_that_the_sidecar_makes_again_is_for_root_too(instance: str, cgroup: Path, config: Path) -> None:
    """The units have no right to open files of others, and full root none to create a file over one of others there."""
    lock = RUN / instance / "lock"
    load_as_unit(instance, cgroup)
    unit = without(BESIDE, config.parent, instance)
    options = serving(config, "127.0.0.1:8080")
    with sidecar(instance, None, config.parent, options, wrapper=as_unit(unit)) as found:
        lock.unlink()
        wait_until(lock.exists, "the sidecar has made it again")
        wait_until(lambda: mode(lock) == 0o660, "it is shared")
        assert (lock.stat().st_uid, lock.stat().st_gid) == (USER, USER)
        result = load_as_unit(instance, cgroup)
        assert (result.returncode, result.stderr) == (0, "")
        assert found.stop() == 0
    result = load_as_unit(instance, cgroup)
    assert (result.returncode, result.stderr) == (0, "")
    with protecting_regular_files():
        load(instance, cgroup)
        assert clb("unload", "--instance", instance).returncode == 0


def test_lock_that_root_makes_again_is_for_the_sidecar_too(instance: str, cgroup: Path, config: Path) -> None:
    """The group may hold the lock of a shared instance, whichever command has created it."""
    load_as_unit(instance, cgroup)
    (RUN / instance / "lock").unlink()
    load(instance, cgroup)
    unit = without(BESIDE, config.parent, instance)
    options = serving(config, "127.0.0.1:8080")
    with sidecar(instance, None, config.parent, options, wrapper=as_unit(unit)) as found:
        assert found.stop() == 0


def test_state_of_another_user_is_named_and_goes_with_the_next_load(instance: str, cgroup: Path) -> None:
    """Another user cannot replace the state that a sidecar of root has written, until `load` removes it."""

    def write_state() -> str:
        try:
            Instance(instance).write_state({"pid": 2})
        except HostError as error:
            return str(error)
        return "written"

    load(instance, cgroup, "--group", str(USER))
    Instance(instance).write_state({"pid": 1})
    assert "another user" in as_user(write_state)
    load(instance, cgroup, "--group", str(USER))
    assert as_user(write_state) == "written"
    assert Instance(instance).read_state() == {"pid": 2}


def test_state_of_a_running_sidecar_outlives_a_load(instance: str, cgroup: Path, tmp_path: Path, config: Path) -> None:
    """`load --group` beside a sidecar that root runs leaves its state, which it writes only when that changes."""
    load(instance, cgroup)
    with writing(instance, serving(config, "127.0.0.1:8080"), tmp_path) as found:
        before = status(instance)
        assert before["sources"]
        load(instance, cgroup, "--group", str(USER))
        assert status(instance)["sources"] == before["sources"]
        assert found.stop() == 0
    load(instance, cgroup, "--group", str(USER))
    assert Instance(instance).read_state() == {}
