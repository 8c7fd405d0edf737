"""If a program of this host listens on a VIP, the VIP works, and log, `status` and `check` report the listener."""

from __future__ import annotations

import json
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.support import namespaces
from tests.support.dataplane import dial
from tests.support.listeners import listening
from tests.support.process import free_port
from tests.support.sidecar import Sidecar, clb_here, sidecar, status
from tests.support.spares import loaded_instance
from tests.support.units import BESIDE, as_unit, load_as_unit, without
from tests.support.web import get

instance = loaded_instance

EVENT: Final = "a program of this host listens on a VIP"


def told(found: Sidecar) -> list[tuple[str, str]]:
    """Return the VIPs and listeners in the log."""
    return [(line["vip"], line["listener"]) for line in found.lines() if line["event"] == EVENT]


def listens_here(document: dict[str, Any]) -> dict[str, bool]:
    """Return the listeners of each address in a status document."""
    return {server["address"]: server["listens_here"] for server in document["virtual_servers"]}


def table(name: str, vip: str, server: str) -> str:
    """Return a service of a configuration file."""
    return f'[[service]]\nname = "{name}"\nvip = "{vip}"\nservers = "{server}"\n'


def test_listeners_on_vips_are_logged_once(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """One line for each new VIP with a listener on it, or on every address if the VIP is local; connects go on."""
    port, metrics = free_port(), free_port()
    config = tmp_path / "clb.toml"
    with (
        listening("127.0.0.5", port=port) as (own,),
        listening("0.0.0.0") as (every,),
        listening("127.0.0.9", udp=True) as (udp,),
        listening("127.0.0.2", "127.0.0.3") as (real, other),
    ):
        config.write_text(
            'real-range = "127.0.0.0/8"\n'
            + table("exact", f"127.0.0.5:{port}", real.name)
            + table("local", f"127.0.0.6:{every.port}", real.name)
            + table("elsewhere", f"10.64.0.1:{every.port}", real.name)
            + table("datagrams", f"127.0.0.9:{udp.port}", real.name)
        )
        options = ["--config", str(config), "--metrics", f"127.0.0.1:{metrics}"]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            assert told(found) == [
                (f"127.0.0.5:{port}", f"127.0.0.5:{port}/tcp"),
                (f"127.0.0.6:{every.port}", f"0.0.0.0:{every.port}/tcp"),
            ]
            assert dial(cgroup, "127.0.0.5", port, 5) == ["ok"] * 5
            assert (real.taken(), own.taken()) == (5, 0)
            expected = {"127.0.0.5": True, "127.0.0.6": True, "10.64.0.1": False, "127.0.0.9": False}
            assert listens_here(status(instance)) == expected
            assert listens_here(json.loads(get(metrics, "/status.json"))) == expected
            note = f"note   a program of this host listens on 127.0.0.5:{port}/tcp, 127.0.0.6:{every.port}/tcp: "
            shown = clb_here("status", "--instance", instance).stdout
            assert note in shown
            assert "wrong" not in shown

            config.write_text(config.read_text() + table("new", f"127.0.0.9:{udp.port}/udp", other.name))
            found.process.send_signal(signal.SIGHUP)
            found.wait_for(lambda: len(told(found)) > 2, "the new VIP is looked at")
            time.sleep(2.5)  # longer than one check of the data plane
            assert told(found)[2:] == [(f"127.0.0.9:{udp.port}/udp", f"127.0.0.9:{udp.port}/udp")]
        check = clb_here("check", "--config", config, "--instance", instance, "--cgroup", cgroup)
        assert check.returncode == 0
        warnings = [line for line in check.stdout.splitlines() if line.startswith("warn")]
        assert len(warnings) == 3
        assert warnings[0].startswith(
            f"warn  static:exact: a program of this host listens on 127.0.0.5:{port}/tcp; its clients on this host get"
        )
    assert True not in listens_here(status(instance)).values()


def test_listeners_of_other_network_namespaces_are_no_concern(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """If the listener is in another network namespace, neither the sidecar nor a command in this one reports it."""
    port = free_port()
    options = ["--config", str(tmp_path / "clb.toml")]
    (tmp_path / "clb.toml").write_text(table("web", f"127.0.0.5:{port}", "10.0.0.1:80"))
    with namespaces.by_mount() as namespace:
        sock = namespaces.inside(namespace, lambda: socket.create_server(("127.0.0.5", port)))
        with sock, sidecar(instance, cgroup, tmp_path, options) as found:
            assert told(found) == []
            assert listens_here(status(instance)) == {"127.0.0.5": False}


def test_sidecar_of_the_unit_sees_listeners(instance: str, cgroup: Path) -> None:
    """The restrictions of the unit, without netlink and with little of /proc, leave enough to find them."""
    result = load_as_unit(instance, cgroup)
    assert (result.returncode, result.stderr) == (0, "")
    with tempfile.TemporaryDirectory(prefix="clb-test-") as name, listening("0.0.0.0") as (every,):
        directory = Path(name)
        directory.chmod(0o755)  # the unit's user has to read it
        config = directory / "clb.toml"
        config.write_text(table("web", f"127.0.0.5:{every.port}", "10.0.0.1:80"))
        config.chmod(0o644)
        wrapper = as_unit(without(BESIDE, directory, instance))
        with sidecar(instance, None, directory, ["--config", str(config)], wrapper=wrapper) as found:
            assert told(found) == [(f"127.0.0.5:{every.port}", f"0.0.0.0:{every.port}/tcp")]
