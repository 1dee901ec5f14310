"""The pages of a log, read so far ahead that the replay knows in time which choices it must repeat.

A claim may name an earlier position at which its miner was chosen (`chosen_at`). The replay only goes forward, so it
must repeat that choice before it reaches the claim: `LaterClaim` tells it so at the position of the choice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from msgspec import structs

from ledger import Row
from ledger.codec import decode
from ledger.errors import CorruptLedger, NewerLedger
from ledger.events import AllowanceReserved
from projections.row_checks import ROW_SHAPES
from projections.rules import MOST_EVENTS_SINCE_CHOICE

MOST_BYTES = 16 * 1024 * 1024
"""Payload that is kept in memory while it waits for the replay; pages beyond it are read a second time."""
LARGE_BYTES = 4096
"""A claim with a larger payload is kept without it, and the replay decodes it again."""
_NAME = b'"chosen_at":'


class LaterClaim(NamedTuple):
    """A claim that the replay has not reached, and that was chosen at a position before it."""

    row: Row
    event: AllowanceReserved


class _Page(NamedTuple):
    """A page that waits for the replay. `rows` is None if there were too many bytes to keep it."""

    after: Any
    rows: list[Row] | None
    size: int
    payload_bytes: int


class ReadAhead:
    """Reads pages with `read`, which takes the last position before a page, and returns an empty page at the end."""

    def __init__(self, read: Callable[[Any], Awaitable[list[Row]]], start: int) -> None:
        self.claims_by_choice: dict[int, list[LaterClaim]] = {}
        """The claims that were read, by the position of their choice; the replay takes them out when it is there."""
        self._read = read
        self._start = start
        self._after: Any = start
        """The position at which reading goes on; in a damaged log it may be any value."""
        self._pages: deque[_Page] = deque()
        self._rows_ahead = self._bytes_ahead = 0
        self._ended = False

    async def next_page(self) -> list[Row]:
        """Return the next page to replay; empty at the end. All claims that were chosen in it are known by then."""
        # The page itself, and every claim behind it that may name one of its positions.
        while not self._ended and self._rows_ahead - self._first_size() <= MOST_EVENTS_SINCE_CHOICE:
            await self._read_page()
        if not self._pages:
            return []
        page = self._pages.popleft()
        self._rows_ahead -= page.size
        self._bytes_ahead -= page.payload_bytes
        self._forget_unreached(page)
        return await self._read(page.after) if page.rows is None else page.rows

    async def _read_page(self) -> None:
        rows = await self._read(self._after)
        if not rows:
            self._ended = True
            return
        payload_bytes = self._find_claims(rows)
        is_kept = not self._pages or self._bytes_ahead + payload_bytes <= MOST_BYTES
        kept_bytes = payload_bytes if is_kept else 0
        self._pages.append(_Page(self._after, rows if is_kept else None, len(rows), kept_bytes))
        self._rows_ahead += len(rows)
        self._bytes_ahead += kept_bytes
        self._after = rows[-1].position

    def _find_claims(self, rows: list[Row]) -> int:
        """Note the claims among the rows that name a choice; return the size of the payloads."""
        try:
            # One search in all payloads: mostly no row has the name, and each search in a single row costs as much.
            payloads = b"".join([row.payload for row in rows])
        except TypeError:
            payloads = b"".join([row.payload for row in rows if type(row.payload) is bytes])
        if _NAME in payloads:
            for claim in _claims(rows):
                self._note(claim)
        return len(payloads)

    def _note(self, claim: LaterClaim) -> None:
        position, chosen_at = claim.row.position, claim.event.chosen_at
        # Other positions are findings, or are not proved, for which no choice is repeated.
        if chosen_at is not None and max(self._start, position - MOST_EVENTS_SINCE_CHOICE) <= chosen_at < position:
            self.claims_by_choice.setdefault(chosen_at, []).append(claim)

    def _first_size(self) -> int:
        return self._pages[0].size if self._pages else 0

    def _forget_unreached(self, page: _Page) -> None:
        """Forget claims whose choice the replay has passed without reaching it: a damaged log may lack the position."""
        if len(self.claims_by_choice) > 2 * MOST_EVENTS_SINCE_CHOICE and type(page.after) is int:
            self.claims_by_choice = {at: claims for at, claims in self.claims_by_choice.items() if at >= page.after}


def _claims(rows: list[Row]) -> Iterator[LaterClaim]:
    for row in rows:
        if tuple(map(type, row)) in ROW_SHAPES and _NAME in row.payload:
            try:
                event = decode(row.position, row.payload)
            except (CorruptLedger, NewerLedger):
                continue  # The replay reports it.
            if not isinstance(event, AllowanceReserved):
                continue
            claim = LaterClaim(row, event)
            yield claim if len(row.payload) <= LARGE_BYTES else _without_blocks(claim)


def _without_blocks(claim: LaterClaim) -> LaterClaim:
    return LaterClaim(claim.row._replace(payload=b""), structs.replace(claim.event, blocks=[]))
