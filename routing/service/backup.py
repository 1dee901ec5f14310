"""Ledgers as a whole: verified, written to files, restored."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from io import TextIOBase
from pathlib import Path
from typing import IO

from ledger import ExportReader, Head, LogReader, Store, StoredLedger, current_runtime, store_from_url
from ledger.errors import InvalidInput, LedgerNotFound, renamed_fields
from ledger.values import integer, name
from projections import (
    ExportReport,
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
NOBODY = "nobody"
"""Whose ledger is meant where all of a database are read."""
MEMORY = "sqlite://"
ONE_LEDGER = "the validator of one of the ledgers in the source: "

Source = str | os.PathLike[str]


async def verify(
    source: Source,
    *,
    validator_ss58: str | None = None,
    heads: Iterable[Head] = (),
    progress: ProgressReport | None = None,
) -> list[VerifyReport]:
    """Checks every ledger in a database, by URL, or in an export, by path; or one validator's alone.

    Leaves no trace where it reads, works without write permission, and believes nothing but the events. `heads` are of
    one ledger, noted elsewhere at any time before (`Allowance.head`): only with them can it be told that a log was not
    cut or written anew as a whole. Raises `InvalidInput`, `LedgerNotFound`, `NewerLedger`, `StorageUnavailable`.
    """
    known = checked_heads(heads)
    path, validator_ss58 = _checked_source(source), _checked_validator(validator_ss58)
    return await current_runtime().run(_verify(path, validator_ss58, known, progress))


async def restore(
    source: Source,
    database_url: str,
    *,
    validator_ss58: str | None = None,
    progress: ProgressReport | None = None,
) -> RestoreReport:
    """Makes a ledger anew from an export, by path, or from a database, by URL: same positions, same hashes.

    The source is verified first, and all is done in one transaction or nothing. The database has no log of the
    validator, or the beginning of this one, which is then added to; one that has all of it is left as it is.
    `validator_ss58` says which ledger of several. Raises `LedgerExists`, `DamagedExport`, `CorruptLedger`,
    `InvalidInput`, `LedgerNotFound`, `NewerLedger`, `StorageUnavailable`.
    """
    check_target(database_url)
    path, validator_ss58 = _checked_source(source), _checked_validator(validator_ss58)
    return await current_runtime().run(_restore(path, database_url, validator_ss58, progress))


async def verify_store(
    store: Store, validator_ss58: str, heads: Iterable[Head], progress: ProgressReport | None
) -> VerifyReport:
    """Verifies one ledger where it is."""
    known = checked_heads(heads)
    async with store.reader() as reader:
        return await verify_log(reader, await _only(reader, validator_ss58), known, progress)


async def export_store(
    store: Store, validator_ss58: str, target: Source | IO[bytes], progress: ProgressReport | None
) -> ExportReport:
    """Writes one ledger to a file that is not there yet, or to a stream of bytes."""
    _check_written_to(target)
    async with store.reader() as reader:
        stored = await _only(reader, validator_ss58)
        if not isinstance(target, (str, os.PathLike)):
            return await export_log(reader, stored, target, progress)
        with atomic_new_file(Path(target)) as stream:
            return await export_log(reader, stored, stream, progress)


def _check_written_to(target: object) -> None:
    """Raises `InvalidInput` for what an export cannot go to."""
    if isinstance(target, (str, os.PathLike)):
        is_one = bool(os.fspath(target))
    else:
        is_one = hasattr(target, "write") and not isinstance(target, TextIOBase)
    if not is_one:
        raise InvalidInput("target", target, "a path, or a stream of bytes to write to")


def check_target(database_url: str) -> None:
    """Raises `InvalidInput` for a database that nothing can be restored into."""
    if database_url == MEMORY:
        raise InvalidInput("database_url", database_url, "a database that outlives this call")
    store_from_url(database_url, NOBODY, read_only=False)


def check_database(database_url: str) -> None:
    """Raises `InvalidInput` for what is no database's URL."""
    store_from_url(database_url, NOBODY, read_only=True)


def checked_heads(heads: Iterable[Head]) -> list[Head]:
    """Heads that a log can have had."""
    if not isinstance(heads, Iterable):
        raise InvalidInput("heads", heads, "an iterable of Head")
    known = list(heads)
    for head in known:
        is_head: bool = isinstance(head, Head)
        if not is_head or type(head.hash) is not bytes or len(head.hash) != HASH_BYTES:
            raise InvalidInput("heads", head, f"an iterable of Head, each with a hash of {HASH_BYTES} bytes")
        integer(head.position, "heads", 0)
    return known


async def _verify(
    source: str, validator_ss58: str | None, heads: Collection[Head], progress: ProgressReport | None
) -> list[VerifyReport]:
    async with _opened(source) as reader:
        found = await _ledgers(reader, validator_ss58)
        if heads and len(found) > 1:
            raise InvalidInput("validator_ss58", validator_ss58, ONE_LEDGER + _names(found))
        return [await verify_log(reader, stored, heads, progress) for stored in found]


async def _restore(
    source: str, database_url: str, validator_ss58: str | None, progress: ProgressReport | None
) -> RestoreReport:
    async with _opened(source) as reader:
        stored = await _only(reader, validator_ss58)
        verified = await verify_log(reader, stored, (), progress)
        raise_first_finding(verified, is_export="://" not in source)
        owner = name(verified.validator_ss58, "validator_ss58")
        store = store_from_url(database_url, owner, read_only=False)
        async with _paused_at_forks(store):
            try:
                await store.open(schema)
                return await restore_log(reader, stored, verified, store, progress)
            finally:
                await store.close()


@asynccontextmanager
async def _opened(source: str) -> AsyncIterator[LogReader]:
    """All that a database at a URL, or an export in a file, holds."""
    if "://" not in source:
        yield ExportReader(Path(source))
        return
    async with AsyncExitStack() as stack:
        with renamed_fields({"database_url": "source"}):
            store = store_from_url(source, NOBODY, read_only=True)
            await stack.enter_async_context(_paused_at_forks(store))
            reader = await stack.enter_async_context(store.reader())
        yield reader


@asynccontextmanager
async def _paused_at_forks(store: Store) -> AsyncIterator[None]:
    """While the body uses a store, a fork of the process waits for it, as it does for other writing and reading."""
    runtime = current_runtime()
    runtime.add_fork_pause(store.paused_for_fork)
    try:
        yield
    finally:
        runtime.remove_fork_pause(store.paused_for_fork)


async def _only(reader: LogReader, validator_ss58: str | None) -> StoredLedger:
    found = await _ledgers(reader, validator_ss58)
    if len(found) > 1:
        raise InvalidInput("validator_ss58", validator_ss58, ONE_LEDGER + _names(found))
    return found[0]


async def _ledgers(reader: LogReader, validator_ss58: str | None) -> list[StoredLedger]:
    """The ledgers that may be meant: where a head row is damaged, that of a validator may be any that has no name."""
    found = await reader.ledgers()
    if validator_ss58 is not None:
        named = [stored for stored in found if stored.validator_ss58 == validator_ss58]
        found = named or [stored for stored in found if not isinstance(stored.validator_ss58, str)]
    if not found:
        raise LedgerNotFound(validator_ss58 or "any validator")
    return found


def _names(found: Iterable[StoredLedger]) -> str:
    return ", ".join(sorted(str(stored.validator_ss58) for stored in found))


def _checked_source(source: Source) -> str:
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidInput("source", source, "a database's URL, or an export's path")
    return os.fspath(source)


def _checked_validator(validator_ss58: str | None) -> str | None:
    return None if validator_ss58 is None else name(validator_ss58, "validator_ss58")
