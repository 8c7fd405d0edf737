"""The first boot of a machine, and the commands of an administrator for its sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from clb_discovery.datapath.pins import BPFFS
from tests.support.consul import ACL_DENY, MASTER_TOKEN, ConsulAgent
from tests.support.process import wait_until
from tests.vm.systemd.guest.client import connect
from tests.vm.systemd.guest.host import (
    CONFIG,
    CONSUL_CONFIG,
    DATAPATH,
    SIDECAR_OF_APP,
    VIP4,
    VIP6,
    WRITER,
    Client,
    answers,
    config,
    configure_beside,
    edit,
    edited,
    has_logged,
    is_active,
    journal,
    moment,
    run,
    show,
    status,
    systemctl,
    wait_for_restart,
)

TOKEN: Final = Path("/etc/consul-token")
NEVER: Final = '[[service]]\nname = "never"\nvip = "10.64.0.8:80"\ndns = "never.example:80"\n'
NEW_SERVICE: Final = '[[service]]\nname = "new"\nvip = "10.64.0.9:80"\nservers = ["127.0.0.3:7003"]\n'


def test_boot(client: Client) -> None:
    """The loader starts first, then the sidecar; a unit that is ordered after it can connect from its start."""
    assert show("shop.service", "Result") == "success"
    assert show(DATAPATH, "Result") == "success"
    assert moment(DATAPATH, "ExecMainExit") <= moment(WRITER, "InactiveExit")
    assert moment(WRITER, "ActiveEnter") <= moment("shop.service", "InactiveExit")
    assert client.failures() == []
    assert status()["datapath"]["effective"]
    assert answers(VIP4) == {"127.0.0.1:7001", "127.0.0.2:7002"}
    assert answers(VIP6) == {"[::1]:7001"}


def test_sidecar_has_no_rights() -> None:
    """The process that uses the network is an ordinary user without any capability, and little exposed."""
    text = Path("/proc", show(WRITER, "MainPID"), "status").read_text()
    found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert "0" not in found["Uid"].split()
    assert [found[name].strip("0") for name in ("CapEff", "CapPrm", "CapAmb", "CapBnd")] == [""] * 4
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    run("systemd-analyze", "security", "--no-pager", "--threshold=15", WRITER)


def test_restart() -> None:
    """`systemctl restart` breaks no connect."""
    before = show(WRITER, "MainPID")
    systemctl("restart", WRITER)
    assert is_active(WRITER)
    assert show(WRITER, "MainPID") != before


def test_stop_and_start(client: Client) -> None:
    """While the sidecar is stopped, and when it is started again, connects go on."""
    systemctl("stop", WRITER)
    assert (show(WRITER, "ActiveState"), show(WRITER, "Result")) == ("inactive", "success")
    client.goes_on(200)
    assert status()["datapath"]["effective"]
    systemctl("start", WRITER)
    assert is_active(WRITER)


def test_reload() -> None:
    """`systemctl reload` adds a virtual server, and removes it, in the same process; a bad file changes nothing."""
    process = show(WRITER, "MainPID")

    def served() -> set[str]:
        return {server["service"] for server in status()["virtual_servers"]}

    text = CONFIG.read_text()
    with config(text + NEW_SERVICE):
        systemctl("reload", WRITER)
        wait_until(lambda: served() == {"web", "new"}, "the new virtual server is there")
        assert answers("10.64.0.9") == {"127.0.0.3:7003"}
    with config(text + "nonsense"):
        systemctl("reload", WRITER)
        wait_until(
            lambda: has_logged(WRITER, "configuration reload failed; keeping the previous one"), "the file is rejected"
        )
        assert served() == {"web", "new"}
    systemctl("reload", WRITER)
    wait_until(lambda: served() == {"web"}, "the new virtual server is gone")
    assert (is_active(WRITER), show(WRITER, "MainPID")) == (True, process)


def test_crash() -> None:
    """If a sidecar is killed, systemd starts it again."""
    before = show(WRITER, "MainPID")
    restarts = int(show(WRITER, "NRestarts"))
    run("kill", "-KILL", before)
    wait_for_restart(WRITER, before)
    assert int(show(WRITER, "NRestarts")) == restarts + 1


def test_watchdog() -> None:
    """If a sidecar hangs, systemd's watchdog ends it, and systemd starts it again."""
    with edited(WRITER, "[Service]\nWatchdogSec=20s\n"):
        systemctl("restart", WRITER)
        before = show(WRITER, "MainPID")
        run("kill", "-STOP", before)
        wait_for_restart(WRITER, before)
        assert "Watchdog timeout" in journal(WRITER)
    systemctl("restart", WRITER)


