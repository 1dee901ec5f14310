"""One world: a database, 2 to 16 processes with callers and clocks, and everything that goes wrong, from a seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any

from ledger import SNAPSHOT_VERSION, Row, Settings
from ledger.errors import AllowanceException, JobRoutingException, OutcomeUnknown, StorageUnavailable
from projections import Snapshot
from projections.snapshots import payload_digest
from tests.simulation.diary import Call, Request
from tests.simulation.forgeries import forgetful_state, other_log, rows_as_state, sealed_position
from tests.simulation.log_server import LogServer
from tests.simulation.memory_store import TIMEOUT_SECONDS, Faults
from tests.simulation.operations import Operations
from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler

LIMIT_SECONDS = 10.0**6
"""Virtual; a world that is not finished by then hangs."""
CLOCK_JUMPS_SECONDS = (-86_400, -3600, -120, -1, 1, 60, 400, 86_400, 366 * 86_400)


class World:
    """Runs one seed. `violations` has what the world itself noticed; the oracle looks at the rest."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = Random(seed)
        self.scheduler = Scheduler(Random(seed + 1))
        self.loop = self.scheduler.loop()
        self.server = LogServer(self.scheduler.loop())
        self.optimistic = chance.random() < 0.6
        self.faults = Faults(Random(seed + 2), 0.0)
        self.operations = Operations(chance)
        self.processes: list[Process] = []
        self.incarnations: list[Process] = []
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.calls: list[Call] = []
        self.live_states: list[tuple[int, Snapshot]] = []
        self.audit_findings: list[Any] = []
        self.final_settings: Settings | None = None
        self.final_newest: int | None = None
        self.judged_rows: list[Row] | None = None
        """The rows that the callers were told of, if the log was replaced at the end."""
        self.violations: list[str] = []
        self._processes = min(16, 2 + int(chance.expovariate(0.4)))
        self._calls_left = chance.randint(20, 90)
        self._patience = chance.choice((0.02, 1.0, 20.0))
        self._fault_probability = chance.choice((0.0, 0.02, 0.05, 0.15))
        self._cancels = chance.choice((0.0, 0.1))
        self._kill_every = chance.choice((0.0, 5.0, 40.0)) * self._patience
        self._jump_every = chance.choice((0.0, 10.0)) * self._patience
        self._forge_every = chance.choice((0.0, 0.0, 30.0)) * self._patience
        self._forged: list[bytes] = []
        self._callers = 0
        self._restarts = 0

    def run(self) -> None:
        """Run the world to its end."""
        main = self.loop.create_task(self._main())
        if not self.scheduler.run_until_done(main, LIMIT_SECONDS):
            waiting = [call.request.kind for call in self.calls if call.outcome == "started"]
            self.violations.append(f"the world hangs at {self.scheduler.now:.1f} s; calls under way: {waiting}")
        elif not main.cancelled() and main.exception() is not None:
            raise main.exception() or AssertionError
        for process in self.incarnations:
            process.loop.kill()
            process.runtime_loop.kill()
        self.loop.kill()
        self.server.loop.kill()

    async def _main(self) -> None:
        self.processes = [
            self._start(number, with_settings=number == 0 or self.chance.random() < 0.1)
            for number in range(self._processes)
        ]
        await self._run_in(self.processes[0], self.operations.first())
        self.faults.probability = self._fault_probability
        for process in self.processes:
            self._start_callers(process)
        troubles = (self._kill_now_and_then(), self._move_clocks(), self._forge_snapshots())
        watchers = [asyncio.create_task(each) for each in troubles]
        while self._callers or self._restarts:  # noqa: ASYNC110 - a simulated wait costs nothing
            await asyncio.sleep(self._patience)
        for watcher in watchers:
            watcher.cancel()
        self.faults.probability = 0.0
        # What a killed process has sent may still arrive.
        await asyncio.sleep(4 * TIMEOUT_SECONDS)
        await self._finish()

    async def _finish(self) -> None:
        """Ask every open question again, then look at what all processes believe, and audit."""
        fresh = self._start(len(self.processes))
        live = [process for process in self.processes if not process.is_dead]
        for request in list(self.operations.requests):
            has_name = request.key is not None or request.job_uuid is not None
            if has_name and (request.is_open or (request.key and self.chance.random() < 0.2)):
                await self._run_in(self.chance.choice([*live, fresh]), request)
        # Twice, because a process that opens its ledger only now may record its settings.
        for _ in range(2):
            self.live_states = [await self._state_of(each) for each in (*live, fresh)]
        self.final_newest = await self._in_process(fresh, fresh.ledger.current_block())
        self.final_settings = await self._in_process(fresh, fresh.ledger.settings())
        for forged in self._forged:
            self.server.models.execute("DELETE FROM allowance_snapshots WHERE hash = ?", (forged,))
        report = await self._in_process(fresh, fresh.ledger.audit())
        self.audit_findings = list(report.findings)
        if self.chance.random() < 0.3:
            await self._replace_log([*live, fresh])
            return
        for process in (*live, fresh):
            await self._in_process(process, process.ledger.close())
        reopened = self._start(len(self.processes) + 1)
        self.live_states.append(await self._state_of(reopened))

    async def _state_of(self, process: Process) -> tuple[int, Snapshot]:
        """Return the state on which a process decides, and the position that it must have reached."""
        return len(self.server.rows), await self._in_process(process, process.state())

    async def _replace_log(self, processes: list[Process]) -> None:
        """Restore another log below the open ledgers: no process may decide on a mixture of both."""
        self.judged_rows = list(self.server.rows)
        self.server.replace(other_log(self.judged_rows, self.chance.randrange(1, len(self.judged_rows))))
        self.counts["logs replaced"] += 1
        for process in (*processes, self._start(len(self.processes) + 1)):
            await self._meet_other_log(process)

    async def _meet_other_log(self, process: Process) -> None:
        """Ask for a change, and then twice what a process decides on.

        It refuses, for ever if the log went back, or decides on the stored log. What it decided on the lost one is not
        appended to the stored one.
        """
        told: list[str] = []
        settled = len(self._settlements())
        for reservation_id in self.operations.reservations[-3:]:
            with suppress(AllowanceException):
                await self._in_process(process, process.ledger.release(reservation_id))
        for _ in range(2):
            try:
                state = await self._in_process(process, process.state())
            except StorageUnavailable as refusal:
                told.append(type(refusal).__name__)
                continue
            if state != rows_as_state(self.server.rows[: state.position]):
                self.violations.append("after the log was replaced, a process decides on a mixture of both")
            if "LogWentBack" in told:
                self.violations.append("a process that noticed that the log went back continues")
            told.append("ok")
        if "ok" not in told and len(self._settlements()) > settled:
            self.violations.append("a process that refuses the replaced log has appended to it")
        self.outcomes["log replaced", ", then ".join(told)] += 1

    def _settlements(self) -> list[Row]:
        return [row for row in self.server.rows if row.settles is not None]

    def _start(self, number: int, *, with_settings: bool = False) -> Process:
        settings = None
        if with_settings:
            settings = Settings(
                block_expiry_blocks=self.chance.choice((6, 20, 722)),
                reservation_margin_seconds=self.chance.choice((1.0, 100.0)),
                executors_max_per_class=self.chance.choice(({}, {"gpu": 2})),
                minimum_collateral_wei=self.chance.choice((0, 0, 5)),
                routing_order=self.chance.choice(("allowance", "reliability")),
                reliability_window_hours=self.chance.choice((24.0, 0.01)),
                reliability_soft_cutoff=self.chance.choice((-50.0, -2.0)),
            )
        process = Process(self, number, settings)
        self.incarnations.append(process)
        return process

    def _start_callers(self, process: Process) -> None:
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            self._callers += 1
            process.loop.call_soon_threadsafe(lambda: process.loop.create_task(self._call_again_and_again(process)))
            process.callers += 1

    async def _call_again_and_again(self, process: Process) -> None:
        while self._calls_left > 0:
            self._calls_left -= 1
            await asyncio.sleep(self.chance.expovariate(1.0) * self._patience)
            await self.call(process, self._next_request())
        process.callers -= 1
        self._callers -= 1

    def _next_request(self) -> Request:
        if self.chance.random() < 0.25:
            open_requests = [request for request in self.operations.requests[-20:] if request.is_open]
            open_requests = [each for each in open_requests if each.calls[-1].outcome != "started"]
            if open_requests:
                return self.chance.choice(open_requests)
        if self.chance.random() < 0.05:
            done = [each for each in self.operations.requests if each.key is not None and each.calls]
            if done:
                return self.chance.choice(done)
        return self.operations.next()

    async def call(self, process: Process, request: Request) -> Call:
        """Ask once in a process, and write down what the caller is told."""
        call = Call(request, process, self.scheduler.now)
        request.calls.append(call)
        self.calls.append(call)
        process.open_calls.append(call)
        work: asyncio.Task[Any] = asyncio.get_running_loop().create_task(request.invoke(process, request))
        if self._cancels and self.faults.probability and self.chance.random() < self._cancels:
            asyncio.get_running_loop().call_later(self.chance.expovariate(50.0), work.cancel)
        try:
            call.result = await work
            call.outcome = "ok"
        except asyncio.CancelledError:
            call.outcome = "cancelled"
        except OutcomeUnknown as unknown:
            call.outcome, call.error = "unknown", unknown
            request.key = request.key or unknown.idempotency_key
        except (AllowanceException, JobRoutingException) as refusal:
            call.outcome, call.error = "refused", refusal
            # A correction that is overtaken again and again is refused too.
            overtaken = "facts were recorded during" in str(refusal)
            if isinstance(refusal, StorageUnavailable) and not self.faults.probability and not overtaken:
                self.violations.append(f"{request.kind} raised {refusal!r}, but the storage has no fault")
        except Exception as error:
            call.outcome, call.error = "unknown", error
            self.violations.append(f"{request.kind} raised {error!r}, which is not one of the library's errors")
        call.head_at_end = len(self.server.rows)
        process.open_calls.remove(call)
        self.outcomes[request.kind, call.label] += 1
        if call.outcome == "ok":
            self._remember(call)
        return call

    def _remember(self, call: Call) -> None:
        number = getattr(call.result, "allowance_reservation_id", None) or getattr(call.result, "reservation_id", None)
        if number is not None and call.request.kind in ("pick", "pick again", "reserve"):
            self.operations.reservations.append(number)

    def end_calls_of(self, process: Process) -> None:
        """Write down that the callers of a killed process were told nothing."""
        for call in process.open_calls:
            call.outcome = "died"
            self.outcomes[call.request.kind, "died"] += 1
        process.open_calls.clear()
        self._callers -= process.callers
        process.callers = 0
        self.counts["kills"] += 1
        if process in self.processes:
            self._restarts += 1
            self.loop.call_later(self.chance.expovariate(1.0) * self._patience, self._restart, process.number)

    def _restart(self, number: int) -> None:
        self._restarts -= 1
        if self._calls_left > 0:
            self.processes[number] = self._start(number, with_settings=self.chance.random() < 0.1)
            self._start_callers(self.processes[number])

    async def _kill_now_and_then(self) -> None:
        while self._kill_every:
            await asyncio.sleep(self.chance.expovariate(1.0 / self._kill_every))
            process = self.chance.choice(self.processes)
            if not process.is_dead:
                process.kill()

    async def _move_clocks(self) -> None:
        while self._jump_every:
            await asyncio.sleep(self.chance.expovariate(1.0 / self._jump_every))
            self.chance.choice(self.processes).clock_offset_ns += self.chance.choice(CLOCK_JUMPS_SECONDS) * 10**9
            self.counts["clock jumps"] += 1

    async def _forge_snapshots(self) -> None:
        """Store a snapshot of another log now and then, or one of this log that forgets what is taken."""
        while self._forge_every:
            await asyncio.sleep(self.chance.expovariate(1.0 / self._forge_every))
            rows, sealed = self.server.rows, sealed_position(self.server.rows)
            if sealed and self.chance.random() < 0.7:
                state = forgetful_state(rows[:sealed])
            else:
                state = rows_as_state(other_log(rows, len(rows) - 1)[:-1])
            values = (1, state.position, SNAPSHOT_VERSION, state.hash, payload_digest(state.payload), state.payload)
            self.server.models.execute("INSERT OR REPLACE INTO allowance_snapshots VALUES (?, ?, ?, ?, ?, ?)", values)
            self._forged.append(state.hash)
            self.counts["snapshots forged"] += 1

    async def _run_in(self, process: Process, request: Request) -> None:
        await self._in_process(process, self.call(process, request))

    async def _in_process(self, process: Process, work: Any) -> Any:
        """Await work on a process's own loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, process.loop))
