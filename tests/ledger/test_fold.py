"""The fold is deterministic: however a log is folded, the state is the same, byte for byte."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pytest

from ledger import Row, decode_state, encode_state
from ledger.codec import decode, encode
from projections import Availability
from routing import Allowance, AllowanceException, JobRoutingException, Routing, Settings
from tests.support.small import GPU, START, VALIDATOR, Clock, job, miner

SEEDS = [1, 2, 3, 4]


async def random_history(url: str, seed: int) -> tuple[list[Row], bytes]:
    """Use a ledger at random, with reopenings; return its rows and its last live state, encoded."""
    chance = random.Random(seed)
    clock = Clock(START)
    hotkeys = ["5Anna", "5Bert", "5Carl"]
    blocks = list(range(1, 40))
    chance.shuffle(blocks)
    for _ in range(3):
        settings = chance.choice([None, Settings(block_expiry_blocks=20), Settings(executors_max_per_class={GPU: 2})])
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, settings=settings) as ledger:
            ids: list[int] = []
            for _ in range(60):
                clock.advance(chance.choice([0, 1, 10, 200, -50]))
                try:
                    await random_call(ledger, chance, blocks, hotkeys, ids)
                except (AllowanceException, JobRoutingException):
                    continue
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        store = (await ledger._lifecycle.handle()).store
        rows: list[Row] = []
        while page := await store.read(len(rows)):
            rows += page
        return rows, await ledger._read_state(lambda state, _: encode_state(state))


async def random_call(
    ledger: Allowance, chance: random.Random, blocks: list[int], hotkeys: list[str], ids: list[int]
) -> None:
    """Make one random changing call."""
    match chance.randrange(7):
        case 0 | 1 if blocks:
            number = blocks.pop()
            present = [miner(hotkey) for hotkey in hotkeys if chance.random() < 0.9]
            at = START + timedelta(seconds=12 * number + chance.random())
            await ledger.record_block(number, at, present, {VALIDATOR: chance.choice([1.0, 2.0]), "5Other": 1.0})
        case 2:
            counts = {hotkey: {GPU: chance.randrange(1, 4)} for hotkey in hotkeys if chance.random() < 0.9}
            await ledger.record_manifests(chance.randrange(1, 40), counts, confirm=True)
        case 3:
            newest = await ledger.current_block() or 1
            ids.append(
                (await ledger.reserve(chance.choice(hotkeys), GPU, chance.randrange(1, 60), newest)).reservation_id
            )
        case 4:
            route = await Routing(ledger).pick_miner_for_job_request(
                job(f"job {chance.random()}", chance.randrange(1, 60))
            )
            ids.append(route.allowance_reservation_id or 0)
        case 5 if ids:
            await chance.choice([ledger.spend, ledger.release])(chance.choice(ids))
        case _:
            await ledger.expire_due()


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_way_of_folding_gives_the_same_state(tmp_path: Path, seed: int) -> None:
    """The live state, a fold from nothing, and folds through snapshots at random positions have equal bytes.

    Catches: any part of the state that depends on when or how it was folded, such as a count set for too many blocks,
    a metagraph compared by identity, an order of active reservations.
    """
    rows, live = await random_history(f"sqlite:///{tmp_path}/ledger.db", seed)
    at_once = Availability()
    at_once.fold(rows)
    assert encode_state(at_once) == live
    chance = random.Random(seed)
    for _ in range(5):
        state = Availability()
        for cut in sorted({chance.randrange(len(rows)) for _ in range(4)} | {len(rows)}):
            state.fold(rows[state.position : cut])
            copy = Availability()
            decode_state(encode_state(state), copy)
            assert encode_state(copy) == encode_state(state)
            state = copy
        assert encode_state(state) == live


@pytest.mark.parametrize("seed", SEEDS)
async def test_decoding_and_encoding_an_event_gives_the_stored_bytes(tmp_path: Path, seed: int) -> None:
    """Neither direction loses anything."""
    rows, _ = await random_history(f"sqlite:///{tmp_path}/ledger.db", seed)
    assert len(rows) > 60
    for row in rows:
        assert encode(decode(row.position, row.payload)) == row.payload


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_maintained_ranking_equals_a_fresh_one(tmp_path: Path, seed: int) -> None:
    """At every position, and at any clock, the maintained ranking equals one measured from nothing.

    Catches: an account that is not measured again after a claim, a settlement, a fact or the time changed it.
    """
    rows, _ = await random_history(f"sqlite:///{tmp_path}/ledger.db", seed)
    maintained = Availability()
    chance = random.Random(seed)
    for row in rows:
        maintained.fold([row])
        now_ns = row.recorded_at_ns + chance.choice([0, 0, 10**9, 10**11, 10**12, -(10**11)])
        fresh = Availability()
        decode_state(encode_state(maintained), fresh)
        entries = [(*entry[:5], entry.busy) for entry in maintained.ranking(GPU, now_ns)]
        assert entries == [(*entry[:5], entry.busy) for entry in fresh.ranking(GPU, now_ns)]
