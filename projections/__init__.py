"""Folds of the log: the ranking, the history, snapshots, receipts, and the checks of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .audit.fairness import ClassFairness as ClassFairness
    from .audit.fairness import FairnessReport as FairnessReport
    from .audit.fairness import MinerFairness as MinerFairness
    from .audit.report import AccountUsage as AccountUsage
    from .audit.report import AuditReport as AuditReport
    from .audit.report import BlockUsage as BlockUsage
    from .audit.run import audit_log as audit_log
    from .audit.totals import AccountTotals as AccountTotals
    from .availability import Availability as Availability
    from .backup import ExportReport as ExportReport
    from .backup import RestoreReport as RestoreReport
    from .backup import atomic_new_file as atomic_new_file
    from .backup import export_log as export_log
    from .backup import raise_first_finding as raise_first_finding
    from .backup import restore_log as restore_log
    from .candidates import in_order_of_trial as in_order_of_trial
    from .conflicts import describe_conflict as describe_conflict
    from .corrections import metagraph_to_return_to as metagraph_to_return_to
    from .corrections import offers_without as offers_without
    from .database_schema import schema as schema
    from .grants import GrantReader as GrantReader
    from .history.pages import History as History
    from .history.pages import Page as Page
    from .history.projector import rows_per_transaction as rows_per_transaction
    from .history.rows import HistoryFilters as HistoryFilters
    from .measured import Candidate as Candidate
    from .measured import RankedAccount as RankedAccount
    from .measured import Unfit as Unfit
    from .measured import is_busy as is_busy
    from .measured import running_jobs as running_jobs
    from .measured import unfit as unfit
    from .rank_levels import RankEntry as RankEntry
    from .rebuild import Difference as Difference
    from .rebuild import Rebuild as Rebuild
    from .rebuild import RebuildReport as RebuildReport
    from .receipts import Bookkeeper as Bookkeeper
    from .receipts import NotSpendable as NotSpendable
    from .receipts import Receipt as Receipt
    from .receipts import ReceiptOutcome as ReceiptOutcome
    from .reliability import weight_of as weight_of
    from .rules import RULES as RULES
    from .rules import Finding as Finding
    from .rules import Rule as Rule
    from .snapshots import ProgressReport as ProgressReport
    from .snapshots import Snapshot as Snapshot
    from .snapshots import SnapshotStore as SnapshotStore
    from .snapshots import sealed_if_due as sealed_if_due
    from .snapshots import state_at as state_at
    from .verifications import PiecewiseVerification as PiecewiseVerification
    from .verifications import last_verification as last_verification
    from .verifications import record_verification as record_verification
    from .verify import VerifyReport as VerifyReport
    from .verify import verify_log as verify_log
else:
    __getattr__, __dir__, __all__ = lazy_exports(
        __name__,
        {
            "projections.audit.fairness": "ClassFairness FairnessReport MinerFairness",
            "projections.audit.report": "AccountUsage AuditReport BlockUsage",
            "projections.audit.run": "audit_log",
            "projections.audit.totals": "AccountTotals",
            "projections.availability": "Availability",
            "projections.backup": (
                "ExportReport RestoreReport atomic_new_file export_log raise_first_finding restore_log"
            ),
            "projections.candidates": "in_order_of_trial",
            "projections.conflicts": "describe_conflict",
            "projections.corrections": "metagraph_to_return_to offers_without",
            "projections.database_schema": "schema",
            "projections.grants": "GrantReader",
            "projections.history.pages": "History Page",
            "projections.history.projector": "rows_per_transaction",
            "projections.history.rows": "HistoryFilters",
            "projections.measured": "Candidate RankedAccount Unfit is_busy running_jobs unfit",
            "projections.rank_levels": "RankEntry",
            "projections.rebuild": "Difference Rebuild RebuildReport",
            "projections.receipts": "Bookkeeper NotSpendable Receipt ReceiptOutcome",
            "projections.reliability": "weight_of",
            "projections.rules": "Finding RULES Rule",
            "projections.snapshots": "ProgressReport Snapshot SnapshotStore sealed_if_due state_at",
            "projections.verifications": "PiecewiseVerification last_verification record_verification",
            "projections.verify": "VerifyReport verify_log",
        },
    )
