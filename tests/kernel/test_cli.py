"""Errors at the command line: one helpful line, the right exit code, and nothing changed."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from clb_discovery.datapath import cgroup as cgroups
from clb_discovery.datapath.instance import RUN, Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import BPFFS, Pins
from clb_discovery.errors import UsageError
from tests.support.cgroups import made_cgroup
from tests.support.consul import ACL_DENY, MASTER_TOKEN, ConsulAgent
from tests.support.dataplane import Snapshot, publish, snapshot, wipe
from tests.support.knot import KnotServer
from tests.support.loading import loader_of_tests
from tests.support.mounts import in_own_mounts
from tests.support.pace import patient
from tests.support.process import free_port
from tests.support.sidecar import COMMAND, clb, clb_here, sidecar

SRV: Final = ("--srv", "_web._tcp.example=10.64.0.1:80")
CONSUL: Final = ("--consul", "--service", "web=10.64.0.1:80")
NOBODY: Final = (sys.executable, "-m", "tests.programs.as_nobody")


class Plane:
    """A loaded data plane that serves; no command here may change it."""

    def __init__(self, instance: str, cgroup: Path) -> None:
        self.instance = instance
        self.cgroup = cgroup
        self.before: Snapshot = snapshot(instance)

    @property
    def here(self) -> tuple[str, ...]:
        """The options that select it."""
        return ("--instance", self.instance, "--cgroup", str(self.cgroup))

    def assert_fails(
        self, code: int, *arguments: str | Path, words: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> str:
        """Run a command that has to fail with one line that contains the words, and to change nothing; return it."""
        result = clb(*arguments, env=env) if env else clb_here(*arguments)
        return self.assert_failed(result, code, words)

    def assert_failed(self, result: subprocess.CompletedProcess[str], code: int, words: Sequence[str] = ()) -> str:
        """Check the result of a command that had to fail. Log lines, which are JSON, are not counted."""
        lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
        assert result.returncode == code, result.stderr
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("clb-discovery: "), lines
        assert "internal error" not in lines[0]
        assert all(word in lines[0] for word in words), (lines[0], words)
        assert result.stdout == ""
        after = snapshot(self.instance)
        assert after._replace(files={}) == self.before._replace(files={})
        return lines[0]


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    """Load a data plane for all tests here."""
    instance = f"test-{uuid4().hex[:8]}"
    with made_cgroup() as cgroup:
        try:
            loader.load(Pins(instance), cgroup, loader_of_tests())
            publish(instance, {"10.64.0.1:80": ["10.0.0.1:8080", "10.0.0.2:8080*3"]})
            yield Plane(instance, cgroup)
        finally:
            wipe(instance)
            wipe(f"{instance}-fresh")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run any command."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-such-option"], ["--no-such-option", "--help"]),
        (["--srv"], ["--srv", "--help"]),
        (["--bad\nline"], ["--bad\\nline"]),
        (["no-such-command"], ["no-such-command", "run", "status", "unload"]),
        (["status", "--consul"], ["--consul"]),
        (["--srv", "_web._tcp.example", "--vip-range", "10.0.0.0/33"], ["--vip-range", "10.0.0.0/33", "240.64.0.0/10"]),
        (["--srv", "_web._tcp.example", "--vip-range", "224.0.0.0/4"], ["--vip-range", "224.0.0.0/4", "multicast"]),
        (
            ["--srv", "_a._tcp.x", "--srv", "_b._tcp.x", "--vip-range", "10.9.9.9/32"],
            ["--vip-range", "gets no VIP", "10.9.9.9/32", "larger --vip-range"],
        ),
        (
            ["--srv", "_web._tcp.a", "--srv", "_web._tcp.b"],
            ["is claimed by", "_web._tcp.a", "_web._tcp.b", "own VIP"],
        ),
        (["--srv", "=10.64.0.1:80"], ["--srv", "no name"]),
        (["--srv", "_web._tcp.example=10.64.0.300:80"], ["--srv", "10.64.0.300:80", "10.64.0.1:6379"]),
        (["--srv", "_web._tcp.example=10.64.0.1:99999"], ["10.64.0.1:99999", "65535"]),
        (["--srv", "_web._tcp.example=10.64.0.1:80/sctp"], ["sctp", "/tcp", "/udp"]),
        (["--srv", "_web._tcp.example=224.0.0.1:80"], ["224.0.0.1:80", "multicast", "10.64.0.1"]),
        (["--srv", "_web._tcp.example=[10.64.0.1]:80"], ["[10.64.0.1]:80", "IPv6 needs brackets"]),
        (["--srv", "_web._tcp.example=fd00::1:80"], ["fd00::1:80", "[fd00::1]:6379"]),
        (["--srv", f"{'a' * 64}.example=10.64.0.1:80"], ["--srv", "_redis._tcp.example"]),
        (["--consul", "--service", "a//b=10.64.0.1:80"], ["a//b", "part between slashes"]),
        ([*SRV, "--srv", "_other._tcp.example=10.64.0.1:80"], ["10.64.0.1:80", "_web", "_other", "own VIP"]),
        ([*SRV, *CONSUL], ["10.64.0.1:80", "--srv _web", "--service web", "own VIP"]),
        (["--service", "web=10.64.0.1:80"], ["web is a service in Consul", "--consul"]),
        ([], ["no service", "--consul", "--srv"]),
        ([*SRV, "--catalog"], ["--catalog", "--consul"]),
        (["--consul", "ftp://127.0.0.1", "--service", "web=10.64.0.1:80"], ["ftp://127.0.0.1", "http://"]),
        ([*CONSUL, "--consul-client-cert", "/none"], ["--consul-client-cert", "--consul-client-key", "both"]),
        ([*SRV, "--resolver", "dns.example"], ["--resolver", "dns.example", "IP:PORT"]),
        ([*SRV, "--resolver", "127.0.0.1:0"], ["--resolver", "127.0.0.1:0", "65535"]),
        ([*SRV, "--real-range", "10.0.0.0/33"], ["--real-range", "10.0.0.0/33", "--help"]),
        ([*SRV, "--max-removal", "50%"], ["--max-removal", "50%", "0.5"]),
        ([*SRV, "--max-removal", "1.5"], ["--max-removal", "1.5", "0.5"]),
        ([*SRV, "--hold", "half a minute"], ["--hold", "half a minute", "30s"]),
        ([*SRV, "--min-ttl", "0s"], ["--min-ttl", "above 0"]),
        ([*SRV, "--min-ttl", "5s", "--max-ttl", "1s"], ["--min-ttl", "--max-ttl"]),
        ([*SRV, "--loader", "magic"], ["--loader", "magic", "auto"]),
        ([*SRV, "--log-level", "loud"], ["--log-level", "loud", "info"]),
    ],
)
def test_wrong_usage_is_one_line(plane: Plane, arguments: list[str], words: list[str]) -> None:
    """Wrong usage ends with exit code 2 and a line that names the mistake and the right form."""
    plane.assert_fails(2, *arguments, *([] if arguments[:1] == ["status"] else plane.here), words=words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--consul-token-file", "/none"], ["--consul-token-file", "'/none'", "No such file", "the token"]),
        (["--consul-ca-file", "/dev/null"], ["--consul-ca-file", "'/dev/null'", "PEM"]),
    ],
)
def test_a_secret_that_is_not_there_yet_is_no_wrong_usage(plane: Plane, arguments: list[str], words: list[str]) -> None:
    """Another program may write it after a boot, and systemd starts a sidecar again that ends with exit code 3."""
    plane.assert_fails(3, *CONSUL, *arguments, *plane.here, words=words)


@pytest.mark.parametrize("secret", [["--consul-token=s3cr3t"], ["--consul-token", "s3cr3t"]])
def test_value_of_an_unknown_option_is_not_printed(plane: Plane, secret: list[str]) -> None:
    """A token in the wrong place does not get into the journal, and the message names the right place."""
    plane.assert_fails(2, *SRV, *secret, *plane.here, words=["--consul-token;", "--consul-token-file"])
    assert "s3cr3t" not in clb(*SRV, *secret).stderr


def test_an_error_that_cannot_be_printed_is_an_exit_code_all_the_same(plane: Plane) -> None:
    """Standard error is on a full disk."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "clb_discovery", "status", "--nonsense", "--instance", plane.instance]
        assert subprocess.run(command, check=False, stderr=full).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "redirection", "cause"),
    [
        ("status", ">&-", "it is closed"),
        ("status --json", ">&-", "it is closed"),
        ("status", ">/dev/full", "No space left on device"),
        ("status --json", ">/dev/full", "No space left on device"),
        ("run --help", ">/dev/full", "No space left on device"),
    ],
)
def test_output_that_cannot_be_written_is_an_error(arguments: str, redirection: str, cause: str) -> None:
    """If standard output is closed or on a full disk, the error is one line."""
    command = f"{shlex.join(map(str, COMMAND))} {arguments} {redirection}"
    result = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"cannot write to standard output: {cause}" in result.stderr


