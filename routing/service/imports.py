"""The calls that take over reservations of another system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

import msgspec

from ledger import ImportReservation, ImportReservations, Reservation
from ledger.codec import MOST_RESERVED_BLOCKS
from ledger.errors import AllowanceException, InvalidInput, JobRoutingException
from ledger.events import Run
from ledger.results import Result
from ledger.values import amount, instant_ns, integer, job_name, name

from .miner_facts import MinerFactCalls, checked_key

ImportedStatus = Literal["reserved", "spent"]


class ImportedReservation(Result, msgspec.Struct, frozen=True, kw_only=True):
    """A reservation of another system: exactly these blocks, as runs `(first, last)`.

    Times are aware. `amount_seconds` of None, which the other system has not kept, is what the blocks grant, at most
    the longest job.
    """

    miner_ss58: str
    executor_class: str
    blocks: Sequence[tuple[int, int]]
    amount_seconds: float | None
    reserved_at: datetime
    expires_at: datetime
    status: ImportedStatus = "reserved"
    job_uuid: str | UUID | None = None


class ImportCalls(MinerFactCalls):
    """The calls of `Allowance` that import reservations."""

    async def import_reservation(
        self, reservation: ImportedReservation, *, idempotency_key: str | None = None
    ) -> Reservation:
        """Take over a reservation that another system made.

            await ledger.import_reservation(
                ImportedReservation(
                    miner_ss58=miner,
                    executor_class="always_on.gpu-24gb",
                    blocks=[(1000, 1003)],
                    amount_seconds=60.0,
                    reserved_at=made,
                    expires_at=due,
                    status="spent",
                )
            )

        Blocks may be invalidated or older than a job may use now. Account, blocks, `job_uuid` and `reserved_at`
        identify the reservation: importing it again changes nothing, except that it is spent if it is still reserved
        here and `status` is "spent" by now. The result's `reserved_at` is the time of the import; the event in the log
        has the other system's. Raises `CannotImportReservation` if a block grants nothing or is taken,
        `JobRequestConflict` or `JobAlreadySpent` if the job has another reservation, `InvalidInput`, and
        `IdempotencyConflict`.
        """
        outcome: Reservation | int = await self.execute(_command(reservation, checked_key(idempotency_key)))
        return await self._read_if_settled(outcome)

    async def import_reservations(
        self, reservations: Sequence[ImportedReservation]
    ) -> tuple[list[Reservation], AllowanceException | JobRoutingException | None]:
        """Take over many reservations in order and in one commit, up to the first that is refused or malformed.

        Return the reservations before it, and the refusal; None if none was refused. Repeating the call is safe,
        since their content identifies them.
        """
        commands, malformed = _commands(reservations)
        outcomes, refusal = await self.execute(ImportReservations(commands))
        return [await self._read_if_settled(outcome) for outcome in outcomes], refusal or malformed

    async def _read_if_settled(self, outcome: Reservation | int) -> Reservation:
        """Return the reservation of an import; if it was settled before, the command returned only its id."""
        return await self.reservation(outcome) if isinstance(outcome, int) else outcome


def _commands(reservations: Iterable[ImportedReservation]) -> tuple[list[ImportReservation], InvalidInput | None]:
    """Return the commands before the first malformed reservation, and the error about it; None if all are valid."""
    commands: list[ImportReservation] = []
    for each in reservations:
        try:
            commands.append(_command(each, None))
        except InvalidInput as malformed:
            return commands, malformed
    return commands, None


def _command(reservation: ImportedReservation, key: str | None) -> ImportReservation:
    if not isinstance(reservation, ImportedReservation):
        raise InvalidInput("reservation", reservation, "an ImportedReservation")
    if reservation.status not in get_args(ImportedStatus):
        raise InvalidInput("status", reservation.status, '"reserved" or "spent"')
    amount_seconds, job_uuid = reservation.amount_seconds, reservation.job_uuid
    return ImportReservation(
        name(reservation.miner_ss58, "miner_ss58"),
        name(reservation.executor_class, "executor_class"),
        checked_runs(reservation.blocks),
        None if amount_seconds is None else amount(amount_seconds, "amount_seconds"),
        None if job_uuid is None else job_name(job_uuid),
        instant_ns(reservation.reserved_at, "reserved_at"),
        instant_ns(reservation.expires_at, "expires_at"),
        is_spent=reservation.status == "spent",
        key=key,
    )


def checked_runs(blocks: object) -> list[Run]:
    """Return runs of blocks in ascending order, touching ones merged. Raises `InvalidInput` if runs overlap."""
    expected = "runs of blocks such as [[1000, 1003]], each block once"
    if isinstance(blocks, (str, bytes)) or not isinstance(blocks, Iterable):
        raise InvalidInput("blocks", blocks, expected)
    given = [_checked_run(run, expected) for run in blocks]
    if not given or sum(last + 1 - first for first, last in given) > MOST_RESERVED_BLOCKS:
        raise InvalidInput("blocks", given, f"{expected}, from 1 to {MOST_RESERVED_BLOCKS:,} blocks")
    runs: list[Run] = []
    for first, last in sorted(given):
        if runs and first <= runs[-1][1]:
            raise InvalidInput("blocks", given, expected)
        if runs and first == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    return runs


def _checked_run(run: object, expected: str) -> Run:
    match run:
        case [first, last]:
            first = integer(first, "blocks", 1)
            return first, integer(last, "blocks", first)
    raise InvalidInput("blocks", run, expected)
