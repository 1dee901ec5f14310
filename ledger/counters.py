"""What a ledger's actor has done since it was opened, for whoever watches."""

from __future__ import annotations

FINE_BITS = 5
"""Waits are told apart to a thirty-second of a power of two."""


class DurationHistogram:
    """How long something was waited for: a histogram of a fixed size, exact to 3 %."""

    __slots__ = ("_counts", "longest_ns")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.longest_ns = 0

    def add(self, wait_ns: int) -> None:
        """Notes one wait."""
        rank = _bucket(wait_ns)
        self._counts[rank] = self._counts.get(rank, 0) + 1
        self.longest_ns = max(self.longest_ns, wait_ns)

    def percentile_ns(self, share: float) -> int:
        """What this share of the waits did not exceed, rounded up; 0 where there were none."""
        left = share * sum(self._counts.values())
        for rank, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return min(_upper_bound_ns(rank), self.longest_ns)
        return self.longest_ns


class Counters:
    """Whole numbers by name; only ever more of each."""

    __slots__ = (
        "attempts",
        "batches",
        "claims",
        "commands",
        "conflicts",
        "foreign_rows",
        "lock_waits",
        "moved_picks",
        "retries",
        "rows",
    )

    def __init__(self) -> None:
        self.batches = 0
        self.commands = 0
        self.rows = 0
        self.attempts = 0
        """Commands decided, first or again."""
        self.claims = 0
        """Reservations decided, first or again."""
        self.conflicts = 0
        """Batches decided on a head that turned out to have moved."""
        self.retries = 0
        """Commands decided again because of it."""
        self.moved_picks = 0
        """Jobs that, decided again, had to leave the miner that was chosen first."""
        self.foreign_rows = 0
        """Rows of other processes that were folded."""
        self.lock_waits = DurationHistogram()
        """Between asking for the write lock and having it."""

    def to_dict(self) -> dict[str, int]:
        """The counters by name, and the waits for the write lock in ns."""
        counted = {name: getattr(self, name) for name in self.__slots__ if name != "lock_waits"}
        waits = self.lock_waits
        return {
            **counted,
            "lock_wait_p50_ns": waits.percentile_ns(0.5),
            "lock_wait_p99_ns": waits.percentile_ns(0.99),
            "lock_wait_longest_ns": waits.longest_ns,
        }


def _bucket(wait_ns: int) -> int:
    """Which bucket a wait falls into: its leading bits, and how many follow them."""
    more = max(0, wait_ns.bit_length() - FINE_BITS - 1)
    return (more << FINE_BITS) + (wait_ns >> more)


def _upper_bound_ns(rank: int) -> int:
    """The longest wait of a bucket."""
    more = max(0, (rank >> FINE_BITS) - 1)
    return (((rank - (more << FINE_BITS)) + 1) << more) - 1