def test_loading_needs_no_output(instance: str, cgroup: Path) -> None:
    """Load and unload work in a script with standard output closed."""
    for arguments in (["load", "--cgroup", str(cgroup)], ["unload"]):
        command = shlex.join([*COMMAND, *arguments, "--instance", instance])
        result = subprocess.run(["sh", "-c", f"{command} >&-"], check=False, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")


def test_wrong_option_of_a_source_leaves_nothing_loaded(instance: str, cgroup: Path) -> None:
    """A wrong option that only the client of a source detects is wrong usage, though the data plane is loaded then."""
    wrong = ["--consul-client-cert", "/none", "--instance", instance, "--cgroup", str(cgroup)]
    result = clb("run", *CONSUL, *wrong)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert not Pins(instance).home.exists()


@pytest.mark.parametrize("command", [["run", *SRV], ["status"], ["load"], ["unload"], ["check"]])
def test_bad_instance_name_is_refused(plane: Plane, command: list[str]) -> None:
    """Every command rejects an instance name that would lead out of its directory."""
    plane.assert_fails(2, *command, "--instance", "../other", words=["'../other'", "instance name", "letters, digits"])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a.b", "x" * 65, "na\u00efve", "a\n", "a\0"])
def test_instance_name_is_safe_in_a_path(name: str) -> None:
    """An instance name consists of letters, digits, _ and -, and its length is limited."""
    with pytest.raises(UsageError, match="letters, digits"):
        Pins(name)


def test_check_refuses_wrong_usage_before_it_looks(plane: Plane) -> None:
    """Check reports a mistake in its own command line, and nothing else."""
    plane.assert_fails(2, "check", "--service", "web=10.64.0.1:80", words=["--consul"])
    plane.assert_fails(2, "check", "--srv", "web=", words=["not a VIP"])


def test_help_and_version_are_no_errors() -> None:
    """--help and --version print to stdout and end with 0, for the program and for each command."""
    for arguments in (["--help"], ["--version"], *([name, "--help"] for name in ("run", "status", "check", "demo"))):
        result = clb(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert "clb-discovery" in result.stdout


@pytest.mark.parametrize("command", ["load", "check", "run"])
def test_cgroup_that_is_none(plane: Plane, command: str, tmp_path: Path) -> None:
    """If --cgroup is not a cgroup of version 2, in any spelling, the error names it and where to find one."""
    root = cgroups.find_root()
    paths = ["/no/such/cgroup", str(tmp_path), f"{root}/no-such-cgroup", f"{root}/../../../tmp", ""]
    paths += [str(path.parent) for path in root.parent.glob("*/cgroup.procs") if path.parent != root][:1]  # version 1
    for path in paths:
        arguments = (command, "--instance", plane.instance, "--cgroup", path, *(SRV if command == "run" else ()))
        if command == "check":
            result = clb(*arguments)
            assert result.returncode == 3
            assert f"FAIL  cgroup v2: {path!r} is not a cgroup" in result.stdout
        else:
            plane.assert_fails(3, *arguments, words=[repr(path), "not a cgroup", str(root)])


@pytest.mark.parametrize("command", [["run", *SRV], ["load"], ["unload"], ["status"]])
def test_ordinary_user_gets_an_error(plane: Plane, command: list[str]) -> None:
    """Without privileges every command that needs them reports it."""
    where = plane.here[:2] if command[0] in {"unload", "status"} else plane.here
    plane.assert_failed(run(*NOBODY, *command, *where), 3, ["run as root"])


def test_check_reports_missing_rights_to_an_ordinary_user(plane: Plane) -> None:
    """Check continues without privileges, reports what is not allowed, and claims nothing that it cannot find out."""
    result = run(*NOBODY, "check", *plane.here)
    assert result.returncode == 3
    assert result.stderr == ""
    assert "FAIL  connect hooks: not allowed to load BPF programs; run as root" in result.stdout
    assert "older than" not in result.stdout
    assert "FAIL  data plane" in result.stdout


def test_status_of_a_closed_bpf_file_system(plane: Plane) -> None:
    """A user without access to the BPF file system gets an error about that, not "nothing is loaded"."""
    closed = in_own_mounts(f"mount -t bpf -o mode=700 bpf {BPFFS}", *NOBODY, "status", "--instance", plane.instance)
    plane.assert_failed(closed, 3, [str(BPFFS), "run as root"])


@pytest.mark.parametrize("command", [["run", *SRV], ["load"]])
def test_host_without_cgroup_v2(plane: Plane, command: list[str]) -> None:
    """Without a cgroup v2 hierarchy the error says how to mount one."""
    result = in_own_mounts("umount --lazy --all --types cgroup2", *COMMAND, *command, "--instance", plane.instance)
    plane.assert_failed(result, 3, ["no cgroup v2", "mount -t cgroup2"])


def test_status_without_cgroup_v2(plane: Plane) -> None:
    """Status shows the maps although there is no cgroup for the self-test, and why the programs are not in effect."""
    status = (*COMMAND, "status", "--json", "--instance", plane.instance)
    result = in_own_mounts("umount --lazy --all --types cgroup2", *status)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert "no cgroup v2" in found["datapath"]["reason"]
    assert len(found["virtual_servers"]) == 1


def test_no_bpf_file_system_and_no_right_to_mount_it(plane: Plane) -> None:
    """If the BPF file system is not mounted and mounting fails, the error says what to mount."""
    unprivileged = ("setpriv", "--bounding-set", "-sys_admin", *COMMAND)
    result = in_own_mounts("umount --lazy --all --types bpf", *unprivileged, "load", *plane.here)
    plane.assert_failed(result, 3, [str(BPFFS), f"mount -t bpf bpf {BPFFS}", "root"])


def test_bpf_file_system_is_mounted_where_it_is_not(plane: Plane) -> None:
    """Load mounts the BPF file system itself if it may, accessible for root only."""
    look = f'test -e {BPFFS}/clb-discovery; test "$(stat --format %a {BPFFS})" = 1700'
    script = f'umount --lazy --all --types bpf; "$@"; {look}; set -- true'
    fresh = f"{plane.instance}-fresh"
    try:
        result = in_own_mounts(script, *COMMAND, "load", "--instance", fresh, "--cgroup", plane.cgroup)
        assert (result.returncode, result.stderr) == (0, "")
        assert snapshot(plane.instance)._replace(files=plane.before.files) == plane.before
    finally:
        wipe(fresh)


def test_read_only_bpf_file_system(plane: Plane) -> None:
    """With a read-only BPF file system, as under ProtectKernelTunables, nothing is half removed or half loaded."""
    read_only = f"mount -o remount,bind,ro {BPFFS}"
    unload = in_own_mounts(read_only, *COMMAND, "unload", "--instance", plane.instance)
    plane.assert_failed(unload, 3, [str(BPFFS), "Read-only file system", "writable"])
    fresh = f"{plane.instance}-fresh"
    load = in_own_mounts(read_only, *COMMAND, "load", "--instance", fresh, "--cgroup", plane.cgroup)
    plane.assert_failed(load, 3, [str(BPFFS), "Read-only file system"])
    with Maps(Pins(plane.instance)) as maps:
        info = maps.info()
        assert info is not None
        maps.write_info(info._replace(build="another"))
    try:
        other = in_own_mounts(read_only, *COMMAND, "load", *plane.here)
        assert other.returncode == 3
        assert "writable" in other.stderr
    finally:
        with Maps(Pins(plane.instance)) as maps:
            maps.write_info(info)
    assert snapshot(plane.instance)._replace(files={}) == plane.before._replace(files={})
    assert loader.is_attached(Pins(plane.instance), plane.cgroup)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("EINVAL", [os.uname().release, "no CGROUP_INET4_CONNECT hook", "5.10", "CONFIG_CGROUP_BPF"]),
        ("ENOSYS", [os.uname().release, "Function not implemented", "5.10"]),
        ("EPERM", ["not allowed to load BPF programs", "CAP_BPF"]),
    ],
)
def test_kernel_that_does_not_take_the_programs(plane: Plane, number: str, words: list[str]) -> None:
    """If the kernel lacks the hooks or bpf(2), or forbids it, the error says so, and nothing stays of the attempt.

    A seccomp filter answers as such kernels do when a program is loaded; the rest of bpf(2) is real.
    """
    kernel = (sys.executable, "-m", "tests.programs.without_bpf", "PROG_LOAD", number)
    fresh = f"{plane.instance}-fresh"
    for command in (("load",), ("run", *SRV)):
        result = run(*kernel, *COMMAND, *command, "--instance", fresh, "--cgroup", plane.cgroup)
        plane.assert_failed(result, 3, words)
    assert not Pins(fresh).home.exists()
    check = run(*kernel, *COMMAND, "check", *plane.here)
    assert check.returncode == 3
    assert "FAIL  connect hooks" in check.stdout


