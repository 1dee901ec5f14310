"""Logs without a ledger on top: stores, and rows that follow one another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ledger import Head, Row, Store, store_from_url
from ledger.codec import row_hash
from projections import schema

VALIDATOR = "validator-of-ours"
PAYLOAD = b'\x00\xff {"type": "of any bytes"} \xe2\x82'


@asynccontextmanager
async def opened(url: str, validator_ss58: str = VALIDATOR, *, read_only: bool = False) -> AsyncIterator[Store]:
    """A validator's log at a URL, made where it is not there yet."""
    store = store_from_url(url, validator_ss58, read_only=read_only)
    try:
        await store.open(None if read_only else schema)
        yield store
    finally:
        await store.close()


def row_after(head: Head, stream: str = "stream", version: int = 1, **columns: Any) -> Row:
    """The row that follows a head, with its hash."""
    row = Row(head.position + 1, stream, version, head.recorded_at_ns + 1, None, None, None, None, PAYLOAD, b"")
    row = row._replace(**columns)
    return row._replace(hash=row_hash(head.hash, row))


def rows_after(head: Head, count: int, stream: str = "stream", version: int = 1) -> list[Row]:
    """Rows of one stream that follow a head, from a version on."""
    rows: list[Row] = []
    for n in range(count):
        rows.append(row_after(head, stream, version + n))
        head = head_at(rows[-1])
    return rows


def head_at(row: Row) -> Head:
    """Where a log stands that ends with the row."""
    return Head(row.position, row.hash, row.recorded_at_ns)


async def append(store: Store, rows: list[Row]) -> Head:
    """Appends rows in a transaction."""
    async with store.transaction() as transaction:
        await transaction.append(rows)
    return head_at(rows[-1])


async def all_rows(store: Store) -> list[Row]:
    """The whole log, page by page."""
    rows: list[Row] = []
    while page := await store.read(len(rows)):
        rows += page
    return rows
