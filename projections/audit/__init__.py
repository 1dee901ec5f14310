"""The audit: every rule of the ledger checked again, by replay from nothing."""

from .report import AccountTotals, AccountUsage, AuditReport, BlockUsage
from .run import audit_log

__all__ = ["AccountTotals", "AccountUsage", "AuditReport", "BlockUsage", "audit_log"]
