"""Pages of the history equal a scan of all reservations, with any filters, for any reader, while the log grows."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from base64 import urlsafe_b64encode
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, select, text

from ledger import Lookup, LookupResult
from ledger.locked_append import LockedAppend
from ledger.store.sqlite.store import SqliteStore
from projections import History
from projections.history import garbage as garbage_module
from projections.history import model as model_module
from projections.history import pages as history_module
from projections.history.model import Checkpoint
from projections.history.projector import BACKLOG_SHARE, Projector
from projections.history.rows import UnprojectedTail
from projections.tables import checkpoints, reservations
from routing import Allowance, HistoryDamaged, InvalidInput, Page, Reservation
from tests.support.small import GPU, VALIDATOR, Clock, small_ledger
from tests.support.stories import (
    CLASSES,
    MINERS,
    SETTINGS,
    Story,
    executed,
    history_of,
    project,
    seed_shown,
    store_of,
    there,
    whole_history,
)

pytestmark = pytest.mark.compatibility

SEED = 3


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few rows at a time, so that a short story needs many reads."""
    monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", 50)
    monkeypatch.setattr("ledger.store.postgres.store.PAGE_ROWS", 50)
    monkeypatch.setattr("projections.history.queries.LEAST_ROWS_READ", 3)
    monkeypatch.setattr(history_module, "TAIL_ROWS", 60)
    monkeypatch.setattr(model_module, "LOOKUP_VALUES", 4)


def matches(reservation: Reservation, wanted: dict[str, Any]) -> bool:
    """Return True if a reservation meets every filter."""
    for name, value in wanted.items():
        match name:
            case "reserved_from":
                fits = reservation.reserved_at >= value
            case "reserved_until":
                fits = reservation.reserved_at < value
            case "block":
                fits = value in reservation.blocks
            case _:
                fits = getattr(reservation, name) == value
        if not fits:
            return False
    return True


async def paged(ledger: Any, wanted: dict[str, Any], *, newest_first: bool, limit: int) -> list[Reservation]:
    """Read all pages, and check that each except the last is full."""
    items: list[Reservation] = []
    after: str | None = None
    while True:
        page: Page = await ledger.history(**wanted, newest_first=newest_first, limit=limit, after=after)
        items += page.items
        after = page.next
        if after is None:
            return items
        assert len(page.items) == limit


