"""Ledgers that older versions wrote stay usable. `version_N/` holds one ledger of schema version N in three forms.

`ledger.db.gz` is the SQLite file and `export.jsonl.gz` its export. `postgres.sql.gz` is the dump of a PostgreSQL 16
database into which the old code had restored the export and projected the history. Nobody may regenerate these files:
only files that old code wrote can show that new code reads them. `python -m tests.storage.make_version_files` makes the
files of a new schema version, with `ledger.json`; the tests below then run on them too.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from ledger import SCHEMA_VERSION
from routing import Allowance, Head, Reservation, Routing, restore, verify
from tests.support.servers import PostgresServer
from tests.support.small import Clock, job

pytestmark = pytest.mark.compatibility

FOLDER = Path(__file__).parent
FILES = FOLDER / "version_1"
VALIDATOR = "5GXnhAuciDS9Vw2fM4DmeMVWie8jxbHEXN3jkVQdZuFqaHmx"
HEAD = Head(
    position=177,
    hash=bytes.fromhex("8b2d75ff8f72cce00da0de8a7a82e7a8a55387bbb43afef79d0ae192743a6fc4"),
    recorded_at_ns=1704115509200000000,
)
STATUSES = {"spent": 35, "released": 3, "expired": 3}
GPU = "always_on.gpu-24gb"


class OldLedger(NamedTuple):
    """What a folder of files holds."""

    files: Path
    validator_ss58: str
    head: Head
    statuses: dict[str, int]


def old_ledger_of(folder: Path) -> OldLedger:
    """Return what `make_version_files` noted beside the files."""
    noted = json.loads((folder / "ledger.json").read_text())
    head = Head(noted["position"], bytes.fromhex(noted["hash"]), noted["recorded_at_ns"])
    return OldLedger(folder, noted["validator_ss58"], head, noted["statuses"])


VERSION_1 = OldLedger(FILES, VALIDATOR, HEAD, STATUSES)
OLD_LEDGERS = [VERSION_1, *(old_ledger_of(noted.parent) for noted in sorted(FOLDER.glob("version_*/ledger.json")))]

# Those of the schema version of today have nothing to upgrade, and may have been born with today's defaults.
OLDER_LEDGERS = [old for old in OLD_LEDGERS if int(old.files.name.removeprefix("version_")) < SCHEMA_VERSION]


@pytest.fixture(params=OLD_LEDGERS, ids=lambda old: old.files.name)
def old(request: pytest.FixtureRequest) -> OldLedger:
    """One of the stored ledgers."""
    found: OldLedger = request.param
    return found


def unpacked(name: str, directory: Path, files: Path = FILES) -> Path:
    """Return a decompressed copy of one of the files."""
    # Not in the directory itself: a test's new database is there, and has the same name.
    (directory / "old").mkdir(exist_ok=True)
    path = directory / "old" / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress((files / name).read_bytes()))
    return path


@pytest.fixture(params=["sqlite", "postgres_16", "postgres_18"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the tables and rows that schema version 1 wrote."""
    yield from loaded(request, tmp_path, FILES)


@pytest.fixture(params=["sqlite", "postgres_16", "postgres_18"])
def stored_url(request: pytest.FixtureRequest, tmp_path: Path, old: OldLedger) -> Iterator[str]:
    """A database with the tables and rows that an old version wrote."""
    yield from loaded(request, tmp_path, old.files)


def loaded(request: pytest.FixtureRequest, directory: Path, files: Path) -> Iterator[str]:
    """Yield the URL of a database made of one of the files."""
    if request.param == "sqlite":
        yield f"sqlite:///{unpacked('ledger.db.gz', directory, files)}"
        return
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.fresh_database() as url:
        server.load(url, unpacked("postgres.sql.gz", directory, files))
        yield url


def clock_after(head: Head) -> Clock:
    """A clock that shows one second after the newest event."""
    clock = Clock()
    clock.now_ns = head.recorded_at_ns + 10**9
    return clock


async def history(ledger: Allowance) -> list[Reservation]:
    """Return every reservation, newest first."""
    return (await ledger.history(limit=1000)).items


