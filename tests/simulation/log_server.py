"""One simulated database: the log that all processes of a world share, its head's lock, and the read models."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from ledger import Head, Lookup, Row
from ledger.codec import GENESIS_HASH
from ledger.domain.lookup import LookupResult
from ledger.events import SEALS_STREAM
from ledger.store.contract import RowExists, refuse_other_versions
from tests.simulation.scheduler import SimulatedLoop

_INSERT_EVENT = f"INSERT INTO allowance_events (ledger, {', '.join(Row._fields)}) VALUES ({', '.join('?' * 11)})"


class Session:
    """A client's connection; `broken` once its process was killed or the client dropped it."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.broken = False


class LogServer:
    """The rows with their unique indexes, the head's lock in order of arrival, and the fence."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.created = False
        self.rows: list[Row] = []
        self.fence = 0
        self.unproven: list[Row] = []
        """The rows of a commit whose flush failed: nobody knows whether they will be in the log."""
        self.models = _empty_models()
        self.versions: dict[str, int] = {}
        """The version of each stream that has events."""
        self._keys: dict[str, Row] = {}
        self._attempts: dict[tuple[str, int], Row] = {}
        self._jobs: dict[str, Row] = {}
        self._settlements: dict[int, Row] = {}
        self._owner: Session | None = None
        self._waiting: deque[tuple[Session, Callable[[], None]]] = deque()

    @property
    def head(self) -> Head:
        """The head row."""
        if not self.rows:
            return Head(0, GENESIS_HASH, 0)
        last = self.rows[-1]
        return Head(last.position, last.hash, last.recorded_at_ns)

    def has(self, head: Head) -> bool:
        """Whether the log has a row with the position and hash of a head; the head of an empty log is in every log."""
        return head.position == 0 or [row.hash for row in self.rows[head.position - 1 :][:1]] == [head.hash]

    def read(self, after: int, limit: int) -> list[Row]:
        """Return a page of the rows after a position."""
        return self.rows[after : after + limit]

    def find(self, lookup: Lookup) -> LookupResult:
        """Return the stored rows for keys, jobs and positions, with the settlements of the reservations among them."""
        known = LookupResult()
        known.keys = {key: self._keys[key] for key in lookup.keys if key in self._keys}
        known.jobs = {job: self._jobs[job] for job in lookup.jobs if job in self._jobs}
        known.rows = {at: self.rows[at - 1] for at in lookup.positions if 1 <= at <= len(self.rows)}
        for row in (*known.jobs.values(), *known.rows.values()):
            if row.position in self._settlements:
                known.settlements[row.position] = self._settlements[row.position]
        return known

    def append_at(self, head: Head, fence: int, rows: list[Row], expected: Mapping[str, int]) -> bool:
        """Append if the head and the fence are still these; raise if a stream has moved or a unique index refuses."""
        if self.head != head or self.fence != fence:
            return False
        refuse_other_versions(expected, self.versions)
        if self.refuses(rows):
            raise RowExists("simulated: a unique index refused a row")
        self.append(rows)
        return True

    def refuses(self, rows: Sequence[Row]) -> bool:
        """Whether a unique index refuses one of the rows."""
        return any(
            row.key in self._keys
            or (row.job_uuid, row.attempt) in self._attempts
            or row.settles in self._settlements
            or row.position <= len(self.rows)
            for row in rows
        )

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows for good."""
        for row in rows:
            self.rows.append(row)
            self.versions[row.stream] = row.version
            if row.stream == SEALS_STREAM:
                # An audit looks up with SQL which positions are sealed.
                self.models.execute(_INSERT_EVENT, (1, *row))
            if row.key is not None:
                self._keys[row.key] = row
            if row.job_uuid is not None and row.attempt is not None:
                self._attempts[row.job_uuid, row.attempt] = row
                self._jobs[row.job_uuid] = row
            if row.settles is not None:
                self._settlements[row.settles] = row

    def replace(self, rows: Sequence[Row]) -> None:
        """Replace the whole log, as somebody who restores another one does."""
        for index in (self.rows, self.versions, self._keys, self._attempts, self._jobs, self._settlements):
            index.clear()
        self.models.execute("DELETE FROM allowance_events")
        self.append(rows)

    def request_lock(self, session: Session, granted: Callable[[], None]) -> None:
        """Call `granted` once the session has the head's lock; sessions get it in order of arrival."""
        self._waiting.append((session, granted))
        self._grant()

    def release_lock(self, session: Session) -> None:
        """Give the lock back; harmless if the session does not have it."""
        if self._owner is session:
            self._owner = None
            self._grant()

    def has_lock(self, session: Session) -> bool:
        """Whether this session has the lock."""
        return self._owner is session

    def is_locked(self) -> bool:
        """Whether a session has the lock or waits for it."""
        return self._owner is not None

    def _grant(self) -> None:
        while self._owner is None and self._waiting:
            self._owner, granted = self._waiting.popleft()
            granted()


@cache
def _schema() -> tuple[str, ...]:
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateTable

    from projections import schema

    tables = [*schema().log.sorted_tables, *schema().derived.sorted_tables]
    return tuple(str(CreateTable(table).compile(dialect=sqlite.dialect())) for table in tables)


@cache
def _models() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    for statement in _schema():
        connection.execute(statement)
    return connection


def _empty_models() -> sqlite3.Connection:
    """Return the connection to the read models' tables, emptied; one world at a time uses it."""
    connection = _models()
    connection.execute("DELETE FROM allowance_snapshots")
    connection.execute("DELETE FROM allowance_events")
    return connection
