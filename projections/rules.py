"""The rules that an audit checks, and findings: violations of them."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from math import inf
from typing import Any

import msgspec

from ledger.errors import shortened
from ledger.results import Result

MOST_FINDINGS = 10_000
"""Further findings are only counted: a hostile log may break a rule with every event."""

MOST_SHOWN = 50
"""Items of a list in a finding's details."""
MOST_EVENTS_SINCE_CHOICE = 10_000
"""How far before a claim the position may be at which its miner was chosen. Repeated here, so that it is checked."""
LARGEST_BITS = 64
"""Larger integers are shown as shortened text: a JSON reader may not accept them."""


class Rule(StrEnum):
    """The id of a rule, which never changes: users filter and compare reports by it.

    Some ids are older than the words of `RULES`: "standing" and "stands" in an id mean an active reservation.
    """

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
    MINER_FACTS_ONCE = "miner-facts-once"
    MINER_FACTS_FOLLOW = "miner-facts-follow"
    BLOCK_DURATIONS = "block-durations"
    GRANTS_FOLLOW = "grants-follow"
    COVERAGE_FOLLOWS = "coverage-follows"
    CORRECTIONS_FOLLOW = "corrections-follow"
    WITHDRAWN_BLOCKS_FREE = "withdrawn-blocks-free"
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
    CHOSEN_AT = "chosen-at"
    CHOSEN_QUALIFIES = "chosen-qualifies"
    ROUTING_EXCLUDED = "routing-excluded"
    ROUTING_COLLATERAL = "routing-collateral"
    ROUTING_AXON = "routing-axon"
    ROUTING_FEED = "routing-feed"
    ROUTING_MANIFESTS = "routing-manifests"
    CHOICE_PROVED = "choice-proved"
    CONSERVATION = "conservation"
    HISTORY_MODEL = "history-model"
    SNAPSHOTS = "snapshots"
    LIVE_STATE = "live-state"
    SEALS = "seals"


RULES: dict[Rule, str] = {
    Rule.HASH_CHAIN: "A row's hash is that of all its columns and the hash of the row before it.",
    Rule.DENSE_POSITIONS: "Positions are 1, 2, 3 and so on, without a gap.",
    Rule.DENSE_VERSIONS: "Versions of a stream are 1, 2, 3 and so on, without a gap.",
    Rule.ROW_COLUMNS: "Each column has its type and form, and is set exactly for the events that need it.",
    Rule.HEAD_ROW: "The head row has the position, hash and time of the last event.",
    Rule.RECORDED_TIMES: "Recorded times never decrease.",
    Rule.READABLE_EVENTS: "Each payload is an event that this release knows.",
    Rule.STREAM_OF_EVENT: "Each event is in a stream of its kind.",
    Rule.OPENING_EVENT: "The first event, and no other, opens the ledger and names its validator.",
    Rule.SETTINGS_POSSIBLE: "Recorded settings have values that the configuration accepts.",
    Rule.FACTS_ONCE: "A block, and a sync at a block, is recorded once; settings are recorded only if they change.",
    Rule.FACTS_FOLLOW: "A fact has possible values; one stored as a difference fits the fact before it.",
    Rule.MINER_FACTS_ONCE: "A job elsewhere, its end, and an incident of a job and miner are recorded once.",
    Rule.MINER_FACTS_FOLLOW: (
        "An exclusion, a readmission, collateral, a job elsewhere or an incident has possible values, differs from what"
        " was recorded before, and knows of an end that was recorded before."
    ),
    Rule.BLOCK_DURATIONS: "A block is later than the block with the number below.",
    Rule.GRANTS_FOLLOW: "The ledger's granted and invalidated blocks are those that follow from the facts.",
    Rule.COVERAGE_FOLLOWS: "A sync says which known miners it does not cover: those neither registered nor named.",
    Rule.CORRECTIONS_FOLLOW: "A correction withdraws a recorded fact, and carries what follows from those that remain.",
    Rule.WITHDRAWN_BLOCKS_FREE: (
        "No active or spent reservation holds a block that is withdrawn, or the block below it."
    ),
    Rule.KEYS_ONCE: "An idempotency key belongs to one event.",
    Rule.AMOUNT_LIMITS: "A reservation's amount is above 0 and at most what the settings allow.",
    Rule.JOB_START: "A job starts at block 1 or later.",
    Rule.DUE_TIME: "A reservation is due when its amount and the margin have passed since it was decided.",
    Rule.DECISION_CLOCK: (
        "The clock of a decision is recorded only if it is before the recorded time; the time of another system exactly"
        " for the reservations that it made."
    ),
    Rule.BLOCKS_ASCENDING: "A reservation's blocks are stored as ascending runs that do not touch.",
    Rule.BLOCKS_GRANTED: "Reserved blocks grant allowance to the account.",
    Rule.BLOCKS_IN_WINDOW: (
        "Reserved blocks are no older than the settings allow at the job's start; blocks above the start count too."
    ),
    Rule.BLOCKS_NOT_INVALIDATED: "Reserved blocks are not invalidated by a drop.",
    Rule.BLOCKS_TAKEN_ONCE: "A block is in at most one active or spent reservation of an account at any time.",
    Rule.BLOCKS_ENOUGH: "Reserved blocks sum to at least the amount.",
    Rule.BLOCKS_NO_MORE_THAN_NEEDED: "Reserved blocks without the last one sum to less than the amount.",
    Rule.BLOCKS_EARLIEST_FIRST: "No free block before a reserved one is skipped.",
    Rule.SETTLES_STANDING: "A settlement settles an active reservation of its account, which its row names.",
    Rule.EXPIRES_OVERDUE: "Only an overdue reservation expires.",
    Rule.EXPIRES_WHAT_IS_TAKEN: (
        "`expire_due` expires every overdue reservation, by due time, and records how many; any other expiry is"
        " directly before the claim that takes its blocks."
    ),
    Rule.JOB_STANDS_ONCE: "A job has at most one active reservation at a time.",
    Rule.JOB_ATTEMPTS: "A job's reservations are numbered 1, 2, 3 and so on.",
    Rule.JOB_SPENT_ONCE: "A job whose reservation was spent is not reserved for again.",
    Rule.ROUTING_DECISION: (
        "A job is routed at the newest block to the miner that was the first candidate that was not busy, directly"
        " before the claim or at the earlier position that the claim names; jobs of other validators count as running,"
        " and the candidates are in the order of the settings."
    ),
    Rule.CHOSEN_AT: (
        "A claim names the position at which its miner was chosen only if a router made it and the position is not"
        " directly before it; then it is at most 10,000 events and one newest block earlier."
    ),
    Rule.CHOSEN_QUALIFIES: "A miner that was chosen at an earlier position still has the amount and is not busy.",
    Rule.ROUTING_EXCLUDED: "No job is routed to an excluded miner.",
    Rule.ROUTING_COLLATERAL: "No job is routed to a miner below the collateral that the settings require.",
    Rule.ROUTING_AXON: "A route has the miner's axon in the metagraph.",
    Rule.ROUTING_FEED: "No job is routed if the newest block is older than the settings allow.",
    Rule.ROUTING_MANIFESTS: (
        "No job is routed if the newest sync is further behind the newest block than the settings allow."
    ),
    Rule.CHOICE_PROVED: (
        "Each reservation was routed, and the choice of its miner can be repeated. Only a strict audit requires it."
    ),
    Rule.CONSERVATION: "Granted allowance is the sum of spent, actively reserved, invalidated and free allowance.",
    Rule.HISTORY_MODEL: "The history's rows are those that follow from the log.",
    Rule.SNAPSHOTS: "A snapshot equals, byte for byte, the fold of the log up to its position.",
    Rule.LIVE_STATE: "The state in memory equals, byte for byte, the fold of the log.",
    Rule.SEALS: "A seal has the digest of the fold of the log up to a position below its own, which its key names.",
}
"""The rules in words."""


