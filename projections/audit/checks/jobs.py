"""Jobs and idempotency keys.

Rules: the job's uuid is the key of its route, so a job has at most one active reservation, its reservations are
numbered attempts, and it is never routed again after a spend. An idempotency key belongs to one event.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger import Row
from ledger.errors import shortened
from projections.rules import Findings, Rule

_ACTIVE, _ENDED, _SPENT = 0, 1, 2
_STATUSES = 3


class JobCheck:
    """Follows each job's last attempt and its status, and all keys."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._last_attempts: dict[str, int] = {}
        """By job, `3 * attempt + status` in one integer: a long log has many jobs, and a tuple takes more memory."""
        self._keys: set[str] = set()
        self._knows_all = True
        """Whether the replay began at the first event, so that an unknown job is a new one."""

    def continue_with(self, rows: Iterable[Row]) -> None:
        """Begin at a later position, at which the reservations of these rows are active."""
        self._knows_all = False
        for row in rows:
            if row.job_uuid is not None and row.attempt is not None:
                self._last_attempts[row.job_uuid] = _STATUSES * row.attempt + _ACTIVE

    def check_reservation(self, row: Row) -> None:
        """Check and record a reservation; one without a job is passed over."""
        job_uuid, attempt = row.job_uuid, row.attempt
        if job_uuid is None or attempt is None:
            return
        last = self._last_attempts.get(job_uuid)
        if last is not None or (attempt != 1 and self._knows_all):
            self._check_attempt(row, job_uuid, attempt, last)
        self._last_attempts[job_uuid] = _STATUSES * attempt + _ACTIVE

    def record_settlement(self, job_uuid: str | None, *, spent: bool) -> None:
        """Record that the job's active reservation was settled."""
        if job_uuid is not None:
            last = self._last_attempts[job_uuid]
            self._last_attempts[job_uuid] = last - last % _STATUSES + (_SPENT if spent else _ENDED)

    def check_key(self, position: int, key: str) -> None:
        """Check that no earlier row has the key."""
        if key in self._keys:
            message = f"idempotency key {shortened(key)} was used before"
            self._findings.add(position, Rule.KEYS_ONCE, message, key=shortened(key))
        self._keys.add(key)

    def _check_attempt(self, row: Row, job_uuid: str, attempt: int, last: int | None) -> None:
        last_attempt, status = divmod(last, _STATUSES) if last is not None else (0, _ENDED)
        details = {"job_uuid": shortened(job_uuid), "attempt": attempt, "attempts_before": last_attempt}
        if attempt != last_attempt + 1:
            message = f"the reservation is attempt {attempt} of the job, expected {last_attempt + 1}"
            self._findings.add(row.position, Rule.JOB_ATTEMPTS, message, **details)
        if status == _ACTIVE:
            message = "the job already has an active reservation"
            self._findings.add(row.position, Rule.JOB_STANDS_ONCE, message, **details)
        if status == _SPENT:
            self._findings.add(row.position, Rule.JOB_SPENT_ONCE, "the job was already spent", **details)
