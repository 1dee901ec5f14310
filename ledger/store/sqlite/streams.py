"""The streams of a ledger: their numbers and names, and the comparison of their versions.

Every stream has a row with the version of its newest event. An append names the version that it expects, and moves the
row in a statement that finds it only at this version; the number of rows moved tells whether all were found.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from ledger.codec import Row
from ledger.errors import CorruptLedger, StorageUnavailable
from ledger.store.contract import refuse_other_versions, versions_before

from .columns import StreamNames

V = TypeVar("V")

# Values in one statement. SQLite limits the parameters of a statement, to 999 before version 3.32.
LOOKUP_VALUES = 500

_BY_NAME = "SELECT name, stream, version FROM allowance_streams WHERE ledger = ? AND name IN ({values})"
_BY_NUMBER = "SELECT name, version FROM allowance_streams WHERE ledger = ? AND stream IN ({values})"
_NAME = "SELECT name FROM allowance_streams WHERE ledger = ? AND stream = ?"
_LAST = "SELECT coalesce(max(stream), 0) FROM allowance_streams WHERE ledger = ?"
_CREATE = "INSERT INTO allowance_streams (ledger, stream, name, version) VALUES (?, ?, ?, ?)"
# The name is compared too, so a remembered number that belongs to another stream by now moves nothing.
_MOVE = """UPDATE allowance_streams SET version = ?
           WHERE ledger = ? AND stream = ? AND name = ? AND version = ?"""


class Streams:
    """The streams of one ledger. Numbers and names are remembered until `forget`."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: StreamNames | None = None

    def forget(self) -> None:
        """Forget everything: another file, or a rollback that may have taken streams back."""
        self._numbers.clear()
        self._names = None

    def names(self, connection: sqlite3.Connection, ledger: int) -> StreamNames:
        """Return the names by number; a look-up raises `CorruptLedger` if a stream's row is lost."""
        if self._names is None:
            self._names = StreamNames(partial(_name, connection, ledger))
        return self._names

    def compare_and_move(
        self, connection: sqlite3.Connection, ledger: int, rows: list[Row], expected: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Move each stream of the rows to its newest version; return the streams' numbers.

        Raises `VersionConflict`, and has then changed nothing, if a stream in `expected` is at another version.
        """
        newest = {row.stream: row.version for row in rows}
        if not newest.keys() <= expected.keys():
            expected = {**versions_before(rows), **expected}
        _check_dense(rows, newest, expected)
        if not self._try_to_move(connection, ledger, newest, expected):
            self.forget()
            found = versions_of(connection, ledger, expected)
            refuse_other_versions(expected, {name: version for name, (_, version) in found.items()})
            # No version differs, so a remembered number was wrong: the file's content was replaced in place.
            if not self._try_to_move(connection, ledger, newest, expected):
                raise StorageUnavailable("a stream's row has moved inside a write transaction")
        return self._numbers

    def _try_to_move(
        self, connection: sqlite3.Connection, ledger: int, newest: Mapping[str, int], expected: Mapping[str, int]
    ) -> bool:
        if unknown := expected.keys() - self._numbers.keys():
            self._learn(connection, ledger, unknown)
        only_expected = {name: version for name, version in expected.items() if name not in newest}
        if not self._all_at(connection, ledger, only_expected):
            return False
        created = {name: version for name, version in newest.items() if name not in self._numbers}
        moved = [
            (version, ledger, self._numbers[name], name, expected[name])
            for name, version in newest.items()
            if name in self._numbers
        ]
        if any(expected[name] for name in created) or not _move_all(connection, moved):
            return False
        self._create(connection, ledger, created)
        return True

    def _all_at(self, connection: sqlite3.Connection, ledger: int, expected: Mapping[str, int]) -> bool:
        """Whether these streams are at these versions; one look-up in the primary key for each that is known."""
        existing = [number for name in expected if (number := self._numbers.get(name)) is not None]
        query = _BY_NUMBER.format(values=", ".join("?" * len(existing)))
        found = dict(connection.execute(query, (ledger, *existing)).fetchall()) if existing else {}
        # A remembered number may belong to another stream by now; then its own name is missing.
        return found == {name: version for name, version in expected.items() if version or name in found}

    def _learn(self, connection: sqlite3.Connection, ledger: int, names: Collection[str]) -> None:
        for name, (number, _) in versions_of(connection, ledger, names).items():
            self._numbers[name] = number

    def _create(self, connection: sqlite3.Connection, ledger: int, created: Mapping[str, int]) -> None:
        if not created:
            return
        (last,) = connection.execute(_LAST, (ledger,)).fetchone()
        numbered = [(ledger, number, *stream) for number, stream in enumerate(created.items(), last + 1)]
        connection.executemany(_CREATE, numbered)
        for _, number, name, _ in numbered:
            self._numbers[name] = number


def _name(connection: sqlite3.Connection, ledger: int, number: int) -> str:
    found = connection.execute(_NAME, (ledger, number)).fetchone()
    if found is None:
        raise CorruptLedger(1, f"the row of stream {number} in allowance_streams is lost")
    return str(found[0])


def _check_dense(rows: list[Row], newest: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raise the error of a broken constraint unless the rows number each stream on without a hole."""
    counts = dict.fromkeys(newest, 0)
    for row in rows:
        counts[row.stream] += 1
    for name, version in newest.items():
        if version != expected[name] + counts[name]:
            raise sqlite3.IntegrityError(f"versions are dense: {name!r} cannot be at {version} after this append")


def _move_all(connection: sqlite3.Connection, moved: Sequence[tuple[int, int, int, str, int]]) -> bool:
    """Move these streams; if one is at another version, move none and return False."""
    cursor = connection.cursor()
    for done, each in enumerate(moved):
        if cursor.execute(_MOVE, each).rowcount != 1:
            back = [(before, ledger, number, name, after) for after, ledger, number, name, before in moved[:done]]
            connection.executemany(_MOVE, back)
            return False
    return True


def versions_of(connection: sqlite3.Connection, ledger: int, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return the number and the version of each of these streams that exists."""
    found: dict[str, tuple[int, int]] = {}
    for batch in batches(names):
        query = _BY_NAME.format(values=", ".join("?" * len(batch)))
        for name, number, version in connection.execute(query, (ledger, *batch)):
            found[name] = number, version
    return found


def batches(values: Collection[V]) -> Iterator[list[V]]:
    """Split values into lists that are short enough for one statement."""
    remaining = iter(values)
    while batch := list(islice(remaining, LOOKUP_VALUES)):
        yield batch
