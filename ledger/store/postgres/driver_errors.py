"""Errors of the server, the driver and the network, raised as those of the contract."""

from __future__ import annotations

import asyncpg

from ledger.errors import StorageUnavailable
from ledger.store.contract import TransactionConflict, driver_message, is_sqlalchemy_error

from .reader import BROKEN
from .session import NotConfirmed
from .sqlstates import is_contended
from .standby import recovery_conflict


class PostgresErrors:
    """Raise `StorageUnavailable` for errors of the driver or network, `TransactionConflict` for contention."""

    def __init__(self, *, in_transaction: bool = False) -> None:
        self._in_transaction = in_transaction

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        if self._in_transaction and is_contended(error):
            raise TransactionConflict(str(error)) from error
        if isinstance(error, (asyncpg.PostgresError, NotConfirmed, *BROKEN)) or is_sqlalchemy_error(error):
            raise recovery_conflict(error) or StorageUnavailable(driver_message(error)) from error


def check_committed(status: str) -> None:
    """Raise `StorageUnavailable` if the server has not committed.

    It reports success with the status ROLLBACK if an earlier statement of the transaction had failed.
    """
    if status != "COMMIT":
        raise StorageUnavailable(f"the database responded to COMMIT with {status}; nothing was done")
