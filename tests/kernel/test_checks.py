"""Active checks: what applications see of a server that hangs, with the real sidecar."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from tests.support.dataplane import dial
from tests.support.pace import patient
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, clb, sidecar, status
from tests.support.spares import loaded_instance
from tests.support.tls import Authority
from tests.support.web import get
from tests.support.web_servers import WebServer, web_servers

instance = loaded_instance

RARE: Final = 'check = "http://web.example/health"\ncheck-interval = "1h"\nfall = 1\nrise = 1\n'
"""A check that comes once in a test, unless something hurries it."""
VIP: Final = "10.64.0.1"
VIP6: Final = "fd00:64::1"
INTERVAL, TIMEOUT, RISE, FALL = 0.3, 0.2, 2, 3
CHECK: Final = f"""
check = "http://web.example/health"
check-interval = "{INTERVAL}"
check-timeout = "{TIMEOUT}"
rise = {RISE}
fall = {FALL}
"""
SHORT: Final = 'eject-time = "1s"\neject-max = "1s"\n'
SLACK: Final = patient(4.0)
"""Seconds for a busy machine."""


def service(servers: Sequence[WebServer], *, vip: str = f"{VIP}:80", more: str = CHECK) -> str:
    """Return a configuration with one service."""
    names = ", ".join(f'"{server.name}"' for server in servers)
    head = 'real-range = ["127.0.0.0/8", "::1/128"]\n'
    return f'{head}[[service]]\nname = "web"\nvip = "{vip}"\nservers = [{names}]\n{more}\n'


def real_servers(instance: str) -> dict[str, dict[str, Any]]:
    """Return the part of `status` about the real servers, by name."""
    (virtual,) = status(instance)["virtual_servers"]
    found = virtual["real_servers"]
    names = (f"[{one['address']}]" if ":" in one["address"] else one["address"] for one in found)
    return {f"{name}:{one['port']}": one for name, one in zip(names, found, strict=True)}


def connects(instance: str) -> dict[str, int]:
    """Return how many connects the programs have sent to each real server."""
    return {name: one["connects"] for name, one in real_servers(instance).items()}


def failing(instance: str) -> set[str]:
    """Return the names of the real servers that fail their checks."""
    return {name for name, one in real_servers(instance).items() if one["check_failure"]}


def wait_for_events(found: Sidecar, event: str, servers: Sequence[WebServer]) -> None:
    """Wait until the log has this event about exactly these servers."""
    names = {server.name for server in servers}
    found.wait_for(lambda: names <= {line["server"] for line in found.lines() if line["event"] == event}, event)


def stop_and_check(found: Sidecar, cgroup: Path, instance: str, server: WebServer) -> None:
    """Stop a server, and wait until a failed connect has hurried its check."""
    server.stop()
    dial(cgroup, VIP, 80, 30)
    found.wait_for(lambda: failing(instance) == {server.name}, "it was checked")


def lines(found: Sidecar, event: str) -> list[dict[str, Any]]:
    """Return the lines of the log with this event."""
    return [line for line in found.lines() if line["event"] == event]


def metrics(port: int) -> list[str]:
    """Return the option for metrics at this port."""
    return ["--metrics", f"127.0.0.1:{port}"]


def wait_for_probes(found: Sidecar, port: int, count: int) -> None:
    """Wait until so many probes have reached a real server: only then a failed one is evidence."""
    expected = f'clb_probes_total{{result="up"}} {count:.1f}'
    found.wait_for(lambda: expected in get(port, "/metrics").splitlines(), "every server was reached once")


@pytest.mark.parametrize(("vip", "host"), [(VIP, "127.0.0.1"), (VIP6, "::1")])
def test_a_hung_server_is_out_and_comes_back(
    cgroup: Path, instance: str, directory: Path, config: Path, *, vip: str, host: str
) -> None:
    """After `fall` checks no connect reaches it; after `rise` passed checks it takes connects again."""
    with web_servers(*[host] * 3) as servers:
        config.write_text(service(servers, vip=f"[{vip}]:80" if ":" in vip else f"{vip}:80"))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            assert dial(cgroup, vip, 80, 60) == ["ok"] * 60
            assert all(connects(instance).values())
            hung = servers[1]
            hung.hangs, began = True, time.monotonic()
            wait_for_events(found, "server ejected", [hung])
            assert time.monotonic() - began < (FALL + 1) * INTERVAL + TIMEOUT + SLACK
            before = connects(instance)[hung.name]
            end = time.monotonic() + 4  # longer than a lease, which is renewed
            while time.monotonic() < end:
                assert dial(cgroup, vip, 80, 100) == ["ok"] * 100
            assert connects(instance)[hung.name] == before
            (line,) = lines(found, "server ejected")
            assert (line["server"], line["service"]) == (hung.name, "web")
            assert line["cause"] == f"check: no answer within {TIMEOUT:g} s"
            shown = {name: (one["state"], one["check_failure"]) for name, one in real_servers(instance).items()}
            assert shown.pop(hung.name) == ("ejected", f"no answer within {TIMEOUT:g} s")
            assert set(shown.values()) == {("active", None)}
            hung.hangs, began = False, time.monotonic()
            wait_for_events(found, "server returned", [hung])
            assert time.monotonic() - began < (RISE + 1) * INTERVAL + TIMEOUT + SLACK
            assert dial(cgroup, vip, 80, 100) == ["ok"] * 100
            assert connects(instance)[hung.name] > before


def test_a_broken_check_leaves_half_of_the_pool(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """All four fail their checks: two go on taking connects."""
    with web_servers(*["127.0.0.1"] * 4) as servers:
        config.write_text(service(servers))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            for server in servers:
                server.status = 503
            found.wait_for(lambda: len(lines(found, "server ejected")) == 2, "two are out")
            before = connects(instance)
            assert dial(cgroup, VIP, 80, 100) == ["ok"] * 100
            used = {name for name, count in connects(instance).items() if count > before[name]}
            out = {line["server"] for line in lines(found, "server ejected")}
            assert used == {server.name for server in servers} - out
            assert {line["cause"] for line in lines(found, "server ejected")} == {"check: HTTP 503"}


def test_checks_and_failed_connects_leave_half_of_the_pool_together(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """Two of four are ejected by connects, so the others stay although they fail their checks, until those are back."""
    hosts, port = [f"127.0.0.{number}" for number in range(2, 6)], free_port()
    check = CHECK.replace("web.example", f"web.example:{port}") + "eject-after = 1\n" + SHORT
    with web_servers(*hosts) as servers, web_servers(*hosts, port=port) as monitors:
        config.write_text(service(servers, more=check))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            for server in servers[:2]:
                server.stop()
            dial(cgroup, VIP, 80, 60)
            wait_for_events(found, "server ejected", servers[:2])
            for monitor in monitors[2:]:
                monitor.status = 503
            fail = {server.name for server in servers[2:]}
            found.wait_for(lambda: fail <= failing(instance), "they fail their checks")
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert dial(cgroup, VIP, 80, 50).count("ok") >= 45  # a connect may probe an ejected one
            assert {line["server"] for line in lines(found, "server ejected")}.isdisjoint(fail)
            for server in servers[:2]:
                server.start()
            wait_for_events(found, "server ejected", servers[2:])
            assert dial(cgroup, VIP, 80, 100) == ["ok"] * 100


def test_without_a_sidecar_the_lease_ends(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """A sidecar that is killed keeps no server out for longer than three intervals, or three seconds."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            servers[0].status = 404
            wait_for_events(found, "server ejected", servers[:1])
            found.kill()
            killed, before = time.monotonic(), connects(instance)[servers[0].name]

        def takes() -> bool:
            assert set(dial(cgroup, VIP, 80, 10)) == {"ok"}
            return connects(instance)[servers[0].name] > before

        wait_until(takes, "it takes connects again")
        assert time.monotonic() - killed < max(3 * INTERVAL, 3) + SLACK


