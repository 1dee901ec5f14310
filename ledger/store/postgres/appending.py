"""The append: rows and expected versions as one statement's values, and what the statement returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import asyncpg

from ledger.codec import Row
from ledger.domain.lookup import Head
from ledger.errors import StreamVersionConflict
from ledger.store.contract import SCHEMA_VERSION, VersionConflict, versions_before

from .statements import APPEND


class AppendResult(NamedTuple):
    """Whether the rows were appended; if not, what the statement found when it began."""

    is_done: bool
    is_at_head: bool
    """Whether the head was the expected one."""
    has_since: bool
    """Whether the log has the event at which the append was decided."""
    conflicts: list[StreamVersionConflict]
    """The streams at other versions than the expected ones."""

    def refuse_conflicts(self) -> None:
        """Raise `VersionConflict` if streams were at other versions."""
        if self.conflicts:
            raise VersionConflict(self.conflicts)


class Append:
    """Rows to insert, if the head and the expected streams are as they were when the rows were decided."""

    def __init__(
        self,
        ledger: int,
        validator_ss58: str,
        head: Head,
        fence: int,
        rows: list[Row],
        expected: Mapping[str, int],
        since: Head,
    ) -> None:
        """Raise `ValueError` if the rows' versions do not follow the expected ones: that is the caller's mistake."""
        self._expected = expected = {**versions_before(rows), **expected}
        last = rows[-1]
        numbers = {stream: number for number, stream in enumerate(expected, 1)}
        self._values: tuple[Any, ...] = (
            *(ledger, validator_ss58, head.position, head.hash, fence, SCHEMA_VERSION),
            *(last.position, last.hash, last.recorded_at_ns),
            *(list(expected), list(expected.values()), _newest_versions(rows, expected)),
            *zip(*((row.position, numbers[row.stream], *row[2:]) for row in rows), strict=True),
            *(since.position, since.hash),
        )

    async def execute(self, connection: asyncpg.Connection) -> AppendResult:
        """Insert the rows, and move the head and their streams; or do nothing. One round trip."""
        result = await connection.fetchrow(APPEND, *self._values)
        if result is None:
            return AppendResult(is_done=False, is_at_head=False, has_since=True, conflicts=[])
        is_done, is_at_head, has_since, streams, versions = result
        conflicts = [
            StreamVersionConflict(stream, self._expected[stream], version)
            for stream, version in zip(streams, versions, strict=True)
        ]
        return AppendResult(is_done, is_at_head, has_since, conflicts)


def _newest_versions(rows: Iterable[Row], expected: Mapping[str, int]) -> list[int]:
    newest = dict(expected)
    for row in rows:
        version = newest[row.stream]
        if row.version != version + 1:
            raise ValueError(f"version {row.version} of stream {row.stream!r} does not follow version {version}")
        newest[row.stream] = row.version
    return list(newest.values())
