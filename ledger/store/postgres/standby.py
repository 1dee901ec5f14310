"""Hot standbys: how far one is behind its primary, and reads that it ends in favour of what it replays."""

from __future__ import annotations

import asyncpg

from ledger.store.contract import RecoveryConflict, driver_message

_CONFLICTS = ("40001", "40P01")  # serialization failure, deadlock
# The source file of the server in which a process reads that it was interrupted. Errors with the same codes that have
# another cause come from other files; the message cannot tell, since it is in the server's language.
_INTERRUPTED = "postgres.c"

# The restart point is on disk, so what is read is at least as new; a standby that has replayed no commit since its
# start knows no newer time. Every role may see that there is a receiver, though not its details.
_LAG = """
    SELECT CASE
        WHEN NOT pg_is_in_recovery() THEN NULL
        WHEN EXISTS (SELECT FROM pg_stat_wal_receiver) AND pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0
        ELSE greatest(0, extract(epoch FROM clock_timestamp() - coalesce(
            pg_last_xact_replay_timestamp(), (SELECT checkpoint_time FROM pg_control_checkpoint()))))
    END::float8"""


async def replication_lag_seconds(connection: asyncpg.Connection) -> float | None:
    """Return `Store.replication_lag_seconds`; None, too, on a database that has no such functions."""
    try:
        lag: float | None = await connection.fetchval(_LAG)
    except asyncpg.UndefinedFunctionError:
        return None
    return lag


def is_standby(connection: asyncpg.Connection) -> bool:
    """Whether the server has reported that it is a standby; a pooler between may hide it."""
    return getattr(connection.get_settings(), "in_hot_standby", "off") == "on"


def recovery_conflict(error: BaseException) -> RecoveryConflict | None:
    """Return the error to raise if the server says that it cancelled a read in favour of what it replays."""
    cause = _driver_error(error)
    if getattr(cause, "sqlstate", None) in _CONFLICTS and getattr(cause, "server_source_filename", "") == _INTERRUPTED:
        return RecoveryConflict(driver_message(error))
    return None


def _driver_error(error: BaseException) -> BaseException | None:
    """Return the driver's error, which SQLAlchemy wraps twice."""
    wrapped: BaseException | None = getattr(error, "orig", None)
    return error if wrapped is None else wrapped.__cause__