def test_missing_libbpf_is_named_with_its_package(plane: Plane) -> None:
    """If libbpf.so.1 is missing, the error names the packages that contain it."""
    libraries = {line.split()[-1] for line in run("/sbin/ldconfig", "-p").stdout.splitlines() if "libbpf.so.1 " in line}
    assert libraries
    hidden = "; ".join(f"mount --bind /dev/null {library}" for library in sorted(libraries))
    where = ("--instance", f"{plane.instance}-fresh", "--cgroup", plane.cgroup)
    command = (*COMMAND, "load", "--loader", "object", *where)
    plane.assert_failed(in_own_mounts(hidden, *command), 3, ["is missing", "libbpf1"])
    assert not Pins(f"{plane.instance}-fresh").home.exists()


@pytest.mark.parametrize("token", [None, "00000000-0000-0000-0000-000000000000"])
def test_consul_that_refuses_the_token(plane: Plane, tmp_path: Path, token: str | None) -> None:
    """Missing rights are an error of the source, never an empty pool."""
    env = {"CONSUL_HTTP_TOKEN": token} if token else {}
    with ConsulAgent(tmp_path, config=ACL_DENY, token=MASTER_TOKEN) as agent:
        agent.register("web", 8080, "10.0.0.1")
        once = ("run", "--once", "--consul", agent.url, "--service", "web=10.64.0.1:80", *plane.here)
        line = plane.assert_fails(1, *once, words=[agent.url, "CONSUL_HTTP_TOKEN"], env=env)
    assert token is None or token not in line


