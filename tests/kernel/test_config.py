"""`--config`: a file has all that options can express, and more; SIGHUP reloads it, and a bad one changes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from clb_discovery.sources.consul.environment import OPTIONS as OPTION_OF
from tests.support import namespaces
from tests.support.cgroups import remove
from tests.support.consul import ConsulAgent, make_tls
from tests.support.dataplane import dial, snapshot
from tests.support.knot import KnotServer
from tests.support.listeners import Listener, listening
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, clb, clb_here, pool, sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

LDAP, WEB = "10.64.0.2", "10.64.0.1"
OPTIONS: Final = 'real-range = ["127.0.0.0/8"]\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the path of the configuration file."""
    return tmp_path / "clb.toml"


def static(name: str, vip: str, servers: Sequence[Listener | str], *more: str) -> str:
    """Return the table of a service with static servers."""
    names = ", ".join(f'"{server if isinstance(server, str) else server.name}"' for server in servers)
    return "\n".join(["[[service]]", f'name = "{name}"', f'vip = "{vip}"', f"servers = [{names}]", *more, ""])


def services(instance: str) -> dict[str, str]:
    """Return the service of each VIP."""
    return {server["address"]: server["service"] for server in status(instance)["virtual_servers"]}


@contextmanager
def following(config: Path, instance: str, cgroup: Path, *options: str) -> Iterator[Sidecar]:
    """Run a sidecar with the file."""
    with sidecar(instance, cgroup, config.parent, ["--config", str(config), *options]) as found:
        yield found


def reload(found: Sidecar, *, refused: bool = False) -> None:
    """Send SIGHUP and wait until the sidecar has logged the result."""
    event = "configuration reload failed; keeping the previous one" if refused else "configuration reloaded"
    before = found.events().count(event)
    found.process.send_signal(signal.SIGHUP)
    found.wait_for(lambda: found.events().count(event) > before, event)


def test_static_servers_beside_discovery(instance: str, cgroup: Path, config: Path) -> None:
    """A file alone configures a static service and one from DNS, each with its own settings."""
    with KnotServer() as knot, listening("127.0.0.1", "127.0.0.2", "127.0.0.3") as (one, two, three):
        knot.write(f"_web._tcp SRV 0 1 {three.port} t\nt A 127.0.0.3")
        config.write_text(
            f'{OPTIONS}resolver = ["{knot.address}"]\nhold = 5\nalgorithm = "round-robin"\n'
            + static("ldap", LDAP, [one, two], 'algorithm = "least-conn"', "eject-after = 0")
            + f'[[service]]\nname = "shop"\nsrv = "_web._tcp.example"\nvip = "{WEB}:80"\n'
        )
        with following(config, instance, cgroup):
            assert dial(cgroup, LDAP, 389, 20) == dial(cgroup, WEB, 80, 20) == ["ok"] * 20
            assert [min(server.taken(), 1) for server in (one, two, three)] == [1, 1, 1]
            assert services(instance) == {LDAP: "ldap", WEB: "shop"}
            found = {server["service"]: server["algorithm"] for server in status(instance)["virtual_servers"]}
            assert found == {"ldap": "least-conn", "shop": "round-robin"}
            sources = {source["name"]: source["state"] for source in status(instance)["sources"]}
            assert sources == {"static:ldap": "fresh", "srv:_web._tcp.example": "fresh"}


def test_command_line_wins(instance: str, cgroup: Path, config: Path) -> None:
    """Options replace entries of the file: a value, a repeated option, and a service of the same source."""
    with KnotServer() as knot:
        knot.write("_web._tcp SRV 0 1 80 t\nt A 127.0.0.1")
        config.write_text(
            'algorithm = "round-robin"\nreal-range = ["10.0.0.0/8"]\nresolver = ["127.0.0.1:1"]\n'
            '[[service]]\nname = "web"\nsrv = "_web._tcp.example"\nvip = "10.64.0.9"\n'
        )
        typed = ["--algorithm", "random", "--real-range", "127.0.0.0/8", "--resolver", knot.address]
        with following(config, instance, cgroup, *typed, "--srv", f"_web._tcp.example={WEB}"):
            (server,) = status(instance)["virtual_servers"]
        assert (server["address"], server["algorithm"]) == (WEB, "random")
        assert [real["address"] for real in server["real_servers"]] == ["127.0.0.1"]


