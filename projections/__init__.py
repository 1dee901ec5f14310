"""Answers: availability, history; folds of the log. See ARCHITECTURE.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .audit import AccountTotals, AccountUsage, AuditReport, BlockUsage, audit
from .availability import Availability, Candidate, Entry, is_busy
from .carry import ExportReport, RestoreReport, export_log, new_file, refuse_findings, restore_log
from .draw import drawn
from .history import Filters, History, Page
from .rebuild import Difference, Rebuild, RebuildReport
from .receipts import Bookkeeper, Receipt, ReceiptOutcome
from .recorded import describe_conflict
from .rules import RULES, Finding, Rule
from .snapshots import ProgressReport, Snapshots, Taken, folded_to
from .verify import VerifyReport, verify_log

if TYPE_CHECKING:
    from sqlalchemy import MetaData

__all__ = [
    "RULES",
    "AccountTotals",
    "AccountUsage",
    "AuditReport",
    "Availability",
    "BlockUsage",
    "Bookkeeper",
    "Candidate",
    "Difference",
    "Entry",
    "ExportReport",
    "Filters",
    "Finding",
    "History",
    "Page",
    "ProgressReport",
    "Rebuild",
    "RebuildReport",
    "Receipt",
    "ReceiptOutcome",
    "RestoreReport",
    "Rule",
    "Snapshots",
    "Taken",
    "VerifyReport",
    "audit",
    "describe_conflict",
    "drawn",
    "export_log",
    "folded_to",
    "is_busy",
    "new_file",
    "refuse_findings",
    "restore_log",
    "schema",
    "verify_log",
]


def schema() -> MetaData:
    """All tables, the log's and the read models'; imports SQLAlchemy, which is why it is a function."""
    from .tables import metadata

    return metadata
