"""The log's contract: what every storage engine must do.

One suite of tests runs against every engine: `tests/storage/test_store_contract.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ledger.codec import Row
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.errors import NewerLedger, StorageUnavailable, StreamVersionConflict

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection

    from .reader import LogReader

# The version of the tables that this release creates. It reads older ones, and upgrades them (`schema_steps.py`).
SCHEMA_VERSION = 3

# Rows in a page. Smaller pages cost more round trips than they save memory.
PAGE_ROWS = 1000
# Payload in a page, beyond which no further row is added to it. A page of ordinary rows has less than a megabyte.
PAGE_BYTES = 16 * 1024 * 1024

# A value in a column of the derived tables.
Value = int | str | bytes | None

# What SQLite and PostgreSQL say if a table, column or index is lost; about a column they do not name the table.
_LOST = re.compile(r"no such (table|index|column)|has no column named|(relation|column) .* does not exist")
_LOG_TABLES = re.compile(r"allowance_(schema|ledgers|streams|events)")
REMAKE_DERIVED_TABLES = "`allowance rebuild` makes lost or broken derived tables again"

AVOID_RECOVERY_CONFLICTS = (
    "a standby ends a read that conflicts with what it replays: set hot_standby_feedback = on or a larger"
    " max_standby_streaming_delay on the standby, or read on the primary"
)

# Work that a writer does while it waits for the write lock.
WhileWaiting = Callable[[], Awaitable[object]]


# Numbers and hashes decided events: returns the rows that follow a head.
RowsBehind = Callable[[Head], list[Row]]
# Takes the next page of the rows that were appended since a decision.
TailReader = Callable[[list[Row]], None]


async def do_nothing() -> None:
    """Only wait: the default for `WhileWaiting`."""


class Schema(NamedTuple):
    """All tables: those of the log with the results of verifications, and those that are derived from it.

    `views` are statements that create views of the derived tables, for people who query them directly.
    """

    log: MetaData
    derived: MetaData
    views: tuple[str, ...] = ()


class DerivedTransaction(Protocol):
    """A transaction on the derived tables, in plain SQL with `?` for values."""

    async def query(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        """Execute a statement and return its rows."""
        ...

    async def execute_many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        """Execute a statement once for each row. After `RowExists` the transaction cannot be continued."""
        ...


class Transaction(Protocol):
    """A write transaction on the log. Nobody else can append to this ledger until it ends."""

    async def head(self) -> Head:
        """Return the head, which includes the transaction's own appends."""
        ...

    async def read(self, after: int) -> list[Row]:
        """Return a page of the rows after a position, ascending; empty at the end of the log."""
        ...

    async def find(self, lookup: Lookup) -> LookupResult:
        """Return the stored rows for keys, jobs and positions."""
        ...

    async def append(self, rows: list[Row], expected: Mapping[str, int]) -> None:
        """Append rows that follow the head, and move the head to the last of them; may be called repeatedly.

        `expected` has the version before this append of each stream that the rows continue or were decided on; 0 for
        a stream without events. The database compares it with the stored versions, as part of the append. Raises
        `VersionConflict`, which names each stream that is at another version; the transaction must then be rolled
        back. Takes precedence over a key that is stored.
        """
        ...


