"""What is wrong, in a few words."""

from __future__ import annotations

from typing import Any

from clb_discovery.documents.verdict import troubles


def status(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - as in JSON
    """Return a document in which all is well but for what is given."""
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
    """Nor is a family without real servers, while the service has some of the other."""
    assert troubles(status()) == []


def test_what_is_not_loaded_needs_no_sidecar_to_blame() -> None:
    """Where nothing is loaded that is all there is to say."""
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


def test_what_is_not_loaded_is_named_as_it_has_to_be_typed() -> None:
    """The command names the instance, and nobody is told to start a sidecar that runs."""
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
    """Each trouble has its remark, the worst first, and names only a few of many."""
    found = troubles(
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