def test_sidecar_of_one_application(app: Client) -> None:
    """A sidecar beside an application balances its connects, from the first one on, and those of no other.

    This holds after restarts of both, and after crashes and automatic restarts.
    """
    configure_beside("app")
    systemctl("enable", SIDECAR_OF_APP)
    systemctl("start", app.unit)
    assert moment(SIDECAR_OF_APP, "ActiveEnter") <= moment(app.unit, "InactiveExit")
    app.goes_on()
    assert status("app")["datapath"]["effective"]
    with pytest.raises(OSError, match="unreachable"):
        connect("10.64.0.7", 80)
    systemctl("restart", app.unit)
    app.goes_on()
    for unit in (app.unit, SIDECAR_OF_APP):
        before = show(unit, "MainPID")
        run("kill", "-KILL", before)
        wait_for_restart(unit, before)
        app.goes_on()
    assert status("app")["datapath"]["effective"]
    systemctl("stop", app.unit)
    assert not is_active(SIDECAR_OF_APP)
    systemctl("start", app.unit)
    app.goes_on()


def test_upgrade_to_another_layout(app: Client) -> None:
    """Installing a version whose maps have another layout is enough; the old ones are removed.

    A service that never has an answer keeps the sidecar from being ready, and delays this only.
    """
    assert app.is_running

    def layouts() -> set[str]:
        return {path.name for path in BPFFS.glob("clb-discovery/*/v*")}

    before = layouts()
    with config(f'resolver = ["127.0.0.1:1"]\n{CONFIG.read_text()}\n{NEVER}'):
        run("dpkg", "--install", "/later.deb")
        wait_until(lambda: layouts().isdisjoint(before), "the sidecars have left the old layout", 150)
        assert show(WRITER, "ActiveState") == "activating"
        assert answers(VIP4) == {"127.0.0.1:7001", "127.0.0.2:7002"}
    systemctl("restart", "--no-block", WRITER)
    wait_until(lambda: is_active(WRITER) and is_active(SIDECAR_OF_APP), "they are up again")
    assert run("dpkg-query", "--show", "--showformat=${Version}", "clb-discovery").endswith("+later")
    assert len(before) == len(layouts()) == 1
    assert status()["datapath"]["effective"]
    assert answers(VIP4) == {"127.0.0.1:7001", "127.0.0.2:7002"}
    systemctl("stop", app.unit)


def test_consul_with_a_token_by_credential(client: Client, tmp_path: Path) -> None:
    """The token is only in systemd's credential; changes in Consul are followed, and its end changes nothing."""
    TOKEN.touch(mode=0o600)
    TOKEN.write_text(MASTER_TOKEN)
    edit(WRITER, f"[Service]\nLoadCredential=token:{TOKEN}\nEnvironment=CONSUL_HTTP_TOKEN_FILE=%d/token\n")
    with ConsulAgent(tmp_path, http_port=8500, config=ACL_DENY, token=MASTER_TOKEN) as agent:
        agent.register("web", 7001, "127.0.0.1")
        agent.register("web", 7001, "::1")
        CONFIG.write_text(CONSUL_CONFIG)
        systemctl("restart", WRITER)
        assert answers(VIP4) == {"127.0.0.1:7001"}
        agent.register("web", 7003, "127.0.0.3")
        wait_until(lambda: "127.0.0.3:7003" in answers(VIP4), "the new server is served")
        assert answers(VIP6) == {"[::1]:7001"}
    wait_until(lambda: status()["sources"][0]["state"] == "retrying", "the sidecar notices that Consul is gone")
    client.goes_on()
    assert answers(VIP4) == {"127.0.0.1:7001", "127.0.0.3:7003"}
