"""Whether what is stored is what was written: the chain of hashes, followed from the first event to the head row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from ledger import Head, LogReader, Row, StoredLedger
from ledger.codec import decode
from ledger.errors import AllowanceException, CorruptLedger, shortened
from ledger.events import LedgerOpened

from .row_checks import RowChecker
from .rules import Finding, Findings, Rule
from .snapshots import ProgressReport

REWRITTEN = "the whole log may have been written anew, with hashes that fit: "
NO_HEAD = "no head noted elsewhere was given"
HEAD_DISAGREES = "it does not go through the head noted elsewhere at {position}"
CUT = "its end may have been cut off together with the head row"
CUT_AFTER = CUT + ", after position {position}"
REWRITTEN_AFTER = "what stands after position {position} may have been written anew, with hashes that fit"


class VerifyReport(msgspec.Struct, frozen=True):
    """What verifying a ledger came to.

    `position` and `hash`: where its log ends. `findings`: the first of `found`, by position; none means that what
    is stored is what was written, but for what `not_excluded` says. `noted`: positions of the heads noted elsewhere
    that the log agrees with. `validator_ss58` is as the head row says, or else the first event.
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
        """Where the log ends; noted elsewhere, it lets every later change of the log be found."""
        return Head(self.position, bytes.fromhex(self.hash))


async def verify_log(
    reader: LogReader,
    stored: StoredLedger,
    heads: Collection[Head] = (),
    progress: ProgressReport | None = None,
    *,
    timer: Callable[[], float] = time.perf_counter,
) -> VerifyReport:
    """Follows one ledger's log, whatever is stored, and compares it with its head row and with heads noted elsewhere.

    Raises `StorageUnavailable` where the database does not answer.
    """
    started = timer()
    check = _LogCheck(heads)
    total = stored.position if type(stored.position) is int else 0
    try:
        async for page in reader.pages(stored):
            check.take(page)
            if progress is not None:
                progress(check.events, max(total, check.events))
            await asyncio.sleep(0)  # A long log lets others have the loop between pages.
    except CorruptLedger as broken:
        check.break_off(broken)
    reader.check_unchanged()
    check.end(await reader.head(stored))
    elapsed_seconds = max(timer() - started, 1e-9)
    findings = check.findings.listed
    return VerifyReport(
        check.validator_ss58(stored),
        check.row_checker.position,
        check.row_checker.hash.hex(),
        findings[0].position if findings else None,
        check.findings.count,
        findings,
        check.noted,
        check.not_excluded(),
        check.events,
        elapsed_seconds,
        check.events / elapsed_seconds,
    )


class _LogCheck:
    """One ledger's rows, its head row and the heads noted elsewhere."""

    def __init__(self, heads: Collection[Head]) -> None:
        self.row_checker = RowChecker()
        self.findings = Findings()
        self.noted: list[int] = []
        self.events = 0
        self._heads = sorted({(head.position, head.hash) for head in heads})
        self._asked = {position for position, _ in self._heads}
        self._found: dict[int, object] = {0: Head().hash}
        """The hashes of the rows at the noted positions."""
        self._recorded_at_ns: object = 0
        self._opened_by: str | None = None
        self._broken_off = False

    def take(self, page: Sequence[Row]) -> None:
        """Takes the next rows."""
        if not self.events:
            self._opened_by = _opened_by(page[0])
        take = self.row_checker.check
        for row in page:
            problems = take(row)
            if problems:
                for position, rule, message, details in problems:
                    self.findings.add(position, rule, message, **details)
        self.events += len(page)
        self._recorded_at_ns = page[-1].recorded_at_ns
        if self._asked:
            self._found |= {row.position: row.hash for row in page if row.position in self._asked}

    def break_off(self, broken: CorruptLedger) -> None:
        """Notes where what is stored cannot be read any further."""
        self._broken_off = True
        self.findings.add(self.row_checker.position + 1, Rule.ROW_COLUMNS, broken.reason)

    def end(self, head: StoredLedger) -> None:
        """Compares where the log ends with what the head row and the noted heads say."""
        if not self._broken_off:
            self._check_head(head)
        good = 0
        for position, a_hash in self._heads:
            if self._found.get(position) == a_hash:
                self.noted.append(position)
                good = position
                continue
            if position > self.row_checker.position:
                message = f"the log ends at {self.row_checker.position}, a head noted elsewhere stands at {position}"
                self._add_head_finding(self.row_checker.position + 1, message, expected=position)
            else:
                message = f"the log is not the one whose head was noted at {position}: the change is after {good}"
                details = {"noted": a_hash.hex(), "found": _hexadecimal(self._found.get(position))}
                self._add_head_finding(position, message, **details)
            return

    def not_excluded(self) -> list[str]:
        """What may have been done to the log all the same."""
        last = max(self.noted, default=0)
        if last == 0:
            refused = [position for position, _ in self._heads if position not in self.noted]
            return [REWRITTEN + (HEAD_DISAGREES.format(position=refused[0]) if refused else NO_HEAD), CUT]
        if last >= self.row_checker.position:
            return []
        return [REWRITTEN_AFTER.format(position=last), CUT_AFTER.format(position=last)]

    def validator_ss58(self, stored: StoredLedger) -> str | None:
        """Whose ledger it is."""
        return stored.validator_ss58 if isinstance(stored.validator_ss58, str) else self._opened_by

    def _check_head(self, head: StoredLedger) -> None:
        position, a_hash = self.row_checker.position, self.row_checker.hash
        if not head.has_head:
            self._add_head_finding(position, "there are events, and no head row that tells where they end")
            return
        if type(head.position) is not int or type(head.hash) is not bytes or type(head.recorded_at_ns) is not int:
            found = {name: shortened(value) for name, value in head._asdict().items()}
            self._add_head_finding(position, "the head row has a value that no head can have", head_row=found)
        elif head.position > position:
            message = f"the log ends at {position}, while its head row says that it reaches {head.position}"
            self._add_head_finding(position + 1, message, expected=head.position)
        elif head.position < position:
            message = f"the log reaches {position}, while its head row says that it ends at {head.position}"
            self._add_head_finding(max(head.position, 0) + 1, message, expected=head.position)
        elif (head.hash, head.recorded_at_ns) != (a_hash, self._recorded_at_ns):
            details = {"hash": head.hash.hex(), "recorded_at_ns": head.recorded_at_ns}
            self._add_head_finding(position, "the head row tells of another last event than the log has", **details)
        if head.validator_ss58 != (self._opened_by or head.validator_ss58) or type(head.validator_ss58) is not str:
            message = "the head row names another validator than the first event does"
            details = {"found": shortened(head.validator_ss58), "expected": self._opened_by}
            self._add_head_finding(position, message, **details)

    def _add_head_finding(self, position: int, message: str, **details: Any) -> None:
        self.findings.add(position, Rule.HEAD_ROW, message, **details)


def _opened_by(row: Row) -> str | None:
    """Whose ledger the first event opens; None where it cannot be read."""
    try:
        event = decode(1, row.payload)
    except (AllowanceException, TypeError):
        return None
    return event.validator_ss58 if isinstance(event, LedgerOpened) else None


def _hexadecimal(value: object) -> str | None:
    return value.hex() if isinstance(value, bytes) else None
