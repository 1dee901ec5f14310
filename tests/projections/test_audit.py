"""The audit as a whole: honest logs, its range, derived tables, both engines, and that it changes nothing.

`AUDIT_OPERATIONS` sets the length of the honest logs of the long run, `AUDIT_SEED` the first seed.
"""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from ledger import END, Head, RecordSettings
from ledger.clock import EARLIEST_NS
from ledger.events import ExpiryRecorded
from projections.audit.replay import Replay
from projections.row_checks import RowChecker
from routing import Allowance, AuditReport, InvalidInput, Page, PositionOutOfRange, Routing, Settings
from tests.support import logs
from tests.support.engines import derived_statement
from tests.support.fault_cases.routes import job_that_tries_first
from tests.support.log_builder import VALIDATOR as BUILT_VALIDATOR
from tests.support.log_builder import LogBuilder, audited, stored
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger
from tests.support.stories import CLASSES, SETTINGS, Story, events_of, executed, project, seed_shown

from .test_audit_fault_cases import words

pytestmark = pytest.mark.compatibility

SEED = int(os.environ.get("AUDIT_SEED", "1"))
OPERATIONS = int(os.environ.get("AUDIT_OPERATIONS", "100000"))
STORIES = 20


def findings(report: AuditReport) -> list[tuple[int, str]]:
    return [(each.position, each.rule) for each in report.findings]


def comparable(report: AuditReport) -> dict[str, Any]:
    """Return the report's fields without durations and without what depends on derived tables."""
    left_out = {"elapsed_seconds", "events_per_second", "history_position", "snapshots", "live_state", "seals"}
    return {name: getattr(report, name) for name in report.__struct_fields__ if name not in left_out}


class EventfulStory(Story):
    """A story in which settings change as well, and callers retry with the same key."""

    async def goes_on(self, steps: int) -> None:
        if not self.number:
            await super().goes_on(0)
        actions = (
            (self.a_block, 20),
            (self.a_sync, 2),
            (self.a_job, 25),
            (self.a_reservation, 6),
            (self.a_settlement, 22),
            (self.expiries, 1),
            (self.other_settings, 1),
            (self.a_retried_reservation, 6),
            (self.a_retried_settlement, 4),
            (self.a_retried_expire_due, 1),
        )
        for _ in range(steps):
            await self.one_of(actions)

    async def other_settings(self) -> None:
        """Record settings, as opening the ledger with explicit settings does."""
        settings = Settings(
            block_expiry_blocks=self.draw.choice([60, 30, 8]),
            reservation_margin_seconds=self.draw.choice([30, 0.5, 0]),
            longest_job_seconds=self.draw.choice([600, 30]),
            allowance_multiplier=self.draw.choice(["1", "0.5", "7/3", "2"]),
            executors_max_per_class=self.draw.choice([{}, {CLASSES[0]: 1}, {CLASSES[1]: 0}, {CLASSES[1]: 2}]),
            respect_executor_count=self.draw.random() < 0.8,
            newest_block_max_age_seconds=self.draw.choice([None, None, 100]),
        )
        await self.ledger.execute(RecordSettings(VALIDATOR, settings.to_recorded()))

    async def a_retried_reservation(self) -> None:
        """Reserve twice with one key, sometimes with another amount the second time."""
        key = f"key-{self.draw.randrange(10**9)}"
        start, amount_s = max(1, self.number - self.draw.randrange(5)), self.draw.choice([1.0, 8.0, 30.0])
        for amount in (amount_s, self.draw.choice([amount_s, 2.0])):
            request = self.ledger.reserve("5Anna", CLASSES[0], amount, start, idempotency_key=key)
            made = await self.unless_refused(request)
            if made is not None:
                self.made.append(made.reservation_id)

    async def a_retried_settlement(self) -> None:
        """Spend or release twice with one key."""
        if self.made:
            reservation_id, key = self.draw.choice(self.made[-20:]), f"key-{self.draw.randrange(10**9)}"
            settle = self.draw.choice([self.ledger.spend, self.ledger.release])
            for _ in range(2):
                await self.unless_refused(settle(reservation_id, idempotency_key=key))

    async def a_retried_expire_due(self) -> None:
        """Expire all overdue reservations twice with one key."""
        key = f"key-{self.draw.randrange(10**9)}"
        for _ in range(2):
            await self.ledger.expire_due(idempotency_key=key)


# Honest logs


