"""A process that helps with an audit, as the one sees it that started it; what it does itself is in `helper.py`."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from .helper import Task
from .stretch import Ending, Part

_PROGRAM = "from projections.audit.helper import main; main()"

log = logging.getLogger("allowance.ledger")


class HelperLost(Exception):
    """A helper ended before its work did."""


class Helper:
    """A process that audits; made on a running loop. Its methods raise `HelperLost` where it is not there any more."""

    def __init__(self, task: Task, passed: Callable[[], None]) -> None:
        """Starts the process. Raises `OSError` or `RuntimeError` where the system lets none be started."""
        self.passed = 0
        self.begin = task.begin
        self._passed = passed
        self._end = task.end
        self._is_on_its_way = True
        """Whether it audits up to the end of its task without being told."""
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        reading, writing = os.pipe()
        self._answers = open(reading, "rb")  # noqa: SIM115 - closed by who listens
        try:
            # How a process was started is for all to see, so what may be secret goes through the pipe. It imports what
            # this process would, and nothing (-P) from the directory that somebody happens to be in.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[writing],
            )
        except BaseException:
            self._answers.close()
            raise
        finally:
            os.close(writing)
        self._listener = threading.Thread(target=self._listen, args=(task,), name="allowance-audit", daemon=True)
        try:
            self._listener.start()
        except RuntimeError:
            self._process.kill()
            self._process.wait()
            self._answers.close()
            raise

    async def begins(self) -> bytes | None:
        """The seal of what it begins with; None where it could not follow the log up to there."""
        try:
            return cast("bytes | None", await self._answer("begins"))
        except HelperLost:
            log.info("a process that was to help with an audit ended before it could; the audit goes on without it")
            return None

    async def audit(self, border: int) -> bytes | None:
        """See `Runner` in `relay.py`."""
        if self._is_on_its_way:
            self._is_on_its_way = False
            seal = cast("bytes | None", await self._answer("reached"))
            if border == self._end:
                return seal
        self._say(("on", border))
        return cast("bytes | None", await self._answer("reached"))

    async def part(self) -> Part:
        """See `Runner` in `relay.py`."""
        self._say(("part",))
        return cast(Part, await self._answer("part"))

    async def end(self) -> tuple[Ending, Part]:
        """See `Runner` in `relay.py`."""
        self._say(("end",))
        return cast("tuple[Ending, Part]", await self._answer("end"))

    def stop(self) -> None:
        """Ends the process, if it has not ended."""
        self._process.kill()

    async def gone(self) -> None:
        """Waits for the end of a process that was stopped."""
        await asyncio.to_thread(self._listener.join)

    async def _answer(self, kind: str) -> Any:
        while (heard := await self._heard.get())[0] != kind:
            if heard[0] == "lost":
                self._heard.put_nowait(heard)
                raise HelperLost
            self._passed()
        return heard[1]

    def _say(self, words: Any) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pickle.dump(words, pipe)
            pipe.flush()
        except (OSError, ValueError) as cause:
            raise HelperLost from cause

    def _listen(self, task: Task) -> None:
        """In a thread: hands the task over, and listens until the process ends, or says what cannot be understood."""
        try:
            with self._answers as answers:
                self._say(task)
                while True:
                    heard = pickle.load(answers)
                    self._loop.call_soon_threadsafe(self._hear, heard)
        except Exception as ended:
            log.debug("no more is heard of a process that helps with an audit: %r", ended)
        finally:
            self._process.kill()
            with suppress(OSError), self._process:  # Closes the other pipe, to which something may be left to be said.
                pass
            self._process.wait()
            with suppress(RuntimeError):  # The loop may be closed by then; nobody listens any more.
                self._loop.call_soon_threadsafe(self._hear, ("lost",))

    def _hear(self, heard: tuple[Any, ...]) -> None:
        if heard[0] == "passed":
            self.passed = heard[1]
        self._heard.put_nowait(heard)
