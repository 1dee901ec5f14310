"""The pick: decide which miner runs a job, and claim the allowance for it.

`Pick.decide` reads neither a clock nor a database: the unit of work holds the state and the time. The writer commits
its events if the log has not changed since and no unique index refuses a row of the batch; otherwise it calls `decide`
again. The pick itself remembers which miner it chose before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ledger import (
    Account,
    ActiveReservation,
    LedgerState,
    Lookup,
    Miner,
    Row,
    UnitOfWork,
    block_numbers,
    check_amount,
    check_same_request,
    look_up_job,
)
from ledger.errors import (
    AllMinersBusy,
    AllowanceException,
    ChainFeedStale,
    JobRequestConflict,
    JobRoutingException,
    ManifestsStale,
)
from ledger.values import seconds
from projections import Availability, RankEntry, in_trial_order


@dataclass(frozen=True, slots=True)
class JobRoute:
    """The miner that runs a job, and the allowance that is reserved for it.

    `allowance_blocks` ascend; `allowance_job_value` is the amount reserved, in executor-seconds. A route to a debug
    miner has no blocks (an empty list), and None as reservation id and value. A route to the trusted miner has None for
    all three. Source of the difference: the product's specification of `JobRoute`, which prescribes None for the blocks
    of trusted routes only.
    """

    miner: Miner
    allowance_blocks: list[int] | None
    allowance_reservation_id: int | None
    allowance_job_value: float | None


class Pick:
    """The command that reserves a job's amount (in executor-ns) on the first candidate that is not busy.

    A pick is not pure in itself: it remembers the miner that it chose, and a later decision of the same pick depends
    on it. So each job request needs a `Pick` of its own.
    """

    operation = "pick_miner_for_job_request"
    # A pick needs no idempotency key: its job uuid identifies it.
    key = None
    revertible = True

    def __init__(self, job_uuid: str, executor_class: str, amount_ns: int) -> None:
        self.job_uuid = job_uuid
        self.executor_class = executor_class
        self.amount_ns = amount_ns
        # The miners that earlier decisions of this pick chose: the first, and the latest.
        self._first_chosen_ss58: str | None = None
        self._chosen_ss58: str | None = None

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        """Ask for the job's earlier reservations."""
        look_up_job(self.job_uuid, state, lookup)

    def retry_key(self, row: Row) -> str:
        """Return the job's uuid: routing the job again resolves an unknown outcome."""
        return self.job_uuid

    def decide(self, unit_of_work: UnitOfWork) -> JobRoute:
        """Reserve the amount on a miner and return the route. Raises the errors of `Routing`."""
        state, now_ns = _availability(unit_of_work), unit_of_work.now_ns
        # A job has at most one active reservation, and is spent at most once. So routing it again is safe. While its
        # reservation is active (overdue or not), it gets the same route. After a spend, this call raises
        # `JobAlreadySpent`. After a release or an expiry the job gets a new reservation, perhaps on another miner.
        active = unit_of_work.active_reservation_of(self.job_uuid)
        if active is not None:
            check_same_request(active, self.amount_ns, self.executor_class)
            return self._route(active, state)
        # Source: ComputeHorde's allowance module, which reserves 3600 s at most (the setting `longest_job_seconds`).
        check_amount(self.amount_ns, state.chain.settings)
        refuse_stale_feed(state, now_ns)
        refuse_stale_manifests(state)
        entry, kept = self._choose(state, now_ns)
        return self._route(self._claim(unit_of_work, entry.account, kept=kept), state)

    def candidates(self, state: Availability, now_ns: int) -> Iterator[RankEntry]:
        """Return the miners with enough allowance at the newest block, in the order in which this job tries them.

        Source: ComputeHorde's allowance module ranks them by earliest free block, then by the share left. Among equals
        the job's uuid breaks the tie, so that several routers do not all claim the same miner.
        """
        return in_trial_order(state.groups_of_equals(self.executor_class, self.amount_ns, now_ns), self.job_uuid)

    def _choose(self, state: Availability, now_ns: int) -> tuple[RankEntry, bool]:
        """Return the candidate to claim, and whether the pick kept it although another candidate comes first now.

        At the first decision, and if the miner chosen before no longer qualifies, this is the first candidate that is
        not busy. Otherwise it is the miner chosen before. The claim records whether it was kept, since `explain` and
        the audit would otherwise have to report a claim that is not on the first candidate.

        A pick keeps its miner because every claim changes the ranking: after a conflict all picks of a batch would
        otherwise leave their miners for others. The audit accepts it only if the miner still has the amount and is not
        busy. This project's own rule.
        """
        busy = 0
        first: RankEntry | None = None
        for entry in self.candidates(state, now_ns):
            # Source: ComputeHorde's validator skips a miner that runs as many jobs of the class as it has executors.
            if entry.busy:
                busy += 1
                continue
            first = first or entry
            if self._chosen_ss58 in (None, entry.hotkey_ss58):
                return entry, entry is not first
        if first is not None:
            return first, False
        raise self._refusal(state, busy, now_ns)

    def _refusal(self, state: Availability, busy: int, now_ns: int) -> AllowanceException | JobRoutingException:
        # A pick that had chosen a miner before lost it after the head moved, usually to another claim. There was enough
        # allowance then, so it must not report a lack of it. `lost` is 0 or 1: it counts the first miner, however often
        # the pick was decided. If that miner became busy meanwhile, `busy` counts it too. The head may also have moved
        # by a sync that dropped the miner. The caller then reads that others claimed it, which is tolerable: the job
        # cannot be routed now either way, and the next pick of the job starts without a memory and reports what it
        # finds.
        lost = 0 if self._first_chosen_ss58 is None else 1
        if busy or lost:
            return AllMinersBusy(self.job_uuid, busy, lost)
        return state.not_enough(self.executor_class, state.chain.blocks.newest, now_ns)

    def _claim(self, unit_of_work: UnitOfWork, account: Account, *, kept: bool) -> ActiveReservation:
        """Append the reservation of whole free blocks, earliest first, and the expiries that free some of them."""
        state = _availability(unit_of_work)
        newest = state.chain.blocks.newest
        claim = account.claim(state.chain.blocks, state.window_start(newest), self.amount_ns, unit_of_work.now_ns)
        if claim is None:
            raise AssertionError(f"{account.stream!r} is ranked with an amount that it does not have")
        active = unit_of_work.reserve(
            account,
            claim,
            amount_ns=self.amount_ns,
            job_start_block=newest,
            job=unit_of_work.next_attempt(self.job_uuid),
            # Recorded, so that the job's route stays the same if the miner moves while the job runs.
            axon=state.chain.metagraph.miners[account.miner_ss58],
            kept=kept,
        )
        self._chosen_ss58 = account.miner_ss58
        self._first_chosen_ss58 = self._first_chosen_ss58 or self._chosen_ss58
        unit_of_work.moved_picks += self._chosen_ss58 != self._first_chosen_ss58
        return active

    def _route(self, active: ActiveReservation, state: Availability) -> JobRoute:
        miner_ss58 = active.account.miner_ss58
        # A job's reservation made with `Allowance.reserve` records no axon: the job goes to the miner's newest one.
        axon = active.axon or state.chain.metagraph.miners.get(miner_ss58)
        if axon is None:
            # Such a reservation may name any miner, also one that is not registered (any more). Then there is no
            # address to send the job to, and no other miner can be picked while the reservation is active.
            raise JobRequestConflict(
                self.job_uuid, active.reservation_id, {"miner_ss58": (miner_ss58, "a registered miner")}
            )
        return JobRoute(
            Miner(*axon, hotkey_ss58=miner_ss58),
            block_numbers(active.blocks),
            active.reservation_id,
            seconds(active.amount_ns),
        )


