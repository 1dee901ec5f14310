"""One simulated process: a clock, two event loops, a store, and the real service on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ledger import Runtime, Settings, Store, encode_state
from projections import Snapshot
from routing import Allowance, Routing
from routing.service.seams import Seams
from tests.simulation.diary import Call
from tests.simulation.locking_store import LockingStore
from tests.simulation.memory_store import BROKEN_SECONDS, SimulatedStore
from tests.simulation.operations import START, VALIDATOR
from tests.simulation.optimistic_store import OptimisticStore

if TYPE_CHECKING:
    from tests.simulation.world import World

START_NS = int(START.timestamp()) * 10**9
UPKEEP_EVERY_ROWS = (16, 24)


class Process:
    """One simulated process: its loops, store, clock and ledger, from its start to its end."""

    def __init__(self, world: World, number: int, settings: Settings | None) -> None:
        self.world = world
        self.number = number
        self.settings = settings
        self.clock_offset_ns = 0
        self.is_dead = False
        self.callers = 0
        self.open_calls: list[Call] = []
        self.loop = world.scheduler.loop()
        self.runtime_loop = world.scheduler.loop()
        self.store: SimulatedStore | None = None
        runtime = Runtime(self.runtime_loop)
        seams = Seams(self._new_store, lambda: runtime, self.monotonic_ns, UPKEEP_EVERY_ROWS)
        self.ledger = Allowance("simulated://", VALIDATOR, settings, self.clock_ns, read_only=False, seams=seams)
        self.routing = Routing(self.ledger)

    def clock_ns(self) -> int:
        """Read this process's wall clock, which may be broken."""
        if self.store is not None and self.world.faults.happens("clock broken", 0.02):
            return float("nan")  # type: ignore[return-value]
        return self.right_clock_ns()

    def right_clock_ns(self) -> int:
        """Return what the wall clock reads unless it is broken."""
        return START_NS + 10**11 + int(self.world.scheduler.now * 1e9) + self.clock_offset_ns

    def monotonic_ns(self) -> int:
        """Read the clock that never jumps."""
        return int(self.world.scheduler.now * 1e9)

    def kill(self) -> None:
        """End the process where it stands, as SIGKILL does."""
        self.is_dead = True
        self.loop.kill()
        self.runtime_loop.kill()
        self.world.end_calls_of(self)
        if self.store is not None:
            session, server = self.store.session, self.world.server
            session.broken = True
            # The operating system frees a file's lock at once; a server may need a while to notice.
            delay = self.world.chance.uniform(0, BROKEN_SECONDS) if self.store.optimistic else 0.0
            server.loop.call_later(delay, server.release_lock, session)

    async def state(self) -> Snapshot:
        """Return the state on which this process decides."""
        handle = await self.ledger._lifecycle.handle()
        return await handle.writer.query(lambda state, _: Snapshot(state.position, state.hash, encode_state(state)))

    def _new_store(self, database_url: str, validator_ss58: str, *, read_only: bool) -> Store:
        world = self.world
        kind = OptimisticStore if world.optimistic else LockingStore
        self.store = kind(world.server, self.runtime_loop, world.faults, validator_ss58, self.kill)
        store: Any = self.store
        return cast(Store, store)
