"""How a call ended, in one word for metrics and log lines; pure."""

from __future__ import annotations

import asyncio

from ledger import errors

ROUTED, DONE, REPEATED = "routed", "done", "repeated"
"""A pick that reserved; another call that changed the ledger; a call whose change was in the log already."""
DEBUG_MINER, TRUSTED_MINER = "debug_miner", "trusted_miner"
"""Picks that use no ledger."""
FAILED = "failed"
"""An error that is none of the ledger's."""

_REFUSED: dict[type[BaseException], str] = {
    errors.NotEnoughAllowanceException: "no_allowance",
    errors.CannotReserveAllowanceException: "no_allowance",
    errors.AllMinersBusy: "all_busy",
    errors.NotEnoughCollateralException: "no_collateral",
    errors.ChainFeedStale: "stale_feed",
    errors.ManifestsStale: "stale_manifests",
    errors.JobAlreadySpent: "already_spent",
    errors.ReservationAlreadySpent: "already_spent",
    errors.ReservationAlreadyReleased: "already_released",
    errors.ReservationExpired: "already_expired",
    errors.ReservationNotFound: "not_found",
    errors.FactNotRecorded: "not_found",
    errors.JobRequestConflict: "conflict",
    errors.StreamVersionConflict: "conflict",
    errors.IdempotencyConflict: "conflict",
    errors.ConflictingFact: "conflict",
    errors.CannotImportReservation: "conflict",
    errors.BlockInUse: "conflict",
    errors.ImplausibleFact: "implausible",
    errors.InvalidInput: "invalid",
    errors.ReadOnlyLedger: "read_only",
    errors.LedgerClosed: "closed",
    errors.LedgerOverloaded: "overloaded",
    errors.LedgerNotFound: "storage",
    errors.StorageUnavailable: "storage",
    errors.OutcomeUnknown: "unknown",
    errors.CorruptLedger: "damaged",
    errors.NewerLedger: "newer",
    errors.ClockUnusable: "clock",
    asyncio.CancelledError: "cancelled",
}
OUTCOMES = (ROUTED, DONE, REPEATED, DEBUG_MINER, TRUSTED_MINER, *dict.fromkeys(_REFUSED.values()), FAILED)
"""All outcomes; no other one is ever counted."""


def outcome_of(error: BaseException) -> str:
    """Return the outcome of a call that raised; a subclass has that of its nearest class in the table."""
    return next((_REFUSED[each] for each in type(error).__mro__ if each in _REFUSED), FAILED)