def refuse_stale_feed(state: Availability, now_ns: int) -> None:
    """Raise `ChainFeedStale` if the newest block is older than the setting `newest_block_max_age_seconds` allows.

    Ages of blocks are counted from the newest *recorded* block. If the chain has moved on since without being recorded,
    every block is older than its counted age. Without the setting any age is accepted.
    """
    most_ns = state.chain.settings.newest_block_max_age_ns
    blocks = state.chain.blocks
    if most_ns is None or not blocks.newest:
        return
    age_ns = now_ns - blocks.created_at_ns(blocks.newest)
    if age_ns > most_ns:
        raise ChainFeedStale(blocks.newest, seconds(age_ns), seconds(most_ns))


def refuse_stale_manifests(state: Availability) -> None:
    """Raise `ManifestsStale` if the newest sync is further behind the newest block than the setting allows.

    Miners may have left or changed since without anybody noticing. Without the setting any age is accepted; without a
    sync there is no allowance, which the pick reports by itself.
    """
    chain = state.chain
    most = chain.settings.newest_manifests_max_age_blocks
    if most is None or not chain.sync_blocks:
        return
    if chain.blocks.newest - chain.sync_blocks[-1] > most:
        raise ManifestsStale(chain.sync_blocks[-1], chain.blocks.newest, most)


def _availability(unit_of_work: UnitOfWork) -> Availability:
    # The ledger's commands work on any `LedgerState`. A process that routes folds this subclass, which ranks miners.
    state = unit_of_work.state
    assert isinstance(state, Availability)
    return state
