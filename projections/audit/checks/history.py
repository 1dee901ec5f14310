"""The history's read model, compared with the log row by row, up to its checkpoint.

Rule: derived tables never decide, and the history shows of each reservation what the log says. A history row describes
how a reservation was made and how it was settled. The first half is compared when the replay reaches the reservation;
the second half waits until the replay reaches the settlement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ledger import Row, Status, Store
from ledger.events import ExpiryRecorded, ReservationReleased, ReservationSpent, Settlement
from ledger.values import storable_ns
from projections.audit.state import AuditedReservation
from projections.history.model import NO_CHECKPOINT, RESERVATIONS, Checkpoint, HistoryModel
from projections.history.rows import BUCKET_BLOCKS, HistoryRow
from projections.rules import Findings, Rule

StoredRow = tuple[Any, ...]
"""A history row as stored, with the fields of `HistoryRow` in their order."""
SettlementColumns = tuple[Status, int | None, int | None]
"""Status, position of the settlement, recorded time of the settlement."""
UNSETTLED: SettlementColumns = ("reserved", None, None)
MODULUS = 2**31 - 1
"""Positions and block numbers are summed modulo this prime, so that a database's integers cannot overflow."""
CLAIM_COLUMNS = HistoryRow._fields.index("status")
"""How many of the first fields describe how the reservation was made."""


class BucketSums(NamedTuple):
    """A fingerprint of a bucket's runs of blocks: other runs are very unlikely to have the same.

    Sums are compared instead of rows, because the database computes them without sending every run.
    """

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
_encode = msgspec.json.Encoder().encode


