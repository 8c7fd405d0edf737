"""What a source is: it only knows how to wait for its next complete answer."""

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

        The first call answers at once; later ones wait for a change (Consul) or for the TTL (DNS).

        :raises SourceError: when discovery could not say. The next call tries again, at once.
        """

    def hasten(self) -> None:
        """Have discovery queried at once: what `next` waits for, now or when it is called next, is cut short.

        The answer that follows is of a query sent after this call, and of one that does not block.
        """


@runtime_checkable
class CatalogSource(Source, Protocol):
    """The list of the names in a catalog that may opt in; its answers are `Listing`s."""

    def service(self, name: str) -> Source:
        """Return the source of one of them.

        :raises UsageError: if it cannot be asked for.
        """
