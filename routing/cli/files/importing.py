"""Recording a `FACTS.jsonl` in a ledger: used by `allowance import` and by the demo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import TYPE_CHECKING

from routing import BlockFact
from routing.cli.errors import CommandError, error_fields, error_message, exit_code
from routing.cli.io.progress import Progress, rate_text

from .facts import NumberedFact, numbered_facts

if TYPE_CHECKING:
    from routing.cli.connection import Connection


@dataclass
class ImportSummary:
    """What an import has done so far. `position` is the log's end as far as the import has seen it."""

    lines: int = 0
    blocks_recorded: int = 0
    blocks_repeated: int = 0
    syncs_recorded: int = 0
    syncs_repeated: int = 0
    position: int = 0
    seconds: float = 0.0

    @property
    def blocks(self) -> int:
        """All block lines."""
        return self.blocks_recorded + self.blocks_repeated

    @property
    def rate(self) -> str:
        """Block lines a second, in words."""
        return rate_text(self.blocks, self.seconds, "blocks")

    def count(self, facts: Sequence[NumberedFact], positions: Sequence[int]) -> None:
        """Adds what became of some facts: a fact is new where its position is beyond all before it."""
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


class RefusedLine(CommandError):
    """The ledger refused a line's fact; stands for the ledger's error and says which line it was."""

    def __init__(self, line: int, refusal: Exception) -> None:
        message = error_message(refusal).replace("pass confirm=True", "repeat with --confirm")
        super().__init__(f"line {line}: {message}", line=line, **error_fields(refusal))
        self.exit_code = exit_code(refusal)
        self._name = type(refusal).__name__

    @property
    def name(self) -> str:
        """The class name of the ledger's error, which its users know."""
        return self._name


def import_facts(
    connection: Connection, stream: BufferedIOBase, summary: ImportSummary, *, confirm: bool = False
) -> None:
    """Records a stream's facts in order and counts them in `summary`, also where it cannot go on to the end.

    Raises `BadLine` for what is no fact and `RefusedLine` for what the ledger refuses; what stands before
    that line is recorded then, it and all after are not.
    """
    started = time.monotonic()
    summary.position = connection.run(connection.ledger.health()).position
    try:
        with Progress("import", "lines") as progress:
            for batch in numbered_facts(stream):
                _record(connection, batch, summary, confirm)
                summary.seconds = time.monotonic() - started
                progress.show(summary.lines, summary.rate)
    finally:
        summary.seconds = time.monotonic() - started


def _record(connection: Connection, batch: Sequence[NumberedFact], summary: ImportSummary, confirm: bool) -> None:
    """Records a batch, and counts what of it is recorded also where a fact is refused."""
    facts = [numbered.fact for numbered in batch]
    try:
        positions = connection.run(connection.ledger.record_facts(facts, confirm=confirm))
    except Exception as refusal:
        refused = getattr(refusal, "fact_index", None)
        if refused is None:
            raise
        # Those before it are recorded: asking again changes nothing, and tells where.
        positions = connection.run(connection.ledger.record_facts(facts[:refused], confirm=confirm))
        summary.count(batch[:refused], positions)
        raise RefusedLine(batch[refused].line, refusal) from refusal
    summary.count(batch, positions)
