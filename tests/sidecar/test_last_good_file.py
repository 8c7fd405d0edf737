"""The file of the last good sets: written when it is due, replaced as a whole, and ignored if it is unusable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from clb_discovery.datapath.instance import state_directory
from clb_discovery.errors import HostError
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import RealServer, pools
from clb_discovery.sidecar.last_good_file import Store
from clb_discovery.state.last_good import LastGood

ONE = {"srv:web": LastGood(pools((RealServer(0, parse_address("10.0.0.1"), 80, 1),)), 99)}
TWO = {"srv:web": LastGood(pools((RealServer(0, parse_address("10.0.0.2"), 80, 1),)), 100)}


def timeless(sets: dict[str, LastGood]) -> dict[str, LastGood]:
    """Return the sets as they are published, without a time."""
    return {source: one._replace(answered=None) for source, one in sets.items()}


def test_what_is_written_is_read_by_the_next_sidecar(tmp_path: Path) -> None:
    """Each instance has a file, the newest write counts, and nothing else is left in the directory."""
    directory = tmp_path / "made"
    for sets in (ONE, TWO):
        Store(directory, "default").write(sets, 0)
    Store(directory, "other").write(ONE, 0)
    assert (Store(directory, "default").read(), Store(directory, "other").read()) == (TWO, ONE)
    assert sorted(path.name for path in directory.iterdir()) == ["default.json", "other.json"]


def test_without_a_directory_nothing_is_kept() -> None:
    """If neither systemd nor the operator gave a directory, nothing is due, written or read."""
    store = Store(None, "default")
    assert not store.is_due(timeless(ONE), 0)
    store.write(ONE, 0)
    assert store.read() == {}


def test_write_is_due_when_servers_have_changed_and_a_second_is_over(tmp_path: Path) -> None:
    """An equal set is not written again; a change within a second of the last write waits for its end."""
    store = Store(tmp_path, "default")
    assert not store.is_due({}, 50)
    assert store.is_due(timeless(ONE), 50)
    store.write(ONE, 50)
    assert not store.is_due(timeless(ONE), 60)
    assert not store.is_due(timeless(TWO), 50.9)
    assert store.is_due(timeless(TWO), 51)


def test_failed_write_leaves_the_file_and_is_due_again(tmp_path: Path) -> None:
    """A disk that rejects the write keeps the old file, and the next try comes later."""
    store = Store(tmp_path, "default")
    store.write(ONE, 0)
    (tmp_path / ".default.json.clb-discovery").mkdir()  # in the way
    with pytest.raises(HostError, match=r"default\.json: .*; --state-dir needs"):
        store.write(TWO, 10)
    assert store.read() == ONE
    assert not store.is_due(timeless(TWO), 10.9)
    assert store.is_due(timeless(TWO), 11)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not JSON"),
        (b"\xff\xfe\x00", "it is not JSON"),
        (b'{"version":1,"sources":{"srv:web":{"ans', "it is not JSON"),
        (json.dumps({"version": 2, "sources": {}}).encode(), "it is not of version 1"),
        (b"[]" + b" " * 1000, "it is longer than 1000 bytes"),
    ],
)
def test_garbage_is_one_warning(tmp_path: Path, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unusable file is ignored with one warning that has its name and the reason."""
    for module in ("clb_discovery.state.last_good", "clb_discovery.sidecar.last_good_file"):
        monkeypatch.setattr(f"{module}.MAX_BYTES", 1000)
    file = tmp_path / "default.json"
    file.write_bytes(content)
    with capture_logs() as logs:
        assert Store(tmp_path, "default").read() == {}
    assert [(line["log_level"], line["file"], line["reason"]) for line in logs] == [("warning", str(file), reason)]


def test_file_that_cannot_be_read_is_one_warning(tmp_path: Path) -> None:
    """An unreadable file is ignored with one warning; a missing file is not worth one."""
    (tmp_path / "default.json").mkdir()
    with capture_logs() as logs:
        assert Store(tmp_path, "default").read() == {}
        assert Store(tmp_path, "other").read() == {}
    assert [line["reason"] for line in logs] == ["Is a directory"]


def test_state_directory() -> None:
    """The option counts, else the first directory that systemd made, else nothing is kept."""
    assert state_directory({"STATE_DIRECTORY": "/b:/c"}) == Path("/b")
    assert state_directory({"STATE_DIRECTORY": ""}) is None
    assert state_directory({}) is None


def test_only_the_directory_itself_is_made(tmp_path: Path) -> None:
    """If the parent directory is missing, that is an error, and nothing is made."""
    with pytest.raises(HostError, match="its parent directory must exist"):
        Store(tmp_path / "no" / "such", "default").write(ONE, 0)
    assert not list(tmp_path.iterdir())


def test_directory_of_others_is_not_believed(tmp_path: Path) -> None:
    """Sets that any user may have written are not served, and none are written there."""
    Store(tmp_path, "default").write(ONE, 0)
    tmp_path.chmod(0o777)
    with capture_logs() as logs:
        assert Store(tmp_path, "default").read() == {}
    assert "can be written by every user" in logs[0]["reason"]
    with pytest.raises(HostError, match="can be written by every user"):
        Store(tmp_path, "default").write(TWO, 10)
