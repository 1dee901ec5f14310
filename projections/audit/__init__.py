"""The audit: every rule of the ledger checked again, by replay from nothing."""

from .report import AccountTotals, AccountUsage, AuditReport, Usage
from .run import audit

__all__ = ["AccountTotals", "AccountUsage", "AuditReport", "Usage", "audit"]
