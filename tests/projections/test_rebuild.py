"""Everything derived can be rebuilt from the log beside the stored tables, and an interrupted rebuild loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import delete, event, func, insert, select, update
from sqlalchemy.engine import Engine

from ledger import DerivedTransaction, encode_state
from projections import SnapshotStore
from projections import rebuild as rebuild_module
from projections.history import model as model_module
from projections.history import pages as history_module
from projections.tables import checkpoints, reservations, reserved_blocks, snapshots
from routing import Allowance, ProjectionStopped, ReadOnlyLedger, RebuildOvertaken, RebuildReport
from tests.support.engines import statement
from tests.support.small import VALIDATOR, Clock, small_ledger
from tests.support.stories import (
    SETTINGS,
    Story,
    events_of,
    executed,
    history_of,
    project,
    seed_shown,
    store_of,
    take_snapshot,
    there,
    whole_history,
)

SEED = 20


class Stopped(Exception):
    """Raised by a test at a point where the process might die."""


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few rows at a time, so that a short story needs many reads."""
    monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", 40)
    monkeypatch.setattr("ledger.store.postgres.store.PAGE_ROWS", 40)
    monkeypatch.setattr(rebuild_module, "COMPARED_ROWS", 13)
    monkeypatch.setattr("projections.history.garbage.DELETED_ROWS", 11)
    monkeypatch.setattr("projections.history.garbage.DELETED_ROWS_APART", 11)
    monkeypatch.setattr("projections.history.projector.ROWS_PER_PIECE", 200)
    monkeypatch.setattr(model_module, "LOOKUP_VALUES", 5)
    monkeypatch.setattr(history_module, "TAIL_ROWS", 30)


