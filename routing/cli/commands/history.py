"""`allowance history`: list reservations, filtered and in pages."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import MOST_PAGE_ITEMS, add_moment, at_moment, moment, page_items, whole_number
from routing.cli.io.output import Output
from routing.texts import time_text

if TYPE_CHECKING:
    from routing import Page, Reservation
    from routing.cli.connection import Connection

STATUSES = ("reserved", "spent", "released", "expired")
PAGE_ITEMS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the filters, which a reservation must all match, and the options for pages."""
    parser.add_argument("--miner", metavar="SS58", help="only reservations on this miner")
    parser.add_argument("--executor-class", metavar="CLASS", help="only reservations in this executor class")
    parser.add_argument("--job", metavar="UUID", help="only reservations for this job")
    parser.add_argument("--status", choices=STATUSES, help="only reservations with this status")
    parser.add_argument(
        "--from", dest="reserved_from", type=moment, metavar="TIME", help="only reserved at this time or later"
    )
    parser.add_argument(
        "--until", dest="reserved_until", type=moment, metavar="TIME", help="only reserved before this time"
    )
    parser.add_argument("--block", type=whole_number, metavar="B", help="only reservations that took this block")
    parser.add_argument("--oldest-first", action="store_true", help="list the oldest reservation first")
    parser.add_argument("--after", metavar="CURSOR", help="continue after an earlier page, whose note gave this cursor")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--limit",
        type=page_items,
        default=PAGE_ITEMS,
        metavar="N",
        help=f"items per page, at most {MOST_PAGE_ITEMS} (default: {PAGE_ITEMS})",
    )
    amount.add_argument("--all", action="store_true", help="list all pages")
    add_moment(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """List reservations; if there are more, a note on standard error says how to continue."""
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection:
        pages = _Pages(connection, arguments)
        _write((page for page in pages if page.items), out)
    if pages.is_empty:
        out.note("no reservation matches")
    if pages.next is not None:
        out.note(f"there are more: repeat with --after {pages.next}, or with --all")
    return 0


class _Pages:
    """The requested pages, each read when it is needed; `next` is the cursor of the page after the last one read."""

    def __init__(self, connection: Connection, arguments: argparse.Namespace) -> None:
        self.next: str | None = arguments.after
        self.is_empty = self.next is None
        self._connection = connection
        self._arguments = arguments

    def __iter__(self) -> Iterator[Page]:
        arguments = self._arguments
        ledger = at_moment(self._connection.ledger, arguments)
        while True:
            page = self._connection.run(
                ledger.history(
                    miner_ss58=arguments.miner,
                    executor_class=arguments.executor_class,
                    job_uuid=arguments.job,
                    status=arguments.status,
                    reserved_from=arguments.reserved_from,
                    reserved_until=arguments.reserved_until,
                    block=arguments.block,
                    after=self.next,
                    limit=arguments.limit,
                    newest_first=not arguments.oldest_first,
                )
            )
            self.is_empty = self.is_empty and not page.items
            self.next = page.next
            yield page
            if self.next is None or not arguments.all:
                return


def _write(pages: Iterable[Page], out: Output) -> None:
    from routing.cli.io.documents import reservation_document

    if out.json_wanted:
        for page in pages:
            for reservation in page.items:
                out.document({**reservation_document(reservation), "checked": page.checked})
        return
    out.table_of_pages(
        ("reservation", "status", "reserved at", "miner", "executor class", "seconds", "blocks", "job"),
        ([_row(reservation) for reservation in page.items] for page in pages),
    )


def _row(reservation: Reservation) -> tuple[object, ...]:
    return (
        reservation.reservation_id,
        reservation.status,
        time_text(reservation.reserved_at),
        reservation.miner_ss58,
        reservation.executor_class,
        reservation.allowance_seconds,
        len(reservation.blocks),
        reservation.job_uuid,
    )


COMMAND = CliCommand(
    details=(
        "A reservation must match all filters. Times are ISO 8601 with a time zone. Each listed reservation was\n"
        "compared with the log; `checked` in the output of --json says so."
    ),
    examples=(
        "allowance history --limit 20",
        "allowance history --miner 5Grwva… --status spent --from 2024-01-01T00:00:00Z",
        "allowance history --block 1722 --oldest-first",
        "allowance history --status reserved --at-position 1000",
        "allowance history --all --json > reservations.jsonl",
    ),
    add_arguments=add_arguments,
    run=run,
)
