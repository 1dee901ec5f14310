"""The call that takes over a reservation of another system."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from ledger import ImportReservation, Reservation
from ledger.codec import MOST_RESERVED_BLOCKS
from ledger.errors import InvalidInput
from ledger.events import Run
from ledger.values import amount, instant_ns, integer, job_name, name

from .miner_facts import MinerFactCalls, checked_key

ImportedStatus = Literal["reserved", "spent"]


class ImportCalls(MinerFactCalls):
    """The call of `Allowance` that imports reservations."""

    async def import_reservation(
        self,
        miner_ss58: str,
        executor_class: str,
        blocks: Iterable[tuple[int, int]],
        amount_seconds: float | None,
        *,
        reserved_at: datetime,
        expires_at: datetime,
        status: ImportedStatus = "reserved",
        job_uuid: str | UUID | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Take over a reservation that another system made: exactly these blocks, as runs `(first, last)`.

            await ledger.import_reservation(
                miner, "always_on.gpu-24gb", [(1000, 1003)], 60.0, reserved_at=made, expires_at=due, status="spent"
            )

        Blocks may be invalidated or older than a job may use now. `amount_seconds` of None is what the blocks grant,
        at most the longest job. Account, blocks, `job_uuid` and `reserved_at` identify the reservation: importing it
        again changes nothing, except that it is spent if it is still reserved here and `status` is "spent" by now. The
        result's `reserved_at` is the time of the import; the event in the log has the other system's. Raises
        `CannotImportReservation` if a block grants nothing or is taken, `JobRequestConflict` or `JobAlreadySpent` if
        the job has another reservation, `InvalidInput`, and `IdempotencyConflict`.
        """
        if status not in get_args(ImportedStatus):
            raise InvalidInput("status", status, '"reserved" or "spent"')
        command = ImportReservation(
            name(miner_ss58, "miner_ss58"),
            name(executor_class, "executor_class"),
            checked_runs(blocks),
            None if amount_seconds is None else amount(amount_seconds, "amount_seconds"),
            None if job_uuid is None else job_name(job_uuid),
            instant_ns(reserved_at, "reserved_at"),
            instant_ns(expires_at, "expires_at"),
            is_spent=status == "spent",
            key=checked_key(idempotency_key),
        )
        imported: Reservation | int = await self.execute(command)
        return await self.reservation(imported) if isinstance(imported, int) else imported


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
