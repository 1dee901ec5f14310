"""The log's contract: what every storage engine must do, and the words for it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .codec import GENESIS_HASH, Row
from .errors import NewerLedger

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection

    from .reader import Reader

SCHEMA_VERSION = 1
"""Of the tables that this release makes and understands."""

PAGE_ROWS = 1000
"""Rows read at a time; smaller pages cost more round trips than they save memory."""


Value = int | str | bytes | None
"""What a column of the read models holds."""

Meanwhile = Callable[[], Awaitable[object]]
"""What a writer does while it waits for its turn."""


async def nothing_meanwhile() -> None:
    """Waits."""


class Head(NamedTuple):
    """Where a ledger's log stands: its last row's position, hash and recorded time."""

    position: int = 0
    hash: bytes = GENESIS_HASH
    recorded_at_ns: int = 0


class Lookup:
    """What a batch has to know about the stored past before it can decide."""

    __slots__ = ("jobs", "keys", "positions")

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.jobs: set[str] = set()
        self.positions: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.keys or self.jobs or self.positions)


class Known:
    """What the stored past says to a `Lookup`; what is absent is not stored."""

    __slots__ = ("jobs", "keys", "rows", "settlements")

    def __init__(self) -> None:
        self.keys: dict[str, Row] = {}
        self.jobs: dict[str, Row] = {}
        """A job's last reservation."""
        self.rows: dict[int, Row] = {}
        self.settlements: dict[int, Row] = {}
        """By the position of the reservation that they settle."""


class Statements(Protocol):
    """A transaction on what is derived from the log, in plain SQL with `?` for values."""

    async def rows(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        """What a statement answers with."""
        ...

    async def many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        """Executes a statement once for each row. Raises `RowsThere`; the transaction is then to be given up."""
        ...


class Transaction(Protocol):
    """One write transaction: alone on its ledger from the reading of the head to the commit."""

    async def head(self) -> Head:
        """Where the log stands; nobody else can move it before the commit."""
        ...

    async def read(self, after: int) -> list[Row]:
        """A page of the rows after a position, ascending; empty at the end."""
        ...

    async def find(self, lookup: Lookup) -> Known:
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

    def parked(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """While the process forks: nothing is under way; gives what lets go of all that a child must not inherit."""
        ...

    async def head(self) -> Head:
        """Where the log stands now."""
        ...

    def glance(self) -> Head | None:
        """The same, told to any thread without waiting; None where that cannot be done: then `head` tells."""
        ...

    async def read(self, after: int) -> list[Row]:
        """A page of the committed rows after a position, ascending; empty at the end."""
        ...

    async def find(self, lookup: Lookup) -> Known:
        """What is committed about keys, jobs and positions."""
        ...

    def reader(self) -> AbstractAsyncContextManager[Reader]:
        """All that the database holds, as it stands at one moment; the store need not be open."""
        ...

    @property
    def optimistic(self) -> bool:
        """Whether `compare_and_append` costs less than a transaction that takes the head's lock."""
        ...

    @property
    def takes_turns(self) -> bool:
        """Whether reads wait while a transaction is open, so that who holds one must not wait for a reader."""
        ...

    async def compare_and_append(self, head: Head, rows: list[Row]) -> bool:
        """Appends rows if the log still stands at `head`; False where it does not, or where they clash with it.

        Raises as `transaction` does. Nothing is done where the answer is False: decide again, alone at the head.
        """
        ...

    async def select(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a plain query on the read models: opening a ledger is not to wait for SQLAlchemy's import."""
        ...

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection to query the read models with."""
        ...

    def writing(self) -> AbstractAsyncContextManager[Statements]:
        """A transaction to write the read models in; commits at a normal end, undoes everything at an exception.

        Whoever appends writes them too, so SQLAlchemy is left out: in sixteen processes its import alone would hold
        up all the others for seconds.
        """
        ...

    def transaction(self, meanwhile: Meanwhile = nothing_meanwhile) -> AbstractAsyncContextManager[Transaction]:
        """A write transaction; commits at a normal end, undoes everything at an exception.

        `meanwhile` may be done while the transaction waits for its turn, once at the most.
        Raises `StorageUnavailable` where nothing was done, `CommitUncertain` where that is not known.
        """
        ...


def told_by_driver(error: BaseException) -> str:
    """What an error of a driver, or one of SQLAlchemy that wraps it, says; without statements and links."""
    wrapped: BaseException | None = getattr(error, "orig", None)
    error = error if wrapped is None else wrapped.__cause__ or wrapped
    if isinstance(error, TimeoutError):
        return str(error) or "the server did not answer in time"
    return str(error) or type(error).__name__


def is_sqlalchemy_error(error: BaseException | None) -> bool:
    """Whether SQLAlchemy raised it; asked without importing SQLAlchemy, which may never have been needed."""
    raised = sys.modules.get("sqlalchemy.exc")
    return raised is not None and isinstance(error, raised.SQLAlchemyError)


class RowsThere(Exception):
    """Rows were to be inserted where there are some already."""


class CommitUncertain(Exception):
    """The commit was sent, and its answer was an error or none; reading the log tells."""


class Contended(Exception):
    """The database gave the transaction up in favour of another; nothing was done, and it may be tried again."""


def check_schema_version(stored: int) -> None:
    """Refuses a schema that a newer release made."""
    if stored > SCHEMA_VERSION:
        raise NewerLedger("the database's schema version", stored, SCHEMA_VERSION)
