"""Another policy, the same history: the choices of a log made anew under other settings.

The facts and the job requests stay; every choice is made again by the router itself (`Pick`), on the state that follows
from the choices before it. What was settled is settled at the same time. A pick that was refused is in no log, so it is
not repeated. With the settings of the log the choices are the same; `tests/routing/test_other_policy.py` checks that.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from ledger import Account, ActiveReservation, LedgerState, LookupResult, Row, Store, UnitOfWork
from ledger.codec import decode
from ledger.domain.account import Claim
from ledger.errors import AllowanceException, JobRoutingException
from ledger.events import (
    AllowanceReserved,
    Event,
    ExpiryRecorded,
    LedgerOpened,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
    Settlement,
    StateSealed,
    account_of,
    decided_at_ns,
)
from ledger.results import Result
from ledger.values import seconds
from projections import Availability, ProgressReport, in_order_of_trial
from projections.audit.read_ahead import LaterClaim, ReadAhead
from projections.inequality import gini_coefficient, jain_index

from .choice import Choice
from .pick import Pick


class PolicySide(Result, msgspec.Struct, frozen=True):
    """What one policy led to: `spent_seconds` by miner, in executor-seconds, for jobs that ran.

    `jain_index` and `gini_coefficient` are those of the spent seconds over all miners that were ever granted anything.
    """

    routed: int
    spent_seconds: dict[str, float]
    jain_index: float
    gini_coefficient: float


class PolicyReport(Result, msgspec.Struct, frozen=True):
    """The choices of a log up to `position`, beside those that `settings` would have led to.

    `jobs` counts the routed reservations of the log: `same_miner` of them go to the same miner, `other_miner` to
    another one, and `refused` would not have been routed, for the reasons in `refusals` (names of errors). `not_proved`
    counts choices of earlier releases that were made at a position which nothing names; they are made anew at the
    claim. `by_hand` counts reservations that no router chose. They stay on their miner, and `by_hand_refused` of them
    find too little left.
    """

    position: int
    settings: dict[str, Any]
    jobs: int
    same_miner: int
    other_miner: int
    refused: int
    refusals: dict[str, int]
    not_proved: int
    by_hand: int
    by_hand_refused: int
    recorded: PolicySide
    other: PolicySide
    elapsed_seconds: float
    events_per_second: float


async def under_policy(
    store: Store, until: int, settings: Mapping[str, Any], progress: ProgressReport | None = None
) -> PolicyReport:
    """Make the choices of a log anew, with these fields of `Settings` changed from the first event on."""
    started = time.perf_counter()
    replay = _Replay(settings)
    ahead = ReadAhead(store.read, 0)
    while replay.position < until and (rows := await ahead.next_page()):
        for row in rows:
            if row.position <= until:
                replay.apply(row, decode(row.position, row.payload))
                replay.choose(ahead.claims_by_choice.pop(row.position, ()))
        if progress is not None:
            progress(replay.position, until)
        await asyncio.sleep(0)  # A long replay yields the event loop after each page.
    return replay.report(time.perf_counter() - started)


class _RepeatedChoice(Choice):
    """A choice of the log, which a router kept: whether it could be kept is not asked again."""

    def _can_be_repeated(self, state: LedgerState, account: Account, now_ns: int) -> bool:
        return True


class _Replay:
    """The state under the other policy, and what came of each reservation of the log."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.position = 0
        self._settings = settings
        self._state = Availability()
        self._active: dict[int, ActiveReservation] = {}
        """The active reservation here for each active one of the log, by the position of that."""
        self._recorded: dict[int, tuple[str, int]] = {}
        """The miner and the amount of each active reservation of the log, by position."""
        self._chosen: dict[int, Choice] = {}
        """The choices that were made before their claim, by the claim's position."""
        self._counts: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._spent_ns: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        """By miner: in the log, and here."""

    def apply(self, row: Row, event: Event) -> None:
        """Apply the next event of the log."""
        self.position = row.position
        match event:
            case AllowanceReserved():
                self._reserve(row, event)
            case ReservationSpent() | ReservationReleased() | ExpiryRecorded():
                self._settle(row, event)
            case StateSealed():
                return
            case LedgerOpened() | SettingsChanged():
                changed = event.settings.changed(self._settings)
                self._evolve(row, msgspec.structs.replace(event, settings=changed))
            case _:
                self._evolve(row, event)

    def choose(self, claims: tuple[LaterClaim, ...] | list[LaterClaim]) -> None:
        """Make the choices that were made at this position, and claimed later."""
        for claim in claims:
            _, executor_class = account_of(claim.row.stream)
            now_ns = decided_at_ns(claim.row.recorded_at_ns, claim.event)
            order = in_order_of_trial(
                self._state, executor_class, claim.event.amount_ns, claim.row.job_uuid or "", now_ns
            )
            first = next((entry for entry in order if not entry.busy), None)
            if first is not None:
                unit_of_work = UnitOfWork(self._state, LookupResult(), now_ns)
                self._chosen[claim.row.position] = _RepeatedChoice.made(unit_of_work, first.account)

    def report(self, elapsed_seconds: float) -> PolicyReport:
        """Return what came of it."""
        counts, granted = self._counts, {account.miner_ss58 for account in self._state.chain.accounts.values()}
        jobs, (recorded_ns, other_ns) = counts["jobs"], self._spent_ns
        return PolicyReport(
            self.position,
            dict(self._settings),
            jobs,
            counts["same"],
            counts["other"],
            counts["refused"],
            dict(self._refusals),
            counts["not proved"],
            counts["by hand"],
            counts["by hand refused"],
            _side(jobs, recorded_ns, granted),
            _side(jobs - counts["refused"], other_ns, granted),
            elapsed_seconds,
            self.position / elapsed_seconds if elapsed_seconds else 0.0,
        )

    def _evolve(self, row: Row, event: Event) -> None:
        state = self._state
        # The position of a row here differs from that in the log once a choice has.
        state.evolve(row._replace(position=state.position + 1, version=state.version(row.stream) + 1), event)

    def _reserve(self, row: Row, event: AllowanceReserved) -> None:
        miner_ss58, _ = account_of(row.stream)
        self._recorded[row.position] = miner_ss58, event.amount_ns
        unit_of_work = UnitOfWork(self._state, LookupResult(), decided_at_ns(row.recorded_at_ns, event))
        active = self._route(unit_of_work, row, event) if event.axon else self._by_hand(unit_of_work, row, event)
        if active is not None:
            self._active[row.position] = active

    def _route(self, unit_of_work: UnitOfWork, row: Row, event: AllowanceReserved) -> ActiveReservation | None:
        miner_ss58, executor_class = account_of(row.stream)
        self._counts["jobs"] += 1
        self._counts["not proved"] += event.kept
        pick = Pick(row.job_uuid or f"\t{row.position}", executor_class, event.amount_ns)
        chosen = self._chosen.pop(row.position, None)
        if chosen is not None:
            pick.stay_on(chosen)
        try:
            route = pick.decide(unit_of_work)
        except (AllowanceException, JobRoutingException) as refusal:
            self._counts["refused"] += 1
            self._refusals[type(refusal).__name__] += 1
            return None
        self._counts["same" if route.miner.hotkey_ss58 == miner_ss58 else "other"] += 1
        return self._state.active[route.allowance_reservation_id or 0]

    def _by_hand(self, unit_of_work: UnitOfWork, row: Row, event: AllowanceReserved) -> ActiveReservation | None:
        """Take over a reservation that no router chose: the same blocks if they are free, else as many others."""
        self._counts["by hand"] += 1
        state, account = self._state, self._state.chain.accounts.get(row.stream)
        if account is None:
            self._counts["by hand refused"] += 1
            return None
        claim: Claim | None = Claim(event.blocks, [])
        if any(account.taken.overlaps(*run) for run in event.blocks):
            window_start = state.window_start(event.job_start_block)
            claim = account.claim(state.chain.blocks, window_start, event.amount_ns, unit_of_work.now_ns)
        if claim is None:
            self._counts["by hand refused"] += 1
            return None
        job = None if row.job_uuid is None or row.job_uuid in state.jobs else (row.job_uuid, 1)
        if event.imported:
            # It is due when the other system says, not by the clock of the import.
            moved = msgspec.structs.replace(event, blocks=claim.blocks)
            return unit_of_work.append_reservation(account, claim.overdue, moved, None, job)
        return unit_of_work.reserve(
            account, claim, amount_ns=event.amount_ns, job_start_block=event.job_start_block, job=job
        )

    def _settle(self, row: Row, event: Settlement) -> None:
        position = row.settles or 0
        miner_ss58, amount_ns = self._recorded.pop(position, ("", 0))
        active = self._active.pop(position, None)
        # It may have expired here by a claim that was made on another miner in the log.
        is_active = active is not None and active.reservation_id in self._state.active
        if isinstance(event, ReservationSpent):
            self._spent_ns[0][miner_ss58] += amount_ns
            if active is not None and is_active:
                self._spent_ns[1][active.account.miner_ss58] += active.amount_ns
        if active is None or not is_active:
            return
        unit_of_work = UnitOfWork(self._state, LookupResult(), decided_at_ns(row.recorded_at_ns, event))
        unit_of_work.settle(active, msgspec.structs.replace(event, reservation_id=active.reservation_id))


def _side(routed: int, spent_ns: Counter[str], granted: set[str]) -> PolicySide:
    values = [float(spent_ns.get(miner_ss58, 0)) for miner_ss58 in granted]
    spent = {miner_ss58: seconds(amount_ns) for miner_ss58, amount_ns in sorted(spent_ns.items()) if amount_ns}
    return PolicySide(routed, spent, jain_index(values), gini_coefficient(values))
