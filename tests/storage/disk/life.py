"""Scripted lives of a ledger: which process calls what, and what it was told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from routing import Allowance
from tests.stress import Plan, network
from tests.stress.diary import Call, Outcome, Request, Result
from tests.stress.operations import outcome_of, perform

from .preload import Fault, Operation, Record, Recorder

MINERS = 2
START_NS = int(network.created_at(20).timestamp()) * 10**9
ANSWER_SECONDS = 60.0
PAGES_BETWEEN_CHECKPOINTS = 970
"""Fewer than the product's, so that a short life is enough."""


class Step(NamedTuple):
    """One call of a life, by one of its processes."""

    actor: str
    request: Request
    makes: str | None = None
    """The name by which later steps call the reservation that this one makes."""
    settles: str | None = None
    seconds: float = 0.01
    """By how much the clock advances before it."""


class Misfortune(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happens to the processes of a life, at which of their system calls on the ledger's files."""

    fault: Fault = Fault.NONE
    index: int = 0
    """Of the system call that meets the fault, from 1."""
    killed_after: bool = False
    """Kill all processes once the call of the library that met the fault has returned."""
    death: int = 0
    """The index of a later system call, before which its process is killed."""


@dataclass
class Run:
    """What happened in one life."""

    script: str
    calls: list[Call] = field(default_factory=list)
    log: list[Record] = field(default_factory=list)
    fired: bool = False
    now_ns: int = START_NS
    hung: str | None = None


def _opened(actor: str = "a") -> Step:
    return Step(actor, Request("open"))


def _closed(actor: str = "a") -> Step:
    return Step(actor, Request("close"))


def _facts(actor: str, first: int, last: int) -> list[Step]:
    return [Step(actor, Request("block", key=f"block-{n}", number=n)) for n in range(first, last + 1)]


def _sync(actor: str, block: int) -> Step:
    return Step(actor, Request("sync", key=f"sync-{block}", number=block))


def _reserve(actor: str, name: str, miner: int = 0, amount: float = 0.5) -> Step:
    request = Request("reserve", key=name, miner=network.hotkey(miner), amount=amount, number=5)
    return Step(actor, request, makes=name)


def _pick(actor: str, job: str) -> Step:
    return Step(actor, Request("pick", job=job, amount=0.5), makes=job)


def _settle(actor: str, operation: str, name: str) -> Step:
    return Step(actor, Request(operation, key=f"{operation}-{name}"), settles=name)


def _look(actor: str, operation: str = "list") -> Step:
    return Step(actor, Request(operation))


def _alone(*, with_query: bool) -> list[Step]:
    """One process creates, claims, settles, expires, rebuilds and opens again; with or without a second connection."""
    return [
        _opened(),
        *([_look("a", "find")] if with_query else []),
        _sync("a", 1),
        *_facts("a", 1, 5),
        *([_look("a", "find")] if with_query else []),
        _reserve("a", "r1"),
        _settle("a", "spend", "r1"),
        _pick("a", "j1"),
        _reserve("a", "r2", 1),
        _settle("a", "release", "r2"),
        _settle("a", "spend", "j1"),
        _reserve("a", "r3"),
        Step("a", Request("expire", key="expire-1"), seconds=5000.0),
        *([_look("a"), _look("a", "rebuild")] if with_query else []),
        _closed(),
        _opened(),
        _pick("a", "j2"),
        _settle("a", "spend", "j2"),
        _reserve("a", "r4", 1),
        _sync("a", 6),
        *_facts("a", 6, 6),
        _settle("a", "release", "r4"),
        _closed(),
    ]


def _two() -> list[Step]:
    """Two processes on one file take turns; one closes and opens again meanwhile."""
    return [
        _opened("a"),
        _sync("a", 1),
        *_facts("a", 1, 3),
        _opened("b"),
        _reserve("b", "b1"),
        *_facts("b", 4, 5),
        _look("b", "find"),
        _pick("a", "a1"),
        _settle("a", "spend", "a1"),
        _settle("b", "spend", "b1"),
        _pick("b", "b2"),
        _reserve("a", "a2", 1),
        _closed("a"),
        _settle("b", "release", "b2"),
        _opened("a"),
        _reserve("a", "a3"),
        _settle("b", "spend", "a3"),
        _closed("b"),
        _settle("a", "release", "a2"),
        _closed("a"),
    ]


def _founding() -> list[Step]:
    """A ledger in a directory that does not exist yet."""
    return [_opened(), _sync("a", 1), *_facts("a", 1, 2), _closed()]


def _checkpoint() -> list[Step]:
    """So many changes that SQLite checkpoints the WAL and begins it again, with a second connection open.

    It does so after `PAGES_BETWEEN_CHECKPOINTS`, some changes before the end.
    """
    claims = [(_reserve("a", f"c{n}"), _settle("a", "release", f"c{n}")) for n in range(95)]
    return [
        _opened(),
        _sync("a", 1),
        *_facts("a", 1, 5),
        _look("a", "find"),
        *(step for claim in claims for step in claim),
        _reserve("a", "kept"),
        _settle("a", "spend", "kept"),
        _closed(),
    ]


def _crashed() -> list[Step]:
    """All processes are killed twice; each time new ones open the ledger, and ask again for what was done before.

    The WAL is new before the first crash, so what the crash leaves in it is nowhere else.
    """
    crash = Step("", Request("crash"))
    asked = [_reserve("a", "r1"), _settle("a", "spend", "r1")]
    return [
        _opened(),
        _sync("a", 1),
        *_facts("a", 1, 3),
        _closed(),
        _opened(),
        _look("a", "find"),
        *asked,
        crash,
        _opened(),
        *asked,
        _reserve("a", "r2", 1),
        crash,
        _opened("b"),
        _look("b", "find"),
        _opened("a"),
        _settle("a", "release", "r2"),
        _pick("b", "j1"),
        _settle("b", "spend", "r1"),
        _closed("a"),
        _settle("b", "release", "j1"),
        _closed("b"),
    ]


DATABASES = {"founding": "new/directory/ledger.db"}
"""Where a life keeps its ledger below the watched directory, if not in `ledger.db`."""
SCRIPTS: dict[str, Callable[[], list[Step]]] = {
    "founding": _founding,
    "alone": lambda: _alone(with_query=False),
    "query": lambda: _alone(with_query=True),
    "two": _two,
    "crashed": _crashed,
    "checkpoint": _checkpoint,
}


def live(
    recorder: Recorder,
    script: str,
    directory: Path,
    misfortune: Misfortune | None = None,
    plant: Callable[[], None] | None = None,
) -> Run:
    """Live one life in a directory.

    The calling process must have no other thread, because it forks. `plant` runs in each process before its first call.
    """
    life = _Life(recorder, script, directory, misfortune or Misfortune(), plant)
    try:
        life.live()
    finally:
        life.end()
    return life.run


class _Life:
    """A life under way: its processes, and what they were told."""

    def __init__(
        self,
        recorder: Recorder,
        script: str,
        directory: Path,
        misfortune: Misfortune,
        plant: Callable[[], None] | None,
    ) -> None:
        self.run = Run(script)
        self._recorder = recorder
        self._steps = SCRIPTS[script]()
        self._plan = plan_of(directory, script)
        self._misfortune = misfortune
        self._plant = plant
        self._made: dict[str, int] = {}
        """The reservations that the processes were told of, by the names in the script."""
        recorder.begin(directory, misfortune.fault, misfortune.index, misfortune.death)
        self._actors = self._start()

    def live(self) -> None:
        """Take all steps, as far as the misfortune allows."""
        for step in self._steps:
            self.run.now_ns += int(step.seconds * 10**9)
            if step.request.operation == "crash":
                self._kill()
                self._actors = self._start()
                continue
            self._take(step)
            if self.run.hung or (self._misfortune.killed_after and self._recorder.fired):
                return

    def end(self) -> None:
        """Kill the processes and keep the record."""
        self._kill()
        self.run.fired = self._recorder.fired
        self.run.log = self._recorder.end()

    def _start(self) -> dict[str, _Actor]:
        names = {step.actor for step in self._steps if step.actor}
        return {name: _Actor(self._plan, self._plant) for name in sorted(names)}

    def _kill(self) -> None:
        for actor in self._actors.values():
            actor.kill()
        self._actors = {}

    def _take(self, step: Step) -> None:
        """Make the call of a step, unless its process died or the reservation that it settles was never made."""
        actor, request = self._actors[step.actor], step.request
        if not actor.alive or (step.settles is not None and step.settles not in self._made):
            return
        if step.settles is not None:
            request = msgspec.structs.replace(request, reservation_id=self._made[step.settles])
        outcome = self._call(actor, request)
        if outcome is not None and outcome.result is not None and step.makes is not None:
            self._made[step.makes] = outcome.result.reservation_id

    def _call(self, actor: _Actor, request: Request) -> Outcome | None:
        number = len(self.run.calls) + 1
        self._recorder.mark(Operation.BEGIN, number)
        try:
            outcome = actor.call(number, self.run.now_ns, request)
        except TimeoutError:
            self.run.hung, outcome = repr(request), None
        self._recorder.mark(Operation.END, number)
        self.run.calls.append(Call(self.run.script, request, outcome))
        return outcome


def database_of(directory: Path, script: str) -> Path:
    """Return the path of a life's ledger."""
    return directory / DATABASES.get(script, "ledger.db")


def plan_of(directory: Path, script: str) -> Plan:
    """Return what the operations of the stress test need to know."""
    return Plan(f"sqlite:///{database_of(directory, script)}", str(directory), seed=1, miners=MINERS)


class _Actor:
    """A process that makes one call after the other for its parent."""

    def __init__(self, plan: Plan, plant: Callable[[], None] | None) -> None:
        self._ours, theirs = Pipe()
        self._pid = os.fork()
        self.alive = True
        if self._pid:
            theirs.close()
            return
        self._ours.close()
        with suppress(EOFError, OSError):
            if plant is not None:
                plant()
            asyncio.run(_act(theirs, plan))
        os._exit(0)

    def call(self, number: int, now_ns: int, request: Request) -> Outcome | None:
        """Return the outcome; None if the process died."""
        try:
            self._ours.send_bytes(msgspec.json.encode((number, now_ns, request)))
            if not self._ours.poll(ANSWER_SECONDS):
                raise TimeoutError
            return msgspec.json.decode(self._ours.recv_bytes(), type=Outcome)
        except (EOFError, ConnectionError):
            self.alive = False
            return None

    def kill(self) -> None:
        """End the process, and wait until it is gone."""
        self._ours.close()
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


async def _act(connection: Connection, plan: Plan) -> None:
    clock = Clock()
    caller = Caller(plan, clock)
    while True:
        number, clock.now_ns, request = msgspec.json.decode(connection.recv_bytes(), type=tuple[int, int, Request])
        connection.send_bytes(msgspec.json.encode(await caller.attempt(number, request)))


class Clock:
    """A clock that the script moves."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


class Caller:
    """Makes the calls of one process; the calls of the library that the stress test does not make are here."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self.ledger: Allowance | None = None

    async def attempt(self, number: int, request: Request) -> Outcome:
        """Make a call; return its result or refusal, or what no caller should ever see."""
        return await outcome_of(number, self._perform(request))

    async def _perform(self, request: Request) -> Result:
        if request.operation == "open" or self.ledger is None:
            await self.open()
        ledger: Any = self.ledger
        match request.operation:
            case "open":
                return Result()
            case "close":
                self.ledger = None
                await ledger.close()
                return Result()
            case "rebuild":
                await ledger.rebuild()
                return Result()
            case "find":
                return Result(position=await ledger.current_block() or 0)
        return await perform(self._plan, ledger, request)

    async def open(self) -> None:
        """Open the ledger."""
        ledger = Allowance.open(
            self._plan.url, validator_ss58=network.ME, settings=network.SETTINGS, clock_ns=self._clock
        )
        try:
            await ledger
        except BaseException:
            await ledger.close()
            raise
        self.ledger = ledger
