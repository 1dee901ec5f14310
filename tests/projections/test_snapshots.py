"""Equal logs give equal states, byte for byte, and a snapshot is used only if it belongs to the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from ledger import SNAPSHOT_VERSION, encode_state, state_digest
from projections import Availability, SnapshotStore, state_at
from projections.snapshots import KEPT_SNAPSHOTS, Snapshot, payload_digest
from projections.tables import snapshots
from routing import Allowance
from tests.support.small import GPU, VALIDATOR, Clock, small_ledger
from tests.support.stalling import queued, stalled
from tests.support.stories import (
    SETTINGS,
    Story,
    events_of,
    executed,
    noted_reads,
    seed_shown,
    store_of,
    take_snapshot,
    there,
    upkeep_done,
)

SEED = 11


async def bytes_of(ledger: Allowance) -> bytes:
    """Return the live state, encoded."""
    return await ledger._read_state(lambda state, _: encode_state(state))


# Equal bytes


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_a_state_has_the_same_bytes_however_it_was_folded(any_url: str, seed: int) -> None:
    """Live, all at once, in batches, after opening again, and from a snapshot at any position."""
    clock = Clock()
    with seed_shown(seed):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, seed)
            await story.goes_on(250)
            live = await bytes_of(ledger)
            rows = await events_of(ledger)

            at_once = Availability()
            at_once.fold(rows)
            assert encode_state(at_once) == live

            in_batches = Availability()
            start = 0
            while start < len(rows):
                end = start + story.draw.randrange(1, 40)
                in_batches.fold(rows[start:end])
                in_batches.ranking(GPU, clock.now_ns)
                start = end
            assert encode_state(in_batches) == live

            for position in story.draw.sample(range(1, len(rows)), 12):
                before = Availability()
                before.fold(rows[:position])
                snapshot = Snapshot(before.position, before.hash, encode_state(before))
                await executed(ledger, delete(snapshots))
                await there(ledger, lambda: SnapshotStore(store_of(ledger)).save(snapshot))  # noqa: B023 - awaited at once
                from_snapshot = await there(ledger, lambda: state_at(store_of(ledger), len(rows)))
                assert encode_state(from_snapshot) == live
                assert encode_state(before) == snapshot.payload
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
            assert await bytes_of(ledger) == live
            story.ledger = ledger
            await story.goes_on(60)
            later = await bytes_of(ledger)
            fresh = Availability()
            fresh.fold(await events_of(ledger))
            assert encode_state(fresh) == later != live


async def test_a_state_from_a_snapshot_behaves_like_the_live_one(url: str) -> None:
    """Rankings, claims and settlements that are decided on it are the same, not only its bytes."""
    clock, twin_clock = Clock(), Clock()
    twin_url = f"{url}.twin"
    with seed_shown(SEED):
        async with (
            Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger,
            Allowance.open(twin_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=twin_clock) as twin,
        ):
            story, twin_story = Story(ledger, clock, SEED), Story(twin, twin_clock, SEED)
            for _ in range(12):
                await story.goes_on(20)
                await twin_story.goes_on(20)
                await take_snapshot(ledger)
                await take_snapshot(twin)
                assert ledger._lifecycle.open_handle is not None
                await ledger._lifecycle.open_handle.writer.replace_state(
                    await there(ledger, SnapshotStore(store_of(ledger)).load)
                )
                assert await bytes_of(ledger) == await bytes_of(twin)
            assert story.made == twin_story.made


# Use


async def test_opening_reads_only_the_rows_after_the_snapshot(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads no row before it, however old the ledger is."""
    monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", 10)
    monkeypatch.setattr("ledger.damage.NEWEST_ROWS", 0)
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = Story(ledger, clock, SEED)
        await story.goes_on(200)
        position = await take_snapshot(ledger)
        await story.goes_on(25)
        head, live = (await ledger.head()).position, await bytes_of(ledger)
    assert head > position > 100
    read_after = noted_reads(monkeypatch)
    for read_only in (True, False):
        read_after.clear()
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, read_only=read_only) as ledger:
            assert await bytes_of(ledger) == live
        # The first read checks the newest row.
        assert read_after == [head - 1, *range(position, head, 10)]


