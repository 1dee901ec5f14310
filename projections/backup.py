"""A whole ledger from one place to another, events as they are stored: same positions, same hashes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
)
from ledger.errors import CorruptLedger, DamagedExport, InvalidInput, LedgerExists, StorageUnavailable

from .row_checks import RowChecker
from .snapshots import ProgressReport
from .verify import VerifyReport


class ExportReport(msgspec.Struct, frozen=True):
    """What was exported: where the log ends in the file."""

    validator_ss58: str
    position: int
    hash: str


class RestoreReport(msgspec.Struct, frozen=True):
    """What was restored: where the log of the export ends, and how many events were not there before."""

    validator_ss58: str
    position: int
    hash: str
    added: int


async def export_log(
    reader: LogReader, stored: StoredLedger, stream: IO[bytes], progress: ProgressReport | None = None
) -> ExportReport:
    """Writes one ledger, as it stands now, to a stream of bytes; checks the chain of hashes as it goes.

    Raises `CorruptLedger` at the first event that is not what was written.
    """
    if not isinstance(stored.validator_ss58, str):
        raise CorruptLedger(1, "the head row names no validator")
    row_checker = RowChecker()
    writer = ExportWriter(stream, stored.validator_ss58)
    async for page in reader.pages(stored):
        _check_page(row_checker, page)
        writer.write_rows(page)
        if progress is not None:
            progress(row_checker.position, stored.position)
        await asyncio.sleep(0)  # A long log lets others have the loop between pages.
    reader.check_unchanged()
    if (row_checker.position, row_checker.hash) != (stored.position, stored.hash):
        raise CorruptLedger(row_checker.position + 1, f"the head row tells of a log that ends at {stored.position}")
    writer.finish()
    return ExportReport(stored.validator_ss58, row_checker.position, row_checker.hash.hex())


async def restore_log(
    reader: LogReader,
    stored: StoredLedger,
    verified: VerifyReport,
    store: Store,
    progress: ProgressReport | None = None,
) -> RestoreReport:
    """Appends to a store, in one transaction, what it lacks of a ledger that was just verified.

    Raises `LedgerExists` where the store has another log, or one that went another way.
    """
    try:
        async with store.transaction() as transaction:
            head = await transaction.head()
            await _check_common_prefix(reader, stored, verified, transaction, head)
            await _append(reader, stored, verified, transaction, head, progress)
    except TransactionConflict as cause:
        raise StorageUnavailable(f"the database gave the restore up, nothing was done: {cause}") from cause
    except CommitOutcomeUnknown as cause:
        raise StorageUnavailable(f"whether the restore was done is unknown; restore again: {cause}") from cause
    added = max(verified.position - head.position, 0)
    return RestoreReport(store.validator_ss58, verified.position, verified.hash, added)


def raise_first_finding(verified: VerifyReport, *, is_export: bool) -> None:
    """Raises `DamagedExport` or `CorruptLedger` at the first bad position of what is to be restored."""
    if verified.findings:
        first = verified.findings[0]
        raise (DamagedExport if is_export else CorruptLedger)(first.position, first.message)


@contextmanager
def atomic_new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there, whole and its owner's, once the body has ended well; before, and else, there is none."""
    if path.exists():
        raise InvalidInput("path", str(path), "a file that is not there yet")
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
    """One of the two logs must go on where the other ends."""
    shared = min(head.position, verified.position)
    found = await _hash_in(transaction, shared)
    if shared == verified.position:
        expected = verified.head.hash
    else:
        expected = await _hash_at(reader, stored, shared)
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
    row_checker = RowChecker()
    async for page in reader.pages(stored):
        _check_page(row_checker, page)
        missing = [row for row in page if row.position > head.position]
        if missing:
            await transaction.append(missing)
        if progress is not None:
            progress(row_checker.position, verified.position)
        await asyncio.sleep(0)
    reader.check_unchanged()
    if (row_checker.position, row_checker.hash) != (verified.position, verified.head.hash):
        raise StorageUnavailable("what is restored was changed while it was read; nothing was done")


async def _hash_in(transaction: Transaction, position: int) -> bytes:
    if position == 0:
        return Head().hash
    rows = await transaction.read(position - 1)
    return rows[0].hash if rows else b""


async def _hash_at(reader: LogReader, stored: StoredLedger, position: int) -> bytes:
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
