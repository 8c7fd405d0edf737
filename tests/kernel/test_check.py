"""`check`: which part of each answer would be used, in the same numbers as `plan` and `run`, and why not the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from clb_discovery.cli.host_checks import LOOKED_AT
from tests.support.agreement import Case, assert_agreement, said_by_check
from tests.support.consul import ConsulAgent
from tests.support.knot import KnotServer
from tests.support.mounts import in_own_mounts
from tests.support.pace import patient
from tests.support.sidecar import COMMAND, clb, clb_here, load, sidecar
from tests.support.spares import loaded_instance
from tests.support.terminal import on_terminal

instance = loaded_instance

SOURCE: Final = "srv:_web._tcp.example"
V4, V6 = "10.64.0.1:80", "[fd00:64::1]:80"


@pytest.fixture(scope="module")
def knot() -> Iterator[KnotServer]:
    """Run a DNS server."""
    with KnotServer() as server:
        yield server


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Run a Consul."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as running:
        yield running


@pytest.mark.parametrize(
    "case",
    [
        Case("a A 10.0.0.1", {V4: 1}),
        Case("a A 0.0.0.0", {V4: 0}, ["0.0.0.0:80", "unspecified", "none can be used", "connects are refused"]),
        Case("a A 127.0.0.1", {V4: 0}, ["127.0.0.1:80", "--real-range"]),
        Case("a A 127.0.0.1", {V4: 1}, options=["--real-range", "127.0.0.0/8"]),
        Case("a A 10.0.0.1\na A 127.0.0.1", {V4: 1}, ["127.0.0.1:80", "--real-range"]),
        Case("a A 10.64.0.1", {V4: 0}, ["it is a VIP"]),
        Case("a AAAA fd00::1", {V4: 0}),
        Case("a A 10.0.0.1\na AAAA fd00::1", {V4: 1, V6: 1}),
        Case("a A 10.0.0.1", {V4: 1, V6: 0}, ["no real server at [fd00:64::1]:80", "1 real server at 10.64.0.1:80"]),
        Case("a A 10.0.0.1\na A 10.0.0.2", {V4: 0}, ["outside every --real-range"], ["--real-range", "10.9.0.0/16"]),
        Case("a A 10.0.0.1\nb A 10.0.0.1\n_web._tcp SRV 1 9 80 b\n_web._tcp SRV 0 1 81 b", {V4: 2}),
        Case("@ TXT nothing", {V4: 0}, ["discovery returned none"]),
    ],
    ids=lambda case: f"{case.answer!r} {' '.join(case.options)}",
)
def test_answers_of_dns_are_counted_as_they_are_used(instance: str, cgroup: Path, knot: KnotServer, case: Case) -> None:
    """For any answer `check`, `plan` and `run` give one number per VIP; a VIP without real servers fails the check."""
    record = "" if "TXT" in case.answer else "_web._tcp SRV 0 1 80 a\n"
    knot.write(record + case.answer)
    options = ["--srv", f"_web._tcp.example={','.join(case.used)}", "--resolver", knot.address]
    assert_agreement(instance, cgroup, case, options, SOURCE)


@pytest.mark.parametrize(
    "case",
    [
        Case("10.0.0.1:80", {V4: 1}),
        Case("127.0.0.1:80", {V4: 0}, ["127.0.0.1:80", "--real-range"]),
        Case("169.254.0.1:80", {V4: 0}, ["link-local"]),
        Case("fd00::1:80", {V4: 0}, ["1 real server of IPv6", "no IPv6 VIP"]),
        Case("fd00::1:80 10.0.0.1:80", {V4: 1}, ["1 real server of IPv6"]),
        Case("10.0.0.1:80 10.0.0.1:80 10.0.0.2:80", {V4: 2}),
        Case("127.0.0.1:80 10.0.0.1:80 10.0.0.1:80", {V4: 1}, ["127.0.0.1:80"]),
    ],
    ids=lambda case: case.answer,
)
def test_answers_of_consul_are_counted_as_they_are_used(
    instance: str, cgroup: Path, agent: ConsulAgent, case: Case
) -> None:
    """The same for Consul, where instances may share an address, or have a family without a VIP."""
    registered = [
        agent.register("web", int(port), host, service_id=f"web-{number}")
        for number, (host, _, port) in enumerate(text.rpartition(":") for text in case.answer.split())
    ]
    try:
        options = ["--consul", agent.url, "--service", f"web={','.join(case.used)}"]
        assert_agreement(instance, cgroup, case, options, "consul:web")
    finally:
        for service in registered:
            agent.deregister(service)


def test_automatic_vips_need_one_family(instance: str, cgroup: Path, knot: KnotServer) -> None:
    """Automatic VIPs exist for both families, so check fails only if neither family has real servers."""
    knot.write("_web._tcp SRV 0 1 80 a\na A 10.0.0.1")
    options = ["--srv", "_web._tcp.example", "--resolver", knot.address, "--instance", instance]
    result = clb_here("check", *options, "--cgroup", cgroup)
    numbers, _, failures = said_by_check(result, SOURCE)
    assert (result.returncode, sorted(numbers.values()), failures) == (0, [0, 1], [])
    knot.write("_web._tcp SRV 0 1 80 a\na A 127.0.0.1")
    result = clb_here("check", *options, "--cgroup", cgroup)
    numbers, _, failures = said_by_check(result, SOURCE)
    assert (result.returncode, list(numbers.values()), len(failures)) == (1, [0, 0], 1)


def test_held_removals_are_reported_by_check(instance: str, cgroup: Path, tmp_path: Path, knot: KnotServer) -> None:
    """If the kernel has more servers than an answer, check counts as plan does, and reports that they are held."""
    records = [f"_web._tcp SRV 0 1 80 t{number}\nt{number} A 10.0.0.{number}" for number in range(1, 4)]
    knot.write("\n".join(records))
    options = ["--srv", f"_web._tcp.example={V4}", "--resolver", knot.address]
    with sidecar(instance, cgroup, tmp_path, options):
        pass
    knot.write(records[0])
    options += ["--instance", instance]
    (change,) = json.loads(clb_here("plan", "--json", *options).stdout)["changes"]
    assert (change["held"], len(change["removed"])) == (True, 2)
    result = clb_here("check", *options, "--cgroup", cgroup)
    assert f"ok    {SOURCE}: 1 real server at {V4}; held first: it removes much\n" in result.stdout
    knot.write("\n".join(record.replace("A 10.0.0.", "A 127.0.0.") for record in records))
    (change,) = json.loads(clb_here("plan", "--json", *options).stdout)["changes"]
    assert (change["held"], len(change["removed"])) == (True, 3)  # unusable servers replace no others


def test_one_source_that_fails_keeps_no_other_from_being_checked(cgroup: Path, knot: KnotServer) -> None:
    """The exit code is that of the failing source, and every other source has its numbers."""
    knot.write("_web._tcp SRV 0 1 80 a\na A 10.0.0.1")
    options = ["--srv", f"_web._tcp.example={V4}", "--srv", "_web._tcp.nowhere=10.64.0.2", "--resolver", knot.address]
    result = clb_here("check", *options, "--cgroup", cgroup)
    assert result.returncode == 1
    assert "FAIL  srv:_web._tcp.nowhere: " in result.stdout
    assert f"ok    {SOURCE}: 1 real server at {V4}\n" in result.stdout


def test_services_that_opt_in_are_checked(instance: str, cgroup: Path, agent: ConsulAgent) -> None:
    """In catalog mode each service that opts in has its line, as in the plan, with the claims that were rejected."""
    options = ["--instance", instance, "--consul", agent.url, "--vip-range", "10.64.0.0/16"]
    result = clb_here("check", *options, "--cgroup", cgroup)
    assert "warn  catalog:consul: no service opts in; add the tag clb" in result.stdout
    assert result.returncode == 0
    registered = [
        agent.register(name, 80, host, Meta={"clb-vip": vips})
        for name, host, vips in (
            ("shop", "10.0.0.1", "10.64.0.1:80,10.99.0.1:80"),
            ("away", "10.0.0.2", "10.99.0.2:80"),
            ("none", "127.0.0.1", "10.64.0.3:80"),
        )
    ]
    registered.append(agent.register("plain", 80, "10.0.0.4"))
    try:
        result = clb_here("check", *options, "--cgroup", cgroup)
        planned = json.loads(clb_here("plan", "--json", *options).stdout)
    finally:
        for service in registered:
            agent.deregister(service)
    assert said_by_check(result, "consul:shop")[0] == {"10.64.0.1:80": 1}
    assert any("VIP 10.99.0.1:80 is outside" in line for line in said_by_check(result, "consul:shop")[1])
    assert said_by_check(result, "consul:none")[0] == {"10.64.0.3:80": 0}
    assert "FAIL  consul:away: it gets no VIP" in result.stdout
    assert "plain" not in result.stdout
    assert {change["service"]: len(change["added"]) for change in planned["changes"]} == {"shop": 1, "none": 0}
    assert {(item["service"], item["server"]) for item in planned["refused"]} == {
        ("shop", "VIP 10.99.0.1:80"),
        ("away", "VIP 10.99.0.2:80"),
        ("none", "127.0.0.1:80"),
    }


def test_services_beyond_the_limit_are_reported(instance: str, cgroup: Path, agent: ConsulAgent) -> None:
    """Services beyond --max-services are not part of a plan; check and plan name them."""
    options = ["--instance", instance, "--consul", agent.url, "--vip-range", "10.64.0.0/16", "--max-services", "1"]
    registered = [
        agent.register(name, 80, "10.0.0.1", Meta={"clb-vip": vip})
        for name, vip in (("shop", "10.64.0.1:80"), ("store", "10.64.0.2:80"), ("web", "10.64.0.3:80"))
    ]
    try:
        result = clb_here("check", *options, "--cgroup", cgroup)
        planned = json.loads(clb_here("plan", "--json", *options).stdout)
    finally:
        for service in registered:
            agent.deregister(service)
    assert "warn  catalog:consul: 2 services are not followed" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("1 warning")
    assert [change["service"] for change in planned["changes"]] == ["shop"]
    (note,) = planned["notes"]
    assert note["service"] == "catalog"
    assert "--max-services" in note["note"]
    assert note["note"].endswith("'store', 'web'")


def as_nobody(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as an ordinary user."""
    command = [sys.executable, "-m", "tests.programs.as_nobody", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=patient(60))


