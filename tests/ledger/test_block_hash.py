"""A block's hash: recorded with the block, no difference where it is missing, and right after every correction."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import LedgerState, encode_state
from ledger.codec import decode
from ledger.domain.block_table import CHUNK, BlockTable
from ledger.domain.state_codec import decode_state
from ledger.errors import CorruptLedger
from ledger.events import CHAIN_STREAM, BlockRecorded
from routing import (
    Allowance,
    BlockFact,
    ConflictingFact,
    IdempotencyConflict,
    ImplausibleFact,
    InvalidInput,
)
from tests.support.log_builder import LogBuilder
from tests.support.small import START, VALIDATOR, miner, small_ledger

A, B = "a1" * 32, "b2" * 32
MINERS = [miner("5Anna"), miner("5Bert"), miner("5Carl")]
STAKES = {VALIDATOR: 1.0, "5Other": 1.0}


def at(number: int) -> datetime:
    return START + timedelta(seconds=12 * number)


async def record(ledger: Allowance, number: int, block_hash: str | None = None, **more: Any) -> int:
    return await ledger.record_block(number, at(number), MINERS, STAKES, block_hash=block_hash, **more)


async def recorded_hash(ledger: Allowance, position: int) -> str:
    state = await ledger._read_state(lambda state, _: state)
    assert state.position >= position
    handle = await ledger._lifecycle.handle()
    row = (await handle.runtime.run(handle.store.read(position - 1)))[0]
    event = decode(row.position, row.payload)
    assert isinstance(event, BlockRecorded)
    return event.block_hash


async def newest_hash(ledger: Allowance) -> str:
    """Return the hash of the newest block in the state that decides."""
    found: bytes = await ledger._read_state(lambda state, _: state.chain.tie_break_hash)
    return found.hex()


@pytest.mark.parametrize("given", [A, A.upper(), f"0x{A}", f"0x{A.upper()}"])
async def test_a_hash_is_stored_in_lower_case_without_prefix(any_url: str, given: str) -> None:
    """Every spelling of one hash is the same content; catches a hash that is stored as it was written."""
    async with small_ledger(url=any_url) as ledger:
        position = await record(ledger, 12, given)
        assert await recorded_hash(ledger, position) == A
        assert await record(ledger, 12, A) == position
        assert await newest_hash(ledger) == A


@pytest.mark.parametrize(
    "wrong", ["", "0x", A[:-1], f"{A}0", f"0X{A}", f" {A}", f"{A}\n", "g" * 64, "١" * 64, bytes(32), 0, True, [A]]
)
async def test_a_malformed_hash_is_refused_by_name(wrong: Any) -> None:
    """It is wrong input, not a missing hash, and nothing is recorded."""
    async with small_ledger() as ledger:
        head = await ledger.head()
        with pytest.raises(InvalidInput) as refused:
            await record(ledger, 12, wrong)
        assert refused.value.field == "block_hash"
        assert await ledger.head() == head


@pytest.mark.parametrize(("first", "second"), [(A, None), (None, A), (None, None), (A, A)])
async def test_a_missing_hash_makes_no_difference(first: str | None, second: str | None) -> None:
    """The repeat returns the first position, appends nothing, and a block recorded without a hash never gains one."""
    async with small_ledger() as ledger:
        position = await record(ledger, 12, first)
        head = await ledger.head()
        assert await record(ledger, 12, second) == position
        assert await ledger.head() == head
        assert await newest_hash(ledger) == (first or "")


async def test_another_hash_is_a_conflict_that_shows_both(any_url: str) -> None:
    """Catches a hash that is no part of a block's content: a block of a fork would pass for the recorded one."""
    async with small_ledger(url=any_url) as ledger:
        position = await record(ledger, 12, A)
        with pytest.raises(ConflictingFact) as refused:
            await record(ledger, 12, B)
        assert refused.value.differences == {"block_hash": (A, B)}
        assert refused.value.recorded_position == position


async def test_a_conflict_in_the_time_does_not_name_a_missing_hash() -> None:
    """A missing hash is no difference in an error either."""
    async with small_ledger() as ledger:
        await record(ledger, 12, A)
        with pytest.raises(ConflictingFact) as refused:
            await ledger.record_block(12, at(12) + timedelta(seconds=1), MINERS, STAKES)
        assert list(refused.value.differences) == ["created_at"]


async def test_the_hash_is_part_of_a_keyed_call() -> None:
    """With the same key another hash, or none, is another call; the same one returns the first outcome.

    Catches a request digest that leaves the hash out: the second call would be told that its hash was recorded.
    """
    async with small_ledger() as ledger:
        position = await record(ledger, 12, A, idempotency_key="block-12")
        assert await record(ledger, 12, f"0x{A.upper()}", idempotency_key="block-12") == position
        for other in (B, None):
            with pytest.raises(IdempotencyConflict):
                await record(ledger, 12, other, idempotency_key="block-12")
        assert await record(ledger, 13, idempotency_key="block-13") == position + 1
        with pytest.raises(IdempotencyConflict):
            await record(ledger, 13, A, idempotency_key="block-13")


async def test_a_keyed_batch_returns_the_positions_of_its_own_blocks() -> None:
    """A retry after a withdrawal finds the block with its hash, not the one that was recorded in its place."""
    async with small_ledger() as ledger:
        facts = [BlockFact(12, at(12), MINERS, STAKES, A)]
        positions = await ledger.record_facts(facts, idempotency_key="k")
        await ledger.withdraw_block(12, "a fork")
        await record(ledger, 12, B)
        assert await ledger.record_facts(facts, idempotency_key="k") == positions


