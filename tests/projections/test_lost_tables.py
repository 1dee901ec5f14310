"""Lost or broken derived tables: the ledger opens without them, errors name the way out, and `rebuild` remakes them."""

from __future__ import annotations

import asyncio

import pytest

from projections.derived_tables import DERIVED_TABLES, remake_broken_tables
from routing import Allowance, StorageUnavailable
from tests.storage.test_schema_steps import catalog
from tests.support.engines import derived_statement, derived_url, statement
from tests.support.logs import opened
from tests.support.small import GPU, VALIDATOR, Clock, record_blocks, small_ledger

BREAKAGES = {
    **{f"no {name}": f"DROP TABLE {name}" for name in DERIVED_TABLES},
    "no index": "DROP INDEX allowance_reservations_miner",
    "a lost column": "ALTER TABLE allowance_snapshots DROP COLUMN payload",
    "a renamed column": "ALTER TABLE allowance_reservations RENAME COLUMN blocks TO other_blocks",
    "another column": "ALTER TABLE allowance_checkpoints ADD COLUMN more INTEGER",
    "no verifications": "DROP TABLE allowance_verifications",
}


def clock() -> Clock:
    """A clock at the newest block of the small ledger."""
    now = Clock()
    now.advance(200)
    return now


async def make_ledger(url: str) -> None:
    """Make a ledger whose history is projected and that has a snapshot and a verification."""
    async with small_ledger(url=url) as ledger:
        for _ in range(3):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.rebuild()
        await ledger.verify()


@pytest.mark.parametrize("name", BREAKAGES)
async def test_a_rebuild_makes_a_lost_table_again(any_url: str, name: str) -> None:
    """The ledger opens and goes on without the table; after the rebuild all tables are there, and agree with the log.

    Catches an opening that needs the snapshots, and a rebuild that expects its tables.
    """
    await make_ledger(any_url)
    broken_url = any_url if name == "no verifications" else derived_url(any_url)
    before = await catalog(broken_url)
    await asyncio.to_thread(statement, broken_url, BREAKAGES[name])
    assert await catalog(broken_url) != before
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock()) as ledger:
        await record_blocks(ledger, 12, 12, ["5Anna", "5Bert", "5Carl"])
        assert len(await ledger.find_miners(6.0, GPU, 12)) == 3
        report = await ledger.rebuild()
        assert len(report.remade) == 1
        assert report.remade[0] in (BREAKAGES[name] + " allowance_reservations")
        assert len((await ledger.history()).items) == 3
        assert (await ledger.audit()).findings == []
        await ledger.verify()
        second = await ledger.rebuild()
        assert (second.remade, second.different) == ([], 0)
    # The order of a table's columns and the text of its definition may differ; what they are may not.
    assert len(await catalog(broken_url)) == len(before)


@pytest.mark.parametrize("table", ["allowance_reservations", "allowance_checkpoints"])
async def test_the_error_of_a_lost_table_names_the_way_out(any_url: str, table: str) -> None:
    """A query that needs the table says that `allowance rebuild` makes it again; a pick does not need it."""
    await make_ledger(any_url)
    await asyncio.to_thread(derived_statement, any_url, f"DROP TABLE {table}")
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock(), read_only=True) as ledger:
        with pytest.raises(StorageUnavailable, match="allowance rebuild") as refused:
            await ledger.history()
        assert table in str(refused.value)
        assert len(await ledger.find_miners(6.0, GPU, 11)) == 3


async def test_a_lost_table_of_the_log_is_not_derived(any_url: str) -> None:
    """The error does not promise what a rebuild cannot do."""
    await make_ledger(any_url)
    await asyncio.to_thread(statement, any_url, "DROP VIEW allowance_log")
    await asyncio.to_thread(statement, any_url, "DROP TABLE allowance_events")
    with pytest.raises(StorageUnavailable) as refused:
        async with Allowance.open(any_url, validator_ss58=VALIDATOR) as ledger:
            await ledger.current_block()
    assert "rebuild" not in str(refused.value)


@pytest.mark.parametrize("table", ["allowance_reservations", "allowance_reserved_blocks"])
async def test_a_table_that_was_made_again_is_not_shown_before_it_is_filled(any_url: str, table: str) -> None:
    """If the rebuild is killed after it made the table, the history is folded from the log.

    Catches a checkpoint that promises rows which the new table does not have.
    """
    await make_ledger(any_url)
    await asyncio.to_thread(derived_statement, any_url, f"DROP TABLE {table}")
    async with opened(any_url, VALIDATOR) as store:
        assert await remake_broken_tables(store) == [table]
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock(), read_only=True) as ledger:
        assert len((await ledger.history()).items) == len((await ledger.history(block=1)).items) + 2 == 3
