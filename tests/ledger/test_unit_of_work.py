"""A unit of work: what a batch knows of a job that it has settled itself."""

from __future__ import annotations

from ledger import LedgerState, UnitOfWork
from ledger.codec import Row, encode, reservation_id
from ledger.domain.lookup import LookupResult
from ledger.domain.unit_of_work import LastAttempt
from ledger.events import AllowanceReserved, ExpiryRecorded, ReservationReleased

JOB = "job-1"


def stored(
    position: int, event: AllowanceReserved | ReservationReleased, attempt: int | None, settles: int | None
) -> Row:
    job_uuid = None if attempt is None else JOB
    return Row(position, "5Anna\tgpu", position, 0, None, job_uuid, attempt, settles, encode(event), bytes(32))


def test_the_settlement_of_this_batch_is_newer_than_every_stored_one() -> None:
    """Catches a batch that expires a job's second reservation and then numbers the third as the second again."""
    reserved = stored(7, AllowanceReserved(1, [(1, 1)], 1, 2), 1, None)
    released = stored(8, ReservationReleased(reservation_id(7, bytes(32))), None, 7)
    known = LookupResult()
    known.jobs[JOB], known.settlements[7] = reserved, released
    unit_of_work = UnitOfWork(LedgerState(), known, 0)
    assert unit_of_work.next_attempt(JOB) == (JOB, 2)

    unit_of_work._settled_jobs[JOB] = LastAttempt(2, (released, ExpiryRecorded(5)))

    assert unit_of_work.next_attempt(JOB) == (JOB, 3)