def test_check_without_privileges_counts_servers(knot: KnotServer) -> None:
    """Check does what is possible without root: the exit code reports what is missing, and the numbers are there."""
    knot.write("_web._tcp SRV 0 1 80 a\na A 10.0.0.1")
    result = as_nobody("check", "--srv", f"_web._tcp.example={V4}", "--resolver", knot.address)
    assert (result.returncode, result.stderr) == (3, "")
    assert f"ok    {SOURCE}: 1 real server at {V4}\n" in result.stdout


def test_file_is_checked_by_an_ordinary_user(knot: KnotServer) -> None:
    """Without privileges the exit code is that of the file and its sources, and the checks left out are named."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "clb.toml"
        file.write_text(f'resolver = ["{knot.address}"]\nsrv = ["_web._tcp.example={V4}"]\n')
        for zone, code, line in (
            ("_web._tcp SRV 0 1 80 a\na A 10.0.0.1", 0, f"ok    {SOURCE}: 1 real server at {V4}"),
            ("_web._tcp SRV 0 1 80 a\na A 127.0.0.1", 1, f"FAIL  {SOURCE}: no real server at {V4}"),
        ):
            knot.write(zone)
            result = as_nobody("check", "--config", file)
            assert (result.returncode, result.stderr) == (code, "")
            assert f"ok    configuration: {file}: 1 service\n" in result.stdout
            assert f"skip  this host: {LOOKED_AT} are not checked: CAP_PERFMON, " in result.stdout
            assert line in result.stdout
            assert result.stdout.splitlines()[-1].endswith("1 not checked")
        knot.purge()
        result = as_nobody("plan", "--offline", "--config", file)
        assert (result.returncode, result.stderr) == (2, "")
        assert result.stdout.startswith(f"+ {V4}/tcp  web ({SOURCE})  (real servers not queried)\n")


def test_without_proc_each_check_that_needs_it_says_so(knot: KnotServer) -> None:
    """Without /proc there is no internal error: check names what it cannot read and how to fix it."""
    knot.write("_web._tcp SRV 0 1 80 a\na A 10.0.0.1")
    options = ["--srv", f"_web._tcp.example={V4}", "--resolver", knot.address]
    result = in_own_mounts("mount -t tmpfs none /proc", *COMMAND, "check", *options)
    assert (result.returncode, result.stderr) == (3, "")
    for what in ("privileges", "cgroup v2", "BPF file system"):
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"FAIL  {what}: "))
        assert line.endswith("is /proc mounted? mount -t proc proc /proc")
    assert f"ok    {SOURCE}: 1 real server at {V4}\n" in result.stdout


def test_files_that_the_user_of_the_units_cannot_read(directory: Path, config: Path) -> None:
    """Root can read each file, so check tests them as the units' user, if there is one, and gives the fix."""
    token, closed = directory / "token", directory / "closed"
    closed.mkdir(mode=0o700)
    token.write_text("secret")
    config.write_text(f'consul-token-file = "{token}"\nconsul = true\nservice = ["web=10.64.0.1:80"]\n')
    users = directory / "passwd"
    users.write_text(f"{Path('/etc/passwd').read_text()}clb-discovery:x:64997:64997::/:/bin/false\n")
    options = ["check", "--offline", "--config", str(config)]

    def warned() -> list[str]:
        result = in_own_mounts(f"mount --bind {users} /etc/passwd", *COMMAND, *options)
        assert result.returncode == 0, result.stdout
        return [line for line in result.stdout.splitlines() if "the user clb-discovery" in line]

    assert warned() == []
    token.chmod(0o600)
    config.chmod(0o640)
    assert warned() == [
        f"warn  configuration: {file}: the user clb-discovery of the systemd units cannot read it; "
        f"run: chgrp clb-discovery {file} && chmod g+r {file}"
        for file in (config, token)
    ]
    for file in (config, token):
        os.chown(file, 0, 64997)
        file.chmod(0o640)
    assert warned() == []
    closed_config = closed / "clb.toml"
    config.rename(closed_config)
    options[-1] = str(closed_config)
    (line,) = warned()
    assert line == (
        f"warn  configuration: {closed_config}: the user clb-discovery of the systemd units cannot enter {closed}; "
        "move it to another directory, such as /etc/clb-discovery"
    )


