"""The move from ComputeHorde's tables: every account has the same allowance, or the difference is explained."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from routing import Allowance, ImplausibleFact, InvalidInput, StorageUnavailable
from routing.computehorde.facts import FactSource
from routing.computehorde.moving import MoveReport, move
from routing.computehorde.tables import OldBlock, old_tables
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.computehorde import OWN, fill, lived
from tests.support.engines import new_database, statement
from tests.support.small import GPU, Clock, miner

NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return new_database("postgresql", tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


async def moved(source: str, target: str, **named: Any) -> MoveReport:
    async with Allowance.open(target, validator_ss58=OWN, clock_ns=Clock(NOW)) as ledger, old_tables(source) as tables:
        return await move(tables, ledger, **named)


async def check_clean(target: str) -> None:
    """Check that the imported log follows the rules for facts, and that its hashes are right."""
    async with Allowance.open(target, validator_ss58=OWN, clock_ns=Clock(NOW), read_only=True) as ledger:
        assert not (await ledger.verify()).findings
        assert not (await ledger.audit()).findings


async def test_every_account_is_equal_or_its_difference_is_explained(source: str, target: str) -> None:
    """Syncs in time: accounts differ only by overdue bookings, which never expire in the other system."""
    world = lived(miners=24, blocks=260, bookings=200)
    await fill(source, world)

    report = await moved(source, target)

    assert report.blocks_imported == 260
    assert (report.bookings, report.left_out) == (len(world.bookings), [])
    assert report.spent == sum(each.is_spent for each in world.bookings.values()) > 30
    assert world.released > 60
    assert report.reserved > 5
    comparison = report.comparison
    assert {reason for each in comparison.differences for reason in each.reasons} == {"overdue_there"}
    overdue = [each for each in world.bookings.values() if each.expires_at is not None and each.expires_at < NOW]
    assert len(comparison.differences) == len(
        {(row.miner, row.executor_class) for each in overdue for row in each.rows}
    )
    assert comparison.accounts >= len(world.allowances) > 24
    assert comparison.equal == comparison.accounts - len(comparison.differences) > 10
    assert comparison.is_explained
    await check_clean(target)


def test_a_sync_names_the_registered_miners_that_it_did_not_count() -> None:
    """They keep their counts there; a sync of a ledger that did not name them would take their executors away."""
    counts = {("5Anna", GPU): 2, ("5Bert", GPU): 1, ("5Gone", GPU): 3}
    source = FactSource({"5Anna": miner("5Anna")}, [*counts, ("5Anna", "cpu"), ("5Cold", GPU)], counts)
    shares = {OWN: 3.0, "5Other": 9.0}
    block = source.block(OldBlock(7, NOW, ["5Anna", "5Bert", OWN], shares))
    assert [each.hotkey_ss58 for each in block.miners] == ["5Anna", "5Bert"]
    assert [each.port for each in block.miners] == [8000, 0]
    assert block.stakes == {OWN: 250_000.0, "5Other": 750_000.0}
    assert source.sync(7, {("5Anna", "cpu"): 1}).manifests == {"5Anna": {"cpu": 1, GPU: 2}, "5Bert": {GPU: 1}}
    assert source.sync(8, {("5Gone", GPU): 0, ("5Never", GPU): 0}).manifests["5Gone"] == {GPU: 0}
    # Without an allowance, the shares of the block before are the best that the tables have.
    assert source.block(OldBlock(8, NOW, [], {})).stakes == block.stakes


async def test_syncs_that_take_effect_late_are_explained(source: str, target: str) -> None:
    """Blocks that were finalized before a sync have other counts there, and may be invalidated there only."""
    await fill(source, lived(miners=24, blocks=400, bookings=100, late_syncs=True, seed=3))
    report = await moved(source, target)
    reasons = {reason for each in report.comparison.differences for reason in each.reasons}
    assert reasons <= {
        "overdue_there",
        "another_grant",
        "granted_here_only",
        "granted_there_only",
        "invalidated_there_only",
    }
    assert reasons - {"overdue_there"}
    assert report.comparison.is_explained
    assert report.comparison.equal > 0


async def test_a_move_is_repeated_without_doing_anything_twice(source: str, target: str) -> None:
    """Interrupted after some pages and then repeated, it ends with the same log as one that was not interrupted."""
    await fill(source, lived(miners=12, blocks=230, bookings=80))

    class Interrupted(Exception):
        pass

    def interrupt(step: str, done: int, _total: int) -> None:
        if step == "blocks" and done > 100:
            raise Interrupted

    with pytest.raises(Interrupted):
        await moved(source, target, progress=interrupt)
    report = await moved(source, target)
    assert 0 < report.blocks_imported < 230
    assert report.comparison.is_explained
    whole = target.replace("ledger.db", "whole.db")
    assert (await moved(source, whole)).comparison == report.comparison
    assert await content(target) == await content(whole)

    again = await moved(source, target)
    assert (again.blocks_imported, again.comparison) == (0, report.comparison)
    assert await content(target) == await content(whole)


async def content(target: str) -> list[Any]:
    """Return the events of a log, whose clock stands still."""
    async with Allowance.open(target, validator_ss58=OWN, clock_ns=Clock(NOW), read_only=True) as ledger:
        return [(each.position, each.stream, each.event) async for each in ledger.events()]


async def test_what_is_booked_after_the_first_import_is_taken_over_by_the_second(source: str, target: str) -> None:
    """A booking that has been spent meanwhile is spent here too; a new one is reserved."""
    world = lived(miners=12, blocks=230, bookings=80)
    await fill(source, world)
    first = await moved(source, target)
    running = next(at for at, each in world.bookings.items() if each.expires_at is not None and each.expires_at > NOW)
    await asyncio.to_thread(
        statement,
        source,
        "UPDATE validator_allowancebooking SET is_spent = true, is_reserved = false, reservation_expiry_time = NULL"
        f" WHERE id = {running}",
    )
    second = await moved(source, target)
    assert (second.spent, second.reserved) == (first.spent + 1, first.reserved - 1)
    assert second.comparison.is_explained
    async with Allowance.open(target, validator_ss58=OWN, clock_ns=Clock(NOW)) as ledger:
        assert (await ledger.reservation_for_job(str(world.jobs[running]))).status == "spent"


async def test_older_blocks_are_left_out_with_since(source: str, target: str) -> None:
    """Counts from before are kept, and the comparison is of the blocks from there on."""
    await fill(source, lived(miners=12, blocks=230, bookings=80))
    report = await moved(source, target, since=5150)
    assert (report.first_block, report.blocks_imported) == (5150, 80)
    assert report.comparison.first_block == 5150
    assert report.comparison.equal > 0
    assert report.comparison.is_explained


async def test_the_multiplier_of_the_tables_is_adopted_by_a_new_ledger(source: str, target: str) -> None:
    """It is a dynamic setting that the tables do not have; without it every account would differ."""
    await fill(source, lived(miners=12, blocks=120, bookings=40, multiplier=1.75))
    report = await moved(source, target)
    assert report.multiplier == 1.75
    assert {reason for each in report.comparison.differences for reason in each.reasons} <= {"overdue_there"}


async def test_facts_without_bookings_are_refused_unless_confirmed(source: str, target: str) -> None:
    """Blocks that were paid with would be spent twice. Nothing is recorded; the error names the tables' owner."""
    await fill(source, lived(miners=12, blocks=120, bookings=40))
    async with Allowance.open(target, validator_ss58="5Other1", clock_ns=Clock(NOW)) as ledger:
        async with old_tables(source) as tables:
            with pytest.raises(ImplausibleFact, match=f"bookings of {OWN}"):
                await move(tables, ledger)
            assert await ledger.current_block() is None
            report = await move(tables, ledger, confirm=True)
        assert (report.bookings, report.blocks_imported) == (0, 120)
        assert report.comparison.differences == []


