"""A diary: a worker's file of the calls that it made, which survives a SIGKILL of the worker.

The worker writes an intent before each call and an outcome after it, each with one `write` to an append-only file. The
kernel keeps written bytes, whatever happens to the process. If an intent has no outcome, the worker died during the
call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call: the name of the operation, and its arguments."""

    operation: str
    job: str | None = None
    key: str | None = None
    miner: str | None = None
    amount: float = 0.0
    reservation_id: int = 0
    number: int = 0
    alone: bool = True
    """Whether no other call has this job or key, except for a retry of this one."""


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of a call's return value that the judge compares."""

    reservation_id: int = 0
    miner: str | None = None
    blocks: list[int] = []
    position: int = 0
    expired: list[int] = []


class Intent(msgspec.Struct, frozen=True, tag="intent"):
    """Written before the call."""

    n: int
    request: Request


class Outcome(msgspec.Struct, frozen=True, tag="outcome", omit_defaults=True):
    """Written after the call: its result, or the class of its refusal, or neither if the caller cannot know."""

    n: int
    result: Result | None = None
    refused: str | None = None
    message: str | None = None
    broken: str | None = None
    """An error that no caller should ever see."""
    cancelled: bool = False
    """Whether the worker cancelled the call, so that nothing is known of it."""
    at_ns: int = 0
    """When the diary noted it, by the monotonic clock that all processes of a machine share."""


class Call(NamedTuple):
    """A call as its worker knows it; `outcome` is None if the worker died before it knew."""

    worker: str
    request: Request
    outcome: Outcome | None
    retried: bool = False
    """Whether the outcome is that of a retry. The first call may have been done or not."""

    @property
    def unknown(self) -> bool:
        """Whether only a retry can find out what the call did."""
        outcome = self.outcome
        return outcome is None or (outcome.result is None and outcome.refused is None and outcome.broken is None)


_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Intent | Outcome] = msgspec.json.Decoder(Intent | Outcome)


class Diary:
    """The diary of one worker process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0

    def begin(self, request: Request) -> int:
        """Write the intent of a call that is about to be made; return its number."""
        self._calls += 1
        self._write(Intent(self._calls, request))
        return self._calls

    def conclude(self, outcome: Outcome) -> None:
        """Write the outcome of a call, with the time."""
        self._write(msgspec.structs.replace(outcome, at_ns=time.monotonic_ns()))

    def _write(self, entry: Intent | Outcome) -> None:
        # One system call, past any buffer of the process: a SIGKILL loses no entry. It can cut the last one where a
        # page of the file ends.
        os.write(self._file, _encode(entry) + b"\n")


def calls(directory: Path) -> Iterator[Call]:
    """Yield all calls of all workers, in the order in which each worker made them."""
    for path in sorted(directory.iterdir()):
        # A last line without its end was cut when the worker died: its call had not begun, or its outcome is unknown.
        *lines, _ = path.read_bytes().split(b"\n")
        entries = [_decoder.decode(line) for line in lines]
        outcomes = {entry.n: entry for entry in entries if isinstance(entry, Outcome)}
        for entry in entries:
            if isinstance(entry, Intent):
                yield Call(path.stem, entry.request, outcomes.get(entry.n))
