"""Export, verify and restore whole ledgers: the same events, positions and hashes, or no change at all."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import routing.sync
from ledger import Head, Row, StoredLedger, encode_state
from projections import export_log
from projections import verify as verifying
from routing import (
    Allowance,
    CorruptLedger,
    DamagedExport,
    InvalidInput,
    LedgerExists,
    LedgerNotFound,
    LogWentBack,
    NewerLedger,
    ReservationNotFound,
    StorageUnavailable,
    restore,
    verify,
)
from tests.support.logs import PAYLOAD, all_rows, append, opened, row_after, rows_after
from tests.support.servers import PostgresServer, connected
from tests.support.small import GPU, START, VALIDATOR, Clock, record_blocks, small_ledger
from tests.support.stories import SETTINGS, Story, events_of, seed_shown

SEED = int(os.environ.get("TAMPER_SEED", "20241125"))
DAMAGES = 400


async def make_ledger(url: str, steps: int = 60) -> tuple[Head, list[Row], bytes]:
    """Make a ledger with events of every kind; return its head, its events and its encoded state."""
    clock = Clock()
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, settings=SETTINGS) as ledger:
        await Story(ledger, clock, SEED).goes_on(steps)
        return (
            await ledger.head(),
            await events_of(ledger),
            await ledger._read_state(lambda state, _: encode_state(state)),
        )


async def contents(url: str, validator_ss58: str = VALIDATOR) -> tuple[Head, list[Row], bytes]:
    """Return a ledger's head, events and encoded state, read without write access."""
    async with Allowance.open(url, validator_ss58=validator_ss58, read_only=True) as ledger:
        return (
            await ledger.head(),
            await events_of(ledger),
            await ledger._read_state(lambda state, _: encode_state(state)),
        )


async def exported(url: str, path: Path) -> Path:
    """Export a ledger to a path; return the path."""
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        await ledger.export(path)
    return path


async def test_a_ledger_is_restored_from_engine_to_engine_and_back(tmp_path: Path, postgres_url: str) -> None:
    """SQLite to a file, to PostgreSQL, and back to SQLite: head, events and state are equal, and changes go on.

    Catches a column that a restore alters, and a head that is not the last event's.
    """
    first, last = f"sqlite:///{tmp_path}/first.db", f"sqlite:///{tmp_path}/last.db"
    live = await make_ledger(first)
    file = await exported(first, tmp_path / "first.jsonl.gz")
    head = live[0]
    report = await restore(file, postgres_url)
    assert (report.validator_ss58, report.position, report.hash) == (VALIDATOR, head.position, head.hash.hex())
    assert report.added == head.position
    assert await contents(postgres_url) == live
    await restore(postgres_url, last)
    assert await contents(last) == live
    assert (await exported(last, tmp_path / "last.jsonl.gz")).read_bytes() == file.read_bytes()
    for url in (postgres_url, last):
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock()) as ledger:
            await ledger.expire_due()
            await ledger.record_manifests(500, {"5Anna": {GPU: 3}}, confirm=True)
            assert (await ledger.head()).position > head.position
            assert (await ledger.rebuild()).different == 0
            assert (await ledger.audit()).findings == []
            assert (await ledger.verify([head])).noted == [head.position]


async def test_any_stored_bytes_are_exported_and_restored_exactly(tmp_path: Path, shared_url: str) -> None:
    """Payloads may be arbitrary bytes, texts may have any characters, and optional columns may be set or not."""
    odd = '\x01 \u2028 \U0001f9fe "quoted" \\ \r\n end'
    async with opened(shared_url) as store:
        rows = rows_after(Head(), 2)
        for columns in (
            {"key": odd, "job_uuid": odd, "attempt": 2**63 - 1},
            {"settles": 1, "payload": b""},
            {"payload": bytes(range(256)) * 40},
            {"payload": odd.encode()},
        ):
            before = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns)
            rows.append(row_after(before, odd, len(rows) - 1, **columns))
        await append(store, rows)
        assert PAYLOAD in {row.payload for row in rows}
        stream = io.BytesIO()
        async with store.reader() as reader:
            (stored,) = await reader.ledgers()
            await export_log(reader, stored, stream)
    file, copy = tmp_path / "odd.gz", f"sqlite:///{tmp_path}/copy.db"
    file.write_bytes(stream.getvalue())
    for source in (file, shared_url):
        shutil.rmtree(tmp_path / "copies", ignore_errors=True)
        copy = f"sqlite:///{tmp_path}/copies/copy.db"
        await restore(source, copy)
        async with opened(copy, store.validator_ss58, read_only=True) as restored:
            assert await all_rows(restored) == rows


