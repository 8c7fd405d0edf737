"""The modules that a running sidecar has imported from its packages."""

from __future__ import annotations

from pathlib import Path

from tests.support.consul import ConsulAgent
from tests.support.process import free_port
from tests.support.sidecar import sidecar
from tests.support.web import get


def test_no_second_http_stack_is_imported(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A sidecar that follows Consul and serves its page imports neither requests nor urllib3, nor what they need."""
    port = free_port()
    with ConsulAgent(tmp_path) as agent:
        agent.register("web", 80, "10.0.0.1")
        options = ["--consul", agent.url, "--service", "web=10.64.0.1:80", "--metrics", f"127.0.0.1:{port}"]
        imports = {"PYTHONPROFILEIMPORTTIME": "1"}
        with sidecar(instance, cgroup, tmp_path, options, env=imports) as found:
            assert get(port, "/healthz") == "ready\n"
            lines = [line for line in found.log.read_text().splitlines() if line.startswith("import time:")]
            maps = Path(f"/proc/{found.process.pid}/maps").read_text()
    modules = {line.rpartition("|")[2].strip() for line in lines}
    packages = {module.partition(".")[0] for module in modules}
    assert {"aiohttp", "consul", "structlog"} <= packages
    assert packages.isdisjoint({"requests", "urllib3", "charset_normalizer", "certifi"})
    assert "consul.std" not in modules
    assert "charset_normalizer" not in maps
