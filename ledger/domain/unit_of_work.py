"""A batch being decided: what commands see, and what they append."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from ledger.codec import Row, decode, encode, key_names_row, position_in_key, reservation_position, row_hash
from ledger.events import AllowanceReserved, Axon, Event, ExpiryRecorded, Settlement

from .account import Account, ActiveReservation, Claim
from .lookup import Head, Lookup, LookupResult
from .reservation import settlement_of
from .state import LedgerState


class Command(Protocol):
    """A change that a caller asks for: it decides on the draft's state, and appends, or raises and does neither."""

    @property
    def key(self) -> str | None:
        """The idempotency key; of two commands with one key, the second waits for the next batch."""
        ...

    @property
    def operation(self) -> str:
        """The call that asks for it, by the name that callers know."""
        ...

    @property
    def revertible(self) -> bool:
        """Whether all that it appends are reservations and settlements, which a state can take back."""
        ...

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        """Asks for what must be known of the stored past."""
        ...

    def retry_key(self, row: Row) -> str:
        """The key with which the same call tells what became of it; `row` is the last that it would append."""
        ...

    def decide(self, unit_of_work: UnitOfWork) -> Any:
        """Decides, appends, and gives the caller's answer, which is told once the batch is committed."""
        ...


class LastAttempt(NamedTuple):
    """A job's last reservation, which has ended: which one it was, and how it ended."""

    attempt: int
    settlement: tuple[Row, Settlement]


class UnitOfWork:
    """The state with the batch's own appends already in it, the clock, and what the stored past says."""

    def __init__(self, state: LedgerState, known: LookupResult, now_ns: int) -> None:
        self.state = state
        self.head = Head(state.position, state.hash, state.recorded_at_ns)
        self.known = known
        self.now_ns = now_ns
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.ended: dict[int, tuple[Row, Settlement]] = {}
        """What this batch has settled, by reservation id."""
        self.claims = 0
        """Reservations decided."""
        self.moved_picks = 0
        """Jobs that had to leave the miner that was chosen for them on an earlier head."""
        self._ended_jobs: dict[str, LastAttempt] = {}
        self._moved: list[tuple[ActiveReservation, Event]] = []
        """The reservations that this batch made or ended, and by which event, in order."""

    @property
    def recorded_at_ns(self) -> int:
        """The time that the next row records: the clock's, but never before the row before it."""
        return max(self.state.recorded_at_ns, self.now_ns)

    def append(
        self,
        stream: str,
        event: Event,
        *,
        key: str | None = None,
        job: tuple[str, int] | None = None,
        settles: int | None = None,
    ) -> Row:
        """Appends an event at its stream's next version and evolves the state by it."""
        state = self.state
        job_uuid, attempt = job or (None, None)
        unhashed = Row(
            state.position + 1,
            stream,
            state.version(stream) + 1,
            self.recorded_at_ns,
            key,
            job_uuid,
            attempt,
            settles,
            encode(event),
            b"",
        )
        row = Row(*unhashed[:-1], row_hash(state.hash, unhashed))
        self.rows.append(row)
        self.events.append(event)
        state.evolve(row, event)
        return row

    def sign(self, key: str, request: str) -> None:
        """Puts a key, and the digest of the call that has it, on the fact that was appended last."""
        signed = msgspec.structs.replace(self.events[-1], request=request)
        before = self.rows[-2].hash if len(self.rows) > 1 else self.head.hash
        row = self.rows[-1]._replace(key=key, payload=encode(signed))
        row = row._replace(hash=row_hash(before, row))
        self.rows[-1], self.events[-1], self.state.hash = row, signed, row.hash

    def reserve(
        self,
        account: Account,
        claim: Claim,
        *,
        amount_ns: int,
        job_start_block: int,
        key: str | None = None,
        job: tuple[str, int] | None = None,
        axon: Axon | None = None,
        kept: bool = False,
    ) -> ActiveReservation:
        """Appends the expiries that the claim brings, and the reservation itself."""
        recorded_at_ns = self.recorded_at_ns
        for overdue in claim.expired:
            self.settle(overdue, ExpiryRecorded(overdue.reservation_id))
        event = AllowanceReserved(
            amount_ns=amount_ns,
            blocks=claim.blocks,
            job_start_block=job_start_block,
            expires_at_ns=recorded_at_ns + amount_ns + self.state.chain.settings.reservation_margin_ns,
            axon=axon,
            decided_at_ns=self.now_ns if self.now_ns != recorded_at_ns else None,
            kept=kept,
        )
        self.append(account.stream, event, key=key, job=job)
        self.claims += 1
        active = next(reversed(account.active.values()))
        self._moved.append((active, event))
        return active

    def settle(self, active: ActiveReservation, event: Settlement, key: str | None = None) -> Row:
        """Appends the end of a standing reservation."""
        row = self.append(active.account.stream, event, key=key, settles=active.position)
        self._moved.append((active, event))
        self.ended[active.reservation_id] = (row, event)
        if active.job_uuid is not None:
            self._ended_jobs[active.job_uuid] = LastAttempt(active.attempt or 0, (row, event))
        return row

    def last_of_job(self, job_uuid: str) -> LastAttempt | None:
        """How the last reservation of a job that has none standing came to its end; None for a new job."""
        row = self.known.jobs.get(job_uuid)
        settlement = None if row is None else self.settlement(row.position)
        if row is not None and settlement is not None:
            return LastAttempt(row.attempt or 0, settlement)
        return self._ended_jobs.get(job_uuid)

    def revert(self) -> None:
        """Takes the state back to where it was before the batch; for batches of revertible commands."""
        for active, event in reversed(self._moved):
            self.state.revert(active, event)
        self.state.position, self.state.hash, self.state.recorded_at_ns = self.head

    def first_outcome(self, key: str | None) -> tuple[Row, Event] | None:
        """What was appended under the key before."""
        if key is None:
            return None
        row = self.known.keys.get(key)
        if row is None and (position := position_in_key(key)) is not None:
            row = self.known.rows.get(position)
            row = row if row is not None and key_names_row(key, row) else None
        return None if row is None else (row, decode(row.position, row.payload))

    def reservation_row(self, reservation_id: int) -> tuple[Row, AllowanceReserved] | None:
        """The stored event that made a reservation that no longer stands, if it was looked up and is there."""
        row = self.known.rows.get(reservation_position(reservation_id))
        if row is None:
            return None
        event = decode(row.position, row.payload)
        return (row, event) if isinstance(event, AllowanceReserved) else None

    def settlement(self, position: int) -> tuple[Row, Settlement] | None:
        """The stored end of the reservation made at a position, if it was looked up and is there."""
        return settlement_of(self.known, position)