async def test_an_export_has_the_events_of_one_moment(tmp_path: Path, shared_url: str) -> None:
    """Events appended after the export began are not in it; all earlier ones are, over several pages.

    Catches an export that reads each page in another snapshot, or that ends at the newest head.
    """
    async with opened(shared_url) as store:
        head = await append(store, rows_after(Head(), 2500))
        stream = io.BytesIO()
        async with store.reader() as reader:
            (stored,) = await reader.ledgers()
            await append(store, rows_after(head, 1500, version=2501))
            report = await export_log(reader, stored, stream)
        assert (report.position, report.hash) == (2500, head.hash.hex())
    file = tmp_path / "export.gz"
    file.write_bytes(stream.getvalue())
    (checked,) = await verify(file, heads=[head])
    assert (checked.findings, checked.noted, checked.position) == ([], [2500], 2500)


async def test_an_export_of_a_ledger_in_use_is_a_prefix_of_its_log(tmp_path: Path, shared_url: str) -> None:
    """Each export taken while a writer appends verifies, and equals the log up to some position."""
    async with small_ledger(url=shared_url, offers={"5Anna": 400}, blocks=41) as ledger:
        done = asyncio.Event()

        async def work() -> int:
            count = 0
            while not done.is_set():
                reserved = await ledger.reserve("5Anna", GPU, 1.0, 41)
                await ledger.release(reserved.reservation_id)
                count += 1
            return count

        working = asyncio.create_task(work())
        for number in range(5):
            await ledger.export(tmp_path / f"{number}.gz")
        done.set()
        assert await working > 0
        rows = await events_of(ledger)
        for number in range(5):
            (report,) = await verify(tmp_path / f"{number}.gz")
            assert report.findings == []
            assert report.hash == rows[report.position - 1].hash.hex()


async def test_a_restore_appends_to_a_prefix_of_the_same_log(tmp_path: Path, shared_url: str) -> None:
    """Restoring a newer export appends the new events; restoring an older or the same one changes nothing."""
    live = f"sqlite:///{tmp_path}/live.db"
    async with small_ledger(url=live) as ledger:
        await ledger.export(tmp_path / "older.gz")
        older = await ledger.head()
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.export(tmp_path / "newer.gz")
    assert (await restore(tmp_path / "older.gz", shared_url)).added == older.position
    assert (await restore(tmp_path / "newer.gz", shared_url)).added == 1
    for name in ("newer.gz", "older.gz"):
        assert (await restore(tmp_path / name, shared_url)).added == 0
    assert await contents(shared_url) == await contents(live)


async def test_a_restore_never_overwrites_another_log(tmp_path: Path, shared_url: str) -> None:
    """A target with another log of the validator, longer or shorter, is refused and unchanged."""
    async with small_ledger(url=f"sqlite:///{tmp_path}/one.db") as ledger:
        await ledger.export(tmp_path / "short.gz")
        for _ in range(3):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.export(tmp_path / "long.gz")
    async with small_ledger(url=shared_url, clock=Clock()) as other:
        await other.reserve("5Bert", GPU, 6.0, 11)
        before = await other.head()
        for name in ("short.gz", "long.gz"):
            with pytest.raises(LedgerExists) as refused:
                await restore(tmp_path / name, shared_url)
            assert (refused.value.validator_ss58, refused.value.position) == (VALIDATOR, before.position)
        assert await other.head() == before
        assert (await other.verify()).findings == []


