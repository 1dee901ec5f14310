"""A snapshot counts only if the log holds its seal; so no derived table decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, select, update

from ledger import (
    SEAL_VERSION,
    LedgerState,
    LookupResult,
    RecordedSettings,
    Row,
    SealState,
    UnitOfWork,
    encode_state,
    state_digest,
)
from ledger.codec import decode, encode, row_hash
from ledger.domain.state_codec import _State
from ledger.events import SEALS_STREAM, ReservationReleased, StateSealed
from projections import Availability, SnapshotStore, state_at
from projections.snapshots import Snapshot, payload_digest
from projections.tables import snapshots
from routing import (
    Allowance,
    CannotReserveAllowanceException,
    IdempotencyConflict,
    InvalidInput,
    PositionOutOfRange,
    SealConflict,
)
from tests.support.engines import statement
from tests.support.fault_cases.seals import seal
from tests.support.log_builder import ANNA, BERT, LogBuilder, stored
from tests.support.log_builder import VALIDATOR as BUILT_VALIDATOR
from tests.support.logs import append_in
from tests.support.small import GPU, START, VALIDATOR, Clock, small_ledger
from tests.support.stalling import queued, stalled
from tests.support.stories import (
    SETTINGS,
    Story,
    events_of,
    executed,
    noted_reads,
    project,
    store_of,
    take_snapshot,
    there,
    upkeep_done,
)

SEED = 31
ACCOUNTS, ACTIVE = (_State.__struct_fields__.index(field) for field in ("accounts", "active"))
"""The indexes of these fields in a snapshot's state."""


async def seals_of(ledger: Allowance) -> list[tuple[int, StateSealed]]:
    """Return the seals of the log with their own positions."""
    events = [(row.position, decode(row.position, row.payload)) for row in await events_of(ledger)]
    return [(position, event) for position, event in events if isinstance(event, StateSealed)]


def with_nothing_taken(payload: bytes) -> bytes:
    """Return a snapshot's payload in which no account has a taken block or an active reservation."""
    fields = msgspec.msgpack.decode(payload)
    for account in fields[ACCOUNTS]:
        account[-1] = b"I"
    fields[ACTIVE] = []
    return msgspec.msgpack.encode(fields)


async def forge(ledger: Allowance, change: Callable[[bytes], bytes] = with_nothing_taken) -> LedgerState:
    """Change the newest snapshot, with a right digest of its own; return the state that it now has."""
    newest = select(snapshots.c.position, snapshots.c.payload).order_by(snapshots.c.position.desc()).limit(1)
    ((position, payload),) = await executed(ledger, newest)
    forged = change(bytes(payload))
    values = {"payload": forged, "digest": payload_digest(forged)}
    await executed(ledger, update(snapshots).where(snapshots.c.position == position).values(values))
    state = Availability()
    from ledger import decode_state

    decode_state(forged, state)
    return state


async def all_spent(url: str) -> int:
    """Create a ledger in which 5Anna's allowance is spent, with a snapshot; return the snapshot's position."""
    async with small_ledger(url=url) as ledger:
        await ledger.spend((await ledger.reserve("5Anna", GPU, 120.0, 11)).reservation_id)
        return await take_snapshot(ledger)


# What is believed


async def test_no_block_that_is_spent_is_claimed_after_a_snapshot_was_forged(any_url: str) -> None:
    """Catches a snapshot that decides: one without taken blocks, with a right digest of its own, claimed them twice.

    The double claim would be in the log for good, and the log could only be opened with that snapshot.
    """
    await all_spent(any_url)
    async with Allowance.open(any_url, validator_ss58=VALIDATOR) as ledger:
        await forge(ledger)
    async with Allowance.open(any_url, validator_ss58=VALIDATOR) as ledger:
        with pytest.raises(CannotReserveAllowanceException):
            await ledger.reserve("5Anna", GPU, 1.0, 11)
        await executed(ledger, delete(snapshots))
    async with Allowance.open(any_url, validator_ss58=VALIDATOR) as ledger:
        assert {each.rule for each in (await ledger.audit()).findings} == set()


