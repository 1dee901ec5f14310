"""Verification of a log: every row's checks and hash, from the first event to the head row and to noted heads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from ledger import Head, LogReader, Row, StoredLedger
from ledger.codec import decode
from ledger.errors import AllowanceException, CorruptLedger, shortened
from ledger.events import LedgerOpened
from ledger.results import Result

from .row_checks import RowChecker
from .rules import Finding, Findings, Rule
from .snapshots import ProgressReport

# Hashes have no secret: with write access to the database, a new tail with fitting hashes and a fitting head row can be
# written. Only a head that was noted elsewhere before proves the rows up to it. A report says what it cannot exclude.
REWRITTEN = "the whole log may have been rewritten with fitting hashes: "
NO_HEAD = "no head noted elsewhere was given"
HEAD_DISAGREES = "it does not contain the head noted elsewhere at {position}"
CUT = "the log's end may have been cut off, and the head row rewritten"
CUT_AFTER = CUT + ", after position {position}"
REWRITTEN_AFTER = "the rows after position {position} may have been rewritten with fitting hashes"
NOT_CHECKED = "the rows up to position {position} were not checked this time, only that the others continue them"


class VerifyReport(Result, msgspec.Struct, frozen=True):
    """The result of verifying a ledger.

    `position` and `hash`: of the last row. `findings`: the first of `found`, by position; if there are none, the log
    is unchanged since it was written, except for the possibilities in `not_excluded`. `noted`: positions of the given
    heads that the log contains. `validator_ss58`: from the head row, or from the first event if that has none.
    """

    validator_ss58: str | None
    position: int
    hash: str
    first_bad_position: int | None
    found: int
    findings: list[Finding]
    noted: list[int]
    not_excluded: list[str]
    events: int
    elapsed_seconds: float
    events_per_second: float

    @property
    def head(self) -> Head:
        """The head of the log; noted elsewhere, it reveals every later change of the events up to it."""
        return Head(self.position, bytes.fromhex(self.hash))


async def verify_log(
    reader: LogReader,
    stored: StoredLedger,
    heads: Collection[Head] = (),
    progress: ProgressReport | None = None,
    *,
    timer: Callable[[], float] = time.perf_counter,
) -> VerifyReport:
    """Check one ledger's rows, and compare them with its head row and with heads noted elsewhere.

    Damage of any kind becomes a finding. Raises `StorageUnavailable` if the database cannot be read.
    """
    started = timer()
    check = LogCheck(heads)
    total = stored.position if type(stored.position) is int else 0
    try:
        async for page in reader.pages(stored):
            check.check_page(page)
            if progress is not None:
                progress(check.events, max(total, check.events))
            await asyncio.sleep(0)  # A long log yields the event loop after each page.
    except CorruptLedger as unreadable:
        check.stop_at(unreadable)
    versions = await reader.versions(stored)
    reader.check_unchanged()
    check.check_heads(await reader.head(stored))
    check.check_streams(versions)
    return check.report(stored, timer() - started)


class LogCheck:
    """The check of one ledger's rows after `start`, its head row and noted heads."""

    def __init__(self, heads: Collection[Head] = (), start: Head | None = None) -> None:
        self.row_checker = RowChecker(start)
        self.findings = Findings()
        self.noted: list[int] = []
        self.events = 0
        self._heads = sorted({(head.position, head.hash) for head in heads})
        self._noted_positions = {position for position, _ in self._heads}
        self._hash_at: dict[int, object] = {0: Head().hash}
        """The hashes of the rows at the noted positions."""
        self._recorded_at_ns: object = 0 if start is None else start.recorded_at_ns
        self._start = 0 if start is None else start.position
        self._opened_by: str | None = None
        self._is_unreadable = False

    def check_page(self, page: Sequence[Row]) -> None:
        """Check the next rows."""
        if not self.events and not self._start:
            self._opened_by = _opened_by(page[0])
        check = self.row_checker.check
        for row in page:
            problems = check(row)
            if problems:
                for position, rule, message, details in problems:
                    self.findings.add(position, rule, message, **details)
        self.events += len(page)
        self._recorded_at_ns = page[-1].recorded_at_ns
        if self._noted_positions:
            self._hash_at |= {row.position: row.hash for row in page if row.position in self._noted_positions}

    def stop_at(self, unreadable: CorruptLedger) -> None:
        """Add a finding for stored data that cannot be read any further."""
        self._is_unreadable = True
        self.findings.add(self.row_checker.position + 1, Rule.ROW_COLUMNS, unreadable.reason)

    def check_heads(self, head: StoredLedger) -> None:
        """Compare the rows with the head row and the noted heads, after every row was checked."""
        if not self._is_unreadable:
            self._check_head(head)
        good = 0
        for position, a_hash in self._heads:
            if self._hash_at.get(position) == a_hash:
                self.noted.append(position)
                good = position
                continue
            if position > self.row_checker.position:
                message = f"the log ends at {self.row_checker.position}, but a head was noted elsewhere at {position}"
                self._add_head_finding(self.row_checker.position + 1, message, expected=position)
            else:
                message = f"the row at {position} is not the head noted elsewhere: the log was changed after {good}"
                details = {"noted": a_hash.hex(), "found": _hexadecimal(self._hash_at.get(position))}
                self._add_head_finding(position, message, **details)
            # Every later head disagrees because of the same change.
            return

    def check_streams(self, versions: Mapping[Any, Any]) -> None:
        """Compare the rows of the streams with the events, unless other findings explain the differences."""
        if self.findings.count:
            return
        for name, version in versions.items():
            newest = self.row_checker.version(name)
            if version == newest or (self._start and not newest):
                continue
            message = f"the row of the stream is at version {shortened(version)}, its newest event at {newest}"
            is_ahead = type(version) is int and version > newest
            position = self.row_checker.position + is_ahead
            self.findings.add(position, Rule.DENSE_VERSIONS, message, stream=shortened(name))

    def not_excluded(self) -> list[str]:
        """Return sentences for the changes that hashes and noted heads cannot exclude."""
        if self._start:
            return [NOT_CHECKED.format(position=self._start), CUT_AFTER.format(position=self._start)]
        last = max(self.noted, default=0)
        if last == 0:
            refused = [position for position, _ in self._heads if position not in self.noted]
            return [REWRITTEN + (HEAD_DISAGREES.format(position=refused[0]) if refused else NO_HEAD), CUT]
        if last >= self.row_checker.position:
            return []
        return [REWRITTEN_AFTER.format(position=last), CUT_AFTER.format(position=last)]

    def report(self, stored: StoredLedger, elapsed_seconds: float) -> VerifyReport:
        """Return the result."""
        elapsed_seconds = max(elapsed_seconds, 1e-9)
        findings = self.findings.listed
        return VerifyReport(
            self.validator_ss58(stored),
            self.row_checker.position,
            self.row_checker.hash.hex(),
            findings[0].position if findings else None,
            self.findings.count,
            findings,
            self.noted,
            self.not_excluded(),
            self.events,
            elapsed_seconds,
            self.events / elapsed_seconds,
        )

    def validator_ss58(self, stored: StoredLedger) -> str | None:
        """Return the ledger's validator, None if neither the head row nor the first event names one."""
        return stored.validator_ss58 if isinstance(stored.validator_ss58, str) else self._opened_by

    def _check_head(self, head: StoredLedger) -> None:
        position, a_hash = self.row_checker.position, self.row_checker.hash
        if not head.has_head:
            self._add_head_finding(position, "there are events, but no head row")
            return
        if type(head.position) is not int or type(head.hash) is not bytes or type(head.recorded_at_ns) is not int:
            found = {name: shortened(value) for name, value in head._asdict().items()}
            self._add_head_finding(position, "the head row has a value of a wrong type", head_row=found)
        elif head.position > position:
            message = f"the log ends at {position}, but its head row is at {head.position}"
            self._add_head_finding(position + 1, message, expected=head.position)
        elif head.position < position:
            message = f"the log goes on to {position}, but its head row is at {head.position}"
            self._add_head_finding(max(head.position, 0) + 1, message, expected=head.position)
        elif (head.hash, head.recorded_at_ns) != (a_hash, self._recorded_at_ns):
            details = {"hash": head.hash.hex(), "recorded_at_ns": head.recorded_at_ns}
            self._add_head_finding(position, "the head row has another hash or time than the last event", **details)
        if head.validator_ss58 != (self._opened_by or head.validator_ss58) or type(head.validator_ss58) is not str:
            message = "the head row names another validator than the first event"
            details = {"found": shortened(head.validator_ss58), "expected": self._opened_by}
            self._add_head_finding(position, message, **details)

    def _add_head_finding(self, position: int, message: str, **details: Any) -> None:
        self.findings.add(position, Rule.HEAD_ROW, message, **details)


def _opened_by(row: Row) -> str | None:
    """Return the validator whose ledger the first event opens; None if the event cannot be read."""
    try:
        event = decode(1, row.payload)
    except (AllowanceException, TypeError):
        return None
    return event.validator_ss58 if isinstance(event, LedgerOpened) else None


def _hexadecimal(value: object) -> str | None:
    return value.hex() if isinstance(value, bytes) else None
