"""Run the demo: import a made-up network, route jobs for many concurrent callers, then show and check the result."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from routing import Allowance
from routing.cli.connection import Connection, connection_to
from routing.cli.files.importing import ImportSummary, import_facts
from routing.cli.io.errors import NO, WrongUsage
from routing.cli.io.inputs import opened_input
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress, rate_text
from routing.service.seams import Seams

from . import network
from .observations import (
    BlockCheck,
    Window,
    all_reservations,
    busiest_accounts,
    check_blocks,
    liveliest_window,
    most_eventful,
)
from .story import Story
from .traffic import Clock, Traffic, draw_jobs, route_and_settle

if TYPE_CHECKING:
    from routing import AuditReport, Reservation

FIRST_BLOCK = 1000
CHART_COLUMNS = 60
CHART_CHOICES = 12
"""How many of the busiest accounts are candidates for the chart."""
LONGER_THAN_ANY_RESERVATION_NS = 4000 * 10**9
"""More than the default longest job (3600 s) and margin of a reservation (100 s) together.

Source: ComputeHorde's validator.
"""


@dataclass
class DemoFiles:
    """The demo's files and its ledger; `database` is None if the ledger is in a database that the user named."""

    facts: Path
    database: Path | None
    url: str
    validator_ss58: str

    def database_bytes(self) -> int | None:
        """Return the size of the ledger's file, with its WAL; None if the user named the database."""
        if self.database is None:
            return None
        return sum(file.stat().st_size for file in self.database.parent.glob(self.database.name + "*"))


@dataclass
class DemoResults:
    """Everything that the demo measured, for `--json`."""

    files: DemoFiles
    summary: ImportSummary
    traffic: Traffic
    expired: int
    reservations: list[Reservation]
    window: Window | None
    check: BlockCheck
    audit: AuditReport


def run_demo(arguments: argparse.Namespace, out: Output) -> int:
    """Run the demo and narrate it; return exit code 1 if a check found an error."""
    started_at = time.monotonic()
    story = Story(out)
    with _demo_files(arguments) as files:
        results = _run_steps(arguments, files, story)
        if out.json_wanted:
            out.document(_document(arguments, results, time.monotonic() - started_at))
        story.conclusion(
            time.monotonic() - started_at, files.database_bytes(), files.facts.parent if arguments.keep else None
        )
    errors = results.check.held_twice + results.traffic.answered_differently + results.audit.findings_count
    return NO if errors else 0


def _run_steps(arguments: argparse.Namespace, files: DemoFiles, story: Story) -> DemoResults:
    story.introduction(arguments)
    newest_at = _write_facts(arguments, files.facts)
    story.facts_written(files.validator_ss58)
    # The made-up chain is old. The clock starts right after its newest block, as if the chain were followed live.
    clock = Clock((int(newest_at.timestamp()) + 1) * 10**9)
    # The same clock twice: its steps are the story's time, and no jumps to be warned about.
    ledger = Allowance(files.url, files.validator_ss58, None, clock, read_only=False, seams=Seams(monotonic_ns=clock))
    with connection_to(ledger) as connection:
        summary = ImportSummary()
        with opened_input(str(files.facts)) as stream:
            import_facts(connection, stream, summary)
        story.imported(summary)
        traffic = _route(arguments, connection, clock)
        clock.advance(LONGER_THAN_ANY_RESERVATION_NS)
        expired = len(connection.run(connection.ledger.expire_due()))
        reservations = all_reservations(connection)
        statuses: Counter[str] = Counter(reservation.status for reservation in reservations)
        story.routed(arguments, traffic, statuses)
        window = _window(connection, reservations)
        story.window(window)
        story.one_reservation(most_eventful(reservations))
        check = check_blocks(reservations)
        story.checked(check)
        audit = _audit(connection)
        story.audited(audit)
    return DemoResults(files, summary, traffic, expired, reservations, window, check, audit)