def test_a_restarted_sidecar_keeps_a_hung_server_out(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """It takes over the lease that the previous one has left, also with another check: no connect comes through."""
    interval = patient(2)  # an emulated machine takes long to start a sidecar, and the lease has to last
    slow = CHECK.replace(f'"{INTERVAL}"', f'"{interval}"')
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            servers[0].hangs = True
            wait_for_events(found, "server ejected", servers[:1])
            before = connects(instance)[servers[0].name]
            config.write_text(service(servers, more=slow))
            found.process.send_signal(signal.SIGHUP)
            found.wait_for(lambda: "configuration reloaded" in found.events(), "it is reloaded")
            time.sleep(interval + TIMEOUT + 1)  # until a slow check has renewed the lease
            assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
            assert found.stop() == 0
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            wait_for_events(found, "server ejected", servers[:1])
            for _ in range(8):
                assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
                time.sleep(0.5)
            assert connects(instance)[servers[0].name] == before
            servers[0].hangs = False
            wait_for_events(found, "server returned", servers[:1])


def test_a_restarted_sidecar_probes_what_connects_have_ejected(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """The verdict of a probe that the previous one has left says nothing of the check, which comes once in an hour."""
    more = RARE.replace("fall = 1", "fall = 3") + 'eject-time = "1m"\n'
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers, more=more))
        with sidecar(instance, cgroup, directory, ["--config", str(config), *metrics(port := free_port())]) as found:
            wait_for_probes(found, port, 3)
            servers[0].stop()
            dial(cgroup, VIP, 80, 30)
            wait_for_events(found, "server ejected", servers[:1])
            (line,) = lines(found, "server ejected")
            assert line["cause"] == "a failed connect, refused, and a failed probe"
            assert found.stop() == 0
        servers[0].start()
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            wait_for_events(found, "server returned", servers[:1])
            line = lines(found, "server ejected")[-1]
            assert line["cause"].endswith("before this sidecar started")
            assert "check" not in line["cause"]
            before = connects(instance)[servers[0].name]
            assert dial(cgroup, VIP, 80, 60) == ["ok"] * 60
            assert connects(instance)[servers[0].name] > before


