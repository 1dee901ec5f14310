"""A small ledger for tests: three miners, one executor class, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

from routing import Allowance, Miner, Settings

START = datetime(2024, 1, 1, tzinfo=UTC)
GPU = "always_on.gpu-24gb"
VALIDATOR = "5Validator"


def miner(hotkey_ss58: str, port: int = 8000) -> Miner:
    """Return a miner at an address for documentation (RFC 5737)."""
    return Miner("192.0.2.7", 4, port, hotkey_ss58)


def hash_of(number: int, fork: str = "") -> str:
    """Return the hash of a block of a chain in which each block has another one."""
    return sha256(f"{number} {fork}".encode()).hexdigest()


def job(uuid: str, seconds: float = 6.0, executor_class: str = GPU, *, trusted: bool = False) -> Any:
    """Return a job request whose time limits add up to `seconds`."""
    return SimpleNamespace(
        uuid=uuid,
        executor_class=executor_class,
        download_time_limit=0,
        execution_time_limit=seconds,
        upload_time_limit=0,
        on_trusted_miner=trusted,
    )


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, at: datetime = START) -> None:
        self.now_ns = int(at.timestamp()) * 10**9

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 10**9)


@asynccontextmanager
async def small_ledger(
    *,
    url: str = "sqlite://",
    offers: Mapping[str, int] | None = None,
    blocks: int = 11,
    stakes: Mapping[str, float] | None = None,
    clock: Clock | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Allowance]:
    """Open a ledger with the blocks 1 to `blocks`.

    Each block lasts 12 s and half of the stake is ours, so it grants 6 s per executor. The last block grants nothing
    yet, because its end is not known.
    """
    offers = {"5Anna": 2, "5Bert": 2, "5Carl": 2} if offers is None else offers
    clock = clock or Clock(START + timedelta(seconds=12 * blocks))
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, settings=settings) as ledger:
        await ledger.record_manifests(1, {hotkey: {GPU: count} for hotkey, count in offers.items()})
        await record_blocks(ledger, 1, blocks, sorted(offers), stakes)
        yield ledger


async def record_blocks(
    ledger: Allowance, first: int, last: int, hotkeys: Sequence[str], stakes: Mapping[str, float] | None = None
) -> None:
    """Record blocks at which all these miners are registered."""
    for number in range(first, last + 1):
        await ledger.record_block(
            number,
            START + timedelta(seconds=12 * number),
            [miner(hotkey) for hotkey in hotkeys],
            stakes or {VALIDATOR: 1.0, "5Other": 1.0},
        )
