"""A process that claims, settles and records at random, until it is told to stop or killed."""

from __future__ import annotations

import asyncio
import faulthandler
import random
import signal
import sys
import time

from routing import Allowance, AllowanceException

from . import faults, network
from .diary import Diary, Outcome, Wish
from .operations import attempt
from .plan import Plan

PAUSES_S = (0.0, 0.0, 0.0, 0.002, 0.02)
CANCELLED_SHARE = 0.08
REPEATED_SHARE = 0.08
SETTLED_LATE_SHARE = 0.15
SHARED_JOBS_PER_SECOND = 4
MOST_LIVE = 40


class Worker:
    """One life of one worker: its callers share a ledger, a diary and the reservations that they hold."""

    def __init__(self, plan: Plan, name: str, ledger: Allowance, diary: Diary, stop: asyncio.Event) -> None:
        self.plan = plan
        self.name = name
        self.ledger = ledger
        self.diary = diary
        self.stop = stop
        self.rng = random.Random(f"{plan.seed} {name}")
        self.live: list[int] = []
        self.wishes = 0
        self.newest = network.FIRST_BLOCKS

    async def work(self) -> None:
        """All callers at once, until stopped."""
        await self._call(Wish("list"))
        await asyncio.gather(*(self._call_on_and_on() for _ in range(self.plan.callers)))

    async def _call_on_and_on(self) -> None:
        while not self.stop.is_set():
            wish = self._wish()
            await self._call(wish)
            if (wish.key or wish.what == "pick") and self.rng.random() < REPEATED_SHARE:
                await self._call(wish)
            await asyncio.sleep(self.rng.choice(PAUSES_S))

    async def _call(self, wish: Wish) -> None:
        n = self.diary.intend(wish)
        try:
            outcome = await self._patiently(n, wish)
        except asyncio.CancelledError:
            outcome = Outcome(n)
        self.diary.conclude(outcome)
        if outcome.answer is not None:
            self._learn(wish, outcome)

    async def _patiently(self, n: int, wish: Wish) -> Outcome:
        """Waits for the answer, or gives up after a moment; the answer may still come first."""
        calling = asyncio.create_task(attempt(self.plan, self.ledger, n, wish))
        if self.rng.random() < CANCELLED_SHARE:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0)
            await asyncio.sleep(self.rng.choice((0, 0, 0.001, 0.003)))
            calling.cancel()
        return await calling

    def _learn(self, wish: Wish, outcome: Outcome) -> None:
        answer = outcome.answer
        if answer is not None and wish.what in ("pick", "reserve") and len(self.live) < MOST_LIVE:
            self.live.append(answer.reservation_id)
        if answer is not None and wish.what in ("block", "list"):
            self.newest = max(self.newest, wish.number, answer.position if wish.what == "list" else 0)

    def _wish(self) -> Wish:
        self.wishes += 1
        choose = self.rng.choices(
            ("pick", "shared", "reserve", "settle", "expire", "block", "sync", "look", "list"),
            (30, 8, 18, 34, 3, 10 * self.plan.facts, 4 * self.plan.facts, 5, 3),
        )[0]
        wish: Wish = getattr(self, f"_{choose}")()
        return wish

    def _name(self) -> str:
        return f"{self.name}-{self.wishes}"

    def _maybe_name(self) -> str | None:
        """A key for every other call that can do without."""
        return self._name() if self.wishes % 2 else None

    def _pick(self) -> Wish:
        return Wish("pick", job=self._name(), amount=self.rng.choice(network.AMOUNTS_S))

    def _shared(self) -> Wish:
        """A job that all workers route at about the same time."""
        job = f"shared-{int(time.time() * SHARED_JOBS_PER_SECOND)}"
        return Wish("pick", job=job, amount=network.AMOUNTS_S[0], alone=False)

    def _reserve(self) -> Wish:
        miner = network.hotkey(self.rng.randrange(self.plan.miners))
        amount = self.rng.choice(network.AMOUNTS_S)
        return Wish("reserve", key=self._name(), miner=miner, amount=amount, number=self.newest)

    def _settle(self) -> Wish:
        """Ends a reservation of this worker's; some are left, or kept, and come back to a settled one."""
        if not self.live:
            return self._pick()
        held = self.rng.choice(self.live)
        if self.rng.random() > SETTLED_LATE_SHARE:
            self.live.remove(held)
        return Wish(self.rng.choice(("spend", "release", "release")), key=self._name(), reservation_id=held)

    def _expire(self) -> Wish:
        return Wish("expire", key=self._maybe_name())

    def _block(self) -> Wish:
        """Mostly the next block; sometimes one beyond it, sometimes one that was left out."""
        return Wish("block", key=self._maybe_name(), number=self.newest + self.rng.choice((1, 1, 1, 2, 0, -1)))

    def _sync(self) -> Wish:
        return Wish("sync", key=self._maybe_name(), number=self.newest + self.rng.choice((1, 0, -3)))

    def _look(self) -> Wish:
        return Wish("look", reservation_id=self.rng.choice(self.live)) if self.live else self._list()

    def _list(self) -> Wish:
        return Wish("list")


async def _opened(plan: Plan, stop: asyncio.Event) -> Allowance | None:
    """The ledger, as soon as its database answers; None where that is not before the end."""
    while not stop.is_set():
        try:
            return await Allowance.open(plan.url, validator_ss58=network.ME)
        except AllowanceException as away:
            sys.stderr.write(f"opening: {away!r}\n")
        await asyncio.sleep(0.05)
    return None


async def _work(plan: Plan, name: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    diary = Diary(plan.diaries / f"{name}.jsonl")
    ledger = await _opened(plan, stop)
    if ledger is not None:
        await Worker(plan, name, ledger, diary, stop).work()
        await ledger.close()


def main(plan: Plan, name: str) -> None:
    """What the process does."""
    sys.stderr = plan.errors(name).open("a", buffering=1)
    faulthandler.enable(sys.stderr)
    if plan.fault is not None:
        faults.bring_about(plan.fault)
    asyncio.run(_work(plan, name))
