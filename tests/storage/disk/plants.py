"""Defects of the product that the disk must find: each function breaks the calling process."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any


def _flush_less(level: str) -> None:
    """Make every connection flush less than the product asks for."""

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement.startswith("PRAGMA synchronous"):
                statement = f"PRAGMA synchronous = {level}"
            return super().execute(statement, *values)

    connect = sqlite3.connect
    sqlite3.connect = partial(connect, factory=Connection)  # type: ignore[assignment]


PLANTS: dict[str, Callable[[], None]] = {
    "synchronous-normal": partial(_flush_less, "NORMAL"),
    "synchronous-off": partial(_flush_less, "OFF"),
}