async def audit_of_a_story(url: str, seed: int, operations: int) -> AuditReport:
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        await EventfulStory(ledger, clock, seed).goes_on(operations)
        await project(ledger)
        return await ledger.audit()


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
async def test_an_honest_log_has_no_finding(seed: int) -> None:
    """The audit agrees with every decision of the ledger, and it compared the history and the live state."""
    with seed_shown(seed):
        report = await audit_of_a_story("sqlite://", seed, 300)
        assert report.findings == []
        assert report.live_state
        assert report.history_position == report.position > 150
        assert all(report.events.values())
        assert len(report.events) == 8


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_honest_logs_of_many_operations_have_no_finding() -> None:
    """`AUDIT_OPERATIONS` operations in `STORIES` stories lead to no finding."""
    events = 0
    for seed in range(SEED, SEED + STORIES):
        with seed_shown(seed):
            report = await audit_of_a_story("sqlite://", seed, OPERATIONS // STORIES)
            assert report.findings == []
            events += report.position
    print(f"\n{OPERATIONS:,} operations, {STORIES} stories, seed {SEED}: {events:,} events, no finding")  # noqa: T201


async def test_totals_agree_with_the_ledger(url: str) -> None:
    """The totals add up to what was granted, and the available allowance is what the ledger reports."""
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        await EventfulStory(ledger, clock, SEED).goes_on(400)
        clock.now_ns = EARLIEST_NS  # The audit counts overdue reservations as held, so the ledger must have none.
        report = await ledger.audit(usage_buckets=7)
        assert report.usage is not None
        assert report.totals
        for totals, usage in zip(report.totals, report.usage.accounts, strict=True):
            parts = (
                totals.spent_seconds,
                totals.held_seconds,
                totals.invalidated_seconds,
                totals.available_seconds,
                totals.aged_seconds,
            )
            assert sum(parts) == pytest.approx(totals.granted_seconds, abs=1e-6)
            reported = await ledger.why(totals.miner_ss58, totals.executor_class)
            assert reported.available_seconds == pytest.approx(totals.available_seconds, abs=1e-9)
            assert (usage.miner_ss58, usage.executor_class) == (totals.miner_ss58, totals.executor_class)
            for name in ("granted", "spent", "held", "invalidated"):
                total = getattr(totals, f"{name}_seconds")
                assert sum(getattr(usage, name)) == pytest.approx(total, abs=1e-6)
        assert 2 <= len(report.usage.starts) <= 8


# The audited range


async def test_an_audit_until_a_position_equals_an_audit_of_the_prefix(tmp_path: Path) -> None:
    """Later events change neither the findings nor the totals."""
    log = LogBuilder()
    log.reserve("5Anna", 6, (2, 2))
    log.sync(12, {"5Anna": {GPU: 1}})
    log.block(12)
    log.reserve("5Bert", 6, (2, 2))
    for until in range(1, log.position + 1):
        part = await audited(tmp_path, log.rows, until_position=until)
        whole = await audited(tmp_path, log.rows[:until])
        assert comparable(part) == comparable(whole)
        assert part.position == until
    assert findings(await audited(tmp_path, log.rows)) == [(14, "blocks-earliest-first"), (17, "blocks-earliest-first")]


async def test_an_honest_log_has_no_finding_until_any_position(url: str) -> None:
    """This includes positions between an expiry and the claim that is its reason."""
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        await EventfulStory(ledger, clock, SEED).goes_on(60)
        await project(ledger)
        for until in range(1, (await ledger.head()).position + 1):
            report = await ledger.audit(until_position=until)
            assert (report.position, report.findings) == (until, [])


async def test_a_position_out_of_range_is_refused(url: str) -> None:
    """So are negative positions and too many buckets."""
    async with small_ledger(url=url) as ledger:
        for until in (0, 14):
            with pytest.raises(PositionOutOfRange):
                await ledger.audit(until_position=until)
        with pytest.raises(InvalidInput):
            await ledger.audit(until_position=-1)
        with pytest.raises(InvalidInput):
            await ledger.audit(usage_buckets=1_000_000)


async def test_appends_during_an_audit_are_not_audited(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit covers the log up to the head at its start, and later events lead to no finding."""
    monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", 20)
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = EventfulStory(ledger, clock, SEED)
        await story.goes_on(200)
        begun: asyncio.Event = asyncio.Event()
        loop = asyncio.get_running_loop()
        head = (await ledger.head()).position

        async def append() -> None:
            await begun.wait()
            await story.goes_on(60)
            await project(ledger)

        def progress(_done: int, _total: int) -> None:
            loop.call_soon_threadsafe(begun.set)

        appending = asyncio.create_task(append())
        report = await ledger.audit(progress=progress)
        await appending
        assert (report.position, report.findings) == (head, [])
        assert (await ledger.head()).position > head
        assert (await ledger.audit()).findings == []


async def test_progress_is_reported_up_to_the_last_event(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is reported after each page, the last time with the whole log."""
    monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", 5)
    async with small_ledger(url=url) as ledger:
        shown: list[tuple[int, int]] = []
        await ledger.audit(progress=lambda done, total: shown.append((done, total)))
        assert shown == [(5, 13), (10, 13), (13, 13)]


def test_a_text_that_cannot_be_encoded_is_hashed_as_by_the_ledger() -> None:
    """Such a row has no finding because of its hash."""
    row_checker, head = RowChecker(), Head()
    for version in (1, 2):
        row = logs.row_after(head, "\ud800", version, key="\udfff")
        assert not row_checker.check(row)
        head = logs.head_at(row)
    assert row_checker.version("\ud800") == 2


# Both engines


async def test_both_engines_lead_to_the_same_report(shared_url: str, tmp_path: Path) -> None:
    """The same rows, with faults that no constraint refuses, have the same findings and totals in every database."""
    log = LogBuilder()
    log.reserve("5Anna", 6, (2, 2))
    expired = log.reserve("5Anna", 6, (1, 1))
    log.block(11)
    row = log.reserve("5Bert", 30, (1, 3), start=12)
    log.rows[-1] = row._replace(payload=row.payload.replace(b"[1,3]", b"[1,4]"))
    log.wait(200)
    log.settle(expired, ExpiryRecorded, 1)
    log.route("job", "5Anna", 6, (3, 3))
    async with logs.opened(shared_url, BUILT_VALIDATOR) as store:
        await logs.append(store, log.rows)
    async with Allowance.open(shared_url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        report = await ledger.audit(usage_buckets=5)
    rules = {each.rule for each in report.findings}
    assert {"blocks-earliest-first", "facts-once", "hash-chain", "expires-what-is-taken", "routing-decision"} <= rules
    url = await stored(tmp_path, log.rows)
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        assert comparable(report) == comparable(await ledger.audit(usage_buckets=5))


async def test_an_honest_log_has_no_finding_on_every_engine(shared_url: str) -> None:
    """The history is compared as well."""
    report = await audit_of_a_story(shared_url, SEED, 120)
    assert report.findings == []
    assert report.history_position == report.position


# The head


@pytest.mark.parametrize(
    ("head", "at"),
    [({"hash": bytes(32)}, 14), ({"recorded_at_ns": 1}, 14), ({"position": 16}, 15)],
    ids=["hash", "time", "position"],
)
async def test_a_head_row_that_differs_from_the_last_row_is_found(
    tmp_path: Path, head: dict[str, Any], at: int
) -> None:
    """It may have another hash or time, or the log's tail may have been cut off."""
    log = LogBuilder()
    log.reserve("5Anna", 6, (1, 1))
    assert findings(await audited(tmp_path, log.rows, head=head)) == [(at, "head-row")]


# Derived tables and states


async def ledger_with_history_and_snapshot(url: str) -> int:
    """Create a ledger with a history and a snapshot; return the snapshot's position."""
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        await EventfulStory(ledger, clock, SEED).goes_on(150)
        await project(ledger)
        position = (await ledger.head()).position
        assert ledger._lifecycle.open_handle is not None
        await ledger._lifecycle.open_handle.runtime.run(ledger._lifecycle.open_handle.upkeep.seal_if_due(1))
        await EventfulStory(ledger, clock, SEED).goes_on(0)
    return position


DAMAGES = {
    "a status": "UPDATE allowance_reservations SET status = 'released' WHERE status = 'spent'",
    "an invented settlement": "UPDATE allowance_reservations SET status = 'spent', settled_position = 9,"
    " settled_at_ns = 9 WHERE status = 'reserved'",
    "an amount": "UPDATE allowance_reservations SET amount_ns = amount_ns + 1",
    "a missing row": "DELETE FROM allowance_reservations WHERE position = (SELECT max(position) FROM"
    " allowance_reservations)",
    "a block": "UPDATE allowance_reserved_blocks SET first_block = first_block - 1",
    "a missing run of blocks": "DELETE FROM allowance_reserved_blocks WHERE position = (SELECT max(position) FROM"
    " allowance_reserved_blocks)",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_history_is_found(url: str, damage: str) -> None:
    """Only the rule of the history is reported, by reservation or by bucket of blocks."""
    from sqlalchemy import text

    await ledger_with_history_and_snapshot(url)
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock()) as ledger:
        assert (await ledger.audit()).findings == []
        await executed(ledger, text(damage))
        report = await ledger.audit()
        assert {each.rule for each in report.findings} == {"history-model"}
        assert all(each.details for each in report.findings)


@pytest.mark.parametrize("column", ["payload", "digest", "hash"])
async def test_a_damaged_snapshot_is_found(url: str, column: str) -> None:
    """It is reported at its position, and nothing else is found, because the audit does not use it."""
    from sqlalchemy import text

    position = await ledger_with_history_and_snapshot(url)
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock(), read_only=True) as ledger:
        report = await ledger.audit()
        assert (report.findings, report.snapshots) == ([], 1)
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock()) as ledger:
        await executed(ledger, text(f"UPDATE allowance_snapshots SET {column} = zeroblob(32)"))
        assert findings(await ledger.audit()) == [(position, "snapshots")]


async def test_a_snapshot_of_another_state_is_found(url: str) -> None:
    """The snapshot has a right digest but a taken block is free in it; the finding names the account."""
    from ledger import encode_state
    from projections import Snapshot, SnapshotStore, state_at

    position = await ledger_with_history_and_snapshot(url)
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock()) as ledger:
        assert ledger._lifecycle.open_handle is not None
        opened = ledger._lifecycle.open_handle

        async def save_wrong_snapshot() -> None:
            state = await state_at(opened.store, position)
            taken, first = next(
                (each.taken, first) for each in state.chain.accounts.values() for first, _ in each.taken.between(1, END)
            )
            taken.remove(first, first)
            await SnapshotStore(opened.store).save(Snapshot(position, state.hash, encode_state(state)))

        await opened.runtime.run(save_wrong_snapshot())
        report = await ledger.audit()
        assert findings(report) == [(position, "snapshots")]
        assert "the account 5" in words(report.findings[0])


