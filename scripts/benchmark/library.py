"""A comparison with `eventsourcing`, a general library: appending events like ours, and replaying them.

Its aggregates decide nothing, and the callers keep them in memory, so that a save is one insert. That is the fastest
use of the library. On SQLite it also syncs every commit, by its own default.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from itertools import cycle, islice
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from routing import Allowance

from .figures import Report, interleaved, ratio_at_least
from .prepared import Ledger
from .replaying import fold_rate
from .workspace import Workspace

THREADS = 16
EVENTS_PER_AGGREGATE = 40
"""About as many as one of our accounts has."""
AMOUNT_SECONDS = 24.0


class Account(Aggregate):
    """An account that records reservations and spends without checking them."""

    def __init__(self, miner_ss58: str, executor_class: str) -> None:
        self.miner_ss58 = miner_ss58
        self.executor_class = executor_class
        self.active: dict[str, list[list[int]]] = {}

    @event("Reserved")
    def reserve(
        self, job_uuid: str, amount_ns: int, blocks: list[list[int]], job_start_block: int, expires_at_ns: int
    ) -> None:
        """Record a reservation."""
        self.active[job_uuid] = blocks

    @event("Spent")
    def spend(self, job_uuid: str) -> None:
        """Record a spend."""
        del self.active[job_uuid]


class Accounts(Application[UUID]):
    """Accounts in one database."""

    def new(self) -> Account:
        """Return a new, saved account."""
        account = Account("5DPRFYM52JpipqaNSZawKjw2bRJ4eK5yvDK2Sin6d3NRszNT", "always_on.gpu-24gb")
        self.save(account)
        return account


def reserve(account: Account) -> str:
    """Record an event with the same content as ours; return its job."""
    job_uuid = str(uuid4())
    account.reserve(job_uuid, 123_456_000_000, [[1377, 1404]], 2099, 1_704_123_456_789_000_000)
    return job_uuid


@contextmanager
def accounts(environment: dict[str, str]) -> Iterator[Accounts]:
    """Open the application on a database."""
    with Accounts(env=environment) as application:
        yield application


def sqlite_environment(workspace: Workspace) -> dict[str, str]:
    """Return the library's settings for a new SQLite file."""
    return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(workspace.new_file())}


def postgres_environment(workspace: Workspace) -> dict[str, str]:
    """Return the library's settings for the PostgreSQL server."""
    parts = urlsplit(workspace.server_url())
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path.lstrip("/"),
        "POSTGRES_HOST": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
        "POSTGRES_PORT": str(parts.port or 5432),
        "POSTGRES_USER": parts.username or "postgres",
        "POSTGRES_PASSWORD": parts.password or "trusted",
        "POSTGRES_POOL_SIZE": str(THREADS),
    }


async def on_sqlite(workspace: Workspace, report: Report) -> None:
    """Compare both on SQLite."""
    with accounts(sqlite_environment(workspace)) as application:
        for title, prepared in await workspace.both_logs():
            await _compare_appends(workspace, report, f"SQLite, {title}", prepared, application)
        await _compare_replays(workspace, report, "SQLite", await workspace.long(), application)


async def on_postgres(workspace: Workspace, report: Report) -> None:
    """Compare both on PostgreSQL."""
    import_module("psycopg")
    with accounts(postgres_environment(workspace)) as application:
        for title, prepared in await workspace.both_logs(on_postgres=True):
            await _compare_appends(workspace, report, f"PostgreSQL, {title}", prepared, application)
        await _compare_replays(workspace, report, "PostgreSQL", await workspace.long(on_postgres=True), application)


async def _compare_appends(
    workspace: Workspace, report: Report, where: str, prepared: Ledger, application: Accounts
) -> None:
    sizes = workspace.sizes
    async with prepared.open() as ledger:
        newest = await ledger.current_block() or 1
        streams = cycle(await _accounts_of(ledger, workspace))

        async def ours(appends: int, callers: int) -> float:
            return await _reserve_rate(ledger, list(islice(streams, appends)), newest, callers)

        async def ours_alone() -> float:
            return await ours(sizes.appends, 1)

        async def theirs_alone() -> float:
            return _save_rate(application, sizes.appends, 1)

        async def ours_together() -> float:
            return await ours(sizes.bare_rows, sizes.callers)

        async def theirs_together() -> float:
            return _save_rate(application, sizes.bare_rows, THREADS)

        alone, their_alone, together, their_together = await interleaved(
            sizes.repeat, ours_alone, theirs_alone, ours_together, theirs_together
        )
    report.add(f"appends on {where}, one caller", "1/s", alone, ("eventsourcing", their_alone), ratio_at_least(1.5))
    name = f"appends on {where}, {sizes.callers} callers"
    report.add(name, "1/s", together, (f"eventsourcing, {THREADS} threads", their_together), ratio_at_least(6))


async def _compare_replays(
    workspace: Workspace, report: Report, engine: str, prepared: Ledger, application: Accounts
) -> None:
    sizes = workspace.sizes
    made = _fill(application, sizes.library_events)

    async def our_replay() -> float:
        return await fold_rate(prepared.url)

    async def their_replay() -> float:
        return _replay_rate(application, made)

    replayed, their_replayed = await interleaved(sizes.repeat, our_replay, their_replay)
    report.add(f"rebuilding from {engine}", "events/s", replayed, ("eventsourcing", their_replayed), ratio_at_least(3))


async def _accounts_of(ledger: Allowance, workspace: Workspace) -> list[tuple[str, str]]:
    """Return the accounts with enough allowance for all reservations of the comparison."""
    newest = await ledger.current_block() or 1
    return [
        (candidate.hotkey_ss58, executor_class)
        for executor_class in workspace.classes
        for candidate in await ledger.find_miners(20 * AMOUNT_SECONDS, executor_class, newest)
    ]


async def _reserve_rate(ledger: Allowance, streams: list[tuple[str, str]], newest: int, callers: int) -> float:
    """Return our appends per second: reservations on these accounts, each durable when it returns."""

    async def caller(assigned: list[tuple[str, str]]) -> list[int]:
        return [
            (await ledger.reserve(*stream, AMOUNT_SECONDS, newest, job_uuid=str(uuid4()))).reservation_id
            for stream in assigned
        ]

    started = time.perf_counter()
    made = await asyncio.gather(*(caller(streams[first::callers]) for first in range(callers)))
    seconds = time.perf_counter() - started
    await asyncio.gather(*(ledger.release(reservation_id) for each in made for reservation_id in each))
    return len(streams) / seconds


def _save_rate(application: Accounts, appends: int, threads: int) -> float:
    """Return the library's appends per second: each thread saves events of its own aggregate."""
    own = [application.new() for _ in range(threads)]

    def save(account: Account) -> None:
        for _ in range(appends // threads):
            reserve(account)
            application.save(account)

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(save, own))
        return appends // threads * threads / (time.perf_counter() - started)


def _fill(application: Accounts, events: int) -> list[UUID]:
    """Save aggregates with this many events in total, each with all of its events at once."""
    made = []
    for _ in range(events // EVENTS_PER_AGGREGATE):
        account = application.new()
        for _ in range(EVENTS_PER_AGGREGATE // 2):
            job_uuid = reserve(account)
            account.spend(job_uuid)
        application.save(account)
        made.append(account.id)
    return made


def _replay_rate(application: Accounts, made: list[UUID]) -> float:
    """Return the library's events per second: aggregates are rebuilt from the stored events."""
    started = time.perf_counter()
    events = sum(application.repository.get(each).version for each in made)
    return events / (time.perf_counter() - started)