async def test_a_snapshot_without_a_seal_is_skipped(any_url: str) -> None:
    """Those of older releases have none. Fails if only the row's hash and the snapshot's own digest are compared."""
    async with small_ledger(url=any_url) as ledger:
        snapshot: Snapshot = await ledger._read_state(
            lambda state, _: Snapshot(state.position, state.hash, encode_state(state))
        )
        await there(ledger, lambda: SnapshotStore(store_of(ledger)).save(snapshot))
        assert (await there(ledger, SnapshotStore(store_of(ledger)).load)).position == 0
        assert await take_snapshot(ledger) == snapshot.position
        assert (await there(ledger, SnapshotStore(store_of(ledger)).load)).position == snapshot.position


async def append(ledger: Allowance, event: StateSealed, **columns: Any) -> None:
    """Append a seal as another process would that this release knows nothing of."""

    async def work() -> None:
        store = store_of(ledger)
        async with store.transaction() as transaction:
            head = await transaction.head()
            version = 1 + len(await seals_of_store(store.read))
            row = Row(
                head.position + 1,
                columns.get("stream", SEALS_STREAM),
                columns.get("version", version),
                head.recorded_at_ns,
                columns.get("key", f"seal:{event.position}"),
                None,
                None,
                None,
                encode(event),
                b"",
            )
            await append_in(transaction, [row._replace(hash=row_hash(head.hash, row))])

    await there(ledger, work)


async def seals_of_store(read: Any) -> list[Row]:
    """Return the rows in the stream of seals."""
    rows: list[Row] = []
    while page := await read(rows[-1].position if rows else 0):
        rows += page
    return [row for row in rows if row.stream == SEALS_STREAM]


async def test_a_seal_of_an_unknown_version_proves_nothing(url: str) -> None:
    """Even if its digest is right: another version has other folding rules."""
    async with small_ledger(url=url) as ledger:
        position, digest = await ledger._read_state(lambda state, _: (state.position, state_digest(state).hex()))
        await append(ledger, StateSealed(position, SEAL_VERSION + 1, digest))
        snapshot: Snapshot = await ledger._read_state(
            lambda state, _: Snapshot(state.position, state.hash, encode_state(state))
        )
        state = await there(ledger, lambda: state_at(store_of(ledger), position))
        await there(
            ledger,
            lambda: SnapshotStore(store_of(ledger)).save(Snapshot(position, state.hash, encode_state(state))),
        )
        assert snapshot.position == position + 1
        assert (await there(ledger, SnapshotStore(store_of(ledger)).load)).position == 0
        # The version-2 seal has the key, so this release leaves the position without a seal, and decides on.
        with pytest.raises(IdempotencyConflict):
            await ledger.execute(SealState(position, bytes.fromhex(digest)))
        await ledger.reserve("5Anna", GPU, 1.0, 11)


async def test_a_seal_that_was_edited_in_place_is_not_believed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forger's second step: the seal gets the forged state's digest. Its row's hash no longer fits.

    Catches a look-up of the seal that believes its payload without computing its hash. The check of the newest rows,
    which would notice it here, is left out: most seals are older.
    """
    monkeypatch.setattr("ledger.damage.NEWEST_ROWS", 0)
    position = await all_spent(url)
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        forged = await forge(ledger)
        payload = encode(StateSealed(position, SEAL_VERSION, state_digest(forged).hex()))
    statement(url, "DROP TRIGGER allowance_events_no_update")
    statement(url, f"UPDATE allowance_events SET payload = x'{payload.hex()}' WHERE key = 'seal:{position}'")
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        with pytest.raises(CannotReserveAllowanceException):
            await ledger.reserve("5Anna", GPU, 1.0, 11)


async def test_a_seal_whose_whole_chain_was_edited_is_found_by_the_audit(url: str) -> None:
    """Forger's third step: all hashes from the seal on, and the head row. Opening cannot tell; the audit can."""
    position = await all_spent(url)
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        forged = await forge(ledger)
        (seal,) = (row for row in await events_of(ledger) if row.position == position + 1)
    seal = seal._replace(payload=encode(StateSealed(position, SEAL_VERSION, state_digest(forged).hex())))
    seal = seal._replace(hash=row_hash(forged.hash, seal))
    statement(url, "DROP TRIGGER allowance_events_no_update")
    statement(url, "DROP TRIGGER allowance_ledgers_no_step_back")
    statement(
        url,
        f"UPDATE allowance_events SET payload = x'{seal.payload.hex()}', hash = x'{seal.hash.hex()}'"
        f" WHERE position = {seal.position}",
    )
    statement(url, f"UPDATE allowance_ledgers SET hash = x'{seal.hash.hex()}'")
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        found = [(each.position, each.rule) for each in (await ledger.audit()).findings]
        assert found == [(position, "snapshots"), (position + 1, "seals")]


