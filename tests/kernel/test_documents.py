"""Every `clb-discovery` and `curl` command line of the documents, run as it is written, and `check` of every example.

The environment is the one that the documents assume: Consul on its usual port, a DNS server that the host uses, the
same one over TLS, and real servers that refuse, so that `trace` prints something. Only instance and cgroup are
replaced, to avoid other data planes of this host.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.support import namespaces
from tests.support.cgroups import run_inside
from tests.support.consul import ConsulAgent
from tests.support.documents import DOCUMENTS, EXAMPLES, ROOT, command_lines, other_command_lines
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.process import running, wait_until
from tests.support.sidecar import COMMAND
from tests.support.spares import loaded_instance
from tests.support.tls import Authority, tls_front
from tests.support.web import web_servers

instance = loaded_instance

ZONES: Final = {
    "example.com": "_redis._tcp SRV 0 1 6379 a\n_postgresql._tcp SRV 0 1 5432 a\na A 10.0.0.7\ndb A 10.0.0.7\n",
    "eu-west-1.rds.amazonaws.com": "orders.abc123 A 10.0.0.7\n",
}
ADDRESSES: Final = ("10.0.0.7", "10.0.0.53")
FOLLOWS: Final = ("--consul", "--service", "redis=10.64.0.1:6379")
"""Replaces the options that a document leaves out, as in `clb-discovery plan …`."""
FOLLOWERS: Final = frozenset({"plan", "run"})
SOURCES: Final = frozenset({"--consul", "--srv", "--dns", "--config"})
ENDLESS: Final = frozenset({"trace", "--watch"})
INTERRUPTED: Final = 130
EXIT_CODES: Final[Mapping[str, frozenset[int]]] = {"plan": frozenset({0, 2}), "status": frozenset({0, 1})}


def lines() -> Iterator[tuple[str, ...]]:
    """Return each command line once, with `run` written out; lines with NAME in them are patterns."""
    found = (tuple(words) for document in DOCUMENTS for words in command_lines(document.read_text()))
    written_out = (words if words and not words[0].startswith("-") else ("run", *words) for words in found)
    return (words for words in dict.fromkeys(written_out) if "NAME" not in " ".join(words))


def fetches() -> list[str]:
    """Return each line that fetches a page by a name of the hosts file."""
    return [line for document in DOCUMENTS for line in other_command_lines(document.read_text(), "curl")]


def test_every_command_line_of_the_documents_runs(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Sidecars become ready and end with 0, tables and traces print something, and all others exit as documented."""
    with namespaces.by_mount() as namespace:
        namespaces.inside(namespace, partial(_in_surroundings, instance, cgroup, tmp_path))


def _in_surroundings(instance: str, cgroup: Path, directory: Path) -> None:
    for address in ADDRESSES:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    etc = directory / "etc"
    shutil.copytree("/etc", etc, symlinks=True)
    (etc / "resolv.conf").unlink(missing_ok=True)
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    shutil.copy(ROOT / "docs" / "examples" / "postgres-static.toml", directory / "clb.toml")
    authority = Authority(directory)
    with (
        ConsulAgent(directory, http_port=8500) as consul,
        KnotServer(ZONES, port=53),
        _dns_over_tls(authority),
        web_servers(ADDRESSES[0]) as (web,),
    ):
        for service, port in (("redis", 6379), ("web", web.server_port), ("api", web.server_port)):
            meta = {"clb-vip": "10.64.0.1:6379"} if service == "redis" else {}
            consul.register(service, port, ADDRESSES[0], Meta=meta)
        host = _Host(instance, cgroup, directory, {"SSL_CERT_FILE": str(authority.certificate)})
        host.follow(("run", *FOLLOWS))  # so that there is something to show
        for words in lines():
            host.run(words)
            if "--hosts-file" in words:
                assert [host.fetch(line) for line in fetches()] == [web.name]
        for example in EXAMPLES:
            host.run(("check", "--config", str(example)))


@contextmanager
def _dns_over_tls(authority: Authority) -> Iterator[None]:
    """Serve DNS over TLS on port 853 of 10.0.0.53, as dns.example.com, with the answers of Knot."""
    context = authority.issue("DNS:dns.example.com")
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with tls_front(53, context, ("10.0.0.53", 853)):
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(patient(20))
        yield
    finally:
        done.set()
        thread.join()


