"""The tables of ComputeHorde's validator, read-only and as of one moment.

Source of the names: the models of its Django application `validator` (`models/allowance/internal.py`, and `OrganicJob`
for the jobs' uuids). Stakes are not stored there; the allowances of all validators are, in proportion to them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from ledger.errors import InvalidInput, StorageUnavailable
from routing import Miner

Account = tuple[str, str]
"""Miner and executor class."""

MOST_BLOCKS = 100
"""How many blocks are read at once: each has an allowance per validator, miner and class."""

_TABLES = """
    SELECT table_name, array_agg(column_name::text) AS columns FROM information_schema.columns
    WHERE table_schema = ANY (current_schemas(false)) AND table_name LIKE 'validator\\_%' GROUP BY table_name"""
_COLUMNS = {
    "validator_block": {"block_number", "creation_timestamp", "end_timestamp"},
    "validator_neuron": {"hotkey_ss58address", "block"},
    "validator_mineraddress": {"hotkey_ss58address", "address", "ip_version", "port"},
    "validator_allowanceminermanifest": {"miner_ss58address", "block_number", "executor_class", "executor_count"},
    "validator_blockallowance": {
        "block_id",
        "allowance",
        "miner_ss58",
        "validator_ss58",
        "executor_class",
        "invalidated_at_block",
        "allowance_booking_id",
    },
    "validator_allowancebooking": {"id", "creation_timestamp", "is_reserved", "is_spent", "reservation_expiry_time"},
}
_BLOCKS = """
    SELECT block_number, creation_timestamp FROM validator_block
    WHERE block_number BETWEEN $1 AND $2 ORDER BY block_number"""
_NEURONS = """
    SELECT block, array_agg(DISTINCT hotkey_ss58address) FROM validator_neuron
    WHERE block BETWEEN $1 AND $2 GROUP BY block"""
# All validators have their largest allowance of a block on the same account, so these are in proportion to the stakes.
_SHARES = """
    SELECT block_id, validator_ss58, max(allowance) FROM validator_blockallowance
    WHERE block_id BETWEEN $1 AND $2 GROUP BY 1, 2 ORDER BY 1, 2"""
_SYNCS = """
    SELECT block_number, miner_ss58address, executor_class, executor_count FROM validator_allowanceminermanifest
    WHERE block_number BETWEEN $1 AND $2 ORDER BY 1, 2, 3"""
_COUNTS = """
    SELECT DISTINCT ON (miner_ss58address, executor_class) miner_ss58address, executor_class, executor_count
    FROM validator_allowanceminermanifest WHERE block_number < $1
    ORDER BY miner_ss58address, executor_class, block_number DESC"""
_OFFERING = """
    SELECT DISTINCT miner_ss58address, executor_class FROM validator_allowanceminermanifest WHERE executor_count > 0"""
_OWNERS = """
    SELECT DISTINCT validator_ss58 FROM validator_blockallowance WHERE allowance_booking_id IS NOT NULL ORDER BY 1"""
_BOOKINGS = """
    SELECT booking.id, booking.is_spent, booking.creation_timestamp, booking.reservation_expiry_time,
           paid.miner_ss58, paid.executor_class, array_agg(paid.block_id ORDER BY paid.block_id) AS blocks,
           {job_uuid} AS job_uuid
    FROM validator_allowancebooking booking
    JOIN validator_blockallowance paid ON paid.allowance_booking_id = booking.id
    WHERE paid.validator_ss58 = $1 AND paid.block_id >= $2 AND (booking.is_spent OR booking.is_reserved)
    GROUP BY booking.id, paid.miner_ss58, paid.executor_class ORDER BY booking.id, paid.miner_ss58"""
_JOB_UUID = "(SELECT min(job_uuid::text) FROM validator_organicjob WHERE allowance_reservation_id = booking.id)"
_FREE = "(booking.id IS NULL OR NOT (booking.is_spent OR booking.is_reserved))"
_AVAILABLE = f"""
    SELECT miner_ss58, executor_class,
           coalesce(sum(allowance) FILTER (WHERE invalidated_at_block IS NULL AND {_FREE}), 0) AS available
    FROM validator_blockallowance paid LEFT JOIN validator_allowancebooking booking
      ON booking.id = paid.allowance_booking_id
    WHERE validator_ss58 = $1 AND block_id >= $2 GROUP BY 1, 2"""
_ACCOUNT = f"""
    SELECT block_id, allowance, invalidated_at_block IS NOT NULL AS invalidated, NOT {_FREE} AS held,
           coalesce(NOT booking.is_spent AND booking.reservation_expiry_time <= $5, false) AS overdue
    FROM validator_blockallowance paid LEFT JOIN validator_allowancebooking booking
      ON booking.id = paid.allowance_booking_id
    WHERE validator_ss58 = $1 AND block_id >= $2 AND miner_ss58 = $3 AND executor_class = $4"""


class OldBlock(NamedTuple):
    """A block: when it was created, the registered hotkeys, and what each validator was granted, in proportion."""

    number: int
    created_at: datetime
    neurons: list[str]
    shares: dict[str, float]


class OldBooking(NamedTuple):
    """A booking that holds blocks of one account; `expires_at` is None once it is spent."""

    booking_id: int
    is_spent: bool
    created_at: datetime
    expires_at: datetime | None
    account: Account
    blocks: list[int]
    job_uuid: str | None


class OldAllowance(NamedTuple):
    """The grant of a block to an account, in executor-seconds; an overdue booking still holds its blocks."""

    seconds: float
    is_invalidated: bool
    is_held: bool
    is_overdue: bool


class OldTables:
    """The tables within one read-only transaction, so that the import and the comparison see the same moment."""

    def __init__(self, connection: asyncpg.Connection, *, has_jobs: bool) -> None:
        self._connection = connection
        self._has_jobs = has_jobs

    async def span(self) -> tuple[int, int] | None:
        """Return the lowest and the highest block; None if there is none."""
        first, last = await self._connection.fetchrow(
            "SELECT min(block_number), max(block_number) FROM validator_block"
        )
        return None if first is None else (first, last)

    async def addresses(self) -> dict[str, Miner]:
        """Return the miners with a network address, as of the newest sync."""
        rows = await self._connection.fetch(
            "SELECT hotkey_ss58address, address, ip_version, port FROM validator_mineraddress"
        )
        return {hotkey: Miner(address, version, port, hotkey) for hotkey, address, version, port in rows}

    async def offering(self) -> set[Account]:
        """Return the accounts for which any sync has an executor."""
        return {(miner, a_class) for miner, a_class in await self._connection.fetch(_OFFERING)}

    async def counts_before(self, block: int) -> dict[Account, int]:
        """Return the newest executor counts below a block."""
        return {(miner, a_class): count for miner, a_class, count in await self._connection.fetch(_COUNTS, block)}

    async def blocks(self, first: int, last: int) -> AsyncIterator[OldBlock]:
        """Yield the blocks of a range, ascending."""
        for start in range(first, last + 1, MOST_BLOCKS):
            page = start, min(start + MOST_BLOCKS - 1, last)
            neurons = dict(map(tuple, await self._connection.fetch(_NEURONS, *page)))
            shares: dict[int, dict[str, float]] = {}
            for block, validator_ss58, allowance in await self._connection.fetch(_SHARES, *page):
                shares.setdefault(block, {})[validator_ss58] = allowance
            for number, created_at in await self._connection.fetch(_BLOCKS, *page):
                yield OldBlock(number, created_at, neurons.get(number, []), shares.get(number, {}))

    async def syncs(self, first: int, last: int) -> dict[int, dict[Account, int]]:
        """Return the executor counts of the syncs of a range, by block and account."""
        syncs: dict[int, dict[Account, int]] = {}
        for block, miner, a_class, count in await self._connection.fetch(_SYNCS, first, last):
            syncs.setdefault(block, {})[miner, a_class] = count
        return syncs

    async def owners(self) -> list[str]:
        """Return the validators whose allowance is booked: the one to whom the tables belong, if there is a booking."""
        return [validator_ss58 for (validator_ss58,) in await self._connection.fetch(_OWNERS)]

    async def bookings(self, validator_ss58: str, first_block: int) -> list[OldBooking]:
        """Return what is reserved or spent of the blocks from `first_block` on, in the order in which it was booked."""
        query = _BOOKINGS.format(job_uuid=_JOB_UUID if self._has_jobs else "NULL::text")
        return [
            OldBooking(booking_id, is_spent, created_at, expires_at, (miner, a_class), blocks, job_uuid)
            for booking_id, is_spent, created_at, expires_at, miner, a_class, blocks, job_uuid in (
                await self._connection.fetch(query, validator_ss58, first_block)
            )
        ]

    async def available(self, validator_ss58: str, first_block: int) -> dict[Account, float]:
        """Return what each account has available from a block on, in executor-seconds, as its rules count it."""
        rows = await self._connection.fetch(_AVAILABLE, validator_ss58, first_block)
        return {(miner, a_class): available for miner, a_class, available in rows}

    async def account(
        self, validator_ss58: str, account: Account, first_block: int, now: datetime
    ) -> Mapping[int, OldAllowance]:
        """Return the allowances of an account by block, from a block on."""
        rows = await self._connection.fetch(_ACCOUNT, validator_ss58, first_block, *account, now)
        return {block: OldAllowance(*rest) for block, *rest in rows}


@asynccontextmanager
async def old_tables(database_url: str) -> AsyncIterator[OldTables]:
    """Open the tables for reading. Raises `InvalidInput` if they are not those, and `StorageUnavailable`."""
    try:
        connection: Any = await asyncpg.connect(database_url)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as cause:
        raise StorageUnavailable(f"ComputeHorde's database cannot be opened: {cause}") from cause
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = {name: set(columns) for name, columns in await connection.fetch(_TABLES)}
            _check_columns(found)
            yield OldTables(connection, has_jobs="allowance_reservation_id" in found.get("validator_organicjob", ()))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as cause:
        raise StorageUnavailable(f"ComputeHorde's database cannot be read: {cause}") from cause
    finally:
        await connection.close()


def _check_columns(found: Mapping[str, set[str]]) -> None:
    for table, columns in _COLUMNS.items():
        absent = sorted(columns - found.get(table, set()))
        if absent:
            problem = f"without {', '.join(absent)}" if table in found else "absent"
            raise InvalidInput("source", f"{table} {problem}", "a database with the tables of ComputeHorde's validator")
