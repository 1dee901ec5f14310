"""Choices: pick a miner, claim it, explain why. Also the public names of the whole library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .shadowing import refuse_shadowed_packages

# Before the first import of another package.
refuse_shadowed_packages()

from ledger.lazy_exports import lazy_exports  # noqa: E402 - only behind the guard

if TYPE_CHECKING:
    from ledger.domain.fact_validation import BlockFact as BlockFact
    from ledger.domain.fact_validation import ManifestsFact as ManifestsFact
    from ledger.domain.lookup import Head as Head
    from ledger.domain.reservation import Reservation as Reservation
    from ledger.errors import AllMinersBusy as AllMinersBusy
    from ledger.errors import AllowanceException as AllowanceException
    from ledger.errors import BadReceiptSignature as BadReceiptSignature
    from ledger.errors import BlockInUse as BlockInUse
    from ledger.errors import BlockNotFinalized as BlockNotFinalized
    from ledger.errors import CannotImportReservation as CannotImportReservation
    from ledger.errors import CannotReserveAllowanceException as CannotReserveAllowanceException
    from ledger.errors import ChainFeedStale as ChainFeedStale
    from ledger.errors import ClockUnusable as ClockUnusable
    from ledger.errors import ConflictingFact as ConflictingFact
    from ledger.errors import CorruptLedger as CorruptLedger
    from ledger.errors import DamagedExport as DamagedExport
    from ledger.errors import FactNotRecorded as FactNotRecorded
    from ledger.errors import HistoryDamaged as HistoryDamaged
    from ledger.errors import IdempotencyConflict as IdempotencyConflict
    from ledger.errors import ImplausibleFact as ImplausibleFact
    from ledger.errors import InvalidInput as InvalidInput
    from ledger.errors import JobAlreadySpent as JobAlreadySpent
    from ledger.errors import JobOutOfBounds as JobOutOfBounds
    from ledger.errors import JobRequestConflict as JobRequestConflict
    from ledger.errors import JobRoutingException as JobRoutingException
    from ledger.errors import LedgerClosed as LedgerClosed
    from ledger.errors import LedgerExists as LedgerExists
    from ledger.errors import LedgerNotFound as LedgerNotFound
    from ledger.errors import LedgerOverloaded as LedgerOverloaded
    from ledger.errors import LogWentBack as LogWentBack
    from ledger.errors import ManifestsStale as ManifestsStale
    from ledger.errors import NewerLedger as NewerLedger
    from ledger.errors import NotEnoughAllowanceException as NotEnoughAllowanceException
    from ledger.errors import NotEnoughCollateralException as NotEnoughCollateralException
    from ledger.errors import OutcomeUnknown as OutcomeUnknown
    from ledger.errors import PositionOutOfRange as PositionOutOfRange
    from ledger.errors import ProjectionStopped as ProjectionStopped
    from ledger.errors import ReadOnlyLedger as ReadOnlyLedger
    from ledger.errors import RebuildOvertaken as RebuildOvertaken
    from ledger.errors import ReservationAlreadyReleased as ReservationAlreadyReleased
    from ledger.errors import ReservationAlreadySpent as ReservationAlreadySpent
    from ledger.errors import ReservationExpired as ReservationExpired
    from ledger.errors import ReservationNotFound as ReservationNotFound
    from ledger.errors import SealConflict as SealConflict
    from ledger.errors import StorageUnavailable as StorageUnavailable
    from ledger.errors import StreamVersionConflict as StreamVersionConflict
    from ledger.errors import TimeOutOfRange as TimeOutOfRange
    from ledger.settings import Settings as Settings
    from ledger.values import Miner as Miner
    from projections.audit.fairness import ClassFairness as ClassFairness
    from projections.audit.fairness import FairnessReport as FairnessReport
    from projections.audit.fairness import MinerFairness as MinerFairness
    from projections.audit.report import AccountUsage as AccountUsage
    from projections.audit.report import AuditReport as AuditReport
    from projections.audit.report import BlockUsage as BlockUsage
    from projections.audit.totals import AccountTotals as AccountTotals
    from projections.backup import ExportReport as ExportReport
    from projections.backup import RestoreReport as RestoreReport
    from projections.history.pages import Page as Page
    from projections.measured import Candidate as Candidate
    from projections.rebuild import Difference as Difference
    from projections.rebuild import RebuildReport as RebuildReport
    from projections.receipts import Bookkeeper as Bookkeeper
    from projections.receipts import NotSpendable as NotSpendable
    from projections.receipts import Receipt as Receipt
    from projections.receipts import ReceiptOutcome as ReceiptOutcome
    from projections.rules import RULES as RULES
    from projections.rules import Finding as Finding
    from projections.rules import Rule as Rule
    from projections.verify import VerifyReport as VerifyReport

    from .explain import Considered as Considered
    from .explain import Explanation as Explanation
    from .other_policy import PolicyReport as PolicyReport
    from .other_policy import PolicySide as PolicySide
    from .pick import JobRoute as JobRoute
    from .router import JobRequest as JobRequest
    from .router import Routing as Routing
    from .service.allowance import Allowance as Allowance
    from .service.backup import restore as restore
    from .service.backup import verify as verify
    from .service.config import TRUSTED_MINER_FAKE_KEY as TRUSTED_MINER_FAKE_KEY
    from .service.events import StoredEvent as StoredEvent
    from .service.health import Health as Health
    from .service.imports import ImportedReservation as ImportedReservation
    from .service.miner_records import MinerRecord as MinerRecord
    from .service.past import Past as Past
    from .service.settings_changes import SettingsRecord as SettingsRecord
    from .service.summaries import ClassTotals as ClassTotals
    from .service.summaries import Overview as Overview
    from .service.summaries import Usage as Usage
    from .service.summaries import Workload as Workload
    from .singletons import allowance as allowance
    from .singletons import configure as configure
    from .singletons import reset as reset
    from .singletons import routing as routing
    from .version import __version__ as __version__
else:
    __getattr__, __dir__, __all__ = lazy_exports(
        __name__,
        {
            "ledger.domain.fact_validation": "BlockFact ManifestsFact",
            "ledger.domain.lookup": "Head",
            "ledger.domain.reservation": "Reservation",
            "ledger.errors": (
                "AllMinersBusy AllowanceException BadReceiptSignature BlockInUse BlockNotFinalized "
                "CannotImportReservation CannotReserveAllowanceException ChainFeedStale "
                "ClockUnusable ConflictingFact CorruptLedger DamagedExport FactNotRecorded HistoryDamaged "
                "IdempotencyConflict ImplausibleFact InvalidInput JobAlreadySpent JobOutOfBounds JobRequestConflict "
                "JobRoutingException LedgerClosed LedgerExists LedgerNotFound LedgerOverloaded LogWentBack "
                "ManifestsStale NewerLedger NotEnoughAllowanceException NotEnoughCollateralException OutcomeUnknown "
                "PositionOutOfRange "
                "ProjectionStopped ReadOnlyLedger RebuildOvertaken ReservationAlreadyReleased "
                "ReservationAlreadySpent ReservationExpired ReservationNotFound SealConflict StorageUnavailable "
                "StreamVersionConflict TimeOutOfRange"
            ),
            "ledger.settings": "Settings",
            "ledger.values": "Miner",
            "projections.audit.fairness": "ClassFairness FairnessReport MinerFairness",
            "projections.audit.report": "AccountUsage AuditReport BlockUsage",
            "projections.audit.totals": "AccountTotals",
            "projections.backup": "ExportReport RestoreReport",
            "projections.history.pages": "Page",
            "projections.measured": "Candidate",
            "projections.rebuild": "Difference RebuildReport",
            "projections.receipts": "Bookkeeper NotSpendable Receipt ReceiptOutcome",
            "projections.rules": "Finding RULES Rule",
            "projections.verify": "VerifyReport",
            "routing.explain": "Considered Explanation",
            "routing.other_policy": "PolicyReport PolicySide",
            "routing.pick": "JobRoute",
            "routing.router": "JobRequest Routing",
            "routing.service.allowance": "Allowance",
            "routing.service.backup": "restore verify",
            "routing.service.config": "TRUSTED_MINER_FAKE_KEY",
            "routing.service.events": "StoredEvent",
            "routing.service.health": "Health",
            "routing.service.imports": "ImportedReservation",
            "routing.service.miner_records": "MinerRecord",
            "routing.service.past": "Past",
            "routing.service.settings_changes": "SettingsRecord",
            "routing.service.summaries": "ClassTotals Overview Usage Workload",
            "routing.singletons": "allowance configure reset routing",
            "routing.version": "__version__",
        },
    )
