"""Defects of the product, to inject into the workers. Each is small, and a mistake that a developer could make.

The judge must report a finding for each of them; the tests say of which kind. The harness first drops all constraints
and triggers, because they would hide a defect of the code.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from ledger import Chain, Head, Row, UnitOfWork, call_queue
from ledger.codec import row_hash
from ledger.deciding import Decider, look_up
from ledger.domain import unit_of_work as unit_of_work_module
from ledger.locked_append import LockedAppend
from ledger.store.postgres import appending as postgres_appending
from ledger.store.postgres import statements
from ledger.store.sqlite.store import SqliteStore
from routing import pick as pick_module
from tests.support.logs import append_in
from tests.support.raw_rows import insert_rows

WIDENED_S = 0.01
"""How long a defect waits inside a race window, so that the race happens often enough."""
FAILING_COMMITS = 20
"""One of this many commits fails."""


def inject(name: str) -> None:
    """Replace the correct code in this process by a defect."""
    FAULTS[name]()


def no_lock() -> None:
    """An append takes no lock, and writes behind the head that its process believes to be the newest."""

    @asynccontextmanager
    async def unguarded(self: SqliteStore, while_waiting: Any = None) -> AsyncIterator[None]:
        async with self._process_lock:
            yield

    def append(self: SqliteStore, head: Head, rows: list[Row], expected: Any) -> None:
        time.sleep(WIDENED_S)
        _insert(self, rows, rows[-1])

    _replace(SqliteStore, "_exclusive", unguarded)
    _replace(SqliteStore, "_append", append)


def no_compare() -> None:
    """On PostgreSQL, an append compares neither the head nor its streams."""
    compared, uncompared = "position = $3 AND hash = $4 AND", "position <> -$3::bigint AND $4::bytea IS NOT NULL AND"
    _replace(postgres_appending, "APPEND", statements.APPEND.replace(compared, uncompared).replace(*_NO_STREAMS))


def no_stream_comparison() -> None:
    """On PostgreSQL, an append does not compare the versions of its streams."""
    _replace(postgres_appending, "APPEND", statements.APPEND.replace(*_NO_STREAMS))


_NO_STREAMS = ("coalesce(known.version, 0) AS actual", "asked.expected AS actual")


def outrun_drops() -> None:
    """A claim is final if its account is unchanged since the decision, even if the facts have changed."""
    _decide_before_reading(lambda row, moved: row.stream not in moved)


def no_version_check() -> None:
    """A claim is final even if its account has changed since the decision, and the store does not compare."""

    def append(self: SqliteStore, head: Head, rows: list[Row], expected: Any) -> None:
        _insert(self, rows, rows[-1])

    _replace(SqliteStore, "_append", append)
    _decide_before_reading(lambda row, moved: True)


def stale_blocks() -> None:
    """If its account has changed, a claim gets the next version, but takes the blocks of the old decision."""

    def is_final(row: Row, moved: set[str]) -> bool:
        return row.stream not in moved or (b"allowance-reserved" in row.payload and all("\t" in each for each in moved))

    _decide_before_reading(is_final, renumber=True)


def acknowledge_before_commit() -> None:
    """Callers get their results after the decision; now and then the process dies before the commit."""
    decide, commit, commits = Decider.decide, SqliteStore._commit, itertools.count(1)

    def decide_and_acknowledge(self: Decider, unit_of_work: Any, commands: list[Any]) -> None:
        decide(self, unit_of_work, commands)
        call_queue.resolve_futures(commands)

    def die_or_commit(self: SqliteStore, connection: sqlite3.Connection) -> None:
        if next(commits) % FAILING_COMMITS == 0:
            time.sleep(WIDENED_S)
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self, connection)

    _replace(Decider, "decide", decide_and_acknowledge)
    _replace(SqliteStore, "_commit", die_or_commit)


def serve_failed_commits() -> None:
    """Now and then a commit fails, and the writer ignores it."""
    commit, commits = SqliteStore._commit, itertools.count(1)

    def failing(self: SqliteStore, connection: sqlite3.Connection) -> None:
        if next(commits) % FAILING_COMMITS:
            commit(self, connection)
        else:
            connection.execute("ROLLBACK")

    _replace(SqliteStore, "_commit", failing)


def reuse_ids() -> None:
    """Each process counts ids for itself."""
    ids = itertools.count(1 << 20)
    correct = pick_module.Pick._route

    def route(self: Any, reservation: Any, state: Any) -> Any:
        return dataclasses.replace(correct(self, reservation, state), allowance_reservation_id=next(ids))

    _replace(pick_module.Pick, "_route", route)


def forget_keys() -> None:
    """The writer does not recognize a repeated key."""
    _replace(UnitOfWork, "first_outcome", lambda self, key: None)


def forget_jobs() -> None:
    """A repeated pick for a job makes another reservation."""
    _replace(UnitOfWork, "active_reservation_of", lambda unit_of_work, job_uuid: None)


def forget_drops() -> None:
    """A drop invalidates no block."""
    _replace(Chain, "drop", lambda self, account, block: None)


def show_gaps() -> None:
    """The second half of a batch becomes visible before the first half."""

    def append(self: SqliteStore, head: Head, rows: list[Row], expected: Any) -> None:
        half = len(rows) // 2
        _insert(self, rows[half:], rows[-1])
        self._open_connection().execute("COMMIT")
        time.sleep(WIDENED_S)
        self._open_connection().execute("BEGIN IMMEDIATE")
        _insert(self, rows[:half], rows[-1])

    _replace(SqliteStore, "_append", append)


def rewrite_the_past() -> None:
    """Each append changes an older row too."""
    append = SqliteStore._append

    def append_and_rewrite(self: SqliteStore, head: Head, rows: list[Row], expected: Any) -> None:
        append(self, head, rows, expected)
        statement = (
            "UPDATE allowance_events SET payload = CAST(payload || ' ' AS BLOB) WHERE ledger = ? AND position = ?"
        )
        self._open_connection().execute(statement, (self.ledger, max(1, rows[0].position - 20)))

    _replace(SqliteStore, "_append", append_and_rewrite)


def break_the_chain() -> None:
    """A row's hash covers the row, but not the hash of the row before it."""
    _replace(unit_of_work_module, "row_hash", lambda before, row: row_hash(bytes(32), row))


