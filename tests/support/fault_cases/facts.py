"""Facts and settings that are impossible, or do not follow from those before them."""

from __future__ import annotations

from ledger import RecordedSettings
from ledger.codec import encode
from ledger.events import MANIFESTS_STREAM, SETTINGS_STREAM, LedgerOpened, ManifestsRecorded, SettingsChanged
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, GPU, SECOND_NS, VALIDATOR, LogBuilder, axon, created_at_ns

from .fault_case import FaultCases

FAULT_CASES = FaultCases()


class OfAnotherValidator(LogBuilder):
    """A log whose opening event names another validator."""

    def append(self, stream, event, **columns):
        if isinstance(event, LedgerOpened):
            event = LedgerOpened("5Stranger", event.settings)
        return super().append(stream, event, **columns)


class NeverOpened(LogBuilder):
    """A log whose first event changes settings instead of opening the ledger."""

    def append(self, stream, event, **columns):
        if isinstance(event, LedgerOpened):
            event = SettingsChanged(RecordedSettings(block_expiry_blocks=700))
        return super().append(stream, event, **columns)


@FAULT_CASES(Rule.OPENING_EVENT, "the ledger was already opened")
def a_ledger_opened_twice(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, LedgerOpened(VALIDATOR, log.settings))


@FAULT_CASES(Rule.OPENING_EVENT, "5Stranger", at=-12, logs=OfAnotherValidator)
def a_ledger_of_another_validator(log: LogBuilder) -> None:
    """The log grants to the other validator consistently, so nothing else is found."""


@FAULT_CASES(Rule.OPENING_EVENT, "does not open a ledger", at=-12, logs=NeverOpened)
def a_ledger_that_was_never_opened(log: LogBuilder) -> None:
    """Without a validator, the blocks grant nothing, and nothing else is found."""


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "allowance_multiplier")
def a_negative_multiplier(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(allowance_multiplier="-1")))


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "executors_max_per_class")
def a_negative_cap(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(executors_max_per_class={GPU: -1})))


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "minimum_collateral_wei")
def a_negative_minimum_of_collateral(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(minimum_collateral_wei=-1)))


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "reliability_window_hours")
def a_window_of_no_time(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(reliability_window_ns=0)))


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "reliability_soft_cutoff")
def a_cutoff_that_is_not_below_0(log: LogBuilder) -> None:
    """The formula divides by it."""
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(reliability_soft_cutoff_billionths=0)))


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "reliability_separation")
def a_negative_separation(log: LogBuilder) -> None:
    """Miners with incidents would be preferred."""
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(reliability_separation_billionths=-1)))


@FAULT_CASES(Rule.SETTINGS_POSSIBLE, "recorded although it has its default")
def a_default_that_is_not_left_out(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(RecordedSettings(minimum_collateral_wei=0)))


@FAULT_CASES(Rule.READABLE_EVENTS, "Invalid enum value 'reputation'")
def an_unknown_routing_order(log: LogBuilder) -> None:
    payload = encode(SettingsChanged(RecordedSettings(routing_order="reliability")))
    log.append_columns(SETTINGS_STREAM, payload=payload.replace(b'"reliability"', b'"reputation"'))


@FAULT_CASES(Rule.READABLE_EVENTS, "Invalid enum value 'hash'")
def an_unknown_tie_break(log: LogBuilder) -> None:
    payload = encode(SettingsChanged(RecordedSettings(tie_break="uuid_and_hash")))
    log.append_columns(SETTINGS_STREAM, payload=payload.replace(b'"uuid_and_hash"', b'"hash"'))


@FAULT_CASES(Rule.FACTS_ONCE, "block 11 was already recorded at position 13")
def a_hash_that_a_recorded_block_gains(log: LogBuilder) -> None:
    """The block keeps no hash, so later routes are compared with the order by the uuid alone."""
    log.block(11, block_hash="c0" * 32)


@FAULT_CASES(Rule.FACTS_ONCE, "the settings are the same as before")
def settings_that_change_nothing(log: LogBuilder) -> None:
    log.append(SETTINGS_STREAM, SettingsChanged(log.settings))


@FAULT_CASES(Rule.FACTS_ONCE, "block 11 was already recorded at position 13")
def a_block_recorded_twice(log: LogBuilder) -> None:
    log.block(11)


