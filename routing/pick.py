"""The pick: decide which miner runs a job, and claim the allowance for it.

`Pick.decide` reads neither a clock nor a database: the unit of work holds the state and the time. The claim is an
optimistic append: it is decided on streams at versions, and the log accepts it only if they are still at those
versions. Otherwise the writer calls `decide` again. `Pick._claim_first` has the whole loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    claim_at_version,
    look_up_job,
)
from ledger.codec import reservation_id
from ledger.errors import (
    AllMinersBusy,
    AllowanceException,
    JobRequestConflict,
    JobRoutingException,
    NotEnoughCollateralException,
)
from ledger.events import COLLATERAL_STREAM, EXCLUSIONS_STREAM, FACT_STREAMS, elsewhere_stream
from ledger.results import Result
from ledger.values import seconds
from projections import Availability, RankEntry, in_order_of_trial

from .choice import Choice
from .staleness import refuse_stale_feed, refuse_stale_manifests


@dataclass(frozen=True, slots=True)
class JobRoute(Result):
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
    stands = True

    def __init__(self, job_uuid: str, executor_class: str, amount_ns: int) -> None:
        self.streams: tuple[str, ...] = FACT_STREAMS
        self.job_uuid = job_uuid
        self.executor_class = executor_class
        self.amount_ns = amount_ns
        # The miner that the first decision of this pick chose, and the choice by which the latest one claimed.
        self._first_chosen_ss58: str | None = None
        self._choice: Choice | None = None

    def stay_on(self, choice: Choice) -> None:
        """Begin as a pick that has chosen a miner already, on an earlier state."""
        self._choice = choice

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
        return self._route(self._claim_first(unit_of_work, state), state)

    def renumbered(self, result: JobRoute, row: Row) -> JobRoute:
        """Return the route with the reservation's id in the row that was appended behind another head."""
        return replace(result, allowance_reservation_id=reservation_id(row.position, row.hash))

    # The claim

    def _claim_first(self, unit_of_work: UnitOfWork, state: Availability) -> ActiveReservation:
        """Candidates in order; claim at this version; on a conflict look again; at last `AllMinersBusy`.

        A claim is decided on the account's stream and on those of `_streams` (the chain's facts, the settings, what is
        known about the miner), each at its version in `state`. The store compares these versions when it appends,
        whatever else has been appended meanwhile: `Store.append(events, expected)`. If one of them has moved, it
        appends nothing and names the stream, the expected and the actual version (`VersionConflict`). The writer then
        folds what is new and calls `decide` again. That closes the loop: the pick looks again here, and stays on its
        miner if that still qualifies. So exactly one of those who claim at one version succeeds, and no pick holds a
        lock while it decides.
        """
        busy, now_ns = 0, unit_of_work.now_ns
        for entry in self.candidates(state, now_ns):
            # Source: ComputeHorde's validator skips a miner that runs as many jobs of the class as it has executors.
            if entry.busy:
                busy += 1
                continue
            account, chosen_at = self._chosen(unit_of_work, state, entry.account)
            self.streams = _streams(state, account)
            # Claim at this version: `Allowance.reserve(…, expected_version=account.version)` makes the same call.
            active = claim_at_version(
                unit_of_work,
                account.stream,
                account.version,
                amount_ns=self.amount_ns,
                job_start_block=state.chain.blocks.newest,
                job_uuid=self.job_uuid,
                # Recorded, so that the job's route stays the same if the miner moves while the job runs.
                axon=state.chain.metagraph.miners[account.miner_ss58],
                chosen_at=chosen_at,
            )
            if active is None:
                raise AssertionError(f"{account.stream!r} is a candidate with an amount that it does not have")
            return active
        raise self._refusal(state, busy, now_ns)

    def _chosen(self, unit_of_work: UnitOfWork, state: Availability, first: Account) -> tuple[Account, int | None]:
        """Return the account to claim on, the first candidate's or that of an earlier choice; and the position of that.

        `moved_picks` counts the picks that did not get the miner of their first choice.
        """
        account, chosen_at, choice = first, None, self._choice
        kept = None if choice is None else choice.kept_account(state, self.amount_ns, unit_of_work.now_ns)
        if choice is None or kept is None or kept is first:
            self._choice = Choice.made(unit_of_work, first)
        else:
            account, chosen_at = kept, choice.position
        self._first_chosen_ss58 = self._first_chosen_ss58 or account.miner_ss58
        unit_of_work.moved_picks += account.miner_ss58 != self._first_chosen_ss58
        return account, chosen_at

    def candidates(self, state: Availability, now_ns: int) -> Iterator[RankEntry]:
        """Return the miners that may get the job, in the order in which the job tries them."""
        return in_order_of_trial(state, self.executor_class, self.amount_ns, self.job_uuid, now_ns)

    def _refusal(self, state: Availability, busy: int, now_ns: int) -> AllowanceException | JobRoutingException:
        """Return why no miner was claimed.

        A pick that had chosen a miner before lost it after the log moved, usually to another claim. There was enough
        allowance then, so it must not report a lack of it. `lost` is 0 or 1: it counts the first miner, however often
        the pick was decided. If that miner became busy meanwhile, `busy` counts it too. The log may also have moved by
        a sync that dropped the miner. The caller then reads that others claimed it, which is tolerable: the job cannot
        be routed now either way, and the next pick of the job starts without a memory and reports what it finds.
        """
        lost = 0 if self._first_chosen_ss58 is None else 1
        unfit = state.unfit(self.executor_class, self.amount_ns, now_ns)
        if not (busy or lost or unfit):
            return state.not_enough(self.amount_ns, self.executor_class, state.chain.blocks.newest, now_ns)
        poor = [each.hotkey_ss58 for each in unfit if each.unfit == "collateral"]
        if poor and not busy and not lost:
            wei_of = state.miner_facts.collateral_wei
            highest_ss58 = min(poor, key=lambda miner_ss58: (-wei_of(miner_ss58), miner_ss58))
            minimum_wei = state.chain.settings.routing("minimum_collateral_wei")
            return NotEnoughCollateralException(self.job_uuid, minimum_wei, wei_of(highest_ss58), highest_ss58)
        return AllMinersBusy(self.job_uuid, busy, lost, len(unfit) - len(poor))

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


def _streams(state: Availability, account: Account) -> tuple[str, ...]:
    """Return the streams that a claim on an account was decided on, beside the account's own."""
    settings = state.chain.settings
    streams: tuple[str, ...] = (*FACT_STREAMS, EXCLUSIONS_STREAM)
    if settings.routing("minimum_collateral_wei"):
        streams += (COLLATERAL_STREAM,)
    if settings.respect_executor_count:
        streams += (elsewhere_stream(account.stream),)
    return streams


def _availability(unit_of_work: UnitOfWork) -> Availability:
    # The ledger's commands work on any `LedgerState`. A process that routes folds this subclass, which ranks miners.
    state = unit_of_work.state
    assert isinstance(state, Availability)
    return state