async def test_ledgers_of_several_validators_share_a_database(tmp_path: Path, shared_url: str) -> None:
    """A ledger is restored next to others; `validator_ss58` selects one of several; an unknown validator is refused."""
    source = f"sqlite:///{tmp_path}/source.db"
    await make_ledger(source)
    async with Allowance.open(source, validator_ss58="5Other"):
        pass
    async with Allowance.open(shared_url, validator_ss58="5Third"):
        pass
    with pytest.raises(InvalidInput):
        await restore(source, shared_url)
    with pytest.raises(LedgerNotFound):
        await restore(source, shared_url, validator_ss58="5Stranger")
    for validator in ("5Other", VALIDATOR):
        await restore(source, shared_url, validator_ss58=validator)
        assert await contents(shared_url, validator) == await contents(source, validator)
    assert [report.findings for report in await verify(shared_url)] == [[], [], []]
    with pytest.raises(InvalidInput):
        await restore(source, "sqlite://", validator_ss58=VALIDATOR)


async def test_a_damaged_export_is_refused_before_anything_is_restored(tmp_path: Path) -> None:
    """A file truncated anywhere or with any bit flipped is refused without creating a ledger, or restores equally.

    Catches a restore that begins before it has read the whole file.
    """
    live = f"sqlite:///{tmp_path}/live.db"
    head, _, _ = await make_ledger(live, 15)
    whole = (await exported(live, tmp_path / "whole.gz")).read_bytes()
    file, target = tmp_path / "damaged.gz", tmp_path / "target" / "ledger.db"
    draw = random.Random(SEED)
    refused = 0
    with seed_shown(SEED):
        for number in range(DAMAGES):
            damaged = bytearray(whole)
            if number % 4 == 0:
                del damaged[draw.randrange(len(whole)) :]
            else:
                damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            try:
                report = await restore(file, f"sqlite:///{target}")
            except (DamagedExport, InvalidInput, NewerLedger):
                refused += 1
                assert not target.parent.exists()
                continue
            assert (report.position, report.hash) == (head.position, head.hash.hex())
            shutil.rmtree(target.parent)
    assert refused > DAMAGES * 0.9


