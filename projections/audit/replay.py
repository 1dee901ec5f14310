"""The log from nothing, event by event, each rule checked as it goes.

Nothing that a log may hold stops it: what cannot be used is noted and left out, and the rest is replayed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ledger import Row
from ledger.codec import decode
from ledger.errors import CorruptLedger, NewerLedger, shortened
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    AllowanceReserved,
    BlockRecorded,
    Event,
    ExpiryRecorded,
    Fact,
    LedgerOpened,
    ManifestsRecorded,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
    Settlement,
)
from projections.audit.checks.conservation import balance_of, check_changed_accounts, report_imbalance
from projections.audit.checks.facts import FactCheck, is_name
from projections.audit.checks.jobs import JobCheck
from projections.audit.checks.reservations import ReservationCheck
from projections.audit.checks.routes import RouteCheck
from projections.audit.checks.settlements import SettlementCheck
from projections.row_checks import ROW_SHAPES, RowChecker
from projections.rules import Findings, Rule

from .due_queue import DueQueue
from .state import AccountState, AuditedReservation, AuditState

BALANCED_EVERY_ROWS = 10_000
"""In between, an event moves what is taken by what its reservation is worth; one that does not is balanced at once."""
LONGEST_KEY = 256


class Replay:
    """Takes a log's rows in order."""

    def __init__(self, validator_ss58: str) -> None:
        self.findings = Findings()
        self.state = AuditState()
        self.counts: dict[type[Event], int] = defaultdict(int)
        """Events by type."""
        self.recorded_at_ns = 0
        self.row_checker = RowChecker()
        self.page: list[AuditedReservation | tuple[Row, Settlement]] = []
        """Reservations and settlements since whoever compares them with the read models last took them."""
        self._due_queue = DueQueue(self.state)
        self._jobs = JobCheck(self.findings)
        self._facts = FactCheck(self.state, validator_ss58, self.findings)
        self._reservations = ReservationCheck(self.state, self._due_queue, self.findings)
        self._routes = RouteCheck(self.state, self.findings)
        self._endings = SettlementCheck(self.state, self._due_queue, self._jobs, self.findings)
        self._facts_by_type: dict[type, tuple[str, Callable[[Row, Any], None]]] = {
            LedgerOpened: (SETTINGS_STREAM, self._facts.open),
            SettingsChanged: (SETTINGS_STREAM, self._facts.change_settings),
            BlockRecorded: (CHAIN_STREAM, self._facts.record_block),
            ManifestsRecorded: (MANIFESTS_STREAM, self._facts.record_manifests),
        }
        self._steps: dict[type, Callable[[Row, Any], None]] = {
            **dict.fromkeys(self._facts_by_type, self._fact),
            AllowanceReserved: self._reserve,
            ReservationSpent: self._settle,
            ReservationReleased: self._settle,
            ExpiryRecorded: self._settle,
        }

    @property
    def position(self) -> int:
        """The last row taken."""
        return self.row_checker.position

    def take(self, row: Row) -> None:
        """Takes the next row."""
        problems = self.row_checker.check(row)
        if problems:
            for position, rule, message, details in problems:
                self.findings.add(position, rule, message, **details)
            if tuple(map(type, row)) not in ROW_SHAPES:
                return
        if row.recorded_at_ns < self.recorded_at_ns:
            self._note_time(row)
        if row.key is not None:
            self._take_key(row, row.key)
        try:
            event = decode(row.position, row.payload)
            kind = type(event)
            self.counts[kind] += 1
            self._steps[kind](row, event)
        except (CorruptLedger, NewerLedger) as unreadable:
            self.findings.add(row.position, Rule.READABLE_EVENTS, str(unreadable))
        except Exception as error:  # A log may hold what nobody thought of; the audit goes on all the same.
            message = f"the event cannot be taken: {shortened(error)}"
            self.findings.add(row.position, Rule.READABLE_EVENTS, message)
            self.state.change(upheaval=True)
        self.recorded_at_ns = row.recorded_at_ns
        if row.position % BALANCED_EVERY_ROWS == 0:
            check_changed_accounts(self.state, self.findings)

    def end(self, *, at_head: bool) -> None:
        """Balances every account, and holds what the last events left open against the end, where it is one."""
        if at_head and self._endings.expiries:
            self._endings.explain()
        if self.position and not self._facts.opened:
            self.findings.add(1, Rule.OPENING_EVENT, "the log does not begin by opening a ledger")
        self._facts.end(self.position)
        for account in self.state.chain.accounts.values():
            account_state = self.state.account_state(account.stream)
            balance = balance_of(self.state, account_state)
            if not balance.is_even:
                report_imbalance(self.findings, account_state, balance)

    def _fact(self, row: Row, event: Fact) -> None:
        """Takes a fact; expiries that stand before it are not its doing."""
        if self._endings.expiries:
            self._endings.explain()
        stream, take = self._facts_by_type[type(event)]
        if row.stream != stream:
            message = f"a fact in the stream {shortened(row.stream)} instead of {stream!r}"
            self.findings.add(row.position, Rule.STREAM_OF_EVENT, message)
        if row.job_uuid is not None or row.settles is not None:
            self._note_columns(row, "a fact is about no job and settles nothing")
        if (row.key is not None) != bool(getattr(event, "request", "")):
            self._note_columns(row, "a fact has a key and the digest of its call, or neither")
        take(row, event)

    def _reserve(self, row: Row, event: AllowanceReserved) -> None:
        account_state = self.state.account_states.get(row.stream) or self._new_book(row)
        if row.settles is not None or (event.axon is not None and row.job_uuid is None):
            self._note_columns(row, "a reservation settles nothing, and one that was routed names its job")
        if row.job_uuid is not None and not is_name(row.job_uuid):
            self._note_columns(row, "no job has such a name")
        now_ns = row.recorded_at_ns if event.decided_at_ns is None else self._decided_at_ns(row, event.decided_at_ns)
        self._due_queue.move_to(now_ns)
        if self._endings.expiries:
            self._endings.explain(row, event, now_ns)
        worth_ns, is_free_run = self._reservations.check(row, event, account_state)
        if event.axon is not None:
            self._routes.check(row, event, account_state, now_ns)
        else:
            account_state.touch()
            if event.kept:
                message = "no router made the reservation, yet its miner is said to be kept"
                self.findings.add(row.position, Rule.ROUTING_DECISION, message)
        self._jobs.reserved(row)
        self.page.append(self._reservations.stand(row, event, account_state, worth_ns, is_free_run=is_free_run))

    def _settle(self, row: Row, event: Settlement) -> None:
        if row.settles is None or row.job_uuid is not None:
            self._note_columns(row, "a settlement says what it settles, and names no job")
        if self._endings.expiries and type(event) is not ExpiryRecorded:
            self._endings.explain()
        self._endings.settle(row, event, after_ns=self.recorded_at_ns)
        self.page.append((row, event))

    def _take_key(self, row: Row, key: str) -> None:
        if not is_name(key, LONGEST_KEY):
            details = {"key": shortened(key)}
            self.findings.add(row.position, Rule.ROW_COLUMNS, "no idempotency key is such a text", **details)
        self._jobs.keyed(row.position, key)

    def _new_book(self, row: Row) -> AccountState:
        if not all(map(is_name, row.stream.split("\t", 1))) or "\t" not in row.stream:
            message = f"a reservation in the stream {shortened(row.stream)}, which is no account's"
            self.findings.add(row.position, Rule.STREAM_OF_EVENT, message)
        return self.state.account_state(row.stream)

    def _decided_at_ns(self, row: Row, decided_at_ns: int) -> int:
        """The clock that decided; a recorded time differs from it only where the one before was later."""
        if decided_at_ns < row.recorded_at_ns == self.recorded_at_ns:
            return decided_at_ns
        details = {"decided_at_ns": decided_at_ns, "recorded_at_ns": row.recorded_at_ns}
        message = "its clock is told apart from the recorded time without need, or stood after it"
        self.findings.add(row.position, Rule.DECISION_CLOCK, message, **details)
        return min(decided_at_ns, row.recorded_at_ns)

    def _note_columns(self, row: Row, message: str) -> None:
        details = {"job_uuid": row.job_uuid, "attempt": row.attempt, "settles": row.settles}
        self.findings.add(row.position, Rule.ROW_COLUMNS, message, **details)

    def _note_time(self, row: Row) -> None:
        details = {"recorded_at_ns": row.recorded_at_ns, "before_ns": self.recorded_at_ns}
        self.findings.add(row.position, Rule.RECORDED_TIMES, "recorded earlier than the event before it", **details)
