"""What an error of the server or the driver proves.

The codes are PostgreSQL's; source: its manual, appendix "Error Codes".

An append is one statement, or a COMMIT. Which errors prove that it did nothing? In a server's process the commit is the
moment at which the commit record is flushed. What may fail before that is rolled back. What fails after that, while the
process tidies up or runs an extension's hooks, is reported like any other error, and then the server restarts. So an
error proves that nothing was done only if its code cannot come from that second part. The codes in `_BEFORE_COMMIT`
cannot: statements are parsed, rights are checked and rows, constraints and triggers (deferred ones included) are
processed before the commit record is written. Locks are waited for before it, too, and from there to the end of the
commit the server ignores cancellations and timeouts; of a cancelled wait for a standby it gives a warning, not an error
(`session.py`). Codes that any line of the server may raise prove nothing: resources (53), system errors (58), internal
errors (XX). Nor do those of a lost connection or a server that shuts down (08, 57P), nor any that this list does not
know. What such an error leaves open is found out: see `fence.py`.
"""

from __future__ import annotations

import asyncpg

from .reader import BROKEN

_INTEGRITY = "23"
_CONTENDED = ("40001", "40P01")  # serialization failure, deadlock
_CONNECTION_LOST = ("08", "57P", "25P03", "25P04")  # connection exception, shutdown, idle and transaction timeout
# A write failed on a standby server, or on one that was a standby when the connection was opened.
_READ_ONLY = "25006"
_LOCK_TIMEOUT = "55P03"
_BEFORE_COMMIT = (
    "22",  # data exception
    _INTEGRITY,
    "25P02",  # an earlier statement of the transaction failed
    _READ_ONLY,
    *_CONTENDED,
    "42",  # syntax error, missing table or column, insufficient privilege
    _LOCK_TIMEOUT,
    "57014",  # cancelled, or the statement timeout
)
# Another process created the same object at the same time: a duplicate table, column, trigger or function, or a
# duplicate row in the server's catalog.
_CREATED_CONCURRENTLY = ("23505", *_CONTENDED, "42P07", "42701", "42710", "42723")
_INTERNAL = "XX000"
# Of the many internal errors, those of a row in the server's catalog that another transaction changed or deleted. The
# server never translates an internal error's text.
_CATALOG_CHANGED = ("tuple concurrently updated", "tuple concurrently deleted")
_TRIGGER_UNSUPPORTED = (
    "0A",  # feature not supported
    "42",  # syntax error; no such function, language or trigger; insufficient privilege; the trigger exists
    "P0001",  # raised by an event trigger of the database
    _INTERNAL,
)
# Missing table, missing column, no constraint for ON CONFLICT: a table is lost or broken.
_TABLE_BROKEN = ("42P01", "42703", "42P10")


def sqlstate(error: BaseException) -> str | None:
    """Return the code of a server's error; None if it is none."""
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def is_constraint_violation(error: BaseException) -> bool:
    """Whether a constraint or trigger refused the rows."""
    return (sqlstate(error) or "").startswith(_INTEGRITY)


def is_contended(error: BaseException) -> bool:
    """Whether the database aborted the transaction in favour of another."""
    return sqlstate(error) in _CONTENDED


def is_created_concurrently(error: BaseException) -> bool:
    """Whether another process may have created the same object meanwhile, so that it may be found now."""
    if sqlstate(error) == _INTERNAL:
        return _is_catalog_changed(error)
    return sqlstate(error) in _CREATED_CONCURRENTLY


def is_trigger_unsupported(error: BaseException) -> bool:
    """Whether the database refuses a statement that creates a trigger, and would refuse it again.

    That is every error of the statement itself. Errors that come from elsewhere fail the creation instead: contention,
    limits of time and resources, a lost connection, and catalog rows that another transaction changed.
    """
    return (sqlstate(error) or "").startswith(_TRIGGER_UNSUPPORTED) and not _is_catalog_changed(error)


def is_table_broken(error: BaseException) -> bool:
    """Whether a statement failed because a table, column or constraint is missing."""
    return sqlstate(error) in _TABLE_BROKEN


def is_lock_timeout(error: BaseException) -> bool:
    """Whether a statement waited too long for a lock."""
    return sqlstate(error) == _LOCK_TIMEOUT


def is_read_only(error: BaseException) -> bool:
    """Whether the server accepts no writes."""
    return sqlstate(error) == _READ_ONLY


def needs_new_connection(error: BaseException) -> bool:
    """Whether a new connection may succeed, since it may reach another server after a fail-over."""
    return _is_lost(error) or is_read_only(error)


def proves_nothing_done(error: BaseException) -> bool:
    """Whether the server reports that a statement or COMMIT failed, in a way that proves that nothing of it was done.

    A FATAL error ends the session, so whatever it says, it may have come after the commit.
    """
    severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
    return severity not in ("FATAL", "PANIC") and (sqlstate(error) or "").startswith(_BEFORE_COMMIT)


def _is_catalog_changed(error: BaseException) -> bool:
    return getattr(error, "message", None) in _CATALOG_CHANGED


def _is_lost(error: BaseException) -> bool:
    """Whether the connection is lost, or in an unknown state."""
    return isinstance(error, BROKEN) or (sqlstate(error) or "").startswith(_CONNECTION_LOST)
