"""Answers: availability, history; folds of the log. See ARCHITECTURE.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger import later

from .availability import Availability, Candidate, Entry, is_busy
from .draw import drawn
from .history import Filters, History, Page
from .recorded import describe_conflict
from .snapshots import ProgressReport, Snapshots, Taken, folded_to

if TYPE_CHECKING:
    from sqlalchemy import MetaData

    from .audit import AccountTotals, AccountUsage, AuditReport, BlockUsage, audit_log
    from .carry import ExportReport, RestoreReport, export_log, new_file, refuse_findings, restore_log
    from .rebuild import Difference, Rebuild, RebuildReport
    from .receipts import Bookkeeper, Receipt, ReceiptOutcome
    from .rules import RULES, Finding, Rule
    from .verify import VerifyReport, verify_log
else:
    __getattr__ = later(
        __name__,
        {
            ".audit": ("AccountTotals", "AccountUsage", "AuditReport", "BlockUsage", "audit_log"),
            ".carry": ("ExportReport", "RestoreReport", "export_log", "new_file", "refuse_findings", "restore_log"),
            ".rebuild": ("Difference", "Rebuild", "RebuildReport"),
            ".receipts": ("Bookkeeper", "Receipt", "ReceiptOutcome"),
            ".rules": ("RULES", "Finding", "Rule"),
            ".verify": ("VerifyReport", "verify_log"),
        },
    )

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
    "audit_log",
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
