"""Look-ups of stored rows: the ones that a decision needs, and the ones that the store found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ledger.codec import GENESIS_HASH, Row
from ledger.results import Result


class _HeadFields(NamedTuple):
    position: int = 0
    hash: bytes = GENESIS_HASH
    recorded_at_ns: int = 0


class Head(Result, _HeadFields):
    """The head of a ledger's log: the position, hash and recorded time of its last row."""

    __slots__ = ()


class Lookup:
    """The idempotency keys, jobs and positions that a batch needs from the log before it can decide.

    They are collected for the whole batch, so that the store finds all of them with one statement per kind.
    """

    __slots__ = ("jobs", "keys", "positions")

    def __init__(self, positions: Iterable[int] = ()) -> None:
        self.keys: set[str] = set()
        self.jobs: set[str] = set()
        self.positions = set(positions)

    def __bool__(self) -> bool:
        return bool(self.keys or self.jobs or self.positions)


class LookupResult:
    """The stored rows that match a `Lookup`; an absent entry has no row in the log.

    `keys`, `jobs` (each job's last reservation) and `rows` have one row for each key, job and position. `settlements`
    has the settlement, by the reservation's position, of every reservation among these rows.
    """

    __slots__ = ("jobs", "keys", "rows", "settlements")

    def __init__(self) -> None:
        self.keys: dict[str, Row] = {}
        self.jobs: dict[str, Row] = {}
        self.rows: dict[int, Row] = {}
        self.settlements: dict[int, Row] = {}
