"""Every scenario runs while the client connects, and none of its connects may fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.vm.systemd.guest.host import Client


@pytest.fixture
def client() -> Client:
    """Return the client that connects all the time."""
    return Client("client")


@pytest.fixture
def app() -> Client:
    """Return the application that has a sidecar of its own, once it is started."""
    return Client("app")


@pytest.fixture(autouse=True)
def _no_connect_fails(client: Client, app: Client, record_property: Callable[[str, object], None]) -> Iterator[None]:
    before, failures = client.counts(), [*client.failures(), *app.failures()]
    yield
    for connecting in (client, app):
        if connecting.is_running:
            connecting.goes_on()
    after = client.counts()
    record_property("connects", after.made - before.made)
    record_property("failed", after.failed - before.failed)
    assert [*client.failures(), *app.failures()] == failures
    assert after.failed == before.failed
    assert after.made > before.made
