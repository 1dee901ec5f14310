"""`allowance history`: list reservations, filtered and in pages."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongUsage
from routing.cli.io.inputs import MOST_PAGE_ITEMS, add_moment, at_moment, moment, page_items, whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output

if TYPE_CHECKING:
    from routing import Page
    from routing.cli.connection import Connection

STATUSES = ("reserved", "spent", "released", "expired", "overdue")
ORIGINS = ("routed", "kept", "by_hand", "imported")
PAGE_ITEMS = 100
HEADERS = {
    "reservation_id": "reservation",
    "status": "status",
    "origin": "origin",
    "reserved_at": "reserved at",
    "miner_ss58": "miner",
    "executor_class": "executor class",
    "allowance_seconds": "seconds",
    "blocks": "blocks",
    "job_uuid": "job",
    "job_start_block": "job start block",
    "expires_at": "due at",
    "settled_at": "settled at",
    "validator_ss58": "validator",
}
"""The columns by the names of a reservation's fields, with their headers in a table."""
SHOWN_COLUMNS = tuple(HEADERS)[:9]
MOST_IMPORTANT = ("job", "reservation", "status", "miner", "seconds", "reserved at")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the filters, which a reservation must all match, and the options for pages."""
    parser.add_argument("--miner", metavar="SS58", help="only reservations on this miner")
    parser.add_argument("--executor-class", metavar="CLASS", help="only reservations in this executor class")
    parser.add_argument("--job", metavar="UUID", help="only reservations for this job")
    parser.add_argument("--status", choices=STATUSES, help="only with this status; overdue: reserved, and due")
    parser.add_argument("--origin", choices=ORIGINS, help="only those whose miner was chosen in this way")
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
    parser.add_argument(
        "--columns",
        type=_columns,
        metavar="A,B,C",
        help=f"only these fields, in this order: {', '.join(HEADERS)}",
    )
    parser.add_argument("--csv", action="store_true", help="write CSV, by default with all columns")
    add_moment(parser)


def _columns(text: str) -> tuple[str, ...]:
    columns = tuple(text.split(","))
    for column in columns:
        if column not in HEADERS or columns.count(column) > 1:
            raise argparse.ArgumentTypeError(
                f"{column!r} is no column, or is named twice; the columns are {', '.join(HEADERS)}"
            )
    return columns


def run(arguments: argparse.Namespace, out: Output) -> int:
    """List reservations; if there are more, a note on standard error says how to continue."""
    from routing.cli.connection import ledger_connection
    from routing.cli.known_names import refuse_unknown_names

    if arguments.csv and arguments.json:
        raise WrongUsage("give --csv or --json, not both")
    with ledger_connection(arguments, read_only=True) as connection:
        pages = _Pages(connection, arguments)
        _write((page for page in pages if page.items), arguments, out)
        if pages.is_empty:
            refuse_unknown_names(connection, miner_ss58=arguments.miner, executor_class=arguments.executor_class)
            out.note("no reservation matches")
    if pages.next is not None:
        out.note(f"there are more: repeat with --after {pages.next}, or with --all")
    elif pages.newest_job is not None:
        out.next_step(f"{next_command(arguments, 'explain', pages.newest_job)} says why a job went to its miner")
    return 0


class _Pages:
    """The requested pages, each read when it is needed; `next` is the cursor of the page after the last one read."""

    def __init__(self, connection: Connection, arguments: argparse.Namespace) -> None:
        self.next: str | None = arguments.after
        self.is_empty = self.next is None
        self.newest_job: str | None = None
        """A job that was listed, for the next step."""
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
                    origin=arguments.origin,
                    after=self.next,
                    limit=arguments.limit,
                    newest_first=not arguments.oldest_first,
                )
            )
            self.is_empty = self.is_empty and not page.items
            self.newest_job = self.newest_job or next((item.job_uuid for item in page.items if item.job_uuid), None)
            self.next = page.next
            yield page
            if self.next is None or not arguments.all:
                return


def _write(pages: Iterable[Page], arguments: argparse.Namespace, out: Output) -> None:
    if arguments.csv:
        _write_csv(pages, arguments.columns, out)
    elif arguments.json:
        _write_json(pages, arguments.columns, out)
    else:
        columns = arguments.columns or SHOWN_COLUMNS
        out.table_of_pages(
            [HEADERS[column] for column in columns],
            ([_row(line, columns) for line in _lines(page)] for page in pages),
            MOST_IMPORTANT,
        )


def _write_csv(pages: Iterable[Page], columns: Sequence[str] | None, out: Output) -> None:
    from routing.csv_text import RESERVATION_COLUMNS, csv_lines

    columns = columns or (*RESERVATION_COLUMNS, "origin")
    # The header first, also if no reservation matches: a spreadsheet then has its columns.
    for line in csv_lines((line for page in pages for line in _lines(page)), columns):
        out.line(line)


def _write_json(pages: Iterable[Page], columns: Sequence[str] | None, out: Output) -> None:
    from routing.documents import reservation_document

    for page in pages:
        for reservation, origin in zip(page.items, page.origins, strict=True):
            document = {**reservation_document(reservation), "origin": origin}
            chosen = document if columns is None else {column: document[column] for column in columns}
            out.document({**chosen, "checked": page.checked})


def _lines(page: Page) -> list[SimpleNamespace]:
    """Return the page's reservations with their origins."""
    return [
        SimpleNamespace(**{column: getattr(item, column) for column in HEADERS if column != "origin"}, origin=origin)
        for item, origin in zip(page.items, page.origins, strict=True)
    ]


def _row(line: SimpleNamespace, columns: Sequence[str]) -> list[object]:
    values = [getattr(line, column) for column in columns]
    return [len(value) if isinstance(value, list) else value for value in values]


COMMAND = CliCommand(
    details=(
        "A reservation must match all filters. Times are ISO 8601 with a time zone. Each listed reservation was\n"
        "compared with the log; `checked` in the output of --json says so. A table shows how many blocks each took,\n"
        "and --csv, --json and `allowance show` show which. The origin says who chose the miner: a router (`routed`;\n"
        "`kept` if it chose at an earlier position), a caller of `reserve` (`by_hand`), or another system (`imported`)."
    ),
    examples=(
        "allowance history --limit 20",
        "allowance history --miner 5Grwva… --status spent --from 2024-01-01T00:00:00Z",
        "allowance history --status overdue --columns job_uuid,miner_ss58,expires_at",
        "allowance history --all --csv > reservations.csv",
        "allowance history --block 1722 --oldest-first",
        "allowance history --status reserved --at-position 1000",
        "allowance history --origin by_hand --all",
        "allowance history --all --json > reservations.jsonl",
    ),
    add_arguments=add_arguments,
    run=run,
)
