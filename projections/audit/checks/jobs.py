"""Jobs and idempotency keys: each stands for one thing at a time."""

from __future__ import annotations

from ledger import Row
from ledger.errors import shortened
from projections.rules import Findings, Rule

_STANDING, _ENDED, _SPENT = 0, 1, 2


class JobCheck:
    """How many reservations each job has had, and how the last one stands."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._of: dict[str, int] = {}
        """Three times the attempt, and the state of it."""
        self._keys: set[str] = set()

    def reserved(self, row: Row) -> None:
        """A reservation was made for a job."""
        job_uuid, attempt = row.job_uuid, row.attempt
        if job_uuid is None or attempt is None:
            return
        last = self._of.get(job_uuid)
        if last is not None or attempt != 1:
            self._check(row, job_uuid, attempt, last)
        self._of[job_uuid] = 3 * attempt + _STANDING

    def settled(self, job_uuid: str | None, *, spent: bool) -> None:
        """A job's reservation came to its end."""
        if job_uuid is not None:
            last = self._of[job_uuid]
            self._of[job_uuid] = last - last % 3 + (_SPENT if spent else _ENDED)

    def keyed(self, position: int, key: str) -> None:
        """A row bears a key."""
        if key in self._keys:
            message = f"idempotency key {shortened(key)} was used before"
            self._findings.add(position, Rule.KEYS_ONCE, message, key=shortened(key))
        self._keys.add(key)

    def _check(self, row: Row, job_uuid: str, attempt: int, last: int | None) -> None:
        last_attempt, state = divmod(last, 3) if last is not None else (0, _ENDED)
        details = {"job_uuid": shortened(job_uuid), "attempt": attempt, "attempts_before": last_attempt}
        if attempt != last_attempt + 1:
            message = f"attempt {attempt} of a job that has had {last_attempt}"
            self._findings.add(row.position, Rule.JOB_ATTEMPTS, message, **details)
        if state == _STANDING:
            message = "the job has a reservation that stands"
            self._findings.add(row.position, Rule.JOB_STANDS_ONCE, message, **details)
        if state == _SPENT:
            self._findings.add(row.position, Rule.JOB_SPENT_ONCE, "the job was spent before", **details)
