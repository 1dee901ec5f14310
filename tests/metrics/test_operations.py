"""Log lines of operations: which are written, with which fields, and that nothing is spent on them unwatched."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from ledger import counters, observers
from ledger.errors import LedgerOverloaded
from routing import (
    AllMinersBusy,
    Allowance,
    ChainFeedStale,
    InvalidInput,
    JobAlreadySpent,
    Miner,
    NotEnoughAllowanceException,
    ReservationNotFound,
    Routing,
    Settings,
    StreamVersionConflict,
)
from routing import sync as blocking
from routing.service import operations
from routing.service.outcomes import OUTCOMES, outcome_of
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks, small_ledger

PICK = "pick_miner_for_job_request"


@pytest.fixture(autouse=True)
def _no_observers() -> Iterator[None]:
    """Other tests may have enabled metrics."""
    before, observers.registered = observers.registered, ()
    yield
    observers.registered = before


def lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """Return the records of operations."""
    return [record for record in caplog.records if hasattr(record, "operation")]


def only_line(caplog: pytest.LogCaptureFixture) -> Any:
    """Return the only record of an operation, and forget it."""
    (line,) = lines(caplog)
    caplog.clear()
    return line


@contextmanager
def at_info(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "allowance.ledger"):
        caplog.clear()
        yield


async def test_a_pick_and_its_settlement_are_lines_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    """INFO per pick and settlement: job, miner, class, amount, reservation, attempts and milliseconds are fields."""
    async with small_ledger() as ledger:
        with at_info(caplog):
            route = await Routing(ledger).pick_miner_for_job_request(job("j-1"))
            line = only_line(caplog)
            assert (line.levelno, line.operation, line.outcome, line.attempts) == (logging.INFO, PICK, "routed", 1)
            assert (line.job_uuid, line.miner_ss58, line.executor_class) == ("j-1", route.miner.hotkey_ss58, GPU)
            assert (line.allowance_seconds, line.reservation_id) == (6.0, route.allowance_reservation_id)
            assert (line.validator_ss58, line.milliseconds > 0) == (VALIDATOR, True)
            assert "\n" not in line.getMessage()
            assert line.getMessage().startswith(f"{PICK}: routed: ")
            await ledger.spend(route.allowance_reservation_id or 0)
            line = only_line(caplog)
    assert (line.levelno, line.operation, line.outcome) == (logging.INFO, "spend", "done")
    assert (line.job_uuid, line.miner_ss58, line.executor_class) == ("j-1", route.miner.hotkey_ss58, GPU)
    assert (line.allowance_seconds, line.milliseconds > 0) == (6.0, True)


async def test_a_repeated_pick_is_not_counted_as_routed(caplog: pytest.LogCaptureFixture) -> None:
    """Routing a job again appends nothing, and its outcome says so."""
    async with small_ledger() as ledger:
        router = Routing(ledger)
        await router.pick_miner_for_job_request(job("j-1"))
        with at_info(caplog):
            await router.pick_miner_for_job_request(job("j-1"))
            assert only_line(caplog).outcome == "repeated"


async def test_each_refusal_is_a_warning_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    """No miner, a busy miner, a stale feed, a conflict, a spent job: a WARNING each, also at Python's default level."""
    clock = Clock(START + timedelta(seconds=132))
    settings = Settings(newest_block_max_age_seconds=60.0)
    async with small_ledger(offers={"5Anna": 1}, clock=clock, settings=settings) as ledger:
        router = Routing(ledger)
        route = await router.pick_miner_for_job_request(job("j-1"))
        caplog.clear()
        caplog.set_level(logging.WARNING, "allowance.ledger")
        expected = [
            (router.pick_miner_for_job_request(job("j-2")), AllMinersBusy, "all_busy"),
            (router.pick_miner_for_job_request(job("j-3", 3600.0)), NotEnoughAllowanceException, "no_allowance"),
            (router.pick_miner_for_job_request(job("j-4", -1.0)), InvalidInput, "invalid"),
            (ledger.reserve("5Anna", GPU, 1.0, 11, expected_version=7), StreamVersionConflict, "conflict"),
            (ledger.spend(99), ReservationNotFound, "not_found"),
        ]
        for call, error, outcome in expected:
            with pytest.raises(error):
                await call
            line = only_line(caplog)
            assert (line.levelno, line.outcome, line.error) == (logging.WARNING, outcome, error.__name__)
        await ledger.spend(route.allowance_reservation_id or 0)
        with pytest.raises(JobAlreadySpent):
            await router.pick_miner_for_job_request(job("j-1"))
        assert only_line(caplog).outcome == "already_spent"
        clock.advance(61)
        with pytest.raises(ChainFeedStale):
            await router.pick_miner_for_job_request(job("j-5"))
        line = only_line(caplog)
    assert (line.outcome, line.job_uuid, line.executor_class, line.allowance_seconds) == ("stale_feed", "j-5", GPU, 6.0)
    assert line.attempts >= 1


