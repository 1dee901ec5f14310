"""The fence: how to find out whether an append is in the log, after its answer was lost.

If the response to an append is lost, the request may still be on its way to the server. To read the log is then not
enough: the append could arrive after the read. So the fence, a number in the head row, is raised first. The update
waits for a transaction that has locked the head, and every append names the fence that it expects, so a request that
arrives later is refused. Rows that are not in the log after that will never be in it.

Fence and rows are read in one transaction, and so on one server. Another connection may lead to another server, for
example to a primary that was replaced and has not noticed: what that one says about rows proves nothing about the fence
of this one.

The commit of the raised fence proves more. If commits wait for a standby, this one does too, and a standby receives the
log of the database in order. So if it ends without a warning, every commit before it is as safe as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import asyncpg

from ledger.errors import LedgerNotFound

from .driver_errors import check_committed
from .session import ServerSession

# Enforced by the client. A working server raises the fence within milliseconds. After this limit the outcome counts as
# unknown, so that the caller need not wait longer.
FENCE_TIMEOUT_SECONDS = 5.0

_RAISE_FENCE = """UPDATE allowance_ledgers SET fence = fence + 1
                  WHERE ledger = $1 AND validator_ss58 = $2 RETURNING fence"""
_HASH = "SELECT hash FROM allowance_events WHERE ledger = $1 AND position = $2"


class RaisedFence(NamedTuple):
    """The new fence, and the hash of the row at the position asked for, None if there is none."""

    fence: int
    stored_hash: bytes | None


async def raise_fence(
    session: ServerSession,
    connection: asyncpg.Connection,
    begin: str,
    ledger: tuple[int, str],
    position: int = 0,
) -> RaisedFence:
    """Raise the fence of a ledger, given by its number and validator. To do so twice is harmless.

    Raises `TimeoutError`, or `NotConfirmed` if a standby may not have it; the connection is then cut.
    """
    number, validator_ss58 = ledger
    try:
        with session.committing(connection, FENCE_TIMEOUT_SECONDS):
            await connection.execute(begin)
            fence: int | None = await connection.fetchval(_RAISE_FENCE, number, validator_ss58)
            if fence is None:
                raise LedgerNotFound(validator_ss58)
            raised = RaisedFence(fence, await connection.fetchval(_HASH, number, position))
            check_committed(await connection.execute("COMMIT"))
    except BaseException:
        session.drop()
        raise
    return raised
