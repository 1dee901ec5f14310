"""The package of facts: events, the append-only log, and the account rules; README.md in this folder describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .call_queue import yield_to_writers as yield_to_writers
    from .clock import Clock as Clock
    from .codec import Row as Row
    from .damage import check_newest_rows as check_newest_rows
    from .domain.account import Account as Account
    from .domain.account import ActiveReservation as ActiveReservation
    from .domain.blocks import END as END
    from .domain.blocks import BlockSet as BlockSet
    from .domain.blocks import StepFunction as StepFunction
    from .domain.blocks import block_numbers as block_numbers
    from .domain.blocks import runs_from_numbers as runs_from_numbers
    from .domain.chain import Chain as Chain
    from .domain.chain import Metagraph as Metagraph
    from .domain.commands import ChangeSettings as ChangeSettings
    from .domain.commands import EarlierExpiry as EarlierExpiry
    from .domain.commands import ExpireDue as ExpireDue
    from .domain.commands import RecordSettings as RecordSettings
    from .domain.commands import Reserve as Reserve
    from .domain.commands import SettingsChange as SettingsChange
    from .domain.commands import Settle as Settle
    from .domain.commands import check_amount as check_amount
    from .domain.commands import check_same_request as check_same_request
    from .domain.commands import claim_at_version as claim_at_version
    from .domain.commands import look_up_job as look_up_job
    from .domain.correction_commands import MetagraphNeeded as MetagraphNeeded
    from .domain.correction_commands import OffersNeeded as OffersNeeded
    from .domain.correction_commands import PreparedOffers as PreparedOffers
    from .domain.correction_commands import WithdrawBlock as WithdrawBlock
    from .domain.correction_commands import WithdrawManifests as WithdrawManifests
    from .domain.fact_commands import RecordFacts as RecordFacts
    from .domain.fact_commands import ValidatedBlock as ValidatedBlock
    from .domain.fact_commands import ValidatedManifests as ValidatedManifests
    from .domain.fact_validation import BlockFact as BlockFact
    from .domain.fact_validation import FactValidator as FactValidator
    from .domain.fact_validation import ManifestsFact as ManifestsFact
    from .domain.import_command import ImportReservation as ImportReservation
    from .domain.import_command import ImportReservations as ImportReservations
    from .domain.lookup import Head as Head
    from .domain.lookup import Lookup as Lookup
    from .domain.lookup import LookupResult as LookupResult
    from .domain.miner_fact_commands import EndJobElsewhere as EndJobElsewhere
    from .domain.miner_fact_commands import ExcludeMiner as ExcludeMiner
    from .domain.miner_fact_commands import ReadmitMiner as ReadmitMiner
    from .domain.miner_fact_commands import RecordCollateral as RecordCollateral
    from .domain.miner_fact_commands import RecordJobElsewhere as RecordJobElsewhere
    from .domain.miner_fact_commands import ReportIncident as ReportIncident
    from .domain.miner_facts import Collateral as Collateral
    from .domain.miner_facts import Exclusion as Exclusion
    from .domain.miner_facts import JobElsewhere as JobElsewhere
    from .domain.miner_facts import MinerFacts as MinerFacts
    from .domain.reservation import ORIGINS as ORIGINS
    from .domain.reservation import STATUSES as STATUSES
    from .domain.reservation import Origin as Origin
    from .domain.reservation import Reservation as Reservation
    from .domain.reservation import Status as Status
    from .domain.reservation import found_reservation as found_reservation
    from .domain.reservation import origin_of as origin_of
    from .domain.reservation import settlement_of as settlement_of
    from .domain.reservation import status_after as status_after
    from .domain.seal import state_digest as state_digest
    from .domain.seal_command import SealState as SealState
    from .domain.seal_command import proves as proves
    from .domain.seal_command import seal_key as seal_key
    from .domain.state import SEAL_VERSION as SEAL_VERSION
    from .domain.state import LedgerState as LedgerState
    from .domain.state_codec import SNAPSHOT_VERSION as SNAPSHOT_VERSION
    from .domain.state_codec import decode_state as decode_state
    from .domain.state_codec import encode_state as encode_state
    from .domain.unit_of_work import Command as Command
    from .domain.unit_of_work import UnitOfWork as UnitOfWork
    from .runtime import Runtime as Runtime
    from .runtime import current_runtime as current_runtime
    from .runtime import refuse_on_loop as refuse_on_loop
    from .runtime import running_loop as running_loop
    from .settings import RecordedSettings as RecordedSettings
    from .settings import Settings as Settings
    from .store.contract import SCHEMA_VERSION as SCHEMA_VERSION
    from .store.contract import CommitOutcomeUnknown as CommitOutcomeUnknown
    from .store.contract import DerivedTablesUnavailable as DerivedTablesUnavailable
    from .store.contract import DerivedTransaction as DerivedTransaction
    from .store.contract import RecoveryConflict as RecoveryConflict
    from .store.contract import RowExists as RowExists
    from .store.contract import Store as Store
    from .store.contract import Transaction as Transaction
    from .store.contract import TransactionConflict as TransactionConflict
    from .store.contract import VersionConflict as VersionConflict
    from .store.contract import versions_before as versions_before
    from .store.export_file import ExportReader as ExportReader
    from .store.export_file import ExportWriter as ExportWriter
    from .store.reader import LogReader as LogReader
    from .store.reader import StoredLedger as StoredLedger
    from .store.urls import store_from_url as store_from_url
    from .values import Miner as Miner
    from .writer import LedgerWriter as LedgerWriter
else:
    __getattr__, __dir__, __all__ = lazy_exports(
        __name__,
        {
            "ledger.call_queue": "yield_to_writers",
            "ledger.clock": "Clock",
            "ledger.codec": "Row",
            "ledger.damage": "check_newest_rows",
            "ledger.domain.account": "Account ActiveReservation",
            "ledger.domain.blocks": "BlockSet END StepFunction block_numbers runs_from_numbers",
            "ledger.domain.chain": "Chain Metagraph",
            "ledger.domain.commands": (
                "ChangeSettings EarlierExpiry ExpireDue RecordSettings Reserve Settle SettingsChange check_amount "
                "check_same_request claim_at_version look_up_job"
            ),
            "ledger.domain.correction_commands": (
                "MetagraphNeeded OffersNeeded PreparedOffers WithdrawBlock WithdrawManifests"
            ),
            "ledger.domain.fact_commands": "RecordFacts ValidatedBlock ValidatedManifests",
            "ledger.domain.fact_validation": "BlockFact FactValidator ManifestsFact",
            "ledger.domain.import_command": "ImportReservation ImportReservations",
            "ledger.domain.lookup": "Head Lookup LookupResult",
            "ledger.domain.miner_fact_commands": (
                "EndJobElsewhere ExcludeMiner ReadmitMiner RecordCollateral RecordJobElsewhere ReportIncident"
            ),
            "ledger.domain.miner_facts": "Collateral Exclusion JobElsewhere MinerFacts",
            "ledger.domain.reservation": (
                "ORIGINS Origin Reservation STATUSES Status found_reservation origin_of settlement_of status_after"
            ),
            "ledger.domain.seal": "state_digest",
            "ledger.domain.seal_command": "SealState proves seal_key",
            "ledger.domain.state": "LedgerState SEAL_VERSION",
            "ledger.domain.state_codec": "SNAPSHOT_VERSION decode_state encode_state",
            "ledger.domain.unit_of_work": "Command UnitOfWork",
            "ledger.runtime": "Runtime current_runtime refuse_on_loop running_loop",
            "ledger.settings": "RecordedSettings Settings",
            "ledger.store.contract": (
                "CommitOutcomeUnknown DerivedTablesUnavailable DerivedTransaction RecoveryConflict RowExists "
                "SCHEMA_VERSION Store Transaction TransactionConflict VersionConflict versions_before"
            ),
            "ledger.store.export_file": "ExportReader ExportWriter",
            "ledger.store.reader": "LogReader StoredLedger",
            "ledger.store.urls": "store_from_url",
            "ledger.values": "Miner",
            "ledger.writer": "LedgerWriter",
        },
    )
