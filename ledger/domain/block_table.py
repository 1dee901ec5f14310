"""What is known of each block: its creation time, log position, content digest, and what it grants per executor."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import accumulate

from ledger.events import Run

from .blocks import END

CHUNK = 512


class Chunk:
    """`CHUNK` consecutive blocks: when each was made, where it was recorded, what it grants per executor."""

    __slots__ = ("created_at_ns", "digests", "positions", "sums", "units_ns")

    def __init__(self) -> None:
        self.created_at_ns = array("q", [-1]) * CHUNK
        self.positions = array("q", [0]) * CHUNK
        self.digests = bytearray(16 * CHUNK)
        self.units_ns = array("q", [0]) * CHUNK
        self.sums = array("q", [0]) * (CHUNK + 1)

    def rebuild_sums(self) -> None:
        """Brings the running sums up to date with the units."""
        self.sums = array("q", accumulate(self.units_ns, initial=0))

    def fix(self, offset: int, unit_ns: int) -> None:
        """Sets a block's unit, of which there was none; after it there mostly is none either."""
        self.units_ns[offset] = unit_ns
        sums = self.sums
        if sums[offset] == sums[CHUNK]:
            sums[offset + 1 :] = array("q", [sums[offset] + unit_ns]) * (CHUNK - offset)
        else:
            self.rebuild_sums()


class PrefixSums(dict[int, int]):
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
        self.sums_before_ns = PrefixSums(self.chunks, self.chunk_numbers, self.before_ns)

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
            self._rebuild_sums_from(number)
        chunk.created_at_ns[offset] = created_at_ns
        chunk.positions[offset] = position
        chunk.digests[16 * offset : 16 * offset + 16] = digest
        self.newest = max(self.newest, block)

    def take(self, number: int, chunk: Chunk) -> None:
        """Takes a whole chunk beyond those that are there."""
        chunk.rebuild_sums()
        self.chunks[number] = chunk
        self.chunk_numbers.append(number)
        self._rebuild_sums_from(number)

    def finalize(self, block: int, unit_ns: int) -> None:
        """Fixes what the block grants per executor."""
        number, offset = divmod(block, CHUNK)
        self.chunks[number].fix(offset, unit_ns)
        self._rebuild_sums_from(number)
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

    def _rebuild_sums_from(self, number: int) -> None:
        """Brings the sums before the chunks after this one up to date."""
        at = bisect_left(self.chunk_numbers, number)
        totals = [self.chunks[each].sums[CHUNK] for each in self.chunk_numbers[at:]]
        before_ns = self.before_ns[at - 1] + self.chunks[self.chunk_numbers[at - 1]].sums[CHUNK] if at else 0
        self.before_ns[at:] = accumulate(totals[:-1], initial=before_ns)
        self.sums_before_ns.clear()
