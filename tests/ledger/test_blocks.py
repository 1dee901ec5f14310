"""Block sets, step functions and prefix sums, compared with plain sets and loops."""

from __future__ import annotations

import gc
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import BlockSet, StepFunction, block_numbers
from ledger.domain.block_table import CHUNK, BlockTable
from ledger.domain.blocks import END, runs_from_numbers

blocks = st.integers(1, 60)
runs = st.tuples(blocks, st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(st.tuples(runs, st.booleans()), max_size=40), runs)
def test_a_block_set_equals_a_set(changes: list[tuple[tuple[int, int], bool]], window: tuple[int, int]) -> None:
    """Adding and removing runs gives the same blocks as a plain set; runs that overlap or are missing are refused."""
    block_set = BlockSet()
    expected: set[int] = set()
    for (first, last), adding in changes:
        run = set(range(first, last + 1))
        possible = not (run & expected) if adding else run <= expected
        change = block_set.add if adding else block_set.remove
        if possible:
            change(first, last)
            expected = expected | run if adding else expected - run
        else:
            with pytest.raises(ValueError, match="taken"):
                change(first, last)
    start, end = window[0], window[1] + 1
    inside = [block for each in block_set.between(start, end) for block in range(*each)]
    outside = [block for each in block_set.gaps(start, end) for block in range(*each)]
    assert inside == sorted(expected & set(range(start, end)))
    assert outside == sorted(set(range(start, end)) - expected)
    assert block_set.overlaps(*window) == bool(inside)
    assert all(end_of < start_of for end_of, start_of in zip(block_set.ends, block_set.starts[1:], strict=False))


@given(st.lists(st.integers(1, 3), max_size=20), st.sampled_from((1, 2**32 - 8, 2**32, 2**63 - 100)), st.booleans())
def test_packing_and_unpacking_preserve_a_block_set(lengths: list[int], first: int, before: bool) -> None:
    """A set that was packed has the same runs and bytes, and can be changed like the original.

    Includes blocks beyond 32 bits, and sets that end just below and just above.
    """
    original = BlockSet()
    for length in lengths:
        original.add(first, first + length - 1)
        first += length + 1
    packed = original.to_bytes()
    restored = BlockSet.from_bytes(packed)
    if before:
        assert restored.to_bytes() == packed
    restored.unpack_from(0)
    assert (restored.starts, restored.ends) == (original.starts, original.ends)
    assert restored.to_bytes() == packed
    restored.add(first, first)
    assert restored.ends == [*original.ends, first + 1]
    assert original.to_bytes() == packed


@pytest.mark.parametrize("seed", range(200))
def test_a_partly_unpacked_block_set_equals_a_set(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever runs are unpacked, all operations give the same results as on a plain set.

    Catches: runs that are still packed when a change or a read concerns or touches them, and bytes that depend on which
    runs are unpacked; also across 32 bits.
    """
    random = Random(seed)
    monkeypatch.setattr("ledger.domain.blocks.NEWEST_RUNS", random.randint(1, 3))
    beyond = random.choice((0, 2**32 - 30))
    block_set, expected = BlockSet(), set[int]()
    for _ in range(150):
        first = beyond + random.randint(1, 60)
        last = first + random.choice((0, 0, 1, 2, 5))
        run = set(range(first, last + 1))
        step = random.choice(("pack", "copy", "overlaps", "between", *("add", "remove") * 4))
        if step == "pack":
            plain = BlockSet()
            for each in runs_from_numbers(sorted(expected)):
                plain.add(*each)
            assert block_set.to_bytes() == plain.to_bytes()
            block_set = BlockSet.from_bytes(block_set.to_bytes())
        elif step == "copy":
            copied, block_set = block_set, block_set.copy()
            copied.unpack_from(0)
        elif step == "overlaps":
            assert block_set.overlaps(first, last) == bool(run & expected)
        elif step == "between":
            inside = [block for each in block_set.between(first, last + 1) for block in range(*each)]
            assert inside == sorted(run & expected)
        elif not (run & expected) if step == "add" else run <= expected:
            getattr(block_set, step)(first, last)
            expected = expected | run if step == "add" else expected - run
        else:
            with pytest.raises(ValueError, match="taken"):
                getattr(block_set, step)(first, last)


def test_a_step_begins_at_its_start() -> None:
    """Just before a change the old value holds, at it and for ever after the last one the new value."""
    steps = StepFunction()
    steps.assign(5, END, 2)
    steps.assign(9, END, 3)
    assert [steps.at(block) for block in (0, 4, 5, 8, 9, 10, END - 1)] == [0, 0, 2, 2, 3, 3, 3]


def test_a_run_across_32_bits_is_packed_with_64_bits() -> None:
    """The end of the last run decides the width, not its start."""
    block_set = BlockSet()
    block_set.add(2**32 - 3, 2**32 + 3)
    assert list(BlockSet.from_bytes(block_set.to_bytes()).between(1, END)) == [(2**32 - 3, 2**32 + 4)]


@pytest.mark.parametrize("run", [(0, 1), (-1, 1), (5, 4), (7, 2**63 - 1), (2**63, 2**63)])
def test_impossible_block_numbers_are_refused(run: tuple[int, int]) -> None:
    """Such a run is refused with or without neighbours, and the set is unchanged.

    Catches: treating the markers for missing neighbours as neighbours, which merges the run with the last one.
    """
    for block_set in (BlockSet(), BlockSet([3], [4])):
        before = block_set.to_bytes()
        with pytest.raises(ValueError, match=r"not block numbers|taken already"):
            block_set.add(*run)
        assert block_set.to_bytes() == before


@pytest.mark.parametrize("other", [b"", b"x", b"I" + bytes(4), b"q" + bytes(8), b"q" + bytes(17), b"\xff"])
def test_bytes_of_no_block_set_are_refused(other: bytes) -> None:
    """`from_bytes` raises at once, not only when the set is first used."""
    with pytest.raises(ValueError, match=r"set of blocks|decode"):
        BlockSet.from_bytes(other)


@given(st.lists(st.tuples(blocks, st.one_of(st.just(END), st.integers(1, 20)), st.integers(0, 3)), max_size=30))
def test_a_step_function_equals_a_list_of_values(assignments: list[tuple[int, int, int]]) -> None:
    """Assigning ranges gives the same values as a loop over every block, in the fewest possible steps."""
    steps = StepFunction()
    expected = [0] * 200
    for start, length, value in assignments:
        end = END if length == END else start + length
        steps.assign(start, end, value)
        expected[start : min(end, 200)] = [value] * (min(end, 200) - start)
    assert [steps.at(block) for block in range(200)] == expected
    assert steps.starts[0] == 0
    assert all(one != other for one, other in zip(steps.values, steps.values[1:], strict=False))


@given(
    st.dictionaries(
        st.one_of(st.integers(1, 40), st.integers(CHUNK - 5, CHUNK + 5), st.integers(10**9, 10**9 + 5)),
        st.integers(0, 5),
        max_size=40,
    ),
    st.data(),
)
def test_prefix_sums_equal_those_of_a_loop(units: dict[int, int], data: st.DataObject) -> None:
    """Sums, the first block that reaches a sum, and granted runs are right for any order of arrival and any gaps."""
    table = BlockTable()
    for block in data.draw(st.permutations(sorted(units))):
        table.record(block, 1, 1, bytes(16))
        table.finalize(block, units[block])
    for asked in sorted({1, 2, *units, *(block + 1 for block in units), 10**10}):
        assert table.sum_before_ns(asked) == sum(unit for block, unit in units.items() if block < asked)
    for target in range(1, sum(units.values()) + 1):
        reached = table.end_reaching(target)
        assert table.sum_before_ns(reached) >= target > table.sum_before_ns(reached - 1)
    assert block_numbers(table.granted_runs(1, 10**10)) == sorted(block for block, unit in units.items() if unit)
    assert list(table.recorded_blocks()) == sorted(units)


@given(st.sets(blocks))
def test_runs_list_every_block_once(some: set[int]) -> None:
    """Converting blocks to runs and back gives the same blocks."""
    assert block_numbers(runs_from_numbers(sorted(some))) == sorted(some)


def test_a_discarded_block_table_is_freed_at_once() -> None:
    """Its arrays do not wait for the garbage collector. Catches: a reference cycle through the cached sums."""
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(each, BlockTable) for each in gc.get_objects())
        table = BlockTable()
        assert table.sum_before_ns(5) == 0
        del table
        assert sum(isinstance(each, BlockTable) for each in gc.get_objects()) == before
    finally:
        gc.enable()