def _decide_before_reading(is_final: Callable[[Row, set[str]], bool], *, renumber: bool = False) -> None:
    """Decide each batch on the state after the batch before it, and read the newer events only after the decision.

    If all rows are final, they are appended behind the newer events as they are; otherwise the batch is decided again.
    """

    async def decided(self: LockedAppend, transaction: Any, commands: list[Any], *, current: bool) -> UnitOfWork:
        live = self._live
        state = await live.catch_up(transaction) if current or live.current is None else live.current
        live.discard()
        unit_of_work = UnitOfWork(state, await transaction.find(look_up(state, commands)), state.recorded_at_ns)
        self._decider.decide(unit_of_work, commands)
        return unit_of_work

    async def commit(self: LockedAppend, commands: list[Any]) -> None:
        await asyncio.sleep(WIDENED_S)
        async with self._live.lock, self._store.transaction() as transaction:
            revertible = all(ticket.work.revertible for ticket in commands)
            unit_of_work = await decided(self, transaction, commands, current=not revertible)
            tail = await transaction.read(unit_of_work.head.position)
            if not all(is_final(row, {each.stream for each in tail}) for row in unit_of_work.rows):
                unit_of_work, tail = await decided(self, transaction, commands, current=True), []
            versions = {row.stream: row.version for row in tail} if renumber else {}
            rows = _rows_behind(await transaction.head(), unit_of_work.rows, versions) if tail else unit_of_work.rows
            if rows:
                await append_in(transaction, rows)
        if tail:
            unit_of_work.revert()
            unit_of_work.state.fold([*tail, *rows])
        self._live.current = unit_of_work.state

    _replace(LockedAppend, "_commit_at_head", commit)


def _rows_behind(head: Head, rows: list[Row], versions: dict[str, int]) -> list[Row]:
    """Return the rows with positions behind the head, and new versions in the streams that `versions` names."""
    moved: list[Row] = []
    before = head.hash
    for position, row in enumerate(rows, head.position + 1):
        changed = row._replace(position=position)
        if row.stream in versions:
            versions[row.stream] += 1
            changed = changed._replace(version=versions[row.stream])
        moved.append(changed._replace(hash=row_hash(before, changed)))
        before = moved[-1].hash
    return moved


def _insert(store: SqliteStore, rows: list[Row], head: Row) -> None:
    connection = store._open_connection()
    insert_rows(connection, store.ledger, rows)
    connection.execute(
        "UPDATE allowance_ledgers SET position = ?, hash = ?, recorded_at_ns = ? WHERE ledger = ?",
        (head.position, head.hash, head.recorded_at_ns, store.ledger),
    )


def _replace(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute. It must exist: otherwise the product has changed, and the defect would do nothing."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name}: adapt the fault to the product")
    setattr(owner, name, value)


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        no_lock,
        no_compare,
        no_stream_comparison,
        outrun_drops,
        no_version_check,
        stale_blocks,
        acknowledge_before_commit,
        serve_failed_commits,
        reuse_ids,
        forget_keys,
        forget_jobs,
        forget_drops,
        show_gaps,
        rewrite_the_past,
        break_the_chain,
    )
}
