"""Runs, steps and sums over blocks, against sets and loops."""

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
def test_a_run_set_is_a_set_of_blocks(changes: list[tuple[tuple[int, int], bool]], window: tuple[int, int]) -> None:
    """Adding and removing whole runs gives the blocks that a set would hold, and refuses what a set would notice."""
    held = BlockSet()
    expected: set[int] = set()
    for (first, last), adding in changes:
        run = set(range(first, last + 1))
        possible = not (run & expected) if adding else run <= expected
        change = held.add if adding else held.remove
        if possible:
            change(first, last)
            expected = expected | run if adding else expected - run
        else:
            with pytest.raises(ValueError, match="taken"):
                change(first, last)
    start, end = window[0], window[1] + 1
    inside = [block for each in held.between(start, end) for block in range(*each)]
    outside = [block for each in held.gaps(start, end) for block in range(*each)]
    assert inside == sorted(expected & set(range(start, end)))
    assert outside == sorted(set(range(start, end)) - expected)
    assert held.overlaps(*window) == bool(inside)
    assert all(end_of < start_of for end_of, start_of in zip(held.ends, held.starts[1:], strict=False))


@given(st.lists(st.integers(1, 3), max_size=20), st.sampled_from((1, 2**32 - 8, 2**32, 2**63 - 100)), st.booleans())
def test_a_packed_run_set_is_the_same_set(lengths: list[int], first: int, before: bool) -> None:
    """Packed and unpacked, looked at or not, it is equal bytes, and goes on as the set that it was.

    Blocks beyond 32 bits are there, and sets that end just below and just above.
    """
    held = BlockSet()
    for length in lengths:
        held.add(first, first + length - 1)
        first += length + 1
    packed = held.to_bytes()
    again = BlockSet.from_bytes(packed)
    if before:
        assert again.to_bytes() == packed
    again.unpack_from(0)
    assert (again.starts, again.ends) == (held.starts, held.ends)
    assert again.to_bytes() == packed
    again.add(first, first)
    assert again.ends == [*held.ends, first + 1]
    assert held.to_bytes() == packed


@pytest.mark.parametrize("seed", range(200))
def test_a_set_that_is_unpacked_in_part_is_the_same_set(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it is unpacked, it takes, refuses, finds and packs what a set of blocks does.

    Catches a part that is packed still when a change or a question concerns it, or touches it, and bytes that depend
    on what was unpacked; across 32 bits too.
    """
    random = Random(seed)
    monkeypatch.setattr("ledger.domain.blocks.NEWEST_RUNS", random.randint(1, 3))
    beyond = random.choice((0, 2**32 - 30))
    held, expected = BlockSet(), set[int]()
    for _ in range(150):
        first = beyond + random.randint(1, 60)
        last = first + random.choice((0, 0, 1, 2, 5))
        run = set(range(first, last + 1))
        step = random.choice(("pack", "copy", "overlaps", "between", *("add", "remove") * 4))
        if step == "pack":
            plain = BlockSet()
            for each in runs_from_numbers(sorted(expected)):
                plain.add(*each)
            assert held.to_bytes() == plain.to_bytes()
            held = BlockSet.from_bytes(held.to_bytes())
        elif step == "copy":
            copied, held = held, held.copy()
            copied.unpack_from(0)
        elif step == "overlaps":
            assert held.overlaps(first, last) == bool(run & expected)
        elif step == "between":
            inside = [block for each in held.between(first, last + 1) for block in range(*each)]
            assert inside == sorted(run & expected)
        elif not (run & expected) if step == "add" else run <= expected:
            getattr(held, step)(first, last)
            expected = expected | run if step == "add" else expected - run
        else:
            with pytest.raises(ValueError, match="taken"):
                getattr(held, step)(first, last)


def test_a_value_is_looked_for_only_before_the_last_change() -> None:
    """Beyond it, the last value; at it, and just before it, what holds there."""
    steps = StepFunction()
    steps.assign(5, END, 2)
    steps.assign(9, END, 3)
    assert [steps.at(block) for block in (0, 4, 5, 8, 9, 10, END - 1)] == [0, 0, 2, 2, 3, 3, 3]


def test_a_run_across_32_bits_is_packed_whole() -> None:
    """The packing goes by where the last run ends, not by where it begins."""
    held = BlockSet()
    held.add(2**32 - 3, 2**32 + 3)
    assert list(BlockSet.from_bytes(held.to_bytes()).between(1, END)) == [(2**32 - 3, 2**32 + 4)]


@pytest.mark.parametrize("run", [(0, 1), (-1, 1), (5, 4), (7, 2**63 - 1), (2**63, 2**63)])
def test_what_no_block_can_be_is_no_run(run: tuple[int, int]) -> None:
    """Refused like a run that overlaps, with or without neighbours, and the set is as it was.

    Catches ends that are taken for neighbours: the first would then be joined to the last run there is.
    """
    for held in (BlockSet(), BlockSet([3], [4])):
        before = held.to_bytes()
        with pytest.raises(ValueError, match=r"not block numbers|taken already"):
            held.add(*run)
        assert held.to_bytes() == before


@pytest.mark.parametrize("other", [b"", b"x", b"I" + bytes(4), b"q" + bytes(8), b"q" + bytes(17), b"\xff"])
def test_other_bytes_are_no_run_set(other: bytes) -> None:
    """They are refused when they are read, not when the set is first looked at."""
    with pytest.raises(ValueError, match=r"set of blocks|decode"):
        BlockSet.from_bytes(other)


@given(st.lists(st.tuples(blocks, st.one_of(st.just(END), st.integers(1, 20)), st.integers(0, 3)), max_size=30))
def test_steps_are_a_function_of_the_block(assignments: list[tuple[int, int, int]]) -> None:
    """Assigning ranges gives the value that a loop over every block would give, in the fewest steps."""
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
def test_sums_over_blocks_are_those_of_a_loop(units: dict[int, int], data: st.DataObject) -> None:
    """Sums, the block that reaches a sum, and the granted runs, in any order of arrival and with any holes."""
    table = BlockTable()
    for block in data.draw(st.permutations(sorted(units))):
        table.record(block, 1, 1, bytes(16))
        table.finalize(block, units[block])
    for asked in sorted({1, 2, *units, *(block + 1 for block in units), 10**10}):
        assert table.sum_before_ns(asked) == sum(unit for block, unit in units.items() if block < asked)
    for target in range(1, sum(units.values()) + 1):
        reached = table.first_block_reaching(target)
        assert table.sum_before_ns(reached) >= target > table.sum_before_ns(reached - 1)
    assert block_numbers(table.granted_runs(1, 10**10)) == sorted(block for block, unit in units.items() if unit)
    assert list(table.recorded_blocks()) == sorted(units)


@given(st.sets(blocks))
def test_runs_name_every_block_once(some: set[int]) -> None:
    """Blocks to runs and back gives the same blocks."""
    assert block_numbers(runs_from_numbers(sorted(some))) == sorted(some)


def test_a_table_that_is_let_go_of_is_freed_at_once() -> None:
    """Its arrays are nothing to the collector of cycles. Catches a cycle by way of the sums that it keeps."""
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
