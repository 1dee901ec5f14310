"""The parameters of one run, as a value that travels to the worker processes."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Plan(msgspec.Struct, frozen=True):
    """The parameters of one run.

    A run ends after `seconds`, or when the log holds `claims` claims. With `least_kills` it ends only after that many
    kills, and takes as long as it needs. With a `fault` it also ends when the workers make no progress any more.
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
    """How many times as often as usual the workers record blocks and syncs."""
    kills_per_second: float = 2.0
    """Worker processes killed with SIGKILL; a new worker replaces each."""
    disturbances_per_second: float = 0.0
    """How often the harness disturbs the database itself, in ways that depend on its engine."""
    fault: str | None = None
    """The defect of the workers, by its name in `faults`."""

    @property
    def diaries(self) -> Path:
        """The directory of the workers' diaries, one file for each life of a worker."""
        return Path(self.directory) / "diaries"

    @property
    def received(self) -> Path:
        """The file of the rows that the reader received."""
        return Path(self.directory) / "received.jsonl"

    def errors(self, name: str) -> Path:
        """The standard error of a process."""
        return Path(self.directory) / f"{name}.err"
