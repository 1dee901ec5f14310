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
    ArchiveWriter,
    CommitUncertain,
    Contended,
    CorruptLedger,
    DamagedExport,
    Head,
    InvalidInput,
    LedgerExists,
    Reader,
    Row,
    StorageUnavailable,
    Store,
    StoredLedger,
    Transaction,
)

from .envelope import Envelope
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
    reader: Reader, stored: StoredLedger, stream: IO[bytes], progress: ProgressReport | None = None
) -> ExportReport:
    """Writes one ledger, as it stands now, to a stream of bytes; checks the chain of hashes as it goes.

    Raises `CorruptLedger` at the first event that is not what was written.
    """
    if not isinstance(stored.validator_ss58, str):
        raise CorruptLedger(1, "the head row names no validator")
    envelope = Envelope()
    writer = ArchiveWriter(stream, stored.validator_ss58)
    async for page in reader.pages(stored):
        _follow(envelope, page)
        writer.add(page)
        if progress is not None:
            progress(envelope.position, stored.position)
        await asyncio.sleep(0)  # A long log lets others have the loop between pages.
    reader.check_undisturbed()
    if (envelope.position, envelope.hash) != (stored.position, stored.hash):
        raise CorruptLedger(envelope.position + 1, f"the head row tells of a log that ends at {stored.position}")
    writer.end()
    return ExportReport(stored.validator_ss58, envelope.position, envelope.hash.hex())


async def restore_log(
    reader: Reader, stored: StoredLedger, verified: VerifyReport, store: Store, progress: ProgressReport | None = None
) -> RestoreReport:
    """Appends to a store, in one transaction, what it lacks of a ledger that was just verified.

    Raises `LedgerExists` where the store has another log, or one that went another way.
    """
    try:
        async with store.transaction() as transaction:
            head = await transaction.head()
            await _compare(reader, stored, verified, transaction, head)
            await _append(reader, stored, verified, transaction, head, progress)
    except Contended as cause:
        raise StorageUnavailable(f"the database gave the restore up, nothing was done: {cause}") from cause
    except CommitUncertain as cause:
        raise StorageUnavailable(f"whether the restore was done is unknown; restore again: {cause}") from cause
    added = max(verified.position - head.position, 0)
    return RestoreReport(store.validator_ss58, verified.position, verified.hash, added)


def refuse_findings(verified: VerifyReport, *, is_export: bool) -> None:
    """Raises `DamagedExport` or `CorruptLedger` at the first bad position of what is to be restored."""
    if verified.findings:
        first = verified.findings[0]
        raise (DamagedExport if is_export else CorruptLedger)(first.position, first.message)


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
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


async def _compare(
    reader: Reader, stored: StoredLedger, verified: VerifyReport, transaction: Transaction, head: Head
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
    reader: Reader,
    stored: StoredLedger,
    verified: VerifyReport,
    transaction: Transaction,
    head: Head,
    progress: ProgressReport | None,
) -> None:
    envelope = Envelope()
    async for page in reader.pages(stored):
        _follow(envelope, page)
        missing = [row for row in page if row.position > head.position]
        if missing:
            await transaction.append(missing)
        if progress is not None:
            progress(envelope.position, verified.position)
        await asyncio.sleep(0)
    reader.check_undisturbed()
    if (envelope.position, envelope.hash) != (verified.position, verified.head.hash):
        raise StorageUnavailable("what is restored was changed while it was read; nothing was done")


async def _hash_in(transaction: Transaction, position: int) -> bytes:
    if position == 0:
        return Head().hash
    rows = await transaction.read(position - 1)
    return rows[0].hash if rows else b""


async def _hash_at(reader: Reader, stored: StoredLedger, position: int) -> bytes:
    if position == 0:
        return Head().hash
    async for page in reader.pages(stored):
        if page[-1].position >= position:
            return next(row.hash for row in page if row.position == position)
    return b""


def _follow(envelope: Envelope, page: list[Row]) -> None:
    for row in page:
        for position, _, message, _ in envelope.take(row):
            raise CorruptLedger(position, message)
