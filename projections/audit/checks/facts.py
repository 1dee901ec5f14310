"""Facts and settings: whether each can follow those before it. What cannot is noted, and left out of the replay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec

from ledger import Metagraph, RecordedSettings, Row
from ledger.errors import InvalidInput, shortened
from ledger.events import BlockRecorded, LedgerOpened, ManifestsRecorded, SettingsChanged
from projections.audit.state import AuditState
from projections.rules import Findings, Rule

from .grants import GrantCheck

V = TypeVar("V")

LARGEST = 2**63 - 1
MOST_EXECUTORS = 10**9
LONGEST_NAME = 128
LONGEST_ADDRESS = 253
LARGEST_PORT = 65_535


class FactCheck:
    """Takes facts and settings."""

    def __init__(self, state: AuditState, validator_ss58: str, findings: Findings) -> None:
        self._state = state
        self._chain = state.chain
        self._validator_ss58 = validator_ss58
        self._findings = findings
        self._tally = GrantCheck(state.chain, findings)
        self.opened = False
        self._plan = state.chain.newest_inputs
        """By what the counts of the last finalized block were settled."""
        self._members = state.chain.metagraph.members

    def open(self, row: Row, event: LedgerOpened) -> None:
        """The ledger began."""
        if row.position != 1:
            self._findings.add(row.position, Rule.OPENING_EVENT, "the ledger was opened before")
            return
        self.opened = True
        if event.validator_ss58 != self._validator_ss58:
            details = {"recorded": event.validator_ss58, "ledger": self._validator_ss58}
            message = "the ledger was opened for another validator"
            self._findings.add(row.position, Rule.OPENING_EVENT, message, **details)
        self._chain.validator_ss58 = event.validator_ss58
        self._apply_settings(row, event.settings)

    def change_settings(self, row: Row, event: SettingsChanged) -> None:
        """Other settings apply from here on."""
        if event.settings == self._chain.settings:
            self._findings.add(row.position, Rule.FACTS_ONCE, "the settings are the same as before")
        self._apply_settings(row, event.settings)

    def end(self, position: int) -> None:
        """Compares what can be told only at the end."""
        self._tally.end(position)

    def record_block(self, row: Row, event: BlockRecorded) -> None:
        """A block became known."""
        blocks, number = self._chain.blocks, event.number
        sound = self._following_block(row.position, event)
        if sound is None:
            return
        if number in blocks:
            message = f"block {number} was recorded at position {blocks.position(number)}"
            self._findings.add(row.position, Rule.FACTS_ONCE, message, block=number)
        elif self._is_in_time(row.position, event):
            newest = blocks.newest
            self._chain.apply_block(row.position, sound)
            self._grant(number)
            self._note_turns()
            self._state.change(upheaval=number < newest)
            self._tally.take_block(row.position, sound, is_new=True)
            return
        self._tally.take_block(row.position, sound, is_new=False)
        last = self._chain.last_metagraph
        self._chain.last_metagraph = Metagraph(
            _patched(last.miners, sound.registered, sound.deregistered),
            _patched(last.stakes, sound.staked, sound.unstaked),
        )

    def record_manifests(self, row: Row, event: ManifestsRecorded) -> None:
        """A manifest sync became known."""
        chain = self._chain
        sound = self._following_manifests(row.position, event)
        if sound is None:
            return
        if event.block in chain.syncs:
            message = f"the sync at block {event.block} was recorded at position {chain.syncs[event.block].position}"
            self._findings.add(row.position, Rule.FACTS_ONCE, message, block=event.block)
            chain.last_manifests = _patched(chain.last_manifests, sound.offered, sound.absent)
            self._tally.take_sync(row.position, sound, is_new=False)
            return
        chain.apply_manifests(row.position, sound)
        self._state.turns.append(None)
        self._state.change()
        self._tally.take_sync(row.position, sound, is_new=True)

    def _apply_settings(self, row: Row, settings: RecordedSettings) -> None:
        try:
            settings.to_settings()
        except InvalidInput as refused:
            self._findings.add(row.position, Rule.SETTINGS_POSSIBLE, str(refused), field=refused.field)
            return
        self._chain.apply_settings(settings)
        self._state.change(upheaval=True)
        self._tally.take_settings(row.position, settings)

    def _grant(self, number: int) -> None:
        """Notes which blocks a new block has completed; each is by the later of the two that bound it."""
        blocks, granted = self._chain.blocks, self._state.granted
        for block in (number - 1, number):
            if block in blocks and block + 1 in blocks and blocks.unit_ns(block) > 0:
                granted.add(block, block)
                self._state.sums.add(block, blocks.unit_ns(block))

    def _note_turns(self) -> None:
        """Notes whose counts, or registration, a block may have changed."""
        plan, members = self._chain.newest_inputs, self._chain.metagraph.members
        if members is not self._members:
            self._state.turns.append(members ^ self._members)
        if plan is not None and plan != self._plan:
            if self._plan is None or plan[:2] != self._plan[:2]:
                self._state.turns.append(None)
            else:
                self._state.turns.append(plan.members ^ self._plan.members)
        self._plan, self._members = plan, members

    def _is_in_time(self, position: int, event: BlockRecorded) -> bool:
        blocks, number = self._chain.blocks, event.number
        for below in (number - 1, number):
            start_ns = event.created_at_ns if below == number else blocks.created_at_ns(below)
            end_ns = event.created_at_ns if below == number - 1 else blocks.created_at_ns(number + 1)
            if start_ns >= 0 and end_ns >= 0 and end_ns <= start_ns:
                message = f"block {below} would last {end_ns - start_ns} ns"
                self._findings.add(position, Rule.BLOCK_DURATIONS, message, block=below, duration_ns=end_ns - start_ns)
                return False
        return True

    def _following_block(self, position: int, event: BlockRecorded) -> BlockRecorded | None:
        """The event without what cannot follow; None where the block itself is impossible."""
        last = self._chain.last_metagraph
        impossible = [
            *_impossible_names((*event.registered, *event.staked)),
            *(f"a stake of {shortened(stake)}" for stake in event.staked.values() if not 0 <= stake <= LARGEST),
            *(f"a miner at {shortened(axon)}" for axon in event.registered.values() if not _is_axon(*axon)),
        ]
        if not 1 <= event.number <= LARGEST or not 0 <= event.created_at_ns <= LARGEST:
            impossible.append(f"block {shortened(event.number)} at {shortened(event.created_at_ns)} ns")
        if self._note_impossible(position, impossible):
            return None
        self._note_unchanged(position, event.registered, event.deregistered, last.miners)
        self._note_unchanged(position, event.staked, event.unstaked, last.stakes)
        absent = [*_absent(event.deregistered, last.miners), *_absent(event.unstaked, last.stakes)]
        if not absent:
            return event
        self._note_absent(position, absent)
        return msgspec.structs.replace(
            event,
            deregistered=[each for each in dict.fromkeys(event.deregistered) if each in last.miners],
            unstaked=[each for each in dict.fromkeys(event.unstaked) if each in last.stakes],
        )

    def _following_manifests(self, position: int, event: ManifestsRecorded) -> ManifestsRecorded | None:
        """The event without what cannot follow; None where the sync itself is impossible."""
        counts = [count for offered in event.offered.values() for count in offered.values()]
        names = {name for offered in event.offered.values() for name in offered}
        impossible = [
            *_impossible_names((*event.offered, *names)),
            *(f"{shortened(count)} executors" for count in counts if not 0 <= count <= MOST_EXECUTORS),
        ]
        if not 1 <= event.block <= LARGEST:
            impossible.append(f"a sync at block {shortened(event.block)}")
        if self._note_impossible(position, impossible):
            return None
        self._note_unchanged(position, event.offered, event.absent, self._chain.last_manifests)
        absent = list(_absent(event.absent, self._chain.last_manifests))
        if not absent:
            return event
        self._note_absent(position, absent)
        return msgspec.structs.replace(
            event, absent=[each for each in dict.fromkeys(event.absent) if each in self._chain.last_manifests]
        )

    def _note_impossible(self, position: int, impossible: list[str]) -> bool:
        if impossible:
            message = f"the fact cannot be: {impossible[0]}"
            self._findings.add(position, Rule.FACTS_FOLLOW, message, impossible=impossible)
        return bool(impossible)

    def _note_unchanged(self, position: int, changed: Mapping[str, V], gone: list[str], last: Mapping[str, V]) -> None:
        """What does not differ, or is gone as well, has no place in a difference."""
        unchanged = [name for name, value in changed.items() if last.get(name) == value or name in gone]
        if unchanged:
            message = f"it tells of {shortened(unchanged[0])}, which is as before, or gone"
            self._findings.add(position, Rule.FACTS_FOLLOW, message, unchanged=unchanged)

    def _note_absent(self, position: int, absent: list[str]) -> None:
        message = f"it takes away {shortened(absent[0])}, which was not there"
        self._findings.add(position, Rule.FACTS_FOLLOW, message, absent=absent)


def is_name(text: str, longest: int = LONGEST_NAME) -> bool:
    """Whether the text is one that names something."""
    return 1 <= len(text) <= longest and text.isprintable()


def _impossible_names(names: Iterable[str]) -> Iterator[str]:
    return (f"the name {shortened(name)}" for name in names if not is_name(name))


def _is_axon(address: str, ip_version: int, port: int) -> bool:
    return is_name(address, LONGEST_ADDRESS) and ip_version in (4, 6) and 0 <= port <= LARGEST_PORT


def _absent(gone: list[str], last: Mapping[str, object]) -> Iterator[str]:
    """What is taken away without being there; twice is once too often."""
    seen: set[str] = set()
    for name in gone:
        if name not in last or name in seen:
            yield name
        seen.add(name)


def _patched(last: Mapping[str, V], changed: Mapping[str, V], gone: list[str]) -> dict[str, V]:
    patched = {**last, **changed}
    return dict(sorted((name, value) for name, value in patched.items() if name not in gone))
