"""Sets of blocks and functions over blocks, kept as runs: what costs is how often they change, not how far they reach.

Blocks are counted from 1; ends of ranges are exclusive unless a name says `last`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from .events import Run

END = 2**63
"""Beyond every block."""
CHUNK = 512
NEWEST_RUNS = 32
"""Of those that are packed still, so many are unpacked; where that does not reach far enough, all are."""


class Steps:
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


class RunSet:
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
    def from_bytes(cls, packed: bytes) -> RunSet:
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
            self.look_at(0)
            return self.to_bytes()
        packed_starts, packed_ends = _halves(self._packed[1:])
        starts, ends = (array(typecode, each).tobytes() for each in (self.starts, self.ends))
        return b"".join((typecode.encode(), packed_starts, starts, packed_ends, ends))

    def look_at(self, block: int) -> None:
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

    def copy(self) -> RunSet:
        """A set of its own with the same blocks."""
        copy = RunSet(self.starts.copy(), self.ends.copy())
        copy._packed, copy._packed_end = self._packed, self._packed_end
        return copy

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any block of `first` to `last` is in the set."""
        if first <= self._packed_end:
            self.look_at(first)
        at = bisect_right(self.starts, last)
        return at > 0 and self.ends[at - 1] > first

    def add(self, first: int, last: int) -> None:
        """Adds a run; none of its blocks may be in the set."""
        if first <= self._packed_end:
            self.look_at(first)
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
            self.look_at(first)
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
            self.look_at(start)
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


class Chunk:
    """`CHUNK` consecutive blocks: when each was made, where it was recorded, what it grants per executor."""

    __slots__ = ("created_at_ns", "digests", "positions", "sums", "units_ns")

    def __init__(self) -> None:
        self.created_at_ns = array("q", [-1]) * CHUNK
        self.positions = array("q", [0]) * CHUNK
        self.digests = bytearray(16 * CHUNK)
        self.units_ns = array("q", [0]) * CHUNK
        self.sums = array("q", [0]) * (CHUNK + 1)

    def sum_up(self) -> None:
        """Brings the running sums up to date with the units."""
        self.sums = array("q", accumulate(self.units_ns, initial=0))

    def fix(self, offset: int, unit_ns: int) -> None:
        """Sets a block's unit, of which there was none; after it there mostly is none either."""
        self.units_ns[offset] = unit_ns
        sums = self.sums
        if sums[offset] == sums[CHUNK]:
            sums[offset + 1 :] = array("q", [sums[offset] + unit_ns]) * (CHUNK - offset)
        else:
            self.sum_up()


class SumsBefore(dict[int, int]):
    """By block, the sum of the units of all blocks below it, in ns; worked out where it is first asked for."""

    __slots__ = ("_before_ns", "_chunk_numbers", "_chunks")

    def __init__(self, chunks: dict[int, Chunk], chunk_numbers: list[int], before_ns: list[int]) -> None:
        # The table's parts and not the table: with a cycle in it, a state that is let go of would not be freed at once.
        super().__init__()
        self._chunks = chunks
        self._chunk_numbers = chunk_numbers
        self._before_ns = before_ns

    def __missing__(self, block: int) -> int:
        sum_ns = self[block] = self._work_out(block)
        return sum_ns

    def _work_out(self, block: int) -> int:
        number, offset = divmod(block, CHUNK)
        at = bisect_right(self._chunk_numbers, number) - 1
        if at < 0:
            return 0
        below = self._chunk_numbers[at]
        return self._before_ns[at] + self._chunks[below].sums[offset if below == number else CHUNK]