async def test_a_retried_batch_is_refused_the_same_hash_again() -> None:
    """The first call recorded block 13 and was refused block 12; so is the retry, which records nothing.

    Catches a retry that takes the recorded block for its own, although that has another hash.
    """
    async with small_ledger() as ledger:
        await record(ledger, 12, A)
        facts = [BlockFact(13, at(13), MINERS, STAKES, A), BlockFact(12, at(12), MINERS, STAKES, B)]
        for _ in range(2):
            with pytest.raises(ConflictingFact) as refused:
                await ledger.record_facts(facts, idempotency_key="k")
            assert (refused.value.fact_index, refused.value.differences) == (1, {"block_hash": (A, B)})
            assert await newest_hash(ledger) == A


async def test_the_newest_hash_after_a_withdrawal_is_that_of_the_newest_block() -> None:
    """Catches a hash that outlives its block, or one that is kept for the newest block only."""
    async with small_ledger() as ledger:
        for number, block_hash in ((12, A), (13, None), (14, B)):
            await record(ledger, number, block_hash)
        found = [await newest_hash(ledger)]
        for number in (14, 13, 12):
            await ledger.withdraw_block(number, "a fork")
            found.append(await newest_hash(ledger))
        assert found == [B, "", A, ""]
        await record(ledger, 12, confirm=True)
        assert await newest_hash(ledger) == ""
        assert (await ledger.audit()).findings == []


async def test_a_withdrawn_block_comes_back_only_with_another_hash_or_a_confirmation() -> None:
    """A fork's block differs in its hash alone; the withdrawn content, with or without the hash, needs `confirm`."""
    async with small_ledger() as ledger:
        await record(ledger, 12, A)
        await ledger.withdraw_block(12, "a fork")
        for same in (A, None):
            with pytest.raises(ImplausibleFact):
                await record(ledger, 12, same)
        position = await record(ledger, 12, B)
        assert await recorded_hash(ledger, position) == B
        await ledger.withdraw_block(12, "a mistake")
        await record(ledger, 12, A, confirm=True)
        assert await newest_hash(ledger) == A


async def test_an_older_block_does_not_change_the_newest_hash() -> None:
    """A backfill records older blocks later."""
    async with small_ledger() as ledger:
        await record(ledger, 20, A)
        await record(ledger, 15, B)
        assert await newest_hash(ledger) == A


async def test_views_of_the_past_have_the_hash_of_their_newest_block(tmp_path: Path) -> None:
    """At the position before a block, its hash is unknown."""
    async with small_ledger(url=f"sqlite:///{tmp_path}/a.db") as ledger:
        positions = [await record(ledger, number, block_hash) for number, block_hash in ((12, A), (13, B))]
        await ledger.withdraw_block(13, "a fork")
        found = []
        for position in (positions[0] - 1, *positions, positions[1] + 1):
            view: bytes = await ledger.at(position=position)._read_state(lambda state, _: state.chain.tie_break_hash)
            found.append(view.hex())
        assert found == ["", A, B, A]


async def test_events_show_the_hash(any_url: str) -> None:
    """A reader of the log's stored bytes finds the hash in them."""
    async with small_ledger(url=any_url) as ledger:
        position = await record(ledger, 12, A)
        assert await recorded_hash(ledger, position) == A


# Below the service


def table_with(*hashed: tuple[int, bytes]) -> BlockTable:
    table = BlockTable()
    for number in range(1, 3 * CHUNK):
        table.record(number, 12 * number, number, bytes(16), dict(hashed).get(number, b""))
    return table


def test_only_chunks_with_a_hash_have_the_column() -> None:
    """A ledger without hashes pays nothing; catches a column in every chunk, or one that outlives its last hash."""
    first, second = (CHUNK, b"1" * 32), (CHUNK + 1, bytes(32))
    table = table_with(first, second)
    assert [bool(table.chunks[number].hashes) for number in range(3)] == [False, True, False]
    # Any hash may occur, also one of zeros, which is not the absence of a hash.
    assert (table.block_hash(CHUNK), table.block_hash(CHUNK + 1)) == (b"1" * 32, bytes(32))
    assert table.block_hash(CHUNK + 2) == table.block_hash(1) == table.block_hash(10**9) == b""
    table.forget(CHUNK)
    assert table.chunks[1].hashes
    table.forget(CHUNK + 1)
    assert not table.chunks[1].hashes


def test_a_state_keeps_its_hashes_in_a_snapshot() -> None:
    """The restored state has the same bytes and the same hashes, those of withdrawn blocks included."""
    log = LogBuilder()
    log.block(12, block_hash=A)
    state, restored = LedgerState(), LedgerState()
    state.fold(log.rows)
    decode_state(encode_state(state), restored)
    assert restored.chain.blocks.block_hash(12).hex() == A
    assert encode_state(restored) == encode_state(state)


@pytest.mark.parametrize("forged", ["c0ffee", A.upper(), f"0x{A}", f"{A} ", "x"])
def test_a_forged_hash_is_damage(forged: str) -> None:
    """A fold refuses what no release writes: two spellings of one hash would be two states."""
    log = LogBuilder()
    log.append(CHAIN_STREAM, BlockRecorded(12, int(at(12).timestamp()) * 10**9, block_hash=forged))
    with pytest.raises(CorruptLedger):
        LedgerState().fold(log.rows)
