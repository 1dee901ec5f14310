"""Rows of the reservation history, and how events create and settle them. Pure functions, no database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ledger import LookupResult, Origin, Reservation, Row, Status, block_numbers, origin_of, settlement_of, status_after
from ledger.codec import decode, event_tag, reservation_id
from ledger.errors import CorruptLedger, NewerLedger, ProjectionStopped
from ledger.events import AllowanceReserved, Run, Settlement, account_of
from ledger.values import instant, seconds, storable_ns

BUCKET_BLOCKS = 64
"""Blocks per bucket. An index serves a search by equality on `bucket`, not one for the runs that contain a block.

The rows of `allowance_reserved_blocks` are stored by it, so a change of it needs another `MODEL_VERSION`.
"""
UNKNOWN_TYPE = "an event of no known type"

_runs = msgspec.json.Decoder(list[tuple[int, int]])


class HistoryFilters(NamedTuple):
    """Conditions that a reservation must meet, all of them; None is no condition. Times are in `[from, until)`.

    `due_by_ns`: the due time is not later. With the status `reserved` and a clock's time, the reservation is overdue.
    """

    miner_ss58: str | None = None
    executor_class: str | None = None
    job_uuid: str | None = None
    status: Status | None = None
    reserved_from_ns: int | None = None
    reserved_until_ns: int | None = None
    block: int | None = None
    due_by_ns: int | None = None
    origin: Origin | None = None
    """The read model does not have it: `History.page` looks at the log's event of each reservation."""


class RowSettlement(NamedTuple):
    """The settlement of a reservation: the new status, and the position, time and stored type of its event."""

    status: Status
    position: int
    at_ns: int
    event_type: str


class BucketRun(NamedTuple):
    """A run of a reservation's blocks that lies in one bucket; `position` is that of the reservation."""

    bucket: int
    position: int
    first_block: int
    last_block: int


