"""The command for long runs: `python -m tests.stress --help`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.stress import Database, Plan, PostgresDatabase, SqliteDatabase, run_stress_test
from tests.support.servers import postgres_server


def main() -> int:
    """Run once and print the report; return 1 if it has findings."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress", description="Stress-tests a ledger by killing processes, and judges the result."
    )
    parser.add_argument("--engine", choices=("sqlite", "postgres-16", "postgres-18"), default="sqlite")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--claims", type=int, help="end after this many claims and all kills, sooner or later")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--callers", type=int, default=6, help="concurrent callers in each process")
    parser.add_argument("--miners", type=int, default=4)
    parser.add_argument("--facts", type=int, default=1, help="how many times as often as usual facts are recorded")
    parser.add_argument("--kills", type=int, default=30, help="of worker processes")
    parser.add_argument("--disturbances", type=int, default=10, help="of the database")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--fault", help="a defect from tests/stress/faults.py that all workers have")
    parser.add_argument("--directory", type=Path, help="where to leave the database and the diaries")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="stress-"))
    sys.stderr.write(f"seed {arguments.seed}, in {directory}\n")
    with ExitStack() as stack:
        report = run_stress_test(*_plan_and_database(arguments, directory, stack))
    sys.stdout.write(f"{report}\n")
    return 1 if report.findings else 0


def _plan_and_database(arguments: argparse.Namespace, directory: Path, stack: ExitStack) -> tuple[Plan, Database]:
    database: Database = SqliteDatabase(directory)
    if arguments.engine != "sqlite":
        server = stack.enter_context(postgres_server(int(arguments.engine.removeprefix("postgres-"))))
        database = PostgresDatabase(stack.enter_context(server.fresh_database()), server)
    plan = Plan(
        url=database.url,
        directory=str(directory),
        seed=arguments.seed,
        seconds=arguments.seconds,
        claims=arguments.claims,
        least_kills=arguments.kills if arguments.claims else 0,
        processes=arguments.processes,
        callers=arguments.callers,
        miners=arguments.miners,
        facts=arguments.facts,
        kills_per_second=arguments.kills / arguments.seconds,
        disturbances_per_second=arguments.disturbances / arguments.seconds,
        fault=arguments.fault,
    )
    return plan, database


if __name__ == "__main__":
    sys.exit(main())
