"""The same classes and singletons as blocking calls, for code without an event loop.

    from routing.sync import routing, allowance

    route = routing().pick_miner_for_job_request(request)
    allowance().spend(route.allowance_reservation_id)

On a running event loop these calls refuse and say what to do instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from ledger import Miner, Settings, current_runtime, refuse_on_loop
from projections import RestoreReport, VerifyReport

from . import book, carrying, router, singletons
from .pick import JobRoute

P = ParamSpec("P")
R = TypeVar("R")


def _blocking_allowance(
    method: Callable[Concatenate[book.Allowance, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Allowance, P], R]:
    """The method as a blocking call, same parameters and results."""

    @wraps(method)
    def call(self: Allowance, /, *args: P.args, **kwargs: P.kwargs) -> R:
        refuse_on_loop()
        return current_runtime().run_blocking(method(self.asynchronous, *args, **kwargs))

    return cast("Callable[Concatenate[Allowance, P], R]", call)


class Allowance:
    """`routing.Allowance` as blocking calls; usable as `with`."""

    def __init__(self, asynchronous: book.Allowance) -> None:
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
        """As `routing.Allowance.open`."""
        return cls(
            book.Allowance.open(
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

    close = _blocking_allowance(book.Allowance.close)
    record_block = _blocking_allowance(book.Allowance.record_block)
    record_manifests = _blocking_allowance(book.Allowance.record_manifests)
    record_facts = _blocking_allowance(book.Allowance.record_facts)
    find_miners = _blocking_allowance(book.Allowance.find_miners)
    reserve = _blocking_allowance(book.Allowance.reserve)
    spend = _blocking_allowance(book.Allowance.spend)
    release = _blocking_allowance(book.Allowance.release)
    expire_due = _blocking_allowance(book.Allowance.expire_due)
    reservation = _blocking_allowance(book.Allowance.reservation)
    reservation_for_job = _blocking_allowance(book.Allowance.reservation_for_job)
    history = _blocking_allowance(book.Allowance.history)
    current_block = _blocking_allowance(book.Allowance.current_block)
    miners = _blocking_allowance(book.Allowance.miners)
    manifests = _blocking_allowance(book.Allowance.manifests)
    explain = _blocking_allowance(book.Allowance.explain)
    why = _blocking_allowance(book.Allowance.why)
    overview = _blocking_allowance(book.Allowance.overview)
    receipts = _blocking_allowance(book.Allowance.receipts)
    settings = _blocking_allowance(book.Allowance.settings)
    verify = _blocking_allowance(book.Allowance.verify)
    export = _blocking_allowance(book.Allowance.export)
    audit = _blocking_allowance(book.Allowance.audit)
    rebuild = _blocking_allowance(book.Allowance.rebuild)
    health = _blocking_allowance(book.Allowance.health)
    head = _blocking_allowance(book.Allowance.head)
    counters = _blocking_allowance(book.Allowance.counters)


class Routing:
    """`routing.Routing` as blocking calls."""

    def __init__(
        self, book: Allowance, *, debug_miner: Miner | None = None, trusted_miner: Miner | None = None
    ) -> None:
        self.asynchronous = router.Routing(book.asynchronous, debug_miner=debug_miner, trusted_miner=trusted_miner)

    @classmethod
    def over(cls, asynchronous: router.Routing) -> Routing:
        """A blocking face on a router that is there already."""
        face = cls.__new__(cls)
        face.asynchronous = asynchronous
        return face

    def pick_miner_for_job_request(self, request: Any) -> JobRoute:
        """As `routing.Routing.pick_miner_for_job_request`."""
        refuse_on_loop()
        return current_runtime().run_blocking(self.asynchronous.pick_miner_for_job_request(request))


@wraps(carrying.verify)
def verify(*args: Any, **kwargs: Any) -> list[VerifyReport]:
    """As `routing.verify`."""
    refuse_on_loop()
    return current_runtime().run_blocking(carrying.verify(*args, **kwargs))


@wraps(carrying.restore)
def restore(*args: Any, **kwargs: Any) -> RestoreReport:
    """As `routing.restore`."""
    refuse_on_loop()
    return current_runtime().run_blocking(carrying.restore(*args, **kwargs))


def allowance() -> Allowance:
    """The process's ledger, as blocking calls."""
    return Allowance(singletons.allowance())


def routing() -> Routing:
    """The process's router, as blocking calls."""
    return Routing.over(singletons.routing())
