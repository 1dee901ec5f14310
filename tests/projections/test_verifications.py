"""`verify` records its result; `verify --since` checks in pieces, and continues after an interruption."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ledger import Store, store_from_url
from projections import last_verification, verifications
from projections.verifications import Verification
from routing import Allowance, PositionOutOfRange, VerifyReport
from routing.service.backup import verify_since
from tests.storage.test_damage import damage
from tests.support.engines import statement
from tests.support.small import VALIDATOR, small_ledger

BLOCKS = 58
HEAD = BLOCKS + 2
NOW_NS = 1_700_000_000 * 10**9


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 20 rows, in pages of 10."""
    monkeypatch.setattr(verifications, "PIECE_ROWS", 20)
    for engine in ("sqlite", "postgres"):
        monkeypatch.setattr(f"ledger.store.{engine}.reader.PAGE_ROWS", 10)


@pytest.fixture
async def small_url(any_url: str) -> str:
    """A database with a small ledger that is closed."""
    async with small_ledger(url=any_url, blocks=BLOCKS):
        pass
    return any_url


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[Store]:
    """A store that only reads."""
    store = store_from_url(url, VALIDATOR, read_only=True)
    await store.open(None)
    try:
        yield store
    finally:
        await store.close()


async def recorded(url: str) -> Verification | None:
    """Return the recorded result."""
    async with reading(url) as store:
        return await last_verification(store)


async def hash_at(url: str, position: int) -> bytes:
    """Return the hash of the row at a position."""
    async with reading(url) as store:
        return (await store.read(position - 1))[0].hash


async def check(url: str, since: int | None = None, **options: Any) -> VerifyReport:
    """Verify in pieces, at a fixed time."""
    return await verify_since(url, since=since, clock_ns=lambda: NOW_NS, **options)


class Interrupted(Exception):
    """The user pressed Ctrl-C."""


async def test_verify_records_its_result(small_url: str) -> None:
    """A clean result names the head; with findings the log is known to be good up to nowhere."""
    assert await recorded(small_url) is None
    async with Allowance.open(small_url, validator_ss58=VALIDATOR) as ledger:
        report = await ledger.verify()
    found = await recorded(small_url)
    assert found is not None
    assert found[:2] == (HEAD, bytes.fromhex(report.hash))
    assert found[3:] == (0, None)
    assert found.verified_at_ns > NOW_NS
    async with Allowance.open(small_url, validator_ss58=VALIDATOR) as ledger:
        await damage(small_url, "UPDATE allowance_events SET recorded_at_ns = recorded_at_ns + 1 WHERE position = 7")
        await ledger.verify()
    found = await recorded(small_url)
    assert found is not None
    assert (found.position, found.findings, found.first_bad_position) == (0, 1, 7)


async def test_a_read_only_ledger_records_nothing(small_url: str) -> None:
    """An auditor leaves no trace."""
    async with Allowance.open(small_url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        await ledger.verify()
    assert await recorded(small_url) is None


async def test_an_interrupted_check_goes_on_after_the_last_complete_piece(small_url: str) -> None:
    """Interrupted in the third piece, two are recorded; the next run reads only the rows after them.

    Catches progress that is stored at the end only, and a piece that is recorded before it was checked.
    """

    def interrupt(done: int, total: int) -> None:
        assert total == HEAD
        if done > 40:
            raise Interrupted

    with pytest.raises(Interrupted):
        await check(small_url, progress=interrupt)
    assert await recorded(small_url) == (40, await hash_at(small_url, 40), NOW_NS, 0, None)
    report = await check(small_url)
    assert (report.events, report.position, report.findings) == (HEAD - 40, HEAD, [])
    assert "up to position 40 were not checked" in report.not_excluded[0]
    assert await recorded(small_url) == (HEAD, bytes.fromhex(report.hash), NOW_NS, 0, None)
    assert (await check(small_url)).events == 0


async def test_an_interrupted_check_from_an_earlier_position_moves_nothing_back(small_url: str) -> None:
    """What was verified before stays so, unless the check finds something."""

    def interrupt(done: int, _total: int) -> None:
        if done > 40:
            raise Interrupted

    whole = await check(small_url)
    with pytest.raises(Interrupted):
        await check(small_url, since=0, progress=interrupt)
    assert await recorded(small_url) == (HEAD, bytes.fromhex(whole.hash), NOW_NS, 0, None)


async def test_a_result_that_cannot_be_recorded_is_returned(small_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A lost table must not cost the caller the findings; a warning says that nothing was recorded."""
    async with Allowance.open(small_url, validator_ss58=VALIDATOR) as ledger:
        await asyncio.to_thread(statement, small_url, "DROP TABLE allowance_verifications")
        await damage(small_url, "UPDATE allowance_events SET recorded_at_ns = recorded_at_ns + 1 WHERE position = 7")
        assert (await ledger.verify()).first_bad_position == 7
    assert "the result of verify could not be recorded" in caplog.text


async def test_a_recorded_position_counts_only_with_its_hash(small_url: str) -> None:
    """After the log was replaced, the check begins at the first event.

    Catches a resumed check that trusts a position of another log.
    """
    await check(small_url)
    await asyncio.to_thread(statement, small_url, "UPDATE allowance_verifications SET position = position - 5")
    report = await check(small_url)
    assert (report.events, report.findings) == (HEAD, [])


@pytest.mark.parametrize("bad", [1, 20, 21, 45, HEAD])
async def test_damage_is_found_in_every_piece(small_url: str, bad: int) -> None:
    """A finding is recorded with the last good position, and is found again until the log is repaired."""
    await damage(small_url, f"UPDATE allowance_events SET version = version + 1000 WHERE position = {bad}")
    for _ in range(2):
        report = await check(small_url)
        assert report.first_bad_position == bad
        found = await recorded(small_url)
        assert found is not None
        assert (found.findings > 0, found.first_bad_position) == (True, bad)
        assert found.position < bad
    await damage(small_url, f"UPDATE allowance_events SET version = version - 1000 WHERE position = {bad}")
    assert (await check(small_url)).findings == []
    repaired = await recorded(small_url)
    assert repaired is not None
    assert (repaired.position, repaired.findings) == (HEAD, 0)


async def test_a_lost_tail_is_found(small_url: str) -> None:
    """The head row is compared at the end, in the same snapshot as the last rows."""
    await check(small_url)
    await damage(small_url, f"DELETE FROM allowance_events WHERE position > {HEAD - 2}")
    report = await check(small_url)
    assert report.first_bad_position == HEAD - 1


async def test_a_check_from_a_later_position_leaves_the_record(small_url: str) -> None:
    """What was not checked is not recorded as checked; findings are. A position outside of the log is refused."""
    report = await check(small_url, since=50)
    assert (report.events, report.findings) == (HEAD - 50, [])
    assert await recorded(small_url) is None
    with pytest.raises(PositionOutOfRange):
        await check(small_url, since=HEAD + 1)
    assert (await check(small_url, since=0)).events == HEAD
    found = await recorded(small_url)
    assert found is not None
    assert found.position == HEAD
