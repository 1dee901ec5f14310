"""An audit by several processes finds what one alone finds, whoever begins where, and whoever is lost on the way.

`AUDIT_SEED` sets where the borders are drawn from.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest

from ledger import Head, ReservationExpiredEvent, Row, StoredLedger, account_stream, store_for
from projections.audit import process, relay
from projections.audit.helper import Task
from projections.audit.process import Helper
from projections.audit.relay import borders_of
from projections.audit.replay import Replay
from projections.audit.stretch import Assignment, Ending, Part, Stretch
from projections.model import NOWHERE
from routing import Allowance, AuditReport, InvalidInput

from . import logs
from .engines import ENGINES, new_database, statement
from .forged import VALIDATOR as FORGED_VALIDATOR
from .forged import Forged, audited, stored
from .plants import PLANTS, Plant
from .small import GPU, VALIDATOR, Clock
from .stories import SETTINGS, events_of, project, told
from .tampering import Stored, changed
from .test_audit import EventfulStory

SEED = int(os.environ.get("AUDIT_SEED", "1"))


class Beside:
    """A helper without a process of its own; whatever it is given and gives is pickled all the same."""

    ended: ClassVar[list[int]] = []
    """Where those began who came to the end."""

    def __init__(self, task: Task, passed: Callable[[], None]) -> None:
        self.passed = 0
        self.begin = task.begin
        self._tell = passed
        self._task: Task = pickle.loads(pickle.dumps(task))
        self._store = store_for(task.database_url, task.assignment.validator_ss58, read_only=True)
        self._stretch = Stretch(self._store, self._task.assignment, self._note)
        self._beginning = asyncio.create_task(self._begin())

    async def begins(self) -> bytes | None:
        try:
            return await self._beginning
        except Exception:
            return None

    async def audit(self, border: int) -> bytes | None:
        return await self._stretch.audit(border)

    async def part(self) -> Part:
        part: Part = pickle.loads(pickle.dumps(self._stretch.part()))
        return part

    async def end(self) -> tuple[Ending, Part]:
        self.ended.append(self.begin)
        ending: Ending = pickle.loads(pickle.dumps(await self._stretch.end()))
        return ending, await self.part()

    def stop(self) -> None:
        self._beginning.cancel()

    async def gone(self) -> None:
        with suppress(Exception, asyncio.CancelledError):
            await self._beginning
        await self._store.close()

    async def _begin(self) -> bytes | None:
        await self._store.open(None)
        return await self._stretch.follow(self.begin)

    def _note(self, passed: int) -> None:
        self.passed = passed
        self._tell()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Helpers work beside; gives where those began who came to the end."""
    monkeypatch.setattr(relay, "Helper", Beside)
    monkeypatch.setattr(Beside, "ended", [])
    return Beside.ended


