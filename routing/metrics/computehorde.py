"""The gauges of ComputeHorde's validator, so that dashboards which were made for it continue.

Source of names, labels and units: `allowance/metrics.py` of ComputeHorde's validator. Miners are labels there, so these
are an option.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily

from routing.service.figures import ChainFigures


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
