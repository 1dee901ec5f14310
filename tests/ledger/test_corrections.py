"""Corrections through the public face: withdrawn blocks and syncs, coverage of syncs, and implausible facts."""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import LedgerState, decode_state, encode_state
from ledger.codec import decode
from ledger.errors import CorruptLedger
from ledger.events import MANIFESTS_STREAM, ManifestsWithdrawn, account_stream
from projections import offers_without
from routing import (
    Allowance,
    BlockInUse,
    CannotReserveAllowanceException,
    ConflictingFact,
    FactNotRecorded,
    IdempotencyConflict,
    ImplausibleFact,
    InvalidInput,
    ManifestsFact,
    ManifestsStale,
    NotEnoughAllowanceException,
    Receipt,
    Routing,
    Settings,
)
from tests.support.log_builder import ANNA, CARL, LogBuilder, audited
from tests.support.small import GPU, START, VALIDATOR, Clock, job, miner, record_blocks, small_ledger
from tests.support.stories import events_of

ALL = {"5Anna": {GPU: 2}, "5Bert": {GPU: 2}, "5Carl": {GPU: 2}}
NAMES = sorted(ALL)
REFUSALS = (ConflictingFact, FactNotRecorded, BlockInUse, CannotReserveAllowanceException)


async def totals(ledger: Any, block: int) -> dict[str, float]:
    return {each.hotkey_ss58: each.total_seconds for each in await ledger.find_miners(0.1, GPU, block)}


@pytest.mark.parametrize("steps", [[], [(1, 2)], [(0, 2), (5, 1), (3, 2)]])
def test_a_forged_withdrawal_with_impossible_steps_is_damage(steps: list[tuple[int, int]]) -> None:
    """Catches a fold that accepts them: every later query would fail with an `IndexError`."""
    log = LogBuilder()
    log.append(MANIFESTS_STREAM, ManifestsWithdrawn(1, "forged", counts={account_stream(ANNA, GPU): steps}))
    with pytest.raises(CorruptLedger):
        LedgerState().fold(log.rows)


async def test_a_sync_with_a_wrong_number_is_refused() -> None:
    """Observation: `record_manifests(5_000_000, …)` at block 400 was accepted, and ruined the accounts for good."""
    async with small_ledger(blocks=400) as ledger:
        with pytest.raises(ImplausibleFact, match="4999600 blocks beyond the newest block, 400"):
            await ledger.record_manifests(5_000_000, {"5Anna": {GPU: 1}})
        await ledger.record_manifests(7600, ALL)
        with pytest.raises(ImplausibleFact):
            await ledger.record_manifests(7601, ALL)


async def test_the_next_block_is_not_compared_with_a_withdrawn_one() -> None:
    """A withdrawn block without neighbours counts as never recorded. Catches its metagraph staying behind."""
    stakes = {VALIDATOR: 1.0}
    async with small_ledger(blocks=11) as ledger:
        few, many = await ledger.miners(), [miner(f"5Extra{number}") for number in range(60)]
        await ledger.record_block(200, START + timedelta(seconds=2400), few, stakes)
        await ledger.record_block(150, START + timedelta(seconds=1800), many, stakes)
        await ledger.withdraw_block(150, "mistyped")
        await ledger.record_block(201, START + timedelta(seconds=2412), few, stakes)
        assert (await ledger.audit()).findings == []
        assert await ledger.miners() == few


async def test_withdrawing_the_only_block_leaves_no_metagraph() -> None:
    """The next block is compared with none, and its difference is to none."""
    many = [miner(f"5Extra{number}") for number in range(60)]
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
        await ledger.record_block(1, START, many, {VALIDATOR: 1.0})
        await ledger.withdraw_block(1, "mistyped")
        assert await ledger.miners() == []
        await ledger.record_block(1, START, [miner("5Anna")], {VALIDATOR: 1.0})
        assert [each.hotkey_ss58 for each in await ledger.miners()] == ["5Anna"]
        assert (await ledger.audit()).findings == []


