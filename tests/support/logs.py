"""Stores without a service above them, and rows that form a valid hash chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ledger import Head, Row, RowExists, Store, Transaction, VersionConflict, store_from_url, versions_before
from ledger.codec import row_hash
from projections import schema

VALIDATOR = "validator-of-ours"
PAYLOAD = b'\x00\xff {"type": "of any bytes"} \xe2\x82'


@asynccontextmanager
async def opened(url: str, validator_ss58: str = VALIDATOR, *, read_only: bool = False) -> AsyncIterator[Store]:
    """Open a validator's log at a URL; create it if it does not exist."""
    store = store_from_url(url, validator_ss58, read_only=read_only)
    try:
        await store.open(None if read_only else schema)
        yield store
    finally:
        await store.close()


def row_after(head: Head, stream: str = "stream", version: int = 1, **columns: Any) -> Row:
    """Return the row that follows a head, with its hash; `columns` replaces values of its other columns."""
    row = Row(head.position + 1, stream, version, head.recorded_at_ns + 1, None, None, None, None, PAYLOAD, b"")
    row = row._replace(**columns)
    return row._replace(hash=row_hash(head.hash, row))


def rows_after(head: Head, count: int, stream: str = "stream", version: int = 1) -> list[Row]:
    """Return rows of one stream that follow a head, the first with this version."""
    rows: list[Row] = []
    for n in range(count):
        rows.append(row_after(head, stream, version + n))
        head = head_at(rows[-1])
    return rows


def head_at(row: Row) -> Head:
    """Return the head of a log that ends with this row."""
    return Head(row.position, row.hash, row.recorded_at_ns)


async def append(store: Store, rows: list[Row]) -> Head:
    """Append rows in a transaction; return the new head."""
    async with store.transaction() as transaction:
        await append_in(transaction, rows)
    return head_at(rows[-1])


async def append_in(transaction: Transaction, rows: list[Row]) -> None:
    """Append rows in a transaction, expecting of their streams the versions that the rows continue."""
    await transaction.append(rows, versions_before(rows))


async def append_at(store: Store, head: Head, rows: list[Row]) -> bool:
    """Append rows if the head is still this one; return False if it is not, or if a row conflicts."""
    try:
        return await store.append(lambda _: rows, versions_before(rows), at=head) is not None
    except (RowExists, VersionConflict):
        return False


async def all_rows(store: Store) -> list[Row]:
    """Return the whole log, read page by page."""
    rows: list[Row] = []
    while page := await store.read(len(rows)):
        rows += page
    return rows
