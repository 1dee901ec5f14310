"""`Allowance`: one validator's ledger, as callers use it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeVar

import msgspec

from ledger import (
    SCHEMA_VERSION,
    AllowanceException,
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
    OutcomeUnknown,
    ReadOnlyLedger,
    RecordFacts,
    RecordSettings,
    Reservation,
    Reserve,
    Runtime,
    Settings,
    Settle,
    StorageUnavailable,
    Sweep,
    amount,
    current_runtime,
    dump,
    flag,
    integer,
    job_name,
    name,
    reservation_position,
    seconds,
    store_for,
    stored_reservation,
    swept_reservations,
)
from projections import Availability, ProgressReport, Taken, describe_conflict, schema

from .opened import Opened
from .past import Past, moment_of
from .questions import Questions, Sources, checked_id

if TYPE_CHECKING:
    from projections import AuditReport, ExportReport, RebuildReport, VerifyReport

R = TypeVar("R")

LONGEST_KEY = 256
MOST_BUCKETS = 10_000


class Health(msgspec.Struct, frozen=True):
    """How a ledger is.

    `projection_lag` counts events that the history model has yet to take; `projection_error` says what keeps it from
    taking the next ones, if anything does. `head`: the position and the hash there, to be noted elsewhere for `verify`.
    """

    database: str
    schema_version: int
    position: int
    head: str
    projection_lag: int
    projection_error: str | None
    newest_block: int | None
    newest_block_age_seconds: float | None
    reserved: int
    overdue: int


_guard = threading.Lock()
"""Held while any ledger of the process begins to open or to close."""


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603 - a forked child must not inherit it as another thread held it
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_guard)

_left_to_parents: list[Opened] = []
"""What a forked child found open: its parent's, never closed here, since closing would touch the parent's locks."""


class Allowance(Questions):
    """One validator's ledger in one database.

    Made by `open`, usable as `async with`, or at once: it opens at the first call. Calls may come from any event
    loop and any thread of the process, and from forked children. Amounts are executor-seconds, times aware UTC.

    Any call may raise `StorageUnavailable`, `LedgerClosed`, `CorruptLedger` and `NewerLedger`, and a change
    `ReadOnlyLedger`, `LedgerOverloaded` and `OutcomeUnknown`; what else it raises, it says itself.

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
        clock: object = clock_ns
        if not callable(clock):
            raise InvalidInput("clock_ns", clock, "a function that gives nanoseconds since the epoch")
        integer(clock(), "clock_ns", 0)
        self._database_url = database_url
        self._validator_ss58 = name(validator_ss58, "validator_ss58")
        self._settings = settings
        self._clock_ns = clock_ns
        self._read_only = flag(read_only, "read_only")
        self._intake = Intake()
        self._opened: Opened | None = None
        self._opening: Future[Opened] | None = None
        self._opening_pid = 0
        self._connecting: asyncio.Task[Any] | None = None
        """The opening, as long as it waits for the database."""
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
        `read_only`. `clock_ns` gives nanoseconds since the epoch, in any thread. Raises `InvalidInput` here; opening
        itself, at the first call, raises `StorageUnavailable`, `NewerLedger` or, reading only, `LedgerNotFound`.
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
        with _guard:
            self._closed = True
            opening = self._opening if self._opening_pid == os.getpid() else None
            self._opening = None
        if opening is not None:
            # A server that does not answer is not waited for.
            current_runtime().loop.call_soon_threadsafe(self._give_up_connecting)
            with suppress(AllowanceException):  # who waited for the opening is told that it failed
                opened = await self._opened_by(opening)
                await opened.runtime.run(opened.close())
        self._opened = None

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
        idempotency_key: str | None = None,
    ) -> int:
        """Records a block and its metagraph; answers the log position of the fact, the first one for a repeat.

        `created_at` is aware; `stakes` are effective stakes by validator. A fact is told by its content, so that a
        repeat needs no key. Raises `ConflictingFact`, `ImplausibleFact` (unless `confirm`), `InvalidInput`, and
        `IdempotencyConflict` for a key that was used for something else.
        """
        fact = BlockFact(number, created_at, miners, stakes)
        return (await self.record_facts([fact], confirm=confirm, idempotency_key=idempotency_key))[0]

    async def record_manifests(
        self,
        block: int,
        manifests: Mapping[str, Mapping[str, int]],
        *,
        confirm: bool = False,
        idempotency_key: str | None = None,
    ) -> int:
        """Records a sync of all miners' manifests at a block; answers its position, the first for a repeat.

        `manifests` is `{miner_ss58: {executor_class: executor_count}}`. Raises as `record_block` does.
        """
        fact = ManifestsFact(block, manifests)
        return (await self.record_facts([fact], confirm=confirm, idempotency_key=idempotency_key))[0]

    async def record_facts(
        self,
        facts: Sequence[BlockFact | ManifestsFact],
        *,
        confirm: bool = False,
        idempotency_key: str | None = None,
    ) -> list[int]:
        """Records many facts in one commit, in order; answers their positions.

        A refused fact's error has its index as `fact_index`: those before it are recorded, it and all after are
        not. The same call with the same key is answered alike, refusal and all, and records no more; one that recorded
        nothing, since all was refused or recorded before, leaves nothing behind under its key.
        """
        contents, malformed = self._intake.contents(facts)
        command = RecordFacts(contents, flag(confirm, "confirm"), _key(idempotency_key))
        positions, refused = await self._change(command)
        if isinstance(refused, ConflictingFact) and not refused.differences:
            opened = await self._ready()
            await opened.runtime.run(describe_conflict(opened.store, refused, contents[refused.fact_index]))
        refusal = refused or malformed
        if refusal is not None:
            raise refusal
        recorded: list[int] = positions
        return recorded

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

        Raises `ReservationNotFound` (also as `ReservationAlreadyReleased` or `ReservationExpired`),
        `ReservationAlreadySpent`, `InvalidInput`, and `IdempotencyConflict` for a key that was used for something else.
        """
        return await self._reservation(Settle(checked_id(reservation_id), "spend", _key(idempotency_key)))

    async def release(self, reservation_id: int, *, idempotency_key: str | None = None) -> Reservation:
        """Gives a reservation's blocks back: the job did not run. Raises as `spend` does."""
        return await self._reservation(Settle(checked_id(reservation_id), "release", _key(idempotency_key)))

    async def expire_due(self, *, idempotency_key: str | None = None) -> list[Reservation]:
        """Ends every reservation whose due time has passed; answers them by due time.

        A key that ended any answers with the same ones again; where nothing was due, nothing stands under the key.
        Raises `IdempotencyConflict` for a key that was used for something else.
        """
        expired: list[Reservation] | Sweep = await self._change(ExpireDue(_key(idempotency_key)))
        if not isinstance(expired, Sweep):
            return expired
        opened = await self._ready()
        return await opened.runtime.run(swept_reservations(opened.store, *expired, self._validator_ss58))

    def at(self, *, position: int | None = None, block: int | None = None, time: datetime | None = None) -> Past:
        """A read-only view that answers the same questions about the past.

        `position`: as of that event, its clock at that event's time. `time`: as of the last event recorded by
        then, the clock at that time. `block`: just before the first event about a higher block. Raises
        `InvalidInput` here, `PositionOutOfRange` at the first question.
        """
        return Past(self._sources, moment_of(position, block, time))

    async def health(self) -> Health:
        """How the ledger is. Raises `StorageUnavailable` where the database does not answer."""

        def look(state: Availability, now_ns: int) -> tuple[int, bytes, int, int, int, int]:
            newest = state.chain.blocks.newest
            age_ns = now_ns - state.chain.blocks.created_at_ns(newest) if newest else 0
            return state.position, state.hash, newest, age_ns, len(state.held), len(state.overdue(now_ns))

        position, a_hash, newest, age_ns, reserved, overdue = await self._ask(look)
        opened = await self._ready()
        lag = await opened.runtime.run(opened.history.lag(position))
        stopped = await opened.runtime.run(opened.history.stopped()) if lag else None
        return Health(
            "sqlite" if self._database_url.startswith("sqlite") else "postgresql",
            SCHEMA_VERSION,
            position,
            f"{position}:{a_hash.hex()}",
            lag,
            None if stopped is None else str(stopped),
            newest or None,
            seconds(age_ns) if newest else None,
            reserved,
            overdue,
        )

    async def rebuild(self, progress: ProgressReport | None = None) -> RebuildReport:
        """Makes the history and the snapshots anew from the log, beside what is there, and puts them in its place.

        Reads and changes go on meanwhile. Answers where what was there was not what the log says. `progress` is
        called with (events read, events there are), on a thread of the library's. Raises `RebuildOvertaken`,
        `ProjectionStopped`, `CorruptLedger`, `ReadOnlyLedger`.
        """
        if self._read_only:
            raise ReadOnlyLedger("rebuild")
        opened = await self._ready()
        return await opened.runtime.run(opened.rebuild(progress))

    async def audit(
        self,
        *,
        until_position: int | None = None,
        usage_buckets: int = 0,
        progress: ProgressReport | None = None,
    ) -> AuditReport:
        """Checks every rule of the ledger again, by replay from nothing, up to a position or the head.

        Works on a damaged log too; changes nothing. Unless `read_only`, the state in memory is compared as well.
        `usage_buckets` asks for `usage` by blocks, in so many buckets at the most. `progress` as for `rebuild`. Raises
        `PositionOutOfRange` and `InvalidInput`.
        """
        from projections import audit_log

        until = None if until_position is None else integer(until_position, "until_position", 0)
        buckets = integer(usage_buckets, "usage_buckets", 0, MOST_BUCKETS)
        live = None if self._read_only else await self._live_state()
        opened = await self._ready()
        return await opened.runtime.run(
            audit_log(
                opened.store,
                self._validator_ss58,
                until,
                progress,
                live=live,
                usage_buckets=buckets,
            )
        )

    async def verify(self, heads: Iterable[Head] = (), progress: ProgressReport | None = None) -> VerifyReport:
        """Checks that every stored event is what was written, and that the log goes through `heads` noted elsewhere.

        Findings stand by position, the first bad one first; `routing.verify` does the same without opening a ledger.
        `progress` as for `rebuild`. Raises `StorageUnavailable`.
        """
        from .carrying import verify_store

        opened = await self._ready()
        return await opened.runtime.run(verify_store(opened.store, self._validator_ss58, heads, progress))

    async def export(
        self, target: str | os.PathLike[str] | IO[bytes], progress: ProgressReport | None = None
    ) -> ExportReport:
        """Writes the ledger as it stands now, events and all, to a new file or a stream of bytes.

        `routing.restore` and `routing.verify` read it. Changes go on meanwhile. `progress` as for `rebuild`. Raises
        `CorruptLedger`, and `InvalidInput` where the file is there already.
        """
        from .carrying import export_store

        opened = await self._ready()
        return await opened.runtime.run(export_store(opened.store, self._validator_ss58, target, progress))

    async def counters(self) -> dict[str, int]:
        """What this process has done to the ledger since it was opened: batches, commands, conflicts, …"""
        return (await self._ready()).actor.counters.to_dict()

    async def change(self, command: Command[Availability]) -> Any:
        """Has a command decided and committed; for routers."""
        return await self._change(command)

    async def _live_state(self) -> Taken | None:
        """What this process decides on, as bytes; None where the log is such that it decides on nothing."""
        try:
            return await self._ask(lambda state, _: Taken(state.position, state.hash, dump(state)))
        except AllowanceException:
            return None

    async def _reservation(self, command: Command[Availability]) -> Reservation:
        reservation: Reservation = await self._change(command)
        return reservation

    async def _change(self, command: Command[Availability]) -> Any:
        if self._read_only:
            raise ReadOnlyLedger(command.operation)
        opened = self._opened
        if opened is None or opened.pid != os.getpid():
            opened = await self._ready()
        return await opened.actor.change(command)

    async def _ask(self, question: Callable[[Availability, int], R], *, brief: bool = False) -> R:
        return await (await self._ready()).actor.ask(question, brief=brief)

    async def _stored(self, reservation_id: int) -> Reservation | None:
        lookup = Lookup()
        lookup.positions.add(reservation_position(reservation_id))
        opened = await self._ready()
        known = await opened.runtime.run(opened.store.find(lookup))
        await opened.runtime.run(opened.store.head())  # refuses what a newer release may have written
        return stored_reservation(known, self._validator_ss58)

    async def _sources(self) -> Sources:
        opened = await self._ready()
        return Sources(opened.runtime, opened.store, opened.history, self._validator_ss58)

    async def _ready(self) -> Opened:
        opened = self._opened
        if opened is not None and opened.pid == os.getpid():
            return opened
        return await self._opened_by(self._open_once())

    async def _opened_by(self, opening: Future[Opened]) -> Opened:
        """Waits for an opening. Shielded: others may wait for the same."""
        waiting = asyncio.wrap_future(opening)
        waiting.add_done_callback(_note_outcome)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if opening.cancelled():
                raise LedgerClosed from None
            raise

    def _give_up_connecting(self) -> None:
        """On the runtime's loop: an opening that has not reached the database ends; one that has is under way."""
        if self._connecting is not None:
            self._connecting.cancel()

    def _open_once(self) -> Future[Opened]:
        with _guard:
            if self._closed:
                raise LedgerClosed
            if self._opening_pid != os.getpid():
                self._opening, self._opening_pid = None, os.getpid()
            failed = self._opening is not None and self._opening.done() and self._opening.exception() is not None
            if self._opening is None or failed:
                here = current_runtime()
                self._opening = asyncio.run_coroutine_threadsafe(self._open(here), here.loop)
            return self._opening

    async def _open(self, here: Runtime) -> Opened:
        if self._opened is not None:
            if self._database_url == "sqlite://":
                raise StorageUnavailable("a ledger in memory does not survive a fork; open one in the child")
            _left_to_parents.append(self._opened)
        store = store_for(self._database_url, self._validator_ss58, read_only=self._read_only)
        here.at_fork(store.parked)
        try:
            self._connecting = asyncio.current_task()
            try:
                await store.open(None if self._read_only else schema)
            finally:
                self._connecting = None
            opened = Opened(here, store, self._clock_ns, self._validator_ss58, read_only=self._read_only)
            if not self._read_only:
                settings = None if self._settings is None else self._settings.to_recorded()
                await _record_settings(opened.actor, RecordSettings(self._validator_ss58, settings))
        except BaseException:
            here.not_at_fork(store.parked)
            await store.close()
            raise
        self._opened = opened
        here.at_exit(opened.close)
        return opened


async def _record_settings(actor: LedgerActor[Availability], command: RecordSettings) -> None:
    try:
        await actor.change(command)
    except OutcomeUnknown as unknown:
        # The key would tell of this, and not of what the caller asked for, who has not been heard yet.
        raise StorageUnavailable("the answer was lost while the ledger was opened; open it again") from unknown


def _note_outcome(opening: asyncio.Future[Opened]) -> None:
    """Else the loop would complain of a failure that nobody waits for any more."""
    if not opening.cancelled():
        opening.exception()


def _key(value: str | None) -> str | None:
    return None if value is None else name(value, "idempotency_key", LONGEST_KEY)
