"""`--metrics` of a running sidecar, as Prometheus and a probe read it."""

from __future__ import annotations

import socket
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.cgroups import run_inside
from tests.support.dataplane import dial
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.process import free_port, wait_until
from tests.support.redis import redis_servers
from tests.support.sidecar import clb, clb_here, sidecar, status
from tests.support.spares import loaded_instance
from tests.support.web import get

instance = loaded_instance

VIP = "10.64.0.1"


def test_metrics_agree_with_status(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Connects, failures and source states are labelled by service, VIP, protocol and server; /healthz is ready."""
    port, dead = free_port(), free_port()
    with KnotServer() as knot, redis_servers(tmp_path, "127.0.0.1") as (server,):
        knot.write(f"_redis._tcp SRV 0 1 {server.port} one\n_redis._tcp SRV 0 1 {dead} one\none A 127.0.0.1")
        options = ["--srv", f"_redis._tcp.example={VIP}:6379", "--resolver", knot.address]
        options += ["--real-range", "127.0.0.0/8", "--metrics", f"127.0.0.1:{port}"]
        with sidecar(instance, cgroup, tmp_path, options):
            assert get(port, "/healthz") == "ready\n"
            for _ in range(20):
                run_inside(cgroup, "redis-cli", "-h", VIP, "ping")
            samples = {
                (sample.name, sample.labels.get("real_server")): sample
                for family in text_string_to_metric_families(get(port, "/metrics"))
                for sample in family.samples
            }
            (virtual,) = status(instance)["virtual_servers"]
            for real in virtual["real_servers"]:
                name = f"{real['address']}:{real['port']}"
                connects = samples["clb_connects_total", name]
                assert connects.value == real["connects"] > 0
                labels = {"service": "redis", "vip": f"{VIP}:6379", "protocol": "tcp", "real_server": name}
                assert connects.labels == labels
                assert samples["clb_failures_total", name].value == real["failures"]
                assert samples["clb_ejected", name].value == (real["state"] == "ejected")
            assert samples["clb_failures_total", f"127.0.0.1:{dead}"].value >= 1
            assert samples["clb_source_fresh", None].value == 1


def values(port: int) -> dict[str, float]:
    """Return all samples by name and the labels that distinguish them here."""
    distinct = ("real_server", "map", "cause")
    return {
        " ".join([sample.name, *(sample.labels[label] for label in distinct if label in sample.labels)]): sample.value
        for family in text_string_to_metric_families(get(port, "/metrics"))
        for sample in family.samples
    }


def test_counters_outlive_publications_and_end_with_their_server(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """New weights and a new neighbour change no counter; a removed server has no series; ejections are counted."""
    port = free_port()
    with KnotServer() as knot, listening("127.0.0.1", "127.0.0.2") as (one, two):
        dead = f"127.0.0.3:{one.port}"

        def serve(*servers: str) -> None:
            records = [f"_web._tcp SRV 0 {server}" for server in servers]
            knot.write("\n".join([*records, "one A 127.0.0.1", "two A 127.0.0.2", "dead A 127.0.0.3"]))

        def after(*servers: str) -> dict[str, float]:
            before = values(port)["clb_publications_total"]
            serve(*servers)
            found.wait_for(lambda: values(port)["clb_publications_total"] > before, "the change is published")
            return values(port)

        serve(f"1 {one.port} one", f"1 {one.port} dead")
        options = ["--srv", f"_web._tcp.example={VIP}:80", "--resolver", knot.address, "--hold", "0s"]
        options += ["--real-range", "127.0.0.0/8", "--metrics", f"127.0.0.1:{port}", "--no-suspicion"]
        options += ["--eject-time", "60s"]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            dial(cgroup, VIP, 80, 60)
            first = values(port)
            counted = [name for name in first if one.name in name or dead in name]
            assert len(counted) == 12
            assert first[f"clb_failures_by_cause_total {dead} refused"] == first[f"clb_failures_total {dead}"] == 3
            assert (first[f"clb_ejections_total {dead}"], first[f"clb_ejected {dead}"]) == (1, 1)
            assert first[f"clb_kept_out {dead}"] == 0
            assert first[f"clb_connects_total {one.name}"] + first[f"clb_connects_total {dead}"] == 60
            assert first["clb_pool_servers"] == 2

            second = after(f"5 {one.port} one", f"5 {one.port} dead", f"5 {two.port} two")
            assert {name: second[name] for name in counted} == {name: first[name] for name in counted}
            assert second["clb_published_pools_total"] == first["clb_published_pools_total"] + 1
            assert second["clb_publication_seconds_count"] == second["clb_publications_total"]
            assert second["clb_map_entries clb_servers"] == first["clb_map_entries clb_servers"] + 1
            assert second[f"clb_connects_total {two.name}"] == 0

            dial(cgroup, VIP, 80, 30)
            third = after(f"5 {two.port} two")
            assert [name for name in counted if name in third] == []
            assert third[f"clb_connects_total {two.name}"] > 0
            assert third["clb_datapath_effective"] == 1
            assert third["clb_source_errors_total"] == 0
            knot.purge()
            found.wait_for(lambda: values(port)["clb_source_errors_total"] > 0, "the source fails")
            assert values(port)["clb_source_age_seconds"] >= 0


def source_state(port: int) -> dict[str, float]:
    """Return the metrics of the only source: its states, and whether it is fresh and stale."""
    samples = [
        sample
        for family in text_string_to_metric_families(get(port, "/metrics"))
        for sample in family.samples
        if sample.name in {"clb_source_state", "clb_source_fresh", "clb_source_stale"}
    ]
    assert {sample.labels["source"] for sample in samples} == {"srv:_web._tcp.example"}
    return {sample.labels.get("state", sample.name): sample.value for sample in samples}


def test_metrics_have_the_state_of_a_source(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A source is fresh, held or retrying, and stale while discovery is down."""
    port = free_port()

    def shown(state: str, *, stale: bool = False) -> dict[str, float]:
        states = {name: float(name == state) for name in ("fresh", "retrying", "held")}
        return {**states, "clb_source_fresh": states["fresh"], "clb_source_stale": float(stale)}

    with KnotServer() as knot:
        knot.write("_web._tcp SRV 0 1 80 one\none A 10.0.0.1")
        options = ["--srv", f"_web._tcp.example={VIP}:80", "--resolver", knot.address]
        with sidecar(instance, cgroup, tmp_path, [*options, "--metrics", f"127.0.0.1:{port}"]) as found:
            assert source_state(port) == shown("fresh")
            knot.write("")
            found.wait_for(lambda: source_state(port) == shown("held"), "the empty answer is held")
            knot.purge()
            found.wait_for(lambda: source_state(port) == shown("retrying", stale=True), "the source is stale")


def test_port_in_use_is_waited_for(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """If another process has the port, connects are balanced all the same; log and `status` say so until it is free."""
    file = tmp_path / "clb.toml"
    with listening("127.0.0.1") as (server,), socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        table = f'[[service]]\nname = "redis"\nvip = "{VIP}:6379"\nservers = ["{server.name}"]\n'
        file.write_text(f'metrics = "127.0.0.1:{port}"\nreal-range = ["127.0.0.0/8"]\n{table}')
        with sidecar(instance, cgroup, tmp_path, ["--config", str(file)]) as found:
            assert dial(cgroup, VIP, 6379, 5) == ["ok"] * 5
            error = status(instance)["sidecar"]["metrics_error"]
            assert f"cannot listen on 127.0.0.1:{port} for --metrics: Address already in use" in error
            assert [line["error"] for line in found.lines() if line["event"] == "cannot serve metrics"] == [error]
            text = clb_here("status", "--instance", instance).stdout
            assert "metrics are not served" in text
            taken.close()
            found.wait_for(lambda: "metrics are served" in found.events(), "the port is taken")
            assert values(port)["clb_datapath_effective"] == 1
            wait_until(lambda: status(instance)["sidecar"]["metrics_error"] is None, "status has forgotten")


def test_bad_listener_is_refused(instance: str) -> None:
    """If the option is not an address and a port, that is wrong usage."""
    for text in ("9100", "localhost:9100", "127.0.0.1:0", "::1:9100", "[127.0.0.1]:9100"):
        result = clb("run", "--srv", f"a={VIP}", "--instance", instance, "--metrics", text)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "is not ADDR:PORT" in result.stderr
