"""Where the figures are taken: a temporary directory with ledgers in it, each made when it is first asked for."""

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
from .jobs import draw_job
from .long_ledger import grow
from .server import postgres
from .sizes import Sizes

REMOVALS, SURELY_GONE, REMOVAL_PAUSE_SECONDS = 100, 4, 0.1
ROOT = Path(__file__).resolve().parents[2]


class Ledger(NamedTuple):
    """A ledger that was made: where it is, and when its newest block was followed by what comes now."""

    url: str
    start_ns: int

    @property
    def path(self) -> Path:
        """Its file, on SQLite."""
        return Path(self.url.removeprefix("sqlite:///"))

    def open(self, *, read_only: bool = False) -> Allowance:
        """Opens it, at the time at which it was left."""
        return Allowance.open(self.url, validator_ss58=HOTKEY, clock_ns=Clock(self.start_ns), read_only=read_only)


def _remove(directory: Path) -> None:
    """Removes a directory that the ledger's own thread, cancelled while it opens a ledger, may make once more."""
    gone = 0
    for _ in range(REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(REMOVAL_PAUSE_SECONDS)
        gone = 0 if directory.exists() else gone + 1
        if gone == SURELY_GONE:
            return


class World:
    """The temporary directory, what is in it, and the PostgreSQL server, which is started when it is first needed.

    The directory is on the checkout's disk and ignored by git.
    """

    def __init__(self, sizes: Sizes, say: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.say = say
        """Tells somebody who watches what is being done."""
        self.directory = Path(tempfile.mkdtemp(prefix=".bench-", dir=ROOT))
        (self.directory / ".gitignore").write_text("*\n")
        self.classes = executor_classes(sizes.classes)
        self._closing = ExitStack()
        # Registered before the ledger's runtime is there, it comes after the runtime has closed what was open.
        atexit.register(_remove, self.directory)
        self._server_url: str | None = None
        self._ledgers: dict[str, Ledger] = {}
        self._files = 0
        self._jobs = Random(f"jobs {SEED}")

    def close(self) -> None:
        """Stops the server; the directory goes when the process ends, after whatever still has a ledger open in it."""
        self._closing.close()

    def jobs(self, count: int) -> list[JobRequest]:
        """Jobs that nobody has asked for yet, over all classes alike."""
        return [draw_job(self._jobs, self.classes) for _ in range(count)]

    def facts(self) -> list[Fact]:
        """The network's facts."""
        return parsed(facts_lines(self.sizes))

    def new_file(self) -> Path:
        """The path of a file that is not there yet."""
        self._files += 1
        return self.directory / f"{self._files}.db"

    def new_ledger(self) -> Ledger:
        """A ledger on SQLite that is not there yet, at the end of the network's facts."""
        return Ledger(f"sqlite:///{self.new_file()}", after(self.facts()))

    def server_url(self) -> str:
        """The URL of a PostgreSQL database."""
        if self._server_url is None:
            self.say("starting PostgreSQL")
            self._server_url = self._closing.enter_context(postgres(self.directory / "postgres"))
        return self._server_url

    async def filled(self, miners: int | None = None) -> Ledger:
        """All facts and a third of the blocks taken, on SQLite; one ledger for each number of miners."""
        miners = miners or self.sizes.miners
        return await self._filled(f"filled {miners}", f"sqlite:///{self.new_file()}", miners)

    def copied(self, prepared: Ledger) -> Ledger:
        """A copy of a ledger on SQLite, to be changed at will."""
        path = self.new_file()
        with closing(sqlite3.connect(prepared.path)) as source, closing(sqlite3.connect(path)) as copy:
            source.backup(copy)
        return Ledger(f"sqlite:///{path}", prepared.start_ns)

    async def filled_on_postgres(self) -> Ledger:
        """The same on PostgreSQL."""
        return await self._filled("filled on PostgreSQL", self.server_url(), self.sizes.miners)

    async def _filled(self, name: str, url: str, miners: int) -> Ledger:
        if name not in self._ledgers:
            self.say(f"filling a ledger of {miners} miners")
            facts = parsed(facts_lines(self.sizes, miners))
            prepared = Ledger(url, after(facts))
            async with prepared.open() as ledger:
                await fill(ledger, facts, self.classes)
            self._ledgers[name] = prepared
        return self._ledgers[name]

    async def long(self, events: int, *, routed: bool = False) -> Ledger:
        """A ledger of so many events on SQLite; its jobs were routed, or only reserved, which is faster to make."""
        name = f"long {events} {routed}"
        if name not in self._ledgers:
            path = self.new_file()
            start_ns = await grow(
                path,
                self.sizes,
                events,
                lambda position: self.say(f"making a log: {position:,} of {events:,} events"),
                routed=routed,
            )
            self._ledgers[name] = Ledger(f"sqlite:///{path}", start_ns)
        return self._ledgers[name]