async def test_a_booking_whose_blocks_are_taken_here_is_left_out_in_part(source: str, target: str) -> None:
    """The rest of its blocks is held. What is reserved here and free there has no explanation by a rule."""
    world = lived(miners=12, blocks=120, bookings=0)
    (hotkey, kind), rows = next(
        (account, rows) for account, rows in world.allowances.items() if rows[-1].invalidated_at is None
    )
    blocks = sorted({row.block for row in rows if row.invalidated_at is None})
    await fill(source, world)
    await moved(source, target, confirm=True)
    async with Allowance.open(target, validator_ss58=OWN, clock_ns=Clock(NOW)) as ledger:
        here = await ledger.reserve(hotkey, kind, 30.0, 5119)
    assert here.blocks == blocks[: len(here.blocks)]
    booked = [*here.blocks[1:], *blocks[len(here.blocks) :][:3]]
    await asyncio.to_thread(
        statement,
        source,
        f"""
        INSERT INTO validator_allowancebooking VALUES (7, '2024-01-02 00:00Z', false, true, NULL);
        UPDATE validator_blockallowance SET allowance_booking_id = 7 WHERE validator_ss58 = '{OWN}'
        AND miner_ss58 = '{hotkey}' AND executor_class = '{kind}' AND block_id = ANY (ARRAY{booked})""",
    )
    report = await moved(source, target)
    (left_out,) = report.left_out
    assert (left_out.booking_id, left_out.miner_ss58, left_out.not_granted) == (7, hotkey, [])
    assert [block for first, last in left_out.taken for block in range(first, last + 1)] == here.blocks[1:]
    (difference,) = report.comparison.differences
    assert set(difference.reasons) == {"held_here_only"}
    assert not report.comparison.is_explained


