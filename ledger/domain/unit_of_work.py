"""The unit of work: one batch of commands that is being decided, with the rows that it will append."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from ledger.codec import Row, decode, encode, key_names_row, position_in_key, reservation_position, row_hash
from ledger.errors import JobAlreadySpent
from ledger.events import (
    SEALS_STREAM,
    AllowanceReserved,
    Axon,
    Event,
    ExpiryRecorded,
    ReservationSpent,
    Settlement,
    StateSealed,
)
from ledger.values import instant

from .account import Account, ActiveReservation, Claim
from .lookup import Head, Lookup, LookupResult
from .reservation import settlement_of
from .state import LedgerState


class Command(Protocol):
    """A requested change: it decides on the state of a unit of work and appends events, or raises and appends none."""

    @property
    def key(self) -> str | None:
        """The idempotency key; if two queued commands have the same key, the second waits for the next batch."""
        ...

    @property
    def operation(self) -> str:
        """The name of the public call that requested the change."""
        ...

    @property
    def revertible(self) -> bool:
        """Whether the command appends only reservations, settlements and seals, which `UnitOfWork.revert` can undo."""
        ...

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the decision reads, beside those to which it appends."""
        ...

    @property
    def stands(self) -> bool:
        """Whether the decision is still right if only streams have moved that it neither reads nor continues.

        Such a command is a `StandingCommand`.
        """
        ...

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        """Add the keys, jobs and positions of stored rows that `decide` needs."""
        ...

    def retry_key(self, row: Row) -> str:
        """Return the key with which a retry finds the outcome; `row` is the last row that the command appended."""
        ...

    def decide(self, unit_of_work: UnitOfWork) -> Any:
        """Decide, append, and return the caller's result; the writer delivers it once the batch is committed."""
        ...


class StandingCommand(Command, Protocol):
    """A command whose events may be numbered and hashed behind another head than the one at which it was decided."""

    def renumbered(self, result: Any, row: Row) -> Any:
        """Return the result of `decide` with what the number of `row`, the last one appended, has changed."""
        ...


class LastAttempt(NamedTuple):
    """The settled last reservation of a job: its number among the job's reservations, and its settlement."""

    attempt: int
    settlement: tuple[Row, Settlement]


