"""Reservations: held against the account as it was just before, and against the settings."""

from __future__ import annotations

from ledger import AllowanceReserved, Row, Run, seconds, shortened

from ..rules import Findings, Rule
from .balance import balance_of, note_uneven
from .books import Book, Standing, World
from .claims import NO_WORTH, Claims, ascend, is_run
from .dues import Dues
from .facts import LARGEST


class Reservations:
    """Takes reservations: checks each, then lets it stand."""

    def __init__(self, world: World, dues: Dues, findings: Findings) -> None:
        self._world = world
        self._dues = dues
        self._findings = findings
        self._claims = Claims(world)
        self._chain = world.chain
        self._standing, self._moved = world.standing, world.moved

    def check(self, row: Row, event: AllowanceReserved, book: Book) -> tuple[int, bool]:
        """Checks a reservation that is about to stand; answers what its blocks are worth, and if they are a free run.

        `Dues` stand at the clock that decided.
        """
        settings = self._chain.settings
        amount_ns = event.amount_ns
        if not 1 <= event.job_start_block <= LARGEST:
            message = f"the job starts at block {shortened(event.job_start_block)}"
            self._findings.add(row.position, Rule.JOB_START, message)
        if not 0 < amount_ns <= settings.longest_job_ns:
            message = f"{seconds(amount_ns)} s are not above 0 and up to {seconds(settings.longest_job_ns)} s"
            self._findings.add(row.position, Rule.AMOUNT_LIMITS, message, amount_ns=amount_ns)
        expected_ns = row.recorded_at_ns + amount_ns + settings.reservation_margin_ns
        if event.expires_at_ns != expected_ns:
            details = {"expires_at_ns": event.expires_at_ns, "expected_ns": expected_ns}
            self._findings.add(row.position, Rule.DUE_TIME, "it is due at another time than it should be", **details)
        oldest = event.job_start_block - settings.block_expiry_blocks
        worth_ns = self._claims.worth_as_due(book, event, oldest)
        if worth_ns != NO_WORTH:
            return worth_ns, True
        if event.blocks != self._claims.due_blocks(book, amount_ns, oldest):
            self._check_blocks(row.position, book, event, oldest)
        return self._world.worth_ns(book, [run for run in event.blocks if is_run(*run)]), False

    def stand(self, row: Row, event: AllowanceReserved, book: Book, worth_ns: int, *, is_free_run: bool) -> Standing:
        """Lets a reservation stand, with those of its blocks that no other one has; who calls it touches the book."""
        position, blocks = row.position, event.blocks
        if is_free_run:
            owned, is_even = blocks, True
            book.taken.add(*blocks[0])
        else:
            owned, is_even = self._own(position, book, blocks)
        standing = Standing(row, event, book, owned, worth_ns)
        book.standing[position] = self._standing[position] = standing
        book.held_ns += worth_ns
        book.last_position = position
        self._moved.add(book)
        self._dues.add(standing)
        if not is_even:
            note_uneven(self._findings, book, balance_of(self._world, book))
        return standing

    def _own(self, position: int, book: Book, blocks: list[Run]) -> tuple[list[Run], bool]:
        """Takes those of the blocks that nobody has; whether these are all."""
        owned: list[Run] = []
        is_even = True
        for first, last in blocks:
            if not is_run(first, last):
                continue  # A finding of its own.
            try:
                book.taken.add(first, last)
                owned.append((first, last))
            except ValueError:
                owned += self._rest(position, book, first, last)
                is_even = False
        return owned, is_even

    def _rest(self, position: int, book: Book, first: int, last: int) -> list[Run]:
        """What of a run nobody has; that somebody has the others is noted."""
        held_by = [
            each.position for each in book.standing.values() if any(a <= last and b >= first for a, b in each.owned)
        ]
        message = f"of {_run_text(first, last)} some are reserved or spent already"
        self._findings.add(position, Rule.BLOCKS_TAKEN_ONCE, message, blocks=(first, last), held_by_positions=held_by)
        gaps = [(start, end - 1) for start, end in book.taken.gaps(first, last + 1)]
        for gap in gaps:
            book.taken.add(*gap)
        return gaps

    def _check_blocks(self, position: int, book: Book, event: AllowanceReserved, oldest: int) -> None:
        """Names the rules that a reservation broke by taking other blocks than it should have."""
        blocks, claims, floor = event.blocks, self._claims, book.account.floor
        details = {"blocks": blocks, "expected": claims.due_blocks(book, event.amount_ns, oldest)}

        def broken(rule: Rule, message: str) -> None:
            self._findings.add(position, rule, message, **details)

        if not ascend(blocks):
            broken(Rule.BLOCKS_ASCENDING, "the runs of blocks do not ascend, or touch")
            return
        without = next((block for run in blocks if (block := claims.first_without(book, *run)) is not None), None)
        if without is not None:
            broken(Rule.BLOCKS_GRANTED, f"block {without} grants nothing to the account")
        first = blocks[0][0]
        if first < oldest:
            broken(Rule.BLOCKS_IN_WINDOW, f"block {first} is older than {oldest}, the first that a job may use")
        if first < floor:
            broken(Rule.BLOCKS_NOT_INVALIDATED, f"block {first} is invalidated, as all below {floor} are")
        worth_ns = self._world.worth_ns(book, blocks)
        if worth_ns < event.amount_ns:
            broken(Rule.BLOCKS_ENOUGH, f"worth {seconds(worth_ns)} s, not the {seconds(event.amount_ns)} s asked for")
        last = blocks[-1][1]
        without_last_ns = worth_ns - self._world.worth_ns(book, [(last, last)])
        if without_last_ns >= event.amount_ns:
            broken(Rule.BLOCKS_NO_MORE_THAN_NEEDED, f"without block {last} they are worth enough")
        skipped = claims.skipped(book, blocks, max(oldest, floor))
        if skipped is not None:
            broken(Rule.BLOCKS_EARLIEST_FIRST, f"block {skipped} is free and earlier, and was left out")


def _run_text(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first} to {last}"