def test_sighup_applies_changes(instance: str, cgroup: Path, config: Path) -> None:
    """With SIGHUP services come, go and change; others are not touched, and their connects go on."""
    with listening("127.0.0.1", "127.0.0.2", "127.0.0.3") as (one, two, three):
        config.write_text(OPTIONS + static("web", WEB, [one]) + static("ldap", LDAP, [two]))
        with following(config, instance, cgroup) as found:
            assert dial(cgroup, WEB, 80, 5) == ["ok"] * 5
            before = {server["address"]: server["generation"] for server in status(instance)["virtual_servers"]}
            config.write_text(OPTIONS + static("web", WEB, [one]) + static("mail", "10.64.0.3", [three]))
            reload(found)
            wait_until(lambda: services(instance) == {WEB: "web", "10.64.0.3": "mail"}, "the new services are there")
            assert dial(cgroup, "10.64.0.3", 25) == ["ok"]
            web = next(server for server in status(instance)["virtual_servers"] if server["address"] == WEB)
            assert (web["generation"], web["connects"]) == (before[WEB], 5)

            config.write_text(OPTIONS + static("web", WEB, [two]) + static("mail", "10.64.0.3", [three]))
            reload(found)
            wait_until(lambda: pool(instance, WEB) == {two.name: 1}, "static servers count at once")
            config.write_text('real-range = ["10.0.0.0/8"]\n' + static("web", WEB, [two]))
            reload(found)
            wait_until(lambda: services(instance) == {WEB: "web"} and pool(instance, WEB) == {}, "options count, too")


def test_a_reload_publishes_the_lists_of_the_new_file_at_once(instance: str, cgroup: Path, config: Path) -> None:
    """Services that exchange their names keep their servers: no connect of either reaches the other one's."""
    with listening("127.0.0.1", "127.0.0.2") as (one, two):
        config.write_text(OPTIONS + static("web", WEB, [one]) + static("ldap", LDAP, [two]))
        with following(config, instance, cgroup) as found:
            config.write_text(OPTIONS + static("ldap", WEB, [one]) + static("web", LDAP, [two]))
            before = len(found.events())
            reload(found)
            wait_until(lambda: services(instance) == {WEB: "ldap", LDAP: "web"}, "the new names are there")
            assert (pool(instance, WEB), pool(instance, LDAP)) == ({one.name: 1}, {two.name: 1})
            assert "pool published" not in found.events()[before:]


def test_sighup_applies_changes_while_the_cgroup_is_gone(instance: str, cgroup: Path, config: Path) -> None:
    """A unit is stopped, the file changes, and the unit starts again: its connects are balanced by the new file."""
    shop = cgroup / "shop"
    shop.mkdir()
    with listening("127.0.0.1", "127.0.0.2") as (one, two):
        config.write_text(OPTIONS + static("web", WEB, [one]))
        with following(config, instance, shop) as found:
            remove(shop)  # a self-test may be in it
            config.write_text(OPTIONS + static("ldap", LDAP, [two]))
            reload(found)
            shop.mkdir()
            found.wait_for(lambda: "programs attached again" in found.events(), "the unit is balanced again")
            wait_until(lambda: services(instance) == {LDAP: "ldap"}, "the new service is there")
            assert dial(shop, LDAP, 389) == ["ok"]
    remove(shop)


def test_what_a_reload_removes_goes_although_a_new_service_never_answers(
    instance: str, cgroup: Path, config: Path
) -> None:
    """A source that fails keeps nobody else's removed servers in use, and its own VIP stays with who had it."""
    silent = f'resolver = ["127.0.0.1:{free_port()}"]\n'
    failing = '[[service]]\nname = "far"\nsrv = "_far._tcp.example"\nvip = "{}"\n'
    with listening(*["127.0.0.1"] * 3) as servers:
        tables = [static(name, f"10.64.0.{name}", [one]) for name, one in zip("123", servers, strict=True)]
        config.write_text(OPTIONS + silent + "".join(tables))
        with following(config, instance, cgroup) as found:
            assert set(services(instance)) == {"10.64.0.1", "10.64.0.2", "10.64.0.3"}
            config.write_text(OPTIONS + silent + tables[0] + failing.format("10.64.0.3"))
            reload(found)
            found.wait_for(lambda: "virtual server removed" in found.events(), "the removed service has gone")
            assert set(services(instance)) == {"10.64.0.1", "10.64.0.3"}
            assert dial(cgroup, "10.64.0.3", 389) == ["ok"]