def combinations(scan: list[Reservation]) -> list[dict[str, Any]]:
    """Return every combination of the seven filters, each with a value of a reservation in the middle."""
    middle = scan[len(scan) // 2]
    one_of = {
        "miner_ss58": middle.miner_ss58,
        "executor_class": middle.executor_class,
        "job_uuid": next(each.job_uuid for each in scan[len(scan) // 2 :] if each.job_uuid),
        "status": middle.status,
        "reserved_from": scan[len(scan) // 4].reserved_at,
        "reserved_until": scan[3 * len(scan) // 4].reserved_at,
        "block": middle.blocks[0],
    }
    names = list(one_of)
    return [
        {name: one_of[name] for name in chosen}
        for count in range(len(names) + 1)
        for chosen in itertools.combinations(names, count)
    ]


async def assert_equals_scan(ledger: Any, wanted: dict[str, Any], scan: list[Reservation], limit: int) -> int:
    """Check the pages in both orders against a scan; return the number of reservations that match."""
    expected = [each for each in scan if matches(each, wanted)]
    assert await paged(ledger, wanted, newest_first=False, limit=limit) == expected, wanted
    assert await paged(ledger, wanted, newest_first=True, limit=limit) == expected[::-1], wanted
    return len(expected)


# Filters and pages


async def test_every_combination_of_filters_equals_a_scan(any_url: str, short_pages: None) -> None:
    """With a checkpoint in the middle of the log, so that pages combine the model and the unprojected tail."""
    clock = Clock()
    with seed_shown(SEED):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, SEED)
            await story.goes_on(180)
            await project(ledger)
            await story.goes_on(40)
            scan = [await ledger.reservation(each.reservation_id) for each in await whole_history(ledger)]
            found = [await assert_equals_scan(ledger, wanted, scan, 7) for wanted in combinations(scan)]
            assert len(found) == 128
            assert sum(1 for count in found if count) > 40


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_random_filters_equal_a_scan_while_the_log_grows(url: str, seed: int, short_pages: None) -> None:
    """With random limits, between the steps of a story, for its writer, for a second one, and for an auditor."""
    clock = Clock()
    with seed_shown(seed):
        async with (
            Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger,
            Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as second,
            Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as auditor,
        ):
            story = Story(ledger, clock, seed)
            await story.goes_on(20)
            for _ in range(35):
                await story.goes_on(story.draw.randrange(1, 12))
                if story.draw.random() < 0.2:
                    await project(ledger)
                scan = [await ledger.reservation(each) for each in sorted(set(story.made))]
                wanted = random_filters(story, scan)
                reader = story.draw.choice([ledger, second, auditor])
                await assert_equals_scan(reader, wanted, scan, story.draw.choice([1, 2, 5, 100]))


def random_filters(story: Story, scan: list[Reservation]) -> dict[str, Any]:
    """Return some filters with values that reservations may have."""
    draw = story.draw
    times = [each.reserved_at for each in scan]
    values: dict[str, Any] = {
        "miner_ss58": draw.choice([*MINERS, "5Nobody"]),
        "executor_class": draw.choice([*CLASSES, "abacus"]),
        "job_uuid": f"job-{draw.randrange(1, story.jobs + 2)}",
        "status": draw.choice(["reserved", "spent", "released", "expired"]),
        "reserved_from": draw.choice(times) + timedelta(microseconds=draw.choice([0, 0, 1])),
        "reserved_until": draw.choice(times) + timedelta(microseconds=draw.choice([0, 0, 1])),
        "block": max(1, story.number - draw.randrange(0, 70)),
    }
    return {name: value for name, value in values.items() if draw.random() < 0.3}


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_filtered_page_is_read_by_an_index(url: str, analyzed: bool) -> None:
    """No page scans or sorts the whole history, with any filters, with and without SQLite's statistics.

    Fails if SQLite chooses the index: it reads rows by position until enough of them match.
    """
    executed_statements: list[tuple[str, tuple[Any, ...]]] = []

    def note(_c: object, _cursor: object, statement: str, values: tuple[Any, ...], *_: object) -> None:
        if "FROM allowance_res" in statement:
            executed_statements.append((statement, values))

    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=(clock := Clock())) as ledger:
        await Story(ledger, clock, SEED).goes_on(150)
        await project(ledger)
        store: Any = store_of(ledger)
        connection = store._derived._connection
        if analyzed:
            connection.execute("ANALYZE")
            connection.execute("ANALYZE sqlite_master")  # Makes this connection read the statistics.
        newest = (await ledger.history(limit=1)).items[0]
        one_of: dict[str, Any] = {
            "miner_ss58": newest.miner_ss58,
            "executor_class": newest.executor_class,
            "job_uuid": "job-1",
            "status": "released",
            "block": newest.blocks[0],
            "reserved_from": newest.reserved_at - timedelta(days=1),
        }
        event.listen(Engine, "before_cursor_execute", note)
        try:
            for number in range(1, len(one_of) + 1):
                for names in itertools.combinations(one_of, number):
                    executed_statements.clear()
                    await ledger.history(limit=2, **{name: one_of[name] for name in names})
                    plans = [
                        connection.execute(f"EXPLAIN QUERY PLAN {each}", values) for each, values in executed_statements
                    ]
                    steps = [step for plan in plans for *_, step in plan]
                    assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step]
                    by_position = "PRIMARY KEY (ledger=? AND generation=? AND position"
                    ranges = [step for step in steps if f"{by_position}<" in step or f"{by_position}>" in step]
                    assert bool(ranges) == (set(names) == {"reserved_from"}), names
        finally:
            event.remove(Engine, "before_cursor_execute", note)


async def test_a_range_of_times_includes_its_start_and_excludes_its_end(url: str) -> None:
    """`[reserved_from, reserved_until)`, before and after the projection."""
    clock = Clock()
    async with small_ledger(url=url, clock=clock, offers={"5Anna": 9}) as ledger:
        made = []
        for _ in range(3):
            clock.advance(1)
            made.append(await ledger.reserve("5Anna", GPU, 54.0, 11))
        first, second, third = (each.reserved_at for each in made)
        for projected in (False, True):
            if projected:
                await project(ledger)
            cases: list[tuple[dict[str, Any], list[Reservation]]] = [
                ({"reserved_from": second}, made[1:]),
                ({"reserved_until": second}, made[:1]),
                ({"reserved_from": first, "reserved_until": third}, made[:2]),
                ({"reserved_from": third + timedelta(microseconds=1)}, []),
                ({"reserved_from": third, "reserved_until": first}, []),
            ]
            for wanted, expected in cases:
                assert (await ledger.history(**wanted, newest_first=False)).items == expected


async def test_a_reservation_is_found_by_each_of_its_blocks(url: str) -> None:
    """A reservation of a hundred blocks, across several buckets, is found by each of them and by no other block."""
    async with small_ledger(url=url, blocks=200, offers={"5Anna": 1}) as ledger:
        made = await ledger.reserve("5Anna", GPU, 600.0, 200)
        assert len(made.blocks) == 100
        await project(ledger)
        for block in range(1, 200):
            items = (await ledger.history(block=block)).items
            assert [each.reservation_id for each in items] == [made.reservation_id] * (block in made.blocks)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 10_001},
        {"limit": True},
        {"status": "booked"},
        {"status": ["spent"]},
        {"block": 0},
        {"miner_ss58": ""},
        {"executor_class": "a\0b"},
        {"job_uuid": "x" * 200},
        {"reserved_from": datetime(2024, 1, 1)},  # noqa: DTZ001 - has no time zone
        {"reserved_until": "yesterday"},
    ],
    ids=str,
)
async def test_malformed_filters_are_refused(url: str, wrong: dict[str, Any]) -> None:
    """The error names the filter."""
    async with small_ledger(url=url) as ledger:
        with pytest.raises(InvalidInput) as caught:
            await ledger.history(**wrong)
        assert caught.value.field == next(iter(wrong))


