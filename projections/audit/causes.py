"""Which findings of an audit are causes, and which only follow from an earlier one.

After some findings the audit's state is no longer that on which the log's writer decided: an event was left out,
changed or lost, or a block was taken twice. Later findings may then be correct decisions on a state that the audit does
not have. They are marked, not left out: which of them would remain without the cause is not known.

- A cause in an account's stream affects that account, and the routes of every job, which compare accounts.
- A cause in the streams of facts, and lost or changed rows, affect everything after them.
- What is checked on each row by itself (`INDEPENDENT`) never follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from projections.rules import DERIVED_RULES, Finding, Rule

INDEPENDENT = frozenset({Rule.HASH_CHAIN, Rule.DENSE_POSITIONS, Rule.ROW_COLUMNS})
_LOG_WIDE = frozenset({Rule.HASH_CHAIN, Rule.DENSE_POSITIONS})
CAUSES = INDEPENDENT | {
    Rule.READABLE_EVENTS,
    Rule.STREAM_OF_EVENT,
    Rule.OPENING_EVENT,
    Rule.SETTINGS_POSSIBLE,
    Rule.FACTS_ONCE,
    Rule.FACTS_FOLLOW,
    Rule.BLOCK_DURATIONS,
    Rule.GRANTS_FOLLOW,
    Rule.CORRECTIONS_FOLLOW,
    Rule.WITHDRAWN_BLOCKS_FREE,
    Rule.BLOCKS_ASCENDING,
    Rule.BLOCKS_TAKEN_ONCE,
    Rule.SETTLES_STANDING,
    Rule.JOB_STANDS_ONCE,
    Rule.JOB_ATTEMPTS,
}
"""Rules after whose violation the audit's state may differ from that of the log's writer."""
_OF_ALL_ACCOUNTS = DERIVED_RULES | {Rule.ROUTING_DECISION, Rule.HEAD_ROW, Rule.EXPIRES_WHAT_IS_TAKEN}


def marked(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, in order of position, with `follows` set."""
    causes = _Causes()
    return [msgspec.structs.replace(each, follows=causes.follows(each)) for each in findings]


def first_cause(findings: Sequence[Finding]) -> Finding | None:
    """Return the first finding from which others can follow, else the first one; None without findings."""
    return next((each for each in findings if each.rule in CAUSES), findings[0] if findings else None)


class _Causes:
    """The causes before a finding."""

    def __init__(self) -> None:
        self._streams: set[str] = set()
        self._affects_all = False

    def follows(self, finding: Finding) -> bool:
        """Return whether the next finding follows from one before it; if not, it may be a cause itself."""
        rule, stream = Rule(finding.rule), finding.stream
        follows = rule not in INDEPENDENT and (
            self._affects_all or (bool(self._streams) and (rule in _OF_ALL_ACCOUNTS or stream in self._streams))
        )
        if rule in CAUSES and not follows:
            if rule in _LOG_WIDE or stream is None or "\t" not in stream:
                self._affects_all = True
            else:
                self._streams.add(stream)
        return follows
