"""The replay of a log from its first event, with all checks of single events.

Nothing that a log may contain stops the replay: an event that cannot be used is reported and left out, and the replay
continues with the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from ledger import Row, origin_of
from ledger.codec import decode
from ledger.errors import CorruptLedger, NewerLedger, shortened
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    AllowanceReserved,
    BlockRecorded,
    BlockWithdrawn,
    CollateralRecorded,
    Correction,
    Event,
    ExpiryRecorded,
    Fact,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    LedgerOpened,
    ManifestsRecorded,
    ManifestsWithdrawn,
    MinerExcluded,
    MinerFact,
    MinerReadmitted,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
    Settlement,
    StateSealed,
)
from projections.audit.checks.conservation import balance_of, check_changed_accounts, report_imbalance
from projections.audit.checks.facts import FactCheck, is_name
from projections.audit.checks.jobs import JobCheck
from projections.audit.checks.miner_facts import MinerFactCheck
from projections.audit.checks.reservations import ReservationCheck
from projections.audit.checks.routes import RouteCheck
from projections.audit.checks.seals import SealCheck
from projections.audit.checks.settlements import SettlementCheck
from projections.row_checks import ROW_SHAPES, RowChecker
from projections.rules import Findings, Rule

from .due_queue import DueQueue
from .miner_facts import AuditMinerFacts
from .read_ahead import LaterClaim
from .state import AccountState, AuditedReservation, AuditState
from .tallies import FairnessTally
from .trials import Trials

BALANCED_EVERY_ROWS = 10_000
"""Balances are checked after this many rows, because each check sums all taken blocks of an account.

