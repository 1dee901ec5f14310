"""A ledger under torture, and an independent verdict on what is left of it.

Worker processes claim, settle and record at random on one database, are killed and started again, give up waiting,
and repeat themselves, while a reader follows the log. Afterwards the stored rows are replayed by code that shares
nothing with the product, and held against what the workers were told and what the reader received.

    python -m tests.stress --engine sqlite --seconds 60 --kills 100 --processes 6

SIGKILL leaves the kernel's page cache alone, so what this shows is that no acknowledged change is lost with its
process. That a change survives a power cut is not tested here.
"""

from .databases import Database, PostgresDatabase, SqliteDatabase
from .plan import Plan
from .replay import Finding
from .run import Report, torture

__all__ = ["Database", "Finding", "Plan", "PostgresDatabase", "Report", "SqliteDatabase", "torture"]
