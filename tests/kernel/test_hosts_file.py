"""`--hosts-file`: unmodified programs find services by name, and the other lines of the file stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.instance import RUN
from clb_discovery.hosts_file.file import write_names
from clb_discovery.model.address import format_address
from clb_discovery.publication.automatic_vips import DEFAULT_RANGES, automatic_addresses
from tests.support.cgroups import run_inside
from tests.support.knot import KnotServer
from tests.support.loading import loading
from tests.support.pace import patient
from tests.support.paths import directory_for_all
from tests.support.process import running, wait_until
from tests.support.redis import RedisServer, redis_servers
from tests.support.sidecar import Sidecar, clb, load, sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP4, VIP6 = map(format_address, automatic_addresses(["redis"], DEFAULT_RANGES)["redis"])
BEFORE: Final = "127.0.0.1 localhost\n10.0.0.9 printer # of the third floor"
NOBODY: Final = 65534
LOOPBACK: Final = ("--real-range", "127.0.0.0/8", "--real-range", "::1/128")
HIDE: Final = 'mount --bind "$0" /etc/hosts; exec "$@"'


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """Return a hosts file with lines of others, which only its owner and its group may read."""
    path = tmp_path / "hosts"
    path.write_text(BEFORE)
    path.chmod(0o640)
    os.chown(path, 12, 34)
    return path


@contextmanager
def following(
    knot: KnotServer, instance: str, cgroup: Path, directory: Path, *options: str | Path
) -> Iterator[Sidecar]:
    """Run a sidecar that follows the SRV record of redis, without a VIP."""
    rest = ["--resolver", knot.address, *LOOPBACK, *map(str, options)]
    with sidecar(instance, cgroup, directory, ["--srv", "_redis._tcp.example", *rest]) as found:
        yield found


def zone(*servers: RedisServer) -> str:
    """Return an SRV record for each server."""
    lines = [f"_redis._tcp SRV 0 1 {server.port} s{number}" for number, server in enumerate(servers)]
    kinds = ["AAAA" if ":" in server.host else "A" for server in servers]
    lines += [f"s{number} {kinds[number]} {server.host}" for number, server in enumerate(servers)]
    return "\n".join(lines)


def ask(cgroup: Path, hosts: Path, *command: str) -> str:
    """Run an ordinary program that sees this file as /etc/hosts; return its output."""
    result = run_inside(cgroup, "unshare", "--mount", "sh", "-ec", HIDE, hosts, *command)
    assert result.returncode == 0, result.stderr
    return result.stdout


def reached(cgroup: Path, hosts: Path) -> set[str]:
    """Connect to redis.clb many times with redis-cli, which prefers IPv4; return the ports of the answering servers."""
    script = "for i in $(seq 40); do redis-cli -h redis.clb config get port; done"
    return set(ask(cgroup, hosts, "sh", "-c", script).split()) - {"port"}


def test_application_that_resolves_the_name_is_balanced(
    instance: str, cgroup: Path, tmp_path: Path, hosts: Path
) -> None:
    """Both addresses of redis.clb are found, and redis-cli reaches every server by that name, in either family."""
    with redis_servers(tmp_path, "127.0.0.1", "127.0.0.2", "::1") as servers, KnotServer() as knot:
        knot.write(zone(*servers))
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts, "--hold", "0s") as found:
            program = "import socket; print(*(found[4][0] for found in socket.getaddrinfo('redis.clb', 6379)))"
            assert set(ask(cgroup, hosts, "python3", "-c", program).split()) == {VIP4, VIP6}
            assert reached(cgroup, hosts) == {str(server.port) for server in servers[:2]}
            knot.write(zone(servers[2]))
            found.wait_for(lambda: VIP4 not in hosts.read_text(), "only the other family has a name")
            assert reached(cgroup, hosts) == {str(servers[2].port)}


def test_rest_of_the_file_stays(instance: str, cgroup: Path, tmp_path: Path, hosts: Path) -> None:
    """Lines, mode and owner stay; nothing is written while nothing changes; damage by other programs is repaired."""
    with redis_servers(tmp_path, "127.0.0.1", "::1") as (one, six), KnotServer() as knot:
        knot.write(zone(one))
        options = ("--hosts-file", hosts, "--max-ttl", "1s", "--hold", "0s")
        with following(knot, instance, cgroup, tmp_path, *options) as found:
            block = f"10.0.0.9 printer # of the third floor\n# BEGIN clb-discovery {instance}: "
            assert block in hosts.read_text()
            assert hosts.read_text().endswith(f"\n{VIP4} redis.clb\n# END clb-discovery {instance}\n")
            before = hosts.stat()
            assert (before.st_mode & 0o7777, before.st_uid, before.st_gid) == (0o640, 12, 34)

            knot.write(zone(one, six))
            found.wait_for(lambda: f"{VIP6} redis.clb" in hosts.read_text(), "the other family has its name")
            after = hosts.stat()
            assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
            assert after.st_ino != before.st_ino

            hosts.write_text("10.0.0.8 scanner\n")
            found.wait_for(lambda: "redis.clb" in hosts.read_text(), "the block is back")
            assert hosts.read_text().startswith("10.0.0.8 scanner\n# BEGIN")
            assert sorted(path.name for path in tmp_path.iterdir() if "hosts" in path.name) == ["hosts"]


def test_names_stay_as_long_as_the_data_plane(instance: str, cgroup: Path, tmp_path: Path, hosts: Path) -> None:
    """Names outlive the sidecar, as balancing does; unload, or a sidecar without the option, removes them."""
    with redis_servers(tmp_path, "127.0.0.1") as servers, KnotServer() as knot:
        knot.write(zone(*servers))
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts) as found:
            found.kill()
        assert "PONG" in ask(cgroup, hosts, "redis-cli", "-h", "redis.clb", "ping")
        with following(knot, instance, cgroup, tmp_path):
            assert hosts.read_text() == f"{BEFORE}\n"
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts):
            inode = hosts.stat().st_ino
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts):
            assert hosts.stat().st_ino == inode
        assert clb("unload", "--instance", instance).returncode == 0
    assert hosts.read_text() == f"{BEFORE}\n"


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Let the file be one that nobody can replace while the block runs."""
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_names_that_cannot_be_removed_are_not_forgotten(
    instance: str, cgroup: Path, tmp_path: Path, hosts: Path
) -> None:
    """A sidecar without the option tries again until they are gone, and so does a repeated unload."""
    other = tmp_path / "other"
    with redis_servers(tmp_path, "127.0.0.1") as servers, KnotServer() as knot:
        knot.write(zone(*servers))
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts):
            pass
        with unwritable(hosts), following(knot, instance, cgroup, tmp_path, "--hosts-file", other) as found:
            event = "cannot remove previously published names"
            found.wait_for(lambda: event in found.events(), "the removal has been tried")
            assert "redis.clb" in other.read_text()
            assert "redis.clb" in hosts.read_text()
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", other) as found:
            found.wait_for(lambda: "redis.clb" not in hosts.read_text(), "the names have gone")
        with unwritable(other):
            assert clb("unload", "--instance", instance).returncode == 3
            assert "redis.clb" in other.read_text()
        assert clb("unload", "--instance", instance).returncode == 0
    assert "redis.clb" not in other.read_text()