class UnitOfWork:
    """One batch being decided: the state including the batch's own appends, the clock, and the stored rows looked up.

    Each command sees the effects of the commands before it, so commands of one batch never conflict with each other.
    """

    def __init__(self, state: LedgerState, known: LookupResult, now_ns: int) -> None:
        self.state = state
        self.head = Head(state.position, state.hash, state.recorded_at_ns)
        self.known = known
        self.now_ns = now_ns
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.settled: dict[int, tuple[Row, Settlement]] = {}
        """The settlements in this batch, by reservation id."""
        self.claims = 0
        """The number of reservations decided."""
        self.moved_picks = 0
        """The number of jobs that lost the miner that was chosen for them on an earlier head."""
        self._settled_jobs: dict[str, LastAttempt] = {}
        self._changes: list[tuple[ActiveReservation, Event]] = []
        """The reservations that this batch made or settled, with the event of each change, in order."""
        self._once: dict[str, Row] = {}
        """The rows of this batch that are recorded once."""
        self._sealed_before: list[int] = []
        """For each seal of this batch, the position that was sealed last before it."""

    @property
    def recorded_at_ns(self) -> int:
        """The recorded time of the next row: the clock's, or the last row's if the clock jumped back.

        Recorded times never decrease within a ledger (this project's own rule), so the log is also ordered by time.
        """
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
        """Append an event at its stream's next version, apply it to the state, and return its row.

        `job` is the job's uuid and the number of its reservation; `settles` the position of the settled reservation.
        While the recorded time is ahead of the clock, the event carries the clock's reading, by which it was decided.
        """
        state, recorded_at_ns = self.state, self.recorded_at_ns
        if self.now_ns != recorded_at_ns:
            event = msgspec.structs.replace(event, decided_at_ns=self.now_ns)
        job_uuid, attempt = job or (None, None)
        unhashed = Row(
            state.position + 1,
            stream,
            state.version(stream) + 1,
            recorded_at_ns,
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

    def attach_key(self, key: str, request: str) -> None:
        """Add an idempotency key, and the digest of its whole call, to the fact that was appended last.

        This happens afterwards, because only after the last fact of a call is decided is it known which one the last
        new one is. The state needs no other change than the hash: facts do not depend on `request`.
        """
        event = msgspec.structs.replace(self.events[-1], request=request)
        previous_hash = self.rows[-2].hash if len(self.rows) > 1 else self.head.hash
        row = self.rows[-1]._replace(key=key, payload=encode(event))
        row = row._replace(hash=row_hash(previous_hash, row))
        self.rows[-1], self.events[-1], self.state.hash = row, event, row.hash

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
        chosen_at: int | None = None,
    ) -> ActiveReservation:
        """Append the expiries that the claim requires and then the reservation; return it.

        The due time is amount + margin after the clock that decides, even if the recorded time is ahead of it: the
        clock jumped back, or another host's is ahead. Otherwise one wrong reading, far in the future, would make all
        later reservations immortal.
        """
        event = AllowanceReserved(
            amount_ns=amount_ns,
            blocks=claim.blocks,
            job_start_block=job_start_block,
            expires_at_ns=self.now_ns + amount_ns + self.state.chain.settings.reservation_margin_ns,
            axon=axon,
            due_by_clock=self.now_ns != self.recorded_at_ns,
            chosen_at=chosen_at,
        )
        self.claims += 1
        return self.append_reservation(account, claim.overdue, event, key, job)

    def append_reservation(
        self,
        account: Account,
        overdue: list[ActiveReservation],
        event: AllowanceReserved,
        key: str | None,
        job: tuple[str, int] | None,
    ) -> ActiveReservation:
        """Append the expiries that a reservation requires and then its event; return the reservation."""
        for each in overdue:
            self.settle(each, ExpiryRecorded(each.reservation_id))
        self.append(account.stream, event, key=key, job=job)
        # The fold inserted the new reservation last.
        active = next(reversed(account.active.values()))
        self._changes.append((active, event))
        return active

    def settle(self, active: ActiveReservation, event: Settlement, key: str | None = None) -> Row:
        """Append the settlement of an active reservation and return its row."""
        row = self.append(active.account.stream, event, key=key, settles=active.position)
        self._changes.append((active, event))
        self.settled[active.reservation_id] = (row, event)
        if active.job_uuid is not None:
            self._settled_jobs[active.job_uuid] = LastAttempt(active.attempt or 0, (row, event))
        return row

    def seal(self, event: StateSealed, key: str) -> Row:
        """Append a seal and return its row."""
        sealed_before = self.state.sealed_position
        row = self.append(SEALS_STREAM, event, key=key)
        self._sealed_before.append(sealed_before)
        return row

    def append_once(self, stream: str, event: Event, once: str, key: str | None) -> Row:
        """Append a fact that the column of the job names, so that the log has it at most once; return its row."""
        row = self.append(stream, event, key=key, job=(once, 1))
        self._once[once] = row
        return row

    def once(self, once: str) -> tuple[Row, Event] | None:
        """Return the row and the event of a fact that is recorded once; None if it is neither stored nor appended."""
        row = self._once.get(once) or self.known.jobs.get(once)
        return None if row is None else (row, decode(row.position, row.payload))

    def active_reservation_of(self, job_uuid: str | None) -> ActiveReservation | None:
        """Return the job's active reservation, or None; raise `JobAlreadySpent` if its last one was spent."""
        if job_uuid is None:
            return None
        active = self.state.jobs.get(job_uuid)
        if active is None:
            last = self.last_attempt(job_uuid)
            if last is not None and isinstance(last.settlement[1], ReservationSpent):
                row, event = last.settlement
                raise JobAlreadySpent(job_uuid, event.reservation_id, instant(row.recorded_at_ns))
        return active

    def next_attempt(self, job_uuid: str | None) -> tuple[str, int] | None:
        """Return the job and the number of its next reservation, counted from 1; None without a job."""
        if job_uuid is None:
            return None
        last = self.last_attempt(job_uuid)
        return job_uuid, last.attempt + 1 if last is not None else 1

    def last_attempt(self, job_uuid: str) -> LastAttempt | None:
        """Return the last reservation of a job that has no active one; None for a new job."""
        settled = self._settled_jobs.get(job_uuid)
        if settled is not None:
            # Settled by this batch, and so newer than every stored reservation of the job.
            return settled
        row = self.known.jobs.get(job_uuid)
        settlement = None if row is None else self.settlement(row.position)
        return None if row is None or settlement is None else LastAttempt(row.attempt or 0, settlement)

    def jobs(self) -> dict[int, str]:
        """Return the job for which each row reserves or settles, by the row's position; no row may be of a fact."""
        rows = (row for row in self.rows if row.stream != SEALS_STREAM)
        changes = zip(rows, self._changes, strict=True)
        return {row.position: active.job_uuid for row, (active, _) in changes if active.job_uuid is not None}

    def revert(self) -> None:
        """Restore the state from before the batch; all its commands must be revertible."""
        # In reverse, since a later event of the batch may depend on an earlier one, such as a claim on an expiry.
        for active, event in reversed(self._changes):
            self.state.revert(active, event)
        for sealed_before in reversed(self._sealed_before):
            self.state.revert_seal(sealed_before)
        self.state.position, self.state.hash, self.state.recorded_at_ns = self.head

    def first_outcome(self, key: str | None) -> tuple[Row, Event] | None:
        """Return the row and the event that were appended under the key before; None if there are none.

        The key may also be an `unknown_outcome_key`, which names the row by its position and hash.
        """
        if key is None:
            return None
        row = self.known.keys.get(key)
        if row is None and (position := position_in_key(key)) is not None:
            row = self.known.rows.get(position)
            row = row if row is not None and key_names_row(key, row) else None
        return None if row is None else (row, decode(row.position, row.payload))

    def reservation_row(self, reservation_id: int) -> tuple[Row, AllowanceReserved] | None:
        """Return the stored event of a reservation that is no longer active; None if there is none or not looked up."""
        row = self.known.rows.get(reservation_position(reservation_id))
        if row is None:
            return None
        event = decode(row.position, row.payload)
        return (row, event) if isinstance(event, AllowanceReserved) else None

    def settlement(self, position: int) -> tuple[Row, Settlement] | None:
        """Return the stored settlement of the reservation at a position; None if there is none or not looked up."""
        return settlement_of(self.known, position)
