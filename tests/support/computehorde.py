"""Tables of ComputeHorde's validator, filled as its published code fills them: floats, syncs, drops, bookings.

Written from its models and from the rules of its allowance module, without any code of this project.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg

START = datetime(2024, 1, 1, tzinfo=UTC)
OWN = "5Validator"
CLASSES = ("spin_up-4min.gpu-24gb", "always_on.gpu-24gb", "always_on.llm.a6000")
CAP = 4
"""The configured maximum of the last class."""
WINDOW = 722

TABLES = """
    CREATE TABLE validator_block (
        block_number bigint PRIMARY KEY, creation_timestamp timestamptz NOT NULL, end_timestamp timestamptz);
    CREATE TABLE validator_neuron (
        id bigserial PRIMARY KEY, hotkey_ss58address text NOT NULL, coldkey_ss58address text NOT NULL,
        block integer NOT NULL);
    CREATE TABLE validator_mineraddress (
        id bigserial PRIMARY KEY, hotkey_ss58address text UNIQUE NOT NULL, address text NOT NULL,
        ip_version integer NOT NULL, port integer NOT NULL);
    CREATE TABLE validator_allowanceminermanifest (
        id bigserial PRIMARY KEY, miner_ss58address text NOT NULL, block_number bigint NOT NULL,
        success boolean NOT NULL, executor_class varchar(255) NOT NULL, is_drop boolean NOT NULL,
        executor_count integer NOT NULL, UNIQUE (miner_ss58address, block_number, executor_class));
    CREATE TABLE validator_allowancebooking (
        id bigserial PRIMARY KEY, creation_timestamp timestamptz NOT NULL, is_reserved boolean NOT NULL,
        is_spent boolean NOT NULL, reservation_expiry_time timestamptz);
    CREATE TABLE validator_blockallowance (
        id bigserial PRIMARY KEY, allowance double precision NOT NULL, miner_ss58 text NOT NULL,
        validator_ss58 text NOT NULL, executor_class varchar(255) NOT NULL, invalidated_at_block integer,
        allowance_booking_id bigint REFERENCES validator_allowancebooking,
        block_id bigint NOT NULL REFERENCES validator_block,
        UNIQUE (block_id, miner_ss58, validator_ss58, executor_class));
    CREATE TABLE validator_organicjob (
        id bigserial PRIMARY KEY, job_uuid uuid NOT NULL, allowance_reservation_id bigint)"""


@dataclass
class Allowance:
    """A row of the block allowances."""

    block: int
    validator: str
    miner: str
    executor_class: str
    seconds: float
    invalidated_at: int | None = None
    booking: int | None = None


@dataclass
class Booking:
    """A row of the bookings, and the allowances that it holds; released ones are deleted."""

    rows: list[Allowance]
    created_at: datetime
    expires_at: datetime | None
    is_spent: bool = False


@dataclass
class Validator:
    """The validator's tables in memory, and the rules by which its tasks change them."""

    draw: random.Random
    miners: int
    validators: int
    multiplier: float = 1.0
    blocks: dict[int, datetime] = field(default_factory=dict)
    neurons: dict[int, list[str]] = field(default_factory=dict)
    manifests: list[tuple[int, str, str, int, bool]] = field(default_factory=list)
    newest_counts: dict[tuple[str, str], int] = field(default_factory=dict)
    allowances: dict[tuple[str, str], list[Allowance]] = field(default_factory=dict)
    bookings: dict[int, Booking] = field(default_factory=dict)
    jobs: dict[int, UUID] = field(default_factory=dict)
    released: int = 0

    def __post_init__(self) -> None:
        self.names = [f"5Miner{number:03}" for number in range(self.miners)]
        self.stakes = {OWN: 40_000.0} | {
            f"5Other{n}": self.draw.uniform(1000, 90_000) for n in range(1, self.validators)
        }
        self.offers = {name: self._manifest() for name in self.names}
        self._ids = count(1)

    def block(self, number: int, created_at: datetime, away: Iterable[str] = ()) -> None:
        """Record a block, and compute the allowance of the block before it."""
        self.blocks[number] = created_at
        absent = set(away)
        self.neurons[number] = [name for name in (*self.stakes, *self.names) if name not in absent]
        if number - 1 in self.blocks:
            self._finalize(number - 1)

    def sync(self, block: int, offers: dict[str, dict[str, int]]) -> None:
        """Scrape the manifests: a miner that does not answer is not in `offers`, and counts as 0."""
        neurons = self.neurons[max(number for number in self.neurons if number <= block)]
        new = {(name, kind): offers[name].get(kind, 0) for name in neurons if name in offers for kind in CLASSES}
        old = {(name, kind): self.newest_counts.get((name, kind), 0) for name in neurons for kind in CLASSES}
        for name, kind in sorted(new.keys() | old.keys()):
            is_drop = new.get((name, kind), 0) < old.get((name, kind), 0)
            capped = min(new.get((name, kind), 0), CAP if kind == CLASSES[2] else 10**6)
            self.manifests.append((block, name, kind, capped, is_drop))
            self.newest_counts[name, kind] = capped
            if is_drop:
                for row in self.allowances.get((name, kind), ()):
                    # The last drop overwrites the first, as an UPDATE without another condition does.
                    row.invalidated_at = block

    def book(self, now: datetime, start: int, miner: str, kind: str, seconds: float) -> int | None:
        """Reserve the earliest free blocks of our account; None if they are too few."""
        free = [
            row
            for row in self.allowances.get((miner, kind), ())
            if row.validator == OWN
            and row.block >= start - WINDOW
            and row.invalidated_at is None
            and row.booking is None
        ]
        if sum(row.seconds for row in free) < seconds:
            return None
        number, reserved, held = next(self._ids), 0.0, list[Allowance]()
        for row in free:
            if reserved >= seconds:
                break
            row.booking = number
            held.append(row)
            reserved += row.seconds
        self.bookings[number] = Booking(held, now, now + timedelta(seconds=seconds + 100))
        self.jobs[number] = UUID(int=self.draw.getrandbits(128))
        return number

    def spend(self, number: int) -> None:
        """Make a booking permanent."""
        self.bookings[number].is_spent = True
        self.bookings[number].expires_at = None

    def release(self, number: int) -> None:
        """Delete a booking."""
        for row in self.bookings.pop(number).rows:
            row.booking = None
        del self.jobs[number]
        self.released += 1

    def _manifest(self) -> dict[str, int]:
        kinds = self.draw.sample(CLASSES, self.draw.choice([1, 1, 2]))
        return {kind: self.draw.randrange(1, 7) for kind in kinds}

    def _finalize(self, number: int) -> None:
        duration = (self.blocks[number + 1] - self.blocks[number]).total_seconds()
        duration = 12.0 if duration > 12.5 else duration
        total = sum(self.stakes.values())
        for name in self.neurons[number]:
            for kind in CLASSES:
                executors = self.newest_counts.get((name, kind), 0)
                if executors <= 0:
                    continue
                rows = self.allowances.setdefault((name, kind), [])
                for validator, stake in self.stakes.items():
                    seconds = executors * (stake / total) * duration * self.multiplier
                    rows.append(Allowance(number, validator, name, kind, seconds))