@FAULT_CASES(Rule.FACTS_ONCE, "the sync at block 1 was already recorded at position 2")
def a_sync_recorded_twice(log: LogBuilder) -> None:
    log.append(MANIFESTS_STREAM, ManifestsRecorded(1, {ANNA: {GPU: 3}}))


@FAULT_CASES(Rule.FACTS_FOLLOW, "block 0 at")
def a_block_number_of_0(log: LogBuilder) -> None:
    log.block(0)


@FAULT_CASES(Rule.FACTS_FOLLOW, "block 12 at -1 ns")
def a_block_with_a_negative_time(log: LogBuilder) -> None:
    log.block(12, created_at_ns=-1)


@FAULT_CASES(Rule.FACTS_FOLLOW, "a stake of -1")
def a_negative_stake(log: LogBuilder) -> None:
    log.block(12, staked={VALIDATOR: -1})


@FAULT_CASES(Rule.FACTS_FOLLOW, "a miner at ('192.0.2.7', 5, 8000)")
def a_miner_of_ip_version_5(log: LogBuilder) -> None:
    log.block(12, registered={"5Dora": ("192.0.2.7", 5, 8000)})


@FAULT_CASES(Rule.FACTS_FOLLOW, "the name ''")
def a_miner_with_an_empty_name(log: LogBuilder) -> None:
    log.block(12, registered={"": axon(ANNA)})


@FAULT_CASES(Rule.FACTS_FOLLOW, "the block hash 'c0ffee'")
def a_short_block_hash(log: LogBuilder) -> None:
    log.block(12, block_hash="c0ffee")


@FAULT_CASES(Rule.FACTS_FOLLOW, "the block hash")
def a_block_hash_in_capitals(log: LogBuilder) -> None:
    """No release writes it, and a fold refuses it: two spellings of one hash would be two states."""
    log.block(12, block_hash="C0" * 32)


@FAULT_CASES(Rule.FACTS_FOLLOW, "removes '5Dora', which was not there")
def an_unknown_miner_deregistered(log: LogBuilder) -> None:
    log.block(12, deregistered=["5Dora"])


@FAULT_CASES(Rule.FACTS_FOLLOW, "removes '5Other', which was not there")
def a_validator_removed_twice(log: LogBuilder) -> None:
    log.block(12, unstaked=["5Other", "5Other"])


@FAULT_CASES(Rule.FACTS_FOLLOW, "lists '5Anna' as changed")
def an_unchanged_miner_listed_as_changed(log: LogBuilder) -> None:
    log.block(12, registered={ANNA: axon(ANNA)})


@FAULT_CASES(Rule.FACTS_FOLLOW, "lists '5Other' as changed")
def an_unchanged_stake_listed_as_changed(log: LogBuilder) -> None:
    log.block(12, staked={"5Other": SECOND_NS})


@FAULT_CASES(Rule.FACTS_FOLLOW, "a sync at block 0")
def a_sync_at_block_0(log: LogBuilder) -> None:
    log.sync(0, {ANNA: {GPU: 3}})


@FAULT_CASES(Rule.FACTS_FOLLOW, "-1 executors")
def a_negative_executor_count(log: LogBuilder) -> None:
    log.sync(5, {ANNA: {GPU: -1}})


@FAULT_CASES(Rule.FACTS_FOLLOW, "removes '5Dora', which was not there")
def an_unknown_miner_removed_by_a_sync(log: LogBuilder) -> None:
    log.sync(12, {}, ["5Dora"])


@FAULT_CASES(Rule.FACTS_FOLLOW, "lists '5Carl' as changed")
def unchanged_counts_listed_as_changed(log: LogBuilder) -> None:
    log.sync(12, {BERT: {GPU: 3}, CARL: {GPU: 2}})


@FAULT_CASES(Rule.BLOCK_DURATIONS, "block 11 would last 0 ns")
def a_block_at_the_same_time_as_the_one_below_it(log: LogBuilder) -> None:
    log.block(12, created_at_ns=created_at_ns(11))


@FAULT_CASES(Rule.BLOCK_DURATIONS, "block 13 would last -1", at=2)
def a_late_block_created_after_the_one_above_it(log: LogBuilder) -> None:
    log.block(14)
    log.block(13, created_at_ns=created_at_ns(14) + 1)