@pytest.mark.parametrize("command", [("run", "--once"), ("check",)])
def test_consul_that_is_down(plane: Plane, command: tuple[str, ...]) -> None:
    """If Consul does not answer, the error names its address."""
    url = f"http://127.0.0.1:{free_port()}"
    arguments = (*command, "--consul", url, "--service", "web=10.64.0.1:80", *plane.here)
    if command == ("check",):
        result = clb(*arguments)
        assert (result.returncode, result.stderr) == (1, "")
        assert f"FAIL  consul:web: Consul at {url}" in result.stdout
    else:
        plane.assert_fails(1, *arguments, words=[url])


def test_dns_that_is_down(plane: Plane) -> None:
    """If a DNS server does not answer, or answers SERVFAIL, the error names the query."""
    with KnotServer() as knot:
        source = (*SRV, "--resolver", knot.address, *plane.here)
        knot.purge()
        plane.assert_fails(1, "run", "--once", *source, words=["_web._tcp.example", "SERVFAIL", str(knot.port)])
        check = clb("check", *source)
        assert (check.returncode, check.stderr) == (1, "")
        assert "FAIL  srv:_web._tcp.example: " in check.stdout
        knot.stop()
        plane.assert_fails(1, "run", "--once", *source, words=["_web._tcp.example", str(knot.port)])


