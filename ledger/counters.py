"""Counters of a ledger's writer since the ledger was opened, for monitoring."""

from __future__ import annotations

import time

from . import observers

# Bits that the histogram keeps below the leading bit of a duration. A bucket is thus 1/32 of a power of two wide, which
# makes a percentile exact to 3 %.
FINE_BITS = 5


class DurationHistogram:
    """A histogram of durations, exact to 3 %; its size is bounded by the number of buckets, not of durations."""

    __slots__ = ("_counts", "longest_ns")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.longest_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        bucket = _bucket(duration_ns)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.longest_ns = max(self.longest_ns, duration_ns)

    def percentile_ns(self, share: float) -> int:
        """Return the duration that this share (0 to 1) of all durations does not exceed, rounded up; 0 if empty."""
        left = share * sum(self._counts.values())
        for bucket, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return min(_upper_bound_ns(bucket), self.longest_ns)
        return self.longest_ns


class Counters:
    """Named whole numbers that only grow."""

    __slots__ = (
        "attempts",
        "batch",
        "batches",
        "claims",
        "commands",
        "conflicts",
        "foreign_rows",
        "lock_waits",
        "moved_picks",
        "renumbered",
        "retries",
        "rows",
    )

    def __init__(self) -> None:
        self.batches = 0
        self.commands = 0
        self.rows = 0
        """Rows appended."""
        self.attempts = 0
        """Decisions of commands, repeated ones included."""
        self.claims = 0
        """Decisions that reserve, repeated ones included."""
        self.conflicts = 0
        """Appends that the log refused because a stream was not at the expected version."""
        self.renumbered = 0
        """Commands that were decided once and appended behind another head, because only other streams had moved."""
        self.retries = 0
        """Commands that had to be decided again: after a conflict, because they were decided after a command of the
        same batch that touched their class or job, after an aborted transaction, or after a discarded state."""
        self.moved_picks = 0
        """Jobs that got another miner than the first decision had chosen, because they were decided again."""
        self.foreign_rows = 0
        """Rows that the writer read from the log and folded: other processes' and, if it reloads the state, its own."""
        self.lock_waits = DurationHistogram()
        """Times between the request for the write lock and its acquisition."""
        self.batch: observers.Batch | None = None
        """The group commit under way, if it is observed."""

    def begin_batch(self, commands: int) -> None:
        """Count a group commit that begins."""
        self.batches += 1
        self.commands += commands
        if observers.registered:
            self.batch = observers.Batch(commands)
            # Until the end of the batch, which adds the counts that it has reached.
            self.batch.conflicts, self.batch.retries = -self.conflicts, -self.retries

    def end_batch(self) -> observers.Batch | None:
        """Return what the group commit under way has done, if it is observed."""
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.conflicts += self.conflicts
            batch.retries += self.retries
        return batch

    def note_lock_wait(self, duration_ns: int) -> None:
        """Count a wait for the write lock."""
        self.lock_waits.add(duration_ns)
        if self.batch is not None:
            self.batch.lock_waits_ns.append(duration_ns)

    def commit_begins(self) -> int:
        """Return the moment for `commit_ended`; reads no clock unless the batch is observed."""
        return 0 if self.batch is None else time.perf_counter_ns()

    def commit_ended(self, began_ns: int) -> None:
        """Count a commit, from the insertion of its rows on."""
        if self.batch is not None:
            self.batch.commits_ns.append(time.perf_counter_ns() - began_ns)

    def to_dict(self) -> dict[str, int]:
        """Return the counters by name, with percentiles of the waits for the write lock in ns."""
        counts = {name: getattr(self, name) for name in self.__slots__ if name not in ("batch", "lock_waits")}
        waits = self.lock_waits
        return {
            **counts,
            "lock_wait_p50_ns": waits.percentile_ns(0.5),
            "lock_wait_p99_ns": waits.percentile_ns(0.99),
            "lock_wait_longest_ns": waits.longest_ns,
        }


def _bucket(duration_ns: int) -> int:
    """Return the bucket of a duration: its leading bits, after the number of bits that were dropped below them."""
    dropped_bits = max(0, duration_ns.bit_length() - FINE_BITS - 1)
    return (dropped_bits << FINE_BITS) + (duration_ns >> dropped_bits)


def _upper_bound_ns(bucket: int) -> int:
    """Return the longest duration in a bucket."""
    dropped_bits = max(0, (bucket >> FINE_BITS) - 1)
    return (((bucket - (dropped_bits << FINE_BITS)) + 1) << dropped_bits) - 1
