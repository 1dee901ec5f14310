"""Routing one job: the decision of which miner runs it, and the claim that makes the decision stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ledger import (
    ActiveReservation,
    LedgerState,
    Lookup,
    Miner,
    Row,
    UnitOfWork,
    active_reservation_of,
    block_numbers,
    check_amount,
    check_same_request,
    look_up_job,
    next_attempt,
)
from ledger.errors import AllMinersBusy, ChainFeedStale, JobRequestConflict
from ledger.values import seconds
from projections import Availability, RankedAccount, in_trial_order


@dataclass(frozen=True, slots=True)
class JobRoute:
    """Where a job runs and what it is paid with.

    `allowance_blocks` ascend; `allowance_job_value` is the amount reserved, in executor-seconds. A debug route has
    no blocks, no reservation and no value; a trusted route has None for all three.
    """

    miner: Miner
    allowance_blocks: list[int] | None
    allowance_reservation_id: int | None
    allowance_job_value: float | None


class Pick:
    """Claims the amount on the first candidate that is not busy; gives back the claim that a job has already."""

    operation = "pick_miner_for_job_request"
    key = None
    revertible = True

    def __init__(self, job_uuid: str, executor_class: str, amount_ns: int) -> None:
        self.job_uuid = job_uuid
        self.executor_class = executor_class
        self.amount_ns = amount_ns
        self._first_chosen: str | None = None
        self._chosen: str | None = None
        """The miner that was chosen when the pick was decided before, on a head that then moved."""

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_job(self.job_uuid, state, lookup)

    def retry_key(self, row: Row) -> str:
        return self.job_uuid

    def decide(self, unit_of_work: UnitOfWork) -> JobRoute:
        active = active_reservation_of(unit_of_work, self.job_uuid)
        if active is not None:
            check_same_request(active, self.amount_ns, self.executor_class)
            return self._route(active, _availability(unit_of_work))
        state, now_ns = _availability(unit_of_work), unit_of_work.now_ns
        check_amount(self.amount_ns, state.chain.settings)
        refuse_stale_feed(state, now_ns)
        newest = state.chain.blocks.newest
        entry, kept = self._choose(state, now_ns)
        account = entry.account
        claim = account.claim(state.chain.blocks, state.window_start(newest), self.amount_ns, now_ns)
        if claim is None:
            raise AssertionError(f"{account.stream!r} ranks with an amount that it does not have")
        active = unit_of_work.reserve(
            account,
            claim,
            amount_ns=self.amount_ns,
            job_start_block=newest,
            job=next_attempt(unit_of_work, self.job_uuid),
            axon=state.chain.metagraph.miners[account.miner_ss58],
            kept=kept,
        )
        self._chosen = account.miner_ss58
        self._first_chosen = self._first_chosen or self._chosen
        unit_of_work.moved_picks += self._chosen != self._first_chosen
        return self._route(active, state)

    def _choose(self, state: Availability, now_ns: int) -> tuple[RankedAccount, bool]:
        """The first candidate that is not busy; or the one chosen before, if the head moved and it still is one.

        Says as well whether it was kept although another comes first now.
        """
        busy = 0
        first: RankedAccount | None = None
        for entry in self.candidates(state, now_ns):
            if entry.busy:
                busy += 1
            elif first is None and self._chosen in (None, entry.hotkey_ss58):
                return entry, False
            elif entry.hotkey_ss58 == self._chosen:
                return entry, True
            else:
                first = first or entry
        if first is not None:
            return first, False
        lost = 0 if self._first_chosen is None else 1
        if busy or lost:
            raise AllMinersBusy(self.job_uuid, busy, lost)
        raise state.not_enough(self.executor_class, state.chain.blocks.newest, now_ns)

    def candidates(self, state: Availability, now_ns: int) -> Iterator[RankedAccount]:
        """The miners with enough allowance at the newest block, in the order in which this job tries them."""
        return in_trial_order(state.ranking(self.executor_class, now_ns), self.amount_ns, self.job_uuid)

    def _route(self, active: ActiveReservation, state: Availability) -> JobRoute:
        miner_ss58 = active.account.miner_ss58
        # A reservation made by hand has no route of its own: it goes to where the miner listens now.
        axon = active.axon or state.chain.metagraph.miners.get(miner_ss58)
        if axon is None:
            raise JobRequestConflict(
                self.job_uuid, active.reservation_id, {"miner_ss58": (miner_ss58, "a registered miner")}
            )
        return JobRoute(
            Miner(*axon, hotkey_ss58=miner_ss58),
            block_numbers(active.blocks),
            active.reservation_id,
            seconds(active.amount_ns),
        )


def _availability(unit_of_work: UnitOfWork) -> Availability:
    """The state with its rankings; a process that routes folds no other."""
    state = unit_of_work.state
    assert isinstance(state, Availability)
    return state


def refuse_stale_feed(state: Availability, now_ns: int) -> None:
    """Refuses to route on blocks that are older than the settings allow."""
    most_ns = state.chain.settings.newest_block_max_age_ns
    blocks = state.chain.blocks
    if most_ns is None or not blocks.newest:
        return
    age_ns = now_ns - blocks.created_at_ns(blocks.newest)
    if age_ns > most_ns:
        raise ChainFeedStale(blocks.newest, seconds(age_ns), seconds(most_ns))
