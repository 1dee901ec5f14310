"""What one run of the harness does, as a value that travels to the worker processes."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Plan(msgspec.Struct, frozen=True):
    """How many do what for how long. A run ends after `seconds`, or when `claims` claims stand in the log.

    With `least_kills`, it ends when there were as many kills too, and takes the time that it needs.

    With a `fault`, it also ends when nothing comes of the workers any more.
    """

    url: str
    directory: str
    seed: int
    seconds: float = 6.0
    claims: int | None = None
    least_kills: int = 0
    processes: int = 4
    callers: int = 6
    """Concurrent callers in each process."""
    miners: int = 4
    facts: int = 1
    """How many times as often as usual blocks and syncs are recorded."""
    kills_per_second: float = 2.0
    """Worker processes killed with SIGKILL; each is started again."""
    disturbances_per_second: float = 0.0
    """How often the database itself is disturbed, in ways that its engine knows."""
    fault: str | None = None
    """The defect that the workers are given, by its name in `faults`."""

    @property
    def diaries(self) -> Path:
        """Where each worker writes what it meant to do and what came of it."""
        return Path(self.directory) / "diaries"

    @property
    def received(self) -> Path:
        """Where the reader keeps the rows that it received."""
        return Path(self.directory) / "received.jsonl"

    def errors(self, name: str) -> Path:
        """Where a process of that name writes what it cannot tell otherwise."""
        return Path(self.directory) / f"{name}.err"