Change = Callable[[list[dict[str, Any]]], None]


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        (lambda lines: lines[5].update(payload=lines[5]["payload"] + " "), 5),
        (lambda lines: lines[5].update(position="5"), 5),
        (lambda lines: lines[5].update(version=2**70), 5),
        (lambda lines: lines[5].update(hash="zz"), 5),
        (lambda lines: lines[5].update(hash=""), 5),
        (lambda lines: lines[5].update(unknown=1), 5),
        (lambda lines: lines[5].pop("payload"), 5),
        (lambda lines: lines[5].update(payload_base64="eA=="), 5),
        (lambda lines: lines.pop(5), 5),
        (lambda lines: lines.insert(5, dict(lines[5])), 5),
        (lambda lines: lines.insert(5, lines.pop(6)), 5),
        (lambda lines: lines.pop(), 16),
        (lambda lines: lines.append(dict(lines[5])), 16),
        (lambda lines: lines.insert(5, lines[-1]), 5),
        (lambda lines: lines[-1].update(events=3), 16),
        (lambda lines: lines[-1].update(position=3), 4),
        (lambda lines: lines[-1].update(hash="00" * 32), 15),
        (lambda lines: lines[-1].update(hash="odd"), 15),
        (lambda lines: lines[-1].update(recorded_at_ns=0), 15),
        (lambda lines: lines[0].update(validator_ss58="5Other"), 15),
    ],
)
async def test_a_changed_export_is_refused_at_the_position_of_the_change(
    tmp_path: Path, change: Change, bad: int
) -> None:
    """For an export that was unpacked, changed and packed again, verify and restore name the position."""
    async with small_ledger(url=f"sqlite:///{tmp_path}/live.db") as ledger:
        for _ in range(2):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.export(tmp_path / "whole.gz")
    lines = [json.loads(line) for line in gzip.decompress((tmp_path / "whole.gz").read_bytes()).splitlines()]
    assert [line["type"] for line in lines] == ["allowance-ledger-export", *["event"] * 15, "end"]
    change(lines)
    file = tmp_path / "changed.gz"
    file.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
    (report,) = await verify(file)
    assert report.first_bad_position == bad, report.findings
    with pytest.raises(DamagedExport) as refused:
        await restore(file, f"sqlite:///{tmp_path}/target.db")
    assert refused.value.position == bad
    assert not (tmp_path / "target.db").exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", InvalidInput),
        (b"my notes", InvalidInput),
        (gzip.compress(b"my notes\n" * 9), InvalidInput),
        (gzip.compress(b'{"type":"allowance-ledger-export","version":1}\n'), InvalidInput),
        (gzip.compress(b'{"type":"allowance-ledger-export","version":2,"more":1}\n'), NewerLedger),
        (gzip.compress(b'{"type":"allowance-ledger-export","version":1,"validator_ss58":"5V"}\n'), DamagedExport),
    ],
)
async def test_a_file_that_is_no_export_is_refused(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    """An export of a newer release is refused with an error of its own."""
    (tmp_path / "file").write_bytes(content)
    for source in (tmp_path / "file", str(tmp_path / "file")):
        with pytest.raises(error):
            await restore(source, f"sqlite:///{tmp_path}/target.db")
    with pytest.raises(InvalidInput):
        await restore(tmp_path / "nowhere", f"sqlite:///{tmp_path}/target.db")


async def test_a_damaged_ledger_is_not_exported(tmp_path: Path) -> None:
    """The error names the position; no partial file is left behind, and an existing file is not overwritten."""
    path = tmp_path / "ledger.db"
    async with small_ledger(url=f"sqlite:///{path}") as ledger:
        with pytest.raises(InvalidInput):
            await ledger.export(path)
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("DROP TRIGGER allowance_events_no_update")
        connection.execute("UPDATE allowance_events SET recorded_at_ns = 0 WHERE position = 7")
        connection.close()
        before = sorted(tmp_path.iterdir())
        with pytest.raises(CorruptLedger) as refused:
            await ledger.export(tmp_path / "export.gz")
        assert refused.value.position == 7
        assert sorted(tmp_path.iterdir()) == before
        with pytest.raises(StorageUnavailable):
            await ledger.export(tmp_path / "no such folder" / "export.gz")
    with pytest.raises(CorruptLedger):
        await restore(f"sqlite:///{path}", f"sqlite:///{tmp_path}/target.db")
    assert not (tmp_path / "target.db").exists()


async def test_a_killed_restore_leaves_an_empty_ledger(tmp_path: Path, shared_url: str) -> None:
    """After a kill between two pages of its transaction, the ledger is empty and the next attempt restores it.

    Catches pages that are committed one by one.
    """
    live = f"sqlite:///{tmp_path}/live.db"
    async with opened(live) as store:
        head = await append(store, rows_after(Head(), 3500))
        async with store.reader() as reader:
            (stored,) = await reader.ledgers()
            with (tmp_path / "export.gz").open("wb") as stream:
                await export_log(reader, stored, stream)
    script = f"""
    import os
    from routing.sync import restore

    seen = []
    def die(done: int, total: int) -> None:
        seen.append(done)
        if seen.count(2000) == 2:  # verified before, being appended now
            os._exit(9)

    restore({str(tmp_path / "export.gz")!r}, {shared_url!r}, progress=die)
    """
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False
    )
    assert ran.returncode == 9, ran.stderr
    (report,) = await verify(shared_url)
    assert (report.events, report.position, report.findings) == (0, 0, [])
    assert (await restore(tmp_path / "export.gz", shared_url)).added == 3500
    (report,) = await verify(shared_url, heads=[head])
    assert (report.findings, report.noted) == ([], [3500])


async def test_a_cancelled_restore_leaves_an_empty_ledger(tmp_path: Path, shared_url: str) -> None:
    """After a cancellation between two pages of its transaction, the ledger is empty and the next attempt restores it.

    Catches a restore that blocks the runtime's loop until it is done: no other caller could run meanwhile.
    """
    live = f"sqlite:///{tmp_path}/live.db"
    async with opened(live) as store:
        await append(store, rows_after(Head(), 3500))
    loop, seen = asyncio.get_running_loop(), []

    def cancel(done: int, _: int) -> None:
        seen.append(done)
        if seen.count(1000) == 2:  # verified before, being appended now
            loop.call_soon_threadsafe(restoring.cancel)
            while not cancelled.wait(0.01):
                pass

    cancelled = threading.Event()
    restoring = asyncio.create_task(restore(live, shared_url, progress=cancel))
    restoring.add_done_callback(lambda _: cancelled.set())
    with pytest.raises(asyncio.CancelledError):
        await restoring
    (report,) = await verify(shared_url)
    assert (report.events, report.findings) == (0, [])
    assert (await restore(live, shared_url)).added == 3500


