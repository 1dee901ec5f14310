"""The audit: replay the log from its first event and check every rule of the ledger again."""

from .fairness import ClassFairness, FairnessReport, MinerFairness
from .report import AccountUsage, AuditReport, BlockUsage
from .run import audit_log
from .totals import AccountTotals

__all__ = [
    "AccountTotals",
    "AccountUsage",
    "AuditReport",
    "BlockUsage",
    "ClassFairness",
    "FairnessReport",
    "MinerFairness",
    "audit_log",
]