def test_sighup_switches_to_other_servers_of_discovery(
    instance: str, cgroup: Path, config: Path, tmp_path: Path
) -> None:
    """SIGHUP switches to another Consul or resolver at once, even before the first answer, and cancels old queries."""
    tables = '[[service]]\nname = "web"\nsrv = "_web._tcp.example"\nvip = "10.64.0.1"\n'
    tables += '[[service]]\nname = "api"\nconsul = "api"\nvip = "10.64.0.4"\n'
    nobody = free_port()
    with KnotServer() as knot, ConsulAgent(tmp_path) as agent:
        knot.write("_web._tcp SRV 0 1 80 t\nt A 10.0.0.1")
        agent.register("api", 80, "10.0.0.2")
        config.write_text(f'consul = "http://127.0.0.1:{nobody}"\nresolver = ["127.0.0.1:{nobody}"]\n' + tables)
        with sidecar(instance, cgroup, tmp_path, ["--config", str(config)], ready=False) as found:
            found.wait_for(lambda: found.events().count("source fails") == 2, "both fail")
            config.write_text(f'consul = "{agent.url}"\nresolver = ["{knot.address}"]\n' + tables)
            reload(found)
            found.wait_for(lambda: "ready" in found.events(), "both have answered")
            assert pool(instance, WEB) == {"10.0.0.1:80": 1}
            assert pool(instance, "10.64.0.4") == {"10.0.0.2:80": 1}
            # No reload waits for the blocking query under way, nor for long for the service manager, which is this test
            # and reads nothing.
            for _ in range(8):
                reload(found)
            agent.register("api", 81, "10.0.0.3")
            wait_until(lambda: len(pool(instance, "10.64.0.4") or ()) == 2, "Consul is followed")
            assert len(list(Path(f"/proc/{found.process.pid}/fd").iterdir())) < 60
            assert found.stop() == 0
        errors = {line["event"] for line in found.lines() if line["level"] == "error"}
        assert errors <= {"cannot notify the service manager"}