class HistoryRow(NamedTuple):
    """A reservation as a row of the read model; the fields are the columns of `allowance_reservations`, in order."""

    position: int
    reservation_id: int
    miner_ss58: str
    executor_class: str
    job_uuid: str | None
    amount_ns: int
    blocks: bytes
    job_start_block: int
    reserved_at_ns: int
    expires_at_ns: int
    status: Status
    settled_position: int | None
    settled_at_ns: int | None

    def as_of(self, position: int) -> HistoryRow:
        """Return the row as it was at a position: without a settlement that came later."""
        if self.settled_position is None or self.settled_position <= position:
            return self
        return self._replace(status="reserved", settled_position=None, settled_at_ns=None)

    def settled(self, settlement: RowSettlement) -> HistoryRow:
        """Return the row with a settlement."""
        return self._replace(
            status=settlement.status, settled_position=settlement.position, settled_at_ns=settlement.at_ns
        )

    def matches(self, filters: HistoryFilters) -> bool:
        """Return True if the row meets every condition."""
        return (
            filters.miner_ss58 in (None, self.miner_ss58)
            and filters.executor_class in (None, self.executor_class)
            and filters.job_uuid in (None, self.job_uuid)
            and filters.status in (None, self.status)
            and (filters.reserved_from_ns is None or filters.reserved_from_ns <= self.reserved_at_ns)
            and (filters.reserved_until_ns is None or self.reserved_at_ns < filters.reserved_until_ns)
            and (filters.due_by_ns is None or self.expires_at_ns <= filters.due_by_ns)
            and (filters.block is None or any(a <= filters.block <= b for a, b in _runs.decode(self.blocks)))
        )

    def bucket_runs(self) -> Iterator[BucketRun]:
        """Yield the runs of blocks, cut at the borders of buckets."""
        runs: list[Run] = _runs.decode(self.blocks)
        for first, last in runs:
            for bucket in range(first // BUCKET_BLOCKS, last // BUCKET_BLOCKS + 1):
                start = bucket * BUCKET_BLOCKS
                yield BucketRun(bucket, self.position, max(first, start), min(last, start + BUCKET_BLOCKS - 1))

    def reservation(self, validator_ss58: str) -> Reservation:
        """Return the public form."""
        return Reservation(
            self.reservation_id,
            self.status,
            validator_ss58,
            self.miner_ss58,
            self.executor_class,
            self.job_uuid,
            seconds(self.amount_ns),
            block_numbers(_runs.decode(self.blocks)),
            self.job_start_block,
            instant(self.reserved_at_ns),
            instant(self.expires_at_ns),
            None if self.settled_at_ns is None else instant(self.settled_at_ns),
        )


class UnprojectedTail:
    """The fold of the events after a position: new rows, and settlements of rows that are already in the model.

    `rows` and `settlements` are keyed by the position of the reservation. `position` is that of the last event.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self.position = after
        self.rows: dict[int, HistoryRow] = {}
        self.settlements: dict[int, RowSettlement] = {}

    def evolve(self, event_row: Row) -> None:
        """Apply the next event. Raises `ProjectionStopped` if that is impossible, and leaves the tail unchanged."""
        if event_row.position != self.position + 1:
            raise missing_event(self.position + 1)
        try:
            event = decode(event_row.position, event_row.payload)
        except (CorruptLedger, NewerLedger) as cause:
            raise ProjectionStopped(
                event_row.position, event_tag(event_row.payload) or UNKNOWN_TYPE, str(cause)
            ) from cause
        if isinstance(event, AllowanceReserved):
            self.rows[event_row.position] = new_history_row(event_row, event)
        elif isinstance(event, Settlement):
            self._settle(event_row, event)
        self.position = event_row.position

    def _settle(self, event_row: Row, event: Settlement) -> None:
        event_type = str(event.__struct_config__.tag)
        settles = event_row.settles
        if settles is None or not 0 < settles < event_row.position:
            raise ProjectionStopped(event_row.position, event_type, "it settles no earlier event")
        settlement = RowSettlement(status_after(event), event_row.position, event_row.recorded_at_ns, event_type)
        row = self.rows.get(settles)
        # A reservation at or before `after` is in the model, which the projector asks before it writes the settlement.
        if settles in self.settlements or (settles > self.after and (row is None or row.status != "reserved")):
            reason = f"there is no active reservation of position {settles}"
            raise ProjectionStopped(event_row.position, event_type, reason)
        if row is not None:
            self.rows[settles] = row.settled(settlement)
        else:
            self.settlements[settles] = settlement


def new_history_row(event_row: Row, event: AllowanceReserved) -> HistoryRow:
    """Return the row of a new reservation."""
    miner_ss58, executor_class = account_of(event_row.stream)
    return HistoryRow(
        event_row.position,
        reservation_id(event_row.position, event_row.hash),
        miner_ss58,
        executor_class,
        event_row.job_uuid,
        event.amount_ns,
        msgspec.json.encode(event.blocks),
        event.job_start_block,
        event_row.recorded_at_ns,
        storable_ns(event.expires_at_ns),
        "reserved",
        None,
        None,
    )


def history_row_of(found: LookupResult, position: int, head: int) -> HistoryRow | None:
    """Return the row that follows from the log's looked-up rows, as of a head; None if they make no reservation."""
    event_row = found.rows.get(position)
    event = None if event_row is None else decode(position, event_row.payload)
    if event_row is None or not isinstance(event, AllowanceReserved):
        return None
    row, settlement = new_history_row(event_row, event), settlement_of(found, position)
    if settlement is None or settlement[0].position > head:
        return row
    return row._replace(
        status=status_after(settlement[1]),
        settled_position=settlement[0].position,
        settled_at_ns=settlement[0].recorded_at_ns,
    )


def logged_origin(found: LookupResult, position: int) -> Origin:
    """Return the origin of the reservation that the log has at a position; its row was looked up."""
    event = decode(position, found.rows[position].payload)
    assert isinstance(event, AllowanceReserved)
    return origin_of(event)


def differing_fields(one: HistoryRow, other: HistoryRow) -> list[str]:
    """Return the names of the fields in which two rows differ."""
    return [name for name in HistoryRow._fields if getattr(one, name) != getattr(other, name)]


def fold_tail(after: int, event_rows: list[Row]) -> tuple[UnprojectedTail, ProjectionStopped | None]:
    """Fold events up to the first that cannot be applied; return the tail before it, and the error or None."""
    tail = UnprojectedTail(after)
    if not event_rows:
        return tail, missing_event(after + 1)
    for event_row in event_rows:
        try:
            tail.evolve(event_row)
        except ProjectionStopped as stopped:
            return tail, stopped
    return tail, None


def missing_event(position: int) -> ProjectionStopped:
    """Return the error for a position without an event, below the head of the log."""
    return ProjectionStopped(position, "no event", "the log has no event at this position, but later ones")