async def test_a_sync_with_a_wrong_number_is_withdrawn() -> None:
    """Observation: after the confirmed mistake nobody had allowance; after the withdrawal all have it back.

    Catches: a correction that leaves the drop in force, or the counts of the withdrawn sync.
    """
    async with small_ledger(blocks=400) as ledger:
        before = await ledger.find_miners(1.0, GPU, 400)
        await ledger.record_manifests(5_000_000, {"5Anna": {GPU: 1}}, confirm=True)
        with pytest.raises(NotEnoughAllowanceException):
            await ledger.find_miners(1.0, GPU, 400)
        wrong = (await ledger.head()).position
        position = await ledger.withdraw_manifests(5_000_000, "mistyped")
        assert position == wrong + 1
        assert await ledger.find_miners(1.0, GPU, 400) == before
        assert await ledger.manifests() == ALL
        with pytest.raises(NotEnoughAllowanceException):
            await ledger.at(position=wrong).find_miners(1.0, GPU, 400)
        await record_blocks(ledger, 401, 402, NAMES)
        assert await totals(ledger, 402) == dict.fromkeys(NAMES, 401 * 12.0)
        assert not (await ledger.audit()).findings


async def test_the_drops_that_remain_stay_in_force() -> None:
    """Withdrawing the sync in the middle of three compares the third with the first: a drop may appear or go."""
    async with small_ledger(offers={"5Anna": 4}, blocks=8) as ledger:
        await ledger.record_manifests(4, {"5Anna": {GPU: 1}})
        await ledger.record_manifests(6, {"5Anna": {GPU: 3}})
        await ledger.withdraw_manifests(4, "the miner was restarting")
        # 3 after 4 is a drop at 6. The finalized blocks keep their amounts: 4 executors each.
        assert await totals(ledger, 8) == {"5Anna": 2 * 24.0}
        await ledger.withdraw_manifests(6, "so it was")
        assert await totals(ledger, 8) == {"5Anna": 7 * 24.0}
        assert not (await ledger.audit()).findings


async def test_finalized_blocks_keep_their_amounts_when_a_sync_is_withdrawn() -> None:
    """Blocks that were finalized with the withdrawn sync keep its counts; later ones have those that remain."""
    async with small_ledger(offers={"5Anna": 1}, blocks=4) as ledger:
        await ledger.record_manifests(4, {"5Anna": {GPU: 5}})
        await record_blocks(ledger, 5, 5, ["5Anna"])
        await ledger.withdraw_manifests(4, "wrong")
        await record_blocks(ledger, 6, 6, ["5Anna"])
        assert await totals(ledger, 6) == {"5Anna": 3 * 6.0 + 30.0 + 6.0}
        assert not (await ledger.audit()).findings


async def test_a_withdrawn_block_counts_as_never_recorded() -> None:
    """The block and its predecessor grant nothing; recorded anew, both are finalized with the facts of then."""
    async with small_ledger(offers={"5Anna": 1, "5Bert": 1}, blocks=6) as ledger:
        await ledger.withdraw_block(4, "wrong time")
        assert await totals(ledger, 6) == dict.fromkeys(["5Anna", "5Bert"], 3 * 6.0)
        await ledger.record_manifests(2, {"5Anna": {GPU: 3}, "5Bert": {GPU: 1}})
        with pytest.raises(ImplausibleFact, match="the same content was withdrawn at position"):
            await record_blocks(ledger, 4, 4, ["5Anna", "5Bert"])
        at = START + timedelta(seconds=4 * 12 + 2)
        await ledger.record_block(4, at, [miner("5Anna")], {VALIDATOR: 1.0, "5Other": 1.0})
        # Block 3 lasts 14 s, counts as 12 s, and has 3 executors; block 4 lasts 10 s and has 3; 1, 2 and 5 have 1.
        assert await totals(ledger, 6) == {"5Anna": 18.0 + 18.0 + 15.0, "5Bert": 18.0 + 6.0}
        assert not (await ledger.audit()).findings


async def test_the_newest_block_is_determined_anew() -> None:
    """After a mistyped block far ahead is withdrawn, the newest block, its miners and the windows are as before."""
    async with small_ledger(blocks=11) as ledger:
        before = await ledger.find_miners(1.0, GPU, 11)
        at = START + timedelta(days=30)
        wrong = await ledger.record_block(90_000, at, [miner("5Anna")], {VALIDATOR: 1.0})
        assert await ledger.withdraw_block(90_000, "a digit too many") == wrong + 1
        assert await ledger.current_block() == 11
        assert [each.hotkey_ss58 for each in await ledger.miners()] == NAMES
        assert await ledger.find_miners(1.0, GPU, 11) == before
        await record_blocks(ledger, 12, 12, NAMES)
        assert await totals(ledger, 12) == dict.fromkeys(NAMES, 11 * 12.0)
        assert not (await ledger.audit()).findings


