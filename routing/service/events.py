"""Reading the events of a log in order, and following the log as it grows.

A follower polls the head. Notifications of a database could only save it some polls: they are lost while a connection
is down, and distributed databases lack them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from ledger import Row, Store
from ledger.codec import GENESIS_HASH, decode, reservation_id, row_hash
from ledger.errors import CorruptLedger, LogWentBack, PositionOutOfRange
from ledger.events import (
    AllowanceReserved,
    BlockRecorded,
    BlockWithdrawn,
    CollateralRecorded,
    Event,
    ExpiryRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    LedgerOpened,
    ManifestsRecorded,
    ManifestsWithdrawn,
    MinerExcluded,
    MinerReadmitted,
    ReservationReleased,
    ReservationSpent,
    StateSealed,
    account_of,
)
from ledger.results import Result
from ledger.values import instant, seconds
from routing.stored_rows import row_at
from routing.texts import counted, seconds_text

POLL_SECONDS = 0.2
"""How long a follower waits at the end of the log before it looks again."""


class StoredEvent(Result, msgspec.Struct, frozen=True):
    """One event of a log, with the columns that belong to it.

    `version` counts within `stream`; `recorded_at` is in UTC. `job_uuid` is the job of a reservation, None for other
    events and for a reservation without a job. `reservation_id` is the reservation that the event made or settled.
    `hash` is the row's, in hexadecimal digits; it covers all earlier events. The classes of `event` are in
    `ledger.events`; in `to_dict` it is a dict whose `type` is the stored tag. `allowance events --schema` prints the
    JSON Schema.
    """

    position: int
    stream: str
    version: int
    recorded_at: datetime
    event: Event
    job_uuid: str | None = None
    reservation_id: int | None = None
    hash: str = ""

    @property
    def type(self) -> str:
        """The stored tag of the event, such as `allowance-reserved`."""
        return str(type(self.event).__struct_config__.tag)

    @property
    def summary(self) -> str:
        """The few words by which an operator recognizes the event."""
        return _summary(self)


class Cursor:
    """A place in a stored log: it reads what follows, and notices if the log no longer leads there."""

    def __init__(self, position: int) -> None:
        self.position: int = position
        self._hash = GENESIS_HASH

    async def start(self, store: Store) -> None:
        """Look up the place. Raises `PositionOutOfRange` if the log does not have it."""
        if self.position:
            row = await row_at(store, self.position)
            if row is None:
                raise PositionOutOfRange(f"position {self.position}", 0, (await store.head()).position)
            self._hash = row.hash

    async def read(self, store: Store, until: int) -> list[StoredEvent]:
        """Return the next events up to a position, a page at most, and move behind them; empty at the end of the log.

        Raises `LogWentBack` if the log was replaced by another one, or lacks events that were read.
        """
        rows = [row for row in await store.read(self.position) if row.position <= until]
        if rows:
            await self._check_continuation(store, rows[0])
            self.position, self._hash = rows[-1].position, rows[-1].hash
        return [stored_event(row) for row in rows]

    async def has_more(self, store: Store) -> bool:
        """Whether the log has grown. Raises `LogWentBack` if it has shrunk or been replaced."""
        head = store.probe_head() or await store.head()
        if head.position < self.position or (head.position == self.position and head.hash != self._hash):
            raise LogWentBack(self.position, head.position, 0)
        return head.position > self.position

    async def _check_continuation(self, store: Store, row: Row) -> None:
        """Each row's hash covers the hash before it, so one hash proves that no event was skipped or replaced."""
        if row.position == self.position + 1 and row_hash(self._hash, row) == row.hash:
            return
        last = await row_at(store, self.position)
        if self.position and (last is None or last.hash != self._hash):
            raise LogWentBack(self.position, (await store.head()).position, 0)
        raise CorruptLedger(self.position + 1, "its hash does not continue that of the event before it")


def stored_event(row: Row) -> StoredEvent:
    """Return the event of a stored row with its columns. Raises `CorruptLedger` and `NewerLedger`."""
    event = decode(row.position, row.payload)
    about: int | None = None
    match event:
        case AllowanceReserved():
            about = reservation_id(row.position, row.hash)
        case ReservationSpent() | ReservationReleased() | ExpiryRecorded():
            about = event.reservation_id
    recorded_at = instant(row.recorded_at_ns)
    # Miner facts have other values in the column of the job, which contain a tab.
    job_uuid = None if row.job_uuid is None or "\t" in row.job_uuid else row.job_uuid
    return StoredEvent(row.position, row.stream, row.version, recorded_at, event, job_uuid, about, row.hash.hex())


def _summary(stored: StoredEvent) -> str:
    words = ""
    match stored.event:
        case LedgerOpened(validator_ss58=validator_ss58):
            words = f"validator {validator_ss58}"
        case BlockRecorded(number=number):
            words = f"block {number}"
        case ManifestsRecorded(block=block, offered=offered):
            words = f"sync at block {block}, {counted(len(offered), 'miner')} changed"
        case BlockWithdrawn(number=number, reason=reason):
            words = f"block {number}: {reason}"
        case ManifestsWithdrawn(block=block, reason=reason):
            words = f"sync at block {block}: {reason}"
        case StateSealed(position=position):
            words = f"position {position}"
        case AllowanceReserved(amount_ns=amount_ns):
            miner_ss58, executor_class = account_of(stored.stream)
            job = f", job {stored.job_uuid}" if stored.job_uuid else ""
            words = f"{stored.reservation_id}, {seconds_text(seconds(amount_ns))} on {miner_ss58} {executor_class}{job}"
        case ReservationSpent() | ReservationReleased() | ExpiryRecorded():
            words = str(stored.reservation_id)
        case _:
            words = _summary_of_miner_fact(stored)
    return words


def _summary_of_miner_fact(stored: StoredEvent) -> str:
    words = ""
    match stored.event:
        case MinerExcluded() | MinerReadmitted():
            words = f"{stored.event.miner_ss58}: {stored.event.reason}"
        case CollateralRecorded(changed=changed):
            words = f"{counted(len(changed), 'miner')} changed"
        case JobElsewhereRecorded(job_uuid=job_uuid):
            _, miner_ss58, executor_class = stored.stream.split("\t")
            words = f"job {job_uuid} on {miner_ss58} {executor_class}"
        case JobElsewhereEnded(job_uuid=job_uuid):
            words = f"job {job_uuid}"
        case IncidentReported():
            event = stored.event
            words = f"{event.kind}: job {event.job_uuid} on {event.miner_ss58} {event.executor_class}"
    return words


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `StoredEvent.to_dict()`, with all events of this release."""
    return msgspec.json.schema(StoredEvent)
