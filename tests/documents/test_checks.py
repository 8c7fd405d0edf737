"""What active checks have found is added to virtual servers and real servers."""

from __future__ import annotations

from typing import Any

from clb_discovery.documents.checks import add_checks


def virtual(address: str, port: int, protocol: str, *servers: str) -> dict[str, Any]:
    """Return a virtual server with these real servers, at port 80."""
    reals = [{"address": one, "port": 80} for one in servers]
    return {"address": address, "port": port, "protocol": protocol, "real_servers": reals}


def test_each_virtual_server_has_its_own_checks() -> None:
    """By address, port and protocol; others have none."""
    tcp, udp, six = (
        virtual("10.64.0.1", 0, "tcp", "10.0.0.1", "10.0.0.2"),
        virtual("10.64.0.1", 0, "udp", "10.0.0.1"),
        virtual("fd00::1", 80, "tcp", "fd00::7"),
    )
    add_checks(
        [tcp, udp, six],
        [
            {"address": "10.64.0.1", "port": 0, "protocol": "tcp", "check": "tcp every 2 s",
             "down": {"10.0.0.2:80": "Connection refused"}},
            {"address": "fd00::1", "port": 80, "protocol": "tcp", "check": "http://a/ every 1 s",
             "down": {"[fd00::7]:80": "HTTP 503"}},
        ],
    )  # fmt: skip
    assert [one["check"] for one in (tcp, udp, six)] == ["tcp every 2 s", None, "http://a/ every 1 s"]
    failures = [[real["check_failure"] for real in one["real_servers"]] for one in (tcp, udp, six)]
    assert failures == [[None, "Connection refused"], [None], ["HTTP 503"]]
