"""A stress test of the ledger, and an independent judge of its result.

Worker processes claim, settle and record at random on one database, while a reader follows the log. The harness kills
workers and starts new ones; workers cancel calls and repeat them. Afterwards the judge replays the stored rows with
code that shares nothing with the product, and compares them with the results that the workers got and the rows that
the reader received.

    python -m tests.stress --engine sqlite --seconds 60 --kills 100 --processes 6

SIGKILL leaves the kernel's page cache intact. So this test shows that no acknowledged change is lost with its process;
it does not show that a change survives a power cut.
"""

from .databases import Database, PostgresDatabase, SqliteDatabase
from .plan import Plan
from .replay import Finding
from .run import Report, run_stress_test

__all__ = ["Database", "Finding", "Plan", "PostgresDatabase", "Report", "SqliteDatabase", "run_stress_test"]