@pytest.fixture
def borders(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets where others begin than who starts the audit."""
    return lambda *borders: monkeypatch.setattr(relay, "borders_of", lambda until, processes: list(borders))


def found(report: AuditReport) -> dict[str, Any]:
    """All that a report says but how long it took."""
    fields: dict[str, Any] = msgspec.to_builtins(report)
    del fields["elapsed_seconds"], fields["events_per_second"]
    return fields


def drawn_borders(draw: random.Random, last: int) -> Sequence[int]:
    return sorted(draw.sample(range(1, last), min(draw.choice([1, 1, 2, 3]), last - 1)))


# The same is found


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.rule.value}: {plant.name}")
async def test_a_planted_fault_is_found_as_by_one_alone(
    tmp_path: Path, plant: Plant, borders: Callable[..., None], beside: list[int]
) -> None:
    """With the fault before, at and after the borders. Catches a stretch that is handed over although something was
    found in it, and one that begins with something else than the one before has come to."""
    log = plant.logs()
    plant.make(log)
    draw = random.Random(f"{SEED} {plant.rule.value} {plant.name}")
    alone = await audited(tmp_path, log.rows)
    for _ in range(2):
        chosen = drawn_borders(draw, len(log.rows))
        borders(*chosen)
        together = await audited(tmp_path, log.rows)
        assert found(together) == found(alone), f"borders {chosen}, seed {SEED}"


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
async def test_a_story_that_was_tampered_with_is_found_as_by_one_alone(
    tmp_path: Path, seed: int, borders: Callable[..., None], beside: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was done to the stored rows, with a border anywhere, and with one just before the first fault."""
    monkeypatch.setattr("tests.forged.VALIDATOR", VALIDATOR)
    clock, draw = Clock(), random.Random(f"tampering {seed}")
    with told(seed):
        async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as book:
            await EventfulStory(book, clock, seed).goes_on(150)
            rows = await events_of(book)
        head = StoredLedger(1, VALIDATOR, *logs.head_at(rows[-1]))
        for _ in range(8):
            how, log = changed(Stored(rows, head), draw)
            if how == "the_head_changed":
                continue  # It says then where there is no log to audit.
            moved = {"position": log.head.position, "hash": log.head.hash, "recorded_at_ns": log.head.recorded_at_ns}
            borders()
            try:
                alone = await audited(tmp_path, log.rows, head=moved)
            except UnicodeEncodeError:
                continue  # No such text can be stored.
            chosen = drawn_borders(draw, len(log.rows) - 1)
            first = min((each.position for each in alone.findings), default=0)
            for some in (chosen, [first - 1] if 1 < first < len(log.rows) else []):
                borders(*some)
                together = await audited(tmp_path, log.rows, head=moved)
                assert found(together) == found(alone), f"{how}, borders {some}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_a_story_is_found_honest_and_adds_up_as_by_one_alone(
    tmp_path: Path, seed: int, engine: str, borders: Callable[..., None], beside: list[int]
) -> None:
    """Totals, usage, counts, and how much of the history and which snapshots were compared. The last one to begin comes
    to the end: of an honest log every stretch is handed over. Catches whatever `Replay.follow` makes otherwise."""
    url = await asyncio.to_thread(new_database, engine, tmp_path)
    clock, draw = Clock(), random.Random(f"borders {seed}")
    with told(seed):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as book:
            story = EventfulStory(book, clock, seed)
            await story.goes_on(120)
            await book.rebuild()  # Leaves a snapshot behind.
            await story.goes_on(120)
            await project(book)
            await story.goes_on(10)
            last = (await book.head()).position
            alone = await book.audit(usage_buckets=7)
            for _ in range(12):
                chosen = drawn_borders(draw, last)
                borders(*chosen)
                together = await book.audit(usage_buckets=7)
                assert found(together) == found(alone), f"borders {chosen}"
                assert beside.pop() == chosen[-1]
        assert (alone.findings, alone.live_state, alone.snapshots) == ([], True, 1)
        assert 0 < (alone.history_position or 0) <= last


async def test_nobody_takes_over_where_something_was_found(
    tmp_path: Path, borders: Callable[..., None], beside: list[int]
) -> None:
    """Whatever comes after may be the fault's doing, and what is handed over need not tell of it."""
    log = Forged()
    log.reserve("5Anna", 6, (1, 1), expires_at_ns=log.now_ns)
    fault = log.position
    for number in range(12, 16):
        log.block(number)
    borders(fault - 1)
    assert [each.position for each in (await audited(tmp_path, log.rows)).findings] == [fault]
    assert beside.pop() == fault - 1
    borders(fault + 1)
    assert [each.position for each in (await audited(tmp_path, log.rows)).findings] == [fault]
    assert not beside


