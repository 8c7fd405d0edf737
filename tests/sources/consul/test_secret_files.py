"""Secrets that are replaced while they are in use."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from clb_discovery.errors import HostError
from clb_discovery.sources.consul.environment import Settings, token
from clb_discovery.sources.consul.secret_files import SecretFile

ONE: Final = "1ebf7f9a-93c8-4f1c-a1d6-6d2a9d7f0a11"
TWO: Final = "2ebf7f9a-93c8-4f1c-a1d6-6d2a9d7f0a11"


def rotated(file: Path) -> SecretFile[str]:
    """Return the token of a file."""
    found = token(Settings({"CONSUL_HTTP_TOKEN_FILE": str(file)}, {}))
    assert isinstance(found, SecretFile)
    return found


def replace(file: Path, text: str) -> None:
    """Replace a file atomically."""
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def events(logs: list[Any]) -> list[str]:
    """Return the log lines; they must not contain a secret."""
    assert not any(secret in str(line) for line in logs for secret in (ONE, TWO))
    return [str(line["event"]) for line in logs if isinstance(line, Mapping)]


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    """The new content is used from the next query on, with one log line."""
    file = tmp_path / "token"
    replace(file, ONE)
    found = rotated(file)
    with capture_logs() as logs:
        assert found.get() == ONE
        replace(file, f"{TWO}\n")
        assert [found.get(), found.get()] == [TWO, TWO]
    assert events(logs) == ["secret reloaded"]


def test_a_link_that_leads_elsewhere_is_read_again(tmp_path: Path) -> None:
    """If the file is a link into a directory that is replaced as a whole, its new target counts."""
    for name, text in (("old", ONE), ("new", TWO)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(text, encoding="utf-8")
    current, swapped = tmp_path / "current", tmp_path / "swapped"
    current.symlink_to("old")
    found = rotated(current / "token")
    swapped.symlink_to("new")
    swapped.replace(current)
    assert found.get() == TWO


@pytest.mark.parametrize("text", ["", f"{TWO} {TWO}", "\xff" * 5000, None])
def test_an_unusable_file_changes_nothing(tmp_path: Path, text: str | None) -> None:
    """While a file is empty, malformed or missing the previous secret stays, with one warning."""
    file = tmp_path / "token"
    replace(file, ONE)
    found = rotated(file)
    with capture_logs() as logs:
        replace(file, text) if text is not None else file.unlink()
        assert [found.get(), found.get()] == [ONE, ONE]
        replace(file, TWO)
        assert found.get() == TWO
    assert events(logs) == ["secret reload failed; keeping the previous one", "secret reloaded"]
    assert f"CONSUL_HTTP_TOKEN_FILE '{file}'" in str(logs[0]["error"])


def test_a_file_that_becomes_readable_after_it_was_written_is_read_again(tmp_path: Path) -> None:
    """A new file often belongs to another user first, and is given to that of the sidecar afterwards."""
    file = tmp_path / "token"
    replace(file, ONE)

    def read() -> str:
        if file.stat().st_mode & 0o040 == 0:  # as root every file is readable
            raise HostError("permission denied")
        return file.read_text(encoding="utf-8")

    file.chmod(0o640)
    found = SecretFile("token", [file], read)
    new = tmp_path / "new"
    new.touch(0o600)
    new.write_text(TWO, encoding="utf-8")
    new.replace(file)
    assert found.get() == ONE
    time.sleep(0.02)  # the clock of the file system is coarse
    file.chmod(0o640)
    assert found.get() == TWO


def test_a_file_that_is_unusable_at_the_start_is_an_error(tmp_path: Path) -> None:
    """There is no previous secret then."""
    with pytest.raises(HostError, match="No such file"):
        rotated(tmp_path / "token")
