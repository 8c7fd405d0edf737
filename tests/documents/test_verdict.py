"""The problems that the last line of `status` lists."""

from __future__ import annotations

from typing import Any

from clb_discovery.documents.verdict import empty_services, troubles


def status(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - as in JSON
    """Return a document without problems, except for the given values."""
    return {
        "instance": "default",
        "datapath": {"loaded": True, "effective": True, "reason": None, "overlaps": []},
        "sidecar": {"running": True, "config_error": None},
        "sources": [source("srv:web")],
        "virtual_servers": [virtual("web", "active"), virtual("web")],
        "unpublished": [],
        **more,
    }


def source(name: str, state: str = "fresh", reason: str | None = None) -> dict[str, Any]:
    """Return a source."""
    return {"name": name, "state": state, "reason": reason}


def virtual(service: str, *states: str) -> dict[str, Any]:
    """Return a virtual server with real servers in these states."""
    return {"service": service, "address": "10.64.0.1", "real_servers": [{"state": state} for state in states]}


def test_nothing_is_wrong() -> None:
    """A family without real servers is no problem if the service has some of the other family."""
    assert list(troubles(status())) == []


def test_empty_services_have_no_server_at_any_vip() -> None:
    """One real server at one VIP is enough, ejected or not; a VIP without a name counts by its address."""
    nameless = virtual("") | {"service": None}
    found = [virtual("web", "ejected"), virtual("web"), virtual("mail"), virtual("mail"), nameless]
    assert empty_services(found) == ["mail", "10.64.0.1"]


def test_not_loaded_is_the_only_problem() -> None:
    """Without a data plane, the sidecar that does not run is no problem of its own."""
    (only,) = troubles(
        status(
            datapath={"loaded": False, "effective": False, "reason": "x", "overlaps": []},
            sidecar={"running": False, "config_error": None},
            sources=[],
            virtual_servers=[],
        )
    )
    assert "not loaded" in only
    assert only.endswith("; start the sidecar, or run: clb-discovery load")


def test_not_loaded_names_the_command_that_loads() -> None:
    """The command has the instance, and the line does not suggest to start a sidecar that runs."""
    (only,) = troubles(
        status(
            instance="shop",
            datapath={"loaded": False, "effective": False, "reason": "x", "overlaps": []},
            sources=[],
            virtual_servers=[],
        )
    )
    assert only.endswith("; its sidecar loads it; with --loader none run: clb-discovery load --instance shop")


def test_everything_at_once() -> None:
    """Each problem has its remark, the worst first, and a remark names only a few of many."""
    found = list(
        troubles(
            status(
                datapath={
                    "loaded": True,
                    "effective": False,
                    "reason": "the cgroup is gone",
                    "overlaps": [{"instance": "b", "cgroup": "/", "relation": "above", "vips": ["10.64.0.1:80"]}],
                },
                sidecar={"running": False, "config_error": "line 3"},
                sources=[
                    *(source(f"srv:{number}", "retrying", "SERVFAIL") for number in range(5)),
                    source("srv:held", "held", "10.64.0.2 is taken"),
                    source("srv:part", reason="127.0.0.1:80 is loopback"),
                ],
                virtual_servers=[virtual("empty"), virtual("half", "active", "ejected")],
                unpublished=[{"service": "large", "reason": "no room"}],
            )
        )
    )
    assert found == [
        "connects do not meet the programs: the cgroup is gone",
        "instance b (/, above) serves the same VIPs: 10.64.0.1:80; give each instance its own",
        "the configuration is refused, and the one before it goes on: line 3",
        "not published as it should be, for the reason above: large",
        "no real servers, connects are refused: empty",
        "ejected after failed connects: half (1 of 2)",
        "no answer from srv:0, srv:1, srv:2, and 2 more",
        "held back, for the reason above: srv:held",
        "refused in part, for the reason above: srv:part",
        "no sidecar runs: pools stay as they are",
    ]