def test_a_file_that_was_refused_is_left_out_of_everything(
    instance: str, cgroup: Path, tmp_path: Path, hosts: Path, knot: KnotServer
) -> None:
    """It never had names, so neither the next sidecar nor unload has anything to remove, and others are cleaned."""
    wrong = tmp_path / "a/hosts"
    wrong.parent.mkdir()
    wrong.parent.chmod(0o777)  # others could replace what root writes there
    with redis_servers(tmp_path, "127.0.0.1") as servers:
        knot.write(zone(*servers))
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", wrong) as found:
            found.wait_for(lambda: "cannot publish names" in found.events(), "the file has been tried")
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts) as found:
            found.wait_for(lambda: "names published" in found.events(), "the other file has names")
            assert "cannot remove previously published names" not in found.events()
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", wrong):
            pass
    assert clb("unload", "--instance", instance).returncode == 0
    assert "redis.clb" not in hosts.read_text()


@pytest.mark.parametrize("reload", [False, True])
def test_names_of_a_sidecar_that_is_killed_at_once_go(
    instance: str, cgroup: Path, tmp_path: Path, hosts: Path, config: Path, *, reload: bool
) -> None:
    """If the sidecar dies right after it has published names, at its start or after a reload, unload removes them."""

    def publish_in(path: Path) -> None:
        service = '[[service]]\nname = "redis"\nservers = ["127.0.0.1:6379"]\n'
        config.write_text(f'real-range = ["127.0.0.0/8"]\nhosts-file = "{path}"\n{service}')

    other = tmp_path / "other"
    publish_in(other if reload else hosts)
    fatal = [sys.executable, "-m", "tests.programs.fatal_names", str(hosts), "run", "--config", str(config)]
    command = [*fatal, "--instance", instance, "--cgroup", str(cgroup), *loading()]
    with running(command, tmp_path / "log") as process:
        if reload:
            wait_until(lambda: other.exists() and "redis.clb" in other.read_text(), "names are published")
            publish_in(hosts)
            process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=patient(20)) == -signal.SIGKILL
    assert "redis.clb" in hosts.read_text()
    assert clb("unload", "--instance", instance).returncode == 0
    assert "redis.clb" not in hosts.read_text()
    assert not other.exists() or "redis.clb" not in other.read_text()