def test_second_sidecar_names_the_first(plane: Plane, tmp_path: Path) -> None:
    """Commands that write end with exit code 4 while a sidecar runs, and name its process."""
    with sidecar(plane.instance, plane.cgroup, tmp_path, [*SRV, "--resolver", "127.0.0.1:1"], ready=False) as found:
        found.wait_for(lambda: "started" in found.events(), "the sidecar holds the instance")
        for command in (("run", *SRV, *plane.here), ("load", *plane.here), ("unload", *plane.here[:2])):
            plane.assert_fails(4, *command, words=[plane.instance, f"process {found.process.pid};", "--instance"])
        assert found.stop() == 0


def test_lock_is_not_for_others(instance: str) -> None:
    """Only root can open the lock, so an ordinary user cannot lock the sidecar out."""
    with Instance(instance).locked():
        mode = (RUN / instance / "lock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "--json"], 0),
        (["status", "--problems"], 1),
        (["status", "--problems", "--json"], 1),
        (["status", "--watch"], 0),
        (["status", "--watch", "--json"], 0),
        (["trace"], 0),
    ],
)
def test_reader_that_has_had_enough_is_no_error(plane: Plane, arguments: list[str], code: int) -> None:
    """If the reader closes the pipe, a command with a verdict still returns it, and one without an end ends."""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [*COMMAND, *arguments, "--instance", plane.instance]
        result = subprocess.run(command, check=False, stdout=write, stderr=subprocess.PIPE, timeout=patient(60))
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (code, b"")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_sidecar_with_closed_streams(instance: str, cgroup: Path, tmp_path: Path, closed: str) -> None:
    """A sidecar publishes as any other if the program that starts it has closed its standard streams."""
    file = tmp_path / "clb.toml"
    file.write_text('[[service]]\nname = "web"\nvip = "10.64.0.1:80"\nservers = ["10.0.0.1:8080"]\n')
    line = [*COMMAND, "run", "--once", "--config", str(file), "--instance", instance, "--cgroup", str(cgroup)]
    assert subprocess.run(["sh", "-c", f"{shlex.join(line)} {closed}"], check=False).returncode == 0
    with Maps(Pins(instance)) as maps:
        assert any(str(vip).startswith("10.64.0.1:80") for vip in maps.read().virtual)
