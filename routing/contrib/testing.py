"""For tests of programs that route jobs: a clock to move, and a small network. The pytest plugin is made of these.

clock, network = MovableClock(), SmallNetwork()
with Allowance.open("sqlite://", validator_ss58=network.validator_ss58, clock_ns=clock) as ledger:
    ledger.record_facts(network.facts(clock.now))
    route = Routing(ledger).pick_miner_for_job_request(network.job())
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from ledger import BlockFact, ManifestsFact, Miner

BLOCK_SECONDS = 12
# Addresses for documentation (RFC 5737).
_MINERS = tuple(Miner(f"192.0.2.{number}", 4, 8000, f"5Miner{number}") for number in (1, 2, 3))


class MovableClock:
    """A clock that stands still until a test moves it; pass it as `clock_ns`."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.now: datetime = now

    def __call__(self) -> int:
        """Return nanoseconds since the epoch."""
        return (self.now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000

    def advance(self, seconds: float) -> None:
        """Move the clock forward, or back if negative: `clock.advance(3600)` makes every reservation overdue."""
        self.now += timedelta(seconds=seconds)


@dataclass(frozen=True)
class Job:
    """A job request; each has another uuid. Limits are seconds."""

    executor_class: str
    execution_time_limit: float
    uuid: str = field(default_factory=lambda: str(uuid4()))
    download_time_limit: float = 0.0
    upload_time_limit: float = 0.0
    on_trusted_miner: bool = False


@dataclass(frozen=True)
class SmallNetwork:
    """Miners that all offer as many `executors` of one class, and a validator that has half of the stake.

    So each block but the newest grants the validator 6 s for each executor: 12 s on each miner. A miner is busy
    with as many jobs as it has executors.
    """

    validator_ss58: str = "5Validator"
    executor_class: str = "always_on.gpu-24gb"
    miners: tuple[Miner, ...] = _MINERS
    executors: int = 2
    blocks: int = 100

    def facts(self, newest_at: datetime) -> list[BlockFact | ManifestsFact]:
        """Return what `record_facts` records: a sync of manifests, and blocks every 12 s up to `newest_at`."""
        offer = {self.executor_class: self.executors}
        return [ManifestsFact(1, {miner.hotkey_ss58: offer for miner in self.miners}), *self._blocks(newest_at)]

    def job(self, seconds: float = 30.0) -> Job:
        """Return a new request for a job that needs this amount, in executor-seconds."""
        return Job(self.executor_class, seconds)

    def _blocks(self, newest_at: datetime) -> Iterator[BlockFact]:
        stakes = {self.validator_ss58: 1000.0, "5OtherValidator": 1000.0}
        for number in range(1, self.blocks + 1):
            age = timedelta(seconds=BLOCK_SECONDS * (self.blocks - number))
            yield BlockFact(number, newest_at - age, self.miners, stakes)
