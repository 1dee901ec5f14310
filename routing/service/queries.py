"""The queries of a ledger: the same for the present and for a view of the past."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

import msgspec

from ledger import (
    END,
    ORIGINS,
    STATUSES,
    Head,
    Lookup,
    Miner,
    Origin,
    RecordedSettings,
    Reservation,
    Settings,
    Status,
    Store,
    check_amount,
)
from ledger.errors import InvalidInput, LogWentBack, PositionOutOfRange, ReservationNotFound
from ledger.events import SETTINGS_STREAM
from ledger.values import amount, flag, instant_ns, integer, job_name, name
from projections import Availability, Candidate, HistoryFilters, Page
from routing.explain import Explanation, explain

from .events import Cursor, StoredEvent, stored_event
from .lifecycle import Lifecycle
from .miner_records import MinerRecord, record_of_miner, records_of_miners
from .settings_changes import SettingsRecord, settings_records
from .summaries import (
    Overview,
    Usage,
    Workload,
    capped_manifests,
    overview_of,
    usage_by_block_of,
    usage_of,
    workload_of,
)

if TYPE_CHECKING:
    from projections import BlockUsage, Bookkeeper, GrantReader, ProgressReport
    from routing.other_policy import PolicyReport

R = TypeVar("R")

MOST_ITEMS = 10_000
OVERDUE: Literal["overdue"] = "overdue"
"""What `history` takes as a status: `reserved`, and the due time has passed by the clock of the query."""
MOST_BLOCKS = 100_000
"""The most blocks in one range, two weeks of them; a mistyped number must not stop the loop for seconds."""


class Queries(ABC):
    """The queries; `Allowance` runs them at the head of the log, and `Past` at an earlier moment."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._grant_reader: GrantReader | None = None
        """Made at the first question about grants, for the store that was open then."""

    @property
    def validator_ss58(self) -> str:
        """The hotkey of the validator that owns the ledger."""
        return self._lifecycle.validator_ss58

    @abstractmethod
    async def _read_state(self, read: Callable[[Availability, int], R], *, short: bool = False) -> R:
        """Call a function with the state and the clock (ns since the epoch); return its result.

        A `short` function may run in the caller's thread, which costs less than waking the runtime's.
        """

    @abstractmethod
    async def _find_reservation(self, reservation_id: int) -> Reservation | None:
        """Return the reservation that was recorded at an id's log position, if any; its id may be another."""

    async def find_miners(self, allowance_seconds: float, executor_class: str, job_start_block: int) -> list[Candidate]:
        """Return the registered miners with at least the amount for a job that starts at a block, best first.

        The order is: earliest free block, then largest share of the allowance left, then most available, then lower
        hotkey. The list is never empty: raises `NotEnoughAllowanceException` instead. Raises `InvalidInput`.
        """
        amount_ns = amount(allowance_seconds, "allowance_seconds")
        executor_class = name(executor_class, "executor_class")

        def find(state: Availability, now_ns: int) -> list[Candidate]:
            check_amount(amount_ns, state.chain.settings)
            integer(job_start_block, "job_start_block", 1)
            return state.candidates(amount_ns, executor_class, job_start_block, now_ns)

        return await self._read_state(find, short=True)

    async def reservation(self, reservation_id: int) -> Reservation:
        """Return the reservation with an id, active or settled. Raises `ReservationNotFound`, `InvalidInput`."""
        reservation = await self._find_reservation(checked_id(reservation_id))
        # An id carries bits of its event's hash besides the position: an id from a lost tail must not name the
        # reservation that was recorded at the same position later.
        if reservation is None or reservation.reservation_id != reservation_id:
            raise ReservationNotFound(reservation_id)
        return reservation

    async def reservation_for_job(self, job_uuid: str | UUID) -> Reservation:
        """Return the newest reservation of a job. Raises `ReservationNotFound`, `InvalidInput`."""
        page = await self.history(job_uuid=job_uuid, limit=1)
        if not page.items:
            raise ReservationNotFound(None, f"job {job_name(job_uuid)} has no reservation in this ledger")
        return page.items[0]

    async def history(
        self,
        *,
        miner_ss58: str | None = None,
        executor_class: str | None = None,
        job_uuid: str | UUID | None = None,
        status: Status | Literal["overdue"] | None = None,
        reserved_from: datetime | None = None,
        reserved_until: datetime | None = None,
        block: int | None = None,
        origin: Origin | None = None,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = True,
    ) -> Page:
        """Return a page of the reservations that pass all filters, in the order in which they were made.

        The status `overdue` selects the reservations that are `reserved` although their due time has passed.
        `reserved_at` is in `[reserved_from, reserved_until)`. `block` selects the reservations that took this block.
        `origin` selects those whose miner was chosen so: `routed`, `kept` (routed, and chosen at an earlier position),
        `by_hand` (with `reserve`) or `imported`. It reads the events of all reservations that pass the other filters.
        `after` is the `next` of the previous page and stays valid while the log grows. `limit` is from 1 to 10,000.
        Raises `InvalidInput`.
        """
        if status is not None and status not in (*STATUSES, OVERDUE):
            raise InvalidInput("status", status, f"one of {', '.join((*STATUSES, OVERDUE))}")
        if origin is not None and origin not in ORIGINS:
            raise InvalidInput("origin", origin, f"one of {', '.join(ORIGINS)}")
        filters = HistoryFilters(
            None if miner_ss58 is None else name(miner_ss58, "miner_ss58"),
            None if executor_class is None else name(executor_class, "executor_class"),
            None if job_uuid is None else job_name(job_uuid),
            "reserved" if status == OVERDUE else status,
            None if reserved_from is None else instant_ns(reserved_from, "reserved_from"),
            None if reserved_until is None else instant_ns(reserved_until, "reserved_until"),
            None if block is None else integer(block, "block", 1),
            origin=origin,
        )
        integer(limit, "limit", 1, MOST_ITEMS)
        flag(newest_first, "newest_first")
        head, now_ns = await self._read_state(lambda state, now_ns: (state.position, now_ns), short=True)
        if status == OVERDUE:
            filters = filters._replace(due_by_ns=now_ns)
        handle = await self._lifecycle.handle()
        return await handle.runtime.run(
            handle.history.page(filters, after=after, limit=limit, newest_first=newest_first, head=head)
        )

    async def explain(self, job_uuid: str | UUID) -> Explanation:
        """Explain why a job was routed to its miner: its candidates in the order tried, each with a verdict.

        The explanation is computed from the log alone. Raises `ReservationNotFound`, `InvalidInput`.
        """
        reservation = await self.reservation_for_job(job_uuid)
        handle = await self._lifecycle.handle()
        return await handle.runtime.run(explain(handle.store, reservation))

    async def under_policy(self, settings: Mapping[str, Any], progress: ProgressReport | None = None) -> PolicyReport:
        """Make the choices of the log anew, with these fields of `Settings` changed; return a comparison.

            report = await ledger.under_policy({"routing_order": "reliability"})

        The facts and the jobs stay, and nothing is recorded. It reads the whole log. `progress` is called with (events
        read, events to read) on a thread of the library. Raises `InvalidInput` for a field or value that is none.
        """
        # Imported here, since few processes ever ask and every one waits for its imports.
        from routing.other_policy import under_policy

        RecordedSettings().changed(settings)
        head = (await self.head()).position
        return await self._on_store(lambda store: under_policy(store, head, settings, progress))

    async def explain_reservation(self, reservation_id: int) -> Explanation:
        """Explain one reservation as `explain` does: an earlier one of its job, or one without a job.

        Raises `ReservationNotFound`, `InvalidInput`.
        """
        reservation = await self.reservation(reservation_id)
        return await self._on_store(lambda store: explain(store, reservation))

    async def why(self, miner_ss58: str, executor_class: str) -> Usage:
        """Return how an account's allowance is used, in the window of a job that starts at the newest block.

        The result holds sums in executor-seconds, and the active and spent reservations that took blocks in the
        window. An account that does not exist has zeros. Raises `InvalidInput`.
        """
        miner_ss58, executor_class = name(miner_ss58, "miner_ss58"), name(executor_class, "executor_class")
        usage = await self._read_state(lambda state, now_ns: usage_of(state, miner_ss58, executor_class, now_ns))
        reservations = [
            reservation
            for status in ("reserved", "spent")
            async for reservation in self._reservations_of(miner_ss58, executor_class, status)
            if reservation.blocks[-1] >= usage.first_block
        ]
        reservations.sort(key=lambda reservation: reservation.reservation_id)
        return msgspec.structs.replace(usage, reservations=reservations)

    async def usage_by_block(self, miner_ss58: str, *, buckets: int = 120) -> BlockUsage:
        """Return how the allowance of a miner's accounts is used, for a job that starts at the newest block.

        The blocks of the window are in at most `buckets` (1 to 10,000) buckets of equal width; a miner without accounts
        has none. Raises `InvalidInput`.
        """
        miner_ss58, buckets = name(miner_ss58, "miner_ss58"), integer(buckets, "buckets", 1, MOST_ITEMS)
        return await self._read_state(lambda state, _: usage_by_block_of(state, miner_ss58, buckets))

    async def workload(self, executor_class: str) -> dict[str, Workload]:
        """Return for each registered miner of a class how many of its executors are busy; raises `InvalidInput`.

        The router skips a miner whose executors are all busy.
        """
        executor_class = name(executor_class, "executor_class")
        return await self._read_state(lambda state, now_ns: workload_of(state, executor_class, now_ns))

    async def overview(self) -> Overview:
        """Return a summary of the ledger, with totals per executor class."""
        return await self._read_state(overview_of)

    async def receipts(
        self, keeper: Bookkeeper | None = None, *, first_block: int | None = None, end_block: int | None = None
    ) -> Bookkeeper:
        """Return a bookkeeper for the receipts of other validators that knows the facts recorded by now.

        With `first_block` and `end_block` it accepts jobs that start in `[first_block, end_block)`, as scoring needs
        it, and keeps only what such jobs can be paid with. A given `keeper` is brought up to date and returned; the
        blocks that it counts as spent stay spent, and its bounds stay as they are. Raises `InvalidInput`.
        """
        # Imported here, since few processes ever process receipts and every one waits for its imports.
        from projections import Bookkeeper

        if keeper is None:
            keeper = Bookkeeper(first_block, end_block)
        elif (first_block, end_block) != (None, None):
            raise InvalidInput("keeper", keeper, "None if bounds are given: a bookkeeper keeps its own")
        if not isinstance(keeper, Bookkeeper):
            raise InvalidInput("keeper", keeper, "a Bookkeeper or None")
        head = (await self.head()).position
        handle = await self._lifecycle.handle()
        await handle.runtime.run(keeper.follow(handle.store, head))
        return keeper

    async def grants(self, block: int, *, executor_class: str | None = None) -> dict[tuple[str, str, str], float]:
        """Return what a finalized block granted every validator on every miner, in one class or in all.

            {("5Validator…", "5Miner…", "always_on.gpu-24gb"): 11.7, …}

        In executor-seconds, without zeros. The first call reads the facts of the log, later ones only what is new.
        Raises `BlockNotFinalized` if the block or its successor is not recorded, and `InvalidInput`.
        """
        # Imported here for the same reason as in `receipts`.
        from projections import GrantReader

        block = integer(block, "block", 1)
        a_class = None if executor_class is None else name(executor_class, "executor_class")
        head = (await self.head()).position
        handle = await self._lifecycle.handle()
        # After a fork or a reconnection there is another store, and nobody folds for its reader yet.
        if self._grant_reader is None or self._grant_reader.store is not handle.store:
            self._grant_reader = GrantReader(handle.store)
        return await handle.runtime.run(self._grant_reader.grants_at(head, block, a_class))

    async def current_block(self) -> int | None:
        """Return the number of the newest block; None if no block is recorded."""
        return await self._read_state(lambda state, _: state.chain.blocks.newest or None, short=True)

    async def first_block(self) -> int | None:
        """Return the lowest number of a recorded block; None if no block is recorded."""
        first = await self._read_state(lambda state, _: state.chain.blocks.first, short=True)
        return None if first == END else first

    async def missing_blocks(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the blocks from `first` to `last` that are not recorded or not finalized, as runs `(first, last)`.

        Both ends of a run belong to it; runs ascend. The block before a gap is part of the run, because it is not
        finalized until its successor is recorded, and so is the newest block. The range holds at most 100,000 blocks.
        Raises `InvalidInput`.

            for first, last in await ledger.missing_blocks(newest - 722, newest):
                ...  # record the blocks from first to last; one that is recorded already changes nothing
        """
        integer(first, "first", 1)
        integer(last, "last", first, first + MOST_BLOCKS - 1)
        return await self._read_state(lambda state, _: state.chain.blocks.unfinalized_runs(first, last), short=True)

    async def miners(self) -> list[Miner]:
        """Return the miners that are registered at the newest block, ordered by hotkey."""
        miners = await self._read_state(lambda state, _: state.chain.metagraph.miners)
        return [Miner(*axon, hotkey_ss58=hotkey_ss58) for hotkey_ss58, axon in sorted(miners.items())]

    async def miner_records(self) -> list[MinerRecord]:
        """Return what is known beside allowance of each miner that is registered or has such a fact, by hotkey."""
        return await self._read_state(records_of_miners)

    async def miner_record(self, miner_ss58: str) -> MinerRecord:
        """Return what is known beside allowance of one miner, which need not be known. Raises `InvalidInput`."""
        miner_ss58 = name(miner_ss58, "miner_ss58")
        return await self._read_state(lambda state, now_ns: record_of_miner(state, miner_ss58, now_ns))

    async def known_miners(self) -> list[str]:
        """Return the hotkeys that a recorded block has registered, or a manifest sync has named, ever; sorted."""
        return sorted(await self._read_state(lambda state, _: state.chain.known_miners()))

    async def executor_classes(self) -> list[str]:
        """Return the executor classes that recorded manifest syncs have named, ever; sorted."""
        return sorted(await self._read_state(lambda state, _: set(state.chain.classes)))

    async def manifests(self, *, capped: bool = False) -> dict[str, dict[str, int]]:
        """Return the newest sync as it was given: `{miner_ss58: {executor_class: executor_count}}`.

        With `capped`, the counts that routing uses instead: those of the newest sync that covers the miner, at most the
        configured maximum of the class. They are of every miner that is registered or that the newest sync names, and
        of every class that any sync has named, filled with zeros. Raises `InvalidInput`.
        """
        if flag(capped, "capped"):
            return await self._read_state(capped_manifests)
        manifests = await self._read_state(lambda state, _: state.chain.manifests)
        return {miner_ss58: dict(counts) for miner_ss58, counts in manifests.items()}

    async def settings(self) -> Settings:
        """Return the recorded settings that apply now."""
        return (await self._read_state(lambda state, _: state.chain.settings)).to_settings()

    async def settings_changes(self) -> list[SettingsRecord]:
        """Return every event that recorded settings, with the old and new values; reads the log up to the last one."""
        head, count = await self._read_state(lambda state, _: (state.position, state.version(SETTINGS_STREAM)))
        return await self._on_store(lambda store: settings_records(store, head, count))

    async def corrections(self) -> list[StoredEvent]:
        """Return the events that withdrew a block or a manifest sync, in order."""
        positions = await self._read_state(lambda state, _: _positions_of_corrections(state))
        found = await self._on_store(lambda store: store.find(Lookup(positions=positions)))
        return [stored_event(found.rows[position]) for position in positions]

    async def head(self) -> Head:
        """Return the log's head. Note it elsewhere: with it, `verify` detects every later change of the log."""
        return await self._read_state(
            lambda state, _: Head(state.position, state.hash, state.recorded_at_ns), short=True
        )

    async def events(self, *, after: int = 0, until: int | None = None) -> AsyncIterator[StoredEvent]:
        """Yield the events after a position in order, up to and including `until`, or up to the head at the first step.

            async for stored in ledger.events(after=1000):
                print(stored.position, stored.stream, stored.event)

        Resumed with the last position seen, it skips nothing and repeats nothing. Memory is bounded by one page of
        1,000 events. Raises `PositionOutOfRange`, `CorruptLedger`, `LogWentBack`, and `InvalidInput`.
        """
        cursor, head = Cursor(integer(after, "after", 0)), (await self.head()).position
        last = head if until is None else integer(until, "until", 0)
        for position in (cursor.position, last):
            if position > head:
                raise PositionOutOfRange(f"position {position}", 0, head)
        await self._on_store(cursor.start)
        while cursor.position < last:
            page = await self._on_store(lambda store: cursor.read(store, last))
            if not page:
                raise LogWentBack(last, (await self.head()).position, cursor.position)
            for stored in page:
                yield stored

    async def _on_store(self, read: Callable[[Store], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine of the open store on the runtime's loop."""
        handle = await self._lifecycle.handle()
        return await handle.runtime.run(read(handle.store))

    async def _reservations_of(
        self, miner_ss58: str, executor_class: str, status: Status
    ) -> AsyncIterator[Reservation]:
        after: str | None = None
        while True:
            page = await self.history(
                miner_ss58=miner_ss58, executor_class=executor_class, status=status, after=after, limit=MOST_ITEMS
            )
            for reservation in page.items:
                yield reservation
            after = page.next
            if after is None:
                return


def _positions_of_corrections(state: Availability) -> list[int]:
    withdrawn = (*state.chain.withdrawn_blocks.values(), *state.chain.withdrawn_syncs.values())
    return sorted(each.withdrawn_at for withdrawals in withdrawn for each in withdrawals)


def checked_id(value: object) -> int:
    """Return a reservation id.

    Raises `InvalidInput` if it is no integer, and `ReservationNotFound` if no ledger can have it.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput("reservation_id", value, "an integer")
    if not 0 < value < 2**63:
        raise ReservationNotFound(value)
    return value