# Cursors


@pytest.mark.parametrize("newest_first", [True, False])
async def test_cursors_are_stable_while_the_log_grows(any_url: str, newest_first: bool, short_pages: None) -> None:
    """No reservation that existed at the first page is skipped or shown twice, with appends and rebuilds in between."""
    clock = Clock()
    with seed_shown(SEED):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, SEED)
            await story.goes_on(200)
            existing = [each.reservation_id for each in await whole_history(ledger)]
            shown: list[int] = []
            after: str | None = None
            while True:
                page = await ledger.history(newest_first=newest_first, limit=3, after=after)
                again = await ledger.history(newest_first=newest_first, limit=3, after=after)
                assert [each.reservation_id for each in again.items] == [each.reservation_id for each in page.items]
                shown += [each.reservation_id for each in page.items]
                after = page.next
                if after is None:
                    break
                await story.goes_on(1 if newest_first else 0)
                if len(shown) % 30 == 0:
                    await ledger.rebuild()
            assert len(existing) > 60
            assert shown == (existing[::-1] if newest_first else existing)


async def test_oldest_first_shows_reservations_made_after_the_page_before(url: str) -> None:
    """A cursor leads to the reservations that were made since it was returned."""
    async with small_ledger(url=url, offers={"5Anna": 9}) as ledger:
        made = [await ledger.reserve("5Anna", GPU, 54.0, 11) for _ in range(3)]
        page = await ledger.history(newest_first=False, limit=2)
        assert page.items == made[:2]
        made.append(await ledger.reserve("5Anna", GPU, 54.0, 11))
        assert (await ledger.history(newest_first=False, limit=2, after=page.next)).items == made[2:]
        last = await ledger.history(newest_first=False, limit=2, after=page.next)
        assert last.next is None


