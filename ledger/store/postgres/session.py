"""One connection, opened again when it is lost; and the limits and warnings of the statements that commit on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import asyncpg

from .reader import BROKEN
from .sqlstates import is_contended, needs_new_connection

R = TypeVar("R")

# Closing only says goodbye to the server; afterwards the connection is cut. Shorter than the runtime's CLOSING_SECONDS.
CLOSE_TIMEOUT_SECONDS = 5.0
# The longest pause before a retry. It is random, so that processes that collided do not collide again; and short, about
# the time of a few transactions.
MOST_PAUSE_SECONDS = 0.05


class NotConfirmed(Exception):
    """The server reported a commit with a warning: a standby that commits wait for may not have it."""


class ServerSession:
    """One connection that one task uses at a time; if it is lost, the next use opens a new one."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self.lock = asyncio.Lock()
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._warnings: list[str] = []

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[R]]) -> R:
        """Wait for the session's lock, then do the same as `run_locked`."""
        async with self.lock:
            return await self.run_locked(work)

    async def run_locked(self, work: Callable[[asyncpg.Connection], Awaitable[R]], *, may_retry: bool = True) -> R:
        """Run work that may be done twice; retry it once if the connection was lost or the database is contended.

        One retry is enough for the usual case: the server or a firewall closed the connection while it was idle, and
        the client notices only when it uses it.
        """
        connection = await self.connection()
        try:
            return await work(connection)
        except Exception as error:
            if needs_new_connection(error):
                self.drop()
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
        """Return the connection; open one if there is none."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
            self._connection.add_log_listener(self._note_warning)
        return self._connection

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
        """Cut the connection; the server rolls back a transaction that is not committed."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close the connection in order, or cut it if the server does not respond."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=CLOSE_TIMEOUT_SECONDS)
            except (asyncpg.PostgresError, *BROKEN):
                connection.terminate()

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