class HistoryCheck:
    """Compares one generation of the model with the log."""

    def __init__(self, store: Store, checkpoint: Checkpoint, until: int, findings: Findings, *, start: int = 0) -> None:
        """Compare the rows after `start`, the position at which the replay begins."""
        self.checkpoint = checkpoint
        self.until = min(checkpoint.position, until)
        """The last position that both the model and the audit cover."""
        self._findings = findings
        self._model = HistoryModel(store)
        self._store = store
        self._start = self._position = start
        """The last position that was compared."""
        self._stored_settlements: dict[int, SettlementColumns] = {}
        """By position of the reservation, settlements in the model that the replay has not reached."""
        self._active: set[int] = set()
        self._bucket_sums: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        """What the log says of each bucket, in the order of `BucketSums`."""

    async def is_still_live(self) -> bool:
        """Return whether no rebuild has replaced the generation."""
        return (await self._model.live()).generation == self.checkpoint.generation

    async def compare(self, position: int, changes: Sequence[AuditedReservation | tuple[Row, Settlement]]) -> None:
        """Compare the model's rows up to `position` with the reservations and settlements since the last call."""
        position = min(position, self.until)
        if position <= self._position:
            return
        until, stored = self.until, {row[0]: row for row in await self._read_rows(position)}
        for change in changes:
            if type(change) is AuditedReservation:
                if change.position > until:
                    break
                self._compare_reservation(change, stored.pop(change.position, None))
            elif type(change) is tuple:
                row, event = change
                if row.position > until:
                    break
                self._compare_settlement(row, event)
        for history_row in stored.values():
            message = "the history has a reservation that is not in the log"
            self._report(history_row[0], message, HistoryRow._make(history_row)._asdict(), {})
        self._position = position

    async def finish(self) -> None:
        """Report settlements that the log does not have, and compare the blocks of each bucket."""
        for position, settlement in sorted(self._stored_settlements.items()):
            message = "the history has a settlement that is not in the log"
            self._report(position, message, _settlement_fields(settlement), {})
        if self._start:
            return  # The sums are those of all reservations.
        stored = await self._read_bucket_sums()
        for bucket in sorted(stored.keys() | self._bucket_sums.keys()):
            found, expected = stored.get(bucket, NO_RUNS), BucketSums(*self._bucket_sums[bucket])
            if found != expected:
                first = bucket * BUCKET_BLOCKS
                last = first + BUCKET_BLOCKS - 1
                message = f"the history's index of reservations by block differs for blocks {first} to {last}"
                self._report(self.until, message, found._asdict(), expected._asdict())

    def _compare_reservation(self, reservation: AuditedReservation, stored: StoredRow | None) -> None:
        position, row, event = reservation.position, reservation.row, reservation.event
        blocks, account = event.blocks, reservation.account
        self._add_to_bucket_sums(position, blocks)
        expected: StoredRow = (
            position,
            reservation.reservation_id,
            account.miner_ss58,
            account.executor_class,
            row.job_uuid,
            event.amount_ns,
            _encode(blocks),
            event.job_start_block,
            row.recorded_at_ns,
            storable_ns(event.expires_at_ns),
        )
        if stored is None:
            message = "the history lacks a reservation"
            self._report(position, message, {}, HistoryRow._make(expected + UNSETTLED)._asdict())
            return
        self._active.add(position)
        if stored[:CLAIM_COLUMNS] != expected:
            differing = [at for at in range(CLAIM_COLUMNS) if stored[at] != expected[at]]
            message = f"the history differs in {', '.join(HistoryRow._fields[at] for at in differing)}"
            of_model, of_log = (
                {HistoryRow._fields[at]: fields[at] for at in differing} for fields in (stored, expected)
            )
            self._report(position, message, of_model, of_log)
        settled_position = stored[CLAIM_COLUMNS + 1]
        # The model may be ahead of the audit: settlements after `until` are not compared.
        if settled_position is None or settled_position <= self.until:
            settlement: SettlementColumns = stored[CLAIM_COLUMNS:]
            if settlement != UNSETTLED:
                self._stored_settlements[position] = settlement

    def _compare_settlement(self, row: Row, event: Settlement) -> None:
        settles = row.settles or 0
        expected: SettlementColumns = (_STATUS[type(event)], row.position, row.recorded_at_ns)
        if settles not in self._active:
            return  # Its history row is missing, or it settles nothing; both are reported elsewhere.
        self._active.discard(settles)
        found = self._stored_settlements.pop(settles, UNSETTLED)
        if found != expected:
            message = "the history's settlement differs from the log's"
            self._report(settles, message, _settlement_fields(found), _settlement_fields(expected))

    def _add_to_bucket_sums(self, position: int, blocks: Sequence[tuple[int, int]]) -> None:
        """Cut a reservation's runs at the borders of buckets, as the model does, and add them to the sums."""
        for run_first, run_last in blocks:
            first, last_bucket = run_first, run_last // BUCKET_BLOCKS
            for bucket in range(run_first // BUCKET_BLOCKS, last_bucket + 1):
                last = run_last if bucket == last_bucket else bucket * BUCKET_BLOCKS + BUCKET_BLOCKS - 1
                sums = self._bucket_sums[bucket]
                sums[0] += 1
                sums[1] += position % MODULUS
                sums[2] += first % MODULUS
                sums[3] += last % MODULUS
                first = last + 1

    async def _read_rows(self, position: int) -> list[StoredRow]:
        return await self._store.derived_query(
            f"SELECT {', '.join(HistoryRow._fields)} FROM {RESERVATIONS} WHERE ledger = {self._store.ledger}"
            f" AND generation = {self.checkpoint.generation} AND position > {self._position}"
            f" AND position <= {position} ORDER BY position"
        )

    async def _read_bucket_sums(self) -> dict[int, BucketSums]:
        if self.checkpoint == NO_CHECKPOINT:
            return {}  # There is no history to compare, and no reason to import SQLAlchemy.
        async with self._model.connection() as connection:
            from sqlalchemy import func, select

            from projections.tables import reserved_blocks

            columns = reserved_blocks.c
            sums = [func.sum(columns[name] % MODULUS) for name in ("position", "first_block", "last_block")]
            query = (
                select(columns.bucket, func.count(), *sums)
                .where(
                    self._model.in_generation(reserved_blocks, self.checkpoint.generation),
                    columns.position <= self.until,
                )
                .group_by(columns.bucket)
            )
            rows = await connection.execute(query)
            return {int(bucket): BucketSums(*map(int, sums)) for bucket, *sums in rows}

    def _report(self, position: int, message: str, of_model: dict[str, object], of_log: dict[str, object]) -> None:
        self._findings.add(position, Rule.HISTORY_MODEL, message, told=_shown(of_model), log=_shown(of_log))


def _settlement_fields(settlement: SettlementColumns) -> dict[str, object]:
    return dict(zip(HistoryRow._fields[CLAIM_COLUMNS:], settlement, strict=True))


def _shown(fields: dict[str, object]) -> dict[str, object]:
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in fields.items()
    }