class BlockTable:
    """Per block: its creation time, log position, content digest, and unit (what it grants per executor, ns).

    Kept in chunks, so that a hole costs nothing, a late block costs one chunk, and sums over any range of
    blocks cost two look-ups.
    """

    __slots__ = (
        "before_ns",
        "chunk_numbers",
        "chunks",
        "first_finalized",
        "last_finalized",
        "newest",
        "sums_before_ns",
    )

    def __init__(self) -> None:
        self.chunks: dict[int, Chunk] = {}
        self.chunk_numbers: list[int] = []
        self.before_ns: list[int] = []
        self.newest = 0
        self.first_finalized = END
        self.last_finalized = 0
        self.sums_before_ns = SumsBefore(self.chunks, self.chunk_numbers, self.before_ns)

    def __contains__(self, block: int) -> bool:
        return self.created_at_ns(block) >= 0

    def created_at_ns(self, block: int) -> int:
        """When the block was made; -1 for one that is not known."""
        chunk = self.chunks.get(block // CHUNK)
        return chunk.created_at_ns[block % CHUNK] if chunk else -1

    def position(self, block: int) -> int:
        """Where a known block was recorded."""
        return self.chunks[block // CHUNK].positions[block % CHUNK]

    def digest(self, block: int) -> bytes:
        """A known block's content digest, 16 bytes."""
        at = 16 * (block % CHUNK)
        return bytes(self.chunks[block // CHUNK].digests[at : at + 16])

    def unit_ns(self, block: int) -> int:
        """What the block grants per executor; 0 where it is not finalized or grants nothing."""
        chunk = self.chunks.get(block // CHUNK)
        return chunk.units_ns[block % CHUNK] if chunk else 0

    def add(self, block: int, created_at_ns: int, position: int, digest: bytes) -> None:
        """Makes the block known."""
        number, offset = divmod(block, CHUNK)
        chunk = self.chunks.get(number)
        if chunk is None:
            chunk = self.chunks[number] = Chunk()
            insort(self.chunk_numbers, number)
            self._sum_up_from(number)
        chunk.created_at_ns[offset] = created_at_ns
        chunk.positions[offset] = position
        chunk.digests[16 * offset : 16 * offset + 16] = digest
        self.newest = max(self.newest, block)

    def take(self, number: int, chunk: Chunk) -> None:
        """Takes a whole chunk beyond those that are there."""
        chunk.sum_up()
        self.chunks[number] = chunk
        self.chunk_numbers.append(number)
        self._sum_up_from(number)

    def finalize(self, block: int, unit_ns: int) -> None:
        """Fixes what the block grants per executor."""
        number, offset = divmod(block, CHUNK)
        self.chunks[number].fix(offset, unit_ns)
        self._sum_up_from(number)
        self.first_finalized = min(self.first_finalized, block)
        self.last_finalized = max(self.last_finalized, block)

    def sum_before_ns(self, block: int) -> int:
        """The sum of the units of all blocks below this one."""
        return self.sums_before_ns[block]

    def reach(self, target_ns: int) -> int:
        """The least `block` with `sum_before_ns(block) >= target_ns`; the sum of all units must reach it."""
        at = bisect_left(self.before_ns, target_ns) - 1
        number = self.chunk_numbers[at]
        return number * CHUNK + bisect_left(self.chunks[number].sums, target_ns - self.before_ns[at])

    def granted_runs(self, start: int, end: int) -> list[Run]:
        """The blocks of `[start, end)` with a unit above 0, as runs, ascending."""
        chunk = self.chunks.get(start // CHUNK)
        offset = start % CHUNK
        if (
            chunk
            and start < end
            and offset + end - start <= CHUNK
            and 0 not in chunk.units_ns[offset : offset + end - start]
        ):
            return [(start, end - 1)]  # Nearly always: told at once, not block by block.
        runs: list[Run] = []
        first = last = -2
        for block in self._granted(start, end):
            if block != last + 1:
                if last >= 0:
                    runs.append((first, last))
                first = block
            last = block
        if last >= 0:
            runs.append((first, last))
        return runs

    def known(self) -> Iterator[int]:
        """All known blocks, ascending."""
        for number in self.chunk_numbers:
            for offset, created_at_ns in enumerate(self.chunks[number].created_at_ns):
                if created_at_ns >= 0:
                    yield number * CHUNK + offset

    def _granted(self, start: int, end: int) -> Iterator[int]:
        if start >= end:
            return
        first = bisect_left(self.chunk_numbers, start // CHUNK)
        for number in self.chunk_numbers[first:]:
            base = number * CHUNK
            if base >= end:
                return
            units_ns = self.chunks[number].units_ns
            for offset in range(max(start - base, 0), min(end - base, CHUNK)):
                if units_ns[offset]:
                    yield base + offset

    def _sum_up_from(self, number: int) -> None:
        """Brings the sums before the chunks after this one up to date."""
        at = bisect_left(self.chunk_numbers, number)
        totals = [self.chunks[each].sums[CHUNK] for each in self.chunk_numbers[at:]]
        before_ns = self.before_ns[at - 1] + self.chunks[self.chunk_numbers[at - 1]].sums[CHUNK] if at else 0
        self.before_ns[at:] = accumulate(totals[:-1], initial=before_ns)
        self.sums_before_ns.clear()


def numbers(runs: Sequence[Run]) -> list[int]:
    """Every block of the runs."""
    if len(runs) == 1:
        first, last = runs[0]
        return list(range(first, last + 1))
    return [block for first, last in runs for block in range(first, last + 1)]


def runs_of(blocks: Iterable[int]) -> list[Run]:
    """Ascending blocks as runs."""
    runs: list[Run] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs
