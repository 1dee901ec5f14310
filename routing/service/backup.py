"""Whole ledgers: verify them, export them to files, restore them."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from io import TextIOBase
from pathlib import Path
from typing import IO

from ledger import ExportReader, Head, LogReader, Store, StoredLedger, current_runtime, store_from_url
from ledger.errors import InvalidInput, LedgerNotFound, renamed_fields
from ledger.values import integer, name
from projections import (
    ExportReport,
    History,
    PiecewiseVerification,
    ProgressReport,
    RestoreReport,
    VerifyReport,
    atomic_new_file,
    export_log,
    raise_first_finding,
    restore_log,
    schema,
    verify_log,
)

HASH_BYTES = 32
EVENTS_PER_TRANSACTION = 1000
"""Of a restored ledger's projection: nobody else waits for its database."""
IN_MEMORY = "sqlite://"
# A store needs some validator's name. This one is used if the store only reads a whole database, or only checks a URL.
UNNAMED_VALIDATOR = "nobody"

Source = str | os.PathLike[str]


async def verify(
    source: Source,
    *,
    validator_ss58: str | None = None,
    heads: Iterable[Head] = (),
    progress: ProgressReport | None = None,
) -> list[VerifyReport]:
    """Check every ledger, or one validator's only, in a database (by URL) or in an export (by path).

    Reading leaves no trace, needs no write permission, and trusts nothing but the events. `heads` are heads of one
    ledger (`Allowance.head`) that were noted elsewhere at any earlier time: hashes alone cannot detect that a log was
    truncated or rewritten as a whole. `progress` is called with (events read, events in total) on a thread of the
    library. Raises `InvalidInput`, `LedgerNotFound`, `NewerLedger`, `StorageUnavailable`.
    """
    expected = checked_heads(heads)
    path, validator_ss58 = _checked_source(source), _checked_validator(validator_ss58)
    return await current_runtime().run(_verify(path, validator_ss58, expected, progress))


