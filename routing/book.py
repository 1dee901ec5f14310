"""`Allowance`: one validator's ledger, as callers use it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from ledger import (
    STATUSES,
    BlockFact,
    Command,
    ConflictingFact,
    ExpireDue,
    Head,
    Intake,
    InvalidInput,
    LedgerActor,
    LedgerClosed,
    Lookup,
    ManifestsFact,
    Miner,
    ReadOnlyLedger,
    RecordFacts,
    RecordSettings,
    Reservation,
    ReservationNotFound,
    Reserve,
    Runtime,
    Settings,
    Settle,
    Status,
    StorageUnavailable,
    Store,
    amount,
    check_amount,
    current_runtime,
    instant_ns,
    integer,
    job_name,
    name,
    reservation_position,
    seconds,
    store_for,
    stored_reservation,
)
from projections import Availability, Candidate, Filters, History, Page, describe_conflict, schema

R = TypeVar("R")

LONGEST_KEY = 256
MOST_ITEMS = 10_000


class Health(msgspec.Struct, frozen=True):
    """How a ledger is: `projection_lag` counts events that the history model has yet to take."""

    database: str
    schema_version: int
    position: int
    projection_lag: int
    newest_block: int | None
    newest_block_age_seconds: float | None
    reserved: int
    overdue: int


class _Opened:
    """What an open ledger holds on to in this process."""

    def __init__(self, runtime: Runtime, store: Store, actor: LedgerActor[Availability], history: History) -> None:
        self.pid = runtime.pid
        self.runtime = runtime
        self.store = store
        self.actor = actor
        self.history = history

    async def close(self) -> None:
        self.runtime.not_at_exit(self.close)
        await self.actor.close()
        await self.store.close()


_left_to_parents: list[_Opened] = []
"""What a forked child found open: its parent's, never closed here, since closing would touch the parent's locks."""


class Allowance:
    """One validator's ledger in one database.

    Made by `open`, usable as `async with`, or at once: it opens at the first call. Calls may come from any event
    loop and any thread of the process, and from forked children. Amounts are executor-seconds, times aware UTC.

        async with Allowance.open("sqlite:///allowance.db", validator_ss58=HOTKEY) as book:
            reservation = await book.reserve(miner, "always_on.gpu-24gb", 30.0, await book.current_block())
            await book.spend(reservation.reservation_id)
    """

    def __init__(
        self,
        database_url: str,
        validator_ss58: str,
        settings: Settings | None,
        clock_ns: Callable[[], int],
        read_only: bool,
    ) -> None:
        if settings is not None and not isinstance(settings, Settings):
            raise InvalidInput("settings", settings, "Settings or None")
        self._database_url = database_url
        self._validator_ss58 = name(validator_ss58, "validator_ss58")
        self._settings = settings
        self._clock_ns = clock_ns
        self._read_only = read_only
        self._intake = Intake()
        self._opened: _Opened | None = None
        self._opening: Future[_Opened] | None = None
        self._opening_pid = 0
        self._guard = threading.Lock()
        self._closed = False
        store_for(database_url, self._validator_ss58, read_only=read_only)

    @classmethod
    def open(
        cls,
        database_url: str,
        *,
        validator_ss58: str,
        settings: Settings | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        read_only: bool = False,
    ) -> Allowance:
        """The validator's ledger at `sqlite:///path`, `sqlite://` (memory) or `postgresql://…`.

        Creates or upgrades the schema and records explicit `settings` that differ from the recorded ones, unless
        `read_only`. `clock_ns` gives nanoseconds since the epoch. Raises `InvalidInput` here; opening itself, at
        the first call, raises `StorageUnavailable`, `NewerLedger` or, reading only, `LedgerNotFound`.
        """
        return cls(database_url, validator_ss58, settings, clock_ns, read_only)

    async def __aenter__(self) -> Allowance:
        await self._ready()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Allowance]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Finishes the changes under way and lets go of the database."""
        self._closed = True
        opened, self._opened, self._opening = self._opened, None, None
        if opened is not None and opened.pid == os.getpid():
            await opened.runtime.run(opened.close())

    @property
    def validator_ss58(self) -> str:
        """Whose ledger it is."""
        return self._validator_ss58

    async def record_block(
        self,
        number: int,
        created_at: datetime,
        miners: Iterable[Miner],
        stakes: Mapping[str, float],
        *,
        confirm: bool = False,
    ) -> int:
        """Records a block and its metagraph; answers the log position of the fact, the first one for a repeat.

        `created_at` is aware; `stakes` are effective stakes by validator. Raises `ConflictingFact`,
        `ImplausibleFact` (unless `confirm`), `InvalidInput`.
        """
        return (await self.record_facts([BlockFact(number, created_at, miners, stakes)], confirm=confirm))[0]

    async def record_manifests(
        self, block: int, manifests: Mapping[str, Mapping[str, int]], *, confirm: bool = False
    ) -> int:
        """Records a sync of all miners' manifests at a block; answers its position, the first for a repeat.

        `manifests` is `{miner_ss58: {executor_class: executor_count}}`. Raises as `record_block` does.
        """
        return (await self.record_facts([ManifestsFact(block, manifests)], confirm=confirm))[0]

    async def record_facts(self, facts: Sequence[BlockFact | ManifestsFact], *, confirm: bool = False) -> list[int]:
        """Records many facts in one commit, in order; answers their positions.

        A refused fact's error has its index as `fact_index`: those before it are recorded, it and all after are
        not.
        """
        contents, malformed = self._intake.contents(facts)
        positions, refused = await self._change(RecordFacts(contents, confirm))
        if isinstance(refused, ConflictingFact) and not refused.differences:
            opened = await self._ready()
            await opened.runtime.run(describe_conflict(opened.store, refused, contents[refused.fact_index]))
        refusal = refused or malformed
        if refusal is not None:
            raise refusal
        recorded: list[int] = positions
        return recorded

    async def find_miners(self, allowance_seconds: float, executor_class: str, job_start_block: int) -> list[Candidate]:
        """The registered miners with at least the amount for a job that starts at a block, best first.

        Best is the earliest free block, then the largest share of its allowance left, then the most available,
        then the lower hotkey. Never empty: raises `NotEnoughAllowanceException`, or `InvalidInput`.
        """
        amount_ns = amount(allowance_seconds, "allowance_seconds")
        executor_class = name(executor_class, "executor_class")

        def find(state: Availability, now_ns: int) -> list[Candidate]:
            check_amount(amount_ns, state.chain.settings)
            integer(job_start_block, "job_start_block", 1)
            entries = state.candidates(amount_ns, executor_class, job_start_block, now_ns)
            return [entry.candidate() for entry in entries]

        return await self._ask(find)

    async def reserve(
        self,
        miner_ss58: str,
        executor_class: str,
        allowance_seconds: float,
        job_start_block: int,
        *,
        job_uuid: str | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Sets aside the account's free blocks from the earliest on, whole, until they are worth the amount.

        Raises `CannotReserveAllowanceException`, `InvalidInput`, and `IdempotencyConflict` for a key that was used
        for something else. A `job_uuid` holds one reservation at a time: the same request answers with it, another
        raises `JobRequestConflict`, and after a spend `JobAlreadySpent`.
        """
        command = Reserve(
            name(miner_ss58, "miner_ss58"),
            name(executor_class, "executor_class"),
            amount(allowance_seconds, "allowance_seconds"),
            integer(job_start_block, "job_start_block", 1),
            None if job_uuid is None else job_name(job_uuid),
            _key(idempotency_key),
        )
        return await self._reservation(command)

    async def spend(self, reservation_id: int, *, idempotency_key: str | None = None) -> Reservation:
        """Makes a reservation permanent: the job ran.

        Raises `ReservationNotFound` (also as `ReservationAlreadyReleased` or `ReservationExpired`) and
        `ReservationAlreadySpent`.
        """
        return await self._reservation(Settle(_id(reservation_id), "spend", _key(idempotency_key)))

    async def release(self, reservation_id: int, *, idempotency_key: str | None = None) -> Reservation:
        """Gives a reservation's blocks back: the job did not run. Raises as `spend` does."""
        return await self._reservation(Settle(_id(reservation_id), "release", _key(idempotency_key)))

    async def expire_due(self) -> list[Reservation]:
        """Ends every reservation whose due time has passed; answers them by due time."""
        expired: list[Reservation] = await self._change(ExpireDue())
        return expired

    async def reservation(self, reservation_id: int) -> Reservation:
        """The reservation of an id, settled or not. Raises `ReservationNotFound`."""
        lookup = Lookup()
        lookup.positions.add(reservation_position(_id(reservation_id)))
        return await self._stored(lookup, reservation_id)

    async def reservation_for_job(self, job_uuid: str) -> Reservation:
        """The newest reservation of a job. Raises `ReservationNotFound`."""
        lookup = Lookup()
        lookup.jobs.add(job_name(job_uuid))
        return await self._stored(lookup, None, f"job {job_uuid} has no reservation in this ledger")

    async def history(
        self,
        *,
        miner_ss58: str | None = None,
        executor_class: str | None = None,
        job_uuid: str | None = None,
        status: Status | None = None,
        reserved_from: datetime | None = None,
        reserved_until: datetime | None = None,
        block: int | None = None,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = True,
    ) -> Page:
        """A page of reservations that pass all filters, by the time they were made.

        Times are in `[reserved_from, reserved_until)`; `block` keeps those that took this block; `after` is the
        `next` of the page before, and stays good while the log grows. Raises `InvalidInput`.
        """
        if status is not None and status not in STATUSES:
            raise InvalidInput("status", status, f"one of {', '.join(STATUSES)}")
        filters = Filters(
            None if miner_ss58 is None else name(miner_ss58, "miner_ss58"),
            None if executor_class is None else name(executor_class, "executor_class"),
            None if job_uuid is None else job_name(job_uuid),
            status,
            None if reserved_from is None else instant_ns(reserved_from, "reserved_from"),
            None if reserved_until is None else instant_ns(reserved_until, "reserved_until"),
            None if block is None else integer(block, "block", 1),
        )
        integer(limit, "limit", 1, MOST_ITEMS)
        head = (await self._head()).position
        opened = await self._ready()
        return await opened.runtime.run(
            opened.history.page(filters, after=after, limit=limit, newest_first=newest_first, head=head)
        )

    async def current_block(self) -> int | None:
        """The number of the newest block; None where no block is recorded."""
        return await self._ask(lambda state, _: state.chain.blocks.newest or None)

    async def miners(self) -> list[Miner]:
        """The miners registered at the newest block, by hotkey."""
        miners = await self._ask(lambda state, _: state.chain.metagraph.miners)
        return [Miner(*axon, hotkey_ss58=hotkey_ss58) for hotkey_ss58, axon in sorted(miners.items())]

    async def manifests(self) -> dict[str, dict[str, int]]:
        """The newest sync's `{miner_ss58: {executor_class: executor_count}}`, as it was given."""
        manifests = await self._ask(lambda state, _: state.chain.manifests)
        return {miner_ss58: dict(counts) for miner_ss58, counts in manifests.items()}

    async def settings(self) -> Settings:
        """The settings that apply now."""
        return (await self._ask(lambda state, _: state.chain.settings)).to_settings()

    async def health(self) -> Health:
        """How the ledger is. Raises `StorageUnavailable` where the database does not answer."""
        from ledger.tables import SCHEMA_VERSION

        def look(state: Availability, now_ns: int) -> tuple[int, int, int, int, int]:
            newest = state.chain.blocks.newest
            age_ns = now_ns - state.chain.blocks.created_at_ns(newest) if newest else 0
            return state.position, newest, age_ns, len(state.held), len(state.overdue(now_ns))

        position, newest, age_ns, reserved, overdue = await self._ask(look)
        opened = await self._ready()
        lag = await opened.runtime.run(opened.history.lag(position))
        return Health(
            self._database_url.partition("://")[0],
            SCHEMA_VERSION,
            position,
            lag,
            newest or None,
            seconds(age_ns) if newest else None,
            reserved,
            overdue,
        )

    async def head(self) -> Head:
        """The log's position and hash, to be noted elsewhere and verified against later."""
        return await self._head()

    async def counters(self) -> dict[str, int]:
        """What this process has done to the ledger since it was opened: batches, commands, conflicts, …"""
        return (await self._ready()).actor.counters.to_dict()

    async def change(self, command: Command[Availability]) -> Any:
        """Has a command decided and committed; for routers."""
        return await self._change(command)

    async def _reservation(self, command: Command[Availability]) -> Reservation:
        reservation: Reservation = await self._change(command)
        return reservation

    async def _change(self, command: Command[Availability]) -> Any:
        if self._read_only:
            raise ReadOnlyLedger(type(command).__name__)
        opened = self._opened
        if opened is None or opened.pid != os.getpid():
            opened = await self._ready()
        return await opened.actor.change(command)

    async def _ask(self, ask: Callable[[Availability, int], R]) -> R:
        return await (await self._ready()).actor.ask(ask)

    async def _head(self) -> Head:
        return await self._ask(lambda state, _: Head(state.position, state.hash, state.recorded_at_ns))

    async def _stored(self, lookup: Lookup, an_id: int | None, message: str | None = None) -> Reservation:
        opened = await self._ready()
        known = await opened.runtime.run(opened.store.find(lookup))
        reservation = stored_reservation(known, self._validator_ss58)
        if reservation is None or an_id not in (None, reservation.reservation_id):
            raise ReservationNotFound(an_id, message)
        return reservation

    async def _ready(self) -> _Opened:
        opened = self._opened
        if opened is not None and opened.pid == os.getpid():
            return opened
        # Shielded: others may wait for the same opening.
        return await asyncio.shield(asyncio.wrap_future(self._open_once()))

    def _open_once(self) -> Future[_Opened]:
        if self._closed:
            raise LedgerClosed
        if self._opening_pid != os.getpid():
            self._guard = threading.Lock()
            self._opening, self._opening_pid = None, os.getpid()
        with self._guard:
            failed = self._opening is not None and self._opening.done() and self._opening.exception() is not None
            if self._opening is None or failed:
                here = current_runtime()
                self._opening = asyncio.run_coroutine_threadsafe(self._open(here), here.loop)
            return self._opening

    async def _open(self, here: Runtime) -> _Opened:
        if self._opened is not None:
            if self._database_url == "sqlite://":
                raise StorageUnavailable("a ledger in memory does not survive a fork; open one in the child")
            _left_to_parents.append(self._opened)
        store = store_for(self._database_url, self._validator_ss58, read_only=self._read_only)
        try:
            await store.open(None if self._read_only else schema())
            actor = LedgerActor(store, Availability, self._clock_ns, here)
            if not self._read_only:
                settings = None if self._settings is None else self._settings.to_recorded()
                await actor.change(RecordSettings(self._validator_ss58, settings))
        except BaseException:
            await store.close()
            raise
        history = History(store, self._validator_ss58, read_only=self._read_only)
        self._opened = _Opened(here, store, actor, history)
        here.at_exit(self._opened.close)
        return self._opened


def _id(value: object) -> int:
    """A reservation id; what is an integer but no id names no reservation."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput("reservation_id", value, "an integer")
    if not 0 < value < 2**63:
        raise ReservationNotFound(value)
    return value


def _key(value: str | None) -> str | None:
    return None if value is None else name(value, "idempotency_key", LONGEST_KEY)