async def test_a_source_that_changes_after_its_verification_is_not_restored(tmp_path: Path, monkeypatch: Any) -> None:
    """The restore checks the hash chain again while it appends, so it restores only what was verified."""
    await make_ledger(f"sqlite:///{tmp_path}/one.db")
    async with small_ledger(url=f"sqlite:///{tmp_path}/two.db"):
        pass
    one = await exported(f"sqlite:///{tmp_path}/one.db", tmp_path / "one.gz")
    two = await exported(f"sqlite:///{tmp_path}/two.db", tmp_path / "two.gz")
    check_heads = verifying.LogCheck.check_heads

    def end_and_swap(self: Any, head: StoredLedger) -> None:
        check_heads(self, head)
        os.replace(two, one)

    monkeypatch.setattr(verifying.LogCheck, "check_heads", end_and_swap)
    with pytest.raises(StorageUnavailable, match="was changed"):
        await restore(one, f"sqlite:///{tmp_path}/target.db")
    monkeypatch.undo()
    (report,) = await verify(f"sqlite:///{tmp_path}/target.db")
    assert report.position == 0


def test_blocking_calls_export_verify_and_restore(tmp_path: Path) -> None:
    """`routing.sync` does all three without an event loop."""
    url, copy = f"sqlite:///{tmp_path}/ledger.db", f"sqlite:///{tmp_path}/copy.db"
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        seen: list[tuple[int, int]] = []
        report = ledger.export(tmp_path / "export.gz", lambda done, total: seen.append((done, total)))
        assert seen == [(1, 1)]
        assert ledger.verify().hash == report.hash
    assert routing.sync.restore(tmp_path / "export.gz", copy).hash == report.hash
    assert [each.hash for each in routing.sync.verify(copy)] == [report.hash]


# Backups of a ledger in use, and the changes after them


def _by_export(url: str, directory: Path) -> Path:
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        ledger.export(directory / "backup.gz")
    return directory / "backup.gz"


def _by_vacuum(url: str, directory: Path) -> Path:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("VACUUM INTO ?", (str(directory / "backup.db"),))
    connection.close()
    return directory / "backup.db"


def _by_backup(url: str, directory: Path) -> Path:
    live, copy = sqlite3.connect(url.removeprefix("sqlite:///")), sqlite3.connect(directory / "backup.db")
    live.backup(copy)
    live.close()
    copy.close()
    return directory / "backup.db"


