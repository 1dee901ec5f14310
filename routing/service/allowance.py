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
    BlockFact,
    Command,
    EarlierExpiry,
    ExpireDue,
    FactValidator,
    Head,
    LedgerWriter,
    Lookup,
    ManifestsFact,
    Miner,
    RecordFacts,
    RecordSettings,
    Reservation,
    Reserve,
    Row,
    Runtime,
    Settings,
    Settle,
    Store,
    current_runtime,
    encode_state,
    found_reservation,
    store_from_url,
)
from ledger.codec import reservation_position
from ledger.domain.reservation import reservation_at
from ledger.errors import (
    AllowanceException,
    ConflictingFact,
    InvalidInput,
    LedgerClosed,
    OutcomeUnknown,
    ReadOnlyLedger,
    StorageUnavailable,
)
from ledger.values import amount, flag, integer, job_name, name, seconds
from projections import Availability, ProgressReport, Snapshot, describe_conflict, schema

from .handle import LedgerHandle
from .past import Past, moment_of
from .queries import Queries, QuerySources, checked_id

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

_left_to_parents: list[LedgerHandle] = []
"""What a forked child found open: its parent's, never closed here, since closing would touch the parent's locks."""


class Allowance(Queries):
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
            raise InvalidInput("clock_ns", clock, "a function that returns nanoseconds since the epoch")
        integer(clock(), "clock_ns", 0)
        self._database_url = database_url
        self._validator_ss58 = name(validator_ss58, "validator_ss58")
        self._settings = settings
        self._clock_ns = clock_ns
        self._read_only = flag(read_only, "read_only")
        self._intake = FactValidator()
        self._handle: LedgerHandle | None = None
        self._opening: Future[LedgerHandle] | None = None
        self._opening_pid = 0
        self._connecting: asyncio.Task[Any] | None = None
        """The opening, as long as it waits for the database."""
        self._closed = False
        store_from_url(database_url, self._validator_ss58, read_only=read_only)

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
                handle = await self._wait_for_handle(opening)
                await handle.runtime.run(handle.close())
        self._handle = None

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
        positions, refused = await self.execute(command)
        if isinstance(refused, ConflictingFact) and not refused.differences:
            handle = await self._ready()
            await handle.runtime.run(describe_conflict(handle.store, refused, contents[refused.fact_index]))
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
        expired: list[Reservation] | EarlierExpiry = await self.execute(ExpireDue(_key(idempotency_key)))
        if not isinstance(expired, EarlierExpiry):
            return expired
        handle = await self._ready()
        return await handle.runtime.run(_earlier_expired(handle.store, *expired, self._validator_ss58))

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
            return state.position, state.hash, newest, age_ns, len(state.active), len(state.overdue(now_ns))

        position, a_hash, newest, age_ns, reserved, overdue = await self._query(look)
        handle = await self._ready()
        lag = await handle.runtime.run(handle.history.lag(position))
        stopped = await handle.runtime.run(handle.history.stopped()) if lag else None
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
        handle = await self._ready()
        return await handle.runtime.run(handle.rebuild(progress))

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
        handle = await self._ready()
        return await handle.runtime.run(
            audit_log(
                handle.store,
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
        from .backup import verify_store

        handle = await self._ready()
        return await handle.runtime.run(verify_store(handle.store, self._validator_ss58, heads, progress))

    async def export(
        self, target: str | os.PathLike[str] | IO[bytes], progress: ProgressReport | None = None
    ) -> ExportReport:
        """Writes the ledger as it stands now, events and all, to a new file or a stream of bytes.

        `routing.restore` and `routing.verify` read it. Changes go on meanwhile. `progress` as for `rebuild`. Raises
        `CorruptLedger`, and `InvalidInput` where the file is there already.
        """
        from .backup import export_store

        handle = await self._ready()
        return await handle.runtime.run(export_store(handle.store, self._validator_ss58, target, progress))

    async def counters(self) -> dict[str, int]:
        """What this process has done to the ledger since it was opened: batches, commands, conflicts, …"""
        return (await self._ready()).writer.counters.to_dict()

    async def _live_state(self) -> Snapshot | None:
        """What this process decides on, as bytes; None where the log is such that it decides on nothing."""
        try:
            return await self._query(lambda state, _: Snapshot(state.position, state.hash, encode_state(state)))
        except AllowanceException:
            return None

    async def _reservation(self, command: Command) -> Reservation:
        reservation: Reservation = await self.execute(command)
        return reservation

    async def execute(self, command: Command) -> Any:
        """Decide a command and commit its events; for routers. Raises `ReadOnlyLedger`."""
        if self._read_only:
            raise ReadOnlyLedger(command.operation)
        handle = self._handle
        if handle is None or handle.pid != os.getpid():
            handle = await self._ready()
        return await handle.writer.execute(command)

    async def _query(self, question: Callable[[Availability, int], R], *, brief: bool = False) -> R:
        return await (await self._ready()).writer.query(question, brief=brief)

    async def _stored(self, reservation_id: int) -> Reservation | None:
        lookup = Lookup()
        lookup.positions.add(reservation_position(reservation_id))
        handle = await self._ready()
        known = await handle.runtime.run(handle.store.find(lookup))
        await handle.runtime.run(handle.store.head())  # refuses what a newer release may have written
        return found_reservation(known, self._validator_ss58)

    async def _sources(self) -> QuerySources:
        handle = await self._ready()
        return QuerySources(handle.runtime, handle.store, handle.history, self._validator_ss58)

    async def _ready(self) -> LedgerHandle:
        handle = self._handle
        if handle is not None and handle.pid == os.getpid():
            return handle
        return await self._wait_for_handle(self._open_once())

    async def _wait_for_handle(self, opening: Future[LedgerHandle]) -> LedgerHandle:
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

    def _open_once(self) -> Future[LedgerHandle]:
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

    async def _open(self, here: Runtime) -> LedgerHandle:
        if self._handle is not None:
            if self._database_url == "sqlite://":
                raise StorageUnavailable("a ledger in memory does not survive a fork; open one in the child")
            _left_to_parents.append(self._handle)
        store = store_from_url(self._database_url, self._validator_ss58, read_only=self._read_only)
        here.add_fork_pause(store.paused_for_fork)
        try:
            self._connecting = asyncio.current_task()
            try:
                await store.open(None if self._read_only else schema)
            finally:
                self._connecting = None
            handle = LedgerHandle(here, store, self._clock_ns, self._validator_ss58, read_only=self._read_only)
            if not self._read_only:
                settings = None if self._settings is None else self._settings.to_recorded()
                await _record_settings(handle.writer, RecordSettings(self._validator_ss58, settings))
        except BaseException:
            here.remove_fork_pause(store.paused_for_fork)
            await store.close()
            raise
        self._handle = handle
        here.add_closer(handle.close)
        return handle


async def _earlier_expired(store: Store, last_position: int, count: int, validator_ss58: str) -> list[Reservation]:
    """The reservations that a sweep ended with as many expiries up to a position, by due time."""
    expiries: list[Row] = []
    while len(expiries) < count:
        page = await store.read(last_position - count + len(expiries))
        expiries += page[: count - len(expiries)]
    lookup = Lookup()
    lookup.positions.update(row.settles for row in expiries if row.settles is not None)
    known = await store.find(lookup)
    ended = (known.rows[row.settles] for row in expiries if row.settles is not None)
    reservations = (reservation_at(known, row, validator_ss58) for row in ended)
    return [reservation for reservation in reservations if reservation is not None]


async def _record_settings(writer: LedgerWriter[Availability], command: RecordSettings) -> None:
    try:
        await writer.execute(command)
    except OutcomeUnknown as unknown:
        # The key would tell of this, and not of what the caller asked for, who has not been heard yet.
        raise StorageUnavailable("the answer was lost while the ledger was opened; open it again") from unknown


def _note_outcome(opening: asyncio.Future[LedgerHandle]) -> None:
    """Else the loop would complain of a failure that nobody waits for any more."""
    if not opening.cancelled():
        opening.exception()


def _key(value: str | None) -> str | None:
    return None if value is None else name(value, "idempotency_key", LONGEST_KEY)
