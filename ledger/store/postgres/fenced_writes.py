"""The connection that appends to the log: transactions, optimistic appends, and what is known of the newest of them.

Every append names the fence (`fence.py`). After a lost response the store accepts no change until the fence is raised.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from ledger.codec import Row
from ledger.domain.lookup import Head
from ledger.errors import LedgerNotFound, StorageUnavailable
from ledger.store.contract import CommitOutcomeUnknown, RowExists, check_schema_version, driver_message

from .appending import Append, AppendResult
from .connecting import Connector
from .driver_errors import PostgresErrors, check_committed
from .fence import RaisedFence, raise_fence
from .session import ServerSession
from .sqlstates import is_constraint_violation, is_contended, is_lock_timeout, is_read_only, proves_nothing_done
from .statements import LOCK_HEAD

# Enforced by the client, for an append or a COMMIT. It is short because callers wait for it, and because queries wait
# for an optimistic append. Commits that take this long mostly wait for a standby that is gone.
APPEND_TIMEOUT_SECONDS = 10.0
# The head of an empty log, which every log continues.
ANY_LOG = Head()


class FencedWrites:
    """The appends of one ledger in this process."""

    def __init__(
        self, session: ServerSession, connector: Connector, validator_ss58: str, drop_connections: Callable[[], None]
    ) -> None:
        """Call `drop_connections` when the next connection may have to lead to another server."""
        self.session = session
        self._connector = connector
        self.ledger = 0
        self.in_doubt = False
        """The outcome of an append is unknown, and the fence has not been raised since."""
        self._validator_ss58 = validator_ss58
        self._drop_connections = drop_connections
        self._fence = 0
        # The server did not respond to that append in time: to ask again at once would only take as long again.
        self._is_late = False

    def head_of(self, stored: Any) -> Head:
        """Return the head in a row of the query `HEAD`, and note its fence. Raises `NewerLedger`."""
        if stored is None:
            raise LedgerNotFound(self._validator_ss58)
        position, a_hash, recorded_at_ns, self._fence, schema_version = stored
        check_schema_version(schema_version)
        return Head(position, a_hash, recorded_at_ns)

    @asynccontextmanager
    async def transaction(self, *, waits: bool = True) -> AsyncIterator[tuple[asyncpg.Connection, Head]]:
        """Begin a transaction and lock the head's row; commit at a normal end, roll back at an exception.

        `waits`: for the lock as long as a statement may take. The writer waits here without keeping queries waiting, so
        the short limit on locks does not apply.
        """
        begin = self._connector.begin(for_appends=True, waits=waits)
        async with self.session.held():
            # A retry is safe up to the lock, since nothing is written before. After it nothing is retried here: the
            # caller has decided on what it read in this transaction.
            connection, head = await self.session.run_locked(lambda connection: self._begin(connection, begin))
            try:
                yield connection, head
            except BaseException:
                await self.session.roll_back(connection)
                raise
            await self._commit(connection)

    async def append_in(
        self,
        connection: asyncpg.Connection,
        head: Head,
        rows: list[Row],
        expected: Mapping[str, int],
        since: Head = ANY_LOG,
    ) -> bool:
        """Append in a transaction; return False if the log lacks the event `since`. Raises `VersionConflict`."""
        result = await self._append(head, rows, expected, since).execute(connection)
        if not result.has_since:
            return False
        result.refuse_conflicts()
        if not result.is_done:
            raise StorageUnavailable("the head moved inside a write transaction: its row is not locked")
        return True

    async def append_at(self, head: Head, rows: list[Row], expected: Mapping[str, int], since: Head = ANY_LOG) -> bool:
        """Append in one round trip if the head is this one and the log has the event `since`; return False if not.

        It is also False if the server gave up a wait for the head's lock, which the caller then locks itself. Raises
        `VersionConflict`, `RowExists` and `CommitOutcomeUnknown`.
        """
        async with self.session.held():
            connection = await self.session.run_locked(self._end_doubt)
            appending = self._append(head, rows, expected, since)
            try:
                with self.session.committing(connection, APPEND_TIMEOUT_SECONDS):
                    result = await self._append_alone(connection, appending)
            except BaseException as error:
                if not proves_nothing_done(error):
                    self._note_doubt(error)
                    raise
                if is_constraint_violation(error):
                    raise RowExists(str(error)) from error
                if is_contended(error) or is_lock_timeout(error):
                    return False
                if is_read_only(error):
                    self._drop_connections()
                raise
            if result.is_at_head and result.has_since:
                result.refuse_conflicts()
            return result.is_done

    async def resolve_commit(self, first: Row) -> bool:
        """Return whether the batch whose first row this is was committed, for certain."""
        if self._is_late:
            raise StorageUnavailable("the server did not confirm an append in time; its outcome is not known yet")
        with PostgresErrors():
            stored = await self.session.run(lambda connection: self._find_fenced(connection, first.position))
        # Another process may have appended a different row at this position. The hash covers the content and the whole
        # log before it, so an equal hash proves that the row is this batch's. A commit is atomic: if the first row is
        # stored, all are.
        return stored == first.hash

    def _append(self, head: Head, rows: list[Row], expected: Mapping[str, int], since: Head) -> Append:
        return Append(self.ledger, self._validator_ss58, head, self._fence, rows, expected, since)

    async def _append_alone(self, connection: asyncpg.Connection, appending: Append) -> AppendResult:
        """Append and commit; one round trip, if the session has all settings."""
        if self._connector.session_suffices:
            return await appending.execute(connection)
        try:
            await connection.execute(self._connector.begin(for_appends=True))
            result = await appending.execute(connection)
            check_committed(await connection.execute("COMMIT"))
        except BaseException:
            await self.session.roll_back(connection)
            raise
        return result

    async def _begin(self, connection: asyncpg.Connection, begin: str) -> tuple[asyncpg.Connection, Head]:
        """Begin a transaction and lock the head's row."""
        if self.in_doubt:
            await self._raise_fence(connection)
        await connection.execute(begin)
        try:
            head = self.head_of(await connection.fetchrow(LOCK_HEAD, self.ledger, self._validator_ss58))
            # Only now: after an error the next call may reach another server, and must raise the fence there.
            self.in_doubt = False
            return connection, head
        except BaseException:
            await self.session.roll_back(connection)
            raise

    async def _commit(self, connection: asyncpg.Connection) -> None:
        try:
            with self.session.committing(connection, APPEND_TIMEOUT_SECONDS):
                status = await connection.execute("COMMIT")
        except BaseException as error:
            if not proves_nothing_done(error):
                self._note_doubt(error)
            raise
        check_committed(status)

    def _note_doubt(self, error: BaseException) -> None:
        """Note that the outcome of an append is unknown. Raises `CommitOutcomeUnknown`, except for a cancellation."""
        self.in_doubt, self._is_late = True, isinstance(error, TimeoutError)
        # The server may still be executing the append on one of them, and the next may lead to another server.
        self._drop_connections()
        if isinstance(error, Exception):
            raise CommitOutcomeUnknown(driver_message(error)) from error

    async def _end_doubt(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        """Raise the fence if the outcome of an append is unknown: its rows are then in the log, or never will be."""
        if self.in_doubt:
            await self._raise_fence(connection)
            self.in_doubt = False
        return connection

    async def _find_fenced(self, connection: asyncpg.Connection, position: int) -> bytes | None:
        """Raise the fence; return the hash of the row at a position, which is final."""
        raised = await self._raise_fence(connection, position)
        self.in_doubt = False
        return raised.stored_hash

    async def _raise_fence(self, connection: asyncpg.Connection, position: int = 0) -> RaisedFence:
        begin, ledger = self._connector.begin(for_appends=True), (self.ledger, self._validator_ss58)
        raised = await raise_fence(self.session, connection, begin, ledger, position)
        self._fence = raised.fence
        return raised
