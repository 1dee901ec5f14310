"""Stored rows that are read back: the expiries of an earlier `expire_due`, page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from ledger import EarlierExpiry, Row
from routing import CorruptLedger
from routing.stored_rows import reservations_of_expire_due
from tests.support.small import GPU, VALIDATOR, Clock, small_ledger


async def test_expiries_on_several_pages_are_all_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retried `expire_due` reads as many pages as its first call appended, and no row after them."""
    clock = Clock()
    async with small_ledger(clock=clock) as ledger:
        for _ in range(3):
            await ledger.reserve("5Anna", GPU, 12.0, 11)
        clock.advance(1000)
        expired = await ledger.expire_due(idempotency_key="expire")
        await ledger.reserve("5Anna", GPU, 12.0, 11)
        assert ledger._lifecycle.open_handle is not None
        store = ledger._lifecycle.open_handle.store
        monkeypatch.setattr(store, "read", of_two_rows(store.read))

        assert await ledger.expire_due(idempotency_key="expire") == expired
    assert len(expired) == 3


def of_two_rows(read: Callable[[int], Awaitable[list[Row]]]) -> Callable[[int], Awaitable[list[Row]]]:
    """Return a function that reads pages of two rows."""

    async def read_two(after: int) -> list[Row]:
        return (await read(after))[:2]

    return read_two


async def test_expiries_that_the_log_no_longer_has_are_reported() -> None:
    """The first missing position is named.

    Catches: a loop that waits for ever for rows of a log that was replaced by a shorter one.
    """
    async with small_ledger() as ledger:
        head = await ledger.head()
        assert ledger._lifecycle.open_handle is not None
        store = ledger._lifecycle.open_handle.store

        with pytest.raises(CorruptLedger) as missing:
            await reservations_of_expire_due(store, EarlierExpiry(head.position + 5, 10), VALIDATOR)

    assert missing.value.position == head.position + 1