async def test_any_other_text_than_a_cursor_of_the_same_order_is_refused(url: str) -> None:
    """Only the exact `next` of a page in the same order is accepted."""
    async with small_ledger(url=url, offers={"5Anna": 9}) as ledger:
        for _ in range(3):
            await ledger.reserve("5Anna", GPU, 54.0, 11)
        newest, oldest = await ledger.history(limit=1), await ledger.history(limit=1, newest_first=False)
        assert newest.next
        assert oldest.next

        def mark(text: str) -> str:
            return urlsafe_b64encode(text.encode()).decode()

        wrong: list[Any] = [oldest.next, "", " ", "no-such-cursor", "é", f" {newest.next}", f"{newest.next}\n", 7]
        wrong += [mark(text) for text in ("<", "<0", "<-1", "< 5", "<+5", "<05", "<1_0", "<5.0", "<x", f"<{2**63}")]
        for cursor in wrong:
            with pytest.raises(InvalidInput) as caught:
                await ledger.history(limit=1, after=cursor)
            assert caught.value.field == "after"
        with pytest.raises(InvalidInput):
            await ledger.history(limit=1, newest_first=False, after=newest.next)
        # A cursor beyond the log is valid: it may come from a log that has lost its tail since.
        assert len((await ledger.history(after=mark("<999999"))).items) == 3


# Readers


async def rows_of(ledger: Allowance) -> tuple[list[Any], list[Any]]:
    """Return the checkpoints (generation, position), and the positions of all rows."""
    query = select(checkpoints.c.generation, checkpoints.c.position).where(checkpoints.c.projection == "history")
    stored = await executed(ledger, query)
    return stored, [position for (position,) in await executed(ledger, select(reservations.c.position))]


@pytest.mark.parametrize("projected", [0, 1, 150, 300])
async def test_an_auditor_reads_a_lagging_model_and_writes_nothing(
    any_url: str, projected: int, short_pages: None
) -> None:
    """Its pages are complete at any lag, and the lag stays the same."""
    clock = Clock()
    with seed_shown(SEED):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, SEED)
            await story.goes_on(300)
            scan = await whole_history(ledger)
            head = (await ledger.head()).position

            await executed(ledger, delete(checkpoints))
            await there(ledger, lambda: history_of(ledger).project(min(projected, head)))
            before = await rows_of(ledger)
            async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock, read_only=True) as auditor:
                for wanted in ({}, {"status": "reserved"}, {"status": "expired"}, {"miner_ss58": MINERS[0]}):
                    await assert_equals_scan(auditor, wanted, scan, 13)
                assert (await auditor.health()).projection_lag > 0 or projected > head
                await auditor.history(reserved_from=scan[5].reserved_at, status="spent")
            assert await rows_of(ledger) == before


async def test_concurrent_projectors_write_each_event_once(any_url: str, short_pages: None) -> None:
    """Four projectors of the same events leave one sound generation without repeated rows."""
    clock = Clock()
    with seed_shown(SEED):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = Story(ledger, clock, SEED)
            await story.goes_on(250)
            head = (await ledger.head()).position
            readers = [History(store_of(ledger), VALIDATOR, read_only=False) for _ in range(4)]

            await there(ledger, lambda: asyncio.gather(*(reader.project(head) for reader in readers)))
            stored, positions = await rows_of(ledger)
            assert stored == [(1, head)]
            assert len(positions) == len(set(positions)) == len(await whole_history(ledger))
            assert (await ledger.rebuild()).different == 0


async def test_a_history_that_another_process_began_and_finished_is_no_gap(any_url: str) -> None:
    """The projector that finds no history, and then a complete one, has nothing to do.

    Catches one that reads on behind the head, and reports that the log has no event there.
    """
    async with small_ledger(url=any_url) as ledger:
        await ledger.reserve("5Anna", GPU, 1.0, 11)
        late, head = History(store_of(ledger), VALIDATOR, read_only=False), (await ledger.head()).position

        async def overtake(_: int) -> int:
            await History(store_of(ledger), VALIDATOR, read_only=False).project(head)
            return 1

        await there(ledger, lambda: late.project(head, overtake))
        assert await there(ledger, late.checkpoint) == head


async def project_nine(ledger: Allowance) -> None:
    """Project four batches of two events, and one more."""
    await there(ledger, lambda: history_of(ledger).project(9))


async def rebuild_all(ledger: Allowance) -> None:
    """Project as many batches into the shadow, and some for events appended meanwhile."""
    await ledger.rebuild()


