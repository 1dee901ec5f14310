"""Counters and histograms of what this process does: calls, picks, settlements and group commits.

They are ordinary metrics of prometheus_client, so its multiprocess mode adds them up over the workers of a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from ledger.observers import Batch, Observer, Operation, add_observer, remove_observer
from ledger.values import NANOSECONDS
from routing.pick import Pick

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds for times: from a pick on a warm SQLite file to the longest wait for a database."""
COMMANDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Upper bounds for the commands of a batch, up to the most that a batch has."""
OTHER_CLASS = "other"
MOST_CLASSES = 100
"""How many executor classes get a label of their own (this project's choice); all further ones share one."""

# Registered nowhere until `enable`: to import a module must not change what a program exports.
OPERATION_SECONDS = Histogram(
    "allowance_operation_duration_seconds",
    "Time from a call that changes the ledger to its result.",
    ("operation", "outcome"),
    buckets=SECONDS,
    registry=None,
)
PICKS = Counter("allowance_picks", "Jobs that were routed or refused.", ("executor_class", "outcome"), registry=None)
SETTLEMENTS = Counter("allowance_settlements", "Committed settlements of reservations.", ("status",), registry=None)
LOCK_WAIT_SECONDS = Histogram(
    "allowance_write_lock_wait_seconds", "Wait for the write lock.", buckets=SECONDS, registry=None
)
COMMIT_SECONDS = Histogram(
    "allowance_commit_seconds", "Time to insert and commit the rows of a batch.", buckets=SECONDS, registry=None
)
BATCH_COMMANDS = Histogram("allowance_batch_commands", "Commands in one group commit.", buckets=COMMANDS, registry=None)
CONFLICTS = Counter(
    "allowance_conflicts", "Appends refused because a stream was not at its expected version.", registry=None
)
RETRIES = Counter("allowance_retries", "Commands that had to be decided again.", registry=None)

for _status in ("spent", "released", "expired"):
    SETTLEMENTS.labels(_status)  # It begins at 0: a rate needs a value before the first one.

METRICS: tuple[MetricWrapperBase, ...] = (
    OPERATION_SECONDS,
    PICKS,
    SETTLEMENTS,
    LOCK_WAIT_SECONDS,
    COMMIT_SECONDS,
    BATCH_COMMANDS,
    CONFLICTS,
    RETRIES,
)


class _Recorder:
    """Observes the ledgers of the process, and counts in the metrics above."""

    def __init__(self) -> None:
        # To find a metric by its labels takes longer than to count in it.
        self._found: dict[tuple[str, str, str | None], tuple[Histogram, Counter | None]] = {}
        self._classes: set[str] = set()

    def operation_ended(self, operation: Operation) -> None:
        """Count and time a call."""
        key = (operation.operation, operation.outcome, operation.executor_class if operation.knows_class else None)
        duration, picks = self._found.get(key) or self._find(*key)
        if operation.duration_ns is not None:
            duration.observe(operation.duration_ns / NANOSECONDS)
        if picks is not None:
            picks.inc()

    def batch_ended(self, batch: Batch) -> None:
        """Count a group commit."""
        BATCH_COMMANDS.observe(batch.commands)
        for wait_ns in batch.lock_waits_ns:
            LOCK_WAIT_SECONDS.observe(wait_ns / NANOSECONDS)
        for commit_ns in batch.commits_ns:
            COMMIT_SECONDS.observe(commit_ns / NANOSECONDS)
        for status, number in batch.settled.items():
            SETTLEMENTS.labels(status).inc(number)
        if batch.conflicts or batch.retries:
            CONFLICTS.inc(batch.conflicts)
            RETRIES.inc(batch.retries)

    def _find(self, operation: str, outcome: str, known_class: str | None) -> tuple[Histogram, Counter | None]:
        duration = OPERATION_SECONDS.labels(operation, outcome)
        picks = PICKS.labels(self._label(known_class), outcome) if operation == Pick.operation else None
        return self._found.setdefault((operation, outcome, known_class), (duration, picks))

    def _label(self, known_class: str | None) -> str:
        """Return the label of a class. A job may name any class, and miners may offer any number."""
        if known_class is not None and len(self._classes) < MOST_CLASSES:
            self._classes.add(known_class)
        return known_class if known_class is not None and known_class in self._classes else OTHER_CLASS


_recorder = _Recorder()
_enabled: set[Observer] = {_recorder}
_registered: WeakKeyDictionary[CollectorRegistry, set[MetricWrapperBase]] = WeakKeyDictionary()


def enable(*, registry: CollectorRegistry = REGISTRY, computehorde_names: bool = False) -> None:
    """Count and time from now on what the ledgers of this process do, and export that from a registry.

    Processes that are forked later do the same. A second call changes nothing, but adds what it names. With
    `computehorde_names` durations also appear under the names that ComputeHorde's validator gives them.
    """
    register(registry, METRICS)
    if computehorde_names:
        # Imported here, since in multiprocess mode importing it is enough to export its metrics.
        from . import computehorde_durations

        register(registry, computehorde_durations.METRICS)
        _enabled.add(computehorde_durations.recorder)
    for recorder in _enabled:
        add_observer(recorder)


def disable() -> None:
    """Count nothing more; the metrics keep their values."""
    for recorder in _enabled:
        remove_observer(recorder)


def register(registry: CollectorRegistry, metrics: Iterable[MetricWrapperBase]) -> None:
    """Export metrics from a registry, once."""
    registered = _registered.setdefault(registry, set())
    for metric in metrics:
        if metric not in registered:
            registry.register(metric)
            registered.add(metric)