def test_status_and_metrics_show_checks(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """While the sidecar runs, which alone knows their results."""
    with web_servers(*["127.0.0.1"] * 2) as servers:
        config.write_text(service(servers))
        port = free_port()
        options = ["--config", str(config), "--metrics", f"127.0.0.1:{port}"]
        with sidecar(instance, cgroup, directory, options) as found:
            (virtual,) = status(instance)["virtual_servers"]
            assert virtual["check"] == f"http://web.example/health every {INTERVAL:g} s"
            servers[0].status = 500
            found.wait_for(lambda: real_servers(instance)[servers[0].name]["check_failure"] == "HTTP 500", "it shows")
            assert "1 of 2 real servers fail their checks" in clb("status", "--instance", instance, "--problems").stdout
            scrape = get(port, "/metrics")
            counts = dict(
                re.findall(r'^clb_checks_total{result="(\w+)",service="web"} ([\d.]+)$', scrape, re.MULTILINE)
            )
            assert float(counts["passed"]) > 0
            assert float(counts["failed"]) >= FALL
            assert re.findall(r'^clb_check_failing{.*real_server="(.+)"} 1$', scrape, re.MULTILINE) == [servers[0].name]
            kept_out = f'real_server="{servers[0].name}"}} 1'
            found.wait_for(
                lambda: re.findall("^clb_kept_out{.*,(.*)", get(port, "/metrics"), re.MULTILINE) == [kept_out], "out"
            )
        assert real_servers(instance)[servers[0].name]["check_failure"] is None


def test_tiers_go_out_whole(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """If all servers of the first priority fail and one of the next passes, that one takes over."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        text = service(servers)
        last = servers[2].name
        config.write_text(text.replace(f'"{last}"', f'{{ address = "{last}", priority = 1 }}'))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            assert dial(cgroup, VIP, 80, 20) == ["ok"] * 20
            assert connects(instance)[last] == 0
            for server in servers[:2]:
                server.hangs = True
            wait_for_events(found, "server ejected", servers[:2])
            before = connects(instance)
            assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
            assert connects(instance) == {**before, last: before[last] + 50}


def test_a_check_by_connect_finds_a_server_that_refuses(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """Before any application meets it; and passive health stays as it is."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers, more=CHECK.replace("http://web.example/health", "tcp")))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            servers[0].stop()
            wait_for_events(found, "server ejected", servers[:1])
            assert dial(cgroup, VIP, 80, 100) == ["ok"] * 100
            assert sum(one["failures"] for one in real_servers(instance).values()) == 0
            (line,) = lines(found, "server ejected")
            assert line["cause"] == "check: Connection refused"


def test_a_server_that_accepts_again_stays_out_until_its_check_passes(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """Its connects failed, too, so passive health has ejected it; that they succeed again is not enough."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers, more=f'{CHECK}eject-after = 1\neject-time = "1s"\n'))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            servers[0].stop()
            dial(cgroup, VIP, 80, 50)
            found.wait_for(lambda: failing(instance) == {servers[0].name}, "the check has failed")
            before = connects(instance)[servers[0].name]
            servers[0].status = 503
            servers[0].start()
            end = time.monotonic() + 5
            while time.monotonic() < end:
                assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
            assert connects(instance)[servers[0].name] == before
            servers[0].status = 200

            def takes() -> bool:
                assert set(dial(cgroup, VIP, 80, 10)) == {"ok"}
                return connects(instance)[servers[0].name] > before

            found.wait_for(takes, "it takes connects again")


def test_a_server_that_fails_connects_and_checks_has_one_line_each_way(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """Whichever notices first; the line about its return comes when both have no objection."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers, more=f"{CHECK}eject-after = 1\n{SHORT}"))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            for returns in range(1, 3):
                servers[0].stop()
                dial(cgroup, VIP, 80, 50)
                found.wait_for(lambda: failing(instance) == {servers[0].name}, "its check fails")
                assert dial(cgroup, VIP, 80, 50).count("ok") >= 45  # a connect may probe it
                servers[0].start()
                found.wait_for(lambda: len(lines(found, "server returned")) == returns, "it returns")  # noqa: B023 - now
                assert len(lines(found, "server ejected")) == returns
            assert {line["server"] for line in lines(found, "server ejected")} == {servers[0].name}


def test_a_failed_connect_hurries_the_check(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """The server is checked at once, and not an interval later."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers, more=RARE))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            stop_and_check(found, cgroup, instance, servers[0])


def test_a_server_that_is_ejected_and_fails_its_check_is_recalled(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """The last one in use fails when it is back: a connect finds that out, long before its next check."""
    with web_servers(*["127.0.0.1"] * 2) as servers:
        config.write_text(service(servers, more=RARE + "suspicion = false\n"))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            stop_and_check(found, cgroup, instance, servers[0])
            servers[0].start()
            servers[1].stop()
            wait_until(lambda: dial(cgroup, VIP, 80, 10) == ["ok"] * 10, "it is back")


def test_one_passed_check_is_enough_while_the_others_fail(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """The last one in use fails while another one works again, and would need minutes to pass `rise` checks."""
    check = 'check = "http://web.example/health"\ncheck-interval = "2s"\nfall = 1\nrise = 100\n'
    with web_servers(*["127.0.0.1"] * 2) as servers:
        config.write_text(service(servers, more=check))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            servers[0].hangs = True
            wait_for_events(found, "server ejected", servers[:1])
            servers[0].hangs = False
            servers[1].stop()
            wait_until(lambda: dial(cgroup, VIP, 80, 10) == ["ok"] * 10, "it is back")


def test_checks_begin_and_end_with_a_reload(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """A service that wants no checks any more has all of its servers, at the latest when the lease is over."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        servers[0].hangs = True
        config.write_text(service(servers, more=""))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            assert dial(cgroup, VIP, 80, 60) == ["ok"] * 60
            assert connects(instance)[servers[0].name]
            config.write_text(service(servers))
            found.process.send_signal(signal.SIGHUP)
            wait_for_events(found, "server ejected", servers[:1])
            before = connects(instance)[servers[0].name]
            assert dial(cgroup, VIP, 80, 60) == ["ok"] * 60
            assert connects(instance)[servers[0].name] == before
            config.write_text(service(servers, more=""))
            found.process.send_signal(signal.SIGHUP)

            def takes() -> bool:
                assert set(dial(cgroup, VIP, 80, 10)) == {"ok"}
                return connects(instance)[servers[0].name] > before

            wait_until(takes, "it takes connects again")


def test_a_reload_reads_certificate_authorities(
    cgroup: Path, instance: str, directory: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one nothing is known of a server; with one, a server without TLS fails its checks."""
    bundle = config.parent / "bundle.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    with web_servers("127.0.0.1") as servers:
        config.write_text(service(servers, more=CHECK.replace("http:", "https:")))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            found.wait_for(lambda: bool(lines(found, "servers cannot be checked")), "there is no authority")
            assert failing(instance) == set()
            Authority(config.parent, "bundle")
            found.reload()
            found.wait_for(lambda: failing(instance) == {servers[0].name}, "it is checked")


@pytest.mark.parametrize("time_out", ["1s", "1m"], ids=["its probe has passed", "its next probe is due in a minute"])
def test_a_check_that_is_removed_keeps_no_ejected_server_out(
    cgroup: Path, instance: str, directory: Path, config: Path, *, time_out: str
) -> None:
    """Its lease would last for hours, and the kernel looks at it because connects have ejected the server, too."""
    ejection = f'eject-time = "{time_out}"\n'
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers, more=RARE + ejection))
        with sidecar(instance, cgroup, directory, ["--config", str(config), *metrics(port := free_port())]) as found:
            wait_for_probes(found, port, 3)
            servers[0].stop()
            dial(cgroup, VIP, 80, 30)
            found.wait_for(lambda: failing(instance) == {servers[0].name}, "its check fails")
            servers[0].status = 503
            servers[0].start()
            if time_out == "1s":
                wait_for_probes(found, port, 4)
            before = connects(instance)[servers[0].name]
            assert dial(cgroup, VIP, 80, 30) == ["ok"] * 30
            assert connects(instance)[servers[0].name] == before
            config.write_text(service(servers, more=ejection))
            found.reload()
            began = time.monotonic()

            def takes() -> bool:
                assert set(dial(cgroup, VIP, 80, 10)) == {"ok"}
                return connects(instance)[servers[0].name] > before

            found.wait_for(takes, "it takes connects again")
            assert time.monotonic() - began < 2 + SLACK
            wait_for_events(found, "server returned", servers[:1])


def test_verdicts_outlive_a_publication(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """A hung server stays out while others join and leave."""
    with web_servers(*["127.0.0.1"] * 5) as servers:
        config.write_text(service(servers[:4]))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            servers[0].hangs = True
            wait_for_events(found, "server ejected", servers[:1])
            before = connects(instance)[servers[0].name]
            for turn in range(6):
                published = found.events().count("pool published")
                config.write_text(service([*servers[:3], servers[4 - turn % 2]]))
                found.process.send_signal(signal.SIGHUP)
                wait_until(lambda: found.events().count("pool published") > published, "it publishes")  # noqa: B023 - now
                assert dial(cgroup, VIP, 80, 40) == ["ok"] * 40
            assert connects(instance)[servers[0].name] == before


def test_a_hung_server_stays_out_in_maps_that_are_made_anew(
    cgroup: Path, instance: str, directory: Path, config: Path
) -> None:
    """Its next check comes in an hour, and until then the new maps need the verdict of the last one."""
    with web_servers(*["127.0.0.1"] * 3) as servers:
        config.write_text(service(servers, more=RARE))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            stop_and_check(found, cgroup, instance, servers[0])
            servers[0].start()  # so that a connect does not put it out
            Pins(instance).remove()
            found.wait_for(lambda: found.events().count("pool published") == 2, "it fills new maps")
            assert failing(instance) == {servers[0].name}
            wait_until(lambda: real_servers(instance)[servers[0].name]["state"] == "ejected", "the verdict is there")
            before = connects(instance)[servers[0].name]
            assert dial(cgroup, VIP, 80, 40) == ["ok"] * 40
            assert connects(instance)[servers[0].name] == before


def test_other_services_are_not_steered(cgroup: Path, instance: str, directory: Path, config: Path) -> None:
    """The flag is that of the service: connects to others do not pay for it."""
    other = '[[service]]\nname = "plain"\nvip = "10.64.0.2:80"\nservers = ["127.0.0.1:9"]\n'
    with web_servers(*["127.0.0.1"] * 2) as servers:
        config.write_text(service(servers) + other)
        with sidecar(instance, cgroup, directory, ["--config", str(config)]), Maps(Pins(instance)) as maps:
            installed = maps.read().virtual
    checked = {str(vip): one.health.checked for vip, one in installed.items() if one.health}
    assert (checked[f"{VIP}:80"], checked["10.64.0.2:80"]) == (True, False)