async def test_a_snapshot_after_the_end_of_the_log_is_found(tmp_path: Path) -> None:
    """This is the case if the log's tail was lost but the snapshot was not."""
    from projections import Snapshot, SnapshotStore

    log = LogBuilder()
    url = await stored(tmp_path, log.rows)
    async with logs.opened(url, BUILT_VALIDATOR) as store:
        await SnapshotStore(store).save(Snapshot(20, bytes(32), b"state"))
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        assert findings(await ledger.audit()) == [(20, "snapshots")]


async def test_blocks_across_a_bucket_are_compared_with_the_history(url: str) -> None:
    """The history cuts runs at the borders of buckets. Catches a comparison that cuts them elsewhere."""
    async with small_ledger(url=url, blocks=140) as ledger:
        await ledger.reserve("5Anna", GPU, 12.0 * 133, 140)
        await project(ledger)
        report = await ledger.audit()
        assert (report.findings, report.history_position) == ([], report.position)


def test_a_wrong_count_within_a_span_of_equal_terms_is_found() -> None:
    """The fold has a wrong count for a few blocks among many that were finalized under the same terms."""
    replay = Replay(BUILT_VALIDATOR)
    for row in LogBuilder().rows:
        replay.process(row)
    replay.state.chain.accounts[f"5Bert\t{GPU}"].counts.assign(5, 7, 9)
    replay.finish(at_head=True)
    finding = next(each for each in replay.findings.listed if each.rule == "grants-follow")
    assert "the fold counts 9 executors at block 5, but the facts 2" in finding.message


