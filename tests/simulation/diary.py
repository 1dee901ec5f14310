"""The diary: what each caller asked for, and what it was told."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.miner_facts import Report
    from tests.simulation.process import Process

NO_EFFECT = "refused"
MAY_HAVE_AN_EFFECT = ("unknown", "cancelled", "died", "started")


@dataclass
class Call:
    """One try of a request: `outcome` is ok, refused, unknown, cancelled, died, or started until it ends."""

    request: Request
    process: Process
    started_at: float
    outcome: str = "started"
    result: Any = None
    error: BaseException | None = None
    head_at_end: int = 0
    """The position of the head when the call ended."""

    @property
    def label(self) -> str:
        """The outcome by which a generator counts what it reached."""
        return type(self.error).__name__ if self.error is not None else self.outcome


@dataclass
class Request:
    """What a caller wants, however often it has to ask; `facts` describes it to the oracle."""

    number: int
    kind: str
    invoke: Callable[[Process, Request], Coroutine[Any, Any, Any]]
    key: str | None = None
    job_uuid: str | None = None
    amount_ns: int = 0
    reservation_id: int = 0
    expected_off_by: int | None = None
    expected_version: int | None = None
    """The version at which a reservation expects its account's stream; None if it expects nothing."""
    facts: tuple[tuple[str, int, Any], ...] = ()
    report: Report | None = None
    """The miner fact that the caller reports."""
    reported_at: datetime | None = None
    """The time in the report, worked out by its first try."""
    calls: list[Call] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """The reason of a correction, which tells who asked for it."""
        return f"request {self.number}"

    @property
    def may_have_happened(self) -> bool:
        """Whether a row of this request may be in the log."""
        return any(call.outcome != NO_EFFECT for call in self.calls)

    @property
    def is_open(self) -> bool:
        """Whether the last try ended without a clear answer."""
        return bool(self.calls) and self.calls[-1].outcome in MAY_HAVE_AN_EFFECT
