"""Work inside other network namespaces, where this process may not be able to start a thread."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from clb_discovery.datapath.sockets.namespaces import inside


def test_a_thread_that_cannot_be_started_is_an_error_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets of that namespace stay open, which is reported; the sidecar goes on."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    other = os.open("/proc/self/ns/mnt", os.O_RDONLY)  # any that is not ours
    with pytest.raises(OSError, match="can't start new thread; raise TasksMax="):
        inside(other, lambda: None)
    os.close(other)
