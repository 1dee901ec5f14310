"""The draws of the table are those of the definition, whatever changed meanwhile."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from projections.draw_table import DrawTable
from projections.reliability import drawn

SEEDS = st.binary(min_size=16, max_size=16)
WEIGHTS = st.lists(st.integers(0, 10**9), max_size=40)


@given(SEEDS, WEIGHTS, st.lists(st.tuples(st.integers(0, 39), st.integers(0, 10**9)), max_size=40))
def test_a_table_draws_as_the_definition(seed: bytes, weights: list[int], changes: list[tuple[int, int]]) -> None:
    """All draws agree, also after weights were changed; an account with the weight 0 is never drawn.

    Catches a sum that a change does not reach, and a place that is not moved past those that were drawn before.
    """
    table = DrawTable(weights)
    for index, weight in changes:
        if index < len(weights):
            weights[index] = weight
            table.set(index, weight)
    some = [index for index, weight in enumerate(weights) if weight]
    assert list(table.drawn(seed)) == list(drawn(some, [weights[index] for index in some], seed))
    assert table.total == sum(weights)
