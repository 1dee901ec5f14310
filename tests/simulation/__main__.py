"""The command: `python -m tests.simulation --help`."""

from __future__ import annotations

import argparse
import os
import sys

from tests.simulation.planted import PLANTED
from tests.simulation.run import run_in_jobs

MOST_SHOWN = 20


def main() -> int:
    """Run the seeds and print the report; return 1 if a seed failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="Simulates ledgers under virtual time, one world for each seed."
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per CPU)")
    parser.add_argument(
        "--planted", choices=sorted(PLANTED), help="plant a bug, and stop at the first seed that finds it"
    )
    arguments = parser.parse_args()
    jobs = min(arguments.jobs, arguments.seeds)
    report = run_in_jobs(arguments.first, arguments.seeds, jobs, arguments.planted, stop=arguments.planted is not None)
    planted = f" --planted {arguments.planted}" if arguments.planted else ""
    for seed, violations in sorted(report.failures.items())[:MOST_SHOWN]:
        lines = "\n".join(f"  {violation}" for violation in violations[:MOST_SHOWN])
        sys.stderr.write(
            f"seed {seed} failed; repeat it: python -m tests.simulation --seeds 1 --from {seed}{planted}\n{lines}\n"
        )
    sys.stdout.write(f"{report}\n")
    if arguments.seeds == 1:
        sys.stdout.write(f"digest of the log: {report.digest}\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