def lived(
    *,
    miners: int,
    blocks: int,
    bookings: int,
    seed: int = 1,
    validators: int = 3,
    multiplier: float = 1.0,
    first: int = 5000,
    late_syncs: bool = False,
) -> Validator:
    """Return a validator after some blocks and bookings, half of which were released.

    Executors come and go, miners leave and return, blocks last 11 to 14 s. With `late_syncs`, some syncs take effect
    only after the next block, because the miners answered slowly.
    """
    draw = random.Random(seed)
    world = Validator(draw, miners, validators, multiplier)
    now, away, due = START, set[str](), None
    kept: list[int] = []
    made = 0
    for number in range(first, first + blocks):
        now += timedelta(seconds=draw.choice([12.0, 12.0, 12.0, 11.0, 12.5, 13.7]), microseconds=draw.randrange(1000))
        if draw.random() < 0.02:
            away = set(draw.sample(world.names, k=max(1, miners // 40))) if not away else set()
        world.block(number, now, away)
        if due is not None:
            world.sync(number - 1, due)
            due = None
        if (number - first) % 97 == 0:
            for name in draw.sample(world.names, k=max(1, miners // 10)):
                world.offers[name] = world._manifest()
            offers = {name: offer for name, offer in world.offers.items() if draw.random() < 0.98}
            if late_syncs and number > first and draw.random() < 0.5:
                due = offers
            else:
                world.sync(number, offers)
        while number > first + 20 and made < bookings * (number - first) // (blocks - 1):
            made += _book_one(world, kept, now, number)
    for booked in kept:
        if draw.random() < 0.8:
            # Running now, in the time of whoever moves.
            world.bookings[booked].expires_at = datetime(2124, 1, 1, tzinfo=UTC)
    return world


def _book_one(world: Validator, kept: list[int], now: datetime, number: int) -> bool:
    """Book for a job if the miner has enough, then release one of the running jobs or spend the oldest."""
    draw = world.draw
    miner = draw.choice(world.names)
    booked = world.book(now, number, miner, draw.choice(sorted(world.offers[miner])), draw.uniform(5, 400))
    if booked is None:
        return False
    kept.append(booked)
    if draw.random() < 0.5:
        world.release(kept.pop(draw.randrange(len(kept))))
    if len(kept) > 20:
        world.spend(kept.pop(0))
    return True


async def fill(database_url: str, world: Validator) -> None:
    """Create the tables and write a validator into them."""
    connection: Any = await asyncpg.connect(database_url)
    try:
        await connection.execute(TABLES)
        ends = {number: world.blocks.get(number + 1) for number in world.blocks}
        blocks = [(number, created_at, ends[number]) for number, created_at in world.blocks.items()]
        await connection.copy_records_to_table("validator_block", records=blocks)
        neurons = [(name, "5Cold", block) for block, names in world.neurons.items() for name in names]
        await _copy(connection, "neuron", ["hotkey_ss58address", "coldkey_ss58address", "block"], neurons)
        addresses = [(name, f"192.0.2.{at % 250}", 4, 8000 + at) for at, name in enumerate(world.names[:-1])]
        await _copy(connection, "mineraddress", ["hotkey_ss58address", "address", "ip_version", "port"], addresses)
        columns = ["block_number", "miner_ss58address", "executor_class", "executor_count", "is_drop", "success"]
        await _copy(connection, "allowanceminermanifest", columns, [(*row, True) for row in world.manifests])
        columns = ["id", "creation_timestamp", "is_reserved", "is_spent", "reservation_expiry_time"]
        await _copy(
            connection,
            "allowancebooking",
            columns,
            [
                (at, each.created_at, not each.is_spent, each.is_spent, each.expires_at)
                for at, each in world.bookings.items()
            ],
        )
        columns = ["block_id", "validator_ss58", "miner_ss58", "executor_class", "allowance", "invalidated_at_block"]
        rows = (
            (row.block, row.validator, row.miner, row.executor_class, row.seconds, row.invalidated_at, row.booking)
            for rows in world.allowances.values()
            for row in rows
        )
        await _copy(connection, "blockallowance", [*columns, "allowance_booking_id"], rows)
        jobs = [(uuid, booking) for booking, uuid in world.jobs.items()]
        await _copy(connection, "organicjob", ["job_uuid", "allowance_reservation_id"], jobs)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def _copy(connection: Any, table: str, columns: list[str], records: Any) -> None:
    await connection.copy_records_to_table(f"validator_{table}", columns=columns, records=records)
