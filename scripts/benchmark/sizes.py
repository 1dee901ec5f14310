"""How large the measured ledgers are, and how often each figure is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The targets apply to the defaults. Counts are per sample, unless a comment says otherwise."""

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
    """By each of many callers, before all of them are released."""
    settlings: int = 4
    """How often many callers pick and release in one sample."""
    searches: int = 150
    appends: int = 250
    bare_rows: int = 2000
    processes: int = 4
    library_events: int = 20_000
    """Replayed by the general library."""
    contended_seconds: float = 10.0
    """How long sixteen processes pick at once, on each engine."""
    memory_picks: int = 50_000
    """In total, by the process whose memory is measured."""


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
"""Enough to see that everything works; the figures have no meaning."""
