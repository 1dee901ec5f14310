"""Facts and settings: each must be possible and must follow from those before it.

An impossible fact is reported and left out of the replay. Rules: a block, and a manifest sync at a block, is recorded
once; a fact is stored as a difference to the one before it, so it names only what changed; no block lasts zero or
fewer nanoseconds; the first event, and no other, opens the ledger and names its validator. A correction withdraws a
recorded fact; if it carries something else than what follows from the facts that remain, what follows is applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec

from ledger import Metagraph, RecordedSettings, Row
from ledger.errors import InvalidInput, shortened
from ledger.events import (
    BlockRecorded,
    BlockWithdrawn,
    Correction,
    LedgerOpened,
    ManifestsRecorded,
    ManifestsWithdrawn,
    SettingsChanged,
)
from ledger.settings import ROUTING_DEFAULTS
from projections.audit.state import AuditState
from projections.rules import Findings, Rule

from .grants import GrantCheck

V = TypeVar("V")

# The same limits as the ledger's fact validation, repeated here so that a mistake there is found.
LARGEST = 2**63 - 1
MOST_EXECUTORS = 10**9
LONGEST_NAME = 128
LONGEST_REASON = 256
LONGEST_ADDRESS = 253
LARGEST_PORT = 65_535
_BLOCK_HASH = re.compile("[0-9a-f]{64}")


class FactCheck:
    """Checks facts and settings, and applies those that are possible."""

    def __init__(self, state: AuditState, validator_ss58: str, findings: Findings) -> None:
        self._state = state
        self._chain = state.chain
        self._validator_ss58 = validator_ss58
        self._findings = findings
        self._grants = GrantCheck(state.chain, findings)
        self.opened = False
        self.has_new_rules = False
        self._count_inputs = state.chain.newest_inputs
        """What the counts of the last finalized block were computed from."""
        self._members = state.chain.metagraph.members

    def process_opening(self, row: Row, event: LedgerOpened) -> None:
        """Check that the ledger is opened once, first, and for the expected validator."""
        if row.position != 1:
            self._findings.add(row.position, Rule.OPENING_EVENT, "the ledger was already opened")
            return
        self.opened = True
        if event.validator_ss58 != self._validator_ss58:
            details = {"recorded": event.validator_ss58, "ledger": self._validator_ss58}
            message = "the ledger was opened for another validator"
            self._findings.add(row.position, Rule.OPENING_EVENT, message, **details)
        # The grants are checked for the validator that the log names: they were computed for it.
        self._chain.validator_ss58 = event.validator_ss58
        self._apply_settings(row, event.settings)

    def process_settings(self, row: Row, event: SettingsChanged) -> None:
        """Check that the settings are possible and differ from those before."""
        if event.settings == self._chain.settings:
            self._findings.add(row.position, Rule.FACTS_ONCE, "the settings are the same as before")
        self._apply_settings(row, event.settings)

    def process_block(self, row: Row, event: BlockRecorded) -> None:
        """Check a block, and apply it if it is possible and new."""
        blocks, number = self._chain.blocks, event.number
        applicable = self._applicable_block(row.position, event)
        if applicable is None:
            return
        if number in blocks:
            message = f"block {number} was already recorded at position {blocks.position(number)}"
            self._findings.add(row.position, Rule.FACTS_ONCE, message, block=number)
        elif self._has_possible_durations(row.position, event):
            newest = blocks.newest
            self._chain.apply_block(row.position, applicable)
            self._record_granted(number)
            self._record_affected_miners()
            self._state.record_change(resets_rankings=number < newest)
            self._grants.process_block(row.position, applicable, is_applied=True)
            return
        # The block is left out, but the next one may have been recorded as a difference to it.
        self._grants.process_block(row.position, applicable, is_applied=False)
        last = self._chain.last_metagraph
        self._chain.last_metagraph = Metagraph(
            _changed(last.miners, applicable.registered, applicable.deregistered),
            _changed(last.stakes, applicable.staked, applicable.unstaked),
        )

    def process_manifests(self, row: Row, event: ManifestsRecorded) -> None:
        """Check a manifest sync, and apply it if it is possible and new."""
        chain = self._chain
        applicable = self._applicable_manifests(row.position, event)
        if applicable is None:
            return
        if event.block in chain.syncs:
            recorded_at = chain.syncs[event.block].position
            message = f"the sync at block {event.block} was already recorded at position {recorded_at}"
            self._findings.add(row.position, Rule.FACTS_ONCE, message, block=event.block)
            # The sync is left out, but the next one may have been recorded as a difference to it.
            chain.read_manifests(applicable)
            self._grants.process_sync(row.position, applicable, is_applied=False)
            return
        chain.apply_manifests(row.position, applicable)
        self._grants.says_coverage |= self.has_new_rules
        self._record_all_affected()
        self._state.record_change()
        self._grants.process_sync(row.position, applicable, is_applied=True)

    def process_block_withdrawal(self, row: Row, event: BlockWithdrawn) -> None:
        """Check the withdrawal of a block, and apply it if the block is recorded."""
        expected = self._grants.block_withdrawal(event)
        if not self._is_expected(row.position, f"block {event.number}", event, expected) or expected is None:
            return
        self._check_withdrawn_blocks_free(row.position, event.number)
        granted, blocks = self._state.granted, self._chain.blocks
        for block in (event.number - 1, event.number):
            if blocks.unit_ns(block):
                granted.remove(block, block)
                self._state.sums.remove_block(block, blocks.unit_ns(block))
        self._chain.withdraw_block(row.position, expected)
        self._record_all_affected()
        self._members = self._chain.metagraph.members
        self._state.record_change(resets_rankings=True)
        self._grants.withdraw_block(row.position, expected)

    def process_manifests_withdrawal(self, row: Row, event: ManifestsWithdrawn) -> None:
        """Check the withdrawal of a sync, and apply it if the sync is recorded."""
        expected = self._grants.manifests_withdrawal(event)
        fact = f"the sync at block {event.block}"
        if not self._is_expected(row.position, fact, event, expected) or expected is None:
            return
        self._chain.withdraw_manifests(row.position, expected)
        self._record_all_affected()
        self._state.record_change(resets_rankings=True)
        self._grants.check_after_withdrawal(row.position)

    def finish(self, position: int) -> None:
        """Run the checks that need the whole log; `position` is its last."""
        self._grants.finish(position)

    def _apply_settings(self, row: Row, settings: RecordedSettings) -> None:
        try:
            settings.to_settings()
        except InvalidInput as refused:
            self._findings.add(row.position, Rule.SETTINGS_POSSIBLE, str(refused), field=refused.field)
            return
        # A field with its default is left out: otherwise there would be two spellings, and two digests, of one state.
        for field in (name for name, default in ROUTING_DEFAULTS.items() if getattr(settings, name) == default):
            message = f"{field} is recorded although it has its default"
            self._findings.add(row.position, Rule.SETTINGS_POSSIBLE, message, field=field)
        self._chain.apply_settings(settings)
        self._state.record_change(resets_rankings=True)
        self._grants.process_settings(row.position, settings)

    def _is_expected(self, position: int, fact: str, event: Correction, expected: Correction | None) -> bool:
        """Report a correction that is not as it must be; return whether its fact is recorded."""
        if expected is None:
            message = f"{fact} is withdrawn although it is not recorded"
            self._findings.add(position, Rule.CORRECTIONS_FOLLOW, message)
            return False
        if not is_name(event.reason, LONGEST_REASON):
            message = f"the reason must be 1 to {LONGEST_REASON} printable characters"
            self._findings.add(position, Rule.FACTS_FOLLOW, message, reason=shortened(event.reason))
        found, correct = (
            {name: getattr(each, name) for name in each.__struct_fields__ if name != "decided_at_ns"}
            for each in (event, expected)
        )
        wrong = [name for name in found if found[name] != correct[name]]
        if wrong:
            message = f"the withdrawal of {fact} has a wrong value: {wrong[0]}"
            details = {each: {"found": found[each], "expected": correct[each]} for each in wrong}
            self._findings.add(position, Rule.CORRECTIONS_FOLLOW, message, **details)
        return True

    def _check_withdrawn_blocks_free(self, position: int, number: int) -> None:
        for account in (*self._state.accounts.values(), *self._state.unknown_accounts.values()):
            if account.taken.overlaps(number - 1, number):
                message = f"block {number} is withdrawn although a reservation holds it or the block below it"
                details = {"miner_ss58": account.miner_ss58, "executor_class": account.executor_class}
                self._findings.add(position, Rule.WITHDRAWN_BLOCKS_FREE, message, **details)

    def _record_all_affected(self) -> None:
        """Record that the counts of any miner may have changed."""
        self._state.affected_miners.append(None)
        if self._chain.newest_inputs is None:
            # The next finalized block sets all counts, whatever they were computed from before.
            self._count_inputs = None

    def _record_granted(self, number: int) -> None:
        """Record the units of the blocks that a new block has finalized: the one below it, and itself if late."""
        blocks, granted = self._chain.blocks, self._state.granted
        for block in (number - 1, number):
            if block in blocks and block + 1 in blocks and blocks.unit_ns(block) > 0:
                granted.add(block, block)
                self._state.sums.add_block(block, blocks.unit_ns(block))

    def _record_affected_miners(self) -> None:
        """Record the miners whose counts or registration a block may have changed."""
        inputs, members = self._chain.newest_inputs, self._chain.metagraph.members
        if members is not self._members:
            self._state.affected_miners.append(members ^ self._members)
        if inputs is not None and inputs != self._count_inputs:
            if self._count_inputs is None or inputs[:2] != self._count_inputs[:2]:
                # Another sync or other caps: any miner's count may differ.
                self._state.affected_miners.append(None)
            else:
                self._state.affected_miners.append(inputs.members ^ self._count_inputs.members)
        self._count_inputs, self._members = inputs, members

    def _has_possible_durations(self, position: int, event: BlockRecorded) -> bool:
        blocks, number = self._chain.blocks, event.number
        for below in (number - 1, number):
            start_ns = event.created_at_ns if below == number else blocks.created_at_ns(below)
            end_ns = event.created_at_ns if below == number - 1 else blocks.created_at_ns(number + 1)
            if start_ns >= 0 and end_ns >= 0 and end_ns <= start_ns:
                message = f"block {below} would last {end_ns - start_ns} ns, expected more than 0"
                self._findings.add(position, Rule.BLOCK_DURATIONS, message, block=below, duration_ns=end_ns - start_ns)
                return False
        return True

    def _applicable_block(self, position: int, event: BlockRecorded) -> BlockRecorded | None:
        """Return the event without removals of names that are not there; None if the block itself is impossible."""
        last = self._chain.last_metagraph
        impossible = [
            *_impossible_names((*event.registered, *event.staked)),
            *(f"a stake of {shortened(stake)}" for stake in event.staked.values() if not 0 <= stake <= LARGEST),
            *(f"a miner at {shortened(axon)}" for axon in event.registered.values() if not _is_axon(*axon)),
        ]
        if event.block_hash and not _BLOCK_HASH.fullmatch(event.block_hash):
            impossible.append(f"the block hash {shortened(event.block_hash)}")
        if not 1 <= event.number <= LARGEST or not 0 <= event.created_at_ns <= LARGEST:
            impossible.append(f"block {shortened(event.number)} at {shortened(event.created_at_ns)} ns")
        if self._report_impossible(position, impossible):
            return None
        self._report_unchanged(position, event.registered, event.deregistered, last.miners)
        self._report_unchanged(position, event.staked, event.unstaked, last.stakes)
        absent = [*_absent(event.deregistered, last.miners), *_absent(event.unstaked, last.stakes)]
        if not absent:
            return event
        self._report_absent(position, absent)
        return msgspec.structs.replace(
            event,
            deregistered=[each for each in dict.fromkeys(event.deregistered) if each in last.miners],
            unstaked=[each for each in dict.fromkeys(event.unstaked) if each in last.stakes],
        )

    def _applicable_manifests(self, position: int, event: ManifestsRecorded) -> ManifestsRecorded | None:
        """Return the event without removals of miners that are not there; None if the sync itself is impossible."""
        counts = [count for offered in event.offered.values() for count in offered.values()]
        names = {name for offered in event.offered.values() for name in offered}
        impossible = [
            *_impossible_names((*event.offered, *names)),
            *(f"{shortened(count)} executors" for count in counts if not 0 <= count <= MOST_EXECUTORS),
        ]
        if not 1 <= event.block <= LARGEST:
            impossible.append(f"a sync at block {shortened(event.block)}")
        if self._report_impossible(position, impossible):
            return None
        self._report_unchanged(position, event.offered, event.absent, self._chain.last_manifests)
        absent = list(_absent(event.absent, self._chain.last_manifests))
        if not absent:
            return event
        self._report_absent(position, absent)
        return msgspec.structs.replace(
            event, absent=[each for each in dict.fromkeys(event.absent) if each in self._chain.last_manifests]
        )

    def _report_impossible(self, position: int, impossible: list[str]) -> bool:
        if impossible:
            message = f"the fact has an impossible value: {impossible[0]}"
            self._findings.add(position, Rule.FACTS_FOLLOW, message, impossible=impossible)
        return bool(impossible)

    def _report_unchanged(
        self, position: int, changed: Mapping[str, V], removed: list[str], last: Mapping[str, V]
    ) -> None:
        """Report names that a difference lists as changed although they are the same as before, or are removed too."""
        unchanged = [name for name, value in changed.items() if last.get(name) == value or name in removed]
        if unchanged:
            message = f"the fact lists {shortened(unchanged[0])} as changed, but it is as before, or is also removed"
            self._findings.add(position, Rule.FACTS_FOLLOW, message, unchanged=unchanged)

    def _report_absent(self, position: int, absent: list[str]) -> None:
        message = f"the fact removes {shortened(absent[0])}, which was not there"
        self._findings.add(position, Rule.FACTS_FOLLOW, message, absent=absent)


def is_name(text: str, longest: int = LONGEST_NAME) -> bool:
    """Return whether the text can be a name: printable, not empty, and at most `longest` characters."""
    return 1 <= len(text) <= longest and text.isprintable()


def _impossible_names(names: Iterable[str]) -> Iterator[str]:
    return (f"the name {shortened(name)}" for name in names if not is_name(name))


def _is_axon(address: str, ip_version: int, port: int) -> bool:
    return is_name(address, LONGEST_ADDRESS) and ip_version in (4, 6) and 0 <= port <= LARGEST_PORT


def _absent(removed: list[str], last: Mapping[str, object]) -> Iterator[str]:
    """Yield the removed names that were not there; a name that is removed twice was not there the second time."""
    seen: set[str] = set()
    for name in removed:
        if name not in last or name in seen:
            yield name
        seen.add(name)


def _changed(last: Mapping[str, V], changed: Mapping[str, V], removed: list[str]) -> dict[str, V]:
    merged = {**last, **changed}
    return dict(sorted((name, value) for name, value in merged.items() if name not in removed))
