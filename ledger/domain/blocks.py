"""Sets of blocks and functions over blocks, kept as runs: what costs is how often they change, not how far they reach.

Blocks are counted from 1; ends of ranges are exclusive unless a name says `last`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from ledger.events import Run

END = 2**63
"""Beyond every block."""
CHUNK = 512
NEWEST_RUNS = 32
"""Of those that are packed still, so many are unpacked; where that does not reach far enough, all are."""


class StepFunction:
    """A function from block to a whole number that changes seldom: 0 everywhere at first."""

    __slots__ = ("starts", "values")

    def __init__(self) -> None:
        self.starts = [0]
        self.values = [0]

    def at(self, block: int) -> int:
        """The value at the block."""
        starts = self.starts
        # Mostly it is asked for beyond the last change.
        return self.values[-1 if block >= starts[-1] else bisect_right(starts, block) - 1]

    def assign(self, start: int, end: int, value: int) -> None:
        """Sets the value on `[start, end)`; neighbours that come to be equal become one step."""
        starts, values = self.starts, self.values
        first = bisect_left(starts, start)
        after = bisect_right(starts, end)
        value_at_end = values[after - 1]
        new_starts: list[int] = []
        new_values: list[int] = []
        if first == 0 or values[first - 1] != value:
            new_starts.append(start)
            new_values.append(value)
        if end < END and value_at_end != value:
            new_starts.append(end)
            new_values.append(value_at_end)
        starts[first:after] = new_starts
        values[first:after] = new_values


class BlockSet:
    """A set of blocks as ascending runs that neither touch nor overlap."""

    __slots__ = ("_packed", "_packed_end", "ends", "starts")

    starts: list[int]
    """Where the runs begin. In a set that was packed, only those are here for sure that `look_at` was asked for."""
    ends: list[int]
    """Where each of them ends."""

    def __init__(self, starts: list[int] | None = None, ends: list[int] | None = None) -> None:
        self.starts = starts or []
        self.ends = ends or []
        self._packed = b""
        """The runs before those, as bytes."""
        self._packed_end = -1
        """Where they end; `END` while all runs are among them."""

    @classmethod
    def from_bytes(cls, packed: bytes) -> BlockSet:
        """The set that `to_bytes` packed, each part unpacked when it is first looked at; `ValueError` for other bytes.

        An old ledger has hundreds of thousands of runs, and nearly all that is asked or done concerns the newest.
        """
        typecode = packed[:1].decode()
        if typecode not in ("I", "q") or (len(packed) - 1) % (2 * array(typecode).itemsize):
            raise ValueError("these bytes are no set of blocks")
        runs = cls()
        runs._packed = packed
        runs._packed_end = END
        return runs

    def to_bytes(self) -> bytes:
        """The set as bytes; equal sets are equal bytes."""
        if self._packed_end == END:
            return self._packed
        typecode = "I" if not self.ends or self.ends[-1] < 2**32 else "q"
        if self._packed and self._packed[:1].decode() != typecode:
            self.unpack_from(0)
            return self.to_bytes()
        packed_starts, packed_ends = _halves(self._packed[1:])
        starts, ends = (array(typecode, each).tobytes() for each in (self.starts, self.ends))
        return b"".join((typecode.encode(), packed_starts, starts, packed_ends, ends))

    def unpack_from(self, block: int) -> None:
        """Unpacks what has to be there before a block, or a later one, is looked at or changed.

        Not to be asked for an older block while runs are iterated over.
        """
        if block > self._packed_end or not self._packed:
            return
        typecode = self._packed[:1].decode()
        starts, ends = _halves(self._packed[1:])
        size = array(typecode).itemsize
        older = len(ends) - NEWEST_RUNS * size
        older_end = array(typecode, ends[older - size : older])[0] if older > 0 else block
        if block > older_end:
            self._packed, self._packed_end = self._packed[:1] + starts[:older] + ends[:older], older_end
            starts, ends = starts[older:], ends[older:]
        else:
            self._packed, self._packed_end = b"", -1
        self.starts[:0], self.ends[:0] = array(typecode, starts), array(typecode, ends)

    def copy(self) -> BlockSet:
        """A set of its own with the same blocks."""
        copy = BlockSet(self.starts.copy(), self.ends.copy())
        copy._packed, copy._packed_end = self._packed, self._packed_end
        return copy

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any block of `first` to `last` is in the set."""
        if first <= self._packed_end:
            self.unpack_from(first)
        at = bisect_right(self.starts, last)
        return at > 0 and self.ends[at - 1] > first

    def add(self, first: int, last: int) -> None:
        """Adds a run; none of its blocks may be in the set."""
        if first <= self._packed_end:
            self.unpack_from(first)
        starts, ends = self.starts, self.ends
        end = last + 1
        at = bisect_right(starts, first)
        end_before = ends[at - 1] if at else -1
        start_after = starts[at] if at < len(starts) else END
        if end_before > first or start_after < end:
            raise ValueError(f"blocks {first} to {last} are taken in part")
        if not 0 < first <= last < END - 1:
            raise ValueError(f"{first} to {last} are no blocks")
        if end_before == first and start_after == end:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif end_before == first:
            ends[at - 1] = end
        elif start_after == end:
            starts[at] = first
        else:
            starts.insert(at, first)
            ends.insert(at, end)

    def remove(self, first: int, last: int) -> None:
        """Removes a run; all of its blocks must be in the set."""
        if first <= self._packed_end:
            self.unpack_from(first)
        starts, ends = self.starts, self.ends
        end = last + 1
        at = bisect_right(starts, first) - 1
        if at < 0 or ends[at] < end:
            raise ValueError(f"blocks {first} to {last} are not all taken")
        start, old_end = starts[at], ends[at]
        if start == first and old_end == end:
            del starts[at], ends[at]
        elif start == first:
            starts[at] = end
        elif old_end == end:
            ends[at] = first
        else:
            ends[at] = first
            starts.insert(at + 1, end)
            ends.insert(at + 1, old_end)

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The set's runs in `[start, end)`, as `(start, end)`, cut to it, ascending."""
        if start <= self._packed_end:
            self.unpack_from(start)
        starts, ends = self.starts, self.ends
        at = bisect_right(ends, start)
        while at < len(starts) and starts[at] < end:
            yield max(starts[at], start), min(ends[at], end)
            at += 1

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of `[start, end)` is not in the set, as `(start, end)`, ascending."""
        for taken_start, taken_end in self.between(start, end):
            if start < taken_start:
                yield start, taken_start
            start = taken_end
        if start < end:
            yield start, end


def _halves(packed: bytes) -> tuple[bytes, bytes]:
    return packed[: len(packed) // 2], packed[len(packed) // 2 :]


def block_numbers(runs: Sequence[Run]) -> list[int]:
    """Every block of the runs."""
    if len(runs) == 1:
        first, last = runs[0]
        return list(range(first, last + 1))
    return [block for first, last in runs for block in range(first, last + 1)]


def runs_from_numbers(blocks: Iterable[int]) -> list[Run]:
    """Ascending blocks as runs."""
    runs: list[Run] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
