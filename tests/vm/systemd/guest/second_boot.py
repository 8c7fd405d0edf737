"""The second boot of the same machine, while Consul is down."""

from __future__ import annotations

from pathlib import Path

import pytest

from clb_discovery.datapath.pins import BPFFS, Pins
from tests.support.kernel_objects import KernelObject, pinned
from tests.support.process import wait_until
from tests.vm.systemd.guest.client import connect
from tests.vm.systemd.guest.host import (
    DATAPATH,
    VIP4,
    WRITER,
    Client,
    answers,
    edited,
    is_active,
    journal,
    moment,
    run,
    show,
    status,
    systemctl,
)


def test_boot_while_discovery_is_down(client: Client) -> None:
    """Applications start after the sidecar, which serves the last known good set; the shutdown broke no connect."""
    assert client.failures() == []
    assert show("shop.service", "Result") == "success"
    assert moment(WRITER, "ActiveEnter") <= moment("shop.service", "InactiveExit")
    (source,) = status()["sources"]
    assert (source["name"], source["stale"]) == ("consul:web", True)
    assert answers(VIP4) == {"127.0.0.1:7001", "127.0.0.3:7003"}


def test_nothing_is_left(client: Client) -> None:
    """After `systemctl disable --now` connects go on; after `unload` nothing of ours is left."""
    systemctl("disable", "--now", WRITER)
    client.goes_on(200)
    systemctl("stop", client.unit, "shop.service")
    pins = Pins("default")
    objects = set(pinned(pins.home).values())
    run("clb-discovery", "unload")
    assert not BPFFS.joinpath("clb-discovery").exists()
    wait_until(lambda: not any(map(KernelObject.exists, objects)), "the kernel has freed everything")
    with pytest.raises(OSError, match="unreachable"):
        connect(VIP4, 80)


def test_start_after_unload(client: Client) -> None:
    """After an `unload`, a start of the sidecar loads the data plane again."""
    systemctl("start", WRITER)
    systemctl("start", client.unit)
    assert answers(VIP4) == {"127.0.0.1:7001", "127.0.0.3:7003"}


def test_failed_load_is_tried_again(client: Client) -> None:
    """While loading fails loader and sidecar are restarted, and both become active when it succeeds."""
    allowed = Path("/run/may-load")  # visible for a unit with a private /tmp
    systemctl("stop", client.unit, WRITER)
    run("clb-discovery", "unload")
    with edited(DATAPATH, f"[Service]\nExecStartPre=/usr/bin/test -e {allowed}\n"):
        systemctl("start", "--no-block", WRITER)
        wait_until(lambda: journal(DATAPATH).count("status=1/FAILURE") >= 3, "loading is tried again and again")
        assert int(show(WRITER, "NRestarts")) >= 2
        allowed.touch()
        wait_until(lambda: is_active(WRITER), "the sidecar is up")
    systemctl("start", client.unit)
    assert answers(VIP4) == {"127.0.0.1:7001", "127.0.0.3:7003"}