# Who seals, and when


async def test_a_writer_seals_by_itself(any_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the log grows, and when it closes; each position once, and no seal causes another one."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 20)
    monkeypatch.setattr("routing.service.handle.SEAL_EVERY_ROWS", 60)
    clock = Clock()
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = Story(ledger, clock, SEED)
        for _ in range(15):
            await story.goes_on(20)
            await upkeep_done(ledger)
        seals = await seals_of(ledger)
        assert len(seals) >= 3
        sealed = [0, *(event.position for _, event in seals)]
        assert all(later - earlier >= 60 for earlier, later in pairwise(sealed))
        for position, event in seals:
            state = LedgerState()
            state.fold((await events_of(ledger))[: event.position])
            assert event.digest == state_digest(state).hex()
            assert event.position < position
        # From here on only the closing seals, and finds more than 20 rows since the last seal.
        handle = ledger._lifecycle.open_handle
        assert handle is not None
        handle.upkeep._seal_every_rows = 10**6
        for _ in range(30):
            await ledger.release((await ledger.reserve("5Anna", GPU, 0.001, 1)).reservation_id)
    for _ in range(3):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
            head, last = (await ledger.head()).position, (await seals_of(ledger))[-1]
            # Closing sealed the last event; opening and closing again adds nothing.
            assert last == (head, StateSealed(head - 1, SEAL_VERSION, last[1].digest))
            assert (await ledger.counters())["foreign_rows"] == 1
            assert (await ledger.audit()).findings == []


async def test_the_intervals_are_ten_thousand_and_one_thousand() -> None:
    """The figures of the specification."""
    from routing.service import handle

    assert (handle.SEAL_EVERY_ROWS, handle.PROJECT_EVERY_ROWS) == (10_000, 1000)


async def test_a_reader_never_seals(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is opened for reading only appends nothing, not even when it closes."""
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 1)
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as reader:
        await reader.miners()
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as reader:
        assert await reader.head() == head


# Conflicts


async def test_sealing_again_changes_nothing(any_url: str) -> None:
    """The second seal of a position with the same digest is the first one."""
    async with small_ledger(url=any_url) as ledger:
        position, digest = await ledger._read_state(lambda state, _: (state.position, state_digest(state)))
        first = await ledger.execute(SealState(position, digest))
        await ledger.reserve("5Anna", GPU, 1.0, 11)
        head = await ledger.head()
        assert await ledger.execute(SealState(position, digest)) == first == position + 1
        assert await ledger.head() == head


async def test_another_digest_for_a_sealed_position_stops_the_writer(any_url: str) -> None:
    """Commands of the same batch and all later ones are refused until the ledger is opened again; queries go on.

    Catches a writer that goes on deciding although its state, or the log's seal, is proven to be wrong.
    """
    async with small_ledger(url=any_url) as ledger:
        position = await take_snapshot(ledger)
        head = await ledger.head()
        async with stalled(ledger) as opened:
            sealing = asyncio.create_task(ledger.execute(SealState(position, bytes(32))))
            await queued(opened, 1)
            reserving = asyncio.create_task(ledger.reserve("5Anna", GPU, 1.0, 11))
            await queued(opened, 2)
        with pytest.raises(SealConflict) as refused:
            await sealing
        assert (refused.value.position, refused.value.digest) == (position, bytes(32).hex())
        for call in (reserving, ledger.reserve("5Bert", GPU, 1.0, 11), ledger.expire_due()):
            with pytest.raises(SealConflict):
                await call
        assert await ledger.head() == head
        assert len(await ledger.find_miners(1.0, GPU, 11)) == 3
        assert "every change is refused" in (await ledger.health()).status
    async with Allowance.open(any_url, validator_ss58=VALIDATOR) as ledger:
        await ledger.reserve("5Anna", GPU, 1.0, 11)


async def test_a_writer_with_a_wrong_state_notices_it_when_it_seals(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its digest differs from that of the process which sealed the position first."""
    async with small_ledger(url=url) as ledger:
        position, digest = await ledger._read_state(lambda state, _: (state.position, state_digest(state)))
        opened = ledger._lifecycle.open_handle
        assert opened is not None
        await append(ledger, StateSealed(position, SEAL_VERSION, digest.hex()))

        monkeypatch.setattr("routing.service.upkeep.sealed_if_due", lambda *_: _sealed(position))
        with caplog.at_level(logging.ERROR):
            await there(ledger, lambda: opened.upkeep.seal_if_due(1))
        assert "the seal of position 13" in caplog.text
        with pytest.raises(SealConflict):
            await ledger.reserve("5Anna", GPU, 1.0, 11)


def _sealed(position: int) -> Any:
    from projections.snapshots import SealedSnapshot

    return SealedSnapshot(Snapshot(position, bytes(32), b""), bytes(32))


async def test_a_callers_key_that_looks_like_a_seals_does_no_harm(url: str) -> None:
    """The position stays without a seal, and nothing is refused."""
    async with small_ledger(url=url) as ledger:
        await ledger.reserve("5Anna", GPU, 1.0, 11, idempotency_key="seal:13")
        with pytest.raises(IdempotencyConflict):
            await ledger.execute(SealState(13, bytes(32)))
        await ledger.reserve("5Anna", GPU, 1.0, 11)


def test_a_batch_with_a_seal_can_be_reverted() -> None:
    """On PostgreSQL a batch is decided on the state in memory, and reverted if another process has appended."""
    log = LogBuilder()
    state = LedgerState()
    state.fold(log.rows)
    before, sealed_before = encode_state(state), state.sealed_position
    unit_of_work = UnitOfWork(state, LookupResult(), state.recorded_at_ns)
    for position in (5, 13):
        SealState(position, bytes(32)).decide(unit_of_work)
    assert (state.sealed_position, state.versions[SEALS_STREAM]) == (13, 2)
    unit_of_work.revert()
    assert (encode_state(state), state.sealed_position) == (before, sealed_before)


async def test_sealing_conflicts_with_nothing(any_url: str) -> None:
    """Two processes seal and reserve at the same time; every call succeeds, and the log has no finding."""
    async with small_ledger(url=any_url) as ledger:
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=Clock(START)) as other:

            async def seals(each: Allowance) -> None:
                position, digest = await each._read_state(lambda state, _: (state.position, state_digest(state)))
                await each.execute(SealState(position, digest))

            for _ in range(10):
                made = await asyncio.gather(
                    ledger.reserve("5Anna", GPU, 0.1, 11),
                    seals(ledger),
                    other.reserve("5Bert", GPU, 0.1, 11),
                    seals(other),
                )
                await ledger.release(made[0].reservation_id)
                await other.release(made[2].reservation_id)
        assert (await ledger.audit()).findings == []


async def test_other_readers_of_the_log_pass_over_seals(url: str) -> None:
    """The history, views of the past, explanations, receipts and an export read a log with seals."""
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story, position = Story(ledger, clock, SEED), 0
        for _ in range(5):
            await story.goes_on(20)
            position = await take_snapshot(ledger)
        head = (await ledger.head()).position
        assert position == head - 1
        views = [await ledger.at(position=at).miners() for at in (position, head)]
        assert views[0] == views[1]
        page = await ledger.history(limit=50)
        assert page.checked
        assert len(page.items) > 5
        for item in page.items:
            if item.job_uuid is not None:
                await ledger.explain(item.job_uuid)
        await ledger.receipts()
        assert (await ledger.rebuild()).different == 0
        assert (await ledger.verify()).findings == []


def test_a_settlement_is_no_seal() -> None:
    """A row with a seal's key but another event proves nothing."""
    from ledger import proves

    row = Row(9, SEALS_STREAM, 1, 0, "seal:5", None, None, None, encode(ReservationReleased(1)), b"")
    assert not proves(row, 5, bytes(32))
    assert not proves(row._replace(payload=b"{}"), 5, bytes(32))
    sealed = row._replace(payload=encode(StateSealed(5, SEAL_VERSION, bytes(32).hex())))
    assert proves(sealed, 5, bytes(32))
    assert not proves(sealed._replace(position=5), 5, bytes(32))
    assert not proves(sealed._replace(stream="5Anna\tgpu"), 5, bytes(32))
    assert not proves(sealed, 6, bytes(32))
    assert not proves(sealed, 5, b"1" * 32)


# Audits that begin at a seal


async def test_an_audit_from_a_seal_finds_nothing_in_an_honest_log(any_url: str) -> None:
    """From each seal to the head: also with snapshots gone, active reservations, retries and changed settings."""
    clock = Clock()
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = Story(ledger, clock, SEED)
        positions = []
        for _ in range(6):
            await story.goes_on(60)
            positions.append(await take_snapshot(ledger))
        await story.goes_on(60)
        await project(ledger)
        whole = await ledger.audit()
        assert (whole.findings, whole.seals, whole.not_proved) == ([], 6, [])
        for at, position in enumerate(positions):
            report = await ledger.audit(from_seal=position)
            assert report.findings == []
            assert (report.from_seal, report.position, report.seals) == (position, whole.position, 6 - at)
            assert (report.totals, report.head_hash) == (whole.totals, whole.head_hash)
            assert any("because the log seals them" in each for each in report.not_proved)
            assert sum(report.events.values()) == whole.position - position


async def test_an_audit_from_a_seal_knows_the_corrections_before_it(any_url: str) -> None:
    """Fails if the facts that are replayed leave out a withdrawn sync or a withdrawn block."""
    clock = Clock()
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        await Story(ledger, clock, SEED).goes_on(120)
        newest_sync = await ledger._read_state(lambda state, _: state.chain.sync_blocks[-1])
        await ledger.withdraw_manifests(newest_sync, "mistyped")
        newest = await ledger.current_block()
        assert newest is not None
        await ledger.record_block(
            newest + 9, datetime.fromtimestamp(clock.now_ns / 1e9, UTC), await ledger.miners(), {VALIDATOR: 1.0}
        )
        await ledger.withdraw_block(newest + 9, "mistyped")
        position = await take_snapshot(ledger)
        await ledger.expire_due()
        report = await ledger.audit(from_seal=position)
        assert (report.findings, report.totals) == ([], (await ledger.audit()).totals)


async def test_an_audit_from_a_seal_reads_no_event_before_its_snapshot(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except facts, which `Store.read` does not read here. That is its use: claims before it cost nothing."""
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        await Story(ledger, clock, SEED).goes_on(200)
        position = await take_snapshot(ledger)
        await ledger.expire_due()
        read_after = noted_reads(monkeypatch)
        assert (await ledger.audit(from_seal=position)).findings == []
        assert min(read_after) == position


async def indexed(directory: Path, log: LogBuilder) -> str:
    """Store a log without constraints, but with the indexes by which rows are looked up; return its URL."""
    url = await stored(directory, log.rows)
    for name in ("key", "settles"):
        statement(
            url,
            f"CREATE INDEX allowance_events_{name} ON allowance_events (ledger, {name}) WHERE {name} IS NOT NULL",
        )
    return url


async def test_an_audit_from_a_seal_finds_faults_after_it(tmp_path: Path) -> None:
    """Claims of blocks that were taken before the seal, a wrong hash, a wrong version, a job that is active already."""
    log = LogBuilder()
    log.route("job", BERT, 6, (1, 1))
    seal(log)
    sealed = log.position - 1
    log.reserve(BERT, 6, (1, 1))
    log.reserve(ANNA, 6, (1, 1), columns={"version": 7})
    log.route("job", ANNA, 6, (2, 2), attempt=2)
    row = log.block(12)
    log.rows[-1] = row._replace(hash=bytes(32))
    url = await indexed(tmp_path, log)
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        whole, part = await ledger.audit(), await ledger.audit(from_seal=sealed)
        assert whole.findings_count >= 5
        assert part.findings == whole.findings


async def test_an_audit_cannot_begin_at_a_seal_of_an_unknown_version(tmp_path: Path) -> None:
    """Such a seal proves nothing, so it is as if there were none; it is no conflict either."""
    log = LogBuilder()
    log.append(SEALS_STREAM, StateSealed(5, SEAL_VERSION + 1, "c0ffee"), key="seal:5")
    async with Allowance.open(await indexed(tmp_path, log), validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        with pytest.raises(InvalidInput):
            await ledger.audit(from_seal=5)


async def test_an_audit_cannot_begin_without_a_right_seal(tmp_path: Path) -> None:
    """The position has no seal, is not before the end, or its seal differs from the log."""
    log = LogBuilder()
    seal(log, 5)
    seal(log, 8, digest="0" * 64)
    url = await indexed(tmp_path, log)
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        with pytest.raises(InvalidInput, match="the newest are 5, 8"):
            await ledger.audit(from_seal=6)
        with pytest.raises(PositionOutOfRange):
            await ledger.audit(from_seal=5, until_position=5)
        with pytest.raises(SealConflict):
            await ledger.audit(from_seal=8)
        with pytest.raises(InvalidInput):
            await ledger.audit(from_seal=0)
        assert (await ledger.audit(from_seal=5)).findings[0].rule == "seals"


# Seals of earlier releases


DIGEST_OF_VERSION_1 = "5afce88e9c85e62cc1b43b2ce8fc8bc257b1069783bc7aa268fdc6c59c3d6083"
"""What a release with seals of version 1 sealed at position 13 of the log below."""


async def test_a_seal_of_version_1_proves_nothing_and_is_no_finding(tmp_path: Path) -> None:
    """The audit skips it, from the beginning and from a newer seal, and no audit can begin at it.

    Catches an audit that computes today's digest for it, and an error that offers its position as a start.
    """
    log = LogBuilder(RecordedSettings(block_expiry_blocks=60, executors_max_per_class={"b": 3, "a": 2}))
    assert log.position == 13
    log.append(SEALS_STREAM, StateSealed(13, 1, DIGEST_OF_VERSION_1), key="seal:13")
    seal(log)
    log.block(12, block_hash="c0" * 32)
    url = await indexed(tmp_path, log)
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        assert (await ledger.audit()).findings == []
        assert (await ledger.audit(from_seal=14)).findings == []
        with pytest.raises(InvalidInput, match="the newest are 14, got 13"):
            await ledger.audit(from_seal=13)


async def test_a_log_with_seals_of_version_1_is_sealed_anew(any_url: str) -> None:
    """It opens, goes on, and seals by itself although its last seal is one event old; that seal is then believed.

    Catches a fold that counts the old seal: the log would stay without a snapshot for another 10,000 events. And a
    snapshot under an old seal, which would be believed if only its digest were compared.
    """
    async with small_ledger(url=any_url) as ledger:
        position, digest = await ledger._read_state(lambda state, _: (state.position, state_digest(state).hex()))
        await append(ledger, StateSealed(position, 1, digest))
    clock = Clock(START)
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        await ledger.reserve("5Anna", GPU, 1.0, 11)
        handle = ledger._lifecycle.open_handle
        assert handle is not None
        await there(ledger, lambda: handle.upkeep.seal_if_due(position))
        sealed = [(event.position, event.version) for _, event in await seals_of(ledger)]
        assert sealed == [(position, 1), (position + 2, SEAL_VERSION)]
        found = await there(ledger, lambda: SnapshotStore(store_of(ledger)).load())
        assert found.position == position + 2
        assert (await ledger.audit()).findings == []
        assert (await ledger.audit(from_seal=position + 2)).findings == []


async def test_a_state_that_is_sealed_while_an_audit_begins_is_no_finding(
    any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process seals just after the audit has looked for seals; the seal is compared, or not part of the audit.

    Catches an audit that looks for seals before it reads the head: the seal is then in the log, and was not awaited.
    """
    async with small_ledger(url=any_url) as ledger:
        handle = ledger._lifecycle.open_handle
        assert handle is not None
        store: Any = handle.store
        find = store.read_streams

        async def find_and_seal(*arguments: Any) -> list[Row]:
            monkeypatch.setattr(store, "read_streams", find)
            found: list[Row] = await find(*arguments)
            await handle.upkeep.seal_if_due(1)
            return found

        monkeypatch.setattr(store, "read_streams", find_and_seal)
        assert (await ledger.audit()).findings == []
        assert len(await seals_of(ledger)) == 1
        assert (await ledger.audit()).findings == []
