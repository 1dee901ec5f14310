"""The order of candidates by reliability: a draw without replacement, weighted by the incidents of each miner.

Source: ComputeHorde's validator, which shuffles its miners by these weights and discards the order by allowance. The
order can be replayed exactly: the weights are computed in decimal arithmetic of 50 digits and rounded to whole numbers,
and the draws are digests of the tie-break's seed. The audit repeats the rule in code of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import TypeVar

from ledger import Account, LedgerState, RecordedSettings

T = TypeVar("T")

WEIGHT_UNIT = 10**9
DIGITS = 50
DRAW_BYTES = 32
_EXACT = Context(prec=DIGITS, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999, traps=[])
_LOWEST, _HIGHEST = Decimal("0.000001"), Decimal("0.999999")


def weight_of(state: LedgerState, account: Account, now_ns: int) -> int:
    """Return the weight of an account in a draw at a time, in billionths.

    The incidents are those of the miner and class in the last `reliability_window_hours`; the executor count is that of
    the newest sync.
    """
    settings = state.chain.settings
    window_ns = settings.routing("reliability_window_ns")
    incidents = state.miner_facts.incidents_within(account.stream, now_ns - window_ns, now_ns)
    return weight(incidents, state.chain.newest_count(account), settings) if incidents else weight(0, 1, settings)


def weight(incidents: int, executors: int, settings: RecordedSettings) -> int:
    """Return the weight of a miner with this many incidents and executors, in billionths.

    The score is minus the incidents per executor; the weight is 1 / (1 + exp(-k (score - c))), where c is half of the
    cutoff and k the separation / -c; at least a millionth, and at most all but a millionth.
    """
    cutoff = settings.routing("reliability_soft_cutoff_billionths")
    return _weight(incidents, max(1, executors), cutoff, settings.routing("reliability_separation_billionths"))


@lru_cache(maxsize=10_000)
def _weight(incidents: int, executors: int, cutoff_e9: int, separation_e9: int) -> int:
    exact = _EXACT
    score = exact.divide(Decimal(-incidents), Decimal(executors))
    center = exact.divide(Decimal(cutoff_e9), Decimal(2 * WEIGHT_UNIT))
    steepness = exact.divide(exact.divide(Decimal(separation_e9), Decimal(WEIGHT_UNIT)), exact.minus(center))
    exponent = exact.multiply(exact.minus(steepness), exact.subtract(score, center))
    share = exact.divide(Decimal(1), exact.add(Decimal(1), exact.exp(exponent)))
    clipped = min(max(share, _LOWEST), _HIGHEST)
    return int(exact.multiply(clipped, Decimal(WEIGHT_UNIT)).to_integral_value(ROUND_HALF_EVEN, exact))


def drawn(candidates: Sequence[T], weights: Sequence[int], seed: bytes) -> Iterator[T]:
    """Yield the candidates, which are in order of hotkey, in the order in which they are drawn.

    Draw i is a digest of the seed and i, modulo the weight that is left; it draws the first candidate at which the
    running sum of the weights exceeds it. Nothing is computed for draws that nobody asks for.
    """
    left, left_weights = list(candidates), list(weights)
    draw = 0
    while left:
        sums = list(accumulate(left_weights))
        digest = blake2b(seed + draw.to_bytes(4, "big"), digest_size=DRAW_BYTES).digest()
        at = bisect_right(sums, int.from_bytes(digest, "big") % sums[-1])
        yield left.pop(at)
        del left_weights[at]
        draw += 1