def test_sighup_reads_the_files_that_options_name(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """SIGHUP reloads certificate authorities; an unusable file is rejected like any bad option."""
    (theirs := tmp_path / "theirs").mkdir()
    tls, authority, token = make_tls(tmp_path), tmp_path / "ca.pem", tmp_path / "token"
    authority.write_bytes(make_tls(theirs).authority.read_bytes())
    token.write_text("1ebf7f9a-93c8-4f1c-a1d6-6d2a9d7f0a11")
    options = ["--consul", f"https://127.0.0.1:{tls.port}", "--service", f"api={WEB}:80", "--consul-ca-file"]
    options += [str(authority), "--consul-token-file", str(token)]
    for variable in ("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY", "CONSUL_TLS_SERVER_NAME"):
        options += [OPTION_OF[variable], tls.client[variable]]
    with ConsulAgent(tmp_path, config=tls.config) as agent:
        agent.register("api", 80, "10.0.0.2")
        with sidecar(instance, cgroup, tmp_path, options, ready=False) as found:
            found.wait_for(lambda: "source fails" in found.events(), "the agent's certificate is not trusted")
            found.wait_for(
                lambda: "failed in TLS" in str(status(instance)["sources"][0]["error"]), "status has the cause"
            )
            authority.write_bytes(tls.authority.read_bytes())
            token.unlink()
            reload(found, refused=True)
            assert f"--consul-token-file '{token}'" in found.lines()[-1]["error"]
            token.write_text("1ebf7f9a-93c8-4f1c-a1d6-6d2a9d7f0a11")
            reload(found)
            found.wait_until_ready()
            assert pool(instance, WEB) == {"10.0.0.2:80": 1}


def test_bad_file_changes_nothing(instance: str, cgroup: Path, config: Path) -> None:
    """If a file is wrong or missing, log and status show line and reason; nothing changes until it is good again."""
    with listening("127.0.0.1") as (server,):
        config.write_text(OPTIONS + static("web", WEB, [server]))
        with following(config, instance, cgroup) as found:
            before = snapshot(instance)
            for text, words in (
                (OPTIONS + "[[service]\n", ["clb.toml: is not TOML", "line 2"]),
                (OPTIONS + static("web", "10.64.0.300", [server]), ["[[service]] 'web': vip: '10.64.0.300'"]),
                (OPTIONS + "[[service]]\nname = 'a'\nsrv = '..'\nvip = '10.64.0.5'\n", ["'..'", "record name"]),
                (
                    OPTIONS + static("web", WEB, [server]) + static("mail", WEB, ["127.0.0.2:1"]),
                    ["clb.toml: [[service]] 'web'", "clb.toml: [[service]] 'mail'", "is claimed by"],
                ),
                (
                    OPTIONS + static("web", WEB, [server]) + static("mail", LDAP, [f"{WEB}:25"]),
                    ["clb.toml: [[service]] 'web'", "clb.toml: [[service]] 'mail'", "has the address of the VIP"],
                ),
                (None, ["cannot read", "clb.toml", "No such file"]),
            ):
                config.write_text(text) if text is not None else config.unlink()
                reload(found, refused=True)
                line = found.lines()[-1]
                wait_until(lambda: status(instance)["sidecar"]["config_error"] == line["error"], "status says so")  # noqa: B023
                assert all(word in line["error"] for word in words), line
                assert "rejected, the previous one stays: " in clb_here("status", "--instance", instance).stdout
                after = snapshot(instance)
                assert (after.objects, after.installed) == (before.objects, before.installed)
                assert dial(cgroup, WEB, 80) == ["ok"]
            config.write_text(OPTIONS + static("web", WEB, [server]))
            reload(found)
            wait_until(lambda: status(instance)["sidecar"]["config_error"] is None, "status has forgotten")
            assert found.stop() == 0


def test_options_that_need_a_restart_are_reported(instance: str, cgroup: Path, config: Path) -> None:
    """An option that a running sidecar cannot change is named, and the others take effect."""
    config.write_text(OPTIONS + static("web", WEB, ["127.0.0.1:1"]))
    with following(config, instance, cgroup) as found:
        options = 'metrics = "127.0.0.1:17100"\ninstance = "other"\n' + OPTIONS
        config.write_text(options + static("mail", WEB, ["127.0.0.1:1"]))
        reload(found)
        (line,) = (line for line in found.lines() if line["event"] == "changed options need a restart")
        assert line["options"] == ["metrics"]  # the instance is on the command line, which wins
        wait_until(lambda: services(instance) == {WEB: "mail"}, "the rest has been taken")


def test_near_is_a_warning(instance: str, cgroup: Path, config: Path) -> None:
    """It has no effect on balancing, which the log has at the start and after each reload with it."""
    text = OPTIONS + static("web", WEB, ["127.0.0.1:1"])
    config.write_text('near = "_agent"\n' + text)
    with following(config, instance, cgroup) as found:
        (line,) = (line for line in found.lines() if line["event"] == "option has no effect")
        assert (line["level"], line["option"]) == ("warning", "--near")
        reload(found)
        assert found.events().count("option has no effect") == 2
        config.write_text(text)
        reload(found)
        assert found.events().count("option has no effect") == 2


def test_sighup_takes_the_level_of_the_log(instance: str, cgroup: Path, config: Path) -> None:
    """From then on the log has the new level and the new form."""
    text = OPTIONS + static("web", WEB, ["127.0.0.1:1"])
    config.write_text(text)
    with following(config, instance, cgroup) as found:
        config.write_text('log-level = "error"\n' + text)
        found.process.send_signal(signal.SIGHUP)
        found.manager.until("READY=1")
        assert found.events()[-1] == "ready"
        assert found.stop() == 0
        assert found.events()[-1] == "ready"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("real_range = []", ["clb.toml: unknown key 'real_range'", "did you mean real-range?"]),
        ('real-range = ["10.0.0.0/33"]', ["clb.toml: argument --real-range: '10.0.0.0/33'"]),
        ('hold = "long"', ["clb.toml: argument --hold: 'long'", "30s"]),
        ("instance =", ["clb.toml: is not TOML", "line 1"]),
        ("once = true", ["unknown key 'once'"]),
        ("", ["no service to follow"]),
        ('[[service]]\nname = "a"\nconsul = "a"', ["add --consul"]),
        ('[[service]]\nname = "a"\nservers = []\neject-time = "2m"', ["a: --eject-time 120000ms", "raise --eject-max"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_bad_file_is_wrong_usage(config: Path, command: str, text: str, words: list[str]) -> None:
    """A file that is wrong at the start is reported in one line, with exit code 2."""
    config.write_text(text)
    result = clb(command, "--config", config)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert all(word in result.stderr for word in words), result.stderr


def test_two_hosts_give_the_same_automatic_vips(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Sidecars in two network namespaces choose the same addresses, in any order of services, also if names clash."""
    names = [f"service-{number}" for number in range(12)]
    found = []
    with namespaces.by_mount() as one, namespaces.by_mount() as other:
        for host, order in ((one, names), (other, names[::-1])):
            config = tmp_path / f"{host.name}.toml"
            tables = [f'[[service]]\nname = "{name}"\nservers = ["127.0.0.1:1"]\n' for name in order]
            config.write_text(f'{OPTIONS}vip-range = ["10.9.0.0/28", "fd00:9::/64"]\n' + "".join(tables))
            wrapper = ["nsenter", f"--net={host}"]
            options = ["--config", str(config)]
            with sidecar(instance, cgroup, tmp_path, options, wrapper=wrapper):
                found.append(services(instance))
            assert clb("unload", "--instance", instance).returncode == 0
    assert found[0] == found[1]
    assert len(found[0]) == 2 * len(names)
