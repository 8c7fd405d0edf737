"""No output of the program contains a token or a password, in any failure, with a real Consul and a real kernel."""

from __future__ import annotations

import base64
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

import pytest

from clb_discovery.datapath.instance import RUN
from clb_discovery.stderr import LEVELS
from tests.support.consul import ACL_DENY, MASTER_TOKEN, ConsulAgent
from tests.support.process import free_port, wait_until
from tests.support.sidecar import clb, clb_here, sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

PASSWORD: Final = "correct-horse-battery"  # noqa: S105 - it opens nothing
WRONG_TOKEN: Final = "deadbeef-0000-0000-0000-00000000beef"  # noqa: S105 - as above
SECRETS: Final = (
    MASTER_TOKEN,
    WRONG_TOKEN,
    PASSWORD,
    base64.b64encode(f"user:{PASSWORD}".encode()).decode().rstrip("="),
)
SERVICE: Final = ("--service", "web=10.64.0.1:80")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Run a Consul that rejects requests without the token."""
    with ConsulAgent(tmp_path_factory.mktemp("consul"), config=ACL_DENY, token=MASTER_TOKEN) as found:
        found.register("web", 8080, "10.0.0.1")
        yield found


def assert_silent(text: str) -> None:
    """Check that the text has none of the secrets."""
    assert not [secret for secret in SECRETS if secret in text], text


def said(result: CompletedProcess[str]) -> str:
    """Return the whole output of a command."""
    assert result.stdout + result.stderr
    return result.stdout + result.stderr


def scraped(port: int) -> str:
    """Return the metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture
def _secret_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", WRONG_TOKEN)  # a file has precedence
    monkeypatch.setenv("CONSUL_HTTP_AUTH", f"user:{PASSWORD}")


@pytest.mark.usefixtures("_secret_environment")
@pytest.mark.parametrize("mode", [("console", "debug"), *(("json", level) for level in LEVELS)])
def test_sidecar_never_tells_a_secret(
    instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent, mode: tuple[str, str]
) -> None:
    """With rejected tokens, Consul down, and bad configurations, at every log level and in both formats."""
    token, config, state, port = tmp_path / "token", tmp_path / "clb.toml", tmp_path / "state", free_port()
    token.write_text(MASTER_TOKEN)
    good = f'consul = "{agent.url}"\nconsul-token-file = "{token}"\n[[service]]\nname = "web"\nconsul = "web"\n'
    config.write_text(good + 'vip = "10.64.0.1:80"\n')
    form, level = mode
    options = ["--config", str(config), "--state-dir", str(state), "--metrics", f"127.0.0.1:{port}"]
    with sidecar(instance, cgroup, tmp_path, [*options, "--log-format", form, "--log-level", level]) as found:

        def reread(text: str) -> None:
            config.write_text(text)
            found.process.send_signal(signal.SIGHUP)
            wait_until(lambda: status(instance)["sidecar"]["config_error"] is not None, "the file is refused")
            assert_silent(said(clb_here("status", "--json", "--instance", instance)))

        def fails() -> bool:
            return status(instance)["sources"][0]["error"] is not None

        for wrong in (
            f'consul = "http://user:{PASSWORD}@127.0.0.1:8500"\n',
            f'consul = "user:{PASSWORD}@consul"\n',
            f'consul_url = "http://user:{PASSWORD}@127.0.0.1:8500"\n',
            f'consul = ["http://user:{PASSWORD}@127.0.0.1:8500"]\n',
        ):
            reread(wrong + '[[service]]\nname = "web"\nconsul = "web"\n')
        token.write_text(f"{WRONG_TOKEN}\n")
        config.write_text(good)
        found.process.send_signal(signal.SIGHUP)
        wait_until(fails, "the token is rejected")
        token.write_text(f"{MASTER_TOKEN} and {WRONG_TOKEN}")
        reread(good)
        agent.stop()
        wait_until(lambda: "refuse" in str(status(instance)["sources"][0]["error"]), "Consul is gone")
        outputs = [said(clb("status", "--instance", instance)), scraped(port)]
        agent.start()
        agent.register("web", 8080, "10.0.0.1")
        assert found.stop() == 0
    files = [path for folder in (RUN / instance, state) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 1
    log = found.log.read_text()
    assert level == "error" or ("web" in log and "fails" in log)
    for text in (log, *outputs, *(path.read_text() for path in files)):
        assert_silent(text)


@pytest.mark.parametrize(
    "wrong",
    [
        (["--consul", f"http://user:{PASSWORD}@127.0.0.1:8500"], {}),
        (["--consul", f"https://user:{PASSWORD}@127.0.0.1:8500/path"], {}),
        (["--consul", f"user:{PASSWORD}@127.0.0.1:8500"], {}),
        ([f"--consul-url=http://user:{PASSWORD}@127.0.0.1:8500"], {}),
        (["--consul"], {"CONSUL_HTTP_ADDR": f"http://user:{PASSWORD}@127.0.0.1:8500"}),
        (["--consul"], {"CONSUL_HTTP_TOKEN": f"{WRONG_TOKEN}\n"}),
        (["--consul", "{url}"], {"CONSUL_HTTP_TOKEN": WRONG_TOKEN}),
        (["--consul", "{url}"], {"CONSUL_HTTP_AUTH": f"user:{PASSWORD}\n"}),
        (["--consul", "{tls}"], {"CONSUL_HTTP_TOKEN": MASTER_TOKEN, "CONSUL_HTTP_AUTH": f"user:{PASSWORD}"}),
        (["--consul", "{url}", "--consul-token-file", "{several}"], {}),
    ],
)
@pytest.mark.parametrize("command", [["run", "--once"], ["plan"], ["check"]])
def test_commands_never_tell_a_secret(
    instance: str,
    cgroup: Path,
    tmp_path: Path,
    agent: ConsulAgent,
    *,
    command: list[str],
    wrong: tuple[list[str], dict[str, str]],
) -> None:
    """With errors in options, environment and answers of Consul, the message has no secret."""
    arguments, env = wrong
    several = tmp_path / "several"
    several.write_text(f"{MASTER_TOKEN} {WRONG_TOKEN}")
    places = {"{url}": agent.url, "{tls}": agent.url.replace("http:", "https:"), "{several}": str(several)}
    typed = [places.get(argument, argument) for argument in arguments]
    where = ["--instance", instance, *([] if command == ["plan"] else ["--cgroup", str(cgroup)])]
    assert_silent(said(clb(*command, *where, *typed, *SERVICE, env=env)))
