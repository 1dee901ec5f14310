"""The metrics of ComputeHorde's validator, so that dashboards which were made for it continue.

Source of names, labels, units and buckets: `allowance/metrics.py` of ComputeHorde's validator. Miners are labels there,
so this is an option.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase

from ledger.observers import Batch, Operation
from ledger.values import NANOSECONDS
from routing.pick import Pick
from routing.service.figures import ChainFigures

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


recorder = _Recorder()


def families(ledgers: Iterable[tuple[str, ChainFigures]]) -> Iterator[GaugeMetricFamily]:
    """Yield the gauges for ledgers, each with its validator.

    The checkpoint has this validator's accounts; ComputeHorde adds up those of all validators.
    """
    checkpoint = GaugeMetricFamily(
        "validator_block_allowance_checkpoint_seconds",
        "Total allowance per miner-validator-executorClass triplet",
        labels=("miner_hotkey", "validator_hotkey", "executor_class"),
    )
    stake_share = GaugeMetricFamily(
        "validator_stake_share_fraction", "Stake share per validator", labels=("validator_hotkey",)
    )
    manifest_count = GaugeMetricFamily(
        "validator_miner_manifest_count", "Executors per miner and class", labels=("miner_hotkey", "executor_class")
    )
    block_seconds = GaugeMetricFamily("validator_block_duration_seconds", "Duration of the newest finalized block")
    chain: ChainFigures | None = None
    for validator_ss58, chain in ledgers:
        for (miner_ss58, executor_class), total_seconds in chain.totals.items():
            checkpoint.add_metric((miner_ss58, validator_ss58, executor_class), total_seconds)
    # The rest is what the chain says to everybody, so any ledger knows it; these names have no label for a ledger.
    if chain is not None:
        for validator_ss58, share in chain.stake_shares.items():
            stake_share.add_metric((validator_ss58,), share)
        for account, executors in chain.manifests.items():
            manifest_count.add_metric(account, executors)
        if chain.block_seconds is not None:
            block_seconds.add_metric((), chain.block_seconds)
    yield from (checkpoint, stake_share, manifest_count, block_seconds)