@contextmanager
def _demo_files(arguments: argparse.Namespace) -> Iterator[DemoFiles]:
    validator_ss58: str = arguments.validator or network.hotkeys(arguments.seed, "validator", 1)[0]
    with _directory(arguments.keep) as directory:
        database = None if arguments.database else directory / "demo.db"
        url = arguments.database or f"sqlite:///{database}"
        yield DemoFiles(directory / "facts.jsonl", database, url, validator_ss58)


@contextmanager
def _directory(name: str | None) -> Iterator[Path]:
    if name is None:
        with TemporaryDirectory(prefix="allowance-demo-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    directory = Path(name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"--keep {name}: {error.strerror}; name a directory that can be created") from error
    if any((directory / file).exists() for file in ("demo.db", "facts.jsonl")):
        raise WrongUsage(f"--keep {name}: it has the files of an earlier demo; name another directory")
    yield directory


def _write_facts(arguments: argparse.Namespace, path: Path) -> datetime:
    """Write the made-up chain to a file and return the time of its newest block."""
    lines = network.generate(
        arguments.seed,
        miners=arguments.miners,
        validators=arguments.validators,
        classes=arguments.classes,
        blocks=arguments.blocks,
        first_block=FIRST_BLOCK,
        validator_ss58=arguments.validator,
    )
    newest_at = network.STARTED_AT
    with path.open("wb") as file:
        for line in lines:
            file.write(msgspec.json.encode(line) + b"\n")
            if line["type"] == "block":
                newest_at = datetime.fromisoformat(str(line["created_at"]))
    return newest_at


def _route(arguments: argparse.Namespace, connection: Connection, clock: Clock) -> Traffic:
    jobs = draw_jobs(arguments.seed, arguments.jobs, network.executor_classes(arguments.classes))
    with Progress("route", "jobs", total=arguments.jobs) as progress:
        return connection.run(
            route_and_settle(
                connection.ledger,
                jobs,
                clock,
                callers=arguments.callers,
                on_job=lambda done: progress.show(done, progress.rate(done, "picks")),
            )
        )


def _audit(connection: Connection) -> AuditReport:
    with Progress("audit", "events") as progress:
        return connection.run(connection.ledger.audit(progress=lambda done, total: progress.show(done, total=total)))


def _window(connection: Connection, reservations: list[Reservation]) -> Window | None:
    ledger = connection.ledger
    newest_block = connection.run(ledger.current_block())
    registered = [miner.hotkey_ss58 for miner in connection.run(ledger.miners())]
    accounts = busiest_accounts(reservations, registered, CHART_CHOICES)
    if not accounts or newest_block is None:
        return None
    return connection.run(
        liveliest_window(ledger, accounts, first_block=FIRST_BLOCK, newest_block=newest_block, columns=CHART_COLUMNS)
    )


def _document(arguments: argparse.Namespace, results: DemoResults, seconds: float) -> dict[str, object]:
    from routing.documents import reservation_document

    traffic, files = results.traffic, results.files
    shown = most_eventful(results.reservations)
    return {
        "seed": arguments.seed,
        "validator_ss58": files.validator_ss58,
        "import": {
            **asdict(results.summary),
            "rate": rate_text(results.summary.blocks, results.summary.seconds, "blocks"),
        },
        "routing": {
            "jobs": len(traffic.latencies),
            "callers": arguments.callers,
            "seconds": traffic.seconds,
            "picks_per_second": traffic.picks_per_second,
            "latency_median_seconds": traffic.latency(0.5),
            "latency_p99_seconds": traffic.latency(0.99),
            "refused": dict(traffic.refused),
            "asked_twice": traffic.asked_twice,
            "answered_differently": traffic.answered_differently,
        },
        "reservations": dict(Counter(reservation.status for reservation in results.reservations)),
        "expired_by_time": results.expired,
        "database_bytes": files.database_bytes(),
        "window": None if results.window is None else asdict(results.window),
        "reservation": None if shown is None else reservation_document(shown),
        "check": asdict(results.check),
        "audit": {
            "head": f"{results.audit.position}:{results.audit.head_hash}",
            "events": results.audit.position,
            "findings": results.audit.findings_count,
        },
        "seconds": seconds,
    }
