"""`allowance events`: list the events of the log, and follow it."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import whole_number, whole_number_or_zero
from routing.cli.io.output import Output
from routing.texts import time_text

if TYPE_CHECKING:
    from routing import StoredEvent
    from routing.cli.connection import Connection

PAGE_EVENTS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the range of positions, `--follow` and `--schema`."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--after", type=whole_number_or_zero, default=0, metavar="P", help="only events after this log position"
    )
    start.add_argument("--last", type=whole_number, metavar="N", help="only the last N events")
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--until", type=whole_number, metavar="P", help="only events up to this log position")
    end.add_argument("--follow", action="store_true", help="then wait for new events, until interrupted")
    end.add_argument("--schema", action="store_true", help="print the JSON Schema of the events instead, and exit")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """List the events; with `--follow`, wait for more and write each as soon as it is seen."""
    if arguments.schema:
        from routing.service.events import json_schema

        out.document(json_schema())
        return 0
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection:
        _write(_pages(connection, arguments), out)
    return 0


def _pages(connection: Connection, arguments: argparse.Namespace) -> Iterator[list[StoredEvent]]:
    ledger, position = connection.ledger, arguments.after
    if arguments.last is not None:
        position = max(0, connection.run(ledger.head()).position - arguments.last)
    events = ledger.events(after=position, until=arguments.until)
    while page := connection.run(_page(events)):
        yield page
        position = page[-1].position
    if arguments.follow:
        followed = ledger.follow(after=position)
        while True:
            yield [connection.run(anext(followed))]


async def _page(events: AsyncIterator[StoredEvent]) -> list[StoredEvent]:
    page: list[StoredEvent] = []
    async for stored in events:
        page.append(stored)
        if len(page) == PAGE_EVENTS:
            break
    return page


def _write(pages: Iterator[list[StoredEvent]], out: Output) -> None:
    if not out.json_wanted:
        headers = ("position", "recorded at", "event", "about")
        out.table_of_pages(headers, ([_row(stored) for stored in page] for page in _flushed(pages, out)))
        return
    for page in _flushed(pages, out):
        for stored in page:
            out.document(stored.to_dict())


def _flushed(pages: Iterator[list[StoredEvent]], out: Output) -> Iterator[list[StoredEvent]]:
    """Yield the pages; flush each before waiting for the next: a reader of a followed log must not wait for more."""
    for page in pages:
        yield page
        out.flush()


def _row(stored: StoredEvent) -> tuple[object, ...]:
    return (stored.position, time_text(stored.recorded_at), stored.type, stored.summary)


COMMAND = CliCommand(
    details=(
        "With --json, each line is one event: its position, stream, version, time, hash, the job and the reservation\n"
        "that it is about, and `event` as it is stored, whose amounts are executor-nanoseconds. Resume with --after\n"
        "and the last position seen: nothing is skipped, and nothing comes twice."
    ),
    examples=(
        "allowance events --last 20",
        "allowance events --last 20 --follow",
        "allowance events --after 1000 --json > events.jsonl",
        "allowance events --schema",
    ),
    add_arguments=add_arguments,
    run=run,
)
