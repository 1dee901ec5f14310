"""The recorded blocks: creation time, log position, content digest, and the amount that each grants per executor."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import accumulate

from ledger.events import Run

from .blocks import END

CHUNK = 512
"""Blocks per chunk (this project's choice): a late block recomputes the sums of one chunk, and one per later chunk."""
HASH_BYTES = 32
HASH_CELL = 1 + HASH_BYTES
"""The bytes of a block in the column of hashes; the first says whether there is a hash, since any hash may occur."""


class Chunk:
    """`CHUNK` consecutive blocks as arrays, 40 bytes a block, so that no block ever has to be forgotten.

    `created_at_ns` is -1 for a block that is not recorded. `units_ns` is what a block grants per executor.
    `sums[i]` is the sum of the first `i` units. `digests` has 16 bytes per block. `hashes` has `HASH_CELL` bytes per
    block: 1 and the chain's hash of the block, or zeros for a block without one. It is empty if no block has one, so
    that a ledger without hashes pays nothing for them.
    """

    __slots__ = ("created_at_ns", "digests", "hashes", "positions", "sums", "units_ns")

    def __init__(self) -> None:
        self.created_at_ns = array("q", [-1]) * CHUNK
        self.positions = array("q", [0]) * CHUNK
        self.digests = bytearray(16 * CHUNK)
        self.hashes = bytearray()
        self.units_ns = array("q", [0]) * CHUNK
        self.sums = array("q", [0]) * (CHUNK + 1)

    def block_hash(self, offset: int) -> bytes:
        """Return the hash of a block; empty if it has none."""
        cell = self.hashes[HASH_CELL * offset : HASH_CELL * (offset + 1)]
        return bytes(cell[1:]) if any(cell) else b""

    def set_block_hash(self, offset: int, block_hash: bytes) -> None:
        """Set the hash of a block, or remove it if it is empty."""
        if block_hash and not self.hashes:
            self.hashes = bytearray(HASH_CELL * CHUNK)
        if self.hashes:
            cell = b"\x01" + block_hash if block_hash else bytes(HASH_CELL)
            self.hashes[HASH_CELL * offset : HASH_CELL * (offset + 1)] = cell
        # Equal states have equal bytes, so a column that a withdrawal left without a hash goes.
        if not block_hash and not any(self.hashes):
            self.hashes = bytearray()

    def rebuild_sums(self) -> None:
        """Recompute the prefix sums from the units."""
        self.sums = array("q", accumulate(self.units_ns, initial=0))

    def set_unit(self, offset: int, unit_ns: int) -> None:
        """Set the unit of a block that had none, and update the prefix sums."""
        self.units_ns[offset] = unit_ns
        sums = self.sums
        # Blocks are mostly finalized in ascending order. Then no later block has a unit, and all later sums are equal.
        if sums[offset] == sums[CHUNK]:
            sums[offset + 1 :] = array("q", [sums[offset] + unit_ns]) * (CHUNK - offset)
        else:
            self.rebuild_sums()


class PrefixSums(dict[int, int]):
    """A cache of prefix sums: maps a block to the sum of the units of all blocks below it, in ns.

    A dict, because reading an entry that is there calls no Python function, and measuring accounts reads the same
    few blocks thousands of times.
    """

    __slots__ = ("_before_ns", "_chunk_numbers", "_chunks")

    def __init__(self, chunks: dict[int, Chunk], chunk_numbers: list[int], before_ns: list[int]) -> None:
        # References to the table's parts, not to the table: a reference cycle would keep the arrays of a discarded
        # state in memory until the garbage collector runs.
        super().__init__()
        self._chunks = chunks
        self._chunk_numbers = chunk_numbers
        self._before_ns = before_ns

    def __missing__(self, block: int) -> int:
        sum_ns = self[block] = self._compute(block)
        return sum_ns

    def _compute(self, block: int) -> int:
        number, offset = divmod(block, CHUNK)
        index = bisect_right(self._chunk_numbers, number) - 1
        if index < 0:
            return 0
        nearest = self._chunk_numbers[index]
        # If the block's own chunk does not exist, the whole of the nearest chunk below it counts.
        return self._before_ns[index] + self._chunks[nearest].sums[offset if nearest == number else CHUNK]


class BlockTable:
    """The recorded blocks, each with its creation time, log position, content digest and unit.

    The unit is the amount in ns that a finalized block grants per executor. Blocks are stored in chunks, so that a
    gap costs nothing, a late block changes the sums of one chunk, and the sum over any range takes two look-ups.
    """

    __slots__ = (
        "before_ns",
        "chunk_numbers",
        "chunks",
        "first",
        "first_finalized",
        "last_finalized",
        "newest",
        "sums_before_ns",
    )

    def __init__(self) -> None:
        self.chunks: dict[int, Chunk] = {}
        self.chunk_numbers: list[int] = []
        """The numbers of the existing chunks, ascending."""
        self.before_ns: list[int] = []
        """The sum of all units before each of these chunks."""
        self.newest = 0
        self.first = END
        """The lowest recorded block."""
        self.first_finalized = END
        self.last_finalized = 0
        self.sums_before_ns = PrefixSums(self.chunks, self.chunk_numbers, self.before_ns)

    def __contains__(self, block: int) -> bool:
        return self.created_at_ns(block) >= 0

    def created_at_ns(self, block: int) -> int:
        """Return the block's creation time; -1 if it is not recorded."""
        chunk = self.chunks.get(block // CHUNK)
        return chunk.created_at_ns[block % CHUNK] if chunk else -1

    def position(self, block: int) -> int:
        """Return the log position of a recorded block."""
        return self.chunks[block // CHUNK].positions[block % CHUNK]

    def digest(self, block: int) -> bytes:
        """Return the content digest of a recorded block, 16 bytes."""
        start = 16 * (block % CHUNK)
        return bytes(self.chunks[block // CHUNK].digests[start : start + 16])

    def block_hash(self, block: int) -> bytes:
        """Return the chain's hash of a block, 32 bytes; empty if it is not recorded or was recorded without one."""
        chunk = self.chunks.get(block // CHUNK)
        return chunk.block_hash(block % CHUNK) if chunk and chunk.hashes else b""

    def unit_ns(self, block: int) -> int:
        """Return the amount that the block grants per executor; 0 if it is not finalized or grants nothing."""
        chunk = self.chunks.get(block // CHUNK)
        return chunk.units_ns[block % CHUNK] if chunk else 0

    def record(self, block: int, created_at_ns: int, position: int, digest: bytes, block_hash: bytes = b"") -> None:
        """Insert a block that grants nothing yet."""
        number, offset = divmod(block, CHUNK)
        chunk = self.chunks.get(number)
        if chunk is None:
            chunk = self.chunks[number] = Chunk()
            insort(self.chunk_numbers, number)
            self._rebuild_sums_from(number)
        chunk.created_at_ns[offset] = created_at_ns
        chunk.positions[offset] = position
        chunk.digests[16 * offset : 16 * offset + 16] = digest
        if block_hash:
            chunk.set_block_hash(offset, block_hash)
        self.newest = max(self.newest, block)
        self.first = min(self.first, block)

    def forget(self, block: int) -> None:
        """Remove a recorded block, and what its predecessor grants: that lasted until this block."""
        chunk, offset = self.chunks[block // CHUNK], block % CHUNK
        for each in (block - 1, block):
            self._reset_unit(each)
        chunk.created_at_ns[offset], chunk.positions[offset] = -1, 0
        chunk.digests[16 * offset : 16 * offset + 16] = bytes(16)
        chunk.set_block_hash(offset, b"")
        self.newest, self.first = self.highest_below(END), next(self.recorded_blocks(), END)
        self.first_finalized, self.last_finalized = self._lowest_finalized(), self._highest_finalized()

    def next_recorded(self, block: int) -> int:
        """Return the lowest recorded block above this one; `END` if there is none."""
        first = bisect_left(self.chunk_numbers, (block + 1) // CHUNK)
        for number in self.chunk_numbers[first:]:
            times_ns = self.chunks[number].created_at_ns
            for offset in range(max(block + 1 - number * CHUNK, 0), CHUNK):
                if times_ns[offset] >= 0:
                    return number * CHUNK + offset
        return END

    def load_chunk(self, number: int, chunk: Chunk) -> None:
        """Append a whole chunk from a snapshot; its number must be above those of all existing chunks."""
        chunk.rebuild_sums()
        self.chunks[number] = chunk
        self.chunk_numbers.append(number)
        self._rebuild_sums_from(number)
        if self.first == END:
            self.first = next(self.recorded_blocks(), END)

    def finalize(self, block: int, unit_ns: int) -> None:
        """Set the unit of a recorded block, for good."""
        number, offset = divmod(block, CHUNK)
        self.chunks[number].set_unit(offset, unit_ns)
        self._rebuild_sums_from(number)
        self.first_finalized = min(self.first_finalized, block)
        self.last_finalized = max(self.last_finalized, block)

    def sum_before_ns(self, block: int) -> int:
        """Return the sum of the units of all blocks below this one."""
        return self.sums_before_ns[block]

    def end_reaching(self, target_ns: int) -> int:
        """Return the end, exclusive, of the fewest oldest blocks whose units sum to at least `target_ns`.

        It is the lowest `end` with `sum_before_ns(end) >= target_ns`, so `end - 1` is the block that reaches the
        target. `target_ns` must be above 0 and at most the sum of all units.
        """
        index = bisect_left(self.before_ns, target_ns) - 1
        number = self.chunk_numbers[index]
        return number * CHUNK + bisect_left(self.chunks[number].sums, target_ns - self.before_ns[index])

    def first_granted(self, start: int) -> int:
        """Return the first block from `start` on that grants anything; `END` if there is none."""
        before_ns = self.sums_before_ns[start]
        return END if before_ns == self.sums_before_ns[END] else self.end_reaching(before_ns + 1) - 1

    def granted_runs(self, start: int, end: int) -> list[Run]:
        """Return the blocks of `[start, end)` with a unit above 0 as ascending runs.

        Blocks with a unit of 0 are no part of a claim: a grant of 0 is no grant (this project's own rule).
        """
        chunk = self.chunks.get(start // CHUNK)
        offset = start % CHUNK
        # Nearly every claim is one run within one chunk; testing it at once is faster than going block by block.
        if (
            chunk
            and start < end
            and offset + end - start <= CHUNK
            and 0 not in chunk.units_ns[offset : offset + end - start]
        ):
            return [(start, end - 1)]
        runs: list[Run] = []
        first = last = -2
        for block in self._granted_blocks(start, end):
            if block != last + 1:
                if last >= 0:
                    runs.append((first, last))
                first = block
            last = block
        if last >= 0:
            runs.append((first, last))
        return runs

    def recorded_blocks(self) -> Iterator[int]:
        """Yield all recorded blocks, ascending."""
        for number in self.chunk_numbers:
            for offset, created_at_ns in enumerate(self.chunks[number].created_at_ns):
                if created_at_ns >= 0:
                    yield number * CHUNK + offset

    def unfinalized_runs(self, first: int, last: int) -> list[Run]:
        """Return the blocks of `first` to `last` without a record of their own or of their successor, ascending."""
        runs: list[Run] = []
        start = first
        for recorded_first, recorded_last in self._recorded_runs(first, last + 1):
            # The last block of a recorded run waits for its successor, so it belongs to the gap that follows.
            if recorded_first == recorded_last:
                continue
            if start < recorded_first:
                runs.append((start, recorded_first - 1))
            start = recorded_last
        if start <= last:
            runs.append((start, last))
        return runs

    def highest_below(self, block: int) -> int:
        """Return the highest recorded block below this one; 0 if there is none."""
        return next(self._descending(block), 0)

    def _descending(self, below: int = END) -> Iterator[int]:
        """Yield the recorded blocks below one, descending."""
        for number in reversed(self.chunk_numbers):
            if number * CHUNK >= below:
                continue
            times_ns = self.chunks[number].created_at_ns
            for offset in range(min(below - number * CHUNK, CHUNK) - 1, -1, -1):
                if times_ns[offset] >= 0:
                    yield number * CHUNK + offset

    def _recorded_runs(self, first: int, last: int) -> Iterator[Run]:
        """Yield the recorded blocks of `first` to `last` as ascending runs; runs of two chunks are joined."""
        pending: Run | None = None
        begin = bisect_left(self.chunk_numbers, first // CHUNK)
        for number in self.chunk_numbers[begin : bisect_right(self.chunk_numbers, last // CHUNK)]:
            base = number * CHUNK
            low, high = max(first - base, 0), min(last - base, CHUNK - 1)
            for run in _runs_of(self.chunks[number].created_at_ns[low : high + 1], base + low):
                if pending and pending[1] + 1 == run[0]:
                    pending = pending[0], run[1]
                    continue
                if pending:
                    yield pending
                pending = run
        if pending:
            yield pending

    def _lowest_finalized(self) -> int:
        return next((block for block in self.recorded_blocks() if block + 1 in self), END)

    def _highest_finalized(self) -> int:
        return next((block for block in self._descending() if block + 1 in self), 0)

    def _reset_unit(self, block: int) -> None:
        number, offset = divmod(block, CHUNK)
        chunk = self.chunks.get(number)
        if chunk is not None and chunk.units_ns[offset]:
            chunk.units_ns[offset] = 0
            chunk.rebuild_sums()
            self._rebuild_sums_from(number)

    def _granted_blocks(self, start: int, end: int) -> Iterator[int]:
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
        """Recompute `before_ns` from this chunk on, after its sums changed."""
        index = bisect_left(self.chunk_numbers, number)
        totals = [self.chunks[each].sums[CHUNK] for each in self.chunk_numbers[index:]]
        before_ns = self.before_ns[index - 1] + self.chunks[self.chunk_numbers[index - 1]].sums[CHUNK] if index else 0
        # Assigned in place, since `sums_before_ns` refers to the same list.
        self.before_ns[index:] = accumulate(totals[:-1], initial=before_ns)
        self.sums_before_ns.clear()


def _runs_of(times_ns: array[int], first: int) -> Iterator[Run]:
    """Yield the recorded blocks among consecutive ones as runs; `first` is the block of the first time."""
    # Nearly every chunk is complete, and `in` and `index` search at the speed of C.
    start, end = 0, len(times_ns)
    while start < end:
        if times_ns[start] < 0:
            start += 1
            continue
        try:
            stop = times_ns.index(-1, start)
        except ValueError:
            stop = end
        yield first + start, first + stop - 1
        start = stop
