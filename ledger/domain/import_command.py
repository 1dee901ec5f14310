"""The command that takes over a reservation of another system: exactly its blocks, with its due time.

A validator that moves to this ledger must not lose its bookings, else blocks that were paid with once would be free to
be spent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from ledger.codec import Row, decode, unknown_outcome_key
from ledger.codec import reservation_id as id_of
from ledger.errors import (
    AllowanceException,
    CannotImportReservation,
    IdempotencyConflict,
    InvalidInput,
    JobRequestConflict,
    JobRoutingException,
)
from ledger.events import AllowanceReserved, ReservationSpent, Run, account_stream
from ledger.values import seconds

from .account import Account, ActiveReservation
from .blocks import BlockSet
from .commands import REQUEST_BYTES, look_up_job, look_up_key
from .lookup import Lookup
from .reservation import Reservation, active_to_reservation, status_after
from .state import LedgerState
from .unit_of_work import UnitOfWork

ROUNDING_NS_PER_BLOCK = 1000
"""How far an amount may exceed what its blocks grant, per block: other systems add up floats."""


class ImportReservation:
    """Reserve exactly the given blocks of an account, and spend them in the same append if the job has run.

    Blocks may be invalidated or too old: the other system held them when they were not. Its account, blocks, job and
    `reserved_at_ns` identify the reservation. Importing it again changes nothing, except that it is spent if it is
    still reserved here and the other system says by now that it was spent. `amount_ns` is None if the other system has
    not kept it: then it is what the blocks grant, at most the longest job.
    """

    operation = "import_reservation"
    revertible = True
    streams: tuple[str, ...] = ()
    stands = False

    def __init__(
        self,
        miner_ss58: str,
        executor_class: str,
        blocks: list[Run],
        amount_ns: int | None,
        job_uuid: str | None,
        reserved_at_ns: int,
        expires_at_ns: int,
        *,
        is_spent: bool,
        key: str | None,
    ) -> None:
        self.miner_ss58 = miner_ss58
        self.executor_class = executor_class
        self.stream = account_stream(miner_ss58, executor_class)
        self.blocks = blocks
        self.amount_ns = amount_ns
        self.job_uuid = job_uuid
        self.reserved_at_ns = reserved_at_ns
        self.expires_at_ns = expires_at_ns
        self.is_spent = is_spent
        self.key = key or f"imported:{self._identity()}"

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)
        look_up_job(self.job_uuid, state, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> Reservation | int:
        """Return the reservation, or its id if it was imported and settled before: the caller reads its settlement."""
        first = self._first_outcome(unit_of_work)
        if first is None:
            return self._settled(unit_of_work, self._take_over(unit_of_work))
        row, event = first
        if not isinstance(event, AllowanceReserved) or not self._is_of(row, event):
            raise IdempotencyConflict(self.key, row.position)
        reservation_id = id_of(row.position, row.hash)
        active = unit_of_work.state.active.get(reservation_id)
        return reservation_id if active is None else self._settled(unit_of_work, active)

    def _first_outcome(self, unit_of_work: UnitOfWork) -> tuple[Row, Any] | None:
        """Return the stored row with the key, or the row of this batch: one `ImportReservations` may name it twice."""
        appended = next((row for row in unit_of_work.rows if row.key == self.key), None)
        if appended is not None:
            return appended, decode(appended.position, appended.payload)
        return unit_of_work.first_outcome(self.key)

    def _settled(self, unit_of_work: UnitOfWork, active: ActiveReservation) -> Reservation:
        """Return the active reservation, spent if the other system says so."""
        validator_ss58 = unit_of_work.state.chain.validator_ss58
        if not self.is_spent:
            return active_to_reservation(active, validator_ss58)
        spent = ReservationSpent(reservation_id=active.reservation_id)
        row = unit_of_work.settle(active, spent)
        return active_to_reservation(active, validator_ss58, status_after(spent), row.recorded_at_ns)

    def _take_over(self, unit_of_work: UnitOfWork) -> ActiveReservation:
        self._refuse_other_job(unit_of_work.active_reservation_of(self.job_uuid))
        account = self._account_with_blocks(unit_of_work)
        event = AllowanceReserved(
            amount_ns=self._amount_ns(unit_of_work.state, account),
            blocks=self.blocks,
            # The other systems do not say where the job started. Its newest block is the highest one that cannot be
            # wrong: no job is paid with a block that does not exist yet.
            job_start_block=self.blocks[-1][1],
            expires_at_ns=self.expires_at_ns,
            imported=True,
            reserved_at_ns=self.reserved_at_ns,
        )
        overdue = account.overdue_in(self.blocks, unit_of_work.now_ns)
        return unit_of_work.append_reservation(
            account, overdue, event, self.key, unit_of_work.next_attempt(self.job_uuid)
        )

    def _account_with_blocks(self, unit_of_work: UnitOfWork) -> Account:
        """Return the account if all blocks are granted and not taken; overdue reservations take none."""
        chain = unit_of_work.state.chain
        account = chain.accounts.get(self.stream)
        if account is None:
            raise CannotImportReservation(self.miner_ss58, self.executor_class, self.blocks, [])
        not_granted = account.not_granted(chain.blocks, self.blocks)
        taken = _common(account.occupied(unit_of_work.now_ns), self.blocks)
        if not_granted or taken:
            raise CannotImportReservation(self.miner_ss58, self.executor_class, not_granted, taken)
        return account

    def _amount_ns(self, state: LedgerState, account: Account) -> int:
        worth_ns = sum(account.amount_ns(state.chain.blocks, first, last + 1) for first, last in self.blocks)
        longest_ns = state.chain.settings.longest_job_ns
        rounding_ns = ROUNDING_NS_PER_BLOCK * sum(last + 1 - first for first, last in self.blocks)
        if self.amount_ns is None:
            return min(worth_ns, longest_ns)
        most_ns = min(worth_ns + rounding_ns, longest_ns)
        if not 0 < self.amount_ns <= most_ns:
            expected = f"an amount above 0 and up to {seconds(min(worth_ns, longest_ns))} s, which the blocks grant"
            raise InvalidInput("amount_seconds", seconds(self.amount_ns), expected)
        return min(self.amount_ns, worth_ns)

    def _refuse_other_job(self, active: ActiveReservation | None) -> None:
        if active is None:
            return
        recorded = {"miner_ss58": active.account.miner_ss58, "blocks": active.blocks}
        given = {"miner_ss58": self.miner_ss58, "blocks": self.blocks}
        differences = {name: (recorded[name], given[name]) for name in recorded}
        raise JobRequestConflict(str(self.job_uuid), active.reservation_id, differences)

    def _identity(self) -> str:
        content = (self.stream, self.blocks, self.job_uuid, self.reserved_at_ns)
        return blake2b(msgspec.json.encode(content), digest_size=REQUEST_BYTES).hexdigest()

    def _is_of(self, row: Row, event: AllowanceReserved) -> bool:
        recorded = (row.stream, event.blocks, row.job_uuid, event.reserved_at_ns)
        return event.imported and recorded == (self.stream, self.blocks, self.job_uuid, self.reserved_at_ns)


class ImportReservations:
    """Import reservations in order up to the first refused one; return the outcomes and the refusal.

    The refusal is returned, not raised, because the reservations before it are imported: a command that raises appends
    nothing.
    """

    operation = "import_reservations"
    # Only under the lock the stored rows are known. Without them a repeat looks like one whose blocks are taken; a
    # single import then has no row and is decided again, but one of several may follow another that has.
    revertible = False
    streams: tuple[str, ...] = ()
    stands = False
    key = None

    def __init__(self, imports: Sequence[ImportReservation]) -> None:
        self.imports = imports

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        for each in self.imports:
            each.add_lookups(state, lookup)

    def retry_key(self, row: Row) -> str:
        return unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> ImportsOutcome:
        outcomes: list[Reservation | int] = []
        for each in self.imports:
            try:
                outcomes.append(each.decide(unit_of_work))
            except (AllowanceException, JobRoutingException) as refusal:
                return outcomes, refusal
        return outcomes, None


ImportsOutcome = tuple[list[Reservation | int], AllowanceException | JobRoutingException | None]
"""The outcomes of the reservations before the first refused one, and the refusal; None if none was refused."""


def _common(blocks: BlockSet, runs: list[Run]) -> list[Run]:
    return [(start, end - 1) for first, last in runs for start, end in blocks.between(first, last + 1)]
