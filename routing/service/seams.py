"""The seams: what the outermost caller supplies to a ledger, beside its clock.

A process supplies the real ones, which are the defaults. The simulator in `tests/simulation/` supplies a store in
memory and runtimes on a loop with virtual time, so that everything between them is the code that ships.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ledger import Runtime, Store, current_runtime, store_from_url


class NewStore(Protocol):
    """Makes the store of a validator's ledger at a URL, not yet opened."""

    def __call__(self, database_url: str, validator_ss58: str, *, read_only: bool) -> Store: ...


class Seams(NamedTuple):
    """The store, the runtime, the monotonic clock, and after how many events history and seals are due; None: as ever.

    Jumps of the ledger's clock are noticed against the monotonic one.
    """

    new_store: NewStore = store_from_url
    runtime: Callable[[], Runtime] = current_runtime
    monotonic_ns: Callable[[], int] = time.monotonic_ns
    upkeep_every_rows: tuple[int, int] | None = None


REAL = Seams()
