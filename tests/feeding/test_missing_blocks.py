"""`missing_blocks`: the blocks of a range that are not recorded or not finalized, exactly."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import routing.sync as blocking
from ledger.domain.block_table import CHUNK, BlockTable
from routing import InvalidInput
from routing.service.queries import MOST_BLOCKS
from tests.support.small import START, VALIDATOR, miner, record_blocks, small_ledger

pytestmark = pytest.mark.compatibility


def table_of(blocks: set[int]) -> BlockTable:
    table = BlockTable()
    for block in blocks:
        table.record(block, 10**9 * block, 1, bytes(16))
    return table


# Around the borders of chunks, where runs of two chunks are joined.
near_borders = st.sampled_from((1, CHUNK, 2 * CHUNK, 5 * CHUNK)).flatmap(lambda base: st.integers(base, base + 12))


@given(
    st.sets(near_borders, max_size=40),
    st.sets(st.sampled_from((0, 1, 2)), max_size=3),
    near_borders,
    st.integers(0, 3 * CHUNK),
)
def test_unfinalized_runs_equal_a_loop_over_the_blocks(
    scattered: set[int], full_chunks: set[int], first: int, length: int
) -> None:
    """Every block of the range that lacks itself or its successor is in exactly one run, and runs do not touch."""
    blocks = scattered.union(*(range(max(1, CHUNK * each), CHUNK * (each + 1)) for each in full_chunks))
    last = first + length
    runs = table_of(blocks).unfinalized_runs(first, last)

    expected = [block for block in range(first, last + 1) if not {block, block + 1} <= blocks]
    assert [block for low, high in runs for block in range(low, high + 1)] == expected
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(runs))


async def test_the_newest_block_and_the_one_before_a_gap_are_missing_until_their_successor_comes() -> None:
    """Recorded and finalized are two things; both gaps and blocks that still grant nothing are returned."""
    async with small_ledger(blocks=5) as ledger:
        assert await ledger.missing_blocks(1, 5) == [(5, 5)]
        await record_blocks(ledger, 9, 10, ["5Anna", "5Bert", "5Carl"])

        assert await ledger.missing_blocks(1, 10) == [(5, 8), (10, 10)]
        assert await ledger.missing_blocks(6, 9) == [(6, 8)]
        assert await ledger.missing_blocks(9, 9) == []
        assert await ledger.missing_blocks(11, 20) == [(11, 20)]


async def test_a_withdrawn_block_is_missing_again_and_was_not_before() -> None:
    """A correction makes two blocks missing; a view of the position before it does not see that."""
    async with small_ledger(blocks=5) as ledger:
        before = (await ledger.head()).position
        await ledger.withdraw_block(3, "mistyped")

        assert await ledger.missing_blocks(1, 4) == [(2, 3)]
        assert await ledger.at(position=before).missing_blocks(1, 4) == []


@pytest.mark.parametrize(("first", "last"), [(0, 5), (5, 4), (1, MOST_BLOCKS + 1), ("1", 5), (1, 5.0), (True, 5)])
async def test_a_range_must_be_ascending_and_bounded(first: int, last: int) -> None:
    """A mistyped range is refused by name instead of being searched for seconds."""
    async with small_ledger(blocks=2) as ledger:
        with pytest.raises(InvalidInput) as refused:
            await ledger.missing_blocks(first, last)
        assert refused.value.field in ("first", "last")
        assert await ledger.missing_blocks(1, MOST_BLOCKS) == [(2, MOST_BLOCKS)]


def test_missing_blocks_as_a_blocking_call() -> None:
    """The blocking face and its view of the past return the same."""
    with blocking.Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
        for number in (1, 2, 4):
            ledger.record_block(number, START + timedelta(seconds=12 * number), [miner("5Anna")], {})
        assert ledger.missing_blocks(1, 4) == [(2, 4)]
        assert ledger.at(block=2).missing_blocks(1, 4) == [(2, 4)]