async def test_every_block_may_be_withdrawn() -> None:
    """Without any block there is no newest one; the blocks can be recorded again."""
    async with small_ledger(offers={"5Anna": 1}, blocks=3) as ledger:
        for number in (2, 1, 3):
            await ledger.withdraw_block(number, "another chain")
        assert await ledger.current_block() is None
        assert await ledger.miners() == []
        for number in (3, 1, 2):
            at = START + timedelta(seconds=12 * number)
            await ledger.record_block(number, at, [miner("5Anna")], {VALIDATOR: 1.0, "5Other": 1.0}, confirm=True)
        assert await totals(ledger, 3) == {"5Anna": 12.0}
        assert not (await ledger.audit()).findings


@pytest.mark.parametrize("settled", ["", "spend", "release"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_a_block_in_use_is_not_withdrawn(number: int, settled: str) -> None:
    """A reserved or spent reservation of block 2 refuses the withdrawal of 2, and of 3, which gives 2 its end.

    Catches: a check that knows active reservations only, or forgets the predecessor.
    """
    async with small_ledger(offers={"5Anna": 1}, blocks=6) as ledger:
        first = await ledger.reserve("5Anna", GPU, 6.0, 6)
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 6)
        await ledger.release(first.reservation_id)
        assert reservation.blocks == [2]
        if settled:
            await getattr(ledger, settled)(reservation.reservation_id)
        if settled == "release" or number in (1, 4):
            await ledger.withdraw_block(number, "wrong")
        else:
            with pytest.raises(BlockInUse) as refused:
                await ledger.withdraw_block(number, "wrong")
            assert refused.value.reservation_ids == [reservation.reservation_id]
        assert not (await ledger.audit()).findings


async def test_a_repeated_withdrawal_returns_the_first_position() -> None:
    """With or without a key; what was never recorded is refused; a key stands for one request."""
    async with small_ledger() as ledger:
        for withdraw in (ledger.withdraw_block, ledger.withdraw_manifests):
            with pytest.raises(FactNotRecorded):
                await withdraw(999, "unknown")
            with pytest.raises(InvalidInput):
                await withdraw(1, "")
            with pytest.raises(InvalidInput):
                await withdraw(0, "reason")
            key = f"key of {withdraw.__name__}"
            position = await withdraw(1, "wrong", idempotency_key=key)
            assert await withdraw(1, "wrong", idempotency_key=key) == position
            assert await withdraw(1, "another reason") == position
            with pytest.raises(IdempotencyConflict):
                await withdraw(1, "another reason", idempotency_key=key)
            with pytest.raises(IdempotencyConflict):
                await withdraw(2, "wrong", idempotency_key=key)
        assert not (await ledger.audit()).findings


async def test_a_fact_can_be_withdrawn_again_after_it_was_recorded_again() -> None:
    """The withdrawn content needs `confirm`, other content does not; the second withdrawal has its own position."""
    async with small_ledger(blocks=3) as ledger:
        first = await ledger.withdraw_manifests(1, "wrong")
        with pytest.raises(ImplausibleFact, match=f"withdrawn at position {first}"):
            await ledger.record_manifests(1, ALL)
        again = await ledger.record_manifests(1, ALL, confirm=True)
        assert await ledger.record_manifests(1, ALL) == again
        second = await ledger.withdraw_manifests(1, "wrong again")
        assert second == again + 1
        other = await ledger.record_manifests(1, {"5Anna": {GPU: 1}})
        assert other == second + 1
        assert not (await ledger.audit()).findings


async def test_the_key_of_a_withdrawn_fact_still_returns_its_position() -> None:
    """The first outcome of a key does not change, whatever is withdrawn later.

    Catches: a retry that is refused as implausible, because its content was withdrawn meanwhile.
    """
    async with small_ledger(blocks=3) as ledger:
        facts = [ManifestsFact(2, ALL), ManifestsFact(3, ALL)]
        positions = await ledger.record_facts(facts, idempotency_key="feed")
        await ledger.withdraw_manifests(2, "wrong")
        assert await ledger.record_facts(facts, idempotency_key="feed") == positions
        conflicting = [ManifestsFact(4, ALL), ManifestsFact(3, {"5Anna": {GPU: 5}})]
        with pytest.raises(ConflictingFact):
            await ledger.record_facts(conflicting, idempotency_key="conflict")
        await ledger.withdraw_manifests(3, "wrong")
        with pytest.raises(ConflictingFact) as refused:
            await ledger.record_facts(conflicting, idempotency_key="conflict")
        assert (refused.value.fact_index, refused.value.recorded_position) == (1, positions[1])


async def test_a_miner_that_is_off_the_metagraph_for_one_block_keeps_its_counts() -> None:
    """A sync while the miner is not registered does not name it, and neither lowers nor invalidates anything.

    Source: ComputeHorde, whose validators count this way. Catches: a sync that covers all miners, as before.
    """
    async with small_ledger(blocks=4) as ledger:
        await record_blocks(ledger, 5, 5, ["5Anna", "5Bert"])
        await ledger.record_manifests(5, {"5Anna": {GPU: 2}})
        await record_blocks(ledger, 6, 7, NAMES)
        # Anna had 2 at all six finalized blocks. Bert is covered and dropped. Carl was not registered at block 5.
        assert await totals(ledger, 7) == {"5Anna": 6 * 12.0, "5Carl": 5 * 12.0}
        # At the next sync Carl is registered again and not named.
        await ledger.record_manifests(7, {"5Anna": {GPU: 2}})
        assert await totals(ledger, 7) == {"5Anna": 6 * 12.0}
        assert not (await ledger.audit()).findings


async def test_a_late_sync_counts_for_a_miner_until_the_next_sync_that_covers_it() -> None:
    """Carl is not registered at block 4, where a sync is recorded before a late one at 2 that names Carl with 5.

    Catches: a late sync that ends at the next sync for every miner, and counts that are not set again for blocks above.
    """
    async with small_ledger(blocks=3) as ledger:
        await record_blocks(ledger, 4, 4, ["5Anna", "5Bert"])
        await ledger.record_manifests(4, {"5Anna": {GPU: 2}, "5Bert": {GPU: 2}})
        await record_blocks(ledger, 5, 6, NAMES)
        before = await totals(ledger, 6)
        await ledger.record_manifests(2, {"5Anna": {GPU: 7}, "5Bert": {GPU: 2}, "5Carl": {GPU: 5}})
        await record_blocks(ledger, 7, 8, NAMES)
        added = {name: total - before[name] for name, total in (await totals(ledger, 8)).items()}
        assert added == {"5Anna": 24.0, "5Bert": 24.0, "5Carl": 60.0}
        assert not (await ledger.audit()).findings


async def test_coverage_is_that_of_the_metagraph_below_the_sync() -> None:
    """A sync below the newest block is covered by the newest block at or below it; with none there, it covers all."""
    async with small_ledger(blocks=2) as ledger:
        await record_blocks(ledger, 10, 10, ["5Anna"])
        await record_blocks(ledger, 20, 20, NAMES)
        await ledger.record_manifests(15, {"5Anna": {GPU: 2}})
        recorded = [row.payload for row in await events_of(ledger) if row.stream == "manifests"]
        assert b'"uncovered":["5Bert","5Carl"]' in recorded[-1]
        await ledger.record_manifests(9, ALL)
        await ledger.record_manifests(25, {"5Anna": {GPU: 2}})
        recorded = [row.payload for row in await events_of(ledger) if row.stream == "manifests"]
        assert b'"covered":["5Bert","5Carl"]' in recorded[-2]
        assert b"covered" not in recorded[-1]
        assert not (await ledger.audit()).findings


async def test_a_sync_of_an_older_release_covers_all_miners(tmp_path: Path) -> None:
    """A log without the fields keeps its meaning: Carl is off the metagraph, is not named, and drops to 0.

    Catches: a fold or an audit that works out the coverage of old syncs by the new rule.
    """
    log = LogBuilder()
    log.block(12, deregistered=[CARL])
    log.sync(12, {}, [CARL])
    assert (await audited(tmp_path, log.rows)).findings == []
    state = LedgerState()
    state.fold(log.rows)
    carl = state.chain.classes[GPU][CARL]
    assert (carl.offered.at(12), carl.invalidated_below) == (0, 12)


@pytest.mark.parametrize("what", ["miners", "validators"])
async def test_a_block_that_lost_nine_tenths_needs_confirmation(what: str) -> None:
    """From 10 on, fewer than a tenth of the miners or validators of the block recorded before is implausible."""
    names = [f"5M{index:02}" for index in range(20)]
    stakes = {VALIDATOR: 1.0, **{f"5V{index:02}": 1.0 for index in range(19)}}
    async with small_ledger(offers=dict.fromkeys(names, 1), blocks=3, stakes=stakes) as ledger:

        async def record(number: int, left: int, *, confirm: bool = False) -> None:
            miners = [miner(each) for each in names[: left if what == "miners" else 20]]
            few = dict(list(stakes.items())[: left if what == "validators" else 20])
            at = START + timedelta(seconds=12 * number)
            await ledger.record_block(number, at, miners, few, confirm=confirm)

        with pytest.raises(ImplausibleFact, match=f"it has 1 {what}, less than a tenth of the 20"):
            await record(4, 1)
        await record(4, 2)
        await record(5, 0)
        await record(6, 20)
        await record(7, 1, confirm=True)


async def test_a_view_at_a_block_ignores_withdrawn_facts() -> None:
    """A mistyped block does not hide what came after it: the view ends before the next right block.

    Catches: a search for the first higher block that finds the withdrawn one.
    """
    async with small_ledger(blocks=4) as ledger:
        await ledger.record_block(50_000, START + timedelta(days=30), [miner("5Anna")], {VALIDATOR: 1.0})
        await ledger.record_manifests(7000, ALL)
        await ledger.withdraw_block(50_000, "wrong")
        await ledger.withdraw_manifests(7000, "wrong")
        await record_blocks(ledger, 5, 6, NAMES)
        last = await ledger.at(block=5).head()
        assert await ledger.at(block=5).current_block() == 5
        assert last.position == (await ledger.head()).position - 1
        assert await ledger.at(block=4).current_block() == 4


async def test_a_withdrawal_is_prepared_again_if_a_sync_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read from the log is used only if no sync and no settings were recorded since.

    Catches: a withdrawal that brings back the counts of an older log.
    """
    async with small_ledger(offers={"5Anna": 2}, blocks=4) as ledger:
        await ledger.record_manifests(3, {"5Anna": {GPU: 1}})
        prepared: list[Any] = []

        async def interrupted(*arguments: Any) -> Any:
            prepared.append(await offers_without(*arguments))
            if len(prepared) == 1:
                await ledger.record_manifests(4, {"5Anna": {GPU: 9}})
            return prepared[-1]

        monkeypatch.setattr("routing.service.allowance.offers_without", interrupted)
        await ledger.withdraw_manifests(3, "wrong")
        assert len(prepared) == 2
        assert await ledger.manifests() == {"5Anna": {GPU: 9}}
        await record_blocks(ledger, 5, 5, ["5Anna"])
        assert await totals(ledger, 5) == {"5Anna": 3 * 12.0 + 54.0}
        assert not (await ledger.audit()).findings


async def test_a_bookkeeper_knows_the_drops_that_remain() -> None:
    """Of two drops the higher is withdrawn, which brings back the blocks between them, and then the lower.

    Catches: a bookkeeper that keeps the drops of withdrawn syncs, or forgets those of others.
    """
    async with small_ledger(offers={"5Anna": 3}, blocks=11) as ledger:
        await ledger.record_manifests(4, {"5Anna": {GPU: 2}})
        await ledger.record_manifests(8, {"5Anna": {GPU: 1}})
        receipt = Receipt(VALIDATOR, "5Anna", GPU, START + timedelta(seconds=12 * 10), [2, 5, 9], 60.0)
        keeper = await ledger.receipts()
        assert keeper.take(receipt).invalidated == [2, 5]
        await ledger.withdraw_manifests(8, "wrong")
        assert (await ledger.receipts(keeper)).take(receipt).invalidated == [2]
        await ledger.withdraw_block(11, "wrong")
        await ledger.withdraw_manifests(4, "wrong")
        await record_blocks(ledger, 12, 13, ["5Anna"])
        outcome = (await ledger.receipts(keeper)).take(receipt)
        assert (outcome.invalidated, outcome.spendable) == ([], [2, 5, 9])
        # Block 10 lost its end, and with it its grant.
        lost = Receipt(VALIDATOR, "5Anna", GPU, START + timedelta(seconds=12 * 12), [10, 11], 60.0)
        assert keeper.take(lost).without_grant == [10, 11]


async def test_facts_are_withdrawn_on_each_engine(shared_url: str) -> None:
    """Both corrections, one of a spent block refused, and the same answers from a second handle that reads the log."""
    async with small_ledger(url=shared_url, offers={"5Anna": 2}, blocks=6) as ledger:
        spent = await ledger.reserve("5Anna", GPU, 12.0, 6)
        await ledger.spend(spent.reservation_id)
        await ledger.record_manifests(6, {"5Anna": {GPU: 1}})
        await ledger.withdraw_manifests(6, "mistyped", idempotency_key="the key")
        await ledger.withdraw_block(4, "a fork of the chain")
        with pytest.raises(BlockInUse) as refused:
            await ledger.withdraw_block(2, "a fork of the chain")
        assert refused.value.reservation_ids == [spent.reservation_id]
        async with Allowance.open(shared_url, validator_ss58=VALIDATOR, read_only=True) as other:
            assert await totals(other, 6) == await totals(ledger, 6) == {"5Anna": 3 * 12.0}
            assert not (await other.audit()).findings


async def test_a_router_refuses_stale_manifests() -> None:
    """The newest sync may be as many blocks behind the newest block as the setting says, and no more."""
    settings = Settings(newest_manifests_max_age_blocks=10)
    async with small_ledger(blocks=11, settings=settings) as ledger:
        await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        await record_blocks(ledger, 12, 12, NAMES)
        with pytest.raises(ManifestsStale) as refused:
            await Routing(ledger).pick_miner_for_job_request(job("job-2"))
        assert refused.value.to_dict() == {"newest_sync": 1, "newest_block": 12, "age_blocks": 11, "max_age_blocks": 10}
        # A job's own reservation comes first.
        await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        await ledger.record_manifests(2, ALL)
        await Routing(ledger).pick_miner_for_job_request(job("job-2"))
        assert not (await ledger.audit()).findings


async def random_facts(ledger: Allowance, dice: random.Random) -> None:
    """Record and withdraw facts at random, near one another, and reserve in between."""
    number = dice.randint(1, 14)
    graph = [miner(name) for name in NAMES if dice.random() < 0.8]
    step = dice.random()
    if step < 0.45:
        at = START + timedelta(seconds=12 * number)
        await ledger.record_block(number, at, graph, {VALIDATOR: dice.randint(1, 3), "5Other": 1.0}, confirm=True)
    elif step < 0.65:
        offered = {name: {GPU: dice.randint(0, 3)} for name in NAMES if dice.random() < 0.6}
        await ledger.record_manifests(number, offered, confirm=True)
    elif step < 0.8:
        await ledger.withdraw_block(number, "a test")
    elif step < 0.9:
        await ledger.withdraw_manifests(number, "a test")
    else:
        made = await ledger.reserve(dice.choice(NAMES), GPU, 5.0, 14)
        if dice.random() < 0.5:
            await ledger.release(made.reservation_id)


@pytest.mark.parametrize("seed", range(12))
async def test_folding_corrections_in_parts_gives_the_same_state(tmp_path: Path, seed: int) -> None:
    """The state after random facts and corrections equals the fold of the log, and the audit finds nothing.

    Two handles write in turn, and a snapshot is continued. Catches: a state that depends on who folded it, such as a
    cached set that is out of date, or a field that no snapshot has.
    """
    dice = random.Random(f"corrections {seed}")
    url = f"sqlite:///{tmp_path}/ledger.db"
    clock = Clock(START + timedelta(hours=1))
    async with (
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as one,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as other,
    ):
        await one.record_manifests(1, ALL)
        await record_blocks(one, 1, 14, NAMES)
        for _ in range(80):
            with suppress(*REFUSALS):
                await random_facts(dice.choice([one, other]), dice)
        rows = await events_of(one)
        folded = LedgerState()
        folded.fold(rows)
        half, continued = LedgerState(), LedgerState()
        half.fold(rows[: len(rows) // 2])
        decode_state(encode_state(half), continued)
        continued.fold(rows[len(rows) // 2 :])
        assert encode_state(continued) == encode_state(folded)
        for ledger in (one, other):
            await ledger.current_block()
            live = await ledger._read_state(lambda state, _: encode_state(state))
            assert live == encode_state(folded)
        kinds = {type(decode(row.position, row.payload)).__name__ for row in rows}
        assert {"BlockWithdrawn", "ManifestsWithdrawn", "AllowanceReserved"} <= kinds
        report = await one.audit()
        assert not report.findings, (seed, report.findings[:3])
