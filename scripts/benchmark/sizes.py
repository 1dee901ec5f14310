"""How large the world is that the figures are taken from, and how often each is taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The defaults are those of the targets. Counts are per sample unless they say otherwise."""

    miners: int = 250
    validators: int = 6
    classes: int = 5
    blocks: int = 1100
    events: int = 1_000_000
    """In the long ledger."""
    repeat: int = 3
    callers: int = 256
    picks: int = 300
    """By one caller."""
    picks_per_caller: int = 2
    """By each of many callers, between two settlings."""
    settlings: int = 4
    searches: int = 150
    appends: int = 250
    bare_rows: int = 2000
    processes: int = 4
    library_events: int = 20_000
    """That the general library replays."""
    contended_seconds: float = 10.0
    """Of sixteen processes that pick at once, on each engine."""
    memory_picks: int = 50_000
    """In all, by the process whose memory is watched."""


QUICK = Sizes(
    miners=40,
    blocks=800,
    events=60_000,
    repeat=2,
    callers=16,
    picks=30,
    settlings=2,
    searches=30,
    appends=30,
    bare_rows=200,
    library_events=1000,
    contended_seconds=2.0,
    memory_picks=500,
)
"""Enough to see that everything runs; the figures mean nothing."""