async def test_a_writer_saves_snapshots_by_itself(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the log grows, and when it closes; up to sixteen remain."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 40)
    monkeypatch.setattr("routing.service.handle.SEAL_EVERY_ROWS", 60)
    clock = Clock()
    seen: set[int] = set()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = Story(ledger, clock, SEED)
        for _ in range(20):
            await story.goes_on(25)
            await upkeep_done(ledger)
            stored = await executed(ledger, select(snapshots.c.position))
            assert len(stored) <= KEPT_SNAPSHOTS
            seen.update(position for (position,) in stored)
        assert len(seen) >= 4
        assert len(seen) < KEPT_SNAPSHOTS
        head = (await ledger.head()).position
        assert max(seen) > head - 150
        await story.goes_on(100)
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        stored = await executed(ledger, select(snapshots.c.position))
        assert len(seen) < len(stored) <= KEPT_SNAPSHOTS
        assert max(position for (position,) in stored) > (await ledger.head()).position - 40


async def test_only_one_of_several_writers_updates_derived_data(any_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one whose row completes the interval; otherwise sixteen processes would do the same work at once."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 10)
    carers: list[object] = []

    async def care(self: object) -> None:
        carers.append(self)

    monkeypatch.setattr("routing.service.upkeep.Upkeep._run", care)
    opened = Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=(clock := Clock()))
    async with small_ledger(url=any_url, clock=clock) as ledger, opened as other:
        carers.clear()  # An opening looks whether the history is behind.
        before = (await ledger.head()).position
        for _ in range(20):
            for each in (ledger, other, other):
                await each.release((await each.reserve("5Anna", GPU, 1.0, 11)).reservation_id)
        assert len(carers) == (await ledger.head()).position // 10 - before // 10 == 12
        assert len(set(carers)) == 2


async def test_closing_saves_no_snapshot_that_another_writer_has_saved(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing looks up the newest snapshot first. Fails if each process counts from its own last snapshot."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 10)
    saved: list[int] = []
    save = SnapshotStore.save

    async def save_and_record(self: SnapshotStore, snapshot: Snapshot, *arguments: Any) -> None:
        saved.append(snapshot.position)
        await save(self, snapshot, *arguments)

    monkeypatch.setattr(SnapshotStore, "save", save_and_record)
    opened = Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=(clock := Clock()))
    async with small_ledger(url=url, clock=clock) as ledger, opened as other:
        await other.miners()
        assert (await ledger.head()).position == 13
    assert saved == [13]


async def test_a_batch_that_completes_the_interval_updates_derived_data(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any row of the batch may complete it; with many callers it is hardly ever the last one."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 20)
    cared: list[object] = []

    async def care(self: object) -> None:
        cared.append(self)

    async with small_ledger(url=url) as ledger:
        assert (await ledger.head()).position == 13
        monkeypatch.setattr("routing.service.upkeep.Upkeep._run", care)
        async with stalled(ledger) as opened:
            changes = [asyncio.create_task(ledger.reserve("5Anna", GPU, 0.1, 11)) for _ in range(8)]
            await queued(opened, 8)
        await asyncio.gather(*changes)
        await there(ledger, lambda: asyncio.sleep(0))
        assert (await ledger.head()).position == 21
    assert len(cared) == 1


async def test_an_auditor_saves_no_snapshot(url: str) -> None:
    """A ledger opened for reading only writes nothing, not even when it closes."""
    async with small_ledger(url=url) as ledger:
        await executed(ledger, delete(snapshots))
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as auditor:
        await auditor.miners()
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert await executed(ledger, select(snapshots.c.position)) == []


# Damage


def with_right_digest(payload: bytes) -> dict[str, Any]:
    """Return a payload and its right digest."""
    return {"payload": payload, "digest": payload_digest(payload)}


def cut(payload: bytes) -> dict[str, Any]:
    return {"payload": payload[:-7]}


def flipped(payload: bytes) -> dict[str, Any]:
    return {"payload": payload[:50] + bytes([payload[50] ^ 1]) + payload[51:]}


def with_field(index: int, value: Any) -> Callable[[bytes], dict[str, Any]]:
    """Return a function that changes one field of a payload's state and computes its digest again."""

    def damage(payload: bytes) -> dict[str, Any]:
        fields = msgspec.msgpack.decode(payload)
        fields[index] = value
        return with_right_digest(msgspec.msgpack.encode(fields))

    return damage


DAMAGE: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "cut short": cut,
    "a flipped bit": flipped,
    "empty": lambda _: {"payload": b""},
    "another digest": lambda _: {"digest": bytes(32)},
    "another hash": lambda _: {"hash": bytes(32)},
    "beyond the log": lambda _: {"position": 10**9},
    "an older version": lambda _: {"model_version": SNAPSHOT_VERSION - 1},
    "a newer version": lambda _: {"model_version": SNAPSHOT_VERSION + 1},
    "right digest, nonsense": lambda _: with_right_digest(b"no state"),
    "right digest, nothing": lambda _: with_right_digest(b""),
    "right digest, of another shape": lambda _: with_right_digest(msgspec.msgpack.encode([1, 2, 3])),
    "right digest, cut short": lambda payload: with_right_digest(payload[: len(payload) // 2]),
    "right digest, at another position": with_field(0, 5),
    "right digest, chunks of an odd length": with_field(9, [[0, b"123", b"1", b"2", b"3"]]),
    "right digest, members that are not there": with_field(13, [[10**6, 1, 1, 10**6]]),
    "right digest, reservations of no account": with_field(20, [[1, 1, 10**6, 1, [[1, 1]], 1, 1, 1, None, None, None]]),
    "right digest, a multiplier that is none": with_field(4, {"allowance_multiplier": "much"}),
    "right digest, a multiplier by nothing": with_field(4, {"allowance_multiplier": "1/0"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_snapshot_is_skipped(any_url: str, damage: str) -> None:
    """The snapshot before it is used, or the log from its beginning; the state is the same."""
    clock = Clock()
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = Story(ledger, clock, SEED)
        await story.goes_on(60)
        await take_snapshot(ledger)
        await story.goes_on(60)
        damaged = await take_snapshot(ledger)
        await story.goes_on(10)
        live = await bytes_of(ledger)
        ((payload,),) = await executed(ledger, select(snapshots.c.payload).where(snapshots.c.position == damaged))
        values = DAMAGE[damage](bytes(payload))
        await executed(ledger, update(snapshots).where(snapshots.c.position == damaged).values(values))
        head = (await ledger.head()).position
        state = await there(ledger, lambda: SnapshotStore(store_of(ledger)).load())
        assert 0 < state.position < damaged
    for read_only in (True, False):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock, read_only=read_only) as ledger:
            assert await bytes_of(ledger) == live
            assert (await ledger.head()).position == head
            # The next opening has no sound snapshot left, and must fold the log from its first event.
            await executed(ledger, delete(snapshots).where(snapshots.c.position < damaged)) if not read_only else None
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        assert await bytes_of(ledger) == live
        assert (await ledger.rebuild()).different in (0, 1)
        assert await bytes_of(ledger) == live


@pytest.mark.parametrize("seed", range(3))
async def test_random_damage_with_a_right_digest_never_prevents_opening(url: str, seed: int) -> None:
    """Changed bytes are skipped, unless they decode to the very state that is sealed; a rebuild finds them."""
    draw = random.Random(seed)
    clock = Clock()
    with seed_shown(seed):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, SEED)
            await story.goes_on(80)
            snapshot: Snapshot
            snapshot, digest = await ledger._read_state(
                lambda state, _: (Snapshot(state.position, state.hash, encode_state(state)), state_digest(state))
            )
            await take_snapshot(ledger)
            for _ in range(150):
                payload = bytearray(snapshot.payload)
                for _ in range(draw.choice([1, 1, 2, 5])):
                    payload[draw.randrange(len(payload))] = draw.randrange(256)
                damaged = Snapshot(snapshot.position, snapshot.hash, bytes(payload))
                await there(ledger, lambda: SnapshotStore(store_of(ledger)).save(damaged))  # noqa: B023 - awaited at once
                state = await there(ledger, lambda: SnapshotStore(store_of(ledger)).load())
                assert state.position == 0 or state_digest(state) == digest
            report = await ledger.rebuild()
            assert [each.what for each in report.differences] == ["snapshot"]


async def test_snapshots_of_another_ledger_are_not_used(url: str) -> None:
    """Each of two ledgers in one database loads its own."""
    clock = Clock()
    async with (
        Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger,
        Allowance.open(url, validator_ss58="5Second", settings=SETTINGS, clock_ns=clock) as second,
    ):
        await Story(ledger, clock, SEED).goes_on(40)
        await Story(second, clock, SEED + 1).goes_on(60)
        ours, theirs = await take_snapshot(ledger), await take_snapshot(second)
        assert (await there(ledger, SnapshotStore(store_of(ledger)).load)).position == ours
        assert (await there(second, SnapshotStore(store_of(second)).load)).position == theirs
        ((_, *of_second),) = await executed(ledger, select(snapshots).where(snapshots.c.ledger == 2))
        await executed(
            ledger,
            delete(snapshots).where(snapshots.c.ledger == 1),
            insert(snapshots).values((1, *of_second)),
        )
        # Copied to the first ledger it does not count, because that log has another hash at the position.
        assert (await there(ledger, SnapshotStore(store_of(ledger)).load)).position == 0