async def test_a_live_state_that_differs_from_the_log_is_found(url: str) -> None:
    """The process would treat a block as free that is taken in the log."""
    async with small_ledger(url=url) as ledger:
        made = await ledger.reserve("5Anna", GPU, 12.0, 11)
        await ledger.spend(made.reservation_id)
        assert (await ledger.audit()).findings == []

        def lose(state: Any, _: int) -> None:
            state.chain.accounts[f"5Anna\t{GPU}"].taken.remove(1, 1)

        await ledger._read_state(lose)
        report = await ledger.audit()
        assert findings(report) == [((await ledger.head()).position, "live-state")]
        assert f"the account 5Anna {GPU}" in words(report.findings[0])


async def test_an_audit_changes_nothing(url: str) -> None:
    """Neither the log nor the history changes."""
    async with small_ledger(url=url) as ledger:
        await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        rows, page = await events_of(ledger), await ledger.history()
        await ledger.audit(usage_buckets=3)
        assert await events_of(ledger) == rows
        assert await ledger.history() == page
        assert isinstance(page, Page)
        assert isinstance(await ledger.head(), Head)


async def test_blocks_of_an_overdue_reservation_that_is_spent_late_are_not_free(url: str) -> None:
    """A first route saw the blocks as free; after the late spend, the second route must not be expected to take them.

    Catches a ranking that keeps what it measured while the reservation was overdue.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, clock=clock, offers={"5Anna": 2, "5Bert": 2}) as ledger:
        late = await ledger.reserve("5Anna", GPU, 12.0, 11)
        clock.advance(200)
        first = await Routing(ledger).pick_miner_for_job_request(job(job_that_tries_first(1, of=2), 12.0))
        await ledger.spend(late.reservation_id)
        await ledger.spend(first.allowance_reservation_id or 0)
        again = job(job_that_tries_first(1, of=2, prefix="other"), 12.0)
        second = await Routing(ledger).pick_miner_for_job_request(again)
        assert (first.miner.hotkey_ss58, second.miner.hotkey_ss58) == ("5Bert", "5Bert")
        assert second.allowance_blocks == [2]
        assert (await ledger.audit()).findings == []


async def test_a_row_whose_position_is_no_number_is_found_at_any_page_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite sorts such a position after all numbers. Catches an audit that stops at the last number."""
    log = LogBuilder()
    while log.position < 20:
        log.block(log.position)
    rows = [*log.rows, log.rows[-1]._replace(position=cast(int, "x"))]
    found = []
    for page_rows in (5, 7, 1000):
        monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", page_rows)
        found.append(comparable(await audited(tmp_path, rows, head={"position": 20})))
    assert found[0]["findings_count"] > 0
    assert found == [found[0]] * len(found)


