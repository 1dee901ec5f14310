"""The audit: replay the log from its first event and check every rule of the ledger again."""

from .report import AccountTotals, AccountUsage, AuditReport, BlockUsage
from .run import audit_log

__all__ = ["AccountTotals", "AccountUsage", "AuditReport", "BlockUsage", "audit_log"]
