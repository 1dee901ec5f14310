"""Random work on an open ledger, repeatable from a seed: facts, claims, settlements, expiries and clock jumps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy.dialects import sqlite

from ledger import Row, SealState, Store, state_digest
from ledger.store.sqlite.store import SqliteStore
from projections import History, SnapshotStore
from projections.snapshots import snapshot_of
from routing import Allowance, AllowanceException, JobRoutingException, Reservation, Routing, Settings

from .small import START, VALIDATOR, Clock, job, miner

T = TypeVar("T")

CLASSES = ("always_on.gpu-24gb", "spin_up-4min.gpu-24gb")
MINERS = ("5Anna", "5Bert", "5Carl", "5Dora")
SETTINGS = Settings(block_expiry_blocks=60, reservation_margin_seconds=30, longest_job_seconds=600)


class Story:
    """Random steps on a ledger. `await story.goes_on(100)` takes a hundred steps, which follow from the seed."""

    def __init__(self, ledger: Allowance, clock: Clock, seed: int) -> None:
        self.ledger = ledger
        self.clock = clock
        self.draw = random.Random(seed)
        self.number = 0
        self.jobs = 0
        self.made: list[int] = []

    async def goes_on(self, steps: int) -> None:
        """Take this many steps. A step that the ledger refuses counts too."""
        if not self.number:
            await self.ledger.record_manifests(1, {hotkey: dict.fromkeys(CLASSES, 2) for hotkey in MINERS})
            for _ in range(8):
                await self.a_block()
        kinds = (
            (self.a_block, 25),
            (self.a_sync, 2),
            (self.a_job, 25),
            (self.a_reservation, 8),
            (self.a_settlement, 22),
            (self.expiries, 1),
        )
        for _ in range(steps):
            await self.one_of(kinds)

    async def one_of(self, kinds: tuple[tuple[object, int], ...]) -> None:
        """Move the clock, seldom backwards, and take a step of one of the kinds, chosen by weight."""
        self.clock.advance(self.draw.choice([0, 0.001, 3, 11, 25]))
        if self.draw.random() < 0.03:
            self.clock.advance(-self.draw.choice([0.5, 40, 200]))
        step = self.draw.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        assert callable(step)
        await step()

    async def a_block(self) -> None:
        """Record a block: usually the next one; sometimes one that leaves or fills a hole."""
        number = self.number + self.draw.choice([1] * 12 + [2, -1, -2])
        if number < 1:
            return
        away = self.draw.choice([None, None, None, *MINERS])
        registered = [miner(hotkey, 8000 + self.draw.randrange(2)) for hotkey in MINERS if hotkey != away]
        stakes = {VALIDATOR: self.draw.choice([1.0, 1.0, 2.5]), "5Other": 1.0}
        created_at = START + timedelta(seconds=12 * number)
        await self.unless_refused(self.ledger.record_block(number, created_at, registered, stakes))
        self.number = max(self.number, number)

    async def a_sync(self) -> None:
        """Record a sync in which some miners offer more or less."""
        offered = {
            hotkey: {name: self.draw.choice([1, 2, 2, 3]) for name in CLASSES}
            for hotkey in MINERS
            if self.draw.random() < 0.9
        }
        block = max(1, self.number + self.draw.randrange(-10, 2))
        await self.unless_refused(self.ledger.record_manifests(block, offered, confirm=True))

    async def a_job(self) -> None:
        """Pick a miner for a job; one job in ten was picked for before."""
        self.jobs += 1
        number = self.jobs if self.draw.random() < 0.9 else self.draw.randrange(1, self.jobs + 1)
        request = job(f"job-{number}", self.draw.choice([1.0, 5.0, 40.0]), self.draw.choice(CLASSES))
        route = await self.unless_refused(Routing(self.ledger).pick_miner_for_job_request(request))
        if route is not None and route.allowance_reservation_id is not None:
            self.made.append(route.allowance_reservation_id)

    async def a_reservation(self) -> None:
        """Reserve blocks without a job."""
        start = max(1, self.number + self.draw.randrange(-40, 5))
        amount_s = self.draw.randrange(1, 60_000) / 1000
        made = await self.unless_refused(
            self.ledger.reserve(self.draw.choice(MINERS), self.draw.choice(CLASSES), amount_s, start)
        )
        if made is not None:
            self.made.append(made.reservation_id)

    async def a_settlement(self) -> None:
        """Spend or release one of the newest reservations, which may be settled already."""
        if self.made:
            settle = self.draw.choice([self.ledger.spend, self.ledger.spend, self.ledger.release])
            await self.unless_refused(settle(self.draw.choice(self.made[-20:])))

    async def expiries(self) -> None:
        """Expire all overdue reservations."""
        await self.ledger.expire_due()

    async def unless_refused(self, call: Awaitable[T]) -> T | None:
        """Return the result of a call, or None if the ledger refuses it."""
        try:
            return await call
        except (AllowanceException, JobRoutingException):
            return None


@contextmanager
def seed_shown(seed: int) -> Iterator[None]:
    """Add the seed to the message of any failure, so that it can be repeated."""
    try:
        yield
    except BaseException as failure:
        failure.add_note(f"again with seed {seed}")
        raise


def store_of(ledger: Allowance) -> Store:
    """Return the store of an open ledger."""
    assert ledger._lifecycle.open_handle is not None
    return ledger._lifecycle.open_handle.store


def history_of(ledger: Allowance) -> History:
    """Return the history projector of an open ledger."""
    assert ledger._lifecycle.open_handle is not None
    return ledger._lifecycle.open_handle.history


async def there(ledger: Allowance, work: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine on the runtime's loop, to which the ledger's connections belong."""

    async def do() -> T:
        return await work()

    assert ledger._lifecycle.open_handle is not None
    return await ledger._lifecycle.open_handle.runtime.run(do())


