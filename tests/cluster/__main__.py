"""The command for long runs: `python -m tests.cluster --help`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from .failovers import KINDS
from .nodes import running_cluster
from .run import run_with_failovers, some_kinds


def main() -> int:
    """Run once and print the report; return 1 if it has findings."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description="Lets three nodes fail over under load, and judges the result."
    )
    parser.add_argument("--failovers", type=int, default=20)
    parser.add_argument("--kind", choices=tuple(KINDS), help="only fail-overs of this kind")
    parser.add_argument("--postgres", type=int, choices=(16, 18), default=16)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--directory", type=Path, help="where to leave the diaries")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="cluster-"))
    sys.stderr.write(f"seed {arguments.seed}, in {directory}\n")
    kinds = some_kinds(arguments.failovers, random.Random(arguments.seed))
    if arguments.kind:
        kinds = [arguments.kind] * arguments.failovers
    with running_cluster(arguments.postgres) as cluster:
        outcome = run_with_failovers(cluster, directory, kinds, arguments.seed)
    sys.stdout.write(f"{outcome}\n")
    return 1 if outcome.report.findings or outcome.audited else 0


if __name__ == "__main__":
    sys.exit(main())