@pytest.mark.parametrize("most", [1, 3, 8])
async def test_the_listed_findings_are_those_of_the_lowest_positions(
    url: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for any number of findings. Catches a list of those that were found first."""
    monkeypatch.setattr("projections.rules.MOST_FINDINGS", 1000)
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        await EventfulStory(ledger, clock, SEED).goes_on(250)
        await project(ledger)
    derived_statement(
        url, "UPDATE allowance_reservations SET settled_at_ns = settled_at_ns + 1, amount_ns = amount_ns + 1"
    )
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        everything = (await ledger.audit()).findings
        monkeypatch.setattr("projections.rules.MOST_FINDINGS", most)
        report = await ledger.audit()
        assert report.findings == everything[:most]
        assert report.findings_count == len(everything) > 8


async def test_every_kind_of_damage_to_the_history_is_found(url: str) -> None:
    """Wrong claims, settlements and blocks, and a missing row. Catches a column that the audit does not compare."""
    clock, draw = Clock(), random.Random(f"damage {SEED}")
    with seed_shown(SEED):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            await EventfulStory(ledger, clock, SEED).goes_on(250)
            await project(ledger)
            positions = [row.position for row in await events_of(ledger) if b"allowance-reserved" in row.payload]
        found: list[int] = []
        for damage in (
            "UPDATE allowance_reservations SET amount_ns = amount_ns + 1 WHERE position = {}",
            "UPDATE allowance_reservations SET settled_at_ns = settled_at_ns + 1 WHERE position = {}",
            "UPDATE allowance_reservations SET status = 'spent', settled_position = 9, settled_at_ns = 9"
            " WHERE position = {} AND status <> 'spent'",
            "UPDATE allowance_reservations SET status = 'reserved', settled_position = NULL, settled_at_ns = NULL"
            " WHERE position = {}",
            "UPDATE allowance_reserved_blocks SET last_block = last_block + 1 WHERE position = {}",
            "DELETE FROM allowance_reservations WHERE position = {}",
        ):
            derived_statement(url, damage.format(draw.choice(positions)))
            async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
                found.append(len((await ledger.audit()).findings))
        assert found == sorted(set(found)), "each damage must add findings"