def test_cgroup_of_another_loader(instance: str, cgroup: Path) -> None:
    """With --loader none, check looks at the cgroup of the last load, and refuses --cgroup as run does."""
    load(instance, cgroup)
    options = ["--loader", "none", "--instance", instance]
    result = clb_here("check", *options)
    assert f"ok    cgroup v2: {cgroup}\nok" in result.stdout
    assert f"ok    data plane of instance {instance}: effective in {cgroup}\n" in result.stdout
    assert result.returncode == 0
    options += ["--cgroup", str(cgroup)]
    result, run = clb_here("check", *options), clb("run", *options, "--srv", "_web._tcp.example=10.64.0.1:80")
    reason = "--loader none ignores --cgroup, because another process loads; use: clb-discovery load --cgroup PATH"
    assert reason in result.stderr
    assert reason in run.stderr
    assert result.returncode == run.returncode == 2


def test_lines_are_folded_on_a_narrow_terminal(cgroup: Path, knot: KnotServer) -> None:
    """On a terminal of 80 columns nothing is cut off: the cause of a failure can be read to its end."""
    knot.write("@ TXT nothing")
    options = ["--srv", f"_web._tcp.example={V4}", "--resolver", knot.address, "--cgroup", str(cgroup)]
    with on_terminal([*COMMAND, "check", *options], {}, columns=80) as terminal:
        assert terminal.end() == 1
        lines = terminal.text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "the name does not exist (NXDOMAIN); is it right, and complete?" in " ".join(map(str.strip, lines))


