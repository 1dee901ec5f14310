"""Corrections that withdraw nothing, the wrong thing, or carry something else than what follows; wrong coverage."""

from __future__ import annotations

from ledger import RecordedSettings
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    BlockWithdrawn,
    ManifestsRecorded,
    ManifestsWithdrawn,
    account_stream,
)
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, GPU, MINERS, LogBuilder, axon

from .fault_case import FaultCases

FAULT_CASES = FaultCases()

ANNAS = account_stream(ANNA, GPU)


@FAULT_CASES(Rule.COVERAGE_FOLLOWS, "covers other miners than it names", at=4)
def a_sync_that_covers_all_from_a_release_that_knows_better(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockWithdrawn(11, "wrong", 10))
    log.block(11)
    log.block(12, deregistered=[CARL])
    log.sync(12, {}, [CARL])


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "block 99 is withdrawn although it is not recorded")
def an_unknown_block_withdrawn(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockWithdrawn(99, "wrong"))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "block 11 is withdrawn although it is not recorded", at=2)
def a_block_withdrawn_twice(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockWithdrawn(11, "wrong", 10))
    log.append(CHAIN_STREAM, BlockWithdrawn(11, "wrong", 10))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "the sync at block 2 is withdrawn although it is not recorded")
def an_unknown_sync_withdrawn(log: LogBuilder) -> None:
    log.append(MANIFESTS_STREAM, ManifestsWithdrawn(2, "wrong"))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "the withdrawal of block 11 has a wrong value: returns_to")
def a_return_to_another_block(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockWithdrawn(11, "wrong", 9))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "the withdrawal of block 12 has a wrong value: registered", at=2)
def a_return_without_the_metagraph(log: LogBuilder) -> None:
    log.block(12, deregistered=[ANNA])
    log.append(CHAIN_STREAM, BlockWithdrawn(12, "wrong", 11))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "the withdrawal of block 11 has a wrong value: deregistered")
def a_return_to_another_metagraph(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockWithdrawn(11, "wrong", 10, {}, [BERT]))


@FAULT_CASES(Rule.FACTS_FOLLOW, "the reason must be 1 to 256 printable characters")
def a_withdrawal_without_a_reason(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockWithdrawn(11, "", 10))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "the withdrawal of the sync at block 1 has a wrong value: counts")
def a_sync_withdrawn_without_its_counts(log: LogBuilder) -> None:
    log.append(MANIFESTS_STREAM, ManifestsWithdrawn(1, "wrong", absent=list(MINERS)))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "has a wrong value: invalidated_below", at=2)
def a_drop_left_in_force(log: LogBuilder) -> None:
    log.sync(5, {ANNA: {GPU: 1}})
    log.append(MANIFESTS_STREAM, ManifestsWithdrawn(5, "wrong", {ANNA: {GPU: 2}}, counts={ANNAS: [(0, 0), (1, 2)]}))


@FAULT_CASES(Rule.CORRECTIONS_FOLLOW, "has a wrong value: counts", at=2)
def a_withdrawal_that_offers_more(log: LogBuilder) -> None:
    log.sync(5, {ANNA: {GPU: 3}})
    log.append(MANIFESTS_STREAM, ManifestsWithdrawn(5, "wrong", {ANNA: {GPU: 2}}, counts={ANNAS: [(0, 0), (1, 9)]}))


@FAULT_CASES(
    Rule.WITHDRAWN_BLOCKS_FREE,
    "block 3 is withdrawn although a reservation holds it or the block below it",
    at=3,
    also=[(2, Rule.CONSERVATION)],
)
def a_block_withdrawn_although_the_one_below_is_spent(log: LogBuilder) -> None:
    log.reserve(BERT, 12, (1, 1))
    log.reserve(BERT, 12, (2, 2))
    log.append(CHAIN_STREAM, BlockWithdrawn(3, "wrong", 2))


@FAULT_CASES(Rule.COVERAGE_FOLLOWS, "the sync at block 12 covers other miners", at=2)
def a_registered_miner_not_covered(log: LogBuilder) -> None:
    log.block(12, deregistered=[CARL])
    log.append(MANIFESTS_STREAM, ManifestsRecorded(12, {}, [BERT, CARL], uncovered=[BERT]))


@FAULT_CASES(Rule.COVERAGE_FOLLOWS, "the sync at block 13 covers other miners", at=4)
def coverage_said_once_and_not_again(log: LogBuilder) -> None:
    log.block(12, deregistered=[CARL])
    log.append(MANIFESTS_STREAM, ManifestsRecorded(12, {}, [CARL], uncovered=[CARL]))
    log.block(13, registered={CARL: axon(CARL)})
    log.append(MANIFESTS_STREAM, ManifestsRecorded(13, {CARL: {GPU: 2}}))


@FAULT_CASES(
    Rule.ROUTING_MANIFESTS,
    "the newest sync was 10 blocks behind the newest block, expected at most 9",
    logs=lambda: LogBuilder(RecordedSettings(newest_manifests_max_age_blocks=9), offers={BERT: 2}),
)
def a_route_on_stale_manifests(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1))
