"""Makes a ledger of any number of events.

Jobs are routed, or, because routing a long log takes too long, reserved on a random miner.

Each block has a hundred events: the block itself, new reservations, and settlements of earlier ones. In the last
hundredth of the log it has only ten, so that a short ledger and a long one have the same kind of end. The state is
sealed as often as a service does it, but the last snapshot is nearly as old as a snapshot can be, as after a crash at a
bad moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Literal, NamedTuple
from uuid import UUID

from ledger import (
    Account,
    ExpireDue,
    FactValidator,
    RecordFacts,
    RecordSettings,
    Settle,
    UnitOfWork,
)
from routing import AllMinersBusy, BlockFact, NotEnoughAllowanceException
from routing.pick import Pick

from .bulk import Bulk
from .chain import HOTKEY, SECOND_NS, after, endless, newest_block
from .sizes import Sizes

SEAL_EVERY_EVENTS = 10_000
SNAPSHOT_AGE_EVENTS = 9000
QUIET_SHARE = 100
"""The last hundredth of the log is quiet, and at least everything after the snapshot, so that all logs end alike."""
BLOCKS_BEFORE_JOBS = 20
"""Jobs need some allowance first."""
EXPIRED_EVERY_BLOCKS = 25
RELEASED_SHARE, ACTIVE_SHARE = 0.10, 0.04


class _Pace(NamedTuple):
    """The number and the length of the jobs after a block of 250 miners; together they need a third of its grants."""

    jobs: int
    shortest_seconds: int
    longest_seconds: int


BUSY, QUIET = _Pace(50, 5, 30), _Pace(5, 24, 270)


async def grow(
    url: str, sizes: Sizes, events: int, progress: Callable[[int], None] = lambda position: None, *, routed: bool
) -> tuple[int, BlockFact]:
    """Fill a new ledger with this many events, or a few more; return the time of the last one, and the newest block.

    The last block is always complete, and so may exceed the number.
    """
    bulk = Bulk(url)
    quiet = max(events // QUIET_SHARE, SNAPSHOT_AGE_EVENTS)
    traffic = _Traffic(sizes, quiet_from=events - quiet, routed=routed)
    while bulk.state.position < events:
        until = _next_seal(bulk.state.position, events)
        unit_of_work = bulk.decide()
        while bulk.state.position < min(until, events):
            traffic.add_block(unit_of_work)
        await bulk.append(unit_of_work)
        if until < events:
            await bulk.seal()
        progress(bulk.state.position)
    assert traffic.newest is not None
    return bulk.state.recorded_at_ns, traffic.newest


def _next_seal(position: int, events: int) -> int:
    """Return the next position to seal: the last one is `SNAPSHOT_AGE_EVENTS` before the end."""
    last = events - SNAPSHOT_AGE_EVENTS
    if position >= last:
        return events
    return position + (last - position - 1) % SEAL_EVERY_EVENTS + 1


class _Traffic:
    """Blocks, and the jobs between them."""

    def __init__(self, sizes: Sizes, quiet_from: int, *, routed: bool) -> None:
        self._routed = routed
        self._scale = sizes.miners / Sizes().miners
        self._quiet_from = quiet_from
        self._random = Random("traffic")
        self._validator = FactValidator()
        self._blocks = endless(sizes)
        self._blocks_added = 0
        self._running: deque[int] = deque()
        self._accounts: list[Account] = []
        self.newest: BlockFact | None = None

    def add_block(self, unit_of_work: UnitOfWork) -> None:
        """Record the next block with its syncs, reserve for new jobs, and settle old ones."""
        if unit_of_work.state.position == 0:
            RecordSettings(HOTKEY, None).decide(unit_of_work)
        facts = next(self._blocks)
        contents, _ = self._validator.contents(facts)
        RecordFacts(contents, confirm=False).decide(unit_of_work)
        unit_of_work.now_ns = after(facts)
        self.newest = newest_block(facts)
        self._blocks_added += 1
        if self._blocks_added > BLOCKS_BEFORE_JOBS:
            pace = BUSY if unit_of_work.state.position < self._quiet_from else QUIET
            self._accounts = list(unit_of_work.state.chain.accounts.values())
            for _ in range(max(1, round(pace.jobs * self._scale))):
                claim = self._route if self._routed else self._reserve
                claim(unit_of_work, self._job(), self._amount_ns(pace))
            while len(self._running) > 3 * pace.jobs * self._scale:
                self._settle(unit_of_work)
        if self._blocks_added % EXPIRED_EVERY_BLOCKS == 0:
            ExpireDue().decide(unit_of_work)

    def _job(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def _amount_ns(self, pace: _Pace) -> int:
        return self._random.randrange(pace.shortest_seconds * SECOND_NS, pace.longest_seconds * SECOND_NS)

    def _route(self, unit_of_work: UnitOfWork, job_uuid: str, amount_ns: int) -> None:
        """Pick as the router does."""
        executor_class = self._random.choice(self._accounts).executor_class
        try:
            route = Pick(job_uuid, executor_class, amount_ns).decide(unit_of_work)
        except (NotEnoughAllowanceException, AllMinersBusy):
            return
        self._run(route.allowance_reservation_id or 0)

    def _reserve(self, unit_of_work: UnitOfWork, job_uuid: str, amount_ns: int) -> None:
        """Reserve on a random miner."""
        state, account = unit_of_work.state, self._random.choice(self._accounts)
        newest = state.chain.blocks.newest
        claim = account.claim(state.chain.blocks, state.window_start(newest), amount_ns, unit_of_work.now_ns)
        if claim is not None:
            job = (job_uuid, 1)
            active = unit_of_work.reserve(account, claim, amount_ns=amount_ns, job_start_block=newest, job=job)
            self._run(active.reservation_id)

    def _run(self, reservation_id: int) -> None:
        """Remember the job for its settlement; some jobs stay active."""
        if self._random.random() >= ACTIVE_SHARE:
            self._running.append(reservation_id)

    def _settle(self, unit_of_work: UnitOfWork) -> None:
        how: Literal["spend", "release"] = "release" if self._random.random() < RELEASED_SHARE else "spend"
        reservation_id = self._running.popleft()
        if reservation_id in unit_of_work.state.active:
            Settle(reservation_id, how, None).decide(unit_of_work)