async def test_a_refused_call_has_milliseconds_if_it_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    """With INFO enabled a refusal has all fields of a success."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        with at_info(caplog):
            with pytest.raises(NotEnoughAllowanceException):
                await Routing(ledger).pick_miner_for_job_request(job("j", 3600.0))
            line = only_line(caplog)
    assert line.milliseconds > 0
    assert (line.job_uuid, line.executor_class, line.allowance_seconds, line.attempts > 0) == ("j", GPU, 3600.0, True)


async def test_a_closed_ledger_refuses_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """A pick that cannot reach the ledger is refused like any other; it was never decided."""
    async with small_ledger() as ledger:
        pass
    caplog.clear()
    with pytest.raises(Exception, match="closed"):
        await Routing(ledger).pick_miner_for_job_request(job("j"))
    line = only_line(caplog)
    assert (line.outcome, line.attempts) == ("closed", 0)


async def test_corrections_settings_and_seals_are_lines(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    """A withdrawal names block and reason; a change of the settings, old and new values; a seal, its position."""
    async with small_ledger(url=f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        with at_info(caplog):
            await ledger.withdraw_block(11, "recorded by mistake")
            line = only_line(caplog)
            assert (line.levelno, line.operation, line.outcome) == (logging.INFO, "withdraw_block", "done")
            assert (line.block, line.reason) == (11, "recorded by mistake")
            await ledger.change_settings(block_expiry_blocks=500)
            assert only_line(caplog).operation == "change_settings"
            await ledger.expire_due()
            line = only_line(caplog)
            assert (line.operation, line.outcome, line.items) == ("expire_due", "done", 0)
            handle = ledger._lifecycle.open_handle
            assert handle is not None
            await handle.runtime.run(handle.upkeep.seal_if_due(1))
            assert [record.position for record in caplog.records if "sealed the state" in record.message]  # type: ignore[attr-defined]


async def test_a_refused_fact_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A call that recorded the facts before a refused one is one WARNING, with the number of those recorded."""
    async with small_ledger() as ledger:
        with at_info(caplog):
            await record_blocks(ledger, 12, 12, ["5Anna"])
            line = only_line(caplog)
            assert (line.operation, line.outcome, line.items) == ("record_facts", "done", 1)
            with pytest.raises(Exception, match="block 12"):
                await record_blocks(ledger, 12, 12, ["5Bert"])
            line = only_line(caplog)
    assert (line.levelno, line.outcome, line.items) == (logging.WARNING, "conflict", 0)


async def test_routes_without_the_ledger_are_lines_too(caplog: pytest.LogCaptureFixture) -> None:
    """A debug miner that was left configured gets every job: each line says so."""
    debug_miner = Miner("192.0.2.1", 4, 8000, "5Debug")
    async with small_ledger() as ledger:
        with at_info(caplog):
            await Routing(ledger, debug_miner=debug_miner).pick_miner_for_job_request(job("j"))
            line = only_line(caplog)
            assert (line.outcome, line.miner_ss58, line.job_uuid) == ("debug_miner", "5Debug", "j")
            await Routing(ledger).pick_miner_for_job_request(job("j", trusted=True))
            assert only_line(caplog).outcome == "trusted_miner"


async def test_a_hostile_request_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Text of a malformed request that could end a line is left out of the fields, and quoted in the message."""
    hostile = "x\nINFO forged"
    async with small_ledger() as ledger:
        with at_info(caplog):
            for request in (job(hostile), job("j", executor_class=hostile), job("u" * 10_000)):
                with pytest.raises(InvalidInput):
                    await Routing(ledger).pick_miner_for_job_request(request)
    for line in lines(caplog):
        assert "\n" not in line.getMessage()
        assert len(getattr(line, "job_uuid", "")) <= operations.LONGEST_NAME


def test_lines_have_the_context_of_a_blocking_caller(caplog: pytest.LogCaptureFixture) -> None:
    """structlog and others read context variables: those of the caller are set, though the library has its own thread.

    Catches a line that is logged on the library's loop outside of the caller's context.
    """
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "operation"):
                seen.append(request_id.get())

    logger, handler = logging.getLogger("allowance.ledger"), Handler()
    logger.addHandler(handler)
    try:
        with at_info(caplog), blocking.Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
            request_id.set("r-17")
            ledger.expire_due()
    finally:
        logger.removeHandler(handler)
    assert seen == ["r-17"]


def test_json_formatter_and_structlog_need_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    """python-json-logger writes the fields as they are; so does structlog's formatter with `ExtraAdder`."""
    json_logger = pytest.importorskip("pythonjsonlogger.json")
    structlog = pytest.importorskip("structlog")
    rendered = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    formatters = (json_logger.JsonFormatter(), rendered)
    streams = [io.StringIO() for _ in formatters]
    logger, handlers = logging.getLogger("allowance.ledger"), [logging.StreamHandler(stream) for stream in streams]
    for handler, formatter in zip(handlers, formatters, strict=True):
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    try:
        with at_info(caplog), blocking.Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
            ledger.expire_due()
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
    for stream in streams:
        fields = json.loads(stream.getvalue().splitlines()[-1])
        assert (fields["operation"], fields["outcome"], fields["items"]) == ("expire_due", "done", 0)
        assert fields["milliseconds"] > 0


