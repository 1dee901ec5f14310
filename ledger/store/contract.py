"""The log's contract: what every storage engine must do, and the words for it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from ledger.codec import Row
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.errors import NewerLedger

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection

    from .reader import LogReader

SCHEMA_VERSION = 1
"""Of the tables that this release makes and understands."""

PAGE_ROWS = 1000
"""Rows read at a time; smaller pages cost more round trips than they save memory."""


Value = int | str | bytes | None
"""What a column of the read models holds."""

WhileWaiting = Callable[[], Awaitable[object]]
"""What a writer does while it waits for its turn."""


async def do_nothing() -> None:
    """Waits."""


class ReadModelTransaction(Protocol):
    """A transaction on what is derived from the log, in plain SQL with `?` for values."""

    async def query(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        """What a statement answers with."""
        ...

    async def execute_many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        """Executes a statement once for each row. Raises `RowExists`; the transaction is then to be given up."""
        ...


class Transaction(Protocol):
    """One write transaction: alone on its ledger from the reading of the head to the commit."""

    async def head(self) -> Head:
        """Where the log stands; nobody else can move it before the commit."""
        ...

    async def read(self, after: int) -> list[Row]:
        """A page of the rows after a position, ascending; empty at the end."""
        ...

    async def find(self, lookup: Lookup) -> LookupResult:
        """What is stored about keys, jobs and positions."""
        ...

    async def append(self, rows: list[Row]) -> None:
        """Adds rows that follow the head, and moves the head to the last of them; again and again before the commit."""
        ...


class Store(Protocol):
    """One ledger's log in one database."""

    validator_ss58: str

    @property
    def ledger(self) -> int:
        """The ledger's local id."""
        ...

    async def open(self, create: Callable[[], MetaData] | None) -> Head:
        """Connects and finds the ledger; given what tells the tables, makes what is not there yet."""
        ...

    async def close(self) -> None:
        """Lets go of everything."""
        ...

    def paused_for_fork(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """While the process forks: nothing is under way; gives what lets go of all that a child must not inherit."""
        ...

    async def head(self) -> Head:
        """Where the log stands now."""
        ...

    def probe_head(self) -> Head | None:
        """The same, told to any thread without waiting; None where that cannot be done: then `head` tells."""
        ...

    async def read(self, after: int) -> list[Row]:
        """A page of the committed rows after a position, ascending; empty at the end."""
        ...

    async def find(self, lookup: Lookup) -> LookupResult:
        """What is committed about keys, jobs and positions."""
        ...

    def reader(self) -> AbstractAsyncContextManager[LogReader]:
        """All that the database holds, as it stands at one moment; the store need not be open."""
        ...

    @property
    def optimistic(self) -> bool:
        """Whether `compare_and_append` costs less than a transaction that takes the head's lock."""
        ...

    @property
    def readers_block_writers(self) -> bool:
        """Whether reads wait while a transaction is open, so that who holds one must not wait for a reader."""
        ...

    async def compare_and_append(self, head: Head, rows: list[Row]) -> bool:
        """Appends rows if the log still stands at `head`; False where it does not, or where they clash with it.

        Raises as `transaction` does. Nothing is done where the answer is False: decide again, alone at the head.
        """
        ...

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a plain query on the read models: opening a ledger is not to wait for SQLAlchemy's import."""
        ...

    def read_connection(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection to query the read models with."""
        ...

    def write_read_models(self) -> AbstractAsyncContextManager[ReadModelTransaction]:
        """A transaction to write the read models in; commits at a normal end, undoes everything at an exception.

        Whoever appends writes them too, so SQLAlchemy is left out: in sixteen processes its import alone would hold
        up all the others for seconds.
        """
        ...

    def transaction(self, meanwhile: WhileWaiting = do_nothing) -> AbstractAsyncContextManager[Transaction]:
        """A write transaction; commits at a normal end, undoes everything at an exception.

        `meanwhile` may be done while the transaction waits for its turn, once at the most.
        Raises `StorageUnavailable` where nothing was done, `CommitOutcomeUnknown` where that is not known.
        """
        ...


def driver_message(error: BaseException) -> str:
    """What an error of a driver, or one of SQLAlchemy that wraps it, says; without statements and links."""
    wrapped: BaseException | None = getattr(error, "orig", None)
    error = error if wrapped is None else wrapped.__cause__ or wrapped
    if isinstance(error, TimeoutError):
        return str(error) or "the server did not answer in time"
    return str(error) or type(error).__name__


def is_sqlalchemy_error(error: BaseException | None) -> bool:
    """Whether SQLAlchemy raised it; asked without importing SQLAlchemy, which may never have been needed."""
    # Another thread may be importing it just now: its modules are known by name before they have their names.
    return isinstance(error, getattr(sys.modules.get("sqlalchemy.exc"), "SQLAlchemyError", ()))


class RowExists(Exception):
    """Rows were to be inserted where there are some already."""


class CommitOutcomeUnknown(Exception):
    """The commit was sent, and its answer was an error or none; reading the log tells."""


class TransactionConflict(Exception):
    """The database gave the transaction up in favour of another; nothing was done, and it may be tried again."""


def check_schema_version(stored: int) -> None:
    """Refuses a schema that a newer release made."""
    if stored > SCHEMA_VERSION:
        raise NewerLedger("the database's schema version", stored, SCHEMA_VERSION)
