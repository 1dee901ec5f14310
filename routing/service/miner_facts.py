"""The calls that record what a router knows about miners beside their allowance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from ledger import (
    Command,
    EndJobElsewhere,
    ExcludeMiner,
    ReadmitMiner,
    RecordCollateral,
    RecordJobElsewhere,
    ReportIncident,
)
from ledger.errors import InvalidInput
from ledger.events import INCIDENT_KINDS
from ledger.settings import LARGEST_COLLATERAL_WEI
from ledger.values import NANOSECONDS, billionths, instant_ns, integer, job_name, name

from .queries import Queries

LONGEST_KEY = 256
LONGEST_REASON = 256
LONGEST_TTL_SECONDS = 100 * 86_400


class MinerFactCalls(Queries):
    """The calls of `Allowance` that record miner facts.

    Each returns the log position of the event, the first one where it is a repeat. A router counts a fact from its
    position on. Each raises `InvalidInput`, and `IdempotencyConflict` if the key was used for another request.
    """

    @abstractmethod
    async def execute(self, command: Command) -> Any:
        """Decide a command and commit its events; return its result."""

    async def exclude_miner(
        self, miner_ss58: str, reason: str, *, until: datetime | None = None, idempotency_key: str | None = None
    ) -> int:
        """Exclude a miner from routing, for good or until a time (aware). Another exclusion replaces the one in force.

        Running jobs and reservations by hand go on.
        """
        until_ns = None if until is None else instant_ns(until, "until")
        return await self._record(
            ExcludeMiner(name(miner_ss58, "miner_ss58"), _reason(reason), until_ns, checked_key(idempotency_key))
        )

    async def readmit_miner(self, miner_ss58: str, reason: str, *, idempotency_key: str | None = None) -> int:
        """End the exclusion of a miner. Raises `FactNotRecorded` if it was never excluded."""
        return await self._record(
            ReadmitMiner(name(miner_ss58, "miner_ss58"), _reason(reason), checked_key(idempotency_key))
        )

    async def record_collateral(self, wei_by_miner: Mapping[str, int], *, idempotency_key: str | None = None) -> int:
        """Record the collateral of miners in wei, as `{miner_ss58: wei}`; miners that are not named keep theirs."""
        given: object = wei_by_miner
        if not isinstance(given, Mapping) or not given:
            raise InvalidInput("collateral", given, "a mapping {miner_ss58: wei} with at least one miner")
        checked = {
            name(miner_ss58, "miner_ss58"): integer(wei, f"collateral[{miner_ss58!r}]", 0, LARGEST_COLLATERAL_WEI)
            for miner_ss58, wei in wei_by_miner.items()
        }
        return await self._record(RecordCollateral(checked, checked_key(idempotency_key)))

    async def record_job_elsewhere(
        self,
        miner_ss58: str,
        executor_class: str,
        job_uuid: str | UUID,
        started_at: datetime,
        ttl_seconds: float,
        *,
        idempotency_key: str | None = None,
    ) -> int:
        """Record a job that another validator runs on a miner, as its receipt says.

        It counts as running from `started_at` (aware) for `ttl_seconds`, unless it is ended. A job of this ledger with
        the same uuid on the same account counts once. Raises `ConflictingFact` for another content of the uuid.
        """
        ttl_ns = billionths(ttl_seconds, "ttl_seconds", least=1, most=LONGEST_TTL_SECONDS * NANOSECONDS)
        return await self._record(
            RecordJobElsewhere(
                name(miner_ss58, "miner_ss58"),
                name(executor_class, "executor_class"),
                job_name(job_uuid),
                instant_ns(started_at, "started_at"),
                ttl_ns,
                checked_key(idempotency_key),
            )
        )

    async def end_job_elsewhere(self, job_uuid: str | UUID, *, idempotency_key: str | None = None) -> int:
        """Record the end of another validator's job, for good; it may come before the job itself."""
        return await self._record(EndJobElsewhere(job_name(job_uuid), checked_key(idempotency_key)))

    async def report_incident(
        self,
        miner_ss58: str,
        executor_class: str,
        kind: str,
        job_uuid: str | UUID,
        *,
        idempotency_key: str | None = None,
    ) -> int:
        """Report that a job went wrong on a miner: `rejected`, `failed` or `horde_failed`.

        One per job and miner: raises `ConflictingFact` for a second, different one.
        """
        if kind not in INCIDENT_KINDS:
            raise InvalidInput("kind", kind, f"one of {', '.join(INCIDENT_KINDS)}")
        return await self._record(
            ReportIncident(
                name(miner_ss58, "miner_ss58"),
                name(executor_class, "executor_class"),
                name(kind, "kind"),
                job_name(job_uuid),
                checked_key(idempotency_key),
            )
        )

    async def _record(self, command: Command) -> int:
        position: int = await self.execute(command)
        return position


def checked_key(key: str | None) -> str | None:
    """Return an idempotency key, checked. Raises `InvalidInput`."""
    return None if key is None else name(key, "idempotency_key", LONGEST_KEY)


def _reason(reason: str) -> str:
    return name(reason, "reason", LONGEST_REASON)
