"""The move: facts first, then the bookings that hold their blocks, then a comparison of every account."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ledger import runs_from_numbers
from ledger.errors import (
    CannotImportReservation,
    ImplausibleFact,
    InvalidInput,
    JobAlreadySpent,
    JobRequestConflict,
)
from routing import Allowance, ImportedReservation

from .comparison import Comparison, compare
from .facts import facts_of, multiplier_of
from .tables import OldBooking, OldTables

BATCH_BOOKINGS = 200

Progress = Callable[[str, int, int], None]
"""Called with the step ("blocks" or "bookings"), the number done, and the number in all."""


class LeftOut(msgspec.Struct, frozen=True):
    """A booking that was not taken over as it is: blocks that grant nothing here, or that are taken, were left out."""

    booking_id: int
    miner_ss58: str
    executor_class: str
    not_granted: list[tuple[int, int]]
    taken: list[tuple[int, int]]


class MoveReport(msgspec.Struct, frozen=True):
    """The outcome of a move. `bookings` counts those in the tables, `left_out` lists what was not taken over.

    `multiplier` is the factor that the newest blocks of the tables were granted by; None if they granted nothing.
    """

    first_block: int
    last_block: int
    blocks_imported: int
    syncs_imported: int
    multiplier: float | None
    bookings: int
    reserved: int
    spent: int
    left_out: list[LeftOut]
    comparison: Comparison


async def move(
    tables: OldTables,
    ledger: Allowance,
    *,
    since: int | None = None,
    confirm: bool = False,
    progress: Progress | None = None,
) -> MoveReport:
    """Take over blocks, syncs and bookings, and compare every account; what the ledger has already is left as it is.

    So it may be repeated after an interruption, and to take over what has been booked meanwhile. Before anything is
    recorded, it raises `InvalidInput` if there is no block, and, unless `confirm`, `ImplausibleFact` without a booking.
    """
    span = await tables.span()
    if span is None:
        raise InvalidInput("source", "tables without a block", "tables in which a validator has recorded blocks")
    first, last = max(span[0], since or 1), span[1]
    if first > last:
        raise InvalidInput("since", since, f"a block up to {last}, the highest in the tables")
    if not confirm:
        await _refuse_without_bookings(tables, ledger.validator_ss58)
    report = progress or _no_progress
    multiplier = await _adopt_multiplier(tables, ledger, last)
    blocks, syncs = await _import_facts(tables, ledger, first, last, report)
    bookings = await tables.bookings(ledger.validator_ss58, first)
    left_out = await _import_bookings(ledger, bookings, report)
    return MoveReport(
        first,
        last,
        blocks,
        syncs,
        multiplier,
        len(bookings),
        sum(not each.is_spent for each in bookings),
        sum(each.is_spent for each in bookings),
        left_out,
        await compare(tables, ledger, first),
    )


async def _refuse_without_bookings(tables: OldTables, validator_ss58: str) -> None:
    """Raise `ImplausibleFact` if the tables have no booking of the validator: its paid blocks would be free again."""
    owners = await tables.owners()
    if validator_ss58 in owners:
        return
    whose = f"they have bookings of {', '.join(owners)}" if owners else "they have none at all"
    reason = f"{whose}, and blocks that its jobs were paid with would be free to be spent again"
    raise ImplausibleFact(f"an import of tables without a booking of {validator_ss58}", reason)


async def _adopt_multiplier(tables: OldTables, ledger: Allowance, last: int) -> float | None:
    """Record the multiplier of the tables as a setting, if the ledger is new: it governs what is finalized later."""
    multiplier = await multiplier_of(tables, last)
    if multiplier is not None and await ledger.current_block() is None:
        await ledger.change_settings(allowance_multiplier=str(multiplier))
    return multiplier


async def _import_facts(
    tables: OldTables, ledger: Allowance, first: int, last: int, progress: Progress
) -> tuple[int, int]:
    known = await ledger.current_block() or 0
    blocks = syncs = 0
    async for page in facts_of(tables, first, last, known):
        # Confirmed, since the other system has already acted on them.
        await ledger.record_facts(page, confirm=True)
        blocks += sum(hasattr(fact, "number") for fact in page)
        syncs += sum(hasattr(fact, "manifests") for fact in page)
        progress("blocks", blocks, last + 1 - max(first, known + 1))
    return blocks, syncs


async def _import_bookings(ledger: Allowance, bookings: Sequence[OldBooking], progress: Progress) -> list[LeftOut]:
    left_out: list[LeftOut] = []
    done = 0
    while done < len(bookings):
        batch = bookings[done : done + BATCH_BOOKINGS]
        imported, refusal = await ledger.import_reservations([_reservation(each) for each in batch])
        done += len(imported)
        if refusal is not None:
            left_out += await _import_in_part(ledger, batch[len(imported)], refusal)
            done += 1
        progress("bookings", done, len(bookings))
    return left_out


async def _import_in_part(ledger: Allowance, booking: OldBooking, refusal: Exception) -> list[LeftOut]:
    """Import a refused booking without its job, if the job has another one, and without blocks that are not free."""
    if isinstance(refusal, (JobAlreadySpent, JobRequestConflict)) and booking.job_uuid is not None:
        # The other system lets a job have several bookings; the blocks matter, not which attempt held them.
        booking = booking._replace(job_uuid=None)
        imported, next_refusal = await ledger.import_reservations([_reservation(booking)])
        return [] if imported else await _import_in_part(ledger, booking, next_refusal or refusal)
    if not isinstance(refusal, CannotImportReservation):
        raise refusal
    absent = {block for first, last in (*refusal.not_granted, *refusal.taken) for block in range(first, last + 1)}
    rest = booking._replace(blocks=[block for block in booking.blocks if block not in absent])
    if rest.blocks:
        await ledger.import_reservation(_reservation(rest))
    return [LeftOut(booking.booking_id, *booking.account, refusal.not_granted, refusal.taken)]


def _reservation(booking: OldBooking) -> ImportedReservation:
    """Return a booking as a reservation. The tables do not have the job's amount, so it is what the blocks grant."""
    miner_ss58, executor_class = booking.account
    return ImportedReservation(
        miner_ss58=miner_ss58,
        executor_class=executor_class,
        blocks=runs_from_numbers(booking.blocks),
        amount_seconds=None,
        reserved_at=booking.created_at,
        # A spent booking has no time of expiry any more, and is spent as soon as it is imported.
        expires_at=booking.expires_at or booking.created_at,
        status="spent" if booking.is_spent else "reserved",
        job_uuid=booking.job_uuid,
    )


def _no_progress(_step: str, _done: int, _total: int) -> None:
    """Show nothing."""
