"""Metrics of the feeders that record chain facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class FeedState(Protocol):
    """What a feeder has done since it was made; `newest_block` and the last two are None if there is none."""

    @property
    def newest_block(self) -> int | None:
        """The newest block that it has recorded."""
        ...

    @property
    def recorded_blocks(self) -> int:
        """Blocks recorded."""
        ...

    @property
    def recorded_syncs(self) -> int:
        """Manifest syncs recorded."""
        ...

    @property
    def retries(self) -> int:
        """Calls that were repeated after a failure."""
        ...

    @property
    def failures(self) -> int:
        """Calls that failed."""
        ...

    @property
    def missing_blocks(self) -> int:
        """Blocks that are still to be filled in."""
        ...

    @property
    def last_success_at(self) -> datetime | None:
        """When it last recorded something; aware."""
        ...

    @property
    def last_error(self) -> str | None:
        """Why the last attempt failed; None after a success."""
        ...


class Feed(Protocol):
    """A feeder, as far as metrics read it."""

    def state(self) -> FeedState:
        """Return its state now; from any thread."""
        ...


_COUNTERS = {
    "recorded_blocks": "Blocks that the feeder has recorded.",
    "recorded_syncs": "Manifest syncs that the feeder has recorded.",
    "retries": "Calls that the feeder has repeated after a failure.",
    "failures": "Calls of the feeder that failed.",
}
_GAUGES = {
    "newest_block": "The newest block that the feeder has recorded.",
    "missing_blocks": "Blocks that the feeder has still to fill in.",
    "last_success_timestamp_seconds": "When the feeder last recorded something.",
    "failing": "1 if the last attempt of the feeder failed, else 0.",
}


def families(feeds: Iterable[Feed]) -> Iterator[Metric]:
    """Yield the metrics of feeders; the label `feed` is the number of the feeder in the order given, from 1."""
    states = [(str(number), feed.state()) for number, feed in enumerate(feeds, 1)]
    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"allowance_feed_{name}", text, labels=("feed",))
        for feed, state in states:
            counter.add_metric((feed,), getattr(state, name))
        yield counter
    for name, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"allowance_feed_{name}", text, labels=("feed",))
        for feed, state in states:
            value = _gauge(state, name)
            if value is not None:
                gauge.add_metric((feed,), value)
        yield gauge


def _gauge(state: FeedState, name: str) -> float | None:
    if name == "last_success_timestamp_seconds":
        return None if state.last_success_at is None else state.last_success_at.timestamp()
    if name == "failing":
        return float(state.last_error is not None)
    value: int | None = getattr(state, name)
    return value