async def delete_five_rows(ledger: Allowance) -> None:
    """Delete five rows of a generation that no checkpoint names."""
    for _ in range(5):
        await ledger.reserve("5Bert", GPU, 1.0, 11)
    await project(ledger)
    await executed(ledger, delete(checkpoints))
    await there(ledger, lambda: garbage_module.delete_unreferenced_rows(store_of(ledger)))


@pytest.mark.parametrize(
    ("work", "owner", "batch"),
    [
        (project_nine, Projector, "advance"),
        (rebuild_all, Projector, "advance"),
        (delete_five_rows, garbage_module, "_delete_batch"),
    ],
)
async def test_a_change_waits_for_at_most_one_batch_of_projection(
    url: str, monkeypatch: pytest.MonkeyPatch, work: Any, owner: Any, batch: str
) -> None:
    """A change that arrives during a batch is done before the next one. Fails without `yield_to_writers`."""
    for rows_at_once in ("history.projector.ROWS_PER_PIECE", "rebuild.ROWS_PER_TRANSACTION"):
        monkeypatch.setattr(f"projections.{rows_at_once}", 2)
    monkeypatch.setattr("projections.history.garbage.DELETED_ROWS_APART", 1)
    loop = asyncio.get_running_loop()
    done: list[str] = []
    async with small_ledger(url=url) as ledger:
        assert ledger._lifecycle.open_handle is not None
        changes = ledger._lifecycle.open_handle.writer._commands
        changes_made: list[Any] = []
        write, commit = getattr(owner, batch), LockedAppend.commit

        async def write_and_reserve(*arguments: Any) -> Any:
            written = await write(*arguments)
            done.append("batch")
            changes_made.append(asyncio.run_coroutine_threadsafe(ledger.reserve("5Anna", GPU, 0.1, 11), loop))
            while not changes._waiting and not changes_made[-1].done():
                pass  # Blocks the loop on purpose: nothing else may run before the next batch could begin.
            return written

        async def commit_and_record(self: LockedAppend, commands: Any) -> None:
            await commit(self, commands)
            done.append("change")

        monkeypatch.setattr(owner, batch, write_and_reserve)
        monkeypatch.setattr(LockedAppend, "commit", commit_and_record)
        await work(ledger)
        await asyncio.gather(*map(asyncio.wrap_future, changes_made), return_exceptions=True)
    first = done.index("batch")
    assert done[first : first + 8] == ["batch", "change"] * 4


