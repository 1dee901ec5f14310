"""The facts of a run. Each block and each sync follows from its number and the seed alone.

So any process may record any of them at any time, and two processes that record the same fact agree.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from routing import Miner, Settings

ME = "validator-of-ours"
CLASS = "always_on.gpu-24gb"
FIRST_BLOCKS = 40
BLOCK_SECONDS = 12
STAKES = {ME: 1.0, "validator-two": 3.0}
# A block grants 12 s × 1/4 of the stake × 1/5 = 0.6 s per executor. So claims need several blocks, and blocks run
# short. The small margin makes reservations overdue within the seconds of a run.
SETTINGS = Settings(reservation_margin_seconds=0.4, allowance_multiplier="1/5", respect_executor_count=False)
AMOUNTS_S = (0.2, 0.5, 0.6, 1.3, 2.5)

_START = datetime(2024, 1, 1, tzinfo=UTC)
_EVERY_BLOCKS_AWAY = 7


def hotkey(index: int) -> str:
    """Return a miner's name."""
    return f"miner-{index:03}"


def created_at(number: int) -> datetime:
    """Return the time of a block."""
    return _START + timedelta(seconds=BLOCK_SECONDS * number)


def miners(number: int, count: int) -> list[Miner]:
    """Return the miners registered at a block: all of them, except for one at every seventh block."""
    away = number // _EVERY_BLOCKS_AWAY % count if number % _EVERY_BLOCKS_AWAY == 3 else None
    return [Miner(f"192.0.2.{index % 250}", 4, 8000 + index, hotkey(index)) for index in range(count) if index != away]


def manifests(block: int, count: int, seed: int) -> dict[str, dict[str, int]]:
    """Return a sync in which some miners offer less than in the sync before, so that each sync drops somebody."""
    rng = random.Random(f"{seed} sync {block}")
    return {hotkey(index): {CLASS: rng.choice((3, 3, 3, 3, 2, 4))} for index in range(count)}
