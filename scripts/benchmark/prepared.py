"""A ledger that was made for measurements."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from routing import Allowance, BlockFact

from .chain import HOTKEY, Clock

ROOT = Path(__file__).resolve().parents[2]


class Ledger(NamedTuple):
    """A ledger that was made: its URL, the time at which its measurements start, and its newest block."""

    url: str
    start_ns: int
    newest: BlockFact

    @property
    def path(self) -> Path:
        """Its file, if it is on SQLite."""
        return Path(self.url.removeprefix("sqlite:///"))

    def open(self, *, read_only: bool = False) -> Allowance:
        """Open it with a clock that starts at its time."""
        return Allowance.open(self.url, validator_ss58=HOTKEY, clock_ns=Clock(self.start_ns), read_only=read_only)