async def test_a_long_backlog_is_projected_in_larger_batches(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes go first between two batches, so with batches of a fixed size the backlog could grow without end."""
    monkeypatch.setattr("projections.history.projector.ROWS_PER_PIECE", 2)
    batches: list[int] = []
    advance = Projector.advance

    async def advance_and_count(self: Projector, slot: str, checkpoint: Checkpoint, tail: UnprojectedTail) -> Any:
        batches.append(tail.position - checkpoint.position)
        return await advance(self, slot, checkpoint, tail)

    async with small_ledger(url=url) as ledger:
        for _ in range(50):
            await ledger.release((await ledger.reserve("5Anna", GPU, 1.0, 11)).reservation_id)
        monkeypatch.setattr(Projector, "advance", advance_and_count)
        await project(ledger)
    assert batches[0] == sum(batches) // BACKLOG_SHARE > 2
    assert batches[-1] <= 2


# The first page of a process


FIRST_USE = """
import asyncio, sys, threading
from routing.sync import Allowance

imported = []

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sqlalchemy", "aiosqlite", "greenlet"):
            imported.append((name, threading.current_thread().name))

sys.meta_path.insert(0, Finder())
with Allowance.open({url!r}, validator_ss58={validator!r}) as ledger:
    ledger.miners()
    assert not imported, imported
    {use}
assert "sqlalchemy" in dict(imported)
on_the_ledgers_thread = [name for name, thread in imported if thread == "allowance-ledger"]
assert not on_the_ledgers_thread, on_the_ledgers_thread
"""


@pytest.mark.parametrize("use", ["ledger.history()", "ledger.audit()", "ledger.rebuild()"])
async def test_sqlalchemy_is_never_imported_on_the_ledgers_thread(any_url: str, use: str) -> None:
    """The first history, audit or rebuild of a process does not make its reservations wait for an import.

    Fails if SQLAlchemy, its dialect or its driver is imported where it is used: that stops the writer for 230 ms.
    """
    async with small_ledger(url=any_url) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        await project(ledger)
    script = FIRST_USE.format(url=any_url, validator=VALIDATOR, use=use)
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


FORK = """
import os, signal, sys, threading
from routing.sync import Allowance

importing, forked = threading.Event(), threading.Event()

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "sqlalchemy.sql":
            importing.set()
            forked.wait(0.3)

sys.meta_path.insert(0, Finder())
ledger = Allowance.open({url!r}, validator_ss58={validator!r})
ledger.miners()
reading = threading.Thread(target=ledger.history)
reading.start()
importing.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    import sqlalchemy.sql
    os._exit(0 if hasattr(sqlalchemy, "select") else 1)
forked.set()
reading.join()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_waits_for_an_import_on_another_thread(tmp_path: Path) -> None:
    """A forked child has whole modules; it would wait for ever for the import lock of a thread that it does not have.

    The fork waits no longer than the import. Fails if the ledger's thread waits for the fork, which waits for it.
    """
    from routing import sync

    url = f"sqlite:///{tmp_path}/ledger.db"
    with sync.Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        ledger.rebuild()  # Without a history there is nothing that SQLAlchemy is needed for.
    script = FORK.format(url=url, validator=VALIDATOR)
    # Python 3.12 and later warn when a process with several threads forks.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


# Comparison with the log


EDITS = {
    "a status": ("status = 'spent'", {"status", "settled_position", "settled_at_ns"}),
    "an amount": ("amount_ns = amount_ns + 1", {"amount_ns"}),
    "blocks": ("blocks = '[[1,2]]'", {"blocks"}),
    "a miner": ("miner_ss58 = '5Bert'", {"miner_ss58"}),
    "a job": ("job_uuid = 'other'", {"job_uuid"}),
    "a due time": ("expires_at_ns = 1", {"expires_at_ns"}),
    "an id": ("reservation_id = 1", {"reservation_id"}),
    "a settlement": ("settled_at_ns = 1, settled_position = 2", {"settled_at_ns", "settled_position"}),
    "a position": ("position = 3", set()),
}


@pytest.mark.parametrize("edit", EDITS)
async def test_an_edited_row_is_not_shown(any_url: str, edit: str) -> None:
    """It was returned as if true. The error names the fields and the way out, which works.

    Catches a page that is made of the read model's rows alone.
    """
    change, fields = EDITS[edit]
    async with small_ledger(url=any_url) as ledger:
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="job")
        await ledger.release((await ledger.reserve("5Carl", GPU, 6.0, 11)).reservation_id)
        await project(ledger)
        whole = await ledger.history()
        assert whole.checked
        await executed(ledger, text(f"UPDATE allowance_reservations SET {change} WHERE job_uuid = 'job'"))
        with pytest.raises(HistoryDamaged) as damaged:
            await ledger.history()
        assert set(damaged.value.fields) <= fields
        assert bool(damaged.value.fields) == bool(fields)
        assert "allowance rebuild" in str(damaged.value)
        # By its id it is read from the log.
        assert await ledger.reservation(reserved.reservation_id) == reserved
        await ledger.rebuild()
        assert await ledger.history() == whole


async def test_a_page_is_compared_with_the_log_in_one_look_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows it has; and only the rows that are shown, not the one more that is read."""
    async with small_ledger(url=url) as ledger:
        for _ in range(20):
            await ledger.release((await ledger.reserve("5Anna", GPU, 0.1, 11)).reservation_id)
        await project(ledger)
        looked_up: list[int] = []
        real = SqliteStore.find

        async def find(self: SqliteStore, lookup: Lookup) -> LookupResult:
            looked_up.append(len(lookup.positions))
            return await real(self, lookup)

        monkeypatch.setattr(SqliteStore, "find", find)
        assert len((await ledger.history(limit=15)).items) == 15
        assert (await ledger.history(status="reserved")).items == []
        assert looked_up == [15]