async def assert_unchanged(url: str, old: OldLedger) -> None:
    """The ledger has the recorded head and reservations; verification and audit report no finding."""
    async with Allowance.open(url, validator_ss58=old.validator_ss58, read_only=True) as ledger:
        assert await ledger.head() == old.head
        assert Counter(each.status for each in await history(ledger)) == old.statuses
        verified = await ledger.verify([old.head])
        assert (verified.findings, verified.position) == ([], old.head.position)
        assert (await ledger.audit()).findings == []


async def assert_goes_on(url: str, old: OldLedger) -> None:
    """A pick and a settlement are appended, and the ledger then passes all checks, its read model included."""
    clock = clock_after(old.head)
    async with Allowance.open(url, validator_ss58=old.validator_ss58, clock_ns=clock) as ledger:
        assert (await ledger.health()).schema_version == SCHEMA_VERSION
        route = await Routing(ledger).pick_miner_for_job_request(job("job-of-the-new-version", 5.0, GPU))
        assert route.allowance_reservation_id is not None
        spent = await ledger.spend(route.allowance_reservation_id)
        expired = (await ledger.head()).position - old.head.position - 2
        newest, *older = await history(ledger)
        assert newest == spent
        # The claim may have expired overdue reservations.
        statuses = Counter(old.statuses)
        statuses.update(reserved=-expired, expired=expired)
        assert Counter(each.status for each in older) == +statuses
        assert (await ledger.rebuild()).different == 0
        assert (await ledger.audit()).findings == []
        verified = await ledger.verify([old.head])
        assert (verified.findings, verified.noted) == ([], [old.head.position])


async def test_an_old_database_is_read_unchanged(stored_url: str, old: OldLedger) -> None:
    """Opened for reading, it verifies, audits without findings, and lists its reservations."""
    await assert_unchanged(stored_url, old)


async def test_an_old_database_goes_on(stored_url: str, old: OldLedger) -> None:
    """Opened for writing, the old rows and the new ones together pass every check."""
    await assert_goes_on(stored_url, old)


async def test_an_old_export_is_verified(old: OldLedger) -> None:
    """The file verifies against the head that was noted when it was written."""
    head = old.head
    (report,) = await verify(old.files / "export.jsonl.gz", heads=[head])

    assert (report.findings, report.noted, report.position) == ([], [head.position], head.position)
    assert (report.validator_ss58, report.hash) == (old.validator_ss58, head.hash.hex())


async def test_an_old_export_is_restored_and_goes_on(shared_url: str, old: OldLedger) -> None:
    """Restored on each engine, the ledger is the same, and goes on."""
    report = await restore(old.files / "export.jsonl.gz", shared_url)

    assert report.added == old.head.position
    await assert_unchanged(shared_url, old)
    await assert_goes_on(shared_url, old)


async def test_an_old_database_is_exported_byte_for_byte(stored_url: str, old: OldLedger, tmp_path: Path) -> None:
    """The export file of an unchanged ledger is the same today, whichever engine stores it."""
    async with Allowance.open(stored_url, validator_ss58=old.validator_ss58, read_only=True) as ledger:
        await ledger.export(tmp_path / "export.jsonl.gz")

    written = gzip.decompress((tmp_path / "export.jsonl.gz").read_bytes())
    assert written == gzip.decompress((old.files / "export.jsonl.gz").read_bytes())


@pytest.mark.parametrize("read_only", [False, True])
async def test_uuids_that_version_3_stored_as_bytes_are_found(tmp_path: Path, read_only: bool) -> None:
    """A job is found by the text of its UUID. Catches a release that looks for another stored form."""
    old = old_ledger_of(FOLDER / "version_3")
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    with closing(sqlite3.connect(path)) as log:
        (stored,) = log.execute("SELECT job_uuid FROM allowance_events WHERE typeof(job_uuid) = 'blob'")
        (key,) = log.execute("SELECT key FROM allowance_events WHERE typeof(key) = 'blob'")
    assert (stored, key) == ((UUID(int=2).bytes,), (UUID(int=1).bytes,))

    url = f"sqlite:///{path}"
    async with Allowance.open(url, validator_ss58=old.validator_ss58, read_only=read_only) as ledger:
        (found,) = (await ledger.history(job_uuid=str(UUID(int=2)))).items
    assert found.job_uuid == str(UUID(int=2))
