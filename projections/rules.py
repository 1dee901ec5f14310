"""The rules that an audit checks, each with a permanent name, and the findings of broken rules."""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Any

import msgspec

from ledger.errors import shortened

MOST_FINDINGS = 10_000
"""Further findings are only counted: a hostile log may break a rule with every event."""

MOST_SHOWN = 50
"""Longer lists in a finding's details are cut: a hostile event may list millions of blocks."""
LARGEST_BITS = 64
"""Larger integers are shown as shortened text, because readers of JSON may not handle them."""


class Rule(StrEnum):
    """The names of the rules. They never change, because reports and dashboards use them."""

    HASH_CHAIN = "hash-chain"
    DENSE_POSITIONS = "dense-positions"
    DENSE_VERSIONS = "dense-versions"
    ROW_COLUMNS = "row-columns"
    HEAD_ROW = "head-row"
    RECORDED_TIMES = "recorded-times"
    READABLE_EVENTS = "readable-events"
    STREAM_OF_EVENT = "stream-of-event"
    OPENING_EVENT = "opening-event"
    SETTINGS_POSSIBLE = "settings-possible"
    FACTS_ONCE = "facts-once"
    FACTS_FOLLOW = "facts-follow"
    BLOCK_DURATIONS = "block-durations"
    GRANTS_FOLLOW = "grants-follow"
    KEYS_ONCE = "keys-once"
    AMOUNT_LIMITS = "amount-limits"
    JOB_START = "job-start"
    DUE_TIME = "due-time"
    DECISION_CLOCK = "decision-clock"
    BLOCKS_ASCENDING = "blocks-ascending"
    BLOCKS_GRANTED = "blocks-granted"
    BLOCKS_IN_WINDOW = "blocks-in-window"
    BLOCKS_NOT_INVALIDATED = "blocks-not-invalidated"
    BLOCKS_TAKEN_ONCE = "blocks-taken-once"
    BLOCKS_ENOUGH = "blocks-enough"
    BLOCKS_NO_MORE_THAN_NEEDED = "blocks-no-more-than-needed"
    BLOCKS_EARLIEST_FIRST = "blocks-earliest-first"
    SETTLES_STANDING = "settles-standing"
    EXPIRES_OVERDUE = "expires-overdue"
    EXPIRES_WHAT_IS_TAKEN = "expires-what-is-taken"
    JOB_STANDS_ONCE = "job-stands-once"
    JOB_ATTEMPTS = "job-attempts"
    JOB_SPENT_ONCE = "job-spent-once"
    ROUTING_DECISION = "routing-decision"
    ROUTING_AXON = "routing-axon"
    ROUTING_FEED = "routing-feed"
    CONSERVATION = "conservation"
    HISTORY_MODEL = "history-model"
    SNAPSHOTS = "snapshots"
    LIVE_STATE = "live-state"


