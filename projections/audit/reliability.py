"""The order by reliability, computed a second time: weights from incidents, and a draw without replacement.

The audit repeats this rule on purpose and shares nothing with the router's code. Rule: over the last
`reliability_window_ns`, the score is minus the incidents per executor; with c, half of the cutoff, and k, the
separation / -c, the weight is 1 / (1 + exp(-k (score - c))) within [10^-6, 1 - 10^-6], in billionths, in decimal
arithmetic of 50 digits, rounded half-even. Draw i is BLAKE2b-256 of the seed and i, modulo the weight that is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache
from hashlib import blake2b

from ledger import RecordedSettings

from .state import AccountState

BILLION = 10**9


def weight_of(incidents: int, executors: int, settings: RecordedSettings) -> int:
    """Return the weight in a draw of an account with this many incidents, in billionths."""
    return _weight(
        incidents if incidents else 0,
        max(executors, 1) if incidents else 1,
        settings.routing("reliability_soft_cutoff_billionths"),
        settings.routing("reliability_separation_billionths"),
    )


@lru_cache(maxsize=10_000)
def _weight(incidents: int, executors: int, cutoff_billionths: int, separation_billionths: int) -> int:
    with localcontext(Context(prec=50, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, traps=[])):
        score = Decimal(-incidents) / executors
        middle = Decimal(cutoff_billionths) / (2 * BILLION)
        steepness = Decimal(separation_billionths) / BILLION / -middle
        p = 1 / (1 + (-steepness * (score - middle)).exp())
        p = min(max(p, Decimal("1e-6")), 1 - Decimal("1e-6"))
        return int((p * BILLION).to_integral_value())


def drawn(accounts: list[AccountState], weights: list[int], seed: int) -> Iterator[AccountState]:
    """Yield the accounts in the order in which they are drawn; `seed` is the number of the tie-break."""
    left = sorted(zip([each.miner_ss58 for each in accounts], weights, accounts, strict=True), key=lambda each: each[0])
    weight_left = sum(weights)
    for draw in range(len(accounts)):
        digest = blake2b(seed.to_bytes(16, "big") + draw.to_bytes(4, "big"), digest_size=32).digest()
        point = int.from_bytes(digest, "big") % weight_left
        at = 0
        while point >= left[at][1]:
            point -= left[at][1]
            at += 1
        _, weight, account = left.pop(at)
        weight_left -= weight
        yield account
