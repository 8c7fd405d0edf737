"""The problems of a status: one by one, and as the last line sums them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from clb_discovery.documents.verdict import Problem, empty_services, problems, remarks, servers_of

NOT_LOADED: Final[Mapping[str, Any]] = {
    "loaded": False,
    "effective": False,
    "reason": "x",
    "overlaps": [],
    "load_error": None,
    "other_layouts": [],
}


def status(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - as in JSON
    """Return a document without problems, except for the given values."""
    return {
        "instance": "default",
        "datapath": {
            "loaded": True,
            "effective": True,
            "reason": None,
            "overlaps": [],
            "load_error": None,
            "other_layouts": [],
            "outcomes": True,
            "cgroup": "/c",
        },
        "sidecar": {"running": True, "config_error": None, "metrics_error": None, "state_error": None},
        "sources": [source("srv:web")],
        "virtual_servers": [virtual("web", "active"), virtual("web")],
        "unpublished": [],
        **more,
    }


def source(name: str, state: str = "fresh", reason: str | None = None) -> dict[str, Any]:
    """Return a source."""
    return {"name": name, "state": state, "reason": reason}


def virtual(service: str, *states: str, origin: str | None = None) -> dict[str, Any]:
    """Return a virtual server with real servers in these states."""
    reals = [
        {"address": f"10.0.0.{number}", "port": 80, "state": state, "check_failure": None}
        for number, state in enumerate(states)
    ]
    return {
        "service": service,
        "source": origin or f"srv:{service}",
        "address": "10.64.0.1",
        "needs_outcomes": True,
        "real_servers": reals,
    }


def last_line(document: dict[str, Any]) -> list[str]:
    """Return the remarks of the last line."""
    return list(remarks(problems(document)))


def test_nothing_is_wrong() -> None:
    """A family without real servers is no problem if the service has some of the other family."""
    assert list(problems(status())) == []


def test_empty_services_have_no_server_at_any_vip() -> None:
    """One real server at one VIP is enough, ejected or not; a VIP without a name counts by its address."""
    nameless = virtual("") | {"service": None}
    found = [virtual("web", "ejected"), virtual("web"), virtual("mail"), virtual("mail"), nameless]
    assert empty_services(found) == ["mail", "10.64.0.1"]


def test_services_of_one_name_hide_nothing_of_each_other() -> None:
    """Each has a problem of its own, and the source tells which one it is; other names stand alone."""
    found = [virtual("db", origin="srv:orders"), virtual("db", "active", "ejected", origin="srv:users"), virtual("web")]
    lacking = {"service": "db", "source": "srv:old", "virtual_servers": 1, "reason": "no room"}
    document = status(virtual_servers=found, unpublished=[lacking], sources=[source("srv:users", "retrying", "no")])
    assert empty_services(found) == ["db", "web"]
    assert [problem.subject for problem in problems(document)] == [
        *("db (srv:old)", "db (srv:orders)", "web", "db (srv:users)", "db (srv:users)")
    ]
    assert last_line(document) == [
        "not published in full (see above): db (srv:old)",
        "no real servers, connects are refused: db (srv:orders), web",
        "ejected after failed connects: db (srv:users) (1 of 2)",
        "no answer from srv:users",
    ]


def test_services_without_the_outcomes_that_they_need() -> None:
    """They are one problem, which names them, the effect and the fix; other services need none."""
    document = status(virtual_servers=[virtual("web", "active"), virtual("dns", "active") | {"needs_outcomes": False}])
    document["datapath"]["outcomes"] = False
    (only,) = problems(document)
    assert only.subject == "data plane"
    assert only.text.startswith("outcomes not followed for web: no server is ejected, no active connection is")
    assert "run: clb-discovery load --cgroup /c --outcomes on, and remove --outcomes off from" in only.text
    document["virtual_servers"] = document["virtual_servers"][1:]
    assert list(problems(document)) == []


def test_not_loaded_is_the_only_problem() -> None:
    """Without a data plane, the sidecar that does not run is no problem of its own."""
    (only,) = last_line(
        status(
            datapath=NOT_LOADED,
            sidecar={"running": False, "config_error": None, "metrics_error": None, "state_error": None},
            sources=[],
            virtual_servers=[],
        )
    )
    assert "not loaded" in only
    assert only.endswith("; start the sidecar, or run: clb-discovery load")


def test_not_loaded_names_the_command_that_loads() -> None:
    """The command has the instance, and the line does not suggest to start a sidecar that runs."""
    (only,) = last_line(
        status(
            instance="shop",
            datapath=NOT_LOADED,
            sources=[],
            virtual_servers=[],
        )
    )
    assert only.endswith("; its sidecar loads it; with --loader none run: clb-discovery load --instance shop")


def test_another_version_balances() -> None:
    """Programs of another layout balance, so the line neither claims the opposite nor hides that they are old."""
    nothing: dict[str, Any] = {"sources": [], "virtual_servers": []}
    document = status(instance="shop", **nothing)
    document["datapath"] |= {"loaded": False, "effective": False, "other_layouts": [2]}
    (only,) = last_line(document)
    assert only == (
        "the data plane is loaded by another version (layout v2): connects are balanced over the pools of its sidecar; "
        "restart the sidecar; with --loader none run first: clb-discovery load --instance shop"
    )
    document["sidecar"]["running"] = False
    (only,) = last_line(document)
    assert only == (
        "the data plane is loaded by another version (layout v2): connects are balanced over its last pools; "
        "start the sidecar, or run: clb-discovery load --instance shop"
    )


def test_another_version_runs_first() -> None:
    """Beside our programs those of another layout still have the connects, until they are removed."""
    document = status()
    document["datapath"]["other_layouts"] = [1, 2]
    (only,) = last_line(document)
    assert only == (
        "the programs of layout v1, v2 run first: changes do not reach connects until the sidecar has removed them, "
        "once its pools are published; if they stay, run: clb-discovery unload --other-layouts"
    )


EVERYTHING = status(
    datapath={
        "loaded": True,
        "effective": False,
        "reason": "the cgroup is gone",
        "overlaps": [{"instance": "b", "cgroup": "/", "relation": "above", "vips": ["10.64.0.1:80"]}],
        "load_error": "'/x' is not a cgroup",
        "other_layouts": [],
        "outcomes": True,
    },
    sidecar={
        "running": False,
        "config_error": "line 3",
        "metrics_error": "port in use",
        "state_error": "cannot read it",
    },
    sources=[
        *(source(f"srv:{number}", "retrying", "SERVFAIL") for number in range(5)),
        source("srv:half", "held", "10.64.0.2 is taken"),
        source("srv:part", reason="127.0.0.1:80 is loopback"),
    ],
    virtual_servers=[virtual("empty"), virtual("half", "active", "ejected")],
    unpublished=[{"service": "large", "source": "srv:large", "virtual_servers": 2, "reason": "no room"}],
)


def test_everything_at_once() -> None:
    """The last line has a remark for each kind of problem, the worst first, and names only a few of many."""
    assert last_line(EVERYTHING) == [
        "the programs are not in effect: connects are not balanced: the cgroup is gone",
        "the last load failed: '/x' is not a cgroup; the programs of the previous one stay as they are",
        "instance b (/, above) serves the same VIPs: 10.64.0.1:80; give each instance its own",
        "configuration rejected, the previous one stays in effect: line 3",
        "metrics are not served: port in use",
        "cannot read it",
        "not published in full (see above): large",
        "no real servers, connects are refused: empty",
        "ejected after failed connects: half (1 of 2)",
        "no answer from srv:0, srv:1, srv:2, and 2 more",
        "held (see above): srv:half",
        "partly rejected (see above): srv:part",
        "sidecar not running: pools will not be updated",
    ]


def test_each_problem_names_its_service_and_its_reason() -> None:
    """A source is that of a service if there is a virtual server of it; a problem of the instance names its part."""
    found = [(problem.subject, problem.text) for problem in problems(EVERYTHING)]
    assert [subject for subject, _ in found] == [
        *("data plane", "data plane", "data plane", "configuration", "metrics", "sidecar"),
        *("large", "empty", "half"),
        *(f"srv:{number}" for number in range(5)),
        *("half", "srv:part", "sidecar"),
    ]
    assert found[6:10] == [
        ("large", "2 of its virtual servers not published: no room"),
        ("empty", "no real servers: connects are refused"),
        ("half", "1 of 2 real servers ejected after failed connects: 10.0.0.1:80"),
        ("srv:0", "no answer from srv:0: SERVFAIL"),
    ]
    assert ("half", "srv:half held: 10.64.0.2 is taken") in found
    assert ("srv:part", "srv:part partly rejected: 127.0.0.1:80 is loopback") in found


def test_servers_that_fail_their_checks_are_named_with_the_reason() -> None:
    """They are not listed again as ejected, and one that stays in service for want of others is there, too."""
    checked = virtual("web", "ejected", "active", "active", "ejected")
    for number, reason in ((0, "HTTP 503"), (1, "no answer within 1 s")):
        checked["real_servers"][number]["check_failure"] = reason
    found = [problem.text for problem in problems(status(virtual_servers=[checked]))]
    assert found == [
        "2 of 4 real servers fail their checks: 10.0.0.0:80 (HTTP 503), 10.0.0.1:80 (no answer within 1 s)",
        "1 of 4 real servers ejected after failed connects: 10.0.0.3:80",
    ]
    assert last_line(status(virtual_servers=[checked]))[0] == "fail checks: web (2 of 4)"


def test_a_server_behind_several_vips_is_one() -> None:
    """Problems count the servers of a service, however many VIPs it has, and a server that fails at any VIP fails."""
    first, second = virtual("web", "active", "ejected", "active", "active"), virtual("web", *["active"] * 4)
    for one in (first, second):
        one["real_servers"][0]["check_failure"] = "HTTP 503"
    second["real_servers"][2]["state"] = "ejected"
    found = [problem.text for problem in problems(status(virtual_servers=[first, second]))]
    assert found == [
        "1 of 4 real servers fail their checks: 10.0.0.0:80 (HTTP 503)",
        "2 of 4 real servers ejected after failed connects: 10.0.0.1:80, 10.0.0.2:80",
    ]


def test_services_do_not_share_their_servers() -> None:
    """A server of two services counts in each."""
    found = servers_of([virtual("web", "active"), virtual("web", "active"), virtual("api", "active", "active")])
    assert {service.name: list(servers) for service, servers in found.items()} == {
        "web": ["10.0.0.0:80"],
        "api": ["10.0.0.0:80", "10.0.0.1:80"],
    }


def test_an_answer_that_lacks_a_part_is_not_called_rejected() -> None:
    """Nothing is to be corrected in discovery. If something is, or an earlier version does not say, that is named."""
    kept = "some addresses cannot be looked up now, so previous ones are kept"
    sources = [
        source("dns:db", reason=kept) | {"rejected": 0},
        source("srv:web", reason="127.0.0.1:80 is loopback") | {"rejected": 1},
        source("srv:old", reason=kept),
    ]
    assert last_line(status(sources=sources)) == [
        "partly rejected (see above): srv:web, srv:old",
        "answer incomplete (see above): dns:db",
    ]
    assert ("dns:db", f"dns:db answer incomplete: {kept}") in [
        (problem.subject, problem.text) for problem in problems(status(sources=sources))
    ]


def test_names_of_one_kind_are_joined() -> None:
    """Problems without a kind stand alone, and those with one in a list under its words."""
    found = [Problem("a", "whole"), Problem("b", "x", "words:", "b"), Problem("c", "y", "words:", "c")]
    assert list(remarks(found)) == ["whole", "words: b, c"]
