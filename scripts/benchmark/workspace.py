"""The workspace of a run: a temporary directory with ledgers, each of which is made when a case first needs it."""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import NamedTuple

from routing import Allowance
from routing.cli.demo.network import executor_classes
from routing.cli.files.job_request import JobRequest

from .chain import HOTKEY, SEED, Clock, Fact, after, facts_lines, parsed
from .filling import fill
from .jobs import random_job
from .long_ledger import grow
from .server import postgres
from .sizes import Sizes

REMOVALS, REMOVALS_IN_A_ROW, REMOVAL_PAUSE_SECONDS = 100, 4, 0.1
ROOT = Path(__file__).resolve().parents[2]


class Ledger(NamedTuple):
    """A ledger that was made: its URL, and the time at which its measurements start, after its newest block."""

    url: str
    start_ns: int

    @property
    def path(self) -> Path:
        """Its file, if it is on SQLite."""
        return Path(self.url.removeprefix("sqlite:///"))

    def open(self, *, read_only: bool = False) -> Allowance:
        """Open it with a clock that starts at its time."""
        return Allowance.open(self.url, validator_ss58=HOTKEY, clock_ns=Clock(self.start_ns), read_only=read_only)


def _remove(directory: Path) -> None:
    """Remove a directory, several times: a cancelled opening on the ledger's thread may create it once more."""
    gone = 0
    for _ in range(REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(REMOVAL_PAUSE_SECONDS)
        gone = 0 if directory.exists() else gone + 1
        if gone == REMOVALS_IN_A_ROW:
            return


class Workspace:
    """The temporary directory, its ledgers, and a PostgreSQL server, which starts when a case first needs it.

    The directory is in the checkout, so that it is on the same disk, and git ignores it.
    """

    def __init__(self, sizes: Sizes, show_progress: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.show_progress = show_progress
        self.directory = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))
        (self.directory / ".gitignore").write_text("*\n")
        self.classes = executor_classes(sizes.classes)
        self._closing = ExitStack()
        # Exit functions run in reverse order. This one is registered before the runtime exists, so it runs after the
        # runtime has closed its connections.
        atexit.register(_remove, self.directory)
        self._server_url: str | None = None
        self._ledgers: dict[str, Ledger] = {}
        self._files = 0
        self._jobs = Random(f"jobs {SEED}")

    def close(self) -> None:
        """Stop the server. The directory is removed at the end of the process, when no connection is open in it."""
        self._closing.close()

    def jobs(self, count: int) -> list[JobRequest]:
        """Return new jobs, spread over all classes."""
        return [random_job(self._jobs, self.classes) for _ in range(count)]

    def facts(self) -> list[Fact]:
        """Return the network's facts."""
        return parsed(facts_lines(self.sizes))

    def new_file(self) -> Path:
        """Return the path of a file that does not exist."""
        self._files += 1
        return self.directory / f"{self._files}.db"

    def new_ledger(self) -> Ledger:
        """Return a ledger on SQLite that does not exist yet, at the time after the network's facts."""
        return Ledger(f"sqlite:///{self.new_file()}", after(self.facts()))

    def server_url(self) -> str:
        """Return the URL of a PostgreSQL database; start the server if necessary."""
        if self._server_url is None:
            self.show_progress("starting PostgreSQL")
            self._server_url = self._closing.enter_context(postgres(self.directory / "postgres"))
        return self._server_url

    async def filled(self, miners: int | None = None) -> Ledger:
        """Return a SQLite ledger with all facts and a third of the blocks taken; one for each number of miners."""
        miners = miners or self.sizes.miners
        return await self._filled(f"filled {miners}", f"sqlite:///{self.new_file()}", miners)

    def copied(self, prepared: Ledger) -> Ledger:
        """Return a copy of a SQLite ledger, which a case may change."""
        path = self.new_file()
        with closing(sqlite3.connect(prepared.path)) as source, closing(sqlite3.connect(path)) as copy:
            source.backup(copy)
        return Ledger(f"sqlite:///{path}", prepared.start_ns)

    async def filled_on_postgres(self) -> Ledger:
        """Return the same as `filled`, on PostgreSQL."""
        return await self._filled("filled on PostgreSQL", self.server_url(), self.sizes.miners)

    async def _filled(self, name: str, url: str, miners: int) -> Ledger:
        if name not in self._ledgers:
            self.show_progress(f"filling a ledger of {miners} miners")
            facts = parsed(facts_lines(self.sizes, miners))
            prepared = Ledger(url, after(facts))
            async with prepared.open() as ledger:
                await fill(ledger, facts, self.classes)
            self._ledgers[name] = prepared
        return self._ledgers[name]

    async def long(self, events: int, *, routed: bool = False) -> Ledger:
        """Return a SQLite ledger with this many events; its jobs were routed, or only reserved, which is faster."""
        name = f"long {events} {routed}"
        if name not in self._ledgers:
            path = self.new_file()
            start_ns = await grow(
                path,
                self.sizes,
                events,
                lambda position: self.show_progress(f"making a log: {position:,} of {events:,} events"),
                routed=routed,
            )
            self._ledgers[name] = Ledger(f"sqlite:///{path}", start_ns)
        return self._ledgers[name]