@asynccontextmanager
async def a_story(url: str, steps: int, seed: int = SEED) -> AsyncIterator[Story]:
    """Open a ledger with a random past, about half of which is projected."""
    clock = Clock()
    with seed_shown(seed):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, seed)
            await story.goes_on(steps // 2)
            await project(ledger)
            await story.goes_on(steps - steps // 2)
            yield story


async def model_of(ledger: Allowance) -> tuple[int, list[Any], list[Any]]:
    """Return the live model as stored: its checkpoint's position, and its rows without their generation."""
    stored = await executed(
        ledger,
        select(checkpoints.c.generation, checkpoints.c.position).where(
            checkpoints.c.ledger == store_of(ledger).ledger,
            checkpoints.c.projection == "history",
            checkpoints.c.model_version == model_module.MODEL_VERSION,
        ),
    )
    generation, position = stored[0] if stored else (0, 0)
    found = []
    for table in (reservations, reserved_blocks):
        columns = [column for column in table.c if column.name not in ("ledger", "generation")]
        query = select(*columns).where(table.c.ledger == store_of(ledger).ledger, table.c.generation == generation)
        found.append(sorted(map(tuple, await executed(ledger, query)), key=repr))
    return position, found[0], found[1]


async def model_by_the_log(ledger: Allowance, position: int) -> tuple[int, list[Any], list[Any]]:
    """Return the model that follows from the stored events up to a position, by the plainest code possible."""
    rows: dict[int, list[Any]] = {}
    bucket_runs: list[Any] = []
    for row in await events_of(ledger):
        if row.position > position:
            break
        event = json.loads(row.payload)
        if event["type"] == "allowance-reserved":
            miner_ss58, executor_class = row.stream.split("\t")
            rows[row.position] = [
                row.position,
                (row.position << 20) + (int.from_bytes(row.hash[:3], "big") >> 4),
                miner_ss58,
                executor_class,
                row.job_uuid,
                event["amount_ns"],
                json.dumps(event["blocks"], separators=(",", ":")).encode(),
                event["job_start_block"],
                row.recorded_at_ns,
                event["expires_at_ns"],
                "reserved",
                None,
                None,
            ]
            by_bucket: dict[tuple[int, int], list[int]] = {}
            for first, last in event["blocks"]:
                for block in range(first, last + 1):
                    by_bucket.setdefault((block // 64, first), []).append(block)
            bucket_runs += [(bucket, row.position, run[0], run[-1]) for (bucket, _), run in by_bucket.items()]
        elif event["type"].startswith("reservation-"):
            assert row.settles is not None
            rows[row.settles][-3:] = [event["type"].removeprefix("reservation-"), row.position, row.recorded_at_ns]
    return position, sorted(map(tuple, rows.values()), key=repr), sorted(bucket_runs, key=repr)


async def assert_sound(ledger: Allowance) -> None:
    """Check that the live model follows from the log up to its checkpoint."""
    stored = await model_of(ledger)
    assert stored == await model_by_the_log(ledger, stored[0])


async def generations(ledger: Allowance) -> set[int]:
    """Return the generations that have rows or a checkpoint; they begin at 1, and 0 is that of the row for the lock."""
    found: set[int] = set()
    for table in (reservations, reserved_blocks, checkpoints):
        query = select(table.c.generation).where(table.c.ledger == store_of(ledger).ledger).distinct()
        query = query.where(table.c.generation > 0)
        found.update(generation for (generation,) in await executed(ledger, query))
    return found


def kinds(report: RebuildReport) -> list[str]:
    return [difference.what for difference in report.differences]


# Building


async def test_a_rebuilt_model_equals_the_live_one(any_url: str) -> None:
    """Byte for byte, on every engine; the generation before it is deleted."""
    async with a_story(any_url, 300) as story:
        ledger = story.ledger
        await project(ledger)
        before = await model_of(ledger)
        assert before == await model_by_the_log(ledger, before[0])

        report = await ledger.rebuild()

        assert (report.different, report.differences) == (0, [])
        assert report.position == report.compared_until == before[0] == (await ledger.head()).position
        assert report.reservations == len(before[1]) > 50
        assert await model_of(ledger) == before
        assert len(await generations(ledger)) == 1


async def test_a_rebuild_goes_beyond_a_model_that_lags(any_url: str) -> None:
    """A lagging model is compared up to its checkpoint, and the new one reaches the head."""
    async with a_story(any_url, 200) as story:
        ledger = story.ledger
        before = await model_of(ledger)

        report = await ledger.rebuild()

        assert report.different == 0
        assert report.compared_until == before[0] < report.position == (await ledger.head()).position
        await assert_sound(ledger)


async def test_a_rebuild_reports_its_progress(url: str, short_pages: None) -> None:
    """The reported positions ascend to the log's head."""
    async with a_story(url, 200) as story:
        reported: list[tuple[int, int]] = []

        await story.ledger.rebuild(lambda done, total: reported.append((done, total)))

        head = (await story.ledger.head()).position
        assert [done for done, _ in reported] == [*range(40, head, 40), head]
        assert {total for _, total in reported} == {head}


async def test_a_ledger_without_reservations_is_rebuilt(any_url: str) -> None:
    """There are no rows to write, but the checkpoint is written."""
    async with small_ledger(url=any_url) as ledger:
        report = await ledger.rebuild()

        assert (report.reservations, report.different, report.compared_until) == (0, 0, 0)
        assert (await ledger.health()).projection_lag == 0


async def test_other_ledgers_of_the_database_are_left_alone(url: str) -> None:
    """A rebuild changes no generation of another ledger in the same database."""
    async with (
        a_story(url, 100) as story,
        Allowance.open(url, validator_ss58="5Second", clock_ns=story.clock) as second,
    ):
        other = Story(second, story.clock, SEED + 1)
        await other.goes_on(100)
        await project(second)
        before = await model_of(second)
        await story.ledger.rebuild()
        await story.ledger.rebuild()
        assert await model_of(second) == before
        await assert_sound(second)


async def test_a_ledger_opened_for_reading_only_refuses_a_rebuild(url: str) -> None:
    """An auditor changes nothing."""
    async with a_story(url, 50):
        pass
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        with pytest.raises(ReadOnlyLedger):
            await ledger.rebuild()


# Concurrent appends, reads and rebuilds


async def test_appends_and_reads_go_on_while_a_model_is_rebuilt(any_url: str, short_pages: None) -> None:
    """Every page read during a rebuild is complete and in order; the new model has the events appended meanwhile."""
    async with a_story(any_url, 300) as story:
        ledger = story.ledger
        rebuilding = asyncio.create_task(rebuilt_times(ledger, 3))
        pages = 0
        while not rebuilding.done():
            before = await whole_history(ledger, limit=10_000)
            await story.goes_on(3)
            after = await whole_history(ledger, limit=17)
            assert [each.reservation_id for each in before] == [each.reservation_id for each in after[: len(before)]]
            pages += 1
        reports = await rebuilding
        assert pages >= 3
        assert [report.different for report in reports] == [0, 0, 0]
        await project(ledger)
        await assert_sound(ledger)
        assert len(await generations(ledger)) == 1


async def rebuilt_times(ledger: Allowance, times: int) -> list[RebuildReport]:
    return [await ledger.rebuild() for _ in range(times)]


async def test_a_page_is_read_again_if_its_generation_was_replaced(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page never mixes two generations, and never shows one whose rows are being deleted."""
    async with a_story(url, 200) as story:
        ledger = story.ledger
        expected = await whole_history(ledger)
        history = history_of(ledger)
        real = history._queries.rows
        replaced: list[int] = []

        async def replacing(connection: Any, page_query: Any, limit: int) -> Any:
            if not replaced:
                replaced.append(page_query.generation)
                await ledger.rebuild()
            return await real(connection, page_query, limit)

        monkeypatch.setattr(history._queries, "rows", replacing)
        assert await whole_history(ledger) == expected
        assert replaced


async def test_the_later_of_two_rebuilds_wins(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier one raises `RebuildOvertaken`, changes nothing, and leaves no rows."""
    async with a_story(url, 200) as story, Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=story.clock) as other:
        real = rebuild_module.Rebuild._compare
        later: list[RebuildReport] = []

        async def overtaken(self: Any, shadow: Any) -> int:
            monkeypatch.setattr(rebuild_module.Rebuild, "_compare", real)
            later.append(await other.rebuild())
            return await real(self, shadow)

        monkeypatch.setattr(rebuild_module.Rebuild, "_compare", overtaken)
        with pytest.raises(RebuildOvertaken):
            await story.ledger.rebuild()
        assert [report.different for report in later] == [0]
        await assert_sound(story.ledger)
        assert len(await generations(story.ledger)) == 1


# Damage


FIRST_ROW = reservations.c.position == select(func.min(reservations.c.position)).scalar_subquery()
DAMAGE: dict[str, tuple[Any, list[str]]] = {
    "another status": (
        update(reservations).where(FIRST_ROW).values(status="expired", settled_position=7),
        ["reservation"],
    ),
    "another amount": (update(reservations).where(FIRST_ROW).values(amount_ns=1), ["reservation"]),
    "other blocks": (update(reservations).where(FIRST_ROW).values(blocks=b"[[1,2]]"), ["reservation"]),
    "no row": (delete(reservations).where(FIRST_ROW), ["reservation"]),
    "no bucket runs": (delete(reserved_blocks).where(reserved_blocks.c.bucket == 0), ["blocks"]),
    "a bucket run that ends elsewhere": (update(reserved_blocks).values(last_block=63), ["blocks"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_is_found_and_replaced(url: str, damage: str, short_pages: None) -> None:
    """The report names each differing row with its old and new values, and the rebuilt row follows from the log."""
    async with a_story(url, 150) as story:
        ledger = story.ledger
        await project(ledger)
        before = await model_of(ledger)
        await executed(ledger, DAMAGE[damage][0])
        assert await model_of(ledger) != before

        report = await ledger.rebuild()

        assert set(kinds(report)) == set(DAMAGE[damage][1])
        assert report.different >= 1
        first = report.differences[0]
        assert first.found != first.rebuilt
        assert first.position in {row[0] for row in before[1]}
        assert await model_of(ledger) == before
        assert (await ledger.rebuild()).different == 0


async def test_rows_without_an_event_are_found_and_removed(url: str) -> None:
    """A reservation and a bucket run that do not follow from any event."""
    async with a_story(url, 100) as story:
        ledger = story.ledger
        await project(ledger)
        before = await model_of(ledger)
        generation = min(await generations(ledger))
        key = {"ledger": 1, "generation": generation}
        row = dict(zip([column.name for column in reservations.c][2:], before[1][0], strict=True))
        await executed(
            ledger,
            insert(reservations).values({**key, **row, "position": 1, "miner_ss58": "5Nobody"}),
            insert(reserved_blocks).values({**key, "bucket": 3, "position": 2, "first_block": 200, "last_block": 201}),
        )

        report = await ledger.rebuild()

        assert [(each.what, each.position, each.rebuilt) for each in report.differences] == [
            ("reservation", 1, None),
            ("blocks", 2, None),
        ]
        assert report.differences[0].found is not None
        assert report.differences[0].found["miner_ss58"] == "5Nobody"
        assert await model_of(ledger) == before


async def test_only_the_first_differences_are_listed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report counts all of them."""
    monkeypatch.setattr(rebuild_module, "LISTED_DIFFERENCES", 3)
    async with a_story(url, 150) as story:
        await project(story.ledger)
        await executed(story.ledger, update(reservations).values(amount_ns=1))
        report = await story.ledger.rebuild()
        assert len(report.differences) == 3
        assert report.different == report.reservations > 20


SNAPSHOT_DAMAGE: dict[str, Any] = {
    "another payload": update(snapshots).values(payload=b"no state"),
    "another digest": update(snapshots).values(digest=b"0" * 32),
    "another hash": update(snapshots).values(hash=b"0" * 32),
    "beyond the log": update(snapshots).values(position=10**9),
}


@pytest.mark.parametrize("damage", SNAPSHOT_DAMAGE)
async def test_a_damaged_snapshot_is_found_and_replaced(url: str, damage: str) -> None:
    """It is compared with the state folded from the first event; then a sound one at the newest seal replaces it."""
    async with a_story(url, 100) as story:
        ledger = story.ledger
        await take_snapshot(ledger)
        await story.goes_on(30)
        sealed = await take_snapshot(ledger)
        sound = await ledger.rebuild()
        assert (sound.snapshots, sound.different) == (2, 0)
        await executed(ledger, delete(snapshots).where(snapshots.c.position < sealed), SNAPSHOT_DAMAGE[damage])
        await story.goes_on(5)

        report = await ledger.rebuild()

        assert kinds(report) == ["snapshot"]
        assert await executed(ledger, select(snapshots.c.position)) == [(sealed,)]
        assert (await there(ledger, SnapshotStore(store_of(ledger)).load)).position == sealed
        again = await ledger.rebuild()
        assert (again.snapshots, again.different) == (1, 0)


async def test_a_wrong_snapshot_with_a_right_digest_is_found(url: str) -> None:
    """Digest, position and hash are right, but the state is not; a wrong state in memory is found too."""
    async with a_story(url, 100) as story:
        ledger = story.ledger
        await take_snapshot(ledger)
        assert ledger._lifecycle.open_handle is not None

        def damage(state: Any, _now_ns: int) -> bytes:
            next(iter(state.chain.accounts.values())).invalidated_below += 1
            return encode_state(state)

        payload = await ledger._lifecycle.open_handle.writer.query(damage)
        from projections.snapshots import payload_digest

        await executed(ledger, update(snapshots).values(payload=payload, digest=payload_digest(payload)))
        report = await ledger.rebuild()
        assert sorted(kinds(report)) == ["snapshot", "state"]
        assert (await ledger.rebuild()).different == 0


# Versions


@pytest.mark.parametrize("version", [0, 99])
async def test_a_model_of_another_version_is_ignored_and_built_again(any_url: str, version: int) -> None:
    """Rows of another version are never read; an older version's are deleted, a newer version's stay."""
    async with a_story(any_url, 120) as story:
        ledger = story.ledger
        await project(ledger)
        before = await model_of(ledger)
        expected = await whole_history(ledger)
        await executed(
            ledger, update(checkpoints).values(model_version=version), update(reservations).values(status="spent")
        )
        assert (await ledger.health()).projection_lag == before[0]
        assert await whole_history(ledger) == expected

        async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=story.clock) as again:
            await project(again)
            assert await model_of(again) == before
            assert len(await generations(again)) == (1 if version == 0 else 2)
            assert (await again.rebuild()).different == 0
            assert len(await generations(again)) == 1


# Events that cannot be projected


def break_event(url: str, position: int, payload: bytes) -> None:
    statement(url, "DROP TRIGGER allowance_events_no_update")
    statement(url, f"UPDATE allowance_events SET payload = X'{payload.hex()}' WHERE position = {position}")


@pytest.mark.parametrize(
    ("payload", "event_type"),
    [
        (b'{"type":"reservation-forgiven","reservation_id":7}', "reservation-forgiven"),
        (b'{"type":"allowance-reserved","amount_ns":"much"}', "allowance-reserved"),
        (b"no event", "an event of no known type"),
    ],
    ids=["a newer type", "a damaged event", "no event"],
)
async def test_an_event_that_cannot_be_read_stops_the_projection(url: str, payload: bytes, event_type: str) -> None:
    """The checkpoint is directly before it, health names its position and type, and no later event is projected."""
    async with a_story(url, 200) as story:
        ledger = story.ledger
        await ledger.rebuild()
        await executed(ledger, update(checkpoints).values(model_version=0))
        broken = next(at for at, *_ in (await model_by_the_log(ledger, 10**9))[1] if at > 60)
        break_event(url, broken, payload)

        with pytest.raises(ProjectionStopped) as caught:
            await project(ledger)

        assert (caught.value.position, caught.value.event_type) == (broken, event_type)
        assert (await model_of(ledger))[0] == broken - 1
        await assert_sound(ledger)
        health = await ledger.health()
        assert health.projection_error is not None
        assert f"position {broken}, {event_type}" in health.projection_error
        assert health.projection_lag == health.position - broken + 1
        with pytest.raises(ProjectionStopped):
            await ledger.rebuild()
        assert (await model_of(ledger))[0] == broken - 1
        assert len(await generations(ledger)) == 1
        with pytest.raises(ProjectionStopped):
            await whole_history(ledger)


async def test_a_missing_event_stops_the_projection(url: str) -> None:
    """The projector does not skip a gap in the positions."""
    async with a_story(url, 100) as story:
        ledger = story.ledger
        await ledger.rebuild()
        await executed(ledger, update(checkpoints).values(model_version=0))
        statement(url, "DROP TRIGGER allowance_events_no_delete")
        statement(url, "DELETE FROM allowance_events WHERE position = 33")

        with pytest.raises(ProjectionStopped) as caught:
            await project(ledger)

        assert caught.value.position == 33
        assert (await model_of(ledger))[0] == 32
        assert "position 33" in str((await ledger.health()).projection_error)


async def test_a_settlement_of_a_missing_row_stops_the_projection(any_url: str) -> None:
    """If the model has lost a row, the projector does not skip its settlement; a rebuild repairs the model."""
    async with small_ledger(url=any_url) as ledger:
        made = await ledger.reserve("5Anna", "always_on.gpu-24gb", 6.0, 11)
        await project(ledger)
        assert (await ledger.health()).projection_error is None
        await executed(ledger, delete(reservations))
        await ledger.spend(made.reservation_id)
        head = (await ledger.head()).position

        assert f"position {head}, reservation-spent" in str((await ledger.health()).projection_error)
        with pytest.raises(ProjectionStopped) as caught:
            await project(ledger)
        assert (caught.value.position, caught.value.event_type) == (head, "reservation-spent")
        assert (await model_of(ledger))[0] == head - 1

        report = await ledger.rebuild()
        assert kinds(report) == ["reservation"]
        assert [each.status for each in await whole_history(ledger)] == ["spent"]
        assert (await ledger.health()).projection_error is None


async def test_rows_beyond_the_checkpoint_stop_the_projection(any_url: str) -> None:
    """A row beyond the checkpoint was not written by the projector."""
    async with small_ledger(url=any_url) as ledger:
        await ledger.reserve("5Anna", "always_on.gpu-24gb", 6.0, 11)
        await project(ledger)
        position, rows, _ = await model_of(ledger)
        await executed(ledger, update(reservations).values(position=position + 1))
        await ledger.reserve("5Bert", "always_on.gpu-24gb", 6.0, 11)
        with pytest.raises(ProjectionStopped) as caught:
            await project(ledger)
        assert caught.value.position == position + 1
        assert kinds(await ledger.rebuild()) == ["reservation"]
        await assert_sound(ledger)
        assert rows


# Interruptions


class Counted:
    """A transaction on the read models that counts its statements."""

    def __init__(self, transaction: DerivedTransaction, count: Callable[[str], None]) -> None:
        self._transaction = transaction
        self._count = count

    async def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        rows = await self._transaction.query(statement, *values)
        self._count(statement)
        return rows

    async def execute_many(self, statement: str, rows: Any) -> None:
        await self._transaction.execute_many(statement, rows)
        self._count(statement)


@contextmanager
def stopping(ledger: Allowance, at: int) -> Iterator[list[str]]:
    """Fail at the given database operation of the read models, counted from 1; 0 only counts. Commits count too."""
    store: Any = store_of(ledger)
    write_derived = store.write_derived
    done: list[str] = []

    def count(what: str) -> None:
        done.append(what)
        if len(done) == at:
            raise Stopped(what)

    def executed_one(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        count(text)

    @asynccontextmanager
    async def counted() -> AsyncIterator[Counted]:
        async with write_derived() as transaction:
            yield Counted(transaction, count)
            count("COMMIT")

    event.listen(Engine, "after_cursor_execute", executed_one)
    store.write_derived = counted
    try:
        yield done
    finally:
        event.remove(Engine, "after_cursor_execute", executed_one)
        store.write_derived = write_derived


async def test_a_projector_may_stop_after_any_statement(any_url: str, short_pages: None) -> None:
    """The model is sound after each interruption, and in the end the same as without any."""
    async with a_story(any_url, 100) as story:
        ledger = story.ledger
        await project(ledger)
        after = await model_of(ledger)
        stopped_at: list[int] = []
        finished = False
        while not finished:
            await executed(ledger, *(delete(table) for table in (checkpoints, reservations, reserved_blocks)))
            with stopping(ledger, len(stopped_at) + 1) as done:
                try:
                    await project(ledger)
                    finished = True
                except Stopped:
                    assert len(done) == len(stopped_at) + 1
            stopped_at.append((await model_of(ledger))[0])
            await assert_sound(ledger)
            await project(ledger)
            assert await model_of(ledger) == after
        assert len(set(stopped_at)) > 3
        assert (await ledger.rebuild()).different == 0


async def test_a_rebuild_may_stop_after_any_statement(any_url: str, short_pages: None) -> None:
    """The live model is unchanged until it is replaced as a whole; the next rebuild deletes what was left."""
    async with a_story(any_url, 40) as story:
        ledger = story.ledger
        await project(ledger)
        before = await model_of(ledger)
        with stopping(ledger, 0) as done:
            await ledger.rebuild()
        assert await model_of(ledger) == before
        for at in range(1, len(done) + 1):
            with stopping(ledger, at):
                outcome = (await asyncio.gather(ledger.rebuild(), return_exceptions=True))[0]
            assert isinstance(outcome, (Stopped, RebuildReport)), outcome
            assert await model_of(ledger) == before
            assert len(await whole_history(ledger)) == len(before[1])
        assert (await ledger.rebuild()).different == 0
        assert await model_of(ledger) == before
        assert len(await generations(ledger)) == 1


async def test_a_rebuild_that_is_cancelled_leaves_a_sound_model(url: str, short_pages: None) -> None:
    """Nobody deletes the shadow, as after a crash: readers do not see it, and the next rebuild deletes it."""
    async with a_story(url, 200) as story:
        ledger = story.ledger
        await project(ledger)
        before = await model_of(ledger)
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def halfway(done: int, total: int) -> None:
            if done * 2 > total:
                loop.call_soon_threadsafe(reached.set)

        rebuilding = asyncio.create_task(ledger.rebuild(halfway))
        await reached.wait()
        rebuilding.cancel()
        await asyncio.gather(rebuilding, return_exceptions=True)
        assert await model_of(ledger) == before
        await story.goes_on(10)
        assert (await ledger.rebuild()).different == 0
        assert len(await generations(ledger)) == 1
        await assert_sound(ledger)
