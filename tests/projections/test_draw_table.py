"""The draws of the table are those of the definition, whatever changed meanwhile."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ledger import Account
from projections.draw_table import DrawTable
from projections.draws import Draws
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


VALUES = st.tuples(st.integers(1, 9), st.integers(1, 10**9)) | st.just((0, 0))


@given(
    SEEDS,
    st.lists(VALUES, min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 29), VALUES), max_size=30),
    st.integers(1, 10),
)
def test_draws_of_those_who_have_the_amount(
    seed: bytes, values: list[tuple[int, int]], changes: list[tuple[int, tuple[int, int]]], amount: int
) -> None:
    """After any changes, the draws for an amount are those of the definition among the accounts that have it.

    Catches an account that keeps its place by an old amount, and one that is left out by its index in another list.
    """
    accounts = [Account(f"5Miner{number:02}", "gpu") for number in range(len(values))]
    draws = Draws(accounts, values)
    for index, value in changes:
        if index < len(values):
            values[index] = value
            assert draws.change(accounts[index], *value)
    having = [index for index, (available, weight) in enumerate(values) if weight and available >= amount]
    expected = list(drawn(having, [values[index][1] for index in having], seed))
    assert list(draws.drawn(amount, seed)) == [accounts[index] for index in expected]
    stranger = Account("5Stranger", "gpu")
    assert (draws.change(stranger, 0, 0), draws.change(stranger, 1, 1)) == (True, False)