DERIVED_RULES = frozenset({Rule.HISTORY_MODEL, Rule.SNAPSHOTS, Rule.LIVE_STATE})
"""Rules about what is derived from the log; the log itself may be right."""


class Finding(Result, msgspec.Struct, frozen=True):
    """A violation of a rule at a position; `message` is a sentence, `details` are the values involved by name.

    An audit also names the `stream` of the event, and says whether the finding `follows` from an earlier one.
    """

    position: int
    rule: str
    message: str
    details: dict[str, Any] = {}
    stream: str | None = None
    follows: bool = False


class Findings:
    """The number of findings, and the `MOST_FINDINGS` of the lowest positions."""

    def __init__(self) -> None:
        self.count = 0
        self.by_rule: Counter[str] = Counter()
        """The number of findings of each rule, also of those that are not listed."""
        self.stream: object = None
        """The stream of the row that is being checked, whatever is stored there."""
        self._listed: list[Finding] = []
        self._counted_from: float = inf
        """Findings from this position on are only counted: as many with lower positions are listed."""

    @property
    def listed(self) -> list[Finding]:
        """The listed findings by position, those of one position in the order in which they were added."""
        self._trim()
        return self._listed

    def add(self, position: int, rule: Rule, message: str, **details: Any) -> None:
        """Add a violation of a rule at a position."""
        self.count += 1
        self.by_rule[rule.value] += 1
        if position < self._counted_from:
            plain = {name: _plain(value) for name, value in details.items()}
            stream = self.stream if isinstance(self.stream, str) and rule not in DERIVED_RULES else None
            self._list(Finding(position, rule.value, message, plain, stream))

    def _list(self, finding: Finding) -> None:
        self._listed.append(finding)
        # At twice the size, so that sorting costs little for each finding.
        if len(self._listed) >= 2 * MOST_FINDINGS:
            self._trim()

    def _trim(self) -> None:
        self._listed.sort(key=lambda finding: finding.position)
        if len(self._listed) > MOST_FINDINGS:
            del self._listed[MOST_FINDINGS:]
            self._counted_from = self._listed[-1].position


def _plain(value: Any) -> Any:
    """Return a value of the log for a finding: small, and safe for JSON and for a terminal."""
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
