"""The driver's errors as the contract's error."""

from __future__ import annotations

import sqlite3

from ledger.errors import StorageUnavailable
from ledger.store.contract import driver_message, is_sqlalchemy_error


class SqliteErrors:
    """Raise `StorageUnavailable` for errors of the driver, of the file system and of SQLAlchemy."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and (
            isinstance(error, (sqlite3.Error, OSError, MemoryError, UnicodeDecodeError)) or is_sqlalchemy_error(error)
        ):
            raise StorageUnavailable(driver_message(error)) from error
