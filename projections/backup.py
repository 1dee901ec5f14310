"""Export and restore of a whole ledger, row by row as stored: same positions, same hashes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import IO

import msgspec

from ledger import (
    CommitOutcomeUnknown,
    ExportWriter,
    Head,
    LogReader,
    Row,
    Store,
    StoredLedger,
    Transaction,
    TransactionConflict,
    versions_before,
)
from ledger.errors import CorruptLedger, DamagedExport, InvalidInput, LedgerExists, StorageUnavailable
from ledger.results import Result

from .row_checks import RowChecker
from .snapshots import ProgressReport
from .verify import VerifyReport


class ExportReport(Result, msgspec.Struct, frozen=True):
    """The result of an export: position and hash of the last exported row."""

    validator_ss58: str
    position: int
    hash: str


class RestoreReport(Result, msgspec.Struct, frozen=True):
    """The result of a restore: position and hash of the last row of the source, and the number of rows added."""

    validator_ss58: str
    position: int
    hash: str
    added: int


async def export_log(
    reader: LogReader, stored: StoredLedger, stream: IO[bytes], progress: ProgressReport | None = None
) -> ExportReport:
    """Check every row of a ledger and write it to a stream of bytes.

    Raises `CorruptLedger` at the first bad position: a damaged log must not become a backup that looks sound.
    """
    if not isinstance(stored.validator_ss58, str):
        raise CorruptLedger(1, "the head row names no validator")
    row_checker = RowChecker()
    with closing(ExportWriter(stream, stored.validator_ss58)) as writer:
        async for page in reader.pages(stored):
            _check_page(row_checker, page)
            writer.write_rows(page)
            if progress is not None:
                progress(row_checker.position, stored.position)
            await asyncio.sleep(0)  # A long log yields the event loop after each page.
        reader.check_unchanged()
        if (row_checker.position, row_checker.hash) != (stored.position, stored.hash):
            raise CorruptLedger(row_checker.position + 1, f"the head row is at {stored.position}, but not the log")
        writer.finish()
    return ExportReport(stored.validator_ss58, row_checker.position, row_checker.hash.hex())


async def restore_log(
    reader: LogReader,
    stored: StoredLedger,
    verified: VerifyReport,
    store: Store,
    progress: ProgressReport | None = None,
) -> RestoreReport:
    """Append the rows of a verified ledger that a store lacks, in one transaction.

    A restore that was interrupted has written nothing, and can be repeated; one that was done adds nothing. Raises
    `LedgerExists` if the store has another log, or one that differs before the shorter of the two ends.
    """
    try:
        async with store.transaction() as transaction:
            head = await transaction.head()
            await _check_common_prefix(reader, stored, verified, transaction, head)
            await _append(reader, stored, verified, transaction, head, progress)
    except TransactionConflict as cause:
        raise StorageUnavailable(f"the database aborted the restore, nothing was written: {cause}") from cause
    except CommitOutcomeUnknown as cause:
        raise StorageUnavailable(f"the outcome of the restore is unknown; restore again: {cause}") from cause
    added = max(verified.position - head.position, 0)
    return RestoreReport(store.validator_ss58, verified.position, verified.hash, added)


def raise_first_finding(verified: VerifyReport, *, is_export: bool) -> None:
    """Raise `DamagedExport` or `CorruptLedger` at the first bad position, if there are findings."""
    if verified.findings:
        first = verified.findings[0]
        raise (DamagedExport if is_export else CorruptLedger)(first.position, first.message)


@contextmanager
def atomic_new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that appears under its name only when the body has succeeded, whole and on disk.

    It is written under another name in the same directory and renamed at the end; only its owner can read it. Raises
    `InvalidInput` if the file exists, and `StorageUnavailable` if it cannot be written.
    """
    if path.exists():
        raise InvalidInput("path", str(path), "a file that does not exist yet")
    try:
        descriptor, partial = mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with open(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(descriptor)
            os.replace(partial, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(partial)
            raise
    except OSError as cause:
        raise StorageUnavailable(f"{path} cannot be written: {cause}") from cause


async def _check_common_prefix(
    reader: LogReader, stored: StoredLedger, verified: VerifyReport, transaction: Transaction, head: Head
) -> None:
    """Raise `LedgerExists` unless one of the two logs is the beginning of the other.

    Each hash covers all rows before it, so equal hashes at the last common position are enough.
    """
    common = min(head.position, verified.position)
    found = await _target_hash(transaction, common)
    if common == verified.position:
        expected = verified.head.hash
    else:
        expected = await _source_hash(reader, stored, common)
    if found != expected:
        raise LedgerExists(verified.validator_ss58 or "", head.position)


async def _append(
    reader: LogReader,
    stored: StoredLedger,
    verified: VerifyReport,
    transaction: Transaction,
    head: Head,
    progress: ProgressReport | None,
) -> None:
    # The rows are checked once more: a file may have changed since it was verified.
    row_checker = RowChecker()
    async for page in reader.pages(stored):
        _check_page(row_checker, page)
        missing = [row for row in page if row.position > head.position]
        if missing:
            await transaction.append(missing, versions_before(missing))
        if progress is not None:
            progress(row_checker.position, verified.position)
        await asyncio.sleep(0)
    reader.check_unchanged()
    if (row_checker.position, row_checker.hash) != (verified.position, verified.head.hash):
        raise StorageUnavailable("the source of the restore was changed while it was read; nothing was written")


async def _target_hash(transaction: Transaction, position: int) -> bytes:
    if position == 0:
        return Head().hash
    rows = await transaction.read(position - 1)
    return rows[0].hash if rows else b""


async def _source_hash(reader: LogReader, stored: StoredLedger, position: int) -> bytes:
    if position == 0:
        return Head().hash
    async for page in reader.pages(stored):
        if page[-1].position >= position:
            return next(row.hash for row in page if row.position == position)
    return b""


def _check_page(row_checker: RowChecker, page: list[Row]) -> None:
    for row in page:
        for position, _, message, _ in row_checker.check(row):
            raise CorruptLedger(position, message)
