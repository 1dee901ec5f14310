"""Rows that are damaged, out of order, or have columns that their events do not allow."""

from __future__ import annotations

from ledger.codec import encode
from ledger.events import CHAIN_STREAM, SETTINGS_STREAM, BlockRecorded, ReservationReleased, ReservationSpent
from projections import Rule
from tests.support.log_builder import ANNA, BERT, LogBuilder, created_at_ns

from .fault_case import FaultCases

FAULT_CASES = FaultCases()
BLOCK_12 = BlockRecorded(12, created_at_ns(12))


def only_bert() -> LogBuilder:
    return LogBuilder(offers={BERT: 2})


@FAULT_CASES(Rule.HASH_CHAIN, "stored", "computed", also=[(2, Rule.HASH_CHAIN)])
def a_flipped_bit_in_a_hash(log: LogBuilder) -> None:
    row = log.reserve(ANNA, 6, (1, 1))
    log.block(12)
    log.rows[-2] = row._replace(hash=bytes([row.hash[0] ^ 1]) + row.hash[1:])


@FAULT_CASES(Rule.HASH_CHAIN, "the row's hash is not that of its columns")
def a_changed_payload_with_the_old_hash(log: LogBuilder) -> None:
    row = log.block(12)
    log.rows[-1] = row._replace(payload=encode(BlockRecorded(12, created_at_ns(12) + 1)))


@FAULT_CASES(Rule.DENSE_POSITIONS, "position 14 is missing")
def a_missing_position(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BLOCK_12, position=log.position + 2)


@FAULT_CASES(Rule.DENSE_VERSIONS, "must be 12, got 13")
def a_missing_version(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BLOCK_12, version=13)


@FAULT_CASES(Rule.DENSE_VERSIONS, "must be 12, got 11")
def a_version_used_twice(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BLOCK_12, version=11)


@FAULT_CASES(Rule.ROW_COLUMNS, "recorded_at_ns is '17", also=[(1, Rule.HASH_CHAIN)])
def a_recorded_time_stored_as_text(log: LogBuilder) -> None:
    row = log.append(CHAIN_STREAM, BLOCK_12)
    log.rows[-1] = row._replace(recorded_at_ns=str(row.recorded_at_ns))  # type: ignore[arg-type]


@FAULT_CASES(Rule.ROW_COLUMNS, "a row must have job_uuid and attempt")
def a_job_without_an_attempt(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), columns={"job_uuid": "job"})


@FAULT_CASES(Rule.ROW_COLUMNS, "attempt is 0", also=[(1, Rule.JOB_ATTEMPTS)])
def a_job_with_attempt_0(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), columns={"job_uuid": "job", "attempt": 0})


@FAULT_CASES(Rule.ROW_COLUMNS, "a job if a router made it", logs=only_bert)
def a_route_without_a_job(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), columns={"job_uuid": None, "attempt": None})


@FAULT_CASES(Rule.ROW_COLUMNS, "the row of a fact must have neither a job")
def a_block_row_with_a_job(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BLOCK_12, job_uuid="job", attempt=1)


@FAULT_CASES(Rule.ROW_COLUMNS, "the row of a reservation must have no `settles`", "settles 5")
def a_reservation_row_with_settles(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), columns={"settles": 5})


@FAULT_CASES(
    Rule.ROW_COLUMNS, "the row of a settlement must have `settles`, and no job", at=2, also=[(2, Rule.SETTLES_STANDING)]
)
def a_settlement_row_with_a_job(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent, settles=None, job_uuid="job", attempt=1)


@FAULT_CASES(Rule.ROW_COLUMNS, "the idempotency key must be 1 to 256 printable characters")
def a_key_with_a_line_break(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), columns={"key": "line\nbreak"})


@FAULT_CASES(Rule.ROW_COLUMNS, "job_uuid must be 1 to 128 printable characters")
def a_job_with_an_empty_uuid(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), columns={"job_uuid": "", "attempt": 1})


@FAULT_CASES(Rule.RECORDED_TIMES, f"before_ns {created_at_ns(11)}")
def a_recorded_time_that_decreases(log: LogBuilder) -> None:
    log.now_ns -= 1
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(Rule.READABLE_EVENTS, "the payload is not an event")
def a_payload_that_is_no_event(log: LogBuilder) -> None:
    log.append_columns(CHAIN_STREAM, payload=b"{}")


@FAULT_CASES(Rule.READABLE_EVENTS, "the payload is not a valid block-recorded")
def an_event_without_a_required_field(log: LogBuilder) -> None:
    log.append_columns(CHAIN_STREAM, payload=b'{"type":"block-recorded","number":12}')


@FAULT_CASES(Rule.READABLE_EVENTS, "allowance-lent")
def an_event_of_a_newer_release(log: LogBuilder) -> None:
    log.append_columns(CHAIN_STREAM, payload=b'{"type":"allowance-lent","number":12}')


@FAULT_CASES(Rule.READABLE_EVENTS, "colour")
def a_field_of_a_newer_release(log: LogBuilder) -> None:
    log.append_columns(CHAIN_STREAM, payload=b'{"type":"block-recorded","number":12,"created_at_ns":1,"colour":"red"}')


@FAULT_CASES(Rule.STREAM_OF_EVENT, "the stream 'settings', expected 'chain'")
def a_block_in_the_settings_stream(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, BLOCK_12)


@FAULT_CASES(Rule.STREAM_OF_EVENT, "not an account's stream", also=[(1, Rule.BLOCKS_GRANTED), (1, Rule.BLOCKS_ENOUGH)])
def a_reservation_in_no_account_stream(log: LogBuilder) -> None:
    row = log.reserve(ANNA, 6, (1, 1))
    log.rows.pop()
    log.append_columns("account", payload=row.payload)


@FAULT_CASES(Rule.KEYS_ONCE, "'key' was used before", at=2)
def a_key_used_twice(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1), columns={"key": "key"})
    log.settle(made, ReservationReleased, key="key")


@FAULT_CASES(Rule.KEYS_ONCE, "'key' was used before", at=2)
def a_key_shared_by_a_fact_and_a_claim(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockRecorded(12, created_at_ns(12), request="digest"), key="key")
    log.reserve(ANNA, 6, (1, 1), columns={"key": "key"})


@FAULT_CASES(Rule.ROW_COLUMNS, "a fact must have both a key and the digest of its call, or neither")
def a_fact_with_a_key_but_no_digest(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BLOCK_12, key="key")
