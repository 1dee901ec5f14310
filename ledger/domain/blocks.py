"""Sets of blocks and step functions over blocks; their cost depends on the number of runs, not of blocks.

Blocks are numbered from 1. The end of a range is exclusive, unless its name is `last`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from ledger.events import Run

END = 2**63
"""Above every block number."""
NEWEST_RUNS = 32
"""Unpack this many of the newest runs; fall back to all."""


class StepFunction:
    """A piecewise constant function from block to integer; initially 0 everywhere.

    The value on `[starts[i], starts[i + 1])` is `values[i]`, and the last value holds for ever.
    """

    __slots__ = ("starts", "values")

    def __init__(self) -> None:
        self.starts = [0]
        self.values = [0]

    def at(self, block: int) -> int:
        """Return the value at the block."""
        starts = self.starts
        # Most calls ask for a block after the last change, which needs no search.
        return self.values[-1 if block >= starts[-1] else bisect_right(starts, block) - 1]

    def assign(self, start: int, end: int, value: int) -> None:
        """Set the value on `[start, end)` and merge adjacent equal steps.

        Merging makes equal functions have equal lists, whatever the order of the assignments; snapshots rely on it.
        """
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
    """A set of blocks, stored as ascending runs that neither touch nor overlap.

    The oldest runs of a set from a snapshot stay packed as bytes until an operation needs them.
    """

    __slots__ = ("_packed", "_packed_end", "ends", "starts")

    starts: list[int]
    """The starts of the unpacked runs. Call `unpack_from` before reading this list directly."""
    ends: list[int]
    """The exclusive end of each unpacked run."""

    def __init__(self, starts: list[int] | None = None, ends: list[int] | None = None) -> None:
        self.starts = starts or []
        self.ends = ends or []
        self._packed = b""
        """The runs before the unpacked ones: a typecode, all starts, all ends; empty if all runs are unpacked."""
        self._packed_end = -1
        """The end of the last packed run: -1 if none is packed, `END` if all are."""

    @classmethod
    def from_bytes(cls, packed: bytes) -> BlockSet:
        """Return the set that `to_bytes` encoded; raise `ValueError` for other bytes.

        Runs are unpacked only when an operation needs them: an old ledger has hundreds of thousands of runs, and
        nearly all operations concern the newest.
        """
        typecode = packed[:1].decode()
        if typecode not in ("I", "q") or (len(packed) - 1) % (2 * array(typecode).itemsize):
            raise ValueError("these bytes do not encode a set of blocks")
        block_set = cls()
        block_set._packed = packed
        block_set._packed_end = END
        return block_set

    def to_bytes(self) -> bytes:
        """Return the set as bytes; equal sets have equal bytes, whatever parts of them are unpacked."""
        if self._packed_end == END:
            return self._packed
        # Real block numbers fit into 32 bits, which halves the snapshot. The last run decides for the whole set. Both
        # types are native; `byte_order` makes them portable.
        typecode = "I" if not self.ends or self.ends[-1] < 2**32 else "q"
        if self._packed and self._packed[:1].decode() != typecode:
            self.unpack_from(0)
            return self.to_bytes()
        packed_starts, packed_ends = _halves(self._packed[1:])
        starts, ends = (array(typecode, each).tobytes() for each in (self.starts, self.ends))
        return b"".join((typecode.encode(), packed_starts, starts, packed_ends, ends))

    def unpack_from(self, block: int) -> None:
        """Unpack all runs that a read or a change at `block` or above can concern.

        Must not be called for an older block during an iteration over the runs: it inserts runs at the front.
        """
        # A run that ends exactly at `block` is unpacked too, because a run that is added there merges with it.
        if block > self._packed_end or not self._packed:
            return
        typecode = self._packed[:1].decode()
        starts, ends = _halves(self._packed[1:])
        size = array(typecode).itemsize
        # The bytes of the runs that stay packed, in either half, and the end of the last of them.
        older = len(ends) - NEWEST_RUNS * size
        older_end = array(typecode, ends[older - size : older])[0] if older > 0 else block
        if block > older_end:
            self._packed, self._packed_end = self._packed[:1] + starts[:older] + ends[:older], older_end
            starts, ends = starts[older:], ends[older:]
        else:
            self._packed, self._packed_end = b"", -1
        self.starts[:0], self.ends[:0] = array(typecode, starts), array(typecode, ends)

    def copy(self) -> BlockSet:
        """Return an independent set with the same blocks."""
        copy = BlockSet(self.starts.copy(), self.ends.copy())
        copy._packed, copy._packed_end = self._packed, self._packed_end
        return copy

    def overlaps(self, first: int, last: int) -> bool:
        """Return whether any block of `first` to `last` is in the set."""
        # The comparison repeats the guard of `unpack_from`, because it is cheaper than the call; so do those below.
        if first <= self._packed_end:
            self.unpack_from(first)
        index = bisect_right(self.starts, last)
        return index > 0 and self.ends[index - 1] > first

    def add(self, first: int, last: int) -> None:
        """Add a run; raise `ValueError` if any of its blocks is in the set.

        Every fold adds taken blocks here, so no fold accepts a log in which two reservations share a block.
        """
        if first <= self._packed_end:
            self.unpack_from(first)
        starts, ends = self.starts, self.ends
        end = last + 1
        index = bisect_right(starts, first)
        end_before = ends[index - 1] if index else -1
        start_after = starts[index] if index < len(starts) else END
        if end_before > first or start_after < end:
            raise ValueError(f"some of the blocks {first} to {last} are taken already")
        # Checked before merging: -1 and `END` stand for missing neighbours and would merge with such a run.
        if not 0 < first <= last < END - 1:
            raise ValueError(f"{first} to {last} are not block numbers")
        if end_before == first and start_after == end:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif end_before == first:
            ends[index - 1] = end
        elif start_after == end:
            starts[index] = first
        else:
            starts.insert(index, first)
            ends.insert(index, end)

    def remove(self, first: int, last: int) -> None:
        """Remove a run; raise `ValueError` if any of its blocks is not in the set."""
        if first <= self._packed_end:
            self.unpack_from(first)
        starts, ends = self.starts, self.ends
        end = last + 1
        index = bisect_right(starts, first) - 1
        if index < 0 or ends[index] < end:
            raise ValueError(f"some of the blocks {first} to {last} are not taken")
        start, old_end = starts[index], ends[index]
        if start == first and old_end == end:
            del starts[index], ends[index]
        elif start == first:
            starts[index] = end
        elif old_end == end:
            ends[index] = first
        else:
            ends[index] = first
            starts.insert(index + 1, end)
            ends.insert(index + 1, old_end)

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the set's runs, clipped to `[start, end)`, as ascending `(start, end)`."""
        if start <= self._packed_end:
            self.unpack_from(start)
        starts, ends = self.starts, self.ends
        index = bisect_right(ends, start)
        while index < len(starts) and starts[index] < end:
            yield max(starts[index], start), min(ends[index], end)
            index += 1

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of `[start, end)` that are not in the set, as ascending `(start, end)`."""
        for run_start, run_end in self.between(start, end):
            if start < run_start:
                yield start, run_start
            start = run_end
        if start < end:
            yield start, end


def _halves(packed: bytes) -> tuple[bytes, bytes]:
    return packed[: len(packed) // 2], packed[len(packed) // 2 :]


def block_numbers(runs: Sequence[Run]) -> list[int]:
    """Return every block of the runs, in their order."""
    # Nearly every reservation is one run, for which `list(range(…))` is faster than a comprehension.
    if len(runs) == 1:
        first, last = runs[0]
        return list(range(first, last + 1))
    return [block for first, last in runs for block in range(first, last + 1)]


def runs_from_numbers(blocks: Iterable[int]) -> list[Run]:
    """Return ascending blocks as runs."""
    runs: list[Run] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