async def executed(ledger: Allowance, *statements: Any) -> list[tuple[Any, ...]]:
    """Execute statements on the read models, in one transaction; return the rows of the last one as tuples."""

    async def work() -> list[tuple[Any, ...]]:
        async with store_of(ledger).write_derived() as transaction:
            rows: list[tuple[Any, ...]] = []
            for each in statements:
                compiled = each.compile(dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True})
                values = [compiled.params[name] for name in compiled.positiontup]
                rows = await transaction.query(str(compiled), *values)
            return rows

    return await there(ledger, work)


async def events_of(ledger: Allowance) -> list[Row]:
    """Return all stored rows."""

    async def work() -> list[Row]:
        rows: list[Row] = []
        while page := await store_of(ledger).read(rows[-1].position if rows else 0):
            rows += page
        return rows

    return await there(ledger, work)


async def project(ledger: Allowance) -> None:
    """Project the history up to the head of the log."""
    assert ledger._lifecycle.open_handle is not None
    head = (await ledger.head()).position
    await ledger._lifecycle.open_handle.runtime.run(history_of(ledger).project(head))


async def upkeep_done(ledger: Allowance) -> None:
    """Wait until the upkeep under way has found its idle moments and is done."""
    assert ledger._lifecycle.open_handle is not None
    task = ledger._lifecycle.open_handle.upkeep._task
    if task is not None:
        await there(ledger, lambda: asyncio.wait([task]))


async def take_snapshot(ledger: Allowance) -> int:
    """Seal the live state and save a snapshot of it; return its position."""
    snapshot, digest = await ledger._read_state(lambda state, _: (snapshot_of(state), state_digest(state)))
    await ledger.execute(SealState(snapshot.position, digest))
    await there(ledger, lambda: SnapshotStore(store_of(ledger)).save(snapshot))
    return snapshot.position


async def whole_history(ledger: Allowance, limit: int = 1000) -> list[Reservation]:
    """Return every reservation, oldest first, read page by page."""
    items: list[Reservation] = []
    after: str | None = None
    while True:
        page = await ledger.history(newest_first=False, limit=limit, after=after)
        items += page.items
        after = page.next
        if after is None:
            return items


def utc(at_ns: int) -> datetime:
    """Convert nanoseconds since the epoch; a `datetime` shows whole microseconds only."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_ns // 1000)


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each later read of a page of a SQLite log adds the position after which it reads."""
    read_after: list[int] = []
    real = SqliteStore.read

    async def read(self: SqliteStore, after: int, limit: int | None = None) -> list[Row]:
        read_after.append(after)
        return await real(self, after, limit)

    monkeypatch.setattr(SqliteStore, "read", read)
    return read_after
