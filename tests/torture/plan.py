"""What one run of the harness does, as a value that travels to the worker processes."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]


class Plan(msgspec.Struct, frozen=True):
    """How many do what for how long. A run ends after `seconds`, or when `claims` claims stand in the log."""

    url: str
    directory: str
    seed: int
    seconds: float = 6.0
    claims: int | None = None
    processes: int = 4
    callers: int = 6
    """Concurrent callers in each process."""
    miners: int = 4
    kills: int = 6
    """Worker processes killed with SIGKILL, spread over the run; each is started again."""
    disturbances: int = 0
    """Times that the database itself is disturbed, in ways that its engine knows."""
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

    def command(self, module: str, *arguments: object) -> list[str]:
        """What starts a module of the harness on this plan, in a process of its own."""
        plan = msgspec.json.encode(self).decode()
        return [sys.executable, "-m", f"tests.torture.{module}", plan, *map(str, arguments)]