@pytest.mark.parametrize("wrong", ["redsi", "REDIS-CASH", "x[2J", "nothing-like-it"])
def test_service_that_consul_does_not_know_fails(instance: str, cgroup: Path, agent: ConsulAgent, wrong: str) -> None:
    """Check fails, and plan notes it, with the nearest names that Consul knows, if any; run waits for the service."""
    names = ("redis", "redis-cache", "web", "x\x1b[2J")
    known = [agent.register(name, 80, "10.0.0.1", service_id=f"known-{place}") for place, name in enumerate(names)]
    options = ["--consul", agent.url, "--service", f"{wrong}={V4}"]
    try:
        checked, planned = clb_here("check", *options, "--cgroup", cgroup), clb_here("plan", *options)
        ran = clb("run", "--once", *options, "--instance", instance, "--cgroup", cgroup)
    finally:
        for service in known:
            agent.deregister(service)
    assert (checked.returncode, planned.returncode, ran.returncode) == (1, 2, 0)
    (line,) = said_by_check(checked, f"consul:{wrong}").failures
    suggested = {
        "redsi": "did you mean 'redis'?",
        "REDIS-CASH": "did you mean 'redis-cache' or 'redis'?",
        "x[2J": r"did you mean 'x\x1b[2J'?",
    }
    cause = f"Consul at {agent.url} has no service {wrong!r}; "
    assert line.endswith(cause + suggested.get(wrong, "is the name right, and the datacenter?"))
    assert f"! {wrong}: {cause}" in planned.stdout
    assert checked.stdout.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("status", "options", "words"),
    [
        ("critical", [], "discovery returned none: 1 is critical or in maintenance, and no other can be used"),
        ("passing", ["--tag", "blue"], "discovery returned none: no instance of 'redis' fits the tags and the filter"),
        ("passing", ["--filter", 'Service.ID == "x"'], "no instance of 'redis' fits the tags and the filter"),
    ],
)
def test_service_without_a_usable_instance_fails(
    cgroup: Path, agent: ConsulAgent, status: str, options: list[str], words: str
) -> None:
    """If Consul knows the service, in whatever case, but no instance can be used, check gives that reason."""
    known = agent.register("Redis", 80, "10.0.0.1", status=status)
    try:
        given = ["--consul", agent.url, "--service", f"redis={V4}", *options]
        checked = clb_here("check", *given, "--cgroup", cgroup)
    finally:
        agent.deregister(known)
    (line,) = said_by_check(checked, "consul:redis").failures
    assert words in line


def test_name_that_is_given_twice_is_served_at_all_its_vips(
    instance: str, cgroup: Path, knot: KnotServer, agent: ConsulAgent
) -> None:
    """VIPs of one name add up, for SRV records and for services in Consul, in check, plan and run."""
    knot.write("_web._tcp SRV 0 1 80 a\na A 10.0.0.1\na AAAA fd00::1")
    once = ["--srv", f"_web._tcp.example={V4},{V6}", "--resolver", knot.address]
    case = Case("", {V4: 1, V6: 1, "10.64.0.2:81": 1}, options=["--srv", f"_web._tcp.example={V4},10.64.0.2:81"])
    assert_agreement(instance, cgroup, case, once, SOURCE)
    assert clb("unload", "--instance", instance).returncode == 0
    registered = agent.register("redis", 6379, "10.0.0.1")
    try:
        case = Case("", {V4: 1, "10.64.0.2:81": 1}, options=["--service", "redis=10.64.0.2:81"])
        given = ["--consul", agent.url, "--service", f"redis={V4}"]
        assert_agreement(instance, cgroup, case, given, "consul:redis")
    finally:
        agent.deregister(registered)
