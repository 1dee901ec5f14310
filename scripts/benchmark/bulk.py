"""Makes a ledger in bulk: the ledger's own code decides the events, and many are appended in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledger import Store, UnitOfWork, store_from_url
from ledger.domain.lookup import LookupResult
from ledger.store.contract import versions_before
from projections import Availability, schema
from routing import Allowance

from .chain import HOTKEY, Clock


class Bulk:
    """A new ledger, and its state in memory."""

    def __init__(self, url: str) -> None:
        self.state = Availability()
        self._url = url

    def decide(self) -> UnitOfWork:
        """Return a unit of work for the next batch; nothing that it decides looks up a stored row."""
        return UnitOfWork(self.state, LookupResult(), self.state.recorded_at_ns)

    async def append(self, unit_of_work: UnitOfWork) -> None:
        """Append the rows of a batch."""
        rows = unit_of_work.rows
        async with _opened(self._url) as store, store.transaction() as transaction:
            await transaction.append(rows, versions_before(rows))

    async def seal(self) -> None:
        """Project the history and seal the state, as a service does that is used and closed here."""
        async with Allowance.open(
            self._url, validator_ss58=HOTKEY, clock_ns=Clock(self.state.recorded_at_ns)
        ) as ledger:
            await ledger.history(limit=1)
        async with _opened(self._url) as store:
            self.state.fold(await store.read(self.state.position))


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Store]:
    store = store_from_url(url, HOTKEY, read_only=False)
    await store.open(schema)
    try:
        yield store
    finally:
        await store.close()