class Store(Protocol):
    """One ledger's log in one database. Used on the runtime's loop, except `probe_head`."""

    validator_ss58: str

    @property
    def ledger(self) -> int:
        """The ledger's local id. It differs between databases, so it is in no hash."""
        ...

    async def open(self, create: Callable[[], Schema] | None) -> Head:
        """Connect and find the ledger; with `create`, first create or upgrade the tables, and create the ledger.

        `create` returns the tables. It is a function because they need SQLAlchemy, whose import is slow and is not
        needed if the tables exist. A store that keeps the derived tables apart creates them at the first write. Raises
        `LedgerNotFound`, `NewerLedger` and `StorageUnavailable`.
        """
        ...

    async def close(self) -> None:
        """Close all connections and files; harmless if repeated."""
        ...

    def paused_for_fork(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Stop all work until left, for a fork of the process.

        Yields a function that closes everything that a forked child must not inherit.
        """
        ...

    async def head(self) -> Head:
        """Return the committed head; the append whose outcome is unknown may be in it, or come later."""
        ...

    async def schema_version(self) -> int:
        """Return the stored version of the tables. A read-only store does not upgrade an older one."""
        ...

    async def missing_triggers(self) -> list[str]:
        """Return the names of the triggers that this release creates and the stored catalog lacks, or has disabled.

        Only meaningful for tables of `SCHEMA_VERSION`: older ones have others.
        """
        ...

    async def replication_lag_seconds(self) -> float | None:
        """Return how old what is read here may be, in seconds; None unless the database is a standby of another.

        0 if the standby is connected to its primary and has replayed everything that it has received. Otherwise the
        age of the newest commit that it has replayed: an upper bound, which also counts time without commits.
        """
        ...

    def probe_head(self) -> Head | None:
        """Return the committed head without waiting, in any thread; None if that is impossible. Then call `head`."""
        ...

    async def read(self, after: int, limit: int | None = None) -> list[Row]:
        """Return a page of the committed rows after a position, ascending; empty at the end of the log.

        `limit`: the most rows that it may have, if that is less than a page.
        """
        ...

    async def read_streams(self, streams: Collection[str], after: int, until: int) -> list[Row]:
        """Return the committed rows of these streams after a position and up to another one, ascending.

        The cost is that of all rows in between, so callers name a stretch of the log, and not all of it.
        """
        ...

    async def find(self, lookup: Lookup) -> LookupResult:
        """Return the committed rows for keys, jobs and positions."""
        ...

    async def attempts_of(self, job_uuid: str) -> list[int]:
        """Return the positions of all reservations of a job, ascending."""
        ...

    def reader(self) -> AbstractAsyncContextManager[LogReader]:
        """Read everything in the database in one snapshot; the store need not be open."""
        ...

    @property
    def optimistic(self) -> bool:
        """Whether `append` at a head costs less than a transaction that locks the head."""
        ...

    @property
    def reads_wait_for_writes(self) -> bool:
        """Whether reads wait for an open transaction; code inside of a transaction must then not wait for a read.

        The writer locks its state before such a transaction, not in it. So `transaction` must not call `while_waiting`.
        """
        ...

    async def append(
        self,
        events: RowsBehind,
        expected: Mapping[str, int],
        *,
        at: Head | None = None,
        since: Head | None = None,
        read_tail: TailReader | None = None,
    ) -> list[Row] | None:
        """Append events behind the head if every stream in `expected` is at this version; return their rows.

        `expected` is that of `Transaction.append`. Other streams may have moved since the events were decided: they are
        then numbered and hashed behind the head that the log has now. With `at`, nothing is done if the head is another
        one, and the result is None; that takes one round trip. With `since`, the head at which the events were decided,
        nothing is done if the log has no row with this position and hash, and the result is None: the log was replaced,
        and equal versions do not mean equal events. Without `at`, `read_tail` is first given the rows after `since`,
        under the lock: no event may be appended behind one that this release cannot read. Raises `VersionConflict` if a
        stream has moved, `RowExists` if a key, a job's attempt or a settlement is stored already, what `events` and
        `read_tail` raise, and as `transaction` does. Nothing is done then. `events` may be called more than once.
        """
        ...

    @property
    def in_doubt(self) -> bool:
        """Whether the storage has not proved itself since a commit failed, so that it accepts no change now."""
        ...

    async def resolve_commit(self, first: Row) -> bool:
        """After `CommitOutcomeUnknown`: return whether the batch whose first row this is was committed, for certain.

        Raises if that cannot be known yet; the storage then refuses changes until it can.
        """
        ...

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Query the log's tables, or the results of verifications, in plain SQL."""
        ...

    def write_verifications(self, *, all_ledgers: bool = False) -> AbstractAsyncContextManager[DerivedTransaction]:
        """Begin a transaction on the results of verifications, which are in the log's database.

        `all_ledgers` is that of `write_derived`.
        """
        ...

    @property
    def keeps_derived_apart(self) -> bool:
        """Whether the derived tables are in a file of their own, of which nothing waits for the log or the reverse."""
        ...

    async def derived_query(self, statement: str) -> list[tuple[Any, ...]]:
        """Query the derived tables in plain SQL, so that opening a ledger need not wait for the import of SQLAlchemy.

        Raises `DerivedTablesUnavailable` if there are none that could be believed.
        """
        ...

    def derived_connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Connect through SQLAlchemy, to query the derived tables. Raises as `derived_query`."""
        ...

    def write_derived(self, *, all_ledgers: bool = False) -> AbstractAsyncContextManager[DerivedTransaction]:
        """Begin a transaction on the derived tables; commit at a normal end, roll back at an exception.

        It excludes others on the same ledger's derived tables, in all processes. With `all_ledgers` it excludes those
        of every ledger in the database, because it changes the tables themselves, which all ledgers share.

        If they are kept apart, and are missing or of another log, it begins with empty ones. It does without
        SQLAlchemy once they exist, because every process that appends also writes derived tables.
        """
        ...

    def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AbstractAsyncContextManager[Transaction]:
        """Begin a write transaction; commit at a normal end, roll back at an exception.

        The store may call `while_waiting` once, while the transaction waits for the write lock. If
        `reads_wait_for_writes` is True it must not: `while_waiting` locks the state, which the caller has locked then.
        Raises `StorageUnavailable` if nothing was done, `CommitOutcomeUnknown` if the commit may have succeeded, and
        `TransactionConflict` if the database aborted the transaction in favour of another.
        """
        ...


def next_page(rows: Iterable[Row], most_rows: int) -> list[Row]:
    """Return the next rows, at most `most_rows`, and none after a page's payload has reached `PAGE_BYTES`."""
    page: list[Row] = []
    size = 0
    for row in rows:
        page.append(row)
        size += payload_bytes(row)
        if size >= PAGE_BYTES or len(page) == most_rows:
            break
    return page


def payload_bytes(row: Row) -> int:
    """Return the size of a row's payload; in a damaged row it may be any value."""
    payload: object = row.payload
    return len(payload) if isinstance(payload, (bytes, str)) else 0


def driver_message(error: BaseException) -> str:
    """Return the message of a driver's error, or of the SQLAlchemy error around it.

    SQLAlchemy's own message adds the statement and a link to its manual; both would only hide the reason.
    """
    wrapped: BaseException | None = getattr(error, "orig", None)
    error = error if wrapped is None else wrapped.__cause__ or wrapped
    if isinstance(error, TimeoutError):
        return str(error) or "the server did not respond in time"
    message = str(error) or type(error).__name__
    is_lost = _LOST.search(message) and not _LOG_TABLES.search(message)
    return f"{message}; {REMAKE_DERIVED_TABLES}" if is_lost else message


def is_sqlalchemy_error(error: BaseException | None) -> bool:
    """Whether SQLAlchemy raised the error; never imports SQLAlchemy, without which it cannot have been raised."""
    # While another thread imports SQLAlchemy, its modules are listed before they have all their names.
    return isinstance(error, getattr(sys.modules.get("sqlalchemy.exc"), "SQLAlchemyError", ()))


class DerivedTablesUnavailable(StorageUnavailable):
    """The derived tables are missing, damaged, of another log, or cannot be read now: the log has the same facts."""


class RecoveryConflict(StorageUnavailable):
    """A standby ended a read that conflicts with what it replays; the log is sound, and a retry may succeed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; {AVOID_RECOVERY_CONFLICTS}")


class RowExists(Exception):
    """An insert failed because a row with the same key exists."""


class VersionConflict(Exception):
    """Streams are at other versions than an append expected; nothing was appended. `conflicts` has each of them."""

    def __init__(self, conflicts: Sequence[StreamVersionConflict]) -> None:
        self.conflicts = conflicts
        super().__init__("; ".join(map(str, conflicts)))


async def give_tail(transaction: Transaction, since: Head | None, read_tail: TailReader | None) -> None:
    """Give a reader the rows of a transaction's log after a head."""
    after, until = (since or Head()).position, (await transaction.head()).position
    while read_tail is not None and after < until and (rows := await transaction.read(after)):
        read_tail(rows)
        after = rows[-1].position


def versions_before(rows: Iterable[Row]) -> dict[str, int]:
    """Return the version that each stream of the rows has before the first of its rows is appended."""
    before: dict[str, int] = {}
    for row in rows:
        before.setdefault(row.stream, row.version - 1)
    return before


def refuse_other_versions(expected: Mapping[str, int], actual: Mapping[str, int]) -> None:
    """Raise `VersionConflict` if a stream is not at the expected version; a stream that is not in `actual` is at 0."""
    conflicts = [
        StreamVersionConflict(stream, version, actual.get(stream, 0))
        for stream, version in expected.items()
        if actual.get(stream, 0) != version
    ]
    if conflicts:
        raise VersionConflict(conflicts)


class CommitOutcomeUnknown(Exception):
    """The commit was sent, but its response was lost or an error. Only the log shows whether it succeeded."""


class TransactionConflict(Exception):
    """The database aborted the transaction in favour of another; nothing was done, and a retry may succeed."""


def check_schema_version(stored: int) -> None:
    """Raise `NewerLedger` if a newer release created the schema."""
    if stored > SCHEMA_VERSION:
        raise NewerLedger("the database's schema version", stored, SCHEMA_VERSION)
