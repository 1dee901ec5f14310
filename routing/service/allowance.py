"""`Allowance`: one validator's ledger, as callers use it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

from ledger import (
    BlockFact,
    ChangeSettings,
    Command,
    EarlierExpiry,
    ExpireDue,
    FactValidator,
    Head,
    Lookup,
    ManifestsFact,
    MetagraphNeeded,
    Miner,
    OffersNeeded,
    RecordFacts,
    Reservation,
    Reserve,
    Settings,
    SettingsChange,
    Settle,
    WithdrawBlock,
    WithdrawManifests,
    encode_state,
    found_reservation,
)
from ledger.codec import reservation_position
from ledger.errors import (
    AllowanceException,
    BlockInUse,
    ClockUnusable,
    ConflictingFact,
    InvalidInput,
    ReadOnlyLedger,
    StorageUnavailable,
)
from ledger.values import LARGEST_INTEGER, amount, flag, integer, job_name, name
from projections import (
    Availability,
    ProgressReport,
    Snapshot,
    describe_conflict,
    metagraph_to_return_to,
    offers_without,
)
from routing.pick import JobRoute
from routing.stored_rows import reservations_of_expire_due

from .events import POLL_SECONDS, Cursor, StoredEvent
from .health import Health, health_of
from .imports import ImportCalls
from .lifecycle import Lifecycle
from .miner_facts import LONGEST_REASON, checked_key
from .operations import begin, note_ended, note_refused
from .past import AsOf, Past
from .queries import MOST_ITEMS, checked_id
from .seams import REAL, Seams
from .settings_changes import log_change

if TYPE_CHECKING:
    from projections import AuditReport, ExportReport, RebuildReport, VerifyReport

R = TypeVar("R")

log: logging.Logger = logging.getLogger("allowance.ledger")

MOST_PREPARATIONS = 10
"""How often a withdrawal is prepared anew because other facts or settings were recorded meanwhile."""
MOST_BUCKETS = 10_000


class Allowance(ImportCalls):
    """One validator's ledger in one database.

    Create it with `open`. Use it with `async with`, or directly: the first call opens it. Calls may come from any
    event loop and any thread of the process, and from forked children, except that a ledger in memory does not survive
    a fork. Amounts are executor-seconds; times are aware
    `datetime`s, in UTC when returned.

    Any call may raise `StorageUnavailable`, `LedgerClosed`, `CorruptLedger`, `NewerLedger` or `ClockUnusable`; any
    change may also raise `ReadOnlyLedger`, `LedgerOverloaded` or `OutcomeUnknown`. Each method lists the other errors
    that it raises.

        async with Allowance.open("sqlite:///allowance.db", validator_ss58=HOTKEY) as ledger:
            reservation = await ledger.reserve(miner, "always_on.gpu-24gb", 30.0, await ledger.current_block())
            await ledger.spend(reservation.reservation_id)
    """

    def __init__(
        self,
        database_url: str,
        validator_ss58: str,
        settings: Settings | None,
        clock_ns: Callable[[], int],
        read_only: bool,
        environment_settings: Mapping[str, Any] | None = None,
        seams: Seams = REAL,
    ) -> None:
        """Use `open`, except for these: `environment_settings` are the fields of `Settings` that the environment names.

        Simulations pass their own `seams`.
        """
        lifecycle = Lifecycle(
            database_url,
            validator_ss58,
            settings,
            clock_ns,
            read_only=read_only,
            environment_settings=environment_settings,
            seams=seams,
        )
        super().__init__(lifecycle)
        self._read_only = read_only
        self._fact_validator = FactValidator()

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
        """Return the validator's ledger at `sqlite:///path`, `sqlite://` (in memory) or `postgresql://…`.

        Opening creates or upgrades the schema, and records explicit `settings` that differ from the recorded ones, with
        a warning in the log; `read_only` does neither. `clock_ns` returns nanoseconds since the epoch and is called
        from any thread; each reading is validated. Raises `InvalidInput` here. The first call opens the ledger, and
        raises `StorageUnavailable`, `NewerLedger`, or, if read-only, `LedgerNotFound`.
        """
        return cls(database_url, validator_ss58, settings, clock_ns, read_only)

    async def __aenter__(self) -> Allowance:
        await self._lifecycle.handle()
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Allowance]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Finish the changes under way and close the database; later calls raise `LedgerClosed`."""
        await self._lifecycle.close()

    async def record_block(
        self,
        number: int,
        created_at: datetime,
        miners: Iterable[Miner],
        stakes: Mapping[str, float],
        *,
        block_hash: str | None = None,
        confirm: bool = False,
        idempotency_key: str | None = None,
    ) -> int:
        """Record a block and its metagraph; return the log position of the fact, the first position if repeated.

        `created_at` is aware; `stakes` are the effective stakes by validator. `block_hash` is the chain's hash of the
        block, 64 hexadecimal digits with or without `0x`; it is part of the tie-break's seed. A repeat may leave it out
        or add it, which changes nothing: a recorded block never gains a hash. Repeating a fact needs no key, since its
        content identifies it. Raises `ConflictingFact`, `ImplausibleFact` (unless `confirm`), `InvalidInput`, and
        `IdempotencyConflict` if the key was used for another request.
        """
        fact = BlockFact(number, created_at, miners, stakes, block_hash)
        return (await self.record_facts([fact], confirm=confirm, idempotency_key=idempotency_key))[0]

    async def record_manifests(
        self,
        block: int,
        manifests: Mapping[str, Mapping[str, int]],
        *,
        confirm: bool = False,
        idempotency_key: str | None = None,
    ) -> int:
        """Record a sync of miners' manifests at a block; return its log position, the first one if repeated.

        `manifests` is `{miner_ss58: {executor_class: executor_count}}`. The sync covers the miners that it names, and
        those registered at the newest recorded block at or below; others keep their counts. Raises the same errors as
        `record_block`.
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
        """Record many facts in order and in one commit; return their log positions.

        If a fact is refused or malformed, the facts before it are recorded, and neither it nor any after it is; the
        error's `fact_index` is its index. Repeating the call with the same key records nothing more, and returns or
        raises the same. A call that recorded nothing, because every fact before the first refusal was known, does not
        store its key. Raises the same errors as `record_block`.
        """
        contents, malformed = self._fact_validator.contents(facts)
        command = RecordFacts(contents, flag(confirm, "confirm"), checked_key(idempotency_key))
        positions, refused = await self.execute(command)
        if isinstance(refused, ConflictingFact) and not refused.differences:
            # The state keeps only digests of older facts. The log is read to name the differences, after the commit,
            # so that the other callers of the batch do not wait for it.
            # The refusal stands if the log cannot be read now: `StorageUnavailable` would tell that nothing was done,
            # but the facts before the refused one are recorded.
            with suppress(StorageUnavailable):
                handle = await self._lifecycle.handle()
                await handle.runtime.run(describe_conflict(handle.store, refused, contents[refused.fact_index]))
        refusal = refused or malformed
        if refusal is not None:
            raise refusal
        recorded: list[int] = positions
        return recorded

    async def withdraw_block(self, number: int, reason: str, *, idempotency_key: str | None = None) -> int:
        """Withdraw a block that was recorded by mistake; return the position of the correction.

        From there on the block counts as never recorded, and another one may be recorded in its place; the same content
        only with `confirm`. It and the block below it are no longer finalized. If the block is withdrawn already, the
        position is that of the first correction. Raises `FactNotRecorded`, `BlockInUse` while a reserved or spent
        reservation holds one of the two blocks, `InvalidInput`, and `IdempotencyConflict` if the key was used for
        another request. A call that appends nothing does not store its key.
        """
        number = integer(number, "number", 1)
        command = WithdrawBlock(number, name(reason, "reason", LONGEST_REASON), checked_key(idempotency_key))
        try:
            return await self._withdraw(command)
        except BlockInUse as refused:
            # The state has the active reservations only; the history has the spent ones too.
            holders = {each for block in (number - 1, number) async for each in self._holders(block)}
            raise BlockInUse(number, sorted(holders.union(refused.reservation_ids))) from None

    async def withdraw_manifests(self, block: int, reason: str, *, idempotency_key: str | None = None) -> int:
        """Withdraw a manifest sync that was recorded by mistake; return the position of the correction.

        From there on it counts as never recorded for what it invalidated, and for blocks finalized later; finalized
        blocks keep their amounts. Raises the same errors as `withdraw_block`, but never `BlockInUse`.
        """
        block = integer(block, "block", 1)
        reason = name(reason, "reason", LONGEST_REASON)
        return await self._withdraw(WithdrawManifests(block, reason, checked_key(idempotency_key)))

    async def reserve(
        self,
        miner_ss58: str,
        executor_class: str,
        allowance_seconds: float,
        job_start_block: int,
        *,
        expected_version: int | None = None,
        job_uuid: str | UUID | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Reserve whole free blocks of the account, earliest first, until they are worth at least the amount.

        `expected_version` is the `stream_version` of the `Candidate` that was chosen, 0 for an account without any
        event. If the account's stream has moved since, `StreamVersionConflict` is raised and nothing is recorded; look
        again with `find_miners`. It is not part of the content that a key identifies.

        A job has at most one active reservation: the same request with its `job_uuid` returns that one, a different
        request raises `JobRequestConflict`, and any request after a spend raises `JobAlreadySpent`. Raises
        `CannotReserveAllowanceException`, `InvalidInput`, and `IdempotencyConflict` if the key was used for another
        request. Checked in this order: key, the job's own reservation, version, allowance.
        """
        command = Reserve(
            name(miner_ss58, "miner_ss58"),
            name(executor_class, "executor_class"),
            amount(allowance_seconds, "allowance_seconds"),
            integer(job_start_block, "job_start_block", 1),
            None if job_uuid is None else job_name(job_uuid),
            checked_key(idempotency_key),
            None if expected_version is None else integer(expected_version, "expected_version", 0),
        )
        return await self._changed_reservation(command)

    async def spend(self, reservation_id: int, *, idempotency_key: str | None = None) -> Reservation:
        """Spend an active reservation for good: the job ran.

        Raises `ReservationNotFound` (or its subclasses `ReservationAlreadyReleased` and `ReservationExpired`),
        `ReservationAlreadySpent`, `InvalidInput`, and `IdempotencyConflict` if the key was used for another request.
        """
        command = Settle(checked_id(reservation_id), "spend", checked_key(idempotency_key))
        return await self._changed_reservation(command)

    async def release(self, reservation_id: int, *, idempotency_key: str | None = None) -> Reservation:
        """Release an active reservation and free its blocks: the job did not run.

        Raises the same errors as `spend`.
        """
        command = Settle(checked_id(reservation_id), "release", checked_key(idempotency_key))
        return await self._changed_reservation(command)

    async def settle(
        self, route: JobRoute, how: Literal["spend", "release"], *, idempotency_key: str | None = None
    ) -> Reservation | None:
        """Settle the reservation of a route: `"spend"` it because the job ran, or `"release"` it because it did not.

        Returns None for a route to a debug or trusted miner, which has no reservation. Raises the same errors as
        `spend`.

            route = await router.pick_miner_for_job_request(request)
            await ledger.settle(route, "spend" if await run_job(route.miner) else "release")
        """
        if not isinstance(route, JobRoute):
            raise InvalidInput("route", route, "a JobRoute")
        if how not in ("spend", "release"):
            raise InvalidInput("how", how, "spend or release")
        if route.allowance_reservation_id is None:
            return None
        settle = self.spend if how == "spend" else self.release
        return await settle(route.allowance_reservation_id, idempotency_key=idempotency_key)

    async def expire_due(self, *, idempotency_key: str | None = None) -> list[Reservation]:
        """Expire every overdue reservation; return them by due time.

        Repeating the call with the same key returns the same reservations. A call that expired none does not store
        its key. Raises `IdempotencyConflict` if the key was used for another request, and `CorruptLedger` if the rows
        of the repeated call are missing.
        """
        expired: list[Reservation] | EarlierExpiry = await self.execute(ExpireDue(checked_key(idempotency_key)))
        if not isinstance(expired, EarlierExpiry):
            return expired
        handle = await self._lifecycle.handle()
        return await handle.runtime.run(reservations_of_expire_due(handle.store, expired, handle.validator_ss58))

    async def change_settings(self, /, *, idempotency_key: str | None = None, **named: Any) -> Settings:
        """Change the named fields of the recorded settings, and return the settings; the other fields stay.

            await ledger.change_settings(block_expiry_blocks=500, allowance_multiplier="1.5")

        The settings apply to what is finalized and claimed later. If nothing differs, nothing is recorded, and the key
        is not stored. Raises
        `InvalidInput` for a field that does not exist or a value out of its range, and `IdempotencyConflict` if the key
        was used for another request.
        """
        change: SettingsChange = await self.execute(ChangeSettings(named, checked_key(idempotency_key)))
        log_change(change, logging.INFO, "change_settings")
        return change.after.to_settings()

    async def execute(self, command: Command) -> Any:
        """Decide a command and commit its events; return its result. For routers. Raises `ReadOnlyLedger`."""
        began_ns, call = begin(), None
        try:
            if self._read_only:
                raise ReadOnlyLedger(command.operation)
            # Every pick passes here, so the usual case, an open ledger, is checked without a further coroutine. A
            # forked child sees its parent's handle, hence the process id.
            handle = self._lifecycle.open_handle
            if handle is None or handle.pid != os.getpid():
                handle = await self._lifecycle.handle()
            call = handle.writer.submit(command)
            result = await call.future
        except BaseException as error:
            note_refused(command, error, began_ns, call, self._lifecycle)
            raise
        if began_ns is not None:
            note_ended(command, result, began_ns, call, self._lifecycle)
        return result

    def at(self, *, position: int | None = None, block: int | None = None, time: datetime | None = None) -> Past:
        """Return a read-only view of the ledger as it was, with the same queries.

        Exactly one argument is needed. `position`: after that event, with the clock that decided it.
        `time`: after the last event recorded by then, with the clock at that time. `block`: just before the first
        event about a higher block, facts aside that were withdrawn later. Raises `InvalidInput` here, and
        `PositionOutOfRange` at the first query.
        """
        return Past(self._lifecycle, AsOf.checked(position, block, time))

    async def follow(self, *, after: int = 0) -> AsyncIterator[StoredEvent]:
        """Yield the events after a position in order, and then each new one as the log grows; it never ends by itself.

        At the end of the log it looks again every 0.2 s. What other processes append is included. Resume with the last
        position seen, also after an error: nothing is skipped, and nothing comes twice. Raises the same errors as
        `events`: `LogWentBack` if the stored log no longer has what was yielded, because a backup was restored or a
        standby was promoted that lacked it.
        """
        cursor = Cursor(integer(after, "after", 0))
        await self._on_store(cursor.start)
        while True:
            if not await self._on_store(cursor.has_more):
                await asyncio.sleep(POLL_SECONDS)
                continue
            for stored in await self._on_store(lambda store: cursor.read(store, LARGEST_INTEGER)):
                yield stored

    @property
    def database_url(self) -> str:
        """The URL with which the ledger was opened. It may hold a password; `health` has it without."""
        return self._lifecycle.database_url

    async def health(self) -> Health:
        """Return the health of the ledger. Raises `StorageUnavailable` if the database does not respond."""
        return await health_of(await self._lifecycle.handle(), self._lifecycle.database_url)

    async def counters(self) -> dict[str, int]:
        """Return what this process has counted since it opened the ledger: batches, commands, conflicts, …"""
        return (await self._lifecycle.handle()).writer.counters.to_dict()

    async def audit(
        self,
        *,
        until_position: int | None = None,
        from_seal: int | None = None,
        usage_buckets: int = 0,
        strict: bool = False,
        progress: ProgressReport | None = None,
    ) -> AuditReport:
        """Check every rule of the ledger by replaying the log from the beginning, up to a position or to the head.

        The audit also works on a damaged log, and changes nothing. Unless `read_only`, it also checks the state in
        memory. `usage_buckets` asks for `usage` by blocks, in at most that many buckets. `progress` is called with
        (events read, events in total) on a thread of the library. `from_seal` begins at a sealed position instead of
        the first event; the report's `not_proved` says what that leaves open. `strict` makes each reservation whose
        choice of a miner is not proved a finding: those that were made by hand or imported, and those of older releases
        that name no position of their choice. Raises `PositionOutOfRange`,
        `InvalidInput`, and `SealConflict` if the state at `from_seal` is not the sealed one.
        """
        # Imported here, since few processes ever audit and every one waits for its imports.
        from projections import audit_log

        until = None if until_position is None else integer(until_position, "until_position", 0)
        start = 0 if from_seal is None else integer(from_seal, "from_seal", 1)
        buckets = integer(usage_buckets, "usage_buckets", 0, MOST_BUCKETS)
        strict_audit = flag(strict, "strict")
        live = None if self._read_only else await self._state_in_memory()
        handle = await self._lifecycle.handle()
        return await handle.runtime.run(
            audit_log(
                handle.store,
                handle.validator_ss58,
                until,
                progress,
                from_seal=start,
                live=live,
                usage_buckets=buckets,
                strict=strict_audit,
            )
        )

    async def verify(self, heads: Iterable[Head] = (), progress: ProgressReport | None = None) -> VerifyReport:
        """Check that every stored event is unchanged since it was written, and that the log contains the `heads`.

        `heads` are heads of this ledger that were noted elsewhere. Findings are in order of position.
        `routing.verify` does the same without opening a ledger. Unless `read_only`, the result is recorded for
        `health`; if that fails, a warning is logged. `progress` as in `audit`. Raises `StorageUnavailable` and
        `InvalidInput`.
        """
        # Imported here for the same reason as in `audit`.
        from projections import record_verification

        from .backup import verify_store

        handle = await self._lifecycle.handle()
        report = await handle.runtime.run(verify_store(handle.store, handle.validator_ss58, heads, progress))
        if not self._read_only:
            try:
                verified_at_ns = self._lifecycle.clock()
                await handle.runtime.run(record_verification(handle.store, Head(), report, verified_at_ns))
            except (StorageUnavailable, ClockUnusable) as unrecorded:
                # The caller must get the findings, above all if the database is not well.
                log.warning("the result of verify could not be recorded: %s", unrecorded)
        return report

    async def export(
        self, target: str | os.PathLike[str] | IO[bytes], progress: ProgressReport | None = None
    ) -> ExportReport:
        """Write all events of the ledger, as of now, to a new file or to a stream of bytes.

        `routing.restore` and `routing.verify` read it. Changes may go on meanwhile. `progress` as in `audit`. Raises
        `CorruptLedger`, and `InvalidInput` if the file exists.
        """
        # Imported here for the same reason as in `audit`.
        from .backup import export_store

        handle = await self._lifecycle.handle()
        return await handle.runtime.run(export_store(handle.store, handle.validator_ss58, target, progress))

    async def rebuild(self, progress: ProgressReport | None = None) -> RebuildReport:
        """Rebuild the history and the snapshots from the log as a shadow, then replace the live ones with it.

        Queries and changes go on meanwhile. The report lists where the old ones differed from the log. `progress` as in
        `audit`. Raises `RebuildOvertaken`, `ProjectionStopped`, `CorruptLedger`, `ReadOnlyLedger`.
        """
        if self._read_only:
            raise ReadOnlyLedger("rebuild")
        handle = await self._lifecycle.handle()
        return await handle.runtime.run(handle.rebuild(progress))

    async def _withdraw(self, command: WithdrawBlock | WithdrawManifests) -> int:
        """Execute a withdrawal; if it needs something from the log, read that and execute it again."""
        for _ in range(MOST_PREPARATIONS):
            outcome: int | MetagraphNeeded | OffersNeeded = await self.execute(command)
            if isinstance(outcome, int):
                return outcome
            await self._prepare(command, outcome)
        reason = f"facts were recorded during each of {MOST_PREPARATIONS} attempts to prepare the withdrawal"
        raise StorageUnavailable(reason)

    async def _prepare(
        self, command: WithdrawBlock | WithdrawManifests, needed: MetagraphNeeded | OffersNeeded
    ) -> None:
        handle = await self._lifecycle.handle()
        if isinstance(command, WithdrawBlock) and isinstance(needed, MetagraphNeeded):
            command.prepared = await handle.runtime.run(metagraph_to_return_to(handle.store, needed))
        elif isinstance(command, WithdrawManifests) and isinstance(needed, OffersNeeded):
            command.prepared = await handle.runtime.run(offers_without(handle.store, needed))

    async def _holders(self, block: int) -> AsyncIterator[int]:
        """Yield the ids of the reserved and spent reservations that hold a block."""
        after: str | None = None
        while block:
            page = await self.history(block=block, after=after, limit=MOST_ITEMS)
            for each in page.items:
                if each.status in ("reserved", "spent"):
                    yield each.reservation_id
            after = page.next
            if after is None:
                return

    async def _changed_reservation(self, command: Command) -> Reservation:
        """Execute a command that makes or settles a reservation; return that reservation."""
        reservation: Reservation = await self.execute(command)
        return reservation

    async def _read_state(self, read: Callable[[Availability, int], R], *, short: bool = False) -> R:
        return await (await self._lifecycle.handle()).writer.query(read, short=short)

    async def _find_reservation(self, reservation_id: int) -> Reservation | None:
        lookup = Lookup(positions=[reservation_position(reservation_id)])
        handle = await self._lifecycle.handle()
        found = await handle.runtime.run(handle.store.find(lookup))
        # Looking up a row does not check the schema version. Reading the head does, and refuses a ledger of a newer
        # release before this one decodes a row of it.
        await handle.runtime.run(handle.store.head())
        return found_reservation(found, handle.validator_ss58)

    async def _state_in_memory(self) -> Snapshot | None:
        """The state that this process decides on; None if the log is so damaged that it cannot be folded."""
        try:
            return await self._read_state(lambda state, _: Snapshot(state.position, state.hash, encode_state(state)))
        except AllowanceException:
            return None
