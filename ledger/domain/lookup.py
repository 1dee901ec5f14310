"""What a decision must know about the stored past, and what the store found of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ledger.codec import GENESIS_HASH, Row


class Head(NamedTuple):
    """Where a ledger's log stands: its last row's position, hash and recorded time."""

    position: int = 0
    hash: bytes = GENESIS_HASH
    recorded_at_ns: int = 0


class Lookup:
    """What a batch has to know about the stored past before it can decide."""

    __slots__ = ("jobs", "keys", "positions")

    def __init__(self, positions: Iterable[int] = ()) -> None:
        self.keys: set[str] = set()
        self.jobs: set[str] = set()
        self.positions = set(positions)

    def __bool__(self) -> bool:
        return bool(self.keys or self.jobs or self.positions)


class LookupResult:
    """What the stored past says to a `Lookup`; what is absent is not stored."""

    __slots__ = ("jobs", "keys", "rows", "settlements")

    def __init__(self) -> None:
        self.keys: dict[str, Row] = {}
        self.jobs: dict[str, Row] = {}
        """A job's last reservation."""
        self.rows: dict[int, Row] = {}
        self.settlements: dict[int, Row] = {}
        """By the position of the reservation that they settle."""
