"""The long run: `python -m tests.stress --help`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.stress import Database, Plan, PostgresDatabase, SqliteDatabase, torture
from tests.support.servers import postgres_server


def main() -> int:
    """Runs once and prints the report; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description="Tortures a ledger, then judges it.")
    parser.add_argument("--engine", choices=("sqlite", "postgres-16", "postgres-18"), default="sqlite")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--claims", type=int, help="end after so many and all kills, sooner or later")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--callers", type=int, default=6, help="concurrent callers in each process")
    parser.add_argument("--miners", type=int, default=4)
    parser.add_argument("--facts", type=int, default=1, help="how many times as often as usual facts are recorded")
    parser.add_argument("--kills", type=int, default=30, help="of worker processes")
    parser.add_argument("--disturbances", type=int, default=10, help="of the database")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--fault", help="a defect from tests/stress/faults.py to give the workers")
    parser.add_argument("--directory", type=Path, help="where to leave the database and the diaries")
    given = parser.parse_args()
    directory = given.directory or Path(tempfile.mkdtemp(prefix="torture-"))
    sys.stderr.write(f"seed {given.seed}, in {directory}\n")
    with ExitStack() as stack:
        report = torture(*_subject(given, directory, stack))
    sys.stdout.write(f"{report}\n")
    return 1 if report.findings else 0


def _subject(given: argparse.Namespace, directory: Path, stack: ExitStack) -> tuple[Plan, Database]:
    """The plan, and the database that it is carried out on."""
    database: Database = SqliteDatabase(directory)
    if given.engine != "sqlite":
        server = stack.enter_context(postgres_server(int(given.engine.removeprefix("postgres-"))))
        database = PostgresDatabase(stack.enter_context(server.fresh_database()), server)
    plan = Plan(
        url=database.url,
        directory=str(directory),
        seed=given.seed,
        seconds=given.seconds,
        claims=given.claims,
        least_kills=given.kills if given.claims else 0,
        processes=given.processes,
        callers=given.callers,
        miners=given.miners,
        facts=given.facts,
        kills_per_second=given.kills / given.seconds,
        disturbances_per_second=given.disturbances / given.seconds,
        fault=given.fault,
    )
    return plan, database


if __name__ == "__main__":
    sys.exit(main())
