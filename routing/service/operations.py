"""Operations: each call that changes a ledger ends with one record, for the log of the program and for observers.

The line is logged in the caller's context, so it has the context variables of the request. A call that nobody watches
costs two look-ups: no clock is read, and no record is made unless it is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ledger import (
    Command,
    EarlierExpiry,
    ImportReservations,
    MetagraphNeeded,
    OffersNeeded,
    RecordFacts,
    Reservation,
    WithdrawBlock,
    WithdrawManifests,
    observers,
)
from ledger.call_queue import PendingCall
from ledger.events import MinerFact
from ledger.observers import Operation
from ledger.values import seconds
from routing.pick import Pick

from .lifecycle import Lifecycle
from .outcomes import DONE, REPEATED, ROUTED, outcome_of

NS_PER_MS = 1_000_000
LONGEST_NAME = 128

_OF_MINER_FACTS = ("miner_ss58", "executor_class", "job_uuid", "kind", "reason")

_IN_PART = (RecordFacts, ImportReservations)
"""Commands that return the outcomes before the first refusal, and the refusal."""

_Subject = tuple[str | None, str | None, str | None, float | None, int | None, int | None]

log: logging.Logger = logging.getLogger("allowance.ledger")


def begin() -> int | None:
    """Return the moment at which a call begins, in ns of the performance counter; None if nobody watches."""
    return time.perf_counter_ns() if observers.registered or log.isEnabledFor(logging.INFO) else None


def note_ended(command: Command, result: Any, began_ns: int, call: PendingCall, lifecycle: Lifecycle) -> None:
    """Note a call that returned `result`."""
    if isinstance(result, (MetagraphNeeded, OffersNeeded)):
        return  # The command is executed again with what it needs, and ends then.
    error = result[1] if isinstance(command, _IN_PART) else None
    appended = call.row is not None
    if isinstance(command, Pick):
        outcome = ROUTED if appended else REPEATED
    else:
        # An expiry that finds nothing overdue repeats nothing.
        outcome = DONE if appended or command.operation == "expire_due" else REPEATED
    executor_class, job_uuid, miner_ss58, allowance_seconds, reservation_id, items = _subject(command, result)
    operation = Operation(
        command.operation,
        outcome if error is None else outcome_of(error),
        lifecycle.validator_ss58,
        executor_class,
        executor_class is not None,
        job_uuid,
        miner_ss58,
        allowance_seconds,
        reservation_id,
        items,
        call.attempts,
        time.perf_counter_ns() - began_ns,
    )
    _note(operation, error, _correction(command))


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
    _note(operation, error, _correction(command))


def note_pick_without_ledger(
    outcome: str, request: Any, miner_ss58: str | None = None, error: BaseException | None = None
) -> None:
    """Note a pick that did not reach the ledger: a malformed one, or one for the debug or the trusted miner."""
    if not observers.registered and not log.isEnabledFor(logging.INFO if error is None else logging.WARNING):
        return
    named = [getattr(request, attribute, None) for attribute in ("executor_class", "uuid")]
    # Nothing has checked them yet. A line of the log must stay one line.
    executor_class, job_uuid = [text if text.isprintable() and text else None for text in map(_short, named)]
    _note(Operation(Pick.operation, outcome, None, executor_class, False, job_uuid, miner_ss58), error)


def _subject(command: Command, result: Any) -> _Subject:
    """Return class, job, miner, amount, reservation and number of items, each None if there is none."""
    if isinstance(command, Pick):
        miner_ss58, amount = result.miner.hotkey_ss58, result.allowance_job_value
        return command.executor_class, command.job_uuid, miner_ss58, amount, result.allowance_reservation_id, None
    if isinstance(result, Reservation):
        job_uuid, amount = result.job_uuid, result.allowance_seconds
        return result.executor_class, job_uuid, result.miner_ss58, amount, result.reservation_id, None
    return None, None, None, None, None, _items(command, result)


def _items(command: Command, result: Any) -> int | None:
    if isinstance(result, EarlierExpiry):
        return result.expiries
    if isinstance(command, _IN_PART):
        return len(result[0])
    return len(result) if isinstance(result, list) else None


def _short(value: Any) -> str:
    return "" if value is None else str(value)[:LONGEST_NAME]


def _correction(command: Command) -> dict[str, Any]:
    """Return the fields that only the lines about corrections and miner facts have."""
    if isinstance(command, WithdrawBlock):
        return {"block": command.number, "reason": command.reason}
    if isinstance(command, WithdrawManifests):
        return {"block": command.block, "reason": command.reason}
    event = getattr(command, "event", None)
    if isinstance(event, MinerFact):
        return {name: value for name in _OF_MINER_FACTS if (value := getattr(event, name, None)) is not None}
    return {}


def _note(operation: Operation, error: BaseException | None, more: Mapping[str, Any] = MappingProxyType({})) -> None:
    observers.operation_ended(operation)
    # A caller who gave up knows it.
    level = logging.INFO if error is None or isinstance(error, asyncio.CancelledError) else logging.WARNING
    # Python prints warnings of programs without any handler to standard error. Whoever has set up no log has the error.
    if log.isEnabledFor(level) and log.hasHandlers():
        fields = {**log_fields(operation, error), **more}
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
