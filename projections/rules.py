"""The rules that an audit checks, each under a name that stays, and what breaks them."""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Any

import msgspec

from ledger.errors import shortened

MOST_FINDINGS = 10_000
"""Findings beyond these are counted only: a hostile log may break a rule with every event."""

MOST_SHOWN = 50
LARGEST_BITS = 64


class Rule(StrEnum):
    """A rule's name."""

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
    Rule.HASH_CHAIN: "A row's hash covers its every stored byte and the hash of the row before it.",
    Rule.DENSE_POSITIONS: "Positions are 1, 2, 3 and so on, without a hole.",
    Rule.DENSE_VERSIONS: "Versions of a stream are 1, 2, 3 and so on, without a hole.",
    Rule.ROW_COLUMNS: "Each column has its type and form, and is there where its event needs it and nowhere else.",
    Rule.HEAD_ROW: "The head says where the last row stands, and what its hash and time are.",
    Rule.RECORDED_TIMES: "Recorded times never go back.",
    Rule.READABLE_EVENTS: "Each payload is an event that this release knows.",
    Rule.STREAM_OF_EVENT: "Each event stands in a stream of its kind.",
    Rule.OPENING_EVENT: "The first event, and no other, opens the ledger, and names its validator.",
    Rule.SETTINGS_POSSIBLE: "Recorded settings are such as could be configured.",
    Rule.FACTS_ONCE: "A block, and a manifest sync at a block, is recorded once; settings, where they differ.",
    Rule.FACTS_FOLLOW: "A fact has possible values, and as a difference it follows from the fact before it.",
    Rule.BLOCK_DURATIONS: "A block is later than the one below it.",
    Rule.GRANTS_FOLLOW: "What the ledger holds to be granted and invalidated is what the facts come to.",
    Rule.KEYS_ONCE: "An idempotency key stands for one event.",
    Rule.AMOUNT_LIMITS: "A reservation's amount is above 0 and no more than the settings allow.",
    Rule.JOB_START: "A job starts at a block from 1 on.",
    Rule.DUE_TIME: "A reservation is due its amount and the margin after it was made.",
    Rule.DECISION_CLOCK: "A clock that decided differs from the recorded time only by standing before it.",
    Rule.BLOCKS_ASCENDING: "A reservation's blocks are told as ascending runs that do not touch.",
    Rule.BLOCKS_GRANTED: "Reserved blocks grant allowance to the account.",
    Rule.BLOCKS_IN_WINDOW: "Reserved blocks are not older than the settings allow at the job's start.",
    Rule.BLOCKS_NOT_INVALIDATED: "Reserved blocks are not invalidated by a drop.",
    Rule.BLOCKS_TAKEN_ONCE: "A block is in at most one reserved or spent reservation of an account.",
    Rule.BLOCKS_ENOUGH: "Reserved blocks add up to the amount.",
    Rule.BLOCKS_NO_MORE_THAN_NEEDED: "Without the last reserved block it would be too little.",
    Rule.BLOCKS_EARLIEST_FIRST: "No free block earlier than a reserved one is left out.",
    Rule.SETTLES_STANDING: "A settlement ends a standing reservation of its account, and the row says which.",
    Rule.EXPIRES_OVERDUE: "Only an overdue reservation expires.",
    Rule.EXPIRES_WHAT_IS_TAKEN: (
        "A sweep ends every overdue reservation, by due time, and tells how many; any other expiry stands just before"
        " the claim that takes its blocks."
    ),
    Rule.JOB_STANDS_ONCE: "A job has one standing reservation at a time.",
    Rule.JOB_ATTEMPTS: "A job's reservations are numbered 1, 2, 3 and so on.",
    Rule.JOB_SPENT_ONCE: "A job that was spent is reserved for no more.",
    Rule.ROUTING_DECISION: "A routed job went to the first candidate that was not busy, at the newest block.",
    Rule.ROUTING_AXON: "A route leads to where the metagraph said that the miner listens.",
    Rule.ROUTING_FEED: "No job is routed on a newest block older than the settings allow.",
    Rule.CONSERVATION: "What was granted is what is spent, held, invalidated and free together.",
    Rule.HISTORY_MODEL: "The history says of each reservation what the log says.",
    Rule.SNAPSHOTS: "A snapshot is, byte for byte, the state that the log gives where it was taken.",
    Rule.LIVE_STATE: "The state in memory is, byte for byte, the one that the log gives.",
}
"""What each rule demands."""


class Finding(msgspec.Struct, frozen=True):
    """A broken rule: where, which, what is wrong in a sentence, and the facts of the matter by name."""

    position: int
    rule: str
    message: str
    details: dict[str, Any] = {}


class Findings:
    """How many findings there are, and those of the lowest positions."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[Finding] = []
        self._beyond: float = inf
        """Findings from this position on are too many to be listed."""

    @property
    def listed(self) -> list[Finding]:
        """The first by position; of one position in the order in which they were made."""
        self._trim()
        return self._kept

    def add(self, position: int, rule: Rule, message: str, **details: Any) -> None:
        """Notes that a rule is broken at a position."""
        self.count += 1
        if position < self._beyond:
            plain = {name: _plain(value) for name, value in details.items()}
            self._keep(Finding(position, rule.value, message, plain))

    def _keep(self, finding: Finding) -> None:
        self._kept.append(finding)
        if len(self._kept) >= 2 * MOST_FINDINGS:
            self._trim()

    def _trim(self) -> None:
        self._kept.sort(key=lambda finding: finding.position)
        if len(self._kept) > MOST_FINDINGS:
            del self._kept[MOST_FINDINGS:]
            self._beyond = self._kept[-1].position


def _plain(value: Any) -> Any:
    """A value of the log as a finding shows it: small, and such as JSON and a terminal can take."""
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
