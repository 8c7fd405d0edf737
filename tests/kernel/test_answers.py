"""What happens to answers (published, held or rejected) and to failures of sources (only logged)."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.knot import KnotServer
from tests.support.sidecar import pool, rejected, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance
from tests.support.srv_web import OTHER_VIP, VIP, WEB, generations, resolver, serve, weighted

instance = loaded_instance


def test_answer_that_removes_much_is_held(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Members that an answer lacks, more than half of the pool, stay for --hold, as status reports, and go then."""
    before, after = ("127.0.0.1:1", "127.0.0.2:2", "127.0.0.3:3"), ("127.0.0.1:1",)
    serve(knot, *before)
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot), "--hold", "4s"]) as found:
        serve(knot, *after)
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "held", "the answer is held")
        assert pool(instance, VIP) == weighted(*before)
        wait_for_pool(instance, VIP, weighted(*after))
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "the source is fresh again")
        installed, published = (
            next(line for line in found.lines() if line["event"] == event and line.get("change") != "+3 -0 ~0")
            for event in ("removal held", "pool published")
        )
    assert (installed["source"], installed["seconds"]) == ("srv:_web._tcp.example", 4.0)
    assert (installed["removed"], installed["of"]) == (2, 3)
    assert (published["change"], published["removed"]) == ("+0 -2 ~0", ["127.0.0.2:2", "127.0.0.3:3"])
    assert found.events().count("removal held") == 1


def test_answer_that_comes_back_is_not_applied_late(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """Members that return within --hold are never removed from the kernel."""
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
        before = generations(instance)
        serve(knot)
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "held", "the empty answer is held")
        serve(knot, "127.0.0.1:1")
        found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "the servers are back")
        assert generations(instance) == before


def test_forbidden_real_servers_are_refused_and_logged_once(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """Addresses that are not allowed as real servers stay out, and each is logged once, with the reason."""
    forbidden = {
        "0.0.0.0:80": "unspecified",
        "224.0.0.1:80": "multicast",
        "255.255.255.255:80": "broadcast",
        "169.254.0.1:80": "link-local",
        f"{VIP}:80": "a VIP",
        "127.0.0.1:80": "--real-range 127.0.0.0/8",
        "127.0.0.2:80": "--real-range 127.0.0.0/8",
    }
    serve(knot, *forbidden, "10.0.0.1:80")
    with sidecar(instance, cgroup, tmp_path, [*WEB, "--resolver", knot.address]) as found:
        assert pool(instance, VIP) == {"10.0.0.1:80": 8}
        serve(knot, *forbidden, "10.0.0.1:80", "10.0.0.2:80")
        wait_for_pool(instance, VIP, {"10.0.0.1:80": 8, "10.0.0.2:80": 9})
    refused = rejected(found.lines())
    assert refused.keys() == forbidden.keys()
    assert all(reason in refused[server] for server, reason in forbidden.items())
    assert found.events().count("real servers rejected") == len(set(forbidden.values()))


def test_srv_name_says_the_protocol(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """The VIP of `_dns._udp` takes UDP and leaves TCP alone, unless the option names a protocol."""
    knot.write("_dns._udp SRV 0 1 5300 one\none A 10.0.0.1")
    options = ["--srv", f"_dns._udp.example={VIP}:53,{OTHER_VIP}:53/tcp", "--resolver", knot.address]
    with sidecar(instance, cgroup, tmp_path, options):
        found = {server["address"]: server["protocol"] for server in status(instance)["virtual_servers"]}
        assert found == {VIP: "udp", OTHER_VIP: "tcp"}
        assert pool(instance, VIP) == pool(instance, OTHER_VIP) == {"10.0.0.1:5300": 1}


def test_failing_source_is_logged_once(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """While a source fails in the same way nothing more is logged, and the pool stays."""
    serve(knot, "127.0.0.1:1")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot)]) as found:
        before = generations(instance)
        knot.purge()
        found.wait_for(lambda: "source fails" in found.events(), "the source fails")
        time.sleep(4)  # several tries: the first pauses are at most 0.5, 1 and 2 s
        assert found.events().count("source fails") == 1
        serve(knot, "127.0.0.1:1")
        found.wait_for(lambda: "source answers again" in found.events(), "the source answers")
        assert generations(instance) == before
    failure = next(line for line in found.lines() if line["event"] == "source fails")
    assert (failure["source"], failure["level"]) == ("srv:_web._tcp.example", "warning")
    assert "SERVFAIL" in failure["error"]
