"""`LedgerCollector`: reads at each scrape what ledgers are like."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric

from ledger import current_runtime
from ledger.errors import AllowanceException, InvalidInput
from routing.service.allowance import Allowance
from routing.service.figures import ChainFigures, Figures, chain_figures_of, figures_of
from routing.service.summaries import ClassTotals
from routing.sync import Allowance as BlockingAllowance

from . import computehorde, feeds
from .recording import MOST_CLASSES, OTHER_CLASS

AnyLedger = Allowance | BlockingAllowance
SCRAPE_SECONDS = 5.0
"""How long a scrape waits for the ledgers. Half of Prometheus' default timeout, so that the rest still arrives."""

log: logging.Logger = logging.getLogger("allowance.ledger")


class LedgerCollector:
    """A collector of prometheus_client over any number of ledgers, one per validator.

    Each is an `Allowance`, of `routing` or of `routing.sync`, or a function that returns one, such as
    `routing.allowance`. `feeds` are feeders, or other objects with a `state()`. With `computehorde_names` the gauges of
    ComputeHorde's validator are added, whose labels name miners.

    A scrape blocks its thread until the ledgers respond; in a coroutine, call it with `asyncio.to_thread`. A ledger
    that cannot be read has only `allowance_ledger_up`, which is 0. Raises `InvalidInput`.
    """

    def __init__(
        self,
        ledgers: Iterable[AnyLedger | Callable[[], AnyLedger]],
        *,
        feeds: Iterable[feeds.Feed] = (),
        computehorde_names: bool = False,
    ) -> None:
        self._ledgers = list(ledgers)
        self._feeds = list(feeds)
        self._computehorde_names = computehorde_names
        for ledger in self._ledgers:
            if not isinstance(ledger, AnyLedger) and not callable(ledger):
                raise InvalidInput("ledgers", ledger, "Allowance objects, or functions that return one")

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values, so that registering the collector reads no ledger."""
        return self._families([])

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. Raises `RuntimeError` on the library's own event loop, which would wait for itself."""
        return self._families(self._read())

    def _families(self, read: Sequence[_Read]) -> Iterator[Metric]:
        yield from _families(read)
        if self._feeds:
            yield from feeds.families(self._feeds)
        if self._computehorde_names:
            yield from computehorde.families((each.validator_ss58, each.chain) for each in read if each.chain)

    def _read(self) -> list[_Read]:
        ledgers = [_asynchronous(each) for each in self._ledgers]
        validators = [each.validator_ss58 for each in ledgers]
        if len(set(validators)) < len(validators):
            # Two series with equal labels would make the whole scrape invalid.
            raise InvalidInput("ledgers", validators, "ledgers of different validators")
        runtime = current_runtime()
        if asyncio._get_running_loop() is runtime.loop:
            raise RuntimeError("a scrape on the library's own event loop would wait for itself; use another thread")
        return runtime.run_blocking(self._read_all(ledgers))

    async def _read_all(self, ledgers: list[Allowance]) -> list[_Read]:
        return await asyncio.gather(*map(self._read_one, ledgers))

    async def _read_one(self, ledger: Allowance) -> _Read:
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                chain = await chain_figures_of(ledger) if self._computehorde_names else None
                return _Read(ledger.validator_ss58, await figures_of(ledger), chain)
        except (AllowanceException, TimeoutError) as error:
            log.warning("the metrics of the ledger of %s cannot be read: %s", ledger.validator_ss58, error)
            return _Read(ledger.validator_ss58, None, None)


class _Read(NamedTuple):
    """What was read of one ledger; None if it did not respond."""

    validator_ss58: str
    figures: Figures | None
    chain: ChainFigures | None


_GAUGES: dict[str, tuple[str, Callable[[Figures], Any]]] = {
    "position": ("Position of the newest event.", lambda each: each.health.position),
    "newest_block": ("Number of the newest block.", lambda each: each.health.newest_block),
    "newest_block_age_seconds": ("Age of the newest block.", lambda each: each.health.newest_block_age_seconds),
    "newest_manifests_age_blocks": (
        "Blocks between the newest manifest sync and the newest block.",
        lambda each: each.health.newest_sync_age_blocks,
    ),
    "projection_lag_events": ("Events that the history has not projected.", lambda each: each.health.projection_lag),
    "overdue_reservations": ("Active reservations that are overdue.", lambda each: each.health.overdue),
    "verified_position": (
        "Position up to which the last verification found nothing.",
        lambda each: each.health.verified_position,
    ),
    "verified_age_seconds": ("Time since the last verification.", lambda each: each.verified_age_seconds),
    "problems": ("Problems that `allowance health` lists.", lambda each: len(each.health.problems)),
    "excluded_miners": ("Miners that routers do not choose.", lambda each: each.miner_facts.excluded_miners),
    "jobs_elsewhere": ("Running jobs of other validators.", lambda each: each.miner_facts.jobs_elsewhere),
    "incidents": ("Incidents in the window of reliability.", lambda each: each.miner_facts.incidents),
    "queue_length": ("Commands that wait for the writer of this process.", lambda each: each.queue_length),
}
"""Gauges with a value per ledger, by name; a value of None is left out."""


def _families(read: Sequence[_Read]) -> Iterator[Metric]:
    label = ("validator_ss58",)
    up = GaugeMetricFamily("allowance_ledger_up", "1 if the ledger could be read, else 0.", labels=label)
    for each in read:
        up.add_metric((each.validator_ss58,), each.figures is not None)
    yield up
    readable = [(each.validator_ss58, each.figures) for each in read if each.figures is not None]
    for name, (text, value_of) in _GAUGES.items():
        gauge = GaugeMetricFamily(f"allowance_{name}", text, labels=label)
        for validator_ss58, figures in readable:
            value = value_of(figures)
            if value is not None:
                gauge.add_metric((validator_ss58,), value)
        yield gauge
    yield from _labelled_families(readable)


def _labelled_families(readable: list[tuple[str, Figures]]) -> Iterator[Metric]:
    reservations = GaugeMetricFamily(
        "allowance_reservations", "Reservations by status.", labels=("validator_ss58", "status")
    )
    labels = ("validator_ss58", "executor_class")
    available = GaugeMetricFamily("allowance_available_seconds", "Allowance that is free.", labels=labels)
    total = GaugeMetricFamily("allowance_total_seconds", "Allowance, free or taken.", labels=labels)
    for validator_ss58, figures in readable:
        for status, number in figures.statuses.items():
            reservations.add_metric((validator_ss58, status), number)
        for name, available_seconds, total_seconds in _by_label(figures.classes):
            available.add_metric((validator_ss58, name), available_seconds)
            total.add_metric((validator_ss58, name), total_seconds)
    yield from (reservations, available, total)


def _by_label(classes: list[ClassTotals]) -> list[tuple[str, float, float]]:
    """Return available and total seconds of classes; those beyond the most that get a label of their own as one."""
    sums = [(each.executor_class, each.available_seconds, each.total_seconds) for each in classes]
    rest = sums[MOST_CLASSES:]
    if not rest:
        return sums
    return [*sums[:MOST_CLASSES], (OTHER_CLASS, sum(each[1] for each in rest), sum(each[2] for each in rest))]


def _asynchronous(ledger: AnyLedger | Callable[[], AnyLedger]) -> Allowance:
    opened = ledger if isinstance(ledger, AnyLedger) else ledger()
    return opened.asynchronous if isinstance(opened, BlockingAllowance) else opened
