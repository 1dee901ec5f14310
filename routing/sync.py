"""`routing` as blocking calls, for code without an event loop: the same classes and singletons.

    from routing.sync import routing, allowance

    route = routing().pick_miner_for_job_request(request)
    allowance().spend(route.allowance_reservation_id)

On a running event loop these calls raise `RuntimeError`, because they would block it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from ledger import Miner, Settings, current_runtime, refuse_on_loop
from ledger.errors import InvalidInput
from projections import RestoreReport, VerifyReport

from . import singletons
from .pick import JobRoute
from .router import JobRequest
from .router import Routing as AsyncRouting
from .service import backup
from .service.allowance import Allowance as AsyncAllowance
from .service.past import Past as AsyncPast
from .service.queries import Queries

__all__ = ["Allowance", "Past", "Routing", "allowance", "restore", "routing", "verify"]

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


def _blocking(method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """Return a blocking version of a method, with the same parameters, result and errors."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        refuse_on_loop()
        return current_runtime().run_blocking(method(self.asynchronous, *args, **kwargs))

    return cast("Callable[Concatenate[Any, P], R]", call)


def _blocking_iterator(
    method: Callable[Concatenate[A, P], AsyncIterator[R]],
) -> Callable[Concatenate[Any, P], Iterator[R]]:
    """Return a blocking version of a method that yields, with the same parameters, items and errors."""

    @wraps(method)
    def iterate(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        items = method(self.asynchronous, *args, **kwargs)
        while True:
            refuse_on_loop()
            try:
                yield current_runtime().run_blocking(_next_of(items))
            except StopAsyncIteration:
                return

    return cast("Callable[Concatenate[Any, P], Iterator[R]]", iterate)


async def _next_of(items: AsyncIterator[R]) -> R:
    return await anext(items)


class _BlockingQueries:
    """The queries of `Allowance` and `Past` as blocking calls."""

    find_miners: Final = _blocking(Queries.find_miners)
    reservation: Final = _blocking(Queries.reservation)
    reservation_for_job: Final = _blocking(Queries.reservation_for_job)
    history: Final = _blocking(Queries.history)
    current_block: Final = _blocking(Queries.current_block)
    first_block: Final = _blocking(Queries.first_block)
    missing_blocks: Final = _blocking(Queries.missing_blocks)
    miners: Final = _blocking(Queries.miners)
    manifests: Final = _blocking(Queries.manifests)
    explain: Final = _blocking(Queries.explain)
    explain_reservation: Final = _blocking(Queries.explain_reservation)
    why: Final = _blocking(Queries.why)
    usage_by_block: Final = _blocking(Queries.usage_by_block)
    workload: Final = _blocking(Queries.workload)
    corrections: Final = _blocking(Queries.corrections)
    overview: Final = _blocking(Queries.overview)
    receipts: Final = _blocking(Queries.receipts)
    grants: Final = _blocking(Queries.grants)
    known_miners: Final = _blocking(Queries.known_miners)
    executor_classes: Final = _blocking(Queries.executor_classes)
    settings: Final = _blocking(Queries.settings)
    settings_changes: Final = _blocking(Queries.settings_changes)
    head: Final = _blocking(Queries.head)
    events: Final = _blocking_iterator(Queries.events)
    miner_record: Final = _blocking(Queries.miner_record)
    miner_records: Final = _blocking(Queries.miner_records)
    under_policy: Final = _blocking(Queries.under_policy)


class Past(_BlockingQueries):
    """`routing.Past` as blocking calls. Create it with `Allowance.at`."""

    def __init__(self, asynchronous: AsyncPast) -> None:
        self.asynchronous = asynchronous

    @property
    def validator_ss58(self) -> str:
        """The hotkey of the validator that owns the ledger."""
        return self.asynchronous.validator_ss58

    fold: Final = _blocking(AsyncPast.fold)


class Allowance(_BlockingQueries):
    """`routing.Allowance` as blocking calls. Create it with `open`, and use it with `with` or directly."""

    def __init__(self, asynchronous: AsyncAllowance) -> None:
        self.asynchronous = asynchronous

    @classmethod
    def open(
        cls,
        database_url: str,
        *,
        validator_ss58: str,
        settings: Settings | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        read_only: bool = False,
    ) -> Allowance:
        """Return the validator's ledger, like `routing.Allowance.open`."""
        return cls(
            AsyncAllowance.open(
                database_url,
                validator_ss58=validator_ss58,
                settings=settings,
                clock_ns=clock_ns,
                read_only=read_only,
            )
        )

    def __enter__(self) -> Allowance:
        refuse_on_loop()
        current_runtime().run_blocking(self.asynchronous.__aenter__())
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def validator_ss58(self) -> str:
        """The hotkey of the validator that owns the ledger."""
        return self.asynchronous.validator_ss58

    @property
    def database_url(self) -> str:
        """The database's URL, with its password."""
        return self.asynchronous.database_url

    def at(self, *, position: int | None = None, block: int | None = None, time: datetime | None = None) -> Past:
        """Return a read-only view of the past, like `routing.Allowance.at`."""
        return Past(self.asynchronous.at(position=position, block=block, time=time))

    close: Final = _blocking(AsyncAllowance.close)
    record_block: Final = _blocking(AsyncAllowance.record_block)
    record_manifests: Final = _blocking(AsyncAllowance.record_manifests)
    record_facts: Final = _blocking(AsyncAllowance.record_facts)
    withdraw_block: Final = _blocking(AsyncAllowance.withdraw_block)
    withdraw_manifests: Final = _blocking(AsyncAllowance.withdraw_manifests)
    reserve: Final = _blocking(AsyncAllowance.reserve)
    import_reservation: Final = _blocking(AsyncAllowance.import_reservation)
    import_reservations: Final = _blocking(AsyncAllowance.import_reservations)
    spend: Final = _blocking(AsyncAllowance.spend)
    release: Final = _blocking(AsyncAllowance.release)
    settle: Final = _blocking(AsyncAllowance.settle)
    expire_due: Final = _blocking(AsyncAllowance.expire_due)
    change_settings: Final = _blocking(AsyncAllowance.change_settings)
    verify: Final = _blocking(AsyncAllowance.verify)
    export: Final = _blocking(AsyncAllowance.export)
    audit: Final = _blocking(AsyncAllowance.audit)
    rebuild: Final = _blocking(AsyncAllowance.rebuild)
    follow: Final = _blocking_iterator(AsyncAllowance.follow)
    health: Final = _blocking(AsyncAllowance.health)
    counters: Final = _blocking(AsyncAllowance.counters)
    exclude_miner: Final = _blocking(AsyncAllowance.exclude_miner)
    readmit_miner: Final = _blocking(AsyncAllowance.readmit_miner)
    record_collateral: Final = _blocking(AsyncAllowance.record_collateral)
    record_job_elsewhere: Final = _blocking(AsyncAllowance.record_job_elsewhere)
    end_job_elsewhere: Final = _blocking(AsyncAllowance.end_job_elsewhere)
    report_incident: Final = _blocking(AsyncAllowance.report_incident)


class Routing:
    """`routing.Routing` as blocking calls; `ledger` is a `routing.sync.Allowance`. Raises `InvalidInput`."""

    def __init__(
        self, ledger: Allowance, *, debug_miner: Miner | None = None, trusted_miner: Miner | None = None
    ) -> None:
        if not isinstance(ledger, Allowance):
            raise InvalidInput("ledger", ledger, "an Allowance of routing.sync")
        self.asynchronous: AsyncRouting = AsyncRouting(
            ledger.asynchronous, debug_miner=debug_miner, trusted_miner=trusted_miner
        )

    @classmethod
    def over(cls, asynchronous: AsyncRouting) -> Routing:
        """Return blocking calls for an existing router."""
        # Not through `__init__`: the process-wide router has no ledger until it routes its first job.
        blocking = cls.__new__(cls)
        blocking.asynchronous = asynchronous
        return blocking

    def pick_miner_for_job_request(self, request: JobRequest) -> JobRoute:
        """Route a job, like `routing.Routing.pick_miner_for_job_request`."""
        refuse_on_loop()
        return current_runtime().run_blocking(self.asynchronous.pick_miner_for_job_request(request))


@wraps(backup.verify)
def verify(*args: Any, **kwargs: Any) -> list[VerifyReport]:
    """Verify ledgers, like `routing.verify`."""
    refuse_on_loop()
    return current_runtime().run_blocking(backup.verify(*args, **kwargs))


@wraps(backup.restore)
def restore(*args: Any, **kwargs: Any) -> RestoreReport:
    """Restore a ledger, like `routing.restore`."""
    refuse_on_loop()
    return current_runtime().run_blocking(backup.restore(*args, **kwargs))


def allowance() -> Allowance:
    """Return the process-wide ledger, as blocking calls."""
    return Allowance(singletons.allowance())


def routing() -> Routing:
    """Return the process-wide router, as blocking calls."""
    return Routing.over(singletons.routing())
