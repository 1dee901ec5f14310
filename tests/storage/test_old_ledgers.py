"""Ledgers that older versions wrote stay usable. `version_1/` holds one ledger of schema version 1 in three forms.

`ledger.db.gz` is the SQLite file and `export.jsonl.gz` its export. `postgres.sql.gz` is the dump of a PostgreSQL 16
database into which the old code had restored the export and projected the history. Nobody may regenerate these files:
only files that old code wrote can show that new code reads them.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from routing import Allowance, Head, Reservation, Routing, restore, verify
from tests.support.servers import PostgresServer
from tests.support.small import Clock, job

pytestmark = pytest.mark.compatibility

FILES = Path(__file__).parent / "version_1"
VALIDATOR = "5GXnhAuciDS9Vw2fM4DmeMVWie8jxbHEXN3jkVQdZuFqaHmx"
HEAD = Head(
    position=177,
    hash=bytes.fromhex("8b2d75ff8f72cce00da0de8a7a82e7a8a55387bbb43afef79d0ae192743a6fc4"),
    recorded_at_ns=1704115509200000000,
)
STATUSES = {"spent": 35, "released": 3, "expired": 3}
GPU = "always_on.gpu-24gb"


def unpacked(name: str, directory: Path) -> Path:
    """Return a decompressed copy of one of the files."""
    path = directory / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress((FILES / name).read_bytes()))
    return path


@pytest.fixture(params=["sqlite", "postgres_16", "postgres_18"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the tables and rows that the old version wrote."""
    if request.param == "sqlite":
        yield f"sqlite:///{unpacked('ledger.db.gz', tmp_path)}"
        return
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.fresh_database() as url:
        server.load(url, unpacked("postgres.sql.gz", tmp_path))
        yield url


def clock_after_head() -> Clock:
    """A clock that shows one second after the newest event."""
    clock = Clock()
    clock.now_ns = HEAD.recorded_at_ns + 10**9
    return clock


async def history(ledger: Allowance) -> list[Reservation]:
    """Return every reservation, newest first."""
    return (await ledger.history(limit=1000)).items


async def assert_unchanged(url: str) -> None:
    """The ledger has the recorded head and reservations; verification and audit report no finding."""
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        assert await ledger.head() == HEAD
        assert Counter(each.status for each in await history(ledger)) == STATUSES
        verified = await ledger.verify([HEAD])
        assert (verified.findings, verified.position) == ([], HEAD.position)
        assert (await ledger.audit()).findings == []


async def assert_goes_on(url: str) -> None:
    """A pick and a settlement are appended, and the ledger then passes all checks, its read model included."""
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock_after_head()) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("job-of-the-new-version", 5.0, GPU))
        assert route.allowance_reservation_id is not None
        spent = await ledger.spend(route.allowance_reservation_id)
        assert (await ledger.head()).position == HEAD.position + 2
        newest, *older = await history(ledger)
        assert newest == spent
        assert Counter(each.status for each in older) == STATUSES
        assert (await ledger.rebuild()).different == 0
        assert (await ledger.audit()).findings == []
        verified = await ledger.verify([HEAD])
        assert (verified.findings, verified.noted) == ([], [HEAD.position])


async def test_an_old_database_is_read_unchanged(old_url: str) -> None:
    """Opened for reading, it verifies, audits without findings, and lists its reservations."""
    await assert_unchanged(old_url)


async def test_an_old_database_goes_on(old_url: str) -> None:
    """Opened for writing, the old rows and the new ones together pass every check."""
    await assert_goes_on(old_url)


async def test_an_old_export_is_verified() -> None:
    """The file verifies against the head that was noted when it was written."""
    (report,) = await verify(FILES / "export.jsonl.gz", heads=[HEAD])

    assert (report.findings, report.noted, report.position) == ([], [HEAD.position], HEAD.position)
    assert (report.validator_ss58, report.hash) == (VALIDATOR, HEAD.hash.hex())


async def test_an_old_export_is_restored_and_goes_on(shared_url: str) -> None:
    """Restored on each engine, the ledger is the same, and goes on."""
    report = await restore(FILES / "export.jsonl.gz", shared_url)

    assert report.added == HEAD.position
    await assert_unchanged(shared_url)
    await assert_goes_on(shared_url)


async def test_an_old_database_is_exported_byte_for_byte(old_url: str, tmp_path: Path) -> None:
    """The export file of an unchanged ledger is the same today, whichever engine stores it."""
    async with Allowance.open(old_url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        await ledger.export(tmp_path / "export.jsonl.gz")

    written = gzip.decompress((tmp_path / "export.jsonl.gz").read_bytes())
    assert written == gzip.decompress((FILES / "export.jsonl.gz").read_bytes())