@pytest.mark.parametrize("back_up", [_by_export, _by_vacuum, _by_backup])
async def test_a_backup_of_a_live_sqlite_ledger_is_restored(tmp_path: Path, back_up: Any) -> None:
    """The backup is taken while the ledger is in use; later reservations are lost, and their ids are never reused.

    Catches an id that is only a position, which would name another job's reservation later; and a running process that
    continues in the new file or still reads the old one.
    """
    directory = tmp_path / "live"
    directory.mkdir()
    url = f"sqlite:///{directory}/ledger.db"
    async with small_ledger(url=url) as ledger:
        backed_up = await ledger.reserve("5Anna", GPU, 6.0, 11)
        head = await ledger.head()
        backup = await asyncio.to_thread(back_up, url, tmp_path)
        lost = [(await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id for _ in range(3)]
        directory.rename(tmp_path / "lost")
        directory.mkdir()
        if backup.suffix == ".gz":
            await restore(backup, url)
        else:
            shutil.copyfile(backup, directory / "ledger.db")
        for call in (
            *(lambda: ledger.reserve("5Bert", GPU, 6.0, 11),) * 2,
            ledger.overview,
            ledger.history,
            ledger.head,
        ):
            with pytest.raises(StorageUnavailable, match="was replaced"):
                await call()
        restored = _contents_of(directory)
    await _assert_continues_without(url, backed_up.reservation_id, lost, head, restored)


async def test_a_backup_of_a_live_postgresql_ledger_is_restored(tmp_path: Path, postgres_url: str) -> None:
    """As on SQLite; the running process is refused until the ledger is opened again, on purpose.

    Catches a process that is refused once and then goes on, although nobody has decided that it may.
    """
    async with small_ledger(url=postgres_url) as ledger:
        backed_up = await ledger.reserve("5Anna", GPU, 6.0, 11)
        head = await ledger.head()
        backup = await asyncio.to_thread(_by_export, postgres_url, tmp_path)
        lost = [(await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id for _ in range(3)]
        async with connected(postgres_url) as connection:
            await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await restore(backup, postgres_url)
        calls = (lambda: ledger.reserve("5Bert", GPU, 6.0, 11), ledger.head, ledger.history)
        for call in calls * 2:
            with pytest.raises(LogWentBack) as went_back:
                await call()
            positions = (went_back.value.acknowledged_position, went_back.value.stored_position)
            assert positions == (head.position + 3, head.position)
    await _assert_continues_without(postgres_url, backed_up.reservation_id, lost, head, None)


async def test_a_backup_that_is_written_into_the_file_in_use_is_noticed(tmp_path: Path) -> None:
    """The file stays, and its content goes back, with SQLite's own backup interface: every call is refused.

    Catches a writer that compares only what it has in memory: after an error it would load the older log.
    """
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
        backup = await asyncio.to_thread(_by_vacuum, url, tmp_path)
        lost = [(await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id for _ in range(3)]
        old, live = sqlite3.connect(backup), sqlite3.connect(tmp_path / "ledger.db")
        old.backup(live)
        old.close()
        live.close()
        _discard_state(ledger)
        calls = (lambda: ledger.spend(lost[0]), ledger.current_block, ledger.history, lambda: ledger.spend(lost[0]))
        for call in calls:
            with pytest.raises(LogWentBack) as went_back:
                await call()
            assert went_back.value.kept_position == head.position
    async with Allowance.open(url, validator_ss58=VALIDATOR) as reopened:
        assert await reopened.head() == head
        with pytest.raises(ReservationNotFound):
            await reopened.spend(lost[0])


def _discard_state(ledger: Allowance) -> None:
    """Do what the writer does after any error."""
    opened = ledger._lifecycle.open_handle
    assert opened is not None
    opened.writer._live.current = None


async def test_a_dump_of_a_postgresql_ledger_is_restored(
    tmp_path: Path, server: PostgresServer, postgres_url: str
) -> None:
    """A pg_dump that was taken while the ledger is in use restores the same head."""
    async with small_ledger(url=postgres_url) as ledger:
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 11)
        head = await ledger.head()
        dumped = tmp_path / "dump.sql"
        await asyncio.to_thread(server.dump, postgres_url, dumped)
        lost = await ledger.reserve("5Anna", GPU, 6.0, 11)
        async with connected(postgres_url) as connection:
            await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await asyncio.to_thread(server.load, postgres_url, dumped)
    (report,) = await verify(postgres_url, heads=[head])
    assert (report.findings, report.noted) == ([], [head.position])
    await _assert_continues_without(postgres_url, reserved.reservation_id, [lost.reservation_id], head, None)


async def _assert_continues_without(
    url: str, backed_up: int, lost: list[int], head: Head, untouched: dict[str, bytes] | None
) -> None:
    if untouched is not None:
        assert _contents_of(Path(url.removeprefix("sqlite:///")).parent) == untouched
    clock = Clock(START + timedelta(seconds=12 * 12))
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        assert await ledger.head() == head
        await record_blocks(ledger, 12, 12, ["5Anna", "5Bert", "5Carl"])
        for an_id in lost:
            for call in (ledger.reservation, ledger.spend, ledger.release):
                with pytest.raises(ReservationNotFound):
                    await call(an_id)
        made = [(await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id for _ in range(4)]
        assert not set(made) & set(lost)
        for an_id in lost:
            with pytest.raises(ReservationNotFound):
                await ledger.spend(an_id)
        assert (await ledger.spend(backed_up)).status == "spent"
        assert (await ledger.verify([head])).findings == []


def _contents_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.suffix == ".db"}


@pytest.mark.parametrize("further", [0, 1, 5])
async def test_a_diverged_log_is_detected(postgres_url: str, further: int) -> None:
    """A process decides nothing on a tail that the log has lost, even if the log is as long again, or longer.

    Catches a comparison of positions without hashes.
    """
    async with small_ledger(url=postgres_url) as ledger:
        before = await ledger.head()
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        async with connected(postgres_url) as connection:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute("DELETE FROM allowance_events WHERE position > $1", before.position)
            statement = "UPDATE allowance_ledgers SET position = $1, hash = $2, recorded_at_ns = $3"
            await connection.execute(statement, *before)
            await connection.execute("DELETE FROM allowance_streams WHERE name LIKE '5Anna%'")
        async with small_ledger(url=postgres_url) as other:
            for _ in range(further):
                await other.reserve("5Carl", GPU, 6.0, 11)
            running = ledger._lifecycle.open_handle
            assert running is not None
            remembered = running.writer._live.current
            for call in (
                lambda: ledger.reserve("5Bert", GPU, 6.0, 11),
                lambda: ledger.reserve("5Anna", GPU, 1000.0, 11),
                ledger.overview,
            ):
                running.writer._live.current, running.writer._optimistic._batches_behind = remembered, 0
                with pytest.raises(StorageUnavailable):
                    await call()
            head = await other.head()
            assert head.position == before.position + further
            assert (await other.verify()).findings == []


@pytest.mark.parametrize("asked", ["reserve", "overview"])
async def test_a_process_never_reads_another_validators_ledger_with_the_same_local_id(
    tmp_path: Path, postgres_url: str, asked: str
) -> None:
    """A restore may assign other local ids; a running process must not use another validator's log as its own.

    Catches a head that is looked up by the local id alone; the second query, folded anew, would read that log.
    """
    live = f"sqlite:///{tmp_path}/live.db"
    async with Allowance.open(live, validator_ss58="5Other"):
        pass
    async with small_ledger(url=postgres_url) as ledger:
        async with connected(postgres_url) as connection:
            await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await restore(live, postgres_url)
        for _ in range(3):
            with pytest.raises((LedgerNotFound, StorageUnavailable)):
                await (ledger.reserve("5Anna", GPU, 6.0, 11) if asked == "reserve" else ledger.overview())
    assert await contents(postgres_url, "5Other") == await contents(live, "5Other")


async def test_the_wal_of_a_moved_database_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    """If only the database file is moved away, SQLite would apply its WAL to the new file; the restore refuses."""
    path = tmp_path / "ledger.db"
    async with small_ledger(url=f"sqlite:///{path}") as ledger:
        await ledger.export(tmp_path / "export.gz")
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StorageUnavailable):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        with pytest.raises(StorageUnavailable, match="-wal belongs to"):
            await restore(tmp_path / "export.gz", f"sqlite:///{path}")
        assert not path.exists()


async def test_a_reader_follows_a_database_file_that_is_replaced(tmp_path: Path) -> None:
    """An auditor that reads a nightly copy sees the log and the history of the newest copy."""
    live, copy = f"sqlite:///{tmp_path}/live.db", tmp_path / "copy.db"
    async with small_ledger(url=live) as ledger:
        shutil.copyfile(await asyncio.to_thread(_by_vacuum, live, tmp_path), copy)
        async with Allowance.open(f"sqlite:///{copy}", validator_ss58=VALIDATOR, read_only=True) as auditor:
            assert (await auditor.history()).items == []
            reserved = await ledger.reserve("5Anna", GPU, 6.0, 11)
            (tmp_path / "backup.db").unlink()
            os.replace(await asyncio.to_thread(_by_vacuum, live, tmp_path), copy)
            assert await auditor.head() == await ledger.head()
            assert (await auditor.history()).items == [reserved]
            assert await auditor.reservation(reserved.reservation_id) == reserved