class _Host:
    """The host on which the lines are typed."""

    def __init__(self, instance: str, cgroup: Path, directory: Path, environment: Mapping[str, str]) -> None:
        self._instance = instance
        self._cgroup = cgroup
        self._directory = directory
        self._environment = {**os.environ, **environment}

    def run(self, words: Sequence[str]) -> None:
        """Run a line, and check that it works."""
        if _is_help(words):
            self._ends(words)
            return
        if words[0] in FOLLOWERS and SOURCES.isdisjoint(words):
            words = [*words, *FOLLOWS]
        if words[0] == "run":
            self.follow(words)
        elif ENDLESS.isdisjoint(words):
            self._ends(words)
        else:
            self._tells(words)

    def follow(self, words: Sequence[str]) -> None:
        """Run a sidecar until it is ready, then end it."""
        log = self._directory / "sidecar.log"
        log.unlink(missing_ok=True)
        with running(self._line(words), log, env=self._environment) as process:
            wait_until(lambda: '"event": "ready"' in log.read_text(), f"{' '.join(words)} is ready:\n{log.read_text()}")
            process.send_signal(signal.SIGTERM)
            assert process.wait(patient(20)) == 0, words

    def fetch(self, line: str) -> str:
        """Return what `curl` prints in the cgroup."""
        result = run_inside(self._cgroup, *self._with_copied_etc(), *shlex.split(line), "--silent", "--show-error")
        assert result.returncode == 0, f"{line}: {result.stderr}"
        return result.stdout

    def _ends(self, words: Sequence[str]) -> None:
        result = subprocess.run(
            self._line(words),
            check=False,
            capture_output=True,
            text=True,
            timeout=patient(60),
            env=self._environment,
        )
        said = f"{' '.join(words)}: {result.stdout}{result.stderr}"
        assert result.returncode in EXIT_CODES.get(words[0], {0}), said
        assert result.stderr == "", said

    def _tells(self, words: Sequence[str]) -> None:
        """Run a command that does not end by itself until it has printed something, then interrupt it."""
        self.follow(("run", *FOLLOWS))  # the line before may have been an unload
        with subprocess.Popen(
            self._line(words), stdout=subprocess.PIPE, text=True, env=self._environment, start_new_session=True
        ) as process:
            assert process.stdout is not None
            told = threading.Thread(target=process.stdout.readline)
            told.start()
            while told.is_alive() and process.poll() is None:
                run_inside(self._cgroup, "python3", "-c", _CONNECT)
            told.join(patient(20))
            assert process.poll() is None, words
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(patient(20)) == INTERRUPTED, words

    def _line(self, words: Sequence[str]) -> list[str | Path]:
        """Return the command adapted to this host."""
        for option in ("--instance", "--cgroup"):
            if option in words:
                at = list(words).index(option)
                words = [*words[:at], *words[at + 2 :]]
        own = [] if _is_help(words) or words[0] == "instances" else ["--instance", self._instance]
        own += ["--cgroup", str(self._cgroup)] if own and words[0] in {"run", "load", "check"} else []
        if own and words[0] in {"run", "check"} and "--config" not in words:  # lines for one host name another range
            own += ["--real-range", "10.0.0.0/8"]
        return [*self._with_copied_etc(), *COMMAND, *words, *own]

    def _with_copied_etc(self) -> list[str | Path]:
        """Return a prefix that runs a program in a mount namespace with the copy of /etc."""
        etc = 'cd "$0" && mount --bind etc /etc && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", etc, self._directory]


def _is_help(words: Sequence[str]) -> bool:
    return "--help" in words or words[0] == "help"


_CONNECT: Final = """
import socket
try:
    socket.create_connection(("10.64.0.1", 6379), 5)
except OSError:
    pass
"""


def test_lines_are_found() -> None:
    """The test above runs lines of several documents, and of every command."""
    found = list(lines())
    assert len(found) > 20
    assert {"run", "status", "instances", "plan", "trace", "check", "load", "unload"} <= {words[0] for words in found}


@pytest.mark.parametrize("option", ["--instance", "--cgroup"])
def test_replaced_words_stand_in_a_line(option: str) -> None:
    """Some lines name an instance and a cgroup of their own, which the test above replaces."""
    assert any(option in words for words in lines())
