"""A damaged log does not keep serving: whoever loads its state checks the newest rows first."""

from __future__ import annotations

import asyncio

import pytest

from ledger.damage import NEWEST_ROWS
from routing import Allowance, CorruptLedger
from tests.support.engines import statement
from tests.support.small import GPU, VALIDATOR, Clock, record_blocks, small_ledger

BLOCKS = 250
"""More events than are checked, so that the check begins in the middle of the log."""
HEAD = BLOCKS + 2

DAMAGES = {
    "a changed column": ("UPDATE allowance_events SET recorded_at_ns = recorded_at_ns + 1 WHERE position = 200", 200),
    "the last row changed": (f"UPDATE allowance_events SET version = version + 7 WHERE position = {HEAD}", HEAD),
    "a lost row": ("DELETE FROM allowance_events WHERE position = 201", 201),
    "a lost tail": (f"DELETE FROM allowance_events WHERE position > {HEAD - 3}", HEAD - 2),
    "an old head": ("UPDATE allowance_ledgers SET recorded_at_ns = recorded_at_ns + 1", HEAD),
    "the first checked row": (
        f"UPDATE allowance_events SET version = version + 1000 WHERE position = {HEAD - NEWEST_ROWS + 1}",
        HEAD - NEWEST_ROWS + 1,
    ),
}


def clock() -> Clock:
    """A clock at the newest block."""
    now = Clock()
    now.advance(12 * BLOCKS)
    return now


async def damage(url: str, sql: str) -> None:
    """Change the stored log behind the library's back."""
    triggers = {
        "allowance_events": (
            "allowance_events_no_update",
            "allowance_events_no_delete",
            "allowance_events_append_only",
        ),
        "allowance_ledgers": ("allowance_ledgers_no_step_back",),
    }
    for table, names in triggers.items():
        for name in names:
            await asyncio.to_thread(
                statement, url, f"DROP TRIGGER IF EXISTS {name}" + ("" if url.startswith("sqlite") else f" ON {table}")
            )
    await asyncio.to_thread(statement, url, sql)


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damaged_tail_is_noticed_when_the_ledger_is_opened(any_url: str, name: str) -> None:
    """The error names the first bad position and the way out, for writers and for readers, on both engines.

    Catches an opening that folds whatever is stored: of a page it compares the first hash only.
    """
    sql, position = DAMAGES[name]
    async with small_ledger(url=any_url, blocks=BLOCKS) as ledger:
        assert (await ledger.head()).position == HEAD
    await damage(any_url, sql)
    for read_only in (False, True):
        with pytest.raises(CorruptLedger) as refused:
            async with Allowance.open(
                any_url, validator_ss58=VALIDATOR, clock_ns=clock(), read_only=read_only
            ) as ledger:
                await ledger.find_miners(1.0, GPU, BLOCKS)
        assert refused.value.position == position
        assert "allowance verify" in str(refused.value)
        assert "backup" in str(refused.value)


async def test_a_damaged_log_can_still_be_audited_and_verified(any_url: str) -> None:
    """Whoever looks for the damage is not refused: read-only, `audit` and `verify` report it."""
    async with small_ledger(url=any_url, blocks=BLOCKS):
        pass
    await damage(any_url, DAMAGES["a changed column"][0])
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        assert (await ledger.audit()).findings[0].position == 200
        assert (await ledger.verify()).first_bad_position == 200


@pytest.mark.parametrize("blocks", [0, 1, NEWEST_ROWS - 3, NEWEST_ROWS - 2, NEWEST_ROWS - 1, NEWEST_ROWS])
async def test_an_intact_log_of_any_length_opens(url: str, blocks: int) -> None:
    """Logs around the length of the checked stretch open, and go on."""
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock()) as ledger:
        await record_blocks(ledger, 1, blocks, ["5Anna"])
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock()) as ledger:
        await record_blocks(ledger, blocks + 1, blocks + 1, ["5Anna"])
        assert (await ledger.head()).position == blocks + 2
