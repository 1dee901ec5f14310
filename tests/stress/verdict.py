"""What the workers were told and what the reader received, held against what is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from .diary import Answer, Call, Wish
from .replay import ID_BITS, Finding, Replay, Stored

ENDS = {
    "ReservationAlreadySpent": "spent",
    "ReservationAlreadyReleased": "released",
    "ReservationExpired": "expired",
}
PAST = {"spend": "spent", "release": "released"}

_received = msgspec.json.Decoder(
    tuple[int, str, int, int, str | None, str | None, int | None, int | None, bytes, bytes]
)


def verdict(rows: list[Stored], calls: Iterable[Call], received: Path) -> list[Finding]:
    """Everything that is wrong, in no particular order; empty where all is as promised."""
    replay = Replay(rows)
    heard = list(calls)
    trial = _Trial(replay, heard)
    for call in heard:
        trial.hear(call)
    return [*replay.findings, *trial.findings, *_reader(rows, received)]


def _reader(rows: list[Stored], received: Path) -> list[Finding]:
    """The reader skips nothing, receives nothing twice, and what it received is what is stored."""
    findings: list[Finding] = []
    lines = received.read_bytes().splitlines()
    for position, (stored, line) in enumerate(zip(rows, lines, strict=False), 1):
        row = Stored(*_received.decode(line))
        if row.position != position:
            findings.append(Finding("reader", f"received position {row.position} where {position} comes next"))
        elif row != stored:
            findings.append(Finding("reader", f"position {position} was {row} when it was received, and is {stored}"))
    if len(lines) != len(rows):
        findings.append(Finding("reader", f"received {len(lines)} rows of {len(rows)}"))
    return findings


class _Trial:
    """Hears one call after the other."""

    def __init__(self, replay: Replay, calls: list[Call]) -> None:
        self.replay = replay
        self._maybe_done = {
            (call.wish.job, call.wish.key)
            for call in calls
            if call.asked_again or (call.outcome and call.outcome.answer)
        }
        """What was done, or may have been, by one of several calls; the others may still have been refused."""
        self.findings: list[Finding] = []
        self._by_position = {row.position: row for row in replay.rows}
        self._told: dict[int, set[tuple[str | None, str | None]]] = defaultdict(set)

    def hear(self, call: Call) -> None:
        """Holds one call against the log."""
        if call.outcome is None:
            self._find("unresolved", call, "nobody found out what became of it")
        elif call.outcome.broken is not None:
            self._find("broken", call, call.outcome.broken)
        elif call.outcome.answer is not None:
            self._answered(call, call.outcome.answer)
        elif call.outcome.refused is not None:
            self._refused(call, call.outcome.refused)

    def _find(self, kind: str, call: Call, detail: str) -> None:
        self.findings.append(Finding(kind, f"{call.worker}: {call.wish}: {detail}"))

    def _answered(self, call: Call, answer: Answer) -> None:
        wish = call.wish
        match wish.what:
            case "pick" | "reserve":
                self._claimed(call, answer)
            case "spend" | "release":
                how, end = self.replay.ends.get(answer.reservation_id >> ID_BITS, ("reserved", None))
                if end is None or how != PAST[wish.what] or end.key != wish.key:
                    self._find("acknowledged but absent", call, f"the log says {how}, by {end and end.key}")
            case "block" | "sync":
                event = self._event(answer.position)
                if wish.number not in (event.get("number"), event.get("block")):
                    self._find("acknowledged but absent", call, f"position {answer.position} is {event}")
            case "expire":
                self._swept(call, answer.expired)

    def _swept(self, call: Call, expired: list[int]) -> None:
        """All of them have expired; with a key, in one sweep that bears it."""
        ends = [self.replay.ends.get(each >> ID_BITS, ("reserved", None)) for each in expired]
        for each, (how, _) in zip(expired, ends, strict=True):
            if how != "expired":
                self._find("acknowledged but absent", call, f"{each} has not expired")
        if expired and call.wish.key is not None:
            keyed = self.replay.by_key.get(call.wish.key)
            told = [None if row is None else row.position for _, row in ends]
            last = 0 if keyed is None else keyed.position
            if told != list(range(last - len(expired) + 1, last + 1)):
                self._find("acknowledged but absent", call, f"the key is at {last}, the expiries are at {told}")

    def _claimed(self, call: Call, answer: Answer) -> None:
        wish = call.wish
        row = self._by_position.get(answer.reservation_id >> ID_BITS)
        told = self._told[answer.reservation_id]
        told.add((wish.job, wish.key))
        if len(told) > 1:
            self._find("id twice", call, f"{answer.reservation_id} was given to {told}")
        if row is None or row.reservation_id != answer.reservation_id:
            self._find("acknowledged but absent", call, f"no reservation has the id {answer.reservation_id}")
            return
        event = row.event
        blocks = [n for first, last in event.get("blocks", []) for n in range(first, last + 1)]
        if (row.job_uuid, row.key) != (wish.job, wish.key) or blocks != answer.blocks:
            self._find("acknowledged but absent", call, f"position {row.position} is {row}")
        if event["amount_ns"] != round(wish.amount * 10**9) or row.stream.partition("\t")[0] != answer.miner:
            self._find("acknowledged but absent", call, f"position {row.position} is {row}")

    def _refused(self, call: Call, refused: str) -> None:
        wish = call.wish
        how, _ = self.replay.ends.get(wish.reservation_id >> ID_BITS, ("reserved", None))
        if refused in ENDS and how != ENDS[refused]:
            self._find("false refusal", call, f"{refused}, but the log says {how}")
        if refused == "ReservationNotFound":
            self._find("acknowledged but absent", call, "the reservation is not found")
        if refused == "JobAlreadySpent" and not self._is_spent(wish):
            self._find("false refusal", call, f"{refused}, but no reservation of the job is spent")
        if wish.alone and refused != "JobAlreadySpent" and self._is_done(wish):
            self._find("refused but done", call, refused)

    def _is_done(self, wish: Wish) -> bool:
        """Whether the log has what only this call could have put there."""
        if (wish.job, wish.key) in self._maybe_done:
            return False
        return wish.key in self.replay.by_key if wish.key is not None else bool(self.replay.by_job.get(str(wish.job)))

    def _is_spent(self, wish: Wish) -> bool:
        rows = self.replay.by_job.get(str(wish.job), [])
        return any(self.replay.ends.get(row.position, ("",))[0] == "spent" for row in rows)

    def _event(self, position: int) -> dict[str, object]:
        row = self._by_position.get(position)
        return {} if row is None else row.event
