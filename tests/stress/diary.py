"""What a worker meant to do and what came of it, in a file that survives its SIGKILL.

An intent is written before the call and an outcome after it, each with one `write` to a file that only grows: the
kernel keeps what was written, whatever happens to the process. An intent without an outcome is one whose end the
worker did not live to see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call: `what` is the operation, the rest its arguments."""

    what: str
    job: str | None = None
    key: str | None = None
    miner: str | None = None
    amount: float = 0.0
    reservation_id: int = 0
    number: int = 0
    alone: bool = True
    """Whether no other call is made with this job or key, but to ask again what became of this one."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a call answered."""

    reservation_id: int = 0
    miner: str | None = None
    blocks: list[int] = []
    position: int = 0
    expired: list[int] = []


class Intent(msgspec.Struct, frozen=True, tag="intent"):
    """Before the call."""

    n: int
    wish: Wish


class Outcome(msgspec.Struct, frozen=True, tag="outcome", omit_defaults=True):
    """After the call: its answer; or the class of its refusal; or neither, where the caller cannot know."""

    n: int
    answer: Answer | None = None
    refused: str | None = None
    said: str | None = None
    broken: str | None = None
    """An error that no caller should ever see."""


class Call(NamedTuple):
    """A call as its worker knows it; `outcome` is None where it does not know."""

    worker: str
    wish: Wish
    outcome: Outcome | None
    asked_again: bool = False
    """Whether the outcome is that of asking what became of it: the call itself may have been done or not."""

    @property
    def unknown(self) -> bool:
        """Whether it has to be asked again what became of it."""
        end = self.outcome
        return end is None or (end.answer is None and end.refused is None and end.broken is None)


_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Intent | Outcome] = msgspec.json.Decoder(Intent | Outcome)


class Diary:
    """A worker's own file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0

    def intend(self, wish: Wish) -> int:
        """Notes a call that is about to be made; answers its number."""
        self._calls += 1
        self._write(Intent(self._calls, wish))
        return self._calls

    def conclude(self, outcome: Outcome) -> None:
        """Notes what came of a call."""
        self._write(outcome)

    def _write(self, entry: Intent | Outcome) -> None:
        os.write(self._file, _encode(entry) + b"\n")


def calls(directory: Path) -> Iterator[Call]:
    """All calls of all workers, in the order in which each worker made them."""
    for path in sorted(directory.iterdir()):
        entries = [_decoder.decode(line) for line in path.read_bytes().splitlines()]
        outcomes = {entry.n: entry for entry in entries if isinstance(entry, Outcome)}
        for entry in entries:
            if isinstance(entry, Intent):
                yield Call(path.stem, entry.wish, outcomes.get(entry.n))