async def verify_since(
    database_url: str,
    *,
    validator_ss58: str | None = None,
    since: int | None = None,
    progress: ProgressReport | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> VerifyReport:
    """Check a database's ledger in pieces from a position on, or from where the last check ended; record the result.

    It can be interrupted at any time, and goes on after the last complete piece. The ledger need not be sound enough to
    be opened. Raises `PositionOutOfRange`, `InvalidInput`, `LedgerNotFound`, `NewerLedger`, `StorageUnavailable`.
    """
    url, validator_ss58 = _checked_source(database_url), _checked_validator(validator_ss58)
    return await current_runtime().run(_verify_since(url, validator_ss58, since, progress, clock_ns))


async def restore(
    source: Source,
    database_url: str,
    *,
    validator_ss58: str | None = None,
    progress: ProgressReport | None = None,
) -> RestoreReport:
    """Restore a ledger from an export (by path) or a database (by URL), with the same positions and hashes.

    The source is verified first. The restore is one transaction: a failed one changes nothing. If the target database
    holds the beginning of this log, the rest is appended; if it holds all of it, nothing changes; if it holds another
    log of the validator, `LedgerExists` is raised. `validator_ss58` selects one of several ledgers. `progress` as in
    `verify`. Raises `LedgerExists`, `DamagedExport`, `CorruptLedger`, `InvalidInput`, `LedgerNotFound`, `NewerLedger`,
    `StorageUnavailable`.
    """
    check_target(database_url)
    path, validator_ss58 = _checked_source(source), _checked_validator(validator_ss58)
    return await current_runtime().run(_restore(path, database_url, validator_ss58, progress))


async def project_history(database_url: str, validator_ss58: str, progress: ProgressReport) -> None:
    """Project a restored ledger's history now, so that those who only read it need not fold the log for each page.

    Otherwise whoever next opens the ledger for writing projects it, in moments in which nobody calls. `progress` is as
    in `verify`.
    """
    store = store_from_url(database_url, validator_ss58, read_only=False)

    async def project() -> None:
        async with _paused_for_forks(store):
            try:
                head = (await store.open(schema)).position

                async def report(position: int) -> int:
                    progress(position, head)
                    return EVENTS_PER_TRANSACTION

                await History(store, validator_ss58, read_only=False).project(head, report)
            finally:
                await store.close()

    await current_runtime().run(project())


async def validators_in(database_url: str) -> list[str]:
    """Return the validators whose ledgers are in a database, sorted. Raises `InvalidInput`, `StorageUnavailable`."""
    store = store_from_url(database_url, UNNAMED_VALIDATOR, read_only=True)

    async def read() -> list[str]:
        async with _paused_for_forks(store), store.reader() as reader:
            return sorted(str(stored.validator_ss58) for stored in await reader.ledgers())

    return await current_runtime().run(read())


async def verify_store(
    store: Store, validator_ss58: str, heads: Iterable[Head], progress: ProgressReport | None
) -> VerifyReport:
    """Verify one ledger of a store, open or not; on the runtime's loop."""
    expected = checked_heads(heads)
    async with store.reader() as reader:
        return await verify_log(reader, await _single_ledger(reader, validator_ss58), expected, progress)


async def export_store(
    store: Store, validator_ss58: str, target: Source | IO[bytes], progress: ProgressReport | None
) -> ExportReport:
    """Export one ledger of a store to a new file or to a stream of bytes; on the runtime's loop."""
    _check_export_target(target)
    async with store.reader() as reader:
        stored = await _single_ledger(reader, validator_ss58)
        if not isinstance(target, (str, os.PathLike)):
            return await export_log(reader, stored, target, progress)
        with atomic_new_file(Path(target)) as stream:
            return await export_log(reader, stored, stream, progress)


def check_target(database_url: str) -> None:
    """Raise `InvalidInput` if no ledger can be restored into a database."""
    if database_url == IN_MEMORY:
        raise InvalidInput("database_url", database_url, "a database that outlives this call")
    store_from_url(database_url, UNNAMED_VALIDATOR, read_only=False)


def check_database(database_url: str) -> None:
    """Raise `InvalidInput` if a text is not the URL of a database."""
    store_from_url(database_url, UNNAMED_VALIDATOR, read_only=True)


def checked_heads(heads: Iterable[Head]) -> list[Head]:
    """Return the heads as a list. Raises `InvalidInput` if one of them cannot be a log's head."""
    if not isinstance(heads, Iterable):
        raise InvalidInput("heads", heads, "an iterable of Head")
    checked = list(heads)
    for head in checked:
        is_head: bool = isinstance(head, Head)
        if not is_head or type(head.hash) is not bytes or len(head.hash) != HASH_BYTES:
            raise InvalidInput("heads", head, f"an iterable of Head, each with a hash of {HASH_BYTES} bytes")
        integer(head.position, "heads", 0)
    return checked


async def _verify(
    source: str, validator_ss58: str | None, heads: Collection[Head], progress: ProgressReport | None
) -> list[VerifyReport]:
    async with _reader_of(source) as reader:
        if heads:
            # Heads say nothing about whose ledger they are from.
            return [await verify_log(reader, await _single_ledger(reader, validator_ss58), heads, progress)]
        found = await _matching_ledgers(reader, validator_ss58)
        return [await verify_log(reader, stored, heads, progress) for stored in found]


async def _verify_since(
    database_url: str,
    validator_ss58: str | None,
    since: int | None,
    progress: ProgressReport | None,
    clock_ns: Callable[[], int],
) -> VerifyReport:
    async with _reader_of(database_url) as reader:
        stored = await _single_ledger(reader, validator_ss58)
    store = store_from_url(database_url, name(stored.validator_ss58, "validator_ss58"), read_only=False)
    async with _paused_for_forks(store):
        try:
            # The ledger exists, so this only upgrades the tables of an older release.
            await store.open(schema)
            return await PiecewiseVerification(store, stored, clock_ns, progress).run(since)
        finally:
            await store.close()


async def _restore(
    source: str, database_url: str, validator_ss58: str | None, progress: ProgressReport | None
) -> RestoreReport:
    async with _reader_of(source) as reader:
        stored = await _single_ledger(reader, validator_ss58)
        verified = await verify_log(reader, stored, (), progress)
        raise_first_finding(verified, is_export="://" not in source)
        # The events name the validator; the source's head row may be damaged.
        owner = name(verified.validator_ss58, "validator_ss58")
        store = store_from_url(database_url, owner, read_only=False)
        async with _paused_for_forks(store):
            try:
                await store.open(schema)
                return await restore_log(reader, stored, verified, store, progress)
            finally:
                await store.close()


@asynccontextmanager
async def _reader_of(source: str) -> AsyncIterator[LogReader]:
    """Read a database (by URL) or an export (by path)."""
    if "://" not in source:
        yield ExportReader(Path(source))
        return
    async with AsyncExitStack() as stack:
        # The caller passed the URL as `source`. The body is outside, since it may refuse a URL of its own.
        with renamed_fields({"database_url": "source"}):
            store = store_from_url(source, UNNAMED_VALIDATOR, read_only=True)
            await stack.enter_async_context(_paused_for_forks(store))
            reader = await stack.enter_async_context(store.reader())
        yield reader


@asynccontextmanager
async def _paused_for_forks(store: Store) -> AsyncIterator[None]:
    """Make a fork of the process wait until nothing is under way in a store that no ledger handle owns."""
    runtime = current_runtime()
    runtime.add_fork_pause(store.paused_for_fork)
    try:
        yield
    finally:
        runtime.remove_fork_pause(store.paused_for_fork)


async def _single_ledger(reader: LogReader, validator_ss58: str | None) -> StoredLedger:
    """Return the only matching ledger. Raises `LedgerNotFound`, and `InvalidInput` if there are several."""
    found = await _matching_ledgers(reader, validator_ss58)
    if len(found) > 1:
        names = ", ".join(sorted(str(stored.validator_ss58) for stored in found))
        raise InvalidInput("validator_ss58", validator_ss58, f"the validator of one of several ledgers: {names}")
    return found[0]


async def _matching_ledgers(reader: LogReader, validator_ss58: str | None) -> list[StoredLedger]:
    """Return the ledgers of a validator, or all of them. Raises `LedgerNotFound` if there is none.

    If a damaged head row has no readable name, its ledger may be the one that is asked for.
    """
    found = await reader.ledgers()
    if validator_ss58 is not None:
        named = [stored for stored in found if stored.validator_ss58 == validator_ss58]
        found = named or [stored for stored in found if not isinstance(stored.validator_ss58, str)]
    if not found:
        raise LedgerNotFound(validator_ss58 or "any validator")
    return found


def _check_export_target(target: object) -> None:
    if isinstance(target, (str, os.PathLike)):
        is_valid = bool(os.fspath(target))
    else:
        is_valid = hasattr(target, "write") and not isinstance(target, TextIOBase)
    if not is_valid:
        raise InvalidInput("target", target, "a path, or a stream of bytes to write to")


def _checked_source(source: Source) -> str:
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidInput("source", source, "a database's URL, or an export's path")
    return os.fspath(source)


def _checked_validator(validator_ss58: str | None) -> str | None:
    return None if validator_ss58 is None else name(validator_ss58, "validator_ss58")
