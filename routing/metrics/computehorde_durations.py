"""The durations that ComputeHorde's validator times, under its names; a module of its own.

In multiprocess mode a metric is in every scrape as soon as it is made, so this is imported only if it is asked for.
Source of names and buckets: `allowance/metrics.py` of ComputeHorde's validator.
"""

from __future__ import annotations

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

from ledger.observers import Batch, Operation
from ledger.values import NANOSECONDS
from routing.pick import Pick

_BOOKING_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BLOCK_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)

RESERVE_SECONDS = Histogram(
    "validator_reserve_allowance_duration_seconds",
    "Time spent reserving allowance",
    buckets=_BOOKING_SECONDS,
    registry=None,
)
UNDO_SECONDS = Histogram(
    "validator_undo_allowance_reservation_duration_seconds",
    "Time spent undoing allowance reservation",
    buckets=_BOOKING_SECONDS,
    registry=None,
)
BLOCK_PROCESSING_SECONDS = Histogram(
    "validator_block_allowance_processing_duration_seconds",
    "Time spent processing block allowance calculations",
    buckets=_BLOCK_SECONDS,
    registry=None,
)
METRICS: tuple[MetricWrapperBase, ...] = (RESERVE_SECONDS, UNDO_SECONDS, BLOCK_PROCESSING_SECONDS)

_BY_OPERATION = {
    # ComputeHorde's router reserves with one call after it has found a miner; a pick does both.
    Pick.operation: RESERVE_SECONDS,
    "reserve": RESERVE_SECONDS,
    "release": UNDO_SECONDS,
    "record_facts": BLOCK_PROCESSING_SECONDS,
}


class _Recorder:
    """Observes the ledgers of the process, and times their calls in the histograms above."""

    def operation_ended(self, operation: Operation) -> None:
        """Time a call."""
        histogram = _BY_OPERATION.get(operation.operation)
        if histogram is not None and operation.duration_ns is not None:
            histogram.observe(operation.duration_ns / NANOSECONDS)

    def batch_ended(self, batch: Batch) -> None:
        """ComputeHorde has no group commit."""


recorder: _Recorder = _Recorder()
