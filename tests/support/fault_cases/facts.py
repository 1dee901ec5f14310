"""Facts and settings that cannot follow those before them."""

from __future__ import annotations

from ledger import RecordedSettings
from ledger.events import MANIFESTS_STREAM, SETTINGS_STREAM, LedgerOpened, ManifestsRecorded, SettingsChanged
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, GPU, SECOND_NS, VALIDATOR, LogBuilder, axon, created_at_ns

from .fault_case import FaultCases

FAULT_CASES = FaultCases()


class Foreign(LogBuilder):
    """A log that says it is another validator's."""

    def append(self, stream, event, **columns):
        if isinstance(event, LedgerOpened):
            event = LedgerOpened("5Stranger", event.settings)
        return super().append(stream, event, **columns)


class Unopened(LogBuilder):
    """A log that begins in the middle, with settings that were changed."""

    def append(self, stream, event, **columns):
        if isinstance(event, LedgerOpened):
            event = SettingsChanged(RecordedSettings(block_expiry_blocks=700))
        return super().append(stream, event, **columns)


@FAULT_CASES(Rule.OPENING_EVENT, "the ledger was opened before")
def a_ledger_opened_twice(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, LedgerOpened(VALIDATOR, log.settings))


@FAULT_CASES(Rule.OPENING_EVENT, "5Stranger", at=-12, logs=Foreign)
def a_ledger_of_another_validator(log: LogBuilder) -> None:
    """The grants are another's, too."""


@FAULT_CASES(Rule.OPENING_EVENT, "does not begin by opening", at=-12, logs=Unopened)
def a_ledger_that_nobody_opened(log: LogBuilder) -> None:
    """Nothing is granted to nobody."""


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "allowance_multiplier")
def a_multiplier_below_nothing(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(allowance_multiplier="-1")))


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "executors_max_per_class")
def a_cap_below_nothing(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(executors_max_per_class={GPU: -1})))


@FAULT_CASES(Rule.FACTS_ONCE, "the settings are the same as before")
def settings_that_change_nothing(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(log.settings))


@FAULT_CASES(Rule.FACTS_ONCE, "block 11 was recorded at position 13")
def a_block_twice(log: LogBuilder) -> None:
    log.block(11)


@FAULT_CASES(Rule.FACTS_ONCE, "the sync at block 1 was recorded at position 2")
def a_sync_twice(log: LogBuilder) -> None:
    log.append(MANIFESTS_STREAM, ManifestsRecorded(1, {ANNA: {GPU: 3}}))


@FAULT_CASES(Rule.FACTS_FOLLOW, "block 0 at")
def a_block_below_the_first(log: LogBuilder) -> None:
    log.block(0)


@FAULT_CASES(Rule.FACTS_FOLLOW, "block 12 at -1 ns")
def a_block_before_time_began(log: LogBuilder) -> None:
    log.block(12, created_at_ns=-1)


@FAULT_CASES(Rule.FACTS_FOLLOW, "a stake of -1")
def a_stake_below_nothing(log: LogBuilder) -> None:
    log.block(12, staked={VALIDATOR: -1})


@FAULT_CASES(Rule.FACTS_FOLLOW, "a miner at ('192.0.2.7', 5, 8000)")
def a_miner_of_ip_version_5(log: LogBuilder) -> None:
    log.block(12, registered={"5Dora": ("192.0.2.7", 5, 8000)})


@FAULT_CASES(Rule.FACTS_FOLLOW, "the name ''")
def a_miner_without_a_name(log: LogBuilder) -> None:
    log.block(12, registered={"": axon(ANNA)})


@FAULT_CASES(Rule.FACTS_FOLLOW, "takes away '5Dora', which was not there")
def a_miner_that_leaves_without_having_been_there(log: LogBuilder) -> None:
    log.block(12, deregistered=["5Dora"])


@FAULT_CASES(Rule.FACTS_FOLLOW, "takes away '5Other', which was not there")
def a_validator_that_leaves_twice(log: LogBuilder) -> None:
    log.block(12, unstaked=["5Other", "5Other"])


@FAULT_CASES(Rule.FACTS_FOLLOW, "tells of '5Anna', which is as before")
def a_miner_that_did_not_move(log: LogBuilder) -> None:
    log.block(12, registered={ANNA: axon(ANNA)})


@FAULT_CASES(Rule.FACTS_FOLLOW, "tells of '5Other', which is as before")
def a_stake_that_did_not_change(log: LogBuilder) -> None:
    log.block(12, staked={"5Other": SECOND_NS})


@FAULT_CASES(Rule.FACTS_FOLLOW, "a sync at block 0")
def a_sync_below_the_first_block(log: LogBuilder) -> None:
    log.sync(0, {ANNA: {GPU: 3}})


@FAULT_CASES(Rule.FACTS_FOLLOW, "-1 executors")
def executors_below_nothing(log: LogBuilder) -> None:
    log.sync(5, {ANNA: {GPU: -1}})


@FAULT_CASES(Rule.FACTS_FOLLOW, "takes away '5Dora', which was not there")
def offers_that_end_without_having_been_there(log: LogBuilder) -> None:
    log.sync(12, {}, ["5Dora"])


@FAULT_CASES(Rule.FACTS_FOLLOW, "tells of '5Carl', which is as before")
def offers_that_did_not_change(log: LogBuilder) -> None:
    log.sync(12, {BERT: {GPU: 3}, CARL: {GPU: 2}})


@FAULT_CASES(Rule.BLOCK_DURATIONS, "block 11 would last 0 ns")
def a_block_as_old_as_the_one_below_it(log: LogBuilder) -> None:
    log.block(12, created_at_ns=created_at_ns(11))


@FAULT_CASES(Rule.BLOCK_DURATIONS, "block 13 would last -1", at=2)
def a_late_block_younger_than_the_one_above_it(log: LogBuilder) -> None:
    log.block(14)
    log.block(13, created_at_ns=created_at_ns(14) + 1)
