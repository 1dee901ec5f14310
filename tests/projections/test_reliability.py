"""The order by reliability: weights worked out by hand, draws that follow them, and the same ones everywhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import RecordedSettings, Settings
from projections.reliability import drawn, weight
from projections.tie_break import tie_break_digest
from routing import Allowance, Routing
from tests.support import reference_reliability
from tests.support.small import GPU, START, VALIDATOR, Clock, hash_of, job, miner, small_ledger

# With the cutoff -50 and the separation 5: c = -50 / 2 = -25, k = 5 / 25 = 0.2, p = 1 / (1 + exp(-0.2 (score + 25))).
WORKED_OUT = {
    0: 993_307_149,  # exp(-0.2 * 25)  = exp(-5)   =         0.006737946999;  1 / 1.006737946999 = 0.993307149076
    -1: 991_837_429,  # exp(-0.2 * 24) = exp(-4.8) =         0.008229747049;  1 / 1.008229747049 = 0.991837428847
    -10: 952_574_127,  # exp(-0.2 * 15) = exp(-3)  =         0.049787068368;  1 / 1.049787068368 = 0.952574126822
    -25: 500_000_000,  # exp(0)                    =         1;               1 / 2              = 0.5
    -50: 6_692_851,  # exp(0.2 * 25)   = exp(5)    =       148.413159102577;  1 / 149.4131591026 = 0.006692850924
    -100: 1_000,  # exp(0.2 * 75)      = exp(15)   = 3,269,017.372472110639;  1 / 3,269,018.37   < 0.000001, the least
}
"""The weights in billionths, by score."""
JOBS = 100_000
SCORES = sorted(WORKED_OUT, reverse=True)
WEIGHTS = [WORKED_OUT[score] for score in SCORES]
BOUND = 18.467
"""Chi-square with 4 degrees of freedom exceeds this once in 1,000."""
SECONDS_BOUND = 32.909
"""The same with 12 degrees of freedom."""
PICKS = 30
DIGEST_OF_DRAWS = "281d1f85381488d4147fc3e9dc6e866e"
DIGEST_OF_PICKS = "355c866078eb72560c0cf6ddc45470be"


@pytest.mark.parametrize("executors", [1, 2, 10])
@pytest.mark.parametrize("score", WORKED_OUT)
def test_weights_are_those_worked_out_by_hand(score: int, executors: int) -> None:
    """A miner with n executors has n times as many incidents for the same score."""
    assert weight(-score * executors, executors, RecordedSettings()) == WORKED_OUT[score]


def test_a_miner_without_executors_counts_as_one_with_one() -> None:
    """No division by zero."""
    assert weight(10, 0, RecordedSettings()) == weight(10, 1, RecordedSettings()) == WORKED_OUT[-10]


def test_weights_stay_within_their_bounds_whatever_the_settings_are() -> None:
    """The least is a millionth, and the most all but a millionth; a separation of 0 makes all miners equal."""
    steep = Settings(reliability_soft_cutoff=-1e-9, reliability_separation=1000.0).to_recorded()
    assert weight(0, 1, steep) == 999_999_000
    assert weight(10**6, 1, steep) == 1_000
    flat = Settings(reliability_separation=0.0).to_recorded()
    assert weight(0, 1, flat) == weight(10**6, 1, flat) == 500_000_000


@given(
    st.integers(0, 3000),
    st.integers(0, 40),
    st.sampled_from([-50.0, -2.0, -0.5, -1e-9, -1e6]),
    st.sampled_from([5.0, 0.0, 0.1, 37.5, 1000.0]),
)
def test_weights_are_those_of_the_reference(incidents: int, executors: int, cutoff: float, separation: float) -> None:
    """Fractions and a series of 150 terms give the same billionths as 50 digits."""
    settings = Settings(reliability_soft_cutoff=cutoff, reliability_separation=separation).to_recorded()
    expected = reference_reliability.weight(incidents, executors, cutoff, separation)
    assert weight(incidents, executors, settings) == expected


@given(st.binary(min_size=16, max_size=16), st.lists(st.integers(1, 3) | st.integers(1000, 10**9), max_size=12))
def test_draws_are_those_of_the_reference(seed: bytes, weights: list[int]) -> None:
    """Catches another encoding of the number of a draw, or another place for a random number that meets a sum.

    Only small weights have sums that a number meets.
    """
    hotkeys = [f"5Miner{at:02}" for at in range(len(weights))]
    expected = reference_reliability.draw(list(zip(hotkeys, weights, strict=True)), seed)
    assert list(drawn(hotkeys, weights, seed)) == expected


def first_two(number: int) -> tuple[int, int]:
    """Return the scores of the miners that a job tries first and second."""
    draws = drawn(SCORES, WEIGHTS, tie_break_digest(f"job-{number}", bytes.fromhex(hash_of(number))))
    return next(draws), next(draws)


@pytest.mark.compatibility
def test_100_000_draws_agree_with_the_formula_and_never_change() -> None:
    """The first draws follow the weights, the second ones those of the miners that are left; all are golden.

    Catches weights that are not those of the formula, a second draw that repeats the first one's number, and a Python
    or a machine that draws differently.
    """
    pairs = [first_two(number) for number in range(JOBS)]
    firsts = Counter(first for first, _ in pairs)
    assert chi_square(firsts, SCORES) < BOUND
    sums = 0.0
    for first in SCORES[:4]:
        seconds = Counter(second for each, second in pairs if each == first)
        sums += chi_square(seconds, [each for each in SCORES if each != first])
    assert sums < SECONDS_BOUND
    assert digest(map(repr, pairs)) == DIGEST_OF_DRAWS


def chi_square(drawn_scores: Counter[int], scores: list[int]) -> float:
    """Return the statistic; the scores -50 and -100 are one cell, because one of them is too rare for its own."""
    count, total = drawn_scores.total(), sum(WORKED_OUT[score] for score in scores)
    cells = {score: [score] for score in scores if score > -50} | {-50: [-50, -100]}
    expected = {cell: count * sum(WORKED_OUT[each] for each in members) / total for cell, members in cells.items()}
    observed = {cell: sum(drawn_scores[each] for each in members) for cell, members in cells.items()}
    return sum((observed[cell] - expected[cell]) ** 2 / expected[cell] for cell in cells)


def digest(texts: Iterable[str]) -> str:
    """Return a digest of texts in order."""
    return blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


@pytest.mark.compatibility
async def test_real_picks_draw_the_same_miners_on_every_engine(any_url: str) -> None:
    """Picks on miners with the scores worked out by hand: the same miners on each engine and each Python.

    Each job's newest block has another hash, and each reservation is released before the next job. Catches a draw that
    depends on what an engine returns first, and an explanation or an audit that draws differently.
    """
    offers = {f"5Miner{at}": count for at, count in enumerate([1, 2, 1, 10, 2, 1])}
    clock = Clock(START + timedelta(seconds=12 * 12))
    settings = Settings(routing_order="reliability")
    picked = []
    async with small_ledger(url=any_url, offers=offers, clock=clock, settings=settings) as ledger:
        for (hotkey, executors), score in zip(offers.items(), [0, -1, -10, -25, -50, -100], strict=True):
            calls = [
                ledger.report_incident(hotkey, GPU, "failed", f"job-{number}") for number in range(-score * executors)
            ]
            await asyncio.gather(*calls)
        for number in range(12, 12 + PICKS):
            await record(ledger, number, sorted(offers))
            route = await Routing(ledger).pick_miner_for_job_request(job(f"job-{number}"))
            await ledger.release(route.allowance_reservation_id or 0)
            explained = await ledger.explain(f"job-{number}")
            assert explained.candidates[0].hotkey_ss58 == route.miner.hotkey_ss58
            weights = {each.hotkey_ss58: each.weight for each in explained.candidates}
            assert [weights[hotkey] for hotkey in offers] == [each / 10**9 for each in WEIGHTS]
            picked.append([each.hotkey_ss58 for each in explained.candidates])
        assert (await ledger.audit()).findings == []
    assert digest(map(repr, picked)) == DIGEST_OF_PICKS


async def record(ledger: Allowance, number: int, hotkeys: list[str]) -> None:
    created_at, stakes = START + timedelta(seconds=12 * number), {VALIDATOR: 1.0, "5Other": 1.0}
    await ledger.record_block(number, created_at, map(miner, hotkeys), stakes, block_hash=hash_of(number))
