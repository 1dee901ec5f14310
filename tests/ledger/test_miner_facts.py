"""Exclusions, collateral, jobs elsewhere and incidents: recorded once, refused if they contradict, folded the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from ledger import LedgerState, RecordCollateral, decode_state, encode_state, state_digest
from ledger.domain.miner_facts import FORGOTTEN_AFTER_NS
from routing import Allowance, ConflictingFact, FactNotRecorded, IdempotencyConflict, InvalidInput
from tests.support.small import GPU, START, VALIDATOR, Clock, small_ledger

WEI = 10**19
"""Ten TAO; an amount of more than 64 bits."""
LATER = START + timedelta(hours=2)
BLOCKS = 11
CLOCK = START + timedelta(seconds=12 * BLOCKS)

Call = Callable[[Allowance], Awaitable[int]]

CALLS: dict[str, Call] = {
    "exclusion": lambda ledger: ledger.exclude_miner("5Anna", "slow"),
    "exclusion until": lambda ledger: ledger.exclude_miner("5Bert", "slow", until=LATER),
    "collateral": lambda ledger: ledger.record_collateral({"5Anna": WEI, "5Bert": 0}),
    "job elsewhere": lambda ledger: ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 60.0),
    "end": lambda ledger: ledger.end_job_elsewhere("theirs"),
    "incident": lambda ledger: ledger.report_incident("5Anna", GPU, "failed", "ours"),
}


async def state_of(ledger: Allowance) -> LedgerState:
    found: LedgerState = await ledger._read_state(lambda state, _: state)
    return found


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_repeat_returns_the_first_position(any_url: str, call: Call) -> None:
    """With and without other events in between, on both engines, and after the ledger was opened again."""
    async with small_ledger(url=any_url) as ledger:
        position = await call(ledger)
        assert await call(ledger) == position
        head = (await ledger.head()).position
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=Clock(CLOCK)) as ledger:
        assert await call(ledger) == position
        assert (await ledger.head()).position == head


async def test_repeats_in_one_batch_are_recorded_once(any_url: str) -> None:
    """The second of two calls that are committed together sees the first; catches a look-up in stored rows alone."""
    import asyncio

    async with small_ledger(url=any_url) as ledger:
        for call in CALLS.values():
            first, second = await asyncio.gather(call(ledger), call(ledger))
            assert first == second


async def test_another_content_is_refused() -> None:
    """A job elsewhere with another time, class or miner, and an incident of another kind or class, contradict."""
    async with small_ledger() as ledger:
        job = await ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 60.0)
        for other in (
            ("5Bert", GPU, "theirs", CLOCK, 60.0),
            ("5Anna", "cpu", "theirs", CLOCK, 60.0),
            ("5Anna", GPU, "theirs", CLOCK + timedelta(seconds=1), 60.0),
            ("5Anna", GPU, "theirs", CLOCK, 61.0),
        ):
            with pytest.raises(ConflictingFact) as refused:
                await ledger.record_job_elsewhere(*other)
            assert (refused.value.recorded_position, len(refused.value.differences)) == (job, 1)
        incident = await ledger.report_incident("5Anna", GPU, "failed", "ours")
        for executor_class, kind in ((GPU, "rejected"), ("cpu", "failed")):
            with pytest.raises(ConflictingFact) as refused:
                await ledger.report_incident("5Anna", executor_class, kind, "ours")
            assert (refused.value.recorded_position, len(refused.value.differences)) == (incident, 1)
        # The same job may have failed on another miner too.
        assert await ledger.report_incident("5Bert", GPU, "rejected", "ours") > incident


async def test_collateral_is_recorded_as_a_difference() -> None:
    """Only changed amounts are in the event, and the others stay."""
    async with small_ledger() as ledger:
        first = await ledger.record_collateral({"5Anna": 1, "5Bert": 2})
        second = await ledger.record_collateral({"5Anna": 1, "5Bert": WEI})
        events = [stored.to_dict()["event"] async for stored in ledger.events(after=first - 1)]
        assert [event["changed"] for event in events] == [{"5Anna": 1, "5Bert": 2}, {"5Bert": WEI}]
        facts = (await state_of(ledger)).miner_facts
        assert (facts.collateral_wei("5Anna"), facts.collateral_wei("5Bert"), facts.collateral_wei("5Carl")) == (
            1,
            WEI,
            0,
        )
        assert await ledger.record_collateral({"5Anna": 1}) == first
        assert await ledger.record_collateral({"5Anna": 1, "5Bert": WEI}) == second


async def test_an_exclusion_ends_at_its_time_or_by_readmission() -> None:
    """A miner is excluded before `until`; a readmission ends it; both can be followed by another exclusion."""
    async with small_ledger() as ledger:
        with pytest.raises(FactNotRecorded):
            await ledger.readmit_miner("5Anna", "never was")
        await ledger.exclude_miner("5Anna", "slow", until=LATER)
        facts = (await state_of(ledger)).miner_facts
        until_ns = int(LATER.timestamp()) * 10**9
        assert facts.is_excluded("5Anna", until_ns - 1)
        assert not facts.is_excluded("5Anna", until_ns)
        longer = await ledger.exclude_miner("5Anna", "slow")
        assert facts.is_excluded("5Anna", until_ns)
        readmitted = await ledger.readmit_miner("5Anna", "fast again")
        assert readmitted == longer + 1
        assert not facts.is_excluded("5Anna", 0)
        assert await ledger.readmit_miner("5Anna", "again") == readmitted
        assert await ledger.exclude_miner("5Anna", "slow") > readmitted
        with pytest.raises(InvalidInput):
            await ledger.exclude_miner("5Bert", "slow", until=START)


async def test_an_end_that_comes_first_is_final() -> None:
    """A job whose end was recorded before it never runs; catches a fold that forgets the end."""
    async with small_ledger() as ledger:
        await ledger.end_job_elsewhere("theirs")
        await ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 60.0)
        assert not (await state_of(ledger)).miner_facts.elsewhere


async def test_a_job_elsewhere_runs_from_its_start_for_its_time() -> None:
    """`started_at <= t < started_at + ttl`, unless ended, and not if this ledger counts the job itself."""
    async with small_ledger() as ledger:
        await ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 60.0)
        facts, stream = (await state_of(ledger)).miner_facts, f"5Anna\t{GPU}"
        start_ns = int(CLOCK.timestamp()) * 10**9
        for at_ns, running in ((-1, 0), (0, 1), (60 * 10**9 - 1, 1), (60 * 10**9, 0)):
            assert facts.running_elsewhere(stream, (), start_ns + at_ns) == running
        assert facts.running_elsewhere(stream, {"theirs"}, start_ns) == 0
        await ledger.end_job_elsewhere("theirs")
        assert facts.running_elsewhere(stream, (), start_ns) == 0


async def test_old_jobs_elsewhere_are_forgotten() -> None:
    """The state keeps those of a day; catches a state that grows with every receipt."""
    clock = Clock(CLOCK)
    async with small_ledger(clock=clock) as ledger:
        for number in range(5):
            started_at = datetime.fromtimestamp(clock.now_ns / 10**9, UTC)
            await ledger.record_job_elsewhere("5Anna", GPU, f"theirs-{number}", started_at, 60.0)
            clock.advance(FORGOTTEN_AFTER_NS / 10**9 / 2)
        facts = (await state_of(ledger)).miner_facts
        assert sorted(facts.elsewhere[f"5Anna\t{GPU}"]) == ["theirs-2", "theirs-3", "theirs-4"]
        assert len(facts.boundaries) == 6
        # Forgotten by the state, but not by the log.
        with pytest.raises(ConflictingFact):
            await ledger.record_job_elsewhere("5Bert", GPU, "theirs-0", CLOCK, 60.0)


async def test_jobs_elsewhere_count_after_a_clock_that_was_a_year_ahead() -> None:
    """The log's time stays ahead, but what is old is told by the clock of each event.

    Catches a state that forgets every job from then on, because it compares the job with the recorded time.
    """
    clock = Clock(CLOCK)
    async with small_ledger(clock=clock) as ledger:
        clock.advance(366 * 86_400)
        await ledger.exclude_miner("5Bert", "slow")
        clock.advance(-366 * 86_400)
        await ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 60.0)
        facts = (await state_of(ledger)).miner_facts
        assert facts.running_elsewhere(f"5Anna\t{GPU}", (), clock.now_ns) == 1


async def test_a_key_belongs_to_one_request() -> None:
    """A retry with the key returns the first position; the key with any other content is refused."""
    calls: list[Callable[[Allowance, str], Awaitable[int]]] = [
        lambda ledger, key: ledger.exclude_miner("5Anna", "slow", idempotency_key=key),
        lambda ledger, key: ledger.readmit_miner("5Anna", "fast", idempotency_key=key),
        lambda ledger, key: ledger.record_collateral({"5Anna": 7}, idempotency_key=key),
        lambda ledger, key: ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 1.0, idempotency_key=key),
        lambda ledger, key: ledger.end_job_elsewhere("theirs", idempotency_key=key),
        lambda ledger, key: ledger.report_incident("5Anna", GPU, "failed", "ours", idempotency_key=key),
    ]
    async with small_ledger() as ledger:
        positions = [await call(ledger, f"key-{number}") for number, call in enumerate(calls)]
        assert [await call(ledger, f"key-{number}") for number, call in enumerate(calls)] == positions
        for number, call in enumerate(calls):
            with pytest.raises(IdempotencyConflict):
                await call(ledger, f"key-{(number + 1) % len(calls)}")


async def test_the_key_of_an_unknown_outcome_belongs_to_its_amounts() -> None:
    """A call without a key is repeated with that of its row: the same amounts are a repeat, others are refused."""
    async with small_ledger() as ledger:
        position = await ledger.record_collateral({"5Anna": 7})
        (recorded,) = [stored async for stored in ledger.events(after=position - 1)]
        assert "request" not in recorded.to_dict()["event"]
        handle = await ledger._lifecycle.handle()
        row = (await handle.runtime.run(handle.store.read(position - 1)))[0]
        key = RecordCollateral({"5Anna": 7}, None).retry_key(row)
        assert await ledger.record_collateral({"5Anna": 7}, idempotency_key=key) == position
        with pytest.raises(IdempotencyConflict):
            await ledger.record_collateral({"5Anna": 8}, idempotency_key=key)


async def test_snapshots_and_seals_cover_miner_facts() -> None:
    """A state restored from its bytes has the same bytes and the same digest; every kind of fact changes the digest."""
    async with small_ledger() as ledger:
        digests = [state_digest(await state_of(ledger))]
        for call in CALLS.values():
            await call(ledger)
            state = await state_of(ledger)
            restored = LedgerState()
            decode_state(encode_state(state), restored)
            assert encode_state(restored) == encode_state(state)
            assert state_digest(restored) == state_digest(state)
            assert restored.miner_facts.boundaries == state.miner_facts.boundaries
            digests.append(state_digest(state))
        assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("miner_ss58", lambda ledger: ledger.exclude_miner("", "slow")),
        ("reason", lambda ledger: ledger.exclude_miner("5Anna", "")),
        ("until", lambda ledger: ledger.exclude_miner("5Anna", "slow", until=datetime(2030, 1, 1))),  # noqa: DTZ001
        ("collateral", lambda ledger: ledger.record_collateral({})),
        ("collateral['5Anna']", lambda ledger: ledger.record_collateral({"5Anna": -1})),
        ("collateral['5Anna']", lambda ledger: ledger.record_collateral({"5Anna": 1.5})),
        ("ttl_seconds", lambda ledger: ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 0)),
        ("job_uuid", lambda ledger: ledger.end_job_elsewhere("a\tb")),
        ("kind", lambda ledger: ledger.report_incident("5Anna", GPU, "slow", "ours")),
    ],
)
async def test_malformed_facts_are_refused(field: str, call: Call) -> None:
    """`InvalidInput` names the argument, and nothing is recorded."""
    async with small_ledger() as ledger:
        head = (await ledger.head()).position
        with pytest.raises(InvalidInput) as refused:
            await call(ledger)
        assert refused.value.field == field
        assert (await ledger.head()).position == head


async def test_what_is_known_of_miners_is_shown() -> None:
    """Each registered miner, and each one with a fact, with what counts at the clock."""
    clock = Clock(CLOCK)
    async with small_ledger(clock=clock) as ledger:
        await ledger.exclude_miner("5Bert", "slow", until=LATER)
        await ledger.record_collateral({"5Anna": WEI})
        await ledger.record_job_elsewhere("5Anna", GPU, "theirs", CLOCK, 60.0)
        await ledger.report_incident("5Dora", GPU, "failed", "ours")
        anna, bert, carl, dora = await ledger.miner_records()
        assert (anna.collateral_wei, anna.running_elsewhere, anna.excluded) == (WEI, {GPU: 1}, False)
        assert (bert.excluded, bert.reason, bert.excluded_until) == (True, "slow", LATER)
        assert (carl.registered, carl.collateral_wei, carl.incidents) == (True, None, {})
        assert (dora.registered, dora.incidents) == (False, {GPU: 1})
        clock.advance(24 * 3600)
        anna, bert, _ = await ledger.miner_records()
        assert (anna.running_elsewhere, bert.excluded) == ({}, False)