RULES: dict[Rule, str] = {
    Rule.HASH_CHAIN: "A row's hash is that of its stored columns and the hash of the row before it.",
    Rule.DENSE_POSITIONS: "Positions are 1, 2, 3 and so on without a gap.",
    Rule.DENSE_VERSIONS: "The versions of a stream are 1, 2, 3 and so on without a gap.",
    Rule.ROW_COLUMNS: "Each column has its type and form; optional ones are present exactly if the event needs them.",
    Rule.HEAD_ROW: "The head row has the position, hash and recorded time of the last row.",
    Rule.RECORDED_TIMES: "Recorded times never decrease.",
    Rule.READABLE_EVENTS: "Each payload is an event that this release can read.",
    Rule.STREAM_OF_EVENT: "Each event is in the stream that belongs to it.",
    Rule.OPENING_EVENT: "The first event, and no other, opens the ledger and names its validator.",
    Rule.SETTINGS_POSSIBLE: "Recorded settings are valid settings.",
    Rule.FACTS_ONCE: "A block, and a sync at a block, is recorded once; settings are recorded only if they differ.",
    Rule.FACTS_FOLLOW: "A fact has possible values, and lists only differences to the fact before it.",
    Rule.BLOCK_DURATIONS: "A block is created later than the block below it.",
    Rule.GRANTS_FOLLOW: "The ledger's granted and invalidated blocks follow from the facts.",
    Rule.KEYS_ONCE: "An idempotency key belongs to one event.",
    Rule.AMOUNT_LIMITS: "A reservation's amount is above 0 and at most the longest job of the settings.",
    Rule.JOB_START: "A job starts at block 1 or later.",
    Rule.DUE_TIME: "A reservation is due its amount plus the margin after its recorded time.",
    Rule.DECISION_CLOCK: "A reservation's deciding clock is recorded only if it is behind the recorded time.",
    Rule.BLOCKS_ASCENDING: "A reservation's blocks are recorded as ascending runs that do not touch.",
    Rule.BLOCKS_GRANTED: "Reserved blocks grant allowance to the account.",
    Rule.BLOCKS_IN_WINDOW: "Reserved blocks are not older than the settings allow at the job's start.",
    Rule.BLOCKS_NOT_INVALIDATED: "Reserved blocks are not invalidated by a drop.",
    Rule.BLOCKS_TAKEN_ONCE: "A block is in at most one reserved or spent reservation of an account.",
    Rule.BLOCKS_ENOUGH: "Reserved blocks add up to the amount.",
    Rule.BLOCKS_NO_MORE_THAN_NEEDED: "Without the last reserved block, they add up to less than the amount.",
    Rule.BLOCKS_EARLIEST_FIRST: "No free block that is earlier than a reserved one is skipped.",
    Rule.SETTLES_STANDING: "A settlement settles an active reservation of its account, which the row names.",
    Rule.EXPIRES_OVERDUE: "Only an overdue reservation expires.",
    Rule.EXPIRES_WHAT_IS_TAKEN: (
        "`expire_due` expires every overdue reservation, in order of their due times, and records how many; any other"
        " expiry is directly before the claim that takes its blocks."
    ),
    Rule.JOB_STANDS_ONCE: "A job has at most one active reservation.",
    Rule.JOB_ATTEMPTS: "A job's reservations are numbered 1, 2, 3 and so on.",
    Rule.JOB_SPENT_ONCE: "A job is not reserved for again after a spend.",
    Rule.ROUTING_DECISION: "A routed job goes to the first candidate at the newest block that is not busy.",
    Rule.ROUTING_AXON: "A route has the miner's axon of the newest metagraph.",
    Rule.ROUTING_FEED: "No job is routed if the newest block is older than the settings allow.",
    Rule.CONSERVATION: "Spent, held, invalidated and free allowance add up to the granted allowance.",
    Rule.HISTORY_MODEL: "The history's read model agrees with the log about every reservation.",
    Rule.SNAPSHOTS: "A snapshot equals, byte for byte, the state of the log at its position.",
    Rule.LIVE_STATE: "The state in memory equals, byte for byte, the state of the log at its position.",
}
"""What each rule requires, as reports show it."""


class Finding(msgspec.Struct, frozen=True):
    """A broken rule: the position, the rule's name, what is wrong in one sentence, and the values involved by name."""

    position: int
    rule: str
    message: str
    details: dict[str, Any] = {}


class Findings:
    """Counts all findings, and keeps those with the lowest positions."""

    def __init__(self) -> None:
        self.count = 0
        self._lowest: list[Finding] = []
        self._unlisted_from: float = inf
        """Findings at this position or later are not listed, because enough earlier ones are known."""

    @property
    def listed(self) -> list[Finding]:
        """The first `MOST_FINDINGS` by position; those at one position are in the order of their addition."""
        self._trim()
        return self._lowest

    def add(self, position: int, rule: Rule, message: str, **details: Any) -> None:
        """Add a finding: the rule is broken at the position."""
        self.count += 1
        if position < self._unlisted_from:
            plain = {name: _plain(value) for name, value in details.items()}
            self._lowest.append(Finding(position, rule.value, message, plain))
            # Sorting only after as many additions as are kept makes the cost of each addition constant on average.
            if len(self._lowest) >= 2 * MOST_FINDINGS:
                self._trim()

    def _trim(self) -> None:
        self._lowest.sort(key=lambda finding: finding.position)
        if len(self._lowest) > MOST_FINDINGS:
            del self._lowest[MOST_FINDINGS:]
            self._unlisted_from = self._lowest[-1].position


def _plain(value: Any) -> Any:
    """Return a value of the log in a form that is small, and safe for JSON and terminals."""
    if isinstance(value, (list, tuple)):
        shown = [_plain(each) for each in value[:MOST_SHOWN]]
        return [*shown, f"and {len(value) - MOST_SHOWN} more"] if len(value) > MOST_SHOWN else shown
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < LARGEST_BITS else shortened(value)
    return value if isinstance(value, str) and value.isprintable() else shortened(value)
