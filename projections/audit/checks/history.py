"""The history's read model held against the log: line by line, up to its checkpoint.

A line says how a reservation began and how it ended. The beginnings come from the log in the model's own order and are
compared as they come; what the model says of an end waits until the log comes to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ledger import Row, Status, Store
from ledger.events import ExpiryRecorded, ReservationReleased, ReservationSpent, Settlement
from projections.audit.state import AuditedReservation
from projections.history.model import RESERVATIONS, Checkpoint, HistoryModel
from projections.history.rows import BUCKET_BLOCKS, HistoryRow
from projections.rules import Findings, Rule

Stored = tuple[Any, ...]
"""A line as it is stored, its fields in the order of `HistoryRow`."""
SettlementColumns = tuple[Status, int | None, int | None]
"""Status, and position and time of the settlement."""
UNSETTLED: SettlementColumns = ("reserved", None, None)
MODULUS = 2**31 - 1
"""Keeps sums within what a database adds up."""
CLAIM_COLUMNS = HistoryRow._fields.index("status")
"""How many fields of a line, the first ones, tell how it began."""


class BucketSums(NamedTuple):
    """The pieces in a bucket, told by their number and by sums that only the same pieces are likely to have."""

    number: int
    positions: int
    first_blocks: int
    last_blocks: int


NO_RUNS = BucketSums(0, 0, 0, 0)
_STATUS: dict[type[Settlement], Status] = {
    ReservationSpent: "spent",
    ReservationReleased: "released",
    ExpiryRecorded: "expired",
}
"""What an end is called in the history."""
_encode = msgspec.json.Encoder().encode


class HistoryCheck:
    """Compares one generation of the model with the log."""

    def __init__(self, store: Store, place: Checkpoint, until: int) -> None:
        self.findings = Findings()
        self.place = place
        self.until = min(place.position, until)
        """Both the model and the audit reach at least so far."""
        self._model = HistoryModel(store)
        self._store = store
        self._position = 0
        """How far it has compared."""
        self._told: dict[int, SettlementColumns] = {}
        """Ends that the model tells, and that the log has not come to."""
        self._active: set[int] = set()
        self._pieces: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        """What the log makes of each bucket of blocks, as `BucketSums`."""

    async def is_still_live(self) -> bool:
        """Whether the generation was not replaced by another meanwhile."""
        return (await self._model.live()).generation == self.place.generation

    async def take(self, position: int, page: Sequence[AuditedReservation | tuple[Row, Settlement]]) -> None:
        """Compares what the log made and ended up to a position with what the model says of it."""
        position = min(position, self.until)
        if position <= self._position:
            return
        until, lines = self.until, {line[0]: line for line in await self._lines(position)}
        for each in page:
            if type(each) is AuditedReservation:
                if each.position > until:
                    break
                self._begin(each, lines.pop(each.position, None))
            elif type(each) is tuple:
                row, event = each
                if row.position > until:
                    break
                self._end(row, event)
        for line in lines.values():
            told = HistoryRow._make(line)._asdict()
            self._note(line[0], "the history has a reservation that the log has not", told, {})
        self._position = position

    async def end(self) -> None:
        """Compares what can be told only at the end: ends that the log never came to, and the blocks by bucket."""
        for position, told in sorted(self._told.items()):
            self._note(position, "the history tells of an end that the log does not", _end_fields(told), {})
        told_pieces = await self._pieces_told()
        for bucket in sorted(told_pieces.keys() | self._pieces.keys()):
            told_here, here = told_pieces.get(bucket, NO_RUNS), BucketSums(*self._pieces[bucket])
            if told_here != here:
                first = bucket * BUCKET_BLOCKS
                message = (
                    f"the history finds other reservations by block, from block {first} to {first + BUCKET_BLOCKS - 1}"
                )
                self._note(self.until, message, told_here._asdict(), here._asdict())

    def _begin(self, active: AuditedReservation, line: Stored | None) -> None:
        position, row, event, account_state = active.position, active.row, active.event, active.account_state
        blocks = event.blocks
        self._cut(position, blocks)
        expected: Stored = (
            position,
            active.reservation_id,
            account_state.miner_ss58,
            account_state.executor_class,
            row.job_uuid,
            event.amount_ns,
            _encode(blocks),
            event.job_start_block,
            row.recorded_at_ns,
            event.expires_at_ns,
        )
        if line is None:
            self._note(
                position, "the history lacks a reservation", {}, HistoryRow._make(expected + UNSETTLED)._asdict()
            )
            return
        self._active.add(position)
        if line[:CLAIM_COLUMNS] != expected:
            differing = [at for at in range(CLAIM_COLUMNS) if line[at] != expected[at]]
            message = f"the history differs in {', '.join(HistoryRow._fields[at] for at in differing)}"
            told, of_log = ({HistoryRow._fields[at]: fields[at] for at in differing} for fields in (line, expected))
            self._note(position, message, told, of_log)
        settled_position = line[CLAIM_COLUMNS + 1]
        if settled_position is None or settled_position <= self.until:
            end: SettlementColumns = line[CLAIM_COLUMNS:]
            if end != UNSETTLED:
                self._told[position] = end

    def _cut(self, position: int, blocks: Sequence[tuple[int, int]]) -> None:
        """Adds up a reservation's blocks by bucket, runs cut at the borders of buckets."""
        for run_first, run_last in blocks:
            first, end = run_first, run_last // BUCKET_BLOCKS
            for bucket in range(run_first // BUCKET_BLOCKS, end + 1):
                last = run_last if bucket == end else bucket * BUCKET_BLOCKS + BUCKET_BLOCKS - 1
                pieces = self._pieces[bucket]
                pieces[0] += 1
                pieces[1] += position % MODULUS
                pieces[2] += first % MODULUS
                pieces[3] += last % MODULUS
                first = last + 1

    def _end(self, row: Row, event: Settlement) -> None:
        settles = row.settles or 0
        expected: SettlementColumns = (_STATUS[type(event)], row.position, row.recorded_at_ns)
        if settles not in self._active:
            return  # Its line is missing, or it ends nothing; either is noted elsewhere.
        self._active.discard(settles)
        told = self._told.pop(settles, UNSETTLED)
        if told != expected:
            self._note(settles, "the history tells of another end", _end_fields(told), _end_fields(expected))

    async def _lines(self, position: int) -> list[Stored]:
        return await self._store.query(
            f"SELECT {', '.join(HistoryRow._fields)} FROM {RESERVATIONS} WHERE ledger = {self._store.ledger}"
            f" AND generation = {self.place.generation} AND position > {self._position} AND position <= {position}"
            " ORDER BY position"
        )

    async def _pieces_told(self) -> dict[int, BucketSums]:
        async with self._model.connection() as connection:
            from sqlalchemy import func, select

            from projections.tables import reserved_blocks

            columns = reserved_blocks.c
            sums = [func.sum(columns[name] % MODULUS) for name in ("position", "first_block", "last_block")]
            query = (
                select(columns.bucket, func.count(), *sums)
                .where(
                    self._model.in_generation(reserved_blocks, self.place.generation), columns.position <= self.until
                )
                .group_by(columns.bucket)
            )
            rows = await connection.execute(query)
            return {int(bucket): BucketSums(*map(int, sums)) for bucket, *sums in rows}

    def _note(self, position: int, message: str, told: dict[str, object], log: dict[str, object]) -> None:
        self.findings.add(position, Rule.HISTORY_MODEL, message, told=_shown(told), log=_shown(log))


def _end_fields(end: SettlementColumns) -> dict[str, object]:
    return dict(zip(HistoryRow._fields[CLAIM_COLUMNS:], end, strict=True))


def _shown(fields: dict[str, object]) -> dict[str, object]:
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in fields.items()
    }