def test_file_that_cannot_be_replaced_is_no_reason_to_end(
    instance: str, cgroup: Path, tmp_path: Path, hosts: Path
) -> None:
    """If the file is a mount of its own, this is logged in one line; connects are still balanced."""
    with redis_servers(tmp_path, "127.0.0.1") as servers, KnotServer() as knot:
        knot.write(zone(*servers))
        wrapper: list[str | Path] = ["unshare", "--mount", "sh", "-ec", HIDE, hosts]
        options = ["--srv", f"_redis._tcp.example={VIP4}", "--resolver", knot.address, *LOOPBACK]
        options += ["--hosts-file", "/etc/hosts"]
        with sidecar(instance, cgroup, tmp_path, options, wrapper=wrapper) as found:
            found.wait_for(lambda: "cannot publish names" in found.events(), "the file has been tried")
            assert run_inside(cgroup, "redis-cli", "-h", VIP4, "ping").stdout == "PONG\n"
            assert found.stop() == 0
        (line,) = (line for line in found.lines() if line["event"] == "cannot publish names")
        assert "/etc/hosts: it is a mount point" in line["error"]
    assert hosts.read_text() == BEFORE


def test_service_without_a_host_name_is_reported(instance: str, cgroup: Path, tmp_path: Path, hosts: Path) -> None:
    """If a name is not valid in hosts(5), it is left out with a warning, and its service works."""
    with redis_servers(tmp_path, "127.0.0.1") as (server,), KnotServer() as knot:
        knot.write(zone(server).replace("_redis._tcp", "_re_dis._tcp"))
        options = ["--srv", "_re_dis._tcp.example", "--resolver", knot.address, *LOOPBACK, "--hosts-file", str(hosts)]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            assert [line["service"] for line in found.lines() if line["event"].startswith("no host name")] == ["re_dis"]
            assert len(status(instance)["virtual_servers"]) == 2
    assert hosts.read_text() == BEFORE


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/no/such/directory/hosts", "No such file or directory"),
        ("/dev/null", "not a regular file"),
        ("/proc/hosts", ""),
    ],
)
def test_file_that_is_none(instance: str, cgroup: Path, path: str, words: str) -> None:
    """With --once, a path that cannot be written is one line and exit code 3."""
    with KnotServer() as knot:
        knot.write("_redis._tcp SRV 0 1 80 s\ns A 10.0.0.1")
        where = ("--instance", instance, "--cgroup", cgroup, "--resolver", knot.address, "--log-level", "error")
        result = clb("run", "--once", "--srv", "_redis._tcp.example", "--hosts-file", path, *where)
    assert (result.returncode, len(result.stderr.splitlines())) == (3, 1)
    assert f"cannot write {path}" in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize("option", ["--hosts-file", "--state-dir"])