async def test_a_pick_that_nobody_watches_reads_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without INFO and observers a pick and a settlement read no clock for them, and make no record.

    Catches a clock that is read, or a record that is made, before the guard.
    """

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("something was measured")

    async with small_ledger() as ledger:
        monkeypatch.setattr(operations, "Operation", never)
        monkeypatch.setattr(operations, "note_ended", never)
        monkeypatch.setattr(observers, "Batch", never)
        monkeypatch.setattr(time, "perf_counter_ns", _only_for_lock_waits())
        monkeypatch.setattr(counters.Counters, "commit_ended", _raising_if_observed)
        route = await Routing(ledger).pick_miner_for_job_request(job("j"))
        await ledger.spend(route.allowance_reservation_id or 0)


def _only_for_lock_waits() -> Any:
    """Return a clock that only the runtime's thread may read: it times the waits for the write lock, as always."""
    real, caller = time.perf_counter_ns, threading.get_ident()

    def read() -> int:
        assert threading.get_ident() != caller
        return real()

    return read


def _raising_if_observed(self: counters.Counters, began_ns: int) -> None:
    assert (self.batch, began_ns) == (None, 0)


async def test_an_observer_that_fails_changes_no_result(caplog: pytest.LogCaptureFixture) -> None:
    """A committed pick must not become an error because an observer raises; the error is logged."""

    class Failing:
        def operation_ended(self, operation: observers.Operation) -> None:
            raise RuntimeError("no")

        def batch_ended(self, batch: observers.Batch) -> None:
            raise RuntimeError("no")

    async with small_ledger() as ledger:
        observers.add_observer(Failing())
        route = await Routing(ledger).pick_miner_for_job_request(job("j"))
        assert route.allowance_reservation_id is not None
        assert (await ledger.reservation(route.allowance_reservation_id)).status == "reserved"
    assert "an observer of operations failed" in caplog.text
    assert "an observer of batches failed" in caplog.text


async def test_a_cancelled_caller_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Who gives up knows it: the outcome is "cancelled", at INFO."""
    async with small_ledger() as ledger:
        with at_info(caplog):
            picking = asyncio.ensure_future(Routing(ledger).pick_miner_for_job_request(job("j")))
            await asyncio.sleep(0)
            picking.cancel()
            await asyncio.wait([picking])
            line = only_line(caplog)
    assert (line.levelno, line.outcome) == (logging.INFO, "cancelled")


def test_every_error_of_the_library_has_an_outcome() -> None:
    """Only the errors of reading have none, and no error of a change is counted as "failed"."""
    from ledger import errors

    reading = {
        "AllowanceException",
        "JobRoutingException",
        "PositionOutOfRange",
        "TimeOutOfRange",
        "BadReceiptSignature",
        "BlockNotFinalized",
        "JobOutOfBounds",
        "LedgerExists",
        "DamagedExport",
        "ProjectionStopped",
        "HistoryDamaged",
        "RebuildOvertaken",
    }
    unknown = {
        name for name in errors.__all__ if outcome_of(getattr(errors, name).__new__(getattr(errors, name))) == "failed"
    }
    assert unknown == reading
    assert outcome_of(LedgerOverloaded(1)) == "overloaded"
    assert len(OUTCOMES) == len(set(OUTCOMES))


def test_a_program_without_a_log_prints_nothing(tmp_path: Any) -> None:
    """Python prints warnings to standard error if a program has set up no log: a refusal there is the error alone."""
    import subprocess
    import sys

    program = f"""
from routing.sync import Allowance
with Allowance.open("sqlite://", validator_ss58={VALIDATOR!r}) as ledger:
    try:
        ledger.spend(7)
    except Exception as error:
        print(type(error).__name__)
"""
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == ("ReservationNotFound\n", "")


def test_allowance_is_the_only_place_where_commands_end() -> None:
    """A method of `Allowance` that called the writer itself would be in no log and in no metric."""
    import inspect

    source = inspect.getsource(Allowance)
    assert source.count(".submit(") == 1
    assert "writer.execute(" not in source