async def test_nobody_takes_over_who_begins_with_something_else(
    tmp_path: Path, borders: Callable[..., None], beside: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a hand-over without a look at what it begins with: here it missed that blocks were taken, and would find
    fault with whoever takes others."""
    log = Forged()
    log.reserve("5Anna", 6, (1, 1))
    log.reserve("5Anna", 6, (2, 2))
    log.block(12)
    log.reserve("5Anna", 6, (3, 3))
    follow = Replay.follow

    def follow_but_one(self: Replay, row: Row) -> None:
        follow(self, row)
        if row.stream == account_stream("5Anna", GPU) and row.version == 2:
            self.world.book(row.stream).taken.remove(2, 2)

    borders(log.position - 1)
    assert (await audited(tmp_path, log.rows)).findings == []
    assert beside.pop() == log.position - 1
    monkeypatch.setattr(Replay, "follow", follow_but_one)
    assert (await audited(tmp_path, log.rows)).findings == []
    assert not beside


async def test_nobody_takes_over_where_an_expiry_waits_to_be_explained(
    tmp_path: Path, borders: Callable[..., None], beside: list[int]
) -> None:
    """Which the end of the log leaves for ever. Catches a border that is reached only because the log ends."""
    log = Forged()
    made = [log.reserve("5Anna", 6, (1, 1)), log.reserve("5Anna", 6, (2, 2))]
    log.wait(1000)
    for each in made:
        log.settle(each, ReservationExpiredEvent)
    expected = [(log.position - 1, "expires-what-is-taken"), (log.position, "expires-what-is-taken")]
    for border in range(1, log.position):
        borders(border)
        found_here = [(each.position, each.rule) for each in (await audited(tmp_path, log.rows)).findings]
        assert found_here == expected, f"border {border}"


async def test_what_lies_beyond_the_end_is_found_wherever_pages_end(
    tmp_path: Path, borders: Callable[..., None], beside: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row at a position that is no number comes after all that are. Catches who stops reading at the last number."""
    log = Forged()
    while log.position < 20:
        log.block(log.position)
    for page_rows in (5, 7):
        monkeypatch.setattr("ledger.sqlite.PAGE_ROWS", page_rows)
        rows = [*log.rows, log.rows[-1]._replace(position=cast(int, "x"))]
        reports = []
        for chosen in ((), (3,), (10,), (11, 13)):
            borders(*chosen)
            reports.append(found(await audited(tmp_path, rows, head={"position": 20})))
        assert reports[0]["findings_count"] > 0
        assert all(report == reports[0] for report in reports)


@pytest.mark.parametrize("most", [1, 3, 8])
async def test_the_findings_that_are_listed_are_those_of_the_lowest_positions(
    tmp_path: Path, most: int, borders: Callable[..., None], beside: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, and whoever found them. Catches a list of those that were found first."""
    monkeypatch.setattr("projections.rules.MOST_FINDINGS", 1000)
    url = new_database("sqlite", tmp_path)
    await a_story(url)
    statement(url, "UPDATE allowance_reservations SET settled_at_ns = settled_at_ns + 1, amount_ns = amount_ns + 1")
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        borders()
        everything = (await book.audit()).findings
        monkeypatch.setattr("projections.rules.MOST_FINDINGS", most)
        draw = random.Random(SEED)
        for chosen in ((), *(drawn_borders(draw, 100) for _ in range(3))):
            borders(*chosen)
            report = await book.audit()
            assert report.findings == everything[:most], f"borders {chosen}"
            assert report.findings_count == len(everything) > 8


@pytest.mark.sqlalchemy
async def test_a_damaged_history_is_found_as_by_one_alone(
    tmp_path: Path, borders: Callable[..., None], beside: list[int]
) -> None:
    """Lines that tell otherwise of beginnings, of ends on either side of a border, of blocks; that lack, that are too
    many. Catches ends that are not matched across borders, and blocks that are not added up."""
    url = new_database("sqlite", tmp_path)
    clock, draw = Clock(), random.Random(f"damage {SEED}")
    with told(SEED):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as book:
            await EventfulStory(book, clock, SEED).goes_on(250)
            await project(book)
            last = (await book.head()).position
            lines = [row.position for row in await events_of(book) if b"allowance-reserved" in row.payload]
        damaged: list[int] = []
        for damage in (
            "UPDATE allowance_reservations SET amount_ns = amount_ns + 1 WHERE position = {}",
            "UPDATE allowance_reservations SET settled_at_ns = settled_at_ns + 1 WHERE position = {}",
            "UPDATE allowance_reservations SET status = 'spent', settled_position = 9, settled_at_ns = 9"
            " WHERE position = {} AND status <> 'spent'",
            "UPDATE allowance_reservations SET status = 'reserved', settled_position = NULL, settled_at_ns = NULL"
            " WHERE position = {}",
            "UPDATE allowance_reserved_blocks SET last_block = last_block + 1 WHERE position = {}",
            "DELETE FROM allowance_reservations WHERE position = {}",
        ):
            statement(url, damage.format(draw.choice(lines)))
            async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
                borders()
                alone = await book.audit()
                for _ in range(5):
                    chosen = drawn_borders(draw, last)
                    borders(*chosen)
                    assert found(await book.audit()) == found(alone), f"{damage}, borders {chosen}"
                    assert beside.pop() == chosen[-1]
                damaged.append(len(alone.findings))
        assert damaged == sorted(set(damaged)), "each finds more than the one before"


# Processes


class Started(list[Helper]):
    """The processes that were started, and the place of one that is killed before it can say anything."""

    doomed: int | None = None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The processes that were started; as many are worth it as are asked for."""
    helpers = Started()

    class Noted(Helper):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            if len(helpers) == helpers.doomed:
                self._process.kill()
            helpers.append(self)

    monkeypatch.setattr(relay, "Helper", Noted)
    monkeypatch.setattr(relay, "LEAST_EVENTS", 1)
    return helpers


async def a_story(url: str, steps: int = 200) -> None:
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as book:
        await EventfulStory(book, clock, SEED).goes_on(steps)
        await project(book)


@pytest.mark.parametrize("engine", ENGINES)
async def test_processes_find_what_one_alone_finds(
    tmp_path: Path, engine: str, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds the database by its URL, which nobody sees who looks at how the process was started; none is left
    behind. Progress only grows, and comes to the end."""
    url = await asyncio.to_thread(new_database, engine, tmp_path)
    await a_story(url)
    told_progress: list[tuple[int, int]] = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "select.py").write_text("raise RuntimeError('imported from where somebody happened to be')")
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        alone = await book.audit(usage_buckets=5)
        assert not started
        together = await book.audit(
            usage_buckets=5, processes=3, progress=lambda done, of: told_progress.append((done, of))
        )
    assert found(together) == found(alone)
    borders = [helper.begin for helper in started]
    assert borders == borders_of(alone.position, 3)
    assert all(helper._process.returncode is not None for helper in started)
    # A border that falls among the expiries of a sweep is moved to its end.
    assert 0 <= alone.position - borders[0] - sum(helper.passed for helper in started) < 20
    assert all(url not in str(helper._process.args) for helper in started)
    assert told_progress == sorted(set(told_progress))
    assert told_progress[-1] == (alone.position, alone.position)


async def test_a_ledger_in_memory_is_audited_alone(started: Started) -> None:
    """Nobody else can open it."""
    clock = Clock()
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as book:
        await EventfulStory(book, clock, SEED).goes_on(60)
        assert (await book.audit(processes=4)).findings == []
    assert not started


async def test_a_short_log_is_not_worth_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "Helper", None)  # None can be started.
    url = await stored(tmp_path, Forged().rows)
    async with Allowance.open(url, validator_ss58=FORGED_VALIDATOR, read_only=True) as book:
        assert (await book.audit(processes=64)).findings == []


async def test_who_loses_the_next_one_goes_on_to_the_end(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a process that is not told that its stretch has become longer."""
    url = new_database("sqlite", tmp_path)
    await a_story(url)
    ends = Helper.end
    came_to_the_end: list[Helper] = []

    async def noted(self: Helper) -> tuple[Ending, Part]:
        came_to_the_end.append(self)
        return await ends(self)

    monkeypatch.setattr(Helper, "end", noted)
    started.doomed = 1
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        alone = await book.audit()
        assert found(await book.audit(processes=3)) == found(alone)
    assert came_to_the_end == [started[0]]


@pytest.mark.parametrize("lost", ["at once", "while it follows", "as the one who audits", "at the end"])
async def test_what_is_found_is_the_same_where_a_process_is_lost(
    tmp_path: Path, lost: str, started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It never starts, or it is killed: who was before it goes on, or the audit begins anew, alone, and says so."""
    url = new_database("sqlite", tmp_path)
    await a_story(url)
    audits, ends = Helper.audit, Helper.end

    async def killed_as_the_one_who_audits(self: Helper, border: int) -> bytes | None:
        self._process.kill()
        self._process.wait()
        await audits(self, border)  # What it said before it was killed counts.
        return await audits(self, border - 1)

    async def killed_at_the_end(self: Helper) -> tuple[Ending, Part]:
        self._process.kill()
        return await ends(self)

    if lost == "at once":
        monkeypatch.setattr(process, "_PROGRAM", "raise SystemExit(3)")
    elif lost == "while it follows":
        started.doomed = 0
    elif lost == "as the one who audits":
        monkeypatch.setattr(Helper, "audit", killed_as_the_one_who_audits)
    else:
        monkeypatch.setattr(Helper, "end", killed_at_the_end)
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        alone = await book.audit()
        assert found(await book.audit(processes=2)) == found(alone)
    assert len(started) == 1
    assert started[0]._process.returncode not in (None, 0)
    assert ("begins anew, alone" in caplog.text) == (lost in ("as the one who audits", "at the end"))


async def test_a_cancelled_audit_leaves_no_process(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches helpers that are stopped only where the audit comes to its end."""
    url = new_database("sqlite", tmp_path)
    await a_story(url)
    monkeypatch.setattr(process, "_PROGRAM", "import time; time.sleep(600)")
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def note(done: int, of: int) -> None:
            loop.call_soon_threadsafe(begun.set)

        task = asyncio.create_task(book.audit(processes=2, progress=note))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Who cancels is let go at once; the process ends a little later, or never.
        await asyncio.to_thread(started[0]._listener.join)
    assert [helper._process.returncode for helper in started] == [-9]


def test_a_helper_ends_with_who_started_it(tmp_path: Path) -> None:
    """Catches one that waits for ever to be told what to do next: a fork of who started it may hold its input open."""
    url = new_database("sqlite", tmp_path)
    asyncio.run(a_story(url, 60))
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {process._PROGRAM!r}, '1']).wait()"
    # Both pipes stay open here, as in a fork.
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        assignment = Assignment(VALIDATOR, Head(50), 50, [], NOWHERE)
        pickle.dump(Task(url, assignment, 20, 40), starter.stdin)
        starter.stdin.flush()
        while pickle.load(starter.stdout)[0] != "reached":
            pass
        starter.kill()
        with pytest.raises(EOFError):  # Which tells that the helper has ended, as only it has the other end by then.
            pickle.load(starter.stdout)


def test_borders_leave_nobody_too_little() -> None:
    """Each stretch is shorter than the one before, by what it costs to follow the log up to it, and worth a process."""
    for until in (0, 1, 24_999, 50_000, 100_000, 10**6, 10**7):
        for processes in (1, 2, 3, 8, 40, 64):
            chosen = [0, *borders_of(until, processes), until]
            lengths = [after - before for before, after in pairwise(chosen)]
            assert len(lengths) <= processes
            assert lengths == sorted(lengths, reverse=True)
            assert len(lengths) == 1 or lengths[-1] >= relay.LEAST_EVENTS
    assert borders_of(100_000, 2) == [58_823]
    assert len(borders_of(10**6, 64)) >= 4


async def test_something_that_prints_is_not_in_the_way(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what a site has imported at every start may. Catches answers on standard output."""
    url = new_database("sqlite", tmp_path)
    await a_story(url, 60)
    monkeypatch.setattr(process, "_PROGRAM", f"print('site loaded', flush=True); {process._PROGRAM}")
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        alone = await book.audit()
        assert found(await book.audit(processes=2)) == found(alone)
    assert started[0].passed


async def test_what_cannot_be_understood_counts_as_lost(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a listener that is gone without a word, for whom the audit waits for ever."""
    url = new_database("sqlite", tmp_path)
    await a_story(url, 60)
    monkeypatch.setattr(
        process, "_PROGRAM", "import os, sys, time; os.write(int(sys.argv[1]), b'what?'); time.sleep(600)"
    )
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        alone = await book.audit()
        assert found(await book.audit(processes=2)) == found(alone)
    assert not started[0].passed


@pytest.mark.parametrize("startable", [0, 1])
async def test_where_no_more_can_be_started_those_there_are_audit(
    tmp_path: Path, startable: int, started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of the system's is no finding. Catches a helper that stops at the border of one that never came."""
    url = new_database("sqlite", tmp_path)
    await a_story(url)
    popen = subprocess.Popen

    def refuse(*given: Any, **options: Any) -> Any:
        if len(started) == startable:
            raise BlockingIOError("no more processes")
        return popen(*given, **options)

    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as book:
        alone = await book.audit()
        monkeypatch.setattr(subprocess, "Popen", refuse)
        assert found(await book.audit(processes=4)) == found(alone)
    assert len(started) == startable
    assert f"no more than {startable} processes" in caplog.text


async def test_a_relative_path_names_the_same_file_from_anywhere(
    tmp_path: Path, beside: list[int], borders: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper is told the path as it was when the ledger was named. Catches one that opens whatever has that name
    where the process has gone since."""
    monkeypatch.chdir(tmp_path)
    await a_story("sqlite:///ledger.db")
    told_urls: list[str] = []

    class Noted(Beside):
        def __init__(self, task: Task, passed: Callable[[], None]) -> None:
            told_urls.append(task.database_url)
            super().__init__(task, passed)

    monkeypatch.setattr(relay, "Helper", Noted)
    borders(20)
    async with Allowance.open("sqlite:///ledger.db", validator_ss58=VALIDATOR, read_only=True) as book:
        await book.audit()
    assert told_urls == [f"sqlite:///{tmp_path}/ledger.db"]


@pytest.mark.parametrize("processes", [0, -1, 65, True, 2.0, "2", None])
async def test_a_number_of_processes_that_cannot_be_is_refused(processes: Any, started: Started) -> None:
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR) as book:
        with pytest.raises(InvalidInput, match="processes: ") as refused:
            await book.audit(processes=processes)
    assert refused.value.field == "processes"


async def test_processes_are_ended_however_often_the_audit_is_cancelled(
    tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches processes that are ended one after the other: who is cancelled meanwhile leaves the rest."""
    url = new_database("sqlite", tmp_path)
    await a_story(url)
    monkeypatch.setattr(process, "_PROGRAM", "import time; time.sleep(600)")
    async with logs.opened(url, VALIDATOR, read_only=True) as store:
        head = await store.head()
        assignment = Assignment(VALIDATOR, head, head.position, [], NOWHERE)
        begun = asyncio.Event()
        task = asyncio.create_task(relay.audited(store, assignment, lambda *_: begun.set(), url, 4))
        await begun.wait()
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        assert len(started) == 3
        for helper in started:
            await helper.gone()
    assert [helper._process.returncode for helper in started] == [-9, -9, -9]
