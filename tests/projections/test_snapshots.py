"""However a state came to be, it is the same bytes; and a snapshot is used only where it is what the log says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from ledger import SNAPSHOT_VERSION, encode_state
from ledger.store.sqlite.store import SqliteStore
from projections import Availability, SnapshotStore, state_at
from projections.snapshots import KEPT_SNAPSHOTS, Snapshot, payload_digest
from projections.tables import snapshots
from routing import Allowance
from tests.support.engines import ENGINES, new_database
from tests.support.small import GPU, VALIDATOR, Clock, small_ledger
from tests.support.stalling import queued, stalled
from tests.support.stories import SETTINGS, Story, events_of, executed, store_of, there, told

pytestmark = pytest.mark.sqlalchemy

SEED = 11


@pytest.fixture(params=ENGINES)
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_database(request.param, tmp_path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return new_database("sqlite", tmp_path)


async def bytes_of(ledger: Allowance) -> bytes:
    """The live state, dumped."""
    return await ledger._read_state(lambda state, _: encode_state(state))


async def take_snapshot(ledger: Allowance) -> int:
    """Saves one of the state as it is; answers its position."""
    taken: Snapshot = await ledger._read_state(
        lambda state, _: Snapshot(state.position, state.hash, encode_state(state))
    )
    await there(ledger, lambda: SnapshotStore(store_of(ledger)).save(taken))
    return taken.position


# Equal bytes


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_a_state_is_the_same_bytes_however_it_was_folded(any_url: str, seed: int) -> None:
    """Live, at once, in pieces, after opening again, and from a snapshot at any position."""
    clock = Clock()
    with told(seed):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, seed)
            await story.goes_on(250)
            live = await bytes_of(ledger)
            rows = await events_of(ledger)

            at_once = Availability()
            at_once.fold(rows)
            assert encode_state(at_once) == live

            in_pieces = Availability()
            start = 0
            while start < len(rows):
                end = start + story.draw.randrange(1, 40)
                in_pieces.fold(rows[start:end])
                in_pieces.ranking(GPU, clock.now_ns)
                start = end
            assert encode_state(in_pieces) == live

            for position in story.draw.sample(range(1, len(rows)), 12):
                before = Availability()
                before.fold(rows[:position])
                taken = Snapshot(before.position, before.hash, encode_state(before))
                await executed(ledger, delete(snapshots))
                await there(ledger, lambda: SnapshotStore(store_of(ledger)).save(taken))  # noqa: B023 - awaited at once
                from_snapshot = await there(ledger, lambda: state_at(store_of(ledger), len(rows)))
                assert encode_state(from_snapshot) == live
                assert encode_state(before) == taken.payload
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
            assert await bytes_of(ledger) == live
            story.ledger = ledger
            await story.goes_on(60)
            later = await bytes_of(ledger)
            fresh = Availability()
            fresh.fold(await events_of(ledger))
            assert encode_state(fresh) == later != live


async def test_a_state_from_a_snapshot_answers_the_same(url: str) -> None:
    """Not only the bytes: rankings, claims and reservations go on from it as from the live one."""
    clock, twin_clock = Clock(), Clock()
    twin_url = f"{url}.twin"
    with told(SEED):
        async with (
            Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger,
            Allowance.open(twin_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=twin_clock) as twin,
        ):
            story, twin_story = Story(ledger, clock, SEED), Story(twin, twin_clock, SEED)
            for _ in range(12):
                await story.goes_on(20)
                await twin_story.goes_on(20)
                await take_snapshot(ledger)
                assert ledger._lifecycle.open_handle is not None
                await ledger._lifecycle.open_handle.writer.replace_state(
                    await there(ledger, SnapshotStore(store_of(ledger)).load)
                )
                assert await bytes_of(ledger) == await bytes_of(twin)
            assert story.made == twin_story.made


# Use


async def test_opening_reads_only_what_came_after_the_snapshot(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a row before it, whatever the ledger's age."""
    monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", 10)
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = Story(ledger, clock, SEED)
        await story.goes_on(200)
        position = await take_snapshot(ledger)
        await story.goes_on(25)
        head, live = (await ledger.head()).position, await bytes_of(ledger)
    assert head > position > 100
    read_after: list[int] = []
    real = SqliteStore.read

    async def read(self: SqliteStore, after: int) -> Any:
        read_after.append(after)
        return await real(self, after)

    monkeypatch.setattr(SqliteStore, "read", read)
    for read_only in (True, False):
        read_after.clear()
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, read_only=read_only) as ledger:
            assert await bytes_of(ledger) == live
        assert read_after == list(range(position, head, 10))


async def test_a_long_ledger_takes_snapshots_by_itself(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it grows and as it is closed; the two newest are kept."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 40)
    monkeypatch.setattr("routing.service.handle.SNAPSHOT_EVERY_ROWS", 60)
    clock = Clock()
    seen: set[int] = set()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = Story(ledger, clock, SEED)
        for _ in range(20):
            await story.goes_on(25)
            stored = await executed(ledger, select(snapshots.c.position))
            assert len(stored) <= KEPT_SNAPSHOTS
            seen.update(position for (position,) in stored)
        assert len(seen) >= 4
        head = (await ledger.head()).position
        assert max(seen) > head - 150
        await story.goes_on(100)
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        stored = await executed(ledger, select(snapshots.c.position))
        assert len(stored) == KEPT_SNAPSHOTS
        assert max(position for (position,) in stored) > (await ledger.head()).position - 40


async def test_of_all_writers_one_looks_after_what_is_derived(any_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose row completes the number: were all to do so who see it, sixteen would do the same work at once."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 10)
    carers: list[object] = []

    async def care(self: object) -> None:
        carers.append(self)

    monkeypatch.setattr("routing.service.handle.LedgerHandle._run_upkeep", care)
    opened = Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=(clock := Clock()))
    async with small_ledger(url=any_url, clock=clock) as ledger, opened as other:
        for _ in range(20):
            for each in (ledger, other, other):
                await each.release((await each.reserve("5Anna", GPU, 1.0, 11)).reservation_id)
        assert len(carers) == (await ledger.head()).position // 10 == 13
        assert len(set(carers)) == 2


async def test_what_another_ledger_has_just_saved_is_not_saved_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closes looks first. Catches each process counting from its own last snapshot."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 10)
    saved: list[int] = []
    save = SnapshotStore.save

    async def save_and_tell(self: SnapshotStore, taken: Snapshot, *arguments: Any) -> None:
        saved.append(taken.position)
        await save(self, taken, *arguments)

    monkeypatch.setattr(SnapshotStore, "save", save_and_tell)
    opened = Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=(clock := Clock()))
    async with small_ledger(url=url, clock=clock) as ledger, opened as other:
        await other.miners()
        assert (await ledger.head()).position == 13
    assert saved == [13]


