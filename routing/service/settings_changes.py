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


async def settings_records(store: Store, until: int) -> list[SettingsRecord]:
    """Return all records of settings up to a position; on the runtime's loop.

    No index finds the events of one stream, so this reads the whole log. It decodes the rows of that stream only.
    """
    rows: list[Row] = []
    position = 0
    while position < until and (page := await store.read(position)):
        rows += [row for row in page if row.stream == SETTINGS_STREAM and row.position <= until]
        position = page[-1].position
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
