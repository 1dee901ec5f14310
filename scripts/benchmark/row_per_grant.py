"""A comparison with the obvious design, made as fast as possible: a row for every block, miner, validator and class.

It runs on PostgreSQL. Every column is a small integer; a covering index makes a search one index-only scan; `COPY`
inserts the rows. A claim is one statement and one commit: it locks only the blocks that it takes, in order, and skips
blocks that others have locked. The design omits features that would slow it down: busy miners, drops, expiry and
retries.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from statistics import median

import asyncpg

from routing import Allowance, BlockFact, ManifestsFact, Routing
from routing.cli.files.job_request import JobRequest

from .chain import BLOCK_SECONDS, HOTKEY, SECOND_NS, Feed, newest_block
from .constrained import log_bytes
from .feeding import FACTS_PER_COMMIT
from .figures import MS, Report, at_least, interleaved
from .jobs import release_all
from .workspace import Workspace

WINDOW_BLOCKS = 722
"""How long a block is usable. Source: ComputeHorde's validator."""
RESERVED_SHARE = 3
"""The earliest third of the window's blocks is reserved."""

_SCHEMA = """
    CREATE TABLE reservations (
        reservation_id BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY, job_uuid UUID NOT NULL UNIQUE,
        miner SMALLINT NOT NULL, class SMALLINT NOT NULL, amount_ns BIGINT NOT NULL, expires_at_ns BIGINT NOT NULL
    );
    CREATE TABLE grants (
        amount_ns BIGINT NOT NULL, reservation_id BIGINT, block INTEGER NOT NULL,
        validator SMALLINT NOT NULL, class SMALLINT NOT NULL, miner SMALLINT NOT NULL
    )"""
_INDEXES = """
    ALTER TABLE grants ADD PRIMARY KEY (validator, class, miner, block);
    CREATE INDEX grants_search ON grants (validator, class, block) INCLUDE (miner, amount_ns, reservation_id)"""
_COLUMNS = ("amount_ns", "reservation_id", "block", "validator", "class", "miner")
_SEARCH = """
    SELECT miner, min(amount_ns) AS least_ns FROM grants
    WHERE validator = $1 AND class = $2 AND block >= $3 GROUP BY miner
    HAVING sum(amount_ns) FILTER (WHERE reservation_id IS NULL) >= $4
    ORDER BY min(block) FILTER (WHERE reservation_id IS NULL),
             sum(amount_ns) FILTER (WHERE reservation_id IS NULL) / sum(amount_ns) DESC, miner
    LIMIT 10"""
_CLAIM = """
    WITH made AS (
        INSERT INTO reservations (job_uuid, miner, class, amount_ns, expires_at_ns) VALUES ($7, $3, $2, $6, $8)
        RETURNING reservation_id
    ), free AS MATERIALIZED (
        SELECT block, amount_ns FROM grants
        WHERE validator = $1 AND class = $2 AND miner = $3 AND block >= $4 AND reservation_id IS NULL
        ORDER BY block LIMIT $5 FOR UPDATE SKIP LOCKED
    ), enough AS (
        SELECT block, sum(amount_ns) OVER (ORDER BY block) - amount_ns AS before_ns FROM free
    )
    UPDATE grants SET reservation_id = made.reservation_id FROM made, enough
    WHERE grants.validator = $1 AND grants.class = $2 AND grants.miner = $3 AND grants.block = enough.block
      AND enough.before_ns < $6
    RETURNING grants.reservation_id, grants.block, grants.amount_ns"""
_RELEASE = (
    "UPDATE grants SET reservation_id = NULL WHERE validator = $1 AND class = $2 AND miner = $3 AND block = ANY($4)"
)


class RowPerGrant:
    """The tables, and the connection of one caller."""

    def __init__(self, connection: asyncpg.Connection, classes: list[str]) -> None:
        self._connection = connection
        self._classes = {executor_class: index for index, executor_class in enumerate(classes)}
        self._rows = _Rows(self._classes)
        self.blocks = 0
        self.bytes_per_block = 0.0
        """The size of a block with its indexes, measured before any update, when the rows are packed most densely."""

    async def fill(self, facts: list[BlockFact | ManifestsFact]) -> None:
        """Load all facts, create the indexes, and reserve a third of the blocks."""
        connection = self._connection
        await connection.execute(_SCHEMA)
        for fact in facts:
            if isinstance(fact, ManifestsFact):
                self._rows.sync(fact)
            else:
                await self.record_block(fact)
        await connection.execute(_INDEXES)
        stored: int = await connection.fetchval("SELECT pg_total_relation_size('grants')")
        self.bytes_per_block = stored / self.blocks
        window = min(WINDOW_BLOCKS, self.blocks)
        await connection.execute(
            "UPDATE grants SET reservation_id = 0 WHERE validator = 0 AND block < $1",
            self._rows.newest - window + window // RESERVED_SHARE,
        )
        await connection.execute("VACUUM (ANALYZE) grants")

    async def record_block(self, block: BlockFact) -> None:
        """Insert the grants of a block to all validators."""
        rows = list(self._rows.of(block))
        await self._connection.copy_records_to_table("grants", records=rows, columns=_COLUMNS)
        self.blocks += 1

    async def pick(self, job: JobRequest) -> tuple[int, int, list[int]]:
        """Search, and claim on the first miner that still has enough; return class, miner and blocks."""
        executor_class = self._classes[job.executor_class]
        since = self._rows.newest - WINDOW_BLOCKS
        amount_ns = round((job.download_time_limit + job.execution_time_limit + job.upload_time_limit) * SECOND_NS)
        for miner, least_ns in await self._connection.fetch(_SEARCH, 0, executor_class, since, amount_ns):
            expires_at_ns = time.time_ns() + amount_ns + 100 * SECOND_NS
            most = amount_ns // least_ns + 1
            taken = await self._connection.fetch(
                _CLAIM, 0, executor_class, miner, since, most, amount_ns, job.uuid, expires_at_ns
            )
            if sum(row["amount_ns"] for row in taken) >= amount_ns:
                return executor_class, miner, [row["block"] for row in taken]
        raise RuntimeError(f"no miner for {job}")

    async def release(self, executor_class: int, miner: int, blocks: list[int]) -> None:
        """Release blocks."""
        await self._connection.execute(_RELEASE, 0, executor_class, miner, blocks)


