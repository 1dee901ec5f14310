"""Make the files of `tests/storage/version_N/` with the current code: python -m tests.storage.make_version_files.

Run it once, when a release with a new schema version is complete, and commit the files; nobody may make them again.
The directory gets a SQLite database, its export, the dump of a PostgreSQL 16 database into which the export was
restored, and `ledger.json` with what the tests expect.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from ledger import SCHEMA_VERSION
from routing import Allowance, Routing, restore
from tests.support.servers import postgres_server
from tests.support.small import VALIDATOR, Clock, job
from tests.support.stories import CLASSES, MINERS, Story

SEED = 1
OPERATIONS = 150


async def add_uuids(ledger: Allowance) -> None:
    """Record a UUID as the key of an event and as a job: SQLite stores it in another form than other text."""
    await ledger.record_manifests(
        2, {hotkey: dict.fromkeys(CLASSES, 3) for hotkey in MINERS}, confirm=True, idempotency_key=str(UUID(int=SEED))
    )
    await Routing(ledger).pick_miner_for_job_request(job(str(UUID(int=SEED + 1)), 1.0, CLASSES[0]))
    await Routing(ledger).pick_miner_for_job_request(job(str(UUID(int=SEED + 2)).replace("-", "_"), 1.0, CLASSES[0]))


async def write_ledger(scratch: Path, url: str) -> dict[str, Any]:
    """Write a ledger to a SQLite file, export it, and restore it at a URL; return what the tests expect of it."""
    clock = Clock()
    database_url = f"sqlite:///{scratch}/ledger.db"
    async with Allowance.open(database_url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        await Story(ledger, clock, SEED).goes_on(OPERATIONS)
        await add_uuids(ledger)
        await ledger.rebuild()
        await ledger.verify()
        await ledger.export(scratch / "export.jsonl.gz")
        head = await ledger.head()
        statuses = Counter(each.status for each in (await ledger.history(limit=10_000)).items)
    await restore(scratch / "export.jsonl.gz", url)
    async with Allowance.open(url, validator_ss58=VALIDATOR) as restored:
        await restored.rebuild()
        await restored.verify()
    return {
        "validator_ss58": VALIDATOR,
        "position": head.position,
        "hash": head.hash.hex(),
        "recorded_at_ns": head.recorded_at_ns,
        "statuses": dict(sorted(statuses.items())),
    }


def make(directory: Path) -> None:
    """Write a ledger of this schema version in each form."""
    directory.mkdir(exist_ok=False)
    with TemporaryDirectory() as name, postgres_server(16) as server, server.fresh_database() as url:
        scratch = Path(name)
        expected = asyncio.run(write_ledger(scratch, url))
        server.dump(url, scratch / "postgres.sql")
        for file in ("ledger.db", "postgres.sql"):
            (directory / f"{file}.gz").write_bytes(gzip.compress((scratch / file).read_bytes(), mtime=0))
        (directory / "export.jsonl.gz").write_bytes((scratch / "export.jsonl.gz").read_bytes())
    (directory / "ledger.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / f"version_{SCHEMA_VERSION}")
