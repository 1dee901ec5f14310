"""A connection for one piece of work at a time, and the limits and warnings of the statements that commit on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import asyncpg

from .connection_pool import ConnectionPool
from .sqlstates import is_contended, needs_new_connection

R = TypeVar("R")

# The longest pause before a retry. It is random, so that processes that collided do not collide again; and short, about
# the time of a few transactions.
MOST_PAUSE_SECONDS = 0.05


class NotConfirmed(Exception):
    """The server reported a commit with a warning: a standby that commits wait for may not have it."""


class ServerSession:
    """One ledger's use of a pool: one piece of work at a time, each on a borrowed connection."""

    def __init__(self, pool: Callable[[], ConnectionPool], *, begin: str | None = None) -> None:
        """Borrow connections from `pool`; `begin`: a text that begins a transaction for each piece of work."""
        self._pool = pool
        self._begin = begin
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None
        self._warnings: list[str] = []

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[R]]) -> R:
        """Wait until nobody else uses the session, then do the same as `run_locked`."""
        async with self.held():
            return await self.run_locked(work)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Wait until nobody else uses the session; at the end give the connection back."""
        async with self._lock:
            try:
                yield
            finally:
                self._give_back()

    async def run_locked(self, work: Callable[[asyncpg.Connection], Awaitable[R]], *, may_retry: bool = True) -> R:
        """Run work that may be done twice; retry it once if the connection was lost or the database is contended.

        One retry is enough for the usual case: the server or a firewall closed the connection while it was idle, and
        the client notices only when it uses it.
        """
        connection = await self.connection()
        try:
            return await (work(connection) if self._begin is None else self._read(connection, self._begin, work))
        except Exception as error:
            if needs_new_connection(error):
                self.drop()
                # What ended this connection has often ended the idle ones, too; the retry must not get one of them.
                self._pool().retire()
            # Not after a timeout: the caller has waited for it once already.
            if (
                not may_retry
                or isinstance(error, TimeoutError)
                or not (needs_new_connection(error) or is_contended(error))
            ):
                raise
        await asyncio.sleep(random.uniform(0, MOST_PAUSE_SECONDS))
        return await self.run_locked(work, may_retry=False)

    async def connection(self) -> asyncpg.Connection:
        """Return the connection of the work under way; borrow one if it has none that is open."""
        if self._connection is not None and self._connection.is_closed():
            self._give_back()
        if self._connection is None:
            self._connection = await self._pool().borrow()
            self._connection.add_log_listener(self._note_warning)
        return self._connection

    async def _read(
        self, connection: asyncpg.Connection, begin: str, work: Callable[[asyncpg.Connection], Awaitable[R]]
    ) -> R:
        await connection.execute(begin)
        try:
            result = await work(connection)
        except BaseException:
            await self.roll_back(connection)
            raise
        await connection.execute("COMMIT")
        return result

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.remove_log_listener(self._note_warning)
            self._pool().give_back(connection)

    @contextmanager
    def committing(self, connection: asyncpg.Connection, seconds: float) -> Iterator[None]:
        """Within the block: the work ends in time and without a warning. Else raise `TimeoutError` or `NotConfirmed`.

        If an operator cancels a commit's wait for a standby, PostgreSQL reports success, with a warning whose text
        depends on the server's language. So every warning counts: whether the commit is safe is then found out.

        At the end of the time the connection is cut. The driver's own timeout would ask the server to cancel, which
        would end a wait for a standby and make rows visible that no standby has.
        """
        self._warnings.clear()
        with cut_after(connection, seconds):
            yield
        if self._warnings:
            raise NotConfirmed(self._warnings[0])

    def drop(self) -> None:
        """Cut the connection of the work under way; the server rolls back a transaction that is not committed."""
        if self._connection is not None:
            self._connection.terminate()

    def close(self) -> None:
        """End a piece of work that is still under way."""
        self.drop()
        self._give_back()

    async def roll_back(self, connection: asyncpg.Connection) -> None:
        """End a transaction after an error, which is on its way to the caller and says more than one from here."""
        try:
            await connection.execute("ROLLBACK")
        except Exception:
            # Without its connection the server rolls back too.
            self.drop()
        except BaseException:
            self.drop()
            raise  # A cancellation must not be lost.

    def _note_warning(self, connection: Any, message: asyncpg.PostgresLogMessage) -> None:
        # The driver schedules this call when it reads the message, so it runs before the task that waits for the
        # response, which comes later on the same connection.
        if connection is self._connection and _is_warning(message):
            self._warnings.append(str(message))


@contextmanager
def cut_after(connection: asyncpg.Connection, seconds: float) -> Iterator[None]:
    """Cut the connection and raise `TimeoutError` if the block has not ended after this time."""
    is_over = False

    def cut() -> None:
        nonlocal is_over
        is_over = True
        connection.terminate()

    timer = asyncio.get_running_loop().call_later(seconds, cut)
    try:
        yield
    except Exception as error:
        if is_over:
            raise TimeoutError(f"the server did not respond within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()


def _is_warning(message: Any) -> bool:
    severity = getattr(message, "severity_en", None) or getattr(message, "severity", None)
    return severity == "WARNING" or str(getattr(message, "sqlstate", "")).startswith("01")