In between, every event changes the taken blocks by the value of its reservation. If an event does not, its check
reports the imbalance at once.
"""
LONGEST_KEY = 256
EARLIEST_NS, LATEST_NS = 946_684_800 * 10**9, 7_258_118_400 * 10**9
"""The starts of the years 2000 and 2200: no release of now accepts another reading of its clock."""
_MINER_FACTS = (
    MinerExcluded,
    MinerReadmitted,
    CollateralRecorded,
    JobElsewhereRecorded,
    JobElsewhereEnded,
    IncidentReported,
)
_OF_NEW_RULES = frozenset({StateSealed, BlockWithdrawn, ManifestsWithdrawn, *_MINER_FACTS})
"""Events that no release wrote before due times counted from the deciding clock, and syncs named whom they cover."""


class Replay:
    """Processes the rows of a log in order."""

    def __init__(self, validator_ss58: str, sealed_positions: Iterable[int] = (), *, strict: bool = False) -> None:
        self.findings = Findings()
        self.strict = strict
        """Whether a reservation whose choice is not proved is a finding."""
        self.fairness = FairnessTally()
        self.miner_facts = AuditMinerFacts()
        self.seals = SealCheck(sealed_positions, self.findings)
        self.state = AuditState()
        self.counts: dict[type[Event], int] = defaultdict(int)
        """Events by type."""
        self.recorded_at_ns = 0
        self._now_ns = 0
        """The clock that decided the current event."""
        self._has_new_rules = False
        """Whether an event has shown that a release with the rules of now writes this log."""
        self.row_checker = RowChecker()
        self.page_changes: list[AuditedReservation | tuple[Row, Settlement]] = []
        """Reservations and settlements of the current page, to compare with the history; the caller clears it."""
        self._decoded: dict[int, LaterClaim] = {}
        """Later claims that are decoded already, by position."""
        self._due_queue = DueQueue(self.state)
        self._jobs = JobCheck(self.findings)
        self._facts = FactCheck(self.state, validator_ss58, self.findings)
        self._reservations = ReservationCheck(self.state, self._due_queue, self.findings)
        trials = Trials(self.state, self.miner_facts, self.fairness)
        self._routes = RouteCheck(self.state, trials, self.fairness, self.findings)
        self._miner_facts = MinerFactCheck(self.miner_facts, self.findings)
        self._settlements = SettlementCheck(self.state, self._due_queue, self._jobs, self.findings)
        self._fact_checks: dict[type, tuple[str, Callable[[Row, Any], None]]] = {
            LedgerOpened: (SETTINGS_STREAM, self._facts.process_opening),
            SettingsChanged: (SETTINGS_STREAM, self._facts.process_settings),
            BlockRecorded: (CHAIN_STREAM, self._facts.process_block),
            ManifestsRecorded: (MANIFESTS_STREAM, self._facts.process_manifests),
            BlockWithdrawn: (CHAIN_STREAM, self._facts.process_block_withdrawal),
            ManifestsWithdrawn: (MANIFESTS_STREAM, self._facts.process_manifests_withdrawal),
        }
        self._checks: dict[type, Callable[[Row, Any], None]] = {
            **dict.fromkeys(self._fact_checks, self._process_fact),
            AllowanceReserved: self._process_reservation,
            ReservationSpent: self._process_settlement,
            ReservationReleased: self._process_settlement,
            ExpiryRecorded: self._process_settlement,
            StateSealed: self._process_seal,
            **dict.fromkeys(_MINER_FACTS, self._process_miner_fact),
        }

    def process_fact_before_seal(self, row: Row) -> None:
        """Check and apply a fact before the sealed position; nothing else of these rows is read."""
        try:
            event = decode(row.position, row.payload)
            self._fact_checks[type(event)][1](row, event)
        except (CorruptLedger, NewerLedger, KeyError) as unreadable:
            self.findings.add(row.position, Rule.READABLE_EVENTS, str(unreadable))

    def continue_after(
        self,
        position: int,
        a_hash: bytes,
        recorded_at_ns: int,
        versions: Mapping[str, int],
        active: Iterable[AuditedReservation],
    ) -> None:
        """Continue at a sealed position, with the versions of all streams and the active reservations there."""
        self.recorded_at_ns = recorded_at_ns
        self._facts.has_new_rules = self._has_new_rules = True  # Only such a release seals.
        self._miner_facts.knows_all = False
        self.row_checker.continue_after(position, a_hash, versions)
        self._jobs.continue_with(reservation.row for reservation in active)
        for reservation in self.state.active.values():
            self._due_queue.push(reservation)
        self.seals.start = self._routes.start = position
        self.seals.reach(self.state, self.miner_facts, self.row_checker, recorded_at_ns)

    @property
    def position(self) -> int:
        """The position of the last processed row."""
        return self.row_checker.position

    @property
    def unproved_choices(self) -> int:
        """How many claims name a choice that cannot be repeated, or mark one without naming it."""
        return self._routes.unproved

    def repeat_choices(self, claims: Iterable[LaterClaim]) -> None:
        """Repeat the choices that later claims made on the state of now."""
        for claim in claims:
            row, event = claim
            self._decoded[row.position] = claim
            decided_at_ns = row.recorded_at_ns if event.decided_at_ns is None else event.decided_at_ns
            # Later than the recorded time no clock can have been; `_decided_at_ns` reports it.
            now_ns = min(decided_at_ns, row.recorded_at_ns)
            self._due_queue.set_clock(now_ns)
            # If this fails, as nothing in a log may stop an audit, the claim is one whose choice cannot be repeated.
            with suppress(Exception):
                self._routes.repeat_choice(row, event, now_ns)

    def process(self, row: Row) -> None:
        """Check the next row and its event, and apply the event to the audit's state."""
        self.findings.stream = row.stream
        problems = self.row_checker.check(row)
        if problems:
            for position, rule, message, details in problems:
                self.findings.add(position, rule, message, **details)
            # A row with columns of wrong types cannot be processed further.
            if tuple(map(type, row)) not in ROW_SHAPES:
                return
        if row.recorded_at_ns < self.recorded_at_ns:
            self._report_time(row)
        if row.key is not None:
            self._check_key(row, row.key)
        try:
            event = self._event_of(row) if self._decoded else decode(row.position, row.payload)
            kind = type(event)
            self.counts[kind] += 1
            decided_at_ns = event.decided_at_ns
            # Older releases wrote the deciding clock of reservations only.
            if kind in _OF_NEW_RULES or (decided_at_ns is not None and kind is not AllowanceReserved):
                self._facts.has_new_rules = self._has_new_rules = True
            self._now_ns = row.recorded_at_ns if decided_at_ns is None else self._decided_at_ns(row, decided_at_ns)
            self._checks[kind](row, event)
        except (CorruptLedger, NewerLedger) as unreadable:
            self.findings.add(row.position, Rule.READABLE_EVENTS, str(unreadable))
        except Exception as error:
            # A log may contain events that no check foresaw, and an audit that fails on them would report nothing.
            message = f"the event cannot be processed: {shortened(error)}"
            self.findings.add(row.position, Rule.READABLE_EVENTS, message)
            # The event may be half applied, so the rankings must not rely on what they know of the accounts.
            self.state.record_change(resets_rankings=True)
        self.recorded_at_ns = row.recorded_at_ns
        if row.position % BALANCED_EVERY_ROWS == 0:
            check_changed_accounts(self.state, self.findings)

    def finish(self, *, at_head: bool) -> None:
        """Run the checks that need the whole log; `at_head` says whether no event follows the last processed one."""
        # If the audit stops before the head, the next event may still show the reason of pending expiries.
        if at_head and self._settlements.pending_expiries:
            self._settlements.check_pending_expiries()
        if self.position and not self._facts.opened:
            self.findings.add(1, Rule.OPENING_EVENT, "the log's first event does not open a ledger")
        self._facts.finish(self.position)
        self._routes.settle_chances()
        self.fairness.end_exclusions(self.recorded_at_ns)
        for chain_account in self.state.chain.accounts.values():
            account = self.state.account(chain_account.stream)
            balance = balance_of(self.state, account)
            if not balance.is_even:
                report_imbalance(self.findings, account, balance)

    def _event_of(self, row: Row) -> Event:
        claim = self._decoded.pop(row.position, None)
        return claim.event if claim is not None and claim.row == row else decode(row.position, row.payload)

    def _process_fact(self, row: Row, event: Fact) -> None:
        # Only a claim directly after expiries can be their reason.
        if self._settlements.pending_expiries:
            self._settlements.check_pending_expiries()
        stream, process = self._fact_checks[type(event)]
        if row.stream != stream:
            message = f"a fact is in the stream {shortened(row.stream)}, expected {stream!r}"
            self.findings.add(row.position, Rule.STREAM_OF_EVENT, message)
        if row.job_uuid is not None or row.settles is not None:
            self._report_columns(row, "the row of a fact must have neither a job nor `settles`")
        # A correction is the whole request by itself.
        if not isinstance(event, Correction) and (row.key is not None) != bool(getattr(event, "request", "")):
            self._report_columns(row, "a fact must have both a key and the digest of its call, or neither")
        if _is_of_release_that_names_choices(event):
            self._routes.names_choices = True
        if isinstance(event, LedgerOpened | SettingsChanged):
            self.fairness.count_settings(event.settings)
        process(row, event)

    def _process_miner_fact(self, row: Row, event: MinerFact) -> None:
        # Only a claim directly after expiries can be their reason.
        if self._settlements.pending_expiries:
            self._settlements.check_pending_expiries()
        self._routes.names_choices = True
        self.fairness.count_fact(event, self._now_ns)
        self._miner_facts.process(row, event, self._now_ns)

    def _process_seal(self, row: Row, event: StateSealed) -> None:
        # Only a claim directly after expiries can be their reason.
        if self._settlements.pending_expiries:
            self._settlements.check_pending_expiries()
        self.seals.check(row, event)

    def _process_reservation(self, row: Row, event: AllowanceReserved) -> None:
        account = self.state.accounts.get(row.stream) or self._new_account(row)
        origin = origin_of(event)
        self.fairness.count_reservation(account, origin, row.job_uuid)
        if self.strict and (origin in ("by_hand", "imported") or event.kept):
            message = f"a strict audit requires that each reservation was routed; the origin of this one is {origin}"
            self.findings.add(row.position, Rule.CHOICE_PROVED, message, miner_ss58=account.miner_ss58, origin=origin)
        if row.settles is not None or (event.axon is not None and row.job_uuid is None):
            message = "the row of a reservation must have no `settles`, and a job if a router made it"
            self._report_columns(row, message)
        if row.job_uuid is not None and not is_name(row.job_uuid):
            self._report_columns(row, "job_uuid must be 1 to 128 printable characters")
        if event.due_by_clock and event.decided_at_ns is None:
            message = "the due time counts from the deciding clock, but the event does not carry its reading"
            self.findings.add(row.position, Rule.DECISION_CLOCK, message)
        if event.imported == (event.reserved_at_ns is None):
            message = "the time at which a reservation was made elsewhere is recorded exactly if it is imported"
            self.findings.add(row.position, Rule.DECISION_CLOCK, message, reserved_at_ns=event.reserved_at_ns)
        now_ns = self._now_ns
        decided_on = row.position - len(self._settlements.pending_expiries) - 1
        self._due_queue.set_clock(now_ns)
        if self._settlements.pending_expiries:
            self._settlements.check_pending_expiries(row, event, now_ns)
        # In older releases due times counted from the recorded time.
        due_from_ns = now_ns if event.due_by_clock or self._has_new_rules else row.recorded_at_ns
        value_ns, is_plain = self._reservations.check(row, event, account, due_from_ns)
        if event.axon is not None and not event.imported:
            self._routes.check(row, event, account, now_ns, decided_on)
        else:
            account.mark_stale()
            self._routes.check_no_choice(row.position, event)
        self._jobs.check_reservation(row)
        reservation = self._reservations.apply(row, event, account, value_ns, is_plain=is_plain)
        self.page_changes.append(reservation)

    def _process_settlement(self, row: Row, event: Settlement) -> None:
        if row.settles is None or row.job_uuid is not None:
            self._report_columns(row, "the row of a settlement must have `settles`, and no job")
        if self._settlements.pending_expiries and type(event) is not ExpiryRecorded:
            self._settlements.check_pending_expiries()
        settled = self.state.active.get(row.settles or 0)
        self._settlements.settle(row, event, self._now_ns, previous_ns=self.recorded_at_ns)
        if settled is not None and type(event) is not ReservationSpent:
            self.fairness.count_unspent(settled)
        self.page_changes.append((row, event))

    def _check_key(self, row: Row, key: str) -> None:
        if not is_name(key, LONGEST_KEY):
            details = {"key": shortened(key)}
            message = f"the idempotency key must be 1 to {LONGEST_KEY} printable characters"
            self.findings.add(row.position, Rule.ROW_COLUMNS, message, **details)
        self._jobs.check_key(row.position, key)

    def _new_account(self, row: Row) -> AccountState:
        if not all(map(is_name, row.stream.split("\t", 1))) or "\t" not in row.stream:
            message = f"a reservation is in the stream {shortened(row.stream)}, which is not an account's stream"
            self.findings.add(row.position, Rule.STREAM_OF_EVENT, message)
        return self.state.account(row.stream)

    def _decided_at_ns(self, row: Row, decided_at_ns: int) -> int:
        """Return the clock that decided; it may only be behind, if recorded times would have decreased otherwise."""
        if decided_at_ns < row.recorded_at_ns == self.recorded_at_ns:
            if self._has_new_rules and not EARLIEST_NS <= decided_at_ns < LATEST_NS:
                message = "decided_at_ns must be between the years 2000 and 2200"
                self.findings.add(row.position, Rule.DECISION_CLOCK, message, decided_at_ns=decided_at_ns)
            return decided_at_ns
        details = {"decided_at_ns": decided_at_ns, "recorded_at_ns": row.recorded_at_ns}
        message = "decided_at_ns must be before recorded_at_ns, and recorded_at_ns that of the row before"
        self.findings.add(row.position, Rule.DECISION_CLOCK, message, **details)
        return min(decided_at_ns, row.recorded_at_ns)

    def _report_columns(self, row: Row, message: str) -> None:
        details = {"job_uuid": row.job_uuid, "attempt": row.attempt, "settles": row.settles}
        self.findings.add(row.position, Rule.ROW_COLUMNS, message, **details)

    def _report_time(self, row: Row) -> None:
        details = {"recorded_at_ns": row.recorded_at_ns, "before_ns": self.recorded_at_ns}
        message = "the recorded time is earlier than that of the row before"
        self.findings.add(row.position, Rule.RECORDED_TIMES, message, **details)


def _is_of_release_that_names_choices(event: Fact) -> bool:
    """Return whether earlier releases cannot have written a fact; their successors name the position of each choice."""
    if isinstance(event, LedgerOpened | SettingsChanged):
        return event.settings.tie_break == "uuid_and_hash"
    return isinstance(event, BlockRecorded) and bool(event.block_hash)
