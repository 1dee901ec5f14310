"""A process that claims, settles and records at random, until the harness stops or kills it."""

from __future__ import annotations

import asyncio
import faulthandler
import random
import signal
import sys
import time

from routing import Allowance, AllowanceException

from . import faults, network
from .diary import Diary, Outcome, Request
from .operations import attempt
from .plan import Plan

PAUSES_S = (0.0, 0.0, 0.0, 0.002, 0.02)
CANCELLED_SHARE = 0.08
REPEATED_SHARE = 0.08
SETTLED_AGAIN_SHARE = 0.15
SHARED_JOBS_PER_SECOND = 4
MAX_ACTIVE = 40


class Worker:
    """One life of one worker. Its callers share a ledger, a diary and the active reservations."""

    def __init__(self, plan: Plan, name: str, ledger: Allowance, diary: Diary, stop: asyncio.Event) -> None:
        self.plan = plan
        self.name = name
        self.ledger = ledger
        self.diary = diary
        self.stop = stop
        self.rng = random.Random(f"{plan.seed} {name}")
        self.active: list[int] = []
        """Reservations that this worker made and, mostly, has not settled."""
        self.requests = 0
        self.newest = network.FIRST_BLOCKS

    async def work(self) -> None:
        """Run all callers at once, until stopped."""
        await self._call(Request("list"))
        await asyncio.gather(*(self._run_caller() for _ in range(self.plan.callers)))

    async def _run_caller(self) -> None:
        while not self.stop.is_set():
            request = self._next_request()
            await self._call(request)
            # A job or a key makes a retry safe, so the judge knows what the second call must return.
            if (request.key or request.operation == "pick") and self.rng.random() < REPEATED_SHARE:
                await self._call(request)
            await asyncio.sleep(self.rng.choice(PAUSES_S))

    async def _call(self, request: Request) -> None:
        n = self.diary.begin(request)
        try:
            outcome = await self._attempt(n, request)
        except asyncio.CancelledError:
            outcome = Outcome(n, cancelled=True)
        self.diary.conclude(outcome)
        self._learn(request, outcome)

    async def _attempt(self, n: int, request: Request) -> Outcome:
        """Wait for the outcome, or cancel the call after a moment. The call may still finish before that."""
        calling = asyncio.create_task(attempt(self.plan, self.ledger, n, request))
        if self.rng.random() < CANCELLED_SHARE:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0)
            await asyncio.sleep(self.rng.choice((0, 0, 0.001, 0.003)))
            calling.cancel()
        return await calling

    def _learn(self, request: Request, outcome: Outcome) -> None:
        result = outcome.result
        if result is None:
            return
        if request.operation in ("pick", "reserve") and len(self.active) < MAX_ACTIVE:
            self.active.append(result.reservation_id)
        if request.operation in ("block", "list"):
            self.newest = max(self.newest, request.number, result.position if request.operation == "list" else 0)

    def _next_request(self) -> Request:
        self.requests += 1
        operation = self.rng.choices(
            ("pick", "shared", "reserve", "settle", "expire", "block", "sync", "look", "list", "report"),
            (30, 8, 18, 34, 3, 10 * self.plan.facts, 4 * self.plan.facts, 5, 3, 8),
        )[0]
        request: Request = getattr(self, f"_{operation}")()
        return request

    def _name(self) -> str:
        return f"{self.name}-{self.requests}"

    def _maybe_name(self) -> str | None:
        """Return a key for every other call, because these calls also work without one."""
        return self._name() if self.requests % 2 else None

    def _pick(self) -> Request:
        return Request("pick", job=self._name(), amount=self.rng.choice(network.AMOUNTS_S))

    def _shared(self) -> Request:
        """Return a pick for a job that all workers pick for at about the same time."""
        job = f"shared-{int(time.time() * SHARED_JOBS_PER_SECOND)}"
        return Request("pick", job=job, amount=network.AMOUNTS_S[0], alone=False)

    def _report(self) -> Request:
        """Report an incident, exclude a miner or readmit it, or tell of a job elsewhere, as other workers may too."""
        operation = self.rng.choice(("exclude", "readmit", "incident", "elsewhere", "elsewhere", "ended", "ended"))
        if operation in ("exclude", "readmit"):
            # Always the same miner, so that the others remain.
            return Request(operation, key=self._maybe_name(), miner=network.hotkey(0))
        number = int(time.time() * SHARED_JOBS_PER_SECOND) + self.rng.choice((0, -1))
        # The content of a report follows from the name of its job.
        miner = network.hotkey(number % self.plan.miners)
        return Request(operation, key=self._maybe_name(), job=f"theirs-{number}", miner=miner, number=number % 100)

    def _reserve(self) -> Request:
        miner = network.hotkey(self.rng.randrange(self.plan.miners))
        amount = self.rng.choice(network.AMOUNTS_S)
        return Request("reserve", key=self._name(), miner=miner, amount=amount, number=self.newest)

    def _settle(self) -> Request:
        """Settle a reservation of this worker. Some stay in the list, and are settled again later."""
        if not self.active:
            return self._pick()
        reservation_id = self.rng.choice(self.active)
        if self.rng.random() > SETTLED_AGAIN_SHARE:
            self.active.remove(reservation_id)
        operation = self.rng.choice(("spend", "release", "release"))
        return Request(operation, key=self._name(), reservation_id=reservation_id)

    def _expire(self) -> Request:
        return Request("expire", key=self._maybe_name())

    def _block(self) -> Request:
        """Mostly record the next block; sometimes one beyond it, or one that was left out."""
        return Request("block", key=self._maybe_name(), number=self.newest + self.rng.choice((1, 1, 1, 2, 0, -1)))

    def _sync(self) -> Request:
        return Request("sync", key=self._maybe_name(), number=self.newest + self.rng.choice((1, 0, -3)))

    def _look(self) -> Request:
        return Request("look", reservation_id=self.rng.choice(self.active)) if self.active else self._list()

    def _list(self) -> Request:
        return Request("list")


async def _open(plan: Plan, stop: asyncio.Event) -> Allowance | None:
    """Open the ledger as soon as its database is available; return None if the run stops before that."""
    while not stop.is_set():
        try:
            return await Allowance.open(plan.url, validator_ss58=network.ME)
        except AllowanceException as unavailable:
            sys.stderr.write(f"opening: {unavailable!r}\n")
        await asyncio.sleep(0.05)
    return None


async def _work(plan: Plan, name: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    diary = Diary(plan.diaries / f"{name}.jsonl")
    ledger = await _open(plan, stop)
    if ledger is not None:
        await Worker(plan, name, ledger, diary, stop).work()
        await ledger.close()


def main(plan: Plan, name: str) -> None:
    """Run the process."""
    sys.stderr = plan.errors(name).open("a", buffering=1)
    faulthandler.enable(sys.stderr)
    if plan.fault is not None:
        faults.inject(plan.fault)
    asyncio.run(_work(plan, name))
