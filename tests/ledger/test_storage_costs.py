"""What a call costs the storage of a SQLite file, counted and never timed: rows read, pages changed, and flushes."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from routing import Allowance
from tests.ledger.test_costs import (
    BLOCKS,
    blocks,
    ledger_at,
    log_connections,
    picks,
    reservation_ids,
    use_every_account,
)
from tests.support.small import GPU
from tests.support.traced_disk import why_no_strace

ROWS_READ_PER_PICK = 5
"""The head, one for the look-up of the job, and the versions of settings, chain and manifests; no row of the log."""
ROWS_READ_PER_SETTLEMENT = 1
"""The head: an active reservation is in memory, and the statement that moves the account's version compares it."""
ROWS_READ_PER_BLOCK = 3
"""The head, and the versions of the two streams of facts that the block is not in."""
PAGES_PER_PICK = 4
"""The last page of the log, one of the index of jobs, the page of the stream's row, and that of the head."""
PAGES_PER_SETTLEMENT = 4
"""As for a pick, with the index of settlements instead of that of jobs."""
PAGES_PER_BLOCK = 3
"""The last page of the log, the page of the stream's row, and that of the head: no index has a block."""
PAGES_PER_200_PICKS = 48
"""About 18 pages of rows, 10 in the index of jobs, the streams, and the head; 800 if each pick was a commit."""
ALONE = 20
"""Lone calls, of which the median counts: now and then one of them splits a page."""
WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
FEW_CALLS, MORE_CALLS = 10, 30

Call = Callable[[int], Awaitable[object]]


class Rows:
    """Counts the rows that statements returned."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        self.count += 1
        return row


@contextmanager
def rows_read(ledger: Allowance) -> Iterator[Rows]:
    """Count the rows that the log's connections return."""
    rows, connections = Rows(), log_connections(ledger)
    for connection in connections:
        connection.row_factory = rows
    yield rows
    for connection in connections:
        connection.row_factory = None


def wal_frames(path: Path) -> int:
    """Return how many pages the write-ahead log has: it grows by those that a commit changed, until a checkpoint."""
    page_bytes = int.from_bytes(path.read_bytes()[16:18], "big")
    wal_bytes = path.with_name(f"{path.name}-wal").stat().st_size - WAL_HEADER_BYTES
    return wal_bytes // (page_bytes + FRAME_HEADER_BYTES)


@asynccontextmanager
async def ledger_with_calls(path: Path) -> AsyncIterator[tuple[Allowance, dict[str, Call]]]:
    """Open a ledger that has some reservations, and name the calls that are counted: each takes a number of its own."""
    async with ledger_at(path) as ledger:
        await use_every_account(ledger)
        active = reservation_ids(await picks(ledger, 2 * ALONE, first=1000))
        calls: dict[str, Call] = {
            "pick": lambda number: picks(ledger, 1, first=number),
            "settlement": lambda number: ledger.spend(active[number]),
            "block": lambda number: ledger.record_facts(blocks(BLOCKS + 1 + number, 1)),
        }
        await ledger.find_miners(1.0, GPU, BLOCKS)
        yield ledger, calls


@pytest.mark.parametrize(
    ("name", "most"),
    [("pick", ROWS_READ_PER_PICK), ("settlement", ROWS_READ_PER_SETTLEMENT), ("block", ROWS_READ_PER_BLOCK)],
)
async def test_a_call_reads_few_rows(tmp_path: Path, name: str, most: int) -> None:
    """Catches a decision that reads the log again, and versions that are read one stream after the other."""
    async with ledger_with_calls(tmp_path / "ledger.db") as (ledger, calls):
        with rows_read(ledger) as rows:
            await calls[name](0)
    assert rows.count <= most


@pytest.mark.parametrize(
    ("name", "most"),
    [("pick", PAGES_PER_PICK), ("settlement", PAGES_PER_SETTLEMENT), ("block", PAGES_PER_BLOCK)],
)
async def test_a_call_changes_few_pages(tmp_path: Path, name: str, most: int) -> None:
    """Catches one more index, a table that a call need not write, and a read model in the file of the log."""
    path = tmp_path / "ledger.db"
    changed = []
    async with ledger_with_calls(path) as (_, calls):
        for number in range(ALONE):
            before = wal_frames(path)
            await calls[name](number)
            changed.append(wal_frames(path) - before)
    assert median(changed) <= most, changed


async def test_concurrent_picks_change_shared_pages_once(tmp_path: Path) -> None:
    """Catches a batch that is split into several commits, and rows that are scattered over the file."""
    path = tmp_path / "ledger.db"
    async with ledger_with_calls(path) as (ledger, _):
        before = wal_frames(path)
        await picks(ledger, 200)
        changed = wal_frames(path) - before
    assert changed <= PAGES_PER_200_PICKS


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="strace is a program for Linux")
@pytest.mark.parametrize("name", ["pick", "settlement", "block"])
def test_a_call_is_one_flush(tmp_path: Path, name: str) -> None:
    """Each call flushes the write-ahead log once, and nothing else: counted in the system calls of two processes.

    Catches a commit that is not flushed, one that is flushed twice, and a flush of a file of derived tables.
    """
    if reason := why_no_strace():
        pytest.skip(reason)
    few, more = (flushes(tmp_path, name, calls) for calls in (FEW_CALLS, MORE_CALLS))
    assert more - few == Counter({"-wal": MORE_CALLS - FEW_CALLS})


def flushes(directory: Path, name: str, calls: int) -> Counter[str]:
    """Return how often a process flushed which file, by the end of the file's name."""
    path, record = directory / f"{calls}.db", directory / f"{calls}.strace"
    script = textwrap.dedent(f"""
        import asyncio
        from pathlib import Path
        from tests.ledger.test_storage_costs import ledger_with_calls

        async def main():
            async with ledger_with_calls(Path({str(path)!r})) as (_, calls):
                for number in range({calls}):
                    await calls[{name!r}](number)

        asyncio.run(main())
    """)
    trace = ["strace", "-f", "-y", "-o", str(record), "-e", "trace=fsync,fdatasync"]
    subprocess.run([*trace, sys.executable, "-c", script], check=True)
    flushed = re.findall(r"(?:fsync|fdatasync)\(\d+<([^>]*)>", record.read_text())
    return Counter(each.removeprefix(str(path)) for each in flushed)