async def test_a_batch_that_steps_over_the_number_is_looked_after(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last row need not be the one that completes the number; with many callers it hardly ever is."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 20)
    cared: list[object] = []

    async def care(self: object) -> None:
        cared.append(self)

    async with small_ledger(url=url) as ledger:
        assert (await ledger.head()).position == 13
        monkeypatch.setattr("routing.service.handle.LedgerHandle._run_upkeep", care)
        async with stalled(ledger) as opened:
            changes = [asyncio.create_task(ledger.reserve("5Anna", GPU, 0.1, 11)) for _ in range(8)]
            await queued(opened, 8)
        await asyncio.gather(*changes)
        await there(ledger, lambda: asyncio.sleep(0))
        assert (await ledger.head()).position == 21
    assert len(cared) == 1


async def test_an_auditor_takes_no_snapshot(url: str) -> None:
    """Reading only, nothing is written, also when it is closed."""
    async with small_ledger(url=url) as ledger:
        await executed(ledger, delete(snapshots))
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as auditor:
        await auditor.miners()
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert await executed(ledger, select(snapshots.c.position)) == []


# Damage


def resealed(payload: bytes) -> dict[str, Any]:
    """A payload with the digest that it would have been stored with."""
    return {"payload": payload, "digest": payload_digest(payload)}


def cut(payload: bytes) -> dict[str, Any]:
    return {"payload": payload[:-7]}


def flipped(payload: bytes) -> dict[str, Any]:
    return {"payload": payload[:50] + bytes([payload[50] ^ 1]) + payload[51:]}


def with_field(place: int, value: Any) -> Callable[[bytes], dict[str, Any]]:
    """A payload in which one field of the state says something else, properly sealed."""

    def damage(payload: bytes) -> dict[str, Any]:
        fields = msgspec.msgpack.decode(payload)
        fields[place] = value
        return resealed(msgspec.msgpack.encode(fields))

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
    "sealed nonsense": lambda _: resealed(b"no state"),
    "sealed nothing": lambda _: resealed(b""),
    "sealed, of another shape": lambda _: resealed(msgspec.msgpack.encode([1, 2, 3])),
    "sealed, cut short": lambda payload: resealed(payload[: len(payload) // 2]),
    "sealed, at another position": with_field(0, 5),
    "sealed, chunks of odd length": with_field(9, [[0, b"123", b"1", b"2", b"3"]]),
    "sealed, members that are not there": with_field(13, [[10**6, 1, 1, 10**6]]),
    "sealed, reservations of no account": with_field(20, [[1, 1, 10**6, 1, [[1, 1]], 1, 1, 1, None, None, None]]),
    "sealed, a multiplier that is none": with_field(4, {"allowance_multiplier": "much"}),
    "sealed, a multiplier by nothing": with_field(4, {"allowance_multiplier": "1/0"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_snapshot_is_passed_over(any_url: str, damage: str) -> None:
    """The one before it is used, or the log from its beginning; the state is the same."""
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
            # Each by its own: with none left that counts, the log is folded from its first event.
            await executed(ledger, delete(snapshots).where(snapshots.c.position < damaged)) if not read_only else None
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        assert await bytes_of(ledger) == live
        assert (await ledger.rebuild()).different in (0, 1)
        assert await bytes_of(ledger) == live


@pytest.mark.parametrize("seed", range(3))
async def test_random_damage_under_a_right_seal_never_breaks_the_opening(url: str, seed: int) -> None:
    """Bytes changed and sealed again either make no state, and are passed over, or are found by a rebuild."""
    draw = random.Random(seed)
    clock = Clock()
    with told(seed):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, SEED)
            await story.goes_on(80)
            taken: Snapshot = await ledger._read_state(
                lambda state, _: Snapshot(state.position, state.hash, encode_state(state))
            )
            for _ in range(150):
                payload = bytearray(taken.payload)
                for _ in range(draw.choice([1, 1, 2, 5])):
                    payload[draw.randrange(len(payload))] = draw.randrange(256)
                damaged = Snapshot(taken.position, taken.hash, bytes(payload))
                await there(ledger, lambda: SnapshotStore(store_of(ledger)).save(damaged))  # noqa: B023 - awaited at once
                state = await there(ledger, lambda: SnapshotStore(store_of(ledger)).load())
                assert state.position in (0, taken.position)
            report = await ledger.rebuild()
            assert [each.what for each in report.differences] == ["snapshot"]


async def test_snapshots_of_another_ledger_are_not_ours(url: str) -> None:
    """Two ledgers in one database keep their own."""
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
        # Put under our name it does not count: our log has another hash there.
        assert (await there(ledger, SnapshotStore(store_of(ledger)).load)).position == 0
