"""The history's lines: what a reservation looks like in the read model, and what events make of lines. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from ledger import Reservation, Row, Status, block_numbers, status_after
from ledger.codec import decode, event_tag, reservation_id
from ledger.errors import CorruptLedger, NewerLedger, ProjectionStopped
from ledger.events import AllowanceReserved, Run, Settlement, account_of
from ledger.values import instant, seconds

BUCKET_BLOCKS = 64
UNKNOWN_TYPE = "an event of no known type"

_runs = msgspec.json.Decoder(list[tuple[int, int]])


class HistoryFilters(NamedTuple):
    """What a reservation must be to be shown; None lets everything through."""

    miner_ss58: str | None = None
    executor_class: str | None = None
    job_uuid: str | None = None
    status: Status | None = None
    reserved_from_ns: int | None = None
    reserved_until_ns: int | None = None
    block: int | None = None


class RowSettlement(NamedTuple):
    """How a reservation ended, and by which event."""

    status: Status
    position: int
    at_ns: int
    event_type: str


class BucketRun(NamedTuple):
    """A run of a reservation's blocks, cut at the borders of buckets, to find reservations by block."""

    bucket: int
    position: int
    first_block: int
    last_block: int


class HistoryRow(NamedTuple):
    """A row of the read model."""

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
        """The line as it stood at a position."""
        if self.settled_position is None or self.settled_position <= position:
            return self
        return self._replace(status="reserved", settled_position=None, settled_at_ns=None)

    def ended(self, end: RowSettlement) -> HistoryRow:
        """The line after its end."""
        return self._replace(status=end.status, settled_position=end.position, settled_at_ns=end.at_ns)

    def passes(self, filters: HistoryFilters) -> bool:
        """Whether the filters let it through."""
        return (
            filters.miner_ss58 in (None, self.miner_ss58)
            and filters.executor_class in (None, self.executor_class)
            and filters.job_uuid in (None, self.job_uuid)
            and filters.status in (None, self.status)
            and (filters.reserved_from_ns is None or filters.reserved_from_ns <= self.reserved_at_ns)
            and (filters.reserved_until_ns is None or self.reserved_at_ns < filters.reserved_until_ns)
            and (filters.block is None or any(a <= filters.block <= b for a, b in _runs.decode(self.blocks)))
        )

    def pieces(self) -> Iterator[BucketRun]:
        """The blocks' runs, cut at the borders of buckets."""
        runs: list[Run] = _runs.decode(self.blocks)
        for first, last in runs:
            for bucket in range(first // BUCKET_BLOCKS, last // BUCKET_BLOCKS + 1):
                start = bucket * BUCKET_BLOCKS
                yield BucketRun(bucket, self.position, max(first, start), min(last, start + BUCKET_BLOCKS - 1))

    def reservation(self, validator_ss58: str) -> Reservation:
        """The public form."""
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
    """What the events after a position make of the model: lines that are new, and ends of older ones."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.position = after
        self.lines: dict[int, HistoryRow] = {}
        self.ends: dict[int, RowSettlement] = {}

    def fold(self, row: Row) -> None:
        """Takes the next event; `ProjectionStopped` for one that cannot be taken, and the tail is as before it."""
        if row.position != self.position + 1:
            raise missing_event(self.position + 1)
        try:
            event = decode(row.position, row.payload)
        except (CorruptLedger, NewerLedger) as cause:
            raise ProjectionStopped(row.position, event_tag(row.payload) or UNKNOWN_TYPE, str(cause)) from cause
        if isinstance(event, AllowanceReserved):
            self.lines[row.position] = history_row(row, event)
        elif isinstance(event, Settlement):
            self._end(row, event)
        self.position = row.position

    def _end(self, row: Row, event: Settlement) -> None:
        event_type = str(event.__struct_config__.tag)
        settles = row.settles
        if settles is None or not 0 < settles < row.position:
            raise ProjectionStopped(row.position, event_type, "it settles no earlier event")
        end = RowSettlement(status_after(event), row.position, row.recorded_at_ns, event_type)
        line = self.lines.get(settles)
        if settles in self.ends or (settles > self.after and (line is None or line.status != "reserved")):
            raise ProjectionStopped(row.position, event_type, f"no reservation made at position {settles} stands")
        if line is not None:
            self.lines[settles] = line.ended(end)
        else:
            self.ends[settles] = end


def history_row(row: Row, event: AllowanceReserved) -> HistoryRow:
    """The line of a reservation that has just been made."""
    miner_ss58, executor_class = account_of(row.stream)
    return HistoryRow(
        row.position,
        reservation_id(row.position, row.hash),
        miner_ss58,
        executor_class,
        row.job_uuid,
        event.amount_ns,
        msgspec.json.encode(event.blocks),
        event.job_start_block,
        row.recorded_at_ns,
        event.expires_at_ns,
        "reserved",
        None,
        None,
    )


def fold_tail(after: int, rows: list[Row]) -> tuple[UnprojectedTail, ProjectionStopped | None]:
    """What rows make of the model, up to the first that cannot be taken, and its refusal."""
    tail = UnprojectedTail(after)
    if not rows:
        return tail, missing_event(after + 1)
    for row in rows:
        try:
            tail.fold(row)
        except ProjectionStopped as stopped:
            return tail, stopped
    return tail, None


def missing_event(position: int) -> ProjectionStopped:
    """The log lacks an event that it must have."""
    return ProjectionStopped(position, "no event", "the log has nothing there, although it goes on")