async def test_other_databases_are_refused(source: str, target: str) -> None:
    """Without the tables, without a column, without a block, and without a server."""
    with pytest.raises(InvalidInput, match="validator_block absent"):
        await moved(source, target)
    await fill(source, lived(miners=2, blocks=1, bookings=0))
    with pytest.raises(InvalidInput, match="up to 5000"):
        await moved(source, target, since=6000)
    await asyncio.to_thread(statement, source, "ALTER TABLE validator_mineraddress DROP COLUMN ip_version")
    with pytest.raises(InvalidInput, match="validator_mineraddress without ip_version"):
        await moved(source, target)
    with pytest.raises(StorageUnavailable):
        await moved(urlunsplit(urlsplit(source)._replace(path="/no_such_database")), target)


async def test_the_tables_cannot_be_written(source: str) -> None:
    """The transaction is read-only, so no mistake here changes a validator that is still running."""
    await fill(source, lived(miners=2, blocks=3, bookings=0))
    with pytest.raises(StorageUnavailable, match="read-only transaction"):
        async with old_tables(source) as tables:
            await tables._connection.execute("DELETE FROM validator_block")


@pytest.fixture
def allowance(target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    configure_ledger(monkeypatch, target, OWN)
    return command_line(capsys)


def test_the_command_imports_compares_and_explains(allowance: Command, source: str) -> None:
    """As text and as a document; the exit code is 0 if every difference is explained."""
    asyncio.run(fill(source, lived(miners=12, blocks=150, bookings=60)))
    result = allowance("import-computehorde", source)
    assert result.code == 0
    assert "150 blocks and" in result.out
    assert "accounts have the same allowance available" in result.out
    document = allowance("import-computehorde", source, "--json").document
    assert document["blocks_imported"] == 0
    assert document["comparison"]["differences"] != []
    assert allowance("audit", "--json").code == 0


def test_the_command_refuses_a_wrong_source(allowance: Command) -> None:
    """A file is no source; the password of a URL is not shown."""
    result = allowance("import-computehorde", "sqlite:///validator.db", "--json")
    assert (result.code, result.error["type"]) == (2, "WrongUsage")


def test_the_command_names_its_options_in_refusals(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without bookings it asks for `--confirm`, and with a block beyond the tables it names `--since`."""
    asyncio.run(fill(source, lived(miners=4, blocks=30, bookings=10)))
    configure_ledger(monkeypatch, target, "5Other1")
    allowance = command_line(capsys)
    refused = allowance("import-computehorde", source, "--json")
    assert (refused.code, refused.error["type"]) == (2, "WrongInput")
    assert "give --confirm if it is right" in refused.error["message"]
    late = allowance("import-computehorde", source, "--since", 6000, "--json")
    assert (late.code, late.error["fields"]["field"]) == (2, "--since")


@pytest.mark.long
async def test_the_full_size(source: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """250 miners, 1,100 blocks and 3,000 bookings, half of them released."""
    world = await asyncio.to_thread(lived, miners=250, blocks=1100, bookings=3000)
    await fill(source, world)
    started = time.monotonic()
    report = await moved(source, target)
    seconds = time.monotonic() - started
    with capsys.disabled():
        comparison = report.comparison
        sys.stderr.write(
            f"{comparison.accounts} accounts, {comparison.equal} equal, {len(comparison.differences)} explained;"
            f" {report.bookings} bookings taken over, {world.released} released before; {seconds:.1f} s\n"
        )
    assert report.bookings + world.released == 3000
    assert {reason for each in report.comparison.differences for reason in each.reasons} <= {"overdue_there"}
    await check_clean(target)
