"""The same classes and singletons as blocking calls, for code without an event loop.

    from routing.sync import routing, allowance

    route = routing().pick_miner_for_job_request(request)
    allowance().spend(route.allowance_reservation_id)

On a running event loop these calls refuse and say what to do instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from ledger import InvalidInput, Miner, Settings, current_runtime, refuse_on_loop
from projections import RestoreReport, VerifyReport

from . import book, carrying, past, questions, router, singletons
from .pick import JobRoute

__all__ = ["Allowance", "Past", "Routing", "allowance", "restore", "routing", "verify"]

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


def _blocking(method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """The method as a blocking call, same parameters and results."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        refuse_on_loop()
        return current_runtime().run_blocking(method(self.asynchronous, *args, **kwargs))

    return cast("Callable[Concatenate[Any, P], R]", call)


class _Questions:
    """What can be asked, now or of the past, as blocking calls."""

    find_miners = _blocking(questions.Questions.find_miners)
    reservation = _blocking(questions.Questions.reservation)
    reservation_for_job = _blocking(questions.Questions.reservation_for_job)
    history = _blocking(questions.Questions.history)
    current_block = _blocking(questions.Questions.current_block)
    miners = _blocking(questions.Questions.miners)
    manifests = _blocking(questions.Questions.manifests)
    explain = _blocking(questions.Questions.explain)
    why = _blocking(questions.Questions.why)
    overview = _blocking(questions.Questions.overview)
    receipts = _blocking(questions.Questions.receipts)
    settings = _blocking(questions.Questions.settings)
    head = _blocking(questions.Questions.head)


class Past(_Questions):
    """`routing.Past` as blocking calls; made by `Allowance.at`."""

    def __init__(self, asynchronous: past.Past) -> None:
        self.asynchronous = asynchronous

    fold = _blocking(past.Past.fold)


class Allowance(_Questions):
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

    @property
    def validator_ss58(self) -> str:
        """Whose ledger it is."""
        return self.asynchronous.validator_ss58

    def at(self, *, position: int | None = None, block: int | None = None, time: datetime | None = None) -> Past:
        """As `routing.Allowance.at`."""
        return Past(self.asynchronous.at(position=position, block=block, time=time))

    close = _blocking(book.Allowance.close)
    record_block = _blocking(book.Allowance.record_block)
    record_manifests = _blocking(book.Allowance.record_manifests)
    record_facts = _blocking(book.Allowance.record_facts)
    reserve = _blocking(book.Allowance.reserve)
    spend = _blocking(book.Allowance.spend)
    release = _blocking(book.Allowance.release)
    expire_due = _blocking(book.Allowance.expire_due)
    verify = _blocking(book.Allowance.verify)
    export = _blocking(book.Allowance.export)
    audit = _blocking(book.Allowance.audit)
    rebuild = _blocking(book.Allowance.rebuild)
    health = _blocking(book.Allowance.health)
    counters = _blocking(book.Allowance.counters)


class Routing:
    """`routing.Routing` as blocking calls."""

    def __init__(
        self, book: Allowance, *, debug_miner: Miner | None = None, trusted_miner: Miner | None = None
    ) -> None:
        if not isinstance(book, Allowance):
            raise InvalidInput("book", book, "an Allowance of routing.sync")
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
