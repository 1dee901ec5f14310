"""Changes of a ledger's settings: listed from its log, and logged when this process makes one."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Any

import msgspec

from ledger import Row, SettingsChange, Store
from ledger.codec import decode
from ledger.events import SETTINGS_STREAM, LedgerOpened, SettingsChanged
from ledger.results import Result
from ledger.values import instant

log: logging.Logger = logging.getLogger("allowance.ledger")

SEARCHED_ROWS = 10_000
"""Rows that one query searches; about 10 ms."""


class SettingsRecord(Result, msgspec.Struct, frozen=True):
    """An event that recorded settings: `changes` has (old, new) by field, in the units of `Settings`.

    The first one founded the ledger: it has all fields, and every old value is None.
    """

    position: int
    recorded_at: datetime
    changes: dict[str, tuple[Any, Any]]


def log_change(change: SettingsChange, level: int, by: str) -> None:
    """Log the old and the new value of each field that a command changed; nothing if it changed none."""
    changes = change.before.differences(change.after)
    if change.position is None or not changes:
        return
    listed = ", ".join(f"{field}: {old!r} -> {new!r}" for field, (old, new) in changes.items())
    extra = {"position": change.position, "changes": changes, "changed_by": by}
    log.log(level, "settings changed by %s at position %d: %s", by, change.position, listed, extra=extra)


async def settings_records(store: Store, until: int, count: int) -> list[SettingsRecord]:
    """Return all records of settings up to a position; on the runtime's loop. `count` is their number, which ends it.

    No index finds the events of one stream, so the store looks at every row up to the last record. Most ledgers have
    one record, at the beginning.
    """
    rows: list[Row] = []
    for after in range(0, until, SEARCHED_ROWS):
        if len(rows) >= count:
            break
        rows += await store.read_streams([SETTINGS_STREAM], after, min(after + SEARCHED_ROWS, until))
        # The runtime's loop serves every ledger of the process.
        await asyncio.sleep(0)
    return _records(rows)


def _records(rows: list[Row]) -> list[SettingsRecord]:
    records: list[SettingsRecord] = []
    before = None
    for row in rows:
        event = decode(row.position, row.payload)
        if isinstance(event, (LedgerOpened, SettingsChanged)):
            founded = {field: (None, value) for field, value in event.settings.to_fields().items()}
            changes = founded if before is None else before.differences(event.settings)
            records.append(SettingsRecord(row.position, instant(row.recorded_at_ns), changes))
            before = event.settings
    return records
