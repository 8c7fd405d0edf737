"""The instructions of the documents for units, and for Consul with them, run as they are written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.consul import ACL_DENY, MASTER_TOKEN, ConsulAgent
from tests.support.documents import DOCUMENTS, ROOT, blocks, drop_ins, other_command_lines
from tests.support.process import wait_until
from tests.vm.systemd.guest.host import (
    CONFIG,
    CONSUL_CONFIG,
    DATAPATH,
    UNITS,
    VIP4,
    WRITER,
    Client,
    answers,
    configure_beside,
    is_active,
    run,
    show,
    status,
    systemctl,
)

TOKEN: Final = Path("/etc/clb-discovery/consul-token")


def commands() -> list[str]:
    """Return every command for systemd that names a unit or a file, in their order; those that turn it off are last."""
    programs = ("cp", "install", "systemctl", "systemd-sysusers", "journalctl")
    found = [line for document in DOCUMENTS for line in other_command_lines(document.read_text(), *programs)]
    whole = [line for line in found if not re.fullmatch(r"systemctl (?!daemon)\S+(?: --now)?", line)]
    return sorted(dict.fromkeys(whole), key=lambda line: " disable " in line)


@pytest.fixture(autouse=True, scope="module")
def _as_installed() -> None:
    """Remove drop-ins, and restore the configuration of the first boot."""
    shutil.rmtree(UNITS / f"{WRITER}.d", ignore_errors=True)
    shutil.copy(Path(__file__).with_name(CONFIG.name), CONFIG)
    configure_beside("shop")
    systemctl("daemon-reload")
    systemctl("restart", WRITER)


@contextmanager
def edited_by_hand(unit: str, text: str, directory: Path) -> Iterator[None]:
    """Give a drop-in to `systemctl edit`, which needs a terminal and an editor; restart the unit, and undo it."""
    typed, editor = directory / "typed", directory / "editor"
    typed.write_text(text)
    editor.write_text(f'#!/bin/sh\nfor file; do :; done\nexec cp {typed} "$file"\n')  # systemd 257 prints a line first
    editor.chmod(0o755)
    editing = f"env SYSTEMD_EDITOR={editor} systemctl edit {unit}"
    run("script", "--quiet", "--return", "--command", editing, "/dev/null")
    try:
        systemctl("restart", unit)
        yield
    finally:
        shutil.rmtree(UNITS / f"{unit}.d")
        systemctl("daemon-reload")
        systemctl("restart", DATAPATH if unit == WRITER else unit)


def last_words(unit: str) -> str:
    """Return the log of a unit since its last start."""
    invocation = show(unit, "InvocationID")
    return run("journalctl", "--no-pager", "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation}")


def test_commands_of_the_documents(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command works, and the sidecar serves after it, until it is turned off."""
    monkeypatch.chdir(ROOT)
    lines = commands()
    assert len(lines) > 10
    for line in lines:
        run("sh", "-c", line)
        if " disable " not in line:
            wait_until(lambda: is_active(WRITER), f"the sidecar is up after {line}")
    assert show(WRITER, "FragmentPath") == str(UNITS / WRITER)
    wait_until(lambda: is_active("clb-discovery@shop.service"), "the sidecar of the application is up")
    assert status("shop")["datapath"]["effective"]
    assert (is_active(WRITER), is_active(DATAPATH)) == (False, False)
    client.goes_on()


@pytest.mark.parametrize(
    ("unit", "text"), [found for document in DOCUMENTS for found in drop_ins(document.read_text())]
)
def test_drop_ins_of_the_documents(client: Client, tmp_path: Path, unit: str, text: str) -> None:
    """The unit starts with each of them, and has the documented settings."""
    TOKEN.parent.mkdir(exist_ok=True)
    TOKEN.touch(mode=0o600)
    with edited_by_hand(unit, text, tmp_path):
        assert is_active(unit)
        assert (UNITS / f"{unit}.d" / "override.conf").read_text().strip() == text.strip()
        assert f"{unit}.d" in show(unit, "DropInPaths")
        assert "cannot" not in last_words(unit)
        client.goes_on()


def test_token_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is made with the rights and commands in docs/consul.md, and passed as in docs/systemd.md."""
    page = (ROOT / "docs" / "consul.md").read_text()
    (rules,) = (block for block in blocks(page) if block.startswith('service_prefix "" '))
    (tmp_path / "clb-discovery.hcl").write_text(rules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", MASTER_TOKEN)
    ((unit, text),) = (
        found for found in drop_ins((ROOT / "docs" / "systemd.md").read_text()) if str(TOKEN) in found[1]
    )
    with ConsulAgent(tmp_path, http_port=8500, config=ACL_DENY, token=MASTER_TOKEN) as agent:
        agent.register("web", 7002, "127.0.0.2")
        agent.register("web", 7001, "::1")
        *_, said = [run("sh", "-c", line) for line in other_command_lines(page, "consul acl")]
        (secret,) = re.findall(r"^SecretID: +(\S+)$", said, re.MULTILINE)
        TOKEN.write_text(secret)
        CONFIG.write_text(CONSUL_CONFIG)
        with edited_by_hand(unit, text, tmp_path):
            wait_until(lambda: answers(VIP4) == {"127.0.0.2:7002"}, "the sidecar follows Consul by the token")
