"""Seals of wrong states, and seals whose rows do not fit."""

from __future__ import annotations

from typing import Any

from ledger import SEAL_VERSION, LedgerState, Row, state_digest
from ledger.events import CHAIN_STREAM, SEALS_STREAM, StateSealed
from projections import Rule
from tests.support.log_builder import ANNA, LogBuilder

from .fault_case import FaultCases

FAULT_CASES = FaultCases()


def seal(log: LogBuilder, position: int | None = None, digest: str = "", **columns: Any) -> Row:
    """Append a seal, by default of the last position and with the right digest."""
    position = log.position if position is None else position
    if not digest:
        state = LedgerState()
        state.fold(log.rows[:position])
        digest = state_digest(state).hex()
    stream = columns.pop("stream", SEALS_STREAM)
    event = StateSealed(position, columns.pop("seal_version", SEAL_VERSION), digest)
    return log.append(stream, event, **{"key": f"seal:{position}", **columns})


def sealed() -> LogBuilder:
    """Return an honest log with seals: of its end, of an earlier position, and of an unknown version."""
    log = LogBuilder()
    log.reserve(ANNA, 6, (1, 1))
    seal(log)
    seal(log, 5)
    seal(log, digest="anything", seal_version=SEAL_VERSION + 1)
    return log


@FAULT_CASES(Rule.SEALS, "the sealed state is not that of the log", "sealed_position 17", logs=sealed)
def a_seal_with_another_digest(log: LogBuilder) -> None:
    seal(log, digest="0" * 64)


@FAULT_CASES(Rule.SEALS, "the sealed state is not that of the log", "sealed_position 13", logs=sealed)
def a_seal_of_the_state_of_another_position(log: LogBuilder) -> None:
    state = LedgerState()
    state.fold(log.rows[:14])
    seal(log, 13, digest=state_digest(state).hex())


@FAULT_CASES(Rule.SEALS, "a position that is not below its own", logs=sealed)
def a_seal_of_its_own_position(log: LogBuilder) -> None:
    seal(log, log.position + 1, digest="0" * 64)


@FAULT_CASES(Rule.SEALS, "must have the key of the position that it names", logs=sealed)
def a_seal_with_another_key(log: LogBuilder) -> None:
    seal(log, key="seal:1")


@FAULT_CASES(Rule.SEALS, "must have the key of the position that it names", "key None", logs=sealed)
def a_seal_without_a_key(log: LogBuilder) -> None:
    seal(log, key=None)


@FAULT_CASES(Rule.SEALS, "the seal cannot be compared", also=[(1, Rule.STREAM_OF_EVENT)], logs=sealed)
def a_seal_in_another_stream(log: LogBuilder) -> None:
    seal(log, stream=CHAIN_STREAM)


@FAULT_CASES(Rule.ROW_COLUMNS, "the row of a seal must have neither a job", logs=sealed)
def a_seal_with_a_job(log: LogBuilder) -> None:
    seal(log, job_uuid="job", attempt=1)
