"""How large the measured ledgers are, and how often each figure is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The targets apply to the defaults. Counts are per sample, unless a comment says otherwise."""

    miners: int = 250
    larger_networks: tuple[int, ...] = (2500, 10_000)
    """Numbers of miners with which figures are compared that grow with the network."""
    validators: int = 6
    classes: int = 5
    blocks: int = 1100
    log: int = 100_000
    """Events of the log on which most figures are measured."""
    events: int = 1_000_000
    """In the longest log."""
    repeat: int = 3
    callers: int = 256
    picks: int = 500
    """By one caller."""
    picks_per_caller: int = 2
    """By each of many callers, before all of them are released."""
    settlings: int = 4
    """How often many callers pick and release in one sample."""
    searches: int = 150
    appends: int = 250
    network_blocks: int = 12
    """Blocks, each with a pick of every class after it, in a network of each size."""
    bare_rows: int = 2000
    constrained_commits: int = 40
    """Of 256 rows each."""
    claims: int = 2000
    """Whose stored bytes are measured."""
    explained: int = 20
    """Jobs, spread over the whole log."""
    processes: int = 4
    library_events: int = 20_000
    """Replayed by the general library."""
    contended_seconds: float = 10.0
    """How long sixteen processes pick at once, on each engine."""
    memory_picks: int = 50_000
    """In total, by the process whose memory is measured."""


QUICK = Sizes(
    miners=40,
    larger_networks=(80, 160),
    blocks=800,
    log=12_000,
    events=30_000,
    repeat=1,
    callers=16,
    picks=30,
    settlings=1,
    searches=30,
    appends=30,
    network_blocks=3,
    bare_rows=200,
    constrained_commits=3,
    claims=200,
    explained=4,
    library_events=1000,
    contended_seconds=1.0,
    memory_picks=500,
)
"""Enough to see that everything works; the figures have no meaning."""
