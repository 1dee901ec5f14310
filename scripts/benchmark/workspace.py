"""The workspace of a run: a temporary directory with ledgers, each of which is made when a case first needs it."""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

from routing import BlockFact
from routing.cli.demo.network import executor_classes
from routing.cli.files.job_request import JobRequest

from .chain import SEED, Fact, Feed, after, facts_lines, newest_block, parsed
from .jobs import random_job
from .layout import lay_out
from .long_ledger import grow
from .prepared import ROOT, Ledger
from .process import worker
from .server import database, postgres
from .sizes import Sizes

REMOVALS, REMOVALS_IN_A_ROW, REMOVAL_PAUSE_SECONDS = 100, 4, 0.1


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
        self._feeds: dict[str, Feed] = {}
        self._files = 0
        self.random = Random(f"jobs {SEED}")

    def close(self) -> None:
        """Stop the server. The directory is removed at the end of the process, when no connection is open in it."""
        self._closing.close()

    def jobs(self, count: int) -> list[JobRequest]:
        """Return new jobs, spread over all classes."""
        return [random_job(self.random, self.classes) for _ in range(count)]

    def facts(self) -> list[Fact]:
        """Return the network's facts."""
        return parsed(facts_lines(self.sizes))

    def new_file(self) -> Path:
        """Return the path of a file that does not exist."""
        self._files += 1
        return self.directory / f"{self._files}.db"

    def new_ledger(self) -> Ledger:
        """Return a ledger on SQLite that does not exist yet, at the time after the network's facts."""
        facts = self.facts()
        return Ledger(f"sqlite:///{self.new_file()}", after(facts), newest_block(facts))

    def server_url(self) -> str:
        """Return the URL of a PostgreSQL database; start the server if necessary."""
        if self._server_url is None:
            self.show_progress("starting PostgreSQL")
            self._server_url = self._closing.enter_context(postgres(self.directory / "postgres"))
        return self._server_url

    @property
    def network_sizes(self) -> tuple[int, ...]:
        """The numbers of miners of `networks`, from the usual one on."""
        return (self.sizes.miners, *self.sizes.larger_networks)

    async def networks(self) -> list[Ledger]:
        """Return SQLite ledgers with all blocks and hardly any other event, one for each number of miners."""
        return [await self.short(miners=miners) for miners in self.network_sizes]

    async def short(self, *, miners: int = 0, on_postgres: bool = False) -> Ledger:
        """Return a ledger with all blocks, and of each account a third taken in one reservation."""
        miners = miners or self.sizes.miners

        async def make(url: str) -> tuple[int, BlockFact]:
            self.show_progress(f"making a ledger of {miners:,} miners")
            return await lay_out(url, self.sizes, miners)

        return await self._made(f"short_{miners}", make, on_postgres=on_postgres)

    async def long(self, events: int = 0, *, routed: bool = True, on_postgres: bool = False) -> Ledger:
        """Return a ledger with this many events; its jobs were routed, or only reserved, which is faster."""
        events = events or self.sizes.log

        def progress(position: int) -> None:
            self.show_progress(f"making a log: {position:,} of {events:,} events")

        async def make(url: str) -> tuple[int, BlockFact]:
            start_ns, newest = await grow(url, self.sizes, events, progress, routed=routed)
            # So that the history lags no more than that of a service. The process ends as if it was killed: a clean
            # close would seal the state.
            async with worker(Ledger(url, start_ns, newest), self.classes) as process:
                await process.project()
            return start_ns, newest

        return await self._made(f"long_{events}_{routed}", make, on_postgres=on_postgres)

    async def both_logs(self, *, on_postgres: bool = False) -> list[tuple[str, Ledger]]:
        """Return the ledgers on which changes are measured, with the words that name their logs."""
        return [
            ("short log", await self.short(on_postgres=on_postgres)),
            (f"log of {self.sizes.log:,}", await self.long(on_postgres=on_postgres)),
        ]

    def copied(self, prepared: Ledger) -> Ledger:
        """Return a copy of a SQLite ledger with its derived tables, which a case may change."""
        path = self.new_file()
        for suffix in ("", "-derived"):
            source_path = Path(f"{prepared.path}{suffix}")
            if source_path.exists():
                with (
                    closing(sqlite3.connect(source_path)) as source,
                    closing(sqlite3.connect(f"{path}{suffix}")) as copy,
                ):
                    source.backup(copy)
        return prepared._replace(url=f"sqlite:///{path}")

    def feed(self, prepared: Ledger) -> Feed:
        """Return the feed that continues a ledger's chain; all cases share it."""
        if prepared.url not in self._feeds:
            self._feeds[prepared.url] = Feed(prepared.newest)
        return self._feeds[prepared.url]

    async def _made(
        self, name: str, make: Callable[[str], Awaitable[tuple[int, BlockFact]]], *, on_postgres: bool
    ) -> Ledger:
        """Return the ledger of this name; make it if it is the first time that it is needed."""
        name = f"{name}_postgres" if on_postgres else name
        if name not in self._ledgers:
            url = await database(self.server_url(), name) if on_postgres else f"sqlite:///{self.new_file()}"
            self._ledgers[name] = Ledger(url, *await make(url))
        return self._ledgers[name]
