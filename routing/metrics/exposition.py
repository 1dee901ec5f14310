"""The body of `/metrics`, for servers that do not export prometheus_client's default registry."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from .collector import AnyLedger, LedgerCollector
from .feeds import Feed
from .recording import METRICS, register


def exposition(
    ledgers: Iterable[AnyLedger | Callable[[], AnyLedger]],
    *,
    feeds: Iterable[Feed] = (),
    computehorde_names: bool = False,
) -> tuple[bytes, str]:
    """Return the metrics of this library in Prometheus' text format, and their content type.

        body, content_type = await asyncio.to_thread(exposition, [allowance])

    The parameters are those of `LedgerCollector`, as is what it says about threads and errors. If
    `PROMETHEUS_MULTIPROC_DIR` is set, counters and histograms are the sums over all processes that share it, and those
    of the program itself are among them.
    """
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # it has no annotations
    else:
        register(registry, METRICS)
        if computehorde_names:
            from . import computehorde_durations

            register(registry, computehorde_durations.METRICS)
    registry.register(LedgerCollector(ledgers, feeds=feeds, computehorde_names=computehorde_names))
    return generate_latest(registry), CONTENT_TYPE_LATEST
