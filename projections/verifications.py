"""The recorded results of `verify`, and verification in pieces, which goes on where the last one ended.

A recorded result is no evidence, since whoever can change the log can change it too. It tells an operator whether the
timer that verifies still runs, and `verify --since` where to go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from ledger import Head, Store, StoredLedger
from ledger.errors import CorruptLedger, LedgerNotFound, PositionOutOfRange

from .snapshots import ProgressReport
from .verify import LogCheck, VerifyReport

VERIFICATIONS_SINCE_SCHEMA = 2
"""The schema version that has the table. An older database that is only read does not."""
PIECE_ROWS = 50_000
"""About a quarter of a second. Between two pieces the database is not read, so that SQLite can truncate its WAL."""
_COLUMNS = "position, hash, verified_at_ns, findings, first_bad_position"

log = logging.getLogger("allowance.ledger")


class Verification(NamedTuple):
    """A recorded result: the rows up to `position` were as they were written at `verified_at_ns`.

    `findings` and `first_bad_position` are about the rows after it that were checked at the same time.
    """

    position: int
    hash: bytes
    verified_at_ns: int
    findings: int
    first_bad_position: int | None


async def last_verification(store: Store) -> Verification | None:
    """Return the recorded result, None if there is none. Raises `StorageUnavailable` if the table is lost."""
    if await store.schema_version() < VERIFICATIONS_SINCE_SCHEMA:
        return None
    rows = await store.query(f"SELECT {_COLUMNS} FROM allowance_verifications WHERE ledger = {store.ledger}")
    return Verification(*rows[0]) if rows else None


async def record_verification(store: Store, start: Head, report: VerifyReport, verified_at_ns: int) -> None:
    """Record the result of checking the rows after `start`, instead of the recorded one.

    With findings, the log is known to be good only up to `start`. A check that began after the recorded position left
    rows unchecked, so it moves nothing; it is recorded only if it found something.
    """
    last = await last_verification(store)
    if start.position > (0 if last is None else last.position):
        if not report.findings:
            return
        start = Head() if last is None else Head(last.position, last.hash)
    good = start if report.findings else report.head
    values = (store.ledger, good.position, good.hash, verified_at_ns, report.found, report.first_bad_position)
    async with store.write_verifications() as transaction:
        await transaction.execute_many("DELETE FROM allowance_verifications WHERE ledger = ?", [(store.ledger,)])
        await transaction.execute_many(
            f"INSERT INTO allowance_verifications (ledger, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", [values]
        )


class PiecewiseVerification:
    """The verification of one ledger of an open store in pieces; the result is recorded after each of them."""

    def __init__(
        self, store: Store, stored: StoredLedger, clock_ns: Callable[[], int], progress: ProgressReport | None
    ) -> None:
        self._store = store
        self._stored = stored
        self._clock_ns = clock_ns
        self._progress = progress

    async def run(self, since: int | None) -> VerifyReport:
        """Check the rows after a position, or after the one recorded last, and return the result for all of them.

        Raises `PositionOutOfRange` if the log has no row at `since`.
        """
        started = time.perf_counter()
        start = await self._recorded_start() if since is None else await self._start_at(since)
        last = await last_verification(self._store)
        check = LogCheck(start=start)
        while True:
            is_last = await self._check_piece(check)
            report = check.report(self._stored, time.perf_counter() - started)
            # While a check that began below the recorded position is running, it does not move that back.
            goes_on = last is None or report.head.position >= last.position
            if is_last or (goes_on and not report.findings):
                await record_verification(self._store, start, report, self._clock_ns())
            if is_last:
                return report

    async def _check_piece(self, check: LogCheck) -> bool:
        """Check the next rows; at the end of the log also the head row, and return True."""
        until = check.events + PIECE_ROWS
        async with self._store.reader() as reader:
            # Its head row is of the same snapshot as the rows.
            stored = next((each for each in await reader.ledgers() if each.ledger == self._stored.ledger), None)
            if stored is None:
                raise LedgerNotFound(self._store.validator_ss58)
            try:
                async for page in reader.pages(stored, check.row_checker.position):
                    check.check_page(page)
                    if self._progress is not None:
                        self._progress(check.row_checker.position, max(stored.position, check.row_checker.position))
                    await asyncio.sleep(0)  # Others get a turn after each page.
                    if check.events >= until:
                        return False
            except CorruptLedger as unreadable:
                check.stop_at(unreadable)
            versions = await reader.versions(stored)
            reader.check_unchanged()
            check.check_heads(await reader.head(stored))
            check.check_streams(versions)
        return True

    async def _recorded_start(self) -> Head:
        last = await last_verification(self._store)
        if last is None:
            return Head()
        found = await self._head_at(last.position)
        if found is None or found.hash != last.hash:
            log.warning("the row at the verified position %d is another one by now", last.position)
            return Head()
        return found

    async def _start_at(self, position: int) -> Head:
        found = await self._head_at(position)
        if found is None:
            raise PositionOutOfRange(f"position {position}", 0, (await self._store.head()).position)
        return found

    async def _head_at(self, position: int) -> Head | None:
        """Return the head that the log had at a position, None if there is no row."""
        if position == 0:
            return Head()
        rows = await self._store.read(position - 1)
        return Head(position, rows[0].hash, rows[0].recorded_at_ns) if rows and rows[0].position == position else None
