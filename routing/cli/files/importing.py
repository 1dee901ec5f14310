"""Record a `FACTS.jsonl` in a ledger, for `allowance import` and for the demo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import groupby
from typing import TYPE_CHECKING

from ledger.codec import reservation_position
from routing import BlockFact, ImportedReservation, Reservation
from routing.cli.io.errors import CommandError, error_fields, error_message, exit_code
from routing.cli.io.progress import Progress, rate_text

from .facts import NumberedFact, numbered_facts

if TYPE_CHECKING:
    from routing.cli.connection import Connection


@dataclass
class ImportSummary:
    """The progress of an import. `lines` is the number of the last line that was imported.

    `position` is the highest log position that the import has seen; `seconds` is the time since its start.
    """

    lines: int = 0
    blocks_recorded: int = 0
    blocks_repeated: int = 0
    syncs_recorded: int = 0
    syncs_repeated: int = 0
    reservations_imported: int = 0
    reservations_repeated: int = 0
    position: int = 0
    seconds: float = 0.0

    @property
    def blocks(self) -> int:
        """The number of block lines, new and repeated."""
        return self.blocks_recorded + self.blocks_repeated

    @property
    def rate(self) -> str:
        """Block lines per second, as text."""
        return rate_text(self.blocks, self.seconds, "blocks")

    def count(self, facts: Sequence[NumberedFact], positions: Sequence[int]) -> None:
        """Count recorded facts, given the log position of each.

        A repeated fact has the position of its first recording, so a fact is new if its position is the highest yet.
        """
        for (line, fact), position in zip(facts, positions, strict=True):
            self.lines = line
            is_new = position > self.position
            self.position = max(self.position, position)
            if isinstance(fact, BlockFact):
                self.blocks_recorded += is_new
                self.blocks_repeated += not is_new
            else:
                self.syncs_recorded += is_new
                self.syncs_repeated += not is_new

    def count_reservations(
        self, lines: Sequence[NumberedFact], imported: Sequence[Reservation], head_position: int
    ) -> None:
        """Count imported reservations; a repeated one has the id that it got when it was imported first."""
        for (line, _), reservation in zip(lines, imported, strict=False):
            self.lines = line
            is_new = reservation_position(reservation.reservation_id) > self.position
            self.reservations_imported += is_new
            self.reservations_repeated += not is_new
        self.position = max(self.position, head_position)


class RefusedLine(CommandError):
    """The ledger refused the fact of a line. Replaces the ledger's error and adds the line's number."""

    def __init__(self, line: int, refusal: Exception) -> None:
        # The ledger's message names the parameter of the Python call; users of the command line have an option.
        message = error_message(refusal).replace("pass confirm=True", "repeat with --confirm")
        super().__init__(f"line {line}: {message}", line=line, **error_fields(refusal))
        self.exit_code: int = exit_code(refusal)
        self._name = type(refusal).__name__

    @property
    def name(self) -> str:
        """The class name of the ledger's error, which users know."""
        return self._name


def import_facts(
    connection: Connection, stream: BufferedIOBase, summary: ImportSummary, *, confirm: bool = False
) -> None:
    """Record the facts of a stream in order, and count them in `summary`, also if an error stops the import.

    Raise `BadLine` at a line that is no fact and `RefusedLine` at a fact that the ledger refuses. All lines before
    that line are then recorded; that line and all later ones are not.
    """
    started = time.monotonic()
    summary.position = connection.run(connection.ledger.health()).position
    try:
        with Progress("import", "lines") as progress:
            for batch in numbered_facts(stream):
                for are_reservations, lines in groupby(batch, _is_reservation):
                    if are_reservations:
                        _import_reservations(connection, list(lines), summary)
                    else:
                        _record(connection, list(lines), summary, confirm)
                summary.seconds = time.monotonic() - started
                progress.show(summary.lines, summary.rate)
    finally:
        summary.seconds = time.monotonic() - started


def _record(connection: Connection, batch: Sequence[NumberedFact], summary: ImportSummary, confirm: bool) -> None:
    """Record a batch and count it; if a fact is refused, count the facts before it."""
    facts = [numbered.fact for numbered in batch if not isinstance(numbered.fact, ImportedReservation)]
    try:
        positions = connection.run(connection.ledger.record_facts(facts, confirm=confirm))
    except Exception as refusal:
        refused_index = getattr(refusal, "fact_index", None)
        if refused_index is None:
            raise
        # The facts before it are recorded. Recording them again changes nothing and returns their positions.
        positions = connection.run(connection.ledger.record_facts(facts[:refused_index], confirm=confirm))
        summary.count(batch[:refused_index], positions)
        raise RefusedLine(batch[refused_index].line, refusal) from refusal
    summary.count(batch, positions)


def _is_reservation(numbered: NumberedFact) -> bool:
    return isinstance(numbered.fact, ImportedReservation)


def _import_reservations(connection: Connection, lines: Sequence[NumberedFact], summary: ImportSummary) -> None:
    """Import consecutive reservations and count them, also those before one that is refused."""
    reservations = [line.fact for line in lines if isinstance(line.fact, ImportedReservation)]
    imported, refusal = connection.run(connection.ledger.import_reservations(reservations))
    head = connection.run(connection.ledger.head())
    summary.count_reservations(lines, imported, head.position)
    if refusal is not None:
        raise RefusedLine(lines[len(imported)].line, refusal) from refusal
