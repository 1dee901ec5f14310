"""A ledger opened for reading only: every question answered, every change refused, nothing left behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from routing import Allowance, BlockFact, LedgerNotFound, ReadOnlyLedger, Routing, Settings, StorageUnavailable

from .servers import connected
from .small import GPU, START, VALIDATOR, Clock, job, miner, small_book

pytestmark = pytest.mark.sqlalchemy

CLOCK = Clock(START + timedelta(seconds=500))
STAKES = {VALIDATOR: 1.0}


async def everything(url: str) -> Any:
    """All that there is, and when it was written: each file, or each row of each table."""
    if url.startswith("sqlite"):
        directory = Path(url.removeprefix("sqlite:///")).parent
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}
    async with connected(url) as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        # xmin: a row that was written again as it was is another one too.
        return {
            name: sorted(str(row) for row in await connection.fetch(f"SELECT xmin, * FROM {name}"))
            for (name,) in tables
        }


Change = Callable[[Allowance, int], Awaitable[Any]]

CHANGES: list[tuple[str, Change]] = [
    ("record_facts", lambda book, _: book.record_block(12, START + timedelta(seconds=144), [miner("5Anna")], STAKES)),
    ("record_facts", lambda book, _: book.record_facts([BlockFact(1, START, [], {})])),
    ("record_facts", lambda book, _: book.record_manifests(12, {"5Anna": {GPU: 2}})),
    ("reserve", lambda book, _: book.reserve("5Anna", GPU, 6.0, 11)),
    ("spend", lambda book, held: book.spend(held)),
    ("release", lambda book, held: book.release(held)),
    ("spend", lambda book, _: book.spend(7)),
    ("expire_due", lambda book, _: book.expire_due()),
    ("rebuild", lambda book, _: book.rebuild()),
    ("pick_miner_for_job_request", lambda book, _: Routing(book).pick_miner_for_job_request(job("job-1"))),
]


async def test_nothing_is_created_or_recorded(shared_url: str, tmp_path: Path) -> None:
    """Every question and every change asked, with other settings given: files and rows are as they were, to the byte.

    Catches settings that are recorded, a snapshot or a history brought up to date, and what SQLite does by itself.
    """
    async with small_book(url=shared_url) as book:
        held = (await book.reserve("5Anna", GPU, 6.0, 11)).reservation_id
        head = await book.head()
    before = await everything(shared_url)
    async with Allowance.open(
        shared_url,
        validator_ss58=VALIDATOR,
        settings=Settings(block_expiry_blocks=5),
        clock_ns=CLOCK,
        read_only=True,
    ) as book:
        for name, change in CHANGES:
            with pytest.raises(ReadOnlyLedger) as refused:
                pytest.fail(f"{name} answered {await change(book, held)}")
            assert refused.value.operation == name
        assert await book.head() == head
        assert (await book.settings()).block_expiry_blocks == 722
        assert (await book.reservation(held)).status == "reserved"
        assert [each.reservation_id for each in (await book.history()).items] == [held]
        assert len(await book.find_miners(6.0, GPU, 11)) == 3
        assert (await book.health()).overdue == 1
        assert (await book.audit()).findings == []
        assert (await book.verify([head])).findings == []
        assert (await book.at(position=3).head()).position == 3
        await book.export(tmp_path.parent / f"{tmp_path.name}.gz")
        await book.overview()
        await book.receipts()
    assert await everything(shared_url) == before


async def test_where_nothing_is_nothing_is_made(shared_url: str) -> None:
    """No file, no table, and no ledger in a database that has others."""
    before = await everything(shared_url)
    with pytest.raises((LedgerNotFound, StorageUnavailable)):
        await Allowance.open(shared_url, validator_ss58=VALIDATOR, read_only=True)
    assert await everything(shared_url) == before
    async with small_book(url=shared_url):
        pass
    before = await everything(shared_url)
    with pytest.raises(LedgerNotFound):
        await Allowance.open(shared_url, validator_ss58="5Stranger", read_only=True)
    assert await everything(shared_url) == before
