"""The interface of a source: it waits for its next complete answer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from clb_discovery.model.answer import Answer, Listing


class Source(Protocol):
    """One name in Consul or DNS, or the list of a catalog's names."""

    @property
    def name(self) -> str:
        """Name in status, logs and metrics, such as `consul:redis`."""

    async def next(self) -> Answer | Listing:
        """Wait for the next complete answer and return it, whether or not it differs from the last.

        The first call returns at once; later ones wait for a change (Consul) or for the TTL (DNS).

        :raises SourceError: if discovery gave no complete answer. The next call tries again, at once; but after an
            UnusableError, which is an answer, it waits as after any other.
        """

    def hasten(self) -> None:
        """Query discovery at once: cut short the wait of `next`, whether it is waiting now or called later.

        An answer to queries which were sent after this call and do not block follows, or a failure; answers to earlier
        queries may come before it, because no answer is lost.
        """


@runtime_checkable
class Explaining(Source, Protocol):
    """A source that can find out why an answer of it is empty."""

    async def why_empty(self) -> str | None:
        """Query discovery for the reason of an empty answer; None if nothing more is known.

        :raises SourceError: if discovery gave no complete answer.
        """


@runtime_checkable
class CatalogSource(Source, Protocol):
    """The list of services in a catalog that may opt in; its answers are `Listing`s."""

    def service(self, name: str) -> Source:
        """Return the source of one of these services.

        :raises UsageError: if Consul cannot be queried for this name.
        """
