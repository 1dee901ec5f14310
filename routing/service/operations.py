"""Operations: each call that changes a ledger ends with one record, for the log of the program and for observers.

The line is logged in the caller's context, so it has the context variables of the request. A call that nobody watches
costs two look-ups: no clock is read, and no record is made unless it is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ledger import Command, EarlierExpiry, MetagraphNeeded, OffersNeeded, RecordFacts, Reservation, observers
from ledger.call_queue import PendingCall
from ledger.observers import Operation
from ledger.values import seconds
from routing.pick import JobRoute, Pick

from .lifecycle import Lifecycle
from .outcomes import DONE, REPEATED, ROUTED, outcome_of

NS_PER_MS = 1_000_000

_Subject = tuple[str | None, bool, str | None, str | None, float | None, int | None, int | None]

log = logging.getLogger("allowance.ledger")


def begin() -> int | None:
    """Return the moment at which a call begins, in ns of the performance counter; None if nobody watches."""
    return time.perf_counter_ns() if observers.registered or log.isEnabledFor(logging.INFO) else None


def note_ended(command: Command, result: Any, began_ns: int, call: PendingCall, lifecycle: Lifecycle) -> None:
    """Note a call that returned `result`."""
    if isinstance(result, (MetagraphNeeded, OffersNeeded)):
        return  # The command is executed again with what it needs, and ends then.
    error = result[1] if isinstance(command, RecordFacts) else None
    outcome = outcome_of(error) if error is not None else _outcome(command, appended=call.row is not None)
    how = (command.operation, outcome, lifecycle.validator_ss58)
    cost = (call.attempts, time.perf_counter_ns() - began_ns)
    _note(Operation._make((*how, *_subject(command, result), *cost)), error)


def note_refused(
    command: Command, error: BaseException, began_ns: int | None, call: PendingCall | None, lifecycle: Lifecycle
) -> None:
    """Note a call that raised; `call` is None if it was not queued."""
    if began_ns is None and not log.isEnabledFor(logging.WARNING):
        return
    handle, executor_class = lifecycle.open_handle, getattr(command, "executor_class", None)
    amount_ns = getattr(command, "amount_ns", None)
    operation = Operation(
        command.operation,
        outcome_of(error),
        lifecycle.validator_ss58,
        executor_class,
        handle is not None and handle.writer.has_class(executor_class),
        getattr(command, "job_uuid", None),
        getattr(command, "miner_ss58", None),
        None if amount_ns is None else seconds(amount_ns),
        getattr(command, "reservation_id", None),
        None,
        0 if call is None else call.attempts,
        None if began_ns is None else time.perf_counter_ns() - began_ns,
    )
    _note(operation, error)


def note_pick_without_ledger(
    outcome: str, request: Any, miner_ss58: str | None = None, error: BaseException | None = None
) -> None:
    """Note a pick that did not reach the ledger: a malformed one, or one for the debug or the trusted miner."""
    if not observers.registered and not log.isEnabledFor(logging.INFO if error is None else logging.WARNING):
        return
    named = [getattr(request, attribute, None) for attribute in ("executor_class", "uuid")]
    # Nothing has checked them yet. A line of the log must stay one line.
    executor_class, job_uuid = [str(each) if str(each).isprintable() and each is not None else None for each in named]
    _note(Operation(Pick.operation, outcome, None, executor_class, False, job_uuid, miner_ss58), error)


def _outcome(command: Command, *, appended: bool) -> str:
    if isinstance(command, Pick):
        return ROUTED if appended else REPEATED
    # An expiry that finds nothing overdue repeats nothing.
    return DONE if appended or command.operation == "expire_due" else REPEATED


def _subject(command: Command, result: Any) -> _Subject:
    """Return the fields of `Operation` from `executor_class` to `items`."""
    if isinstance(result, JobRoute):
        pick: Any = command
        miner_ss58, amount = result.miner.hotkey_ss58, seconds(pick.amount_ns)
        return pick.executor_class, True, pick.job_uuid, miner_ss58, amount, result.allowance_reservation_id, None
    if isinstance(result, Reservation):
        job_uuid, amount = result.job_uuid, result.allowance_seconds
        return result.executor_class, True, job_uuid, result.miner_ss58, amount, result.reservation_id, None
    return None, False, None, None, None, None, _items(command, result)


def _items(command: Command, result: Any) -> int | None:
    if isinstance(result, EarlierExpiry):
        return result.expiries
    if isinstance(command, RecordFacts):
        return len(result[0])
    return len(result) if isinstance(result, list) else None


def _note(operation: Operation, error: BaseException | None) -> None:
    observers.operation_ended(operation)
    # A caller who gave up knows it.
    level = logging.INFO if error is None or isinstance(error, asyncio.CancelledError) else logging.WARNING
    # Python prints warnings of programs without any handler to standard error. Whoever has set up no log has the error.
    if log.isEnabledFor(level) and log.hasHandlers():
        fields = log_fields(operation, error)
        listed = " ".join(f"{name}={value}" for name, value in fields.items() if name not in ("operation", "outcome"))
        reason = "" if error is None else f" ({error})"
        log.log(level, "%s: %s%s: %s", operation.operation, operation.outcome, reason, listed, extra=fields)


def log_fields(operation: Operation, error: BaseException | None = None) -> dict[str, Any]:
    """Return the fields of a log line about an operation; those that it does not have are left out."""
    fields = operation._asdict()
    del fields["knows_class"]
    duration_ns = fields.pop("duration_ns")
    fields["milliseconds"] = None if duration_ns is None else duration_ns / NS_PER_MS
    fields["error"] = None if error is None else type(error).__name__
    return {name: value for name, value in fields.items() if value is not None}