def test_nothing_is_made_above(instance: str, cgroup: Path, tmp_path: Path, option: str) -> None:
    """With --once, a missing directory is one line and an exit code, and it is not created."""
    with KnotServer() as knot:
        knot.write("_redis._tcp SRV 0 1 80 s\ns A 10.0.0.1")
        where = ("--instance", instance, "--cgroup", cgroup, "--resolver", knot.address, "--log-level", "error")
        path = tmp_path / "nope" / "here"
        result = clb("run", "--once", "--srv", "_redis._tcp.example", option, path, *where)
    assert (result.returncode, len(result.stderr.splitlines())) == (3, 1), result.stderr
    assert f"{path}" in result.stderr
    assert not path.parent.exists()


def test_directory_of_others_is_refused_by_the_sidecar(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The sidecar does not follow a link of another user; the target stays as it is, and connects are balanced."""
    open_to_all, victim = tmp_path / "open", tmp_path / "victim"
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)
    victim.write_text("of root\n")
    hosts = open_to_all / "hosts"
    hosts.symlink_to(victim)
    os.chown(hosts, NOBODY, NOBODY, follow_symlinks=False)
    with redis_servers(tmp_path, "127.0.0.1") as servers, KnotServer() as knot:
        knot.write(zone(*servers))
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts) as found:
            found.wait_for(lambda: "cannot publish names" in found.events(), "it is refused")
            assert run_inside(cgroup, "redis-cli", "-h", VIP4, "ping").stdout == "PONG\n"
        (line,) = (line for line in found.lines() if line["event"] == "cannot publish names")
    assert "is a link of nobody" in line["error"] or "can be written by every user" in line["error"]
    assert victim.read_text() == "of root\n"
    assert [path.name for path in open_to_all.iterdir()] == ["hosts"]


def test_unload_has_no_more_rights_than_who_published(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Names that another user's sidecar has published are removed as that user, in that user's directory only."""
    with redis_servers(tmp_path, "127.0.0.1") as servers, KnotServer() as knot, directory_for_all() as theirs:
        knot.write(zone(*servers))
        hosts = theirs / "hosts"
        hosts.write_text(BEFORE)
        for owner, code in ((NOBODY, 0), (0, 3)):
            with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts) as found:
                found.wait_for(lambda: "redis.clb" in hosts.read_text(), "names are published")
                found.stop()
            os.chown(RUN / instance / "state.json", NOBODY, NOBODY)
            for path in (hosts, theirs):
                os.chown(path, owner, owner)
            hosts.chmod(0o644)
            assert clb("unload", "--instance", instance).returncode == code
            assert ("redis.clb" in hosts.read_text()) == (code != 0)
            for path in (hosts, theirs):
                os.chown(path, 0, 0)


@pytest.mark.parametrize("next_one", ["unload", "sidecar", "user"])
def test_names_of_root_are_not_forgotten_by_a_load_for_a_group(
    instance: str, cgroup: Path, tmp_path: Path, hosts: Path, next_one: str
) -> None:
    """`load` makes room for the state of a sidecar of another user; the next sidecar, or unload, still removes them."""
    with redis_servers(tmp_path, "127.0.0.1") as servers, KnotServer() as knot:
        knot.write(zone(*servers))
        with following(knot, instance, cgroup, tmp_path, "--hosts-file", hosts) as found:
            found.wait_for(lambda: "redis.clb" in hosts.read_text(), "names are published")
        load(instance, cgroup, "--group", str(NOBODY))
        assert "redis.clb" in hosts.read_text()
        if next_one == "sidecar":
            with following(knot, instance, cgroup, tmp_path) as found:
                found.wait_for(lambda: "redis.clb" not in hosts.read_text(), "names are removed")
    state = RUN / instance / "state.json"
    if next_one == "user":  # it could not remove them, and they are of root all the same
        state.write_text(json.dumps({"hosts_files": [str(hosts)]}))
        os.chown(state, NOBODY, NOBODY)
    assert clb("unload", "--instance", instance).returncode == 0
    assert hosts.read_text() == f"{BEFORE}\n"
    assert {path.name for path in state.parent.iterdir()} == {"lock"}


def test_names_whose_directory_has_gone_are_gone(instance: str, tmp_path: Path) -> None:
    """Previously published names need not be removed if their directory does not exist any more."""
    assert not write_names(tmp_path / "gone" / "hosts", instance, {})
