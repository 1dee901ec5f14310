"""`Routing`: decides which miner runs a job."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

from ledger import Miner
from ledger.errors import InvalidInput
from ledger.values import amount, job_name, name
from routing.service.allowance import Allowance

from .pick import JobRoute, Pick
from .service.config import TRUSTED_MINER_FAKE_KEY
from .service.operations import note_pick_without_ledger
from .service.outcomes import DEBUG_MINER, TRUSTED_MINER, outcome_of

TIME_LIMITS = ("download_time_limit", "execution_time_limit", "upload_time_limit")


class JobRequest(Protocol):
    """A job to be routed. Any object with these attributes is one: no class needs to inherit from this.

    `uuid` identifies the job: routing it again gives the same route. The limits are seconds, 0 or more; their sum is
    the amount that the router reserves. A job `on_trusted_miner` goes to the trusted miner, without the ledger; at
    run time a request without this attribute counts as one with False.

        @dataclass(frozen=True)
        class Job:
            uuid: UUID
            executor_class: str
            download_time_limit: float
            execution_time_limit: float
            upload_time_limit: float
            on_trusted_miner: bool = False
    """

    @property
    def uuid(self) -> str | UUID: ...
    @property
    def executor_class(self) -> str: ...
    @property
    def download_time_limit(self) -> float | Decimal: ...
    @property
    def execution_time_limit(self) -> float | Decimal: ...
    @property
    def upload_time_limit(self) -> float | Decimal: ...
    @property
    def on_trusted_miner(self) -> bool: ...


class Routing:
    """Routes jobs to the miners on which a ledger has allowance.

    `ledger` is an `Allowance`, or a function that returns one when the first job needs it. A `debug_miner` gets every
    job, without any check. `trusted_miner` is the address for jobs on the trusted miner. Neither kind of route uses
    the ledger. Raises `InvalidInput`.
    """

    def __init__(
        self,
        ledger: Allowance | Callable[[], Allowance],
        *,
        debug_miner: Miner | None = None,
        trusted_miner: Miner | None = None,
    ) -> None:
        for field, miner in (("debug_miner", debug_miner), ("trusted_miner", trusted_miner)):
            if miner is not None and not isinstance(miner, Miner):
                raise InvalidInput(field, miner, "a Miner")
        if not isinstance(ledger, Allowance) and not callable(ledger):
            raise InvalidInput("ledger", ledger, "an Allowance, or a function that returns one")
        self._ledger = ledger
        self._debug_miner = debug_miner
        self._trusted_miner = trusted_miner or Miner("127.0.0.1", 4, 8000, TRUSTED_MINER_FAKE_KEY)

    async def pick_miner_for_job_request(self, request: JobRequest) -> JobRoute:
        """Reserve the request's amount on the best miner that is not busy; return the route to that miner.

        Routing the same uuid again is safe: it returns the same route while the reservation is active. Raises
        `NotEnoughAllowanceException`, `AllMinersBusy`, `JobAlreadySpent`, `JobRequestConflict`, `ChainFeedStale`,
        `InvalidInput`.
        """
        if self._debug_miner is not None:
            note_pick_without_ledger(DEBUG_MINER, request, self._debug_miner.hotkey_ss58)
            return JobRoute(self._debug_miner, [], None, None)
        trusted: object = getattr(request, "on_trusted_miner", None) or False
        # A text such as "false" is true in Python, and would send the job to the trusted miner without any check.
        try:
            if not isinstance(trusted, int):
                raise InvalidInput("on_trusted_miner", trusted, "True or False")
            pick = None if trusted else _pick_of(request)
        except InvalidInput as refused:
            note_pick_without_ledger(outcome_of(refused), request, error=refused)
            raise
        if pick is None:
            note_pick_without_ledger(TRUSTED_MINER, request, self._trusted_miner.hotkey_ss58)
            return JobRoute(self._trusted_miner, None, None, None)
        ledger = self._ledger if isinstance(self._ledger, Allowance) else self._ledger()
        route: JobRoute = await ledger.execute(pick)
        return route


def _pick_of(request: Any) -> Pick:
    uuid, executor_class, *limits = [_attribute(request, field) for field in ("uuid", "executor_class", *TIME_LIMITS)]
    amount_ns = sum(map(amount, limits, TIME_LIMITS))
    return Pick(job_name(uuid, "uuid"), name(executor_class, "executor_class"), amount_ns)


def _attribute(request: Any, attribute: str) -> Any:
    try:
        return getattr(request, attribute)
    except AttributeError as cause:
        raise InvalidInput("request", request, f"an object with {attribute}") from cause