class _Rows:
    """Computes the rows of one block after the other."""

    def __init__(self, classes: dict[str, int]) -> None:
        self._classes = classes
        self._miners: dict[str, int] = {}
        self._manifests: dict[str, dict[str, int]] = {}
        self.newest = 0

    def sync(self, fact: ManifestsFact) -> None:
        """Use these counts from now on."""
        self._manifests = {miner: dict(counts) for miner, counts in fact.manifests.items()}

    def of(self, block: BlockFact) -> Iterator[tuple[int, None, int, int, int, int]]:
        """Yield the grants of a block, which counts as 12 s long."""
        self.newest = block.number
        stakes = [block.stakes[HOTKEY], *(stake for hotkey, stake in block.stakes.items() if hotkey != HOTKEY)]
        total = sum(stakes)
        units_ns = [round(BLOCK_SECONDS * SECOND_NS * stake / total) for stake in stakes]
        for miner in block.miners:
            index = self._miners.setdefault(miner.hotkey_ss58, len(self._miners))
            for executor_class, count in self._manifests.get(miner.hotkey_ss58, {}).items():
                if count:
                    for validator, unit_ns in enumerate(units_ns):
                        yield unit_ns * count, None, block.number, validator, self._classes[executor_class], index


@asynccontextmanager
async def row_per_grant(workspace: Workspace) -> AsyncIterator[RowPerGrant]:
    """Create and fill the tables; drop them at the end."""
    connection = await asyncpg.connect(workspace.server_url())
    workspace.show_progress("filling the row-per-grant tables")
    await connection.execute("DROP TABLE IF EXISTS grants, reservations")
    design = RowPerGrant(connection, workspace.classes)
    try:
        await design.fill(workspace.facts())
        yield design
    finally:
        await connection.execute("DROP TABLE IF EXISTS grants, reservations")
        await connection.close()


async def against_row_per_grant(workspace: Workspace, report: Report) -> None:
    """Compare picks of one caller, unchanged blocks and stored bytes, with both designs on the same server."""
    prepared = await workspace.short(on_postgres=True)
    async with row_per_grant(workspace) as design, prepared.open() as ledger:
        router = Routing(ledger)

        async def our_picks() -> float:
            times_ms = []
            for job in workspace.jobs(workspace.sizes.picks // 10):
                started = time.perf_counter()
                route = await router.pick_miner_for_job_request(job)
                times_ms.append((time.perf_counter() - started) * MS)
                await release_all(ledger, [route])
            return median(times_ms)

        async def their_picks() -> float:
            times_ms = []
            for job in workspace.jobs(workspace.sizes.picks // 10):
                started = time.perf_counter()
                claimed = await design.pick(job)
                times_ms.append((time.perf_counter() - started) * MS)
                await design.release(*claimed)
            return median(times_ms)

        ours, theirs = await interleaved(workspace.sizes.repeat, our_picks, their_picks)
        report.add("a pick on PostgreSQL", "ms", ours, ("row per grant", theirs))
        stored = design.bytes_per_block
        await _blocks(workspace, report, ledger, design)
    imported, facts = workspace.new_ledger(), workspace.facts()
    async with imported.open() as ledger:
        for start in range(0, len(facts), FACTS_PER_COMMIT):
            await ledger.record_facts(facts[start : start + FACTS_PER_COMMIT])
        ours_stored = log_bytes(imported) / workspace.sizes.blocks
    report.add(
        "bytes a block, how many times fewer than row per grant",
        "times",
        [stored / ours_stored],
        target=at_least(1000),
        note=f"{stored:,.0f} against {ours_stored:,.0f}, changes, syncs and indexes included",
    )


async def _blocks(workspace: Workspace, report: Report, ledger: Allowance, design: RowPerGrant) -> None:
    """Compare unchanged blocks. This comes last, because the new blocks change the share that is reserved."""
    their_feed = Feed(newest_block(workspace.facts()))
    our_feed = workspace.feed(await workspace.short(on_postgres=True))

    async def our_blocks() -> float:
        return median([await our_feed.timed(ledger) for _ in range(workspace.sizes.appends // 10)]) * MS

    async def their_blocks() -> float:
        times_ms = []
        for _ in range(workspace.sizes.appends // 10):
            block = their_feed.next()
            started = time.perf_counter()
            await design.record_block(block)
            times_ms.append((time.perf_counter() - started) * MS)
        return median(times_ms)

    ours, theirs = await interleaved(workspace.sizes.repeat, our_blocks, their_blocks)
    report.add("an unchanged block on PostgreSQL", "ms", ours, ("row per grant", theirs))
