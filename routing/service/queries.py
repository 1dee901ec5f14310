"""What can be asked of a ledger, now or as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from ledger import STATUSES, Head, Miner, Reservation, Runtime, Settings, Status, Store, check_amount
from ledger.errors import InvalidInput, ReservationNotFound
from ledger.values import amount, flag, instant_ns, integer, job_name, name
from projections import Availability, Candidate, History, HistoryFilters, Page
from routing.explain import Explanation, explain

from .summaries import Overview, Usage, overview_of, usage_of

if TYPE_CHECKING:
    from projections import Bookkeeper

R = TypeVar("R")

MOST_ITEMS = 10_000


class QuerySources(NamedTuple):
    """Where a ledger is read, and the loop that it is read on."""

    runtime: Runtime
    store: Store
    history: History
    validator_ss58: str


class Queries(ABC):
    """The questions; where the answers come from is left to `Allowance` and its views of the past."""

    @abstractmethod
    async def _query(self, question: Callable[[Availability, int], R], *, short: bool = False) -> R:
        """The answer of a function of the state and the clock; a brief one may be worked out in the caller's thread."""

    @abstractmethod
    async def _sources(self) -> QuerySources:
        """Where the log and the history are read."""

    @abstractmethod
    async def _stored(self, reservation_id: int) -> Reservation | None:
        """The stored reservation of an id."""

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
            return state.candidates(amount_ns, executor_class, job_start_block, now_ns)

        return await self._query(find, short=True)

    async def reservation(self, reservation_id: int) -> Reservation:
        """The reservation of an id, settled or not. Raises `ReservationNotFound`."""
        reservation = await self._stored(checked_id(reservation_id))
        if reservation is None or reservation.reservation_id != reservation_id:
            raise ReservationNotFound(reservation_id)
        return reservation

    async def reservation_for_job(self, job_uuid: str) -> Reservation:
        """The newest reservation of a job. Raises `ReservationNotFound`."""
        page = await self.history(job_uuid=job_uuid, limit=1)
        if not page.items:
            raise ReservationNotFound(None, f"job {job_name(job_uuid)} has no reservation in this ledger")
        return page.items[0]

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
        filters = HistoryFilters(
            None if miner_ss58 is None else name(miner_ss58, "miner_ss58"),
            None if executor_class is None else name(executor_class, "executor_class"),
            None if job_uuid is None else job_name(job_uuid),
            status,
            None if reserved_from is None else instant_ns(reserved_from, "reserved_from"),
            None if reserved_until is None else instant_ns(reserved_until, "reserved_until"),
            None if block is None else integer(block, "block", 1),
        )
        integer(limit, "limit", 1, MOST_ITEMS)
        flag(newest_first, "newest_first")
        head = (await self.head()).position
        sources = await self._sources()
        return await sources.runtime.run(
            sources.history.page(filters, after=after, limit=limit, newest_first=newest_first, head=head)
        )

    async def explain(self, job_uuid: str) -> Explanation:
        """Why this miner: the job's candidates in the order in which it tried them, and what became of each.

        Made again from the log alone. Raises `ReservationNotFound`.
        """
        reservation = await self.reservation_for_job(job_uuid)
        sources = await self._sources()
        return await sources.runtime.run(explain(sources.store, reservation))

    async def why(self, miner_ss58: str, executor_class: str) -> Usage:
        """What has become of an account's allowance in the window of a job that starts at the newest block.

        Answers the sums in seconds and the reservations, standing and spent, that took its blocks.
        """
        miner_ss58, executor_class = name(miner_ss58, "miner_ss58"), name(executor_class, "executor_class")
        usage = await self._query(lambda state, now_ns: usage_of(state, miner_ss58, executor_class, now_ns))
        takers = [
            reservation
            for status in ("reserved", "spent")
            async for reservation in self._all(miner_ss58, executor_class, status)
            if reservation.blocks[-1] >= usage.first_block
        ]
        takers.sort(key=lambda reservation: reservation.reservation_id)
        return msgspec.structs.replace(usage, reservations=takers)

    async def overview(self) -> Overview:
        """What the ledger knows and holds, summed up."""
        return await self._query(overview_of)

    async def receipts(self, keeper: Bookkeeper | None = None) -> Bookkeeper:
        """A bookkeeper for the receipts of other validators, who knows the facts recorded by now.

        Given one, that one is brought up to date, and what it has spent stays spent.
        """
        from projections import Bookkeeper

        keeper = Bookkeeper() if keeper is None else keeper
        if not isinstance(keeper, Bookkeeper):
            raise InvalidInput("keeper", keeper, "a Bookkeeper or None")
        head = (await self.head()).position
        sources = await self._sources()
        await sources.runtime.run(keeper.follow(sources.store, head))
        return keeper

    async def _all(self, miner_ss58: str, executor_class: str, status: Status) -> AsyncIterator[Reservation]:
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

    async def current_block(self) -> int | None:
        """The number of the newest block; None where no block is recorded."""
        return await self._query(lambda state, _: state.chain.blocks.newest or None, short=True)

    async def miners(self) -> list[Miner]:
        """The miners registered at the newest block, by hotkey."""
        miners = await self._query(lambda state, _: state.chain.metagraph.miners)
        return [Miner(*axon, hotkey_ss58=hotkey_ss58) for hotkey_ss58, axon in sorted(miners.items())]

    async def manifests(self) -> dict[str, dict[str, int]]:
        """The newest sync's `{miner_ss58: {executor_class: executor_count}}`, as it was given."""
        manifests = await self._query(lambda state, _: state.chain.manifests)
        return {miner_ss58: dict(counts) for miner_ss58, counts in manifests.items()}

    async def settings(self) -> Settings:
        """The settings that apply."""
        return (await self._query(lambda state, _: state.chain.settings)).to_settings()

    async def head(self) -> Head:
        """The log's position and hash; noted elsewhere, they let `verify` find every later change of the log."""
        return await self._query(lambda state, _: Head(state.position, state.hash, state.recorded_at_ns), short=True)


def checked_id(value: object) -> int:
    """A reservation id; an integer that can be no id names no reservation."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput("reservation_id", value, "an integer")
    if not 0 < value < 2**63:
        raise ReservationNotFound(value)
    return value
