"""The judge: compares the stored log with the results of the calls and with the rows that the reader received."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec

from .diary import Call, Request, Result
from .replay import ID_BITS, Finding, Replay, Stored

STATUS_BY_REFUSAL = {
    "ReservationAlreadySpent": "spent",
    "ReservationAlreadyReleased": "released",
    "ReservationExpired": "expired",
}
TYPES_OF_REPORTS = {
    "exclude": "miner-excluded",
    "readmit": "miner-readmitted",
    "incident": "incident-reported",
    "elsewhere": "job-elsewhere-recorded",
    "ended": "job-elsewhere-ended",
}
STATUS_AFTER = {"spend": "spent", "release": "released"}

_received = msgspec.json.Decoder(
    tuple[int, str, int, int, str | None, str | None, int | None, int | None, bytes, bytes]
)


def judge(rows: list[Stored], calls: Iterable[Call], received: Path) -> list[Finding]:
    """Return everything that is wrong, in no particular order."""
    replay = Replay(rows)
    return [*replay.findings, *judge_calls(replay, calls), *_check_reader(rows, received)]


def judge_calls(replay: Replay, calls: Iterable[Call]) -> list[Finding]:
    """Return every difference between the log and the results of the calls."""
    made = list(calls)
    judge_of_calls = _CallJudge(replay, made)
    for call in made:
        judge_of_calls.check(call)
    return judge_of_calls.findings


def _check_reader(rows: list[Stored], received: Path) -> list[Finding]:
    """The reader must receive every row exactly once, in order, and as it is stored."""
    findings: list[Finding] = []
    lines = received.read_bytes().splitlines()
    for position, (stored, line) in enumerate(zip(rows, lines, strict=False), 1):
        row = Stored(*_received.decode(line))
        if row.position != position:
            findings.append(Finding("reader", f"received position {row.position} instead of {position}"))
        elif row != stored:
            findings.append(Finding("reader", f"position {position} was {row} when it was received, and is {stored}"))
    if len(lines) != len(rows):
        findings.append(Finding("reader", f"received {len(lines)} of {len(rows)} rows"))
    return findings


class _CallJudge:
    """Compares one call after the other with the log."""

    def __init__(self, replay: Replay, calls: list[Call]) -> None:
        self.replay = replay
        self.findings: list[Finding] = []
        # If several calls had one job or key, one of them may have been done and the others refused. So a refusal of
        # one of them proves nothing about the log.
        self._maybe_done = {
            (call.request.job, call.request.key)
            for call in calls
            if call.retried or (call.outcome and call.outcome.result)
        }
        self._by_position = {row.position: row for row in replay.rows}
        self._requests_by_id: dict[int, set[tuple[str | None, str | None]]] = defaultdict(set)

    def check(self, call: Call) -> None:
        """Compare one call with the log."""
        if call.outcome is None:
            self._find("unresolved", call, "its outcome is still unknown")
        elif call.outcome.broken is not None:
            self._find("broken", call, call.outcome.broken)
        elif call.outcome.result is not None:
            self._check_result(call, call.outcome.result)
        elif call.outcome.refused is not None:
            self._check_refusal(call, call.outcome.refused)

    def _find(self, kind: str, call: Call, detail: str) -> None:
        self.findings.append(Finding(kind, f"{call.worker}: {call.request}: {detail}"))

    def _check_result(self, call: Call, result: Result) -> None:
        request = call.request
        match request.operation:
            case "pick" | "reserve":
                self._check_claim(call, result)
            case "spend" | "release":
                status, row = self._status_of(result.reservation_id)
                if row is None or status != STATUS_AFTER[request.operation] or row.key != request.key:
                    self._find("acknowledged but absent", call, f"the log says {status}, by {row and row.key}")
            case "block" | "sync":
                event = self._event(result.position)
                if request.number not in (event.get("number"), event.get("block")):
                    self._find("acknowledged but absent", call, f"position {result.position} is {event}")
            case "exclude" | "readmit" | "incident" | "elsewhere" | "ended":
                self._check_report(call, result)
            case "expire":
                self._check_expiries(call, result.expired)

    def _check_expiries(self, call: Call, expired: list[int]) -> None:
        """All of them must be expired; with a key, by adjacent events of which the last has the key."""
        settlements = [self._status_of(each) for each in expired]
        for each, (status, _) in zip(expired, settlements, strict=True):
            if status != "expired":
                self._find("acknowledged but absent", call, f"{each} has not expired")
        if expired and call.request.key is not None:
            keyed = self.replay.by_key.get(call.request.key)
            positions = [None if row is None else row.position for _, row in settlements]
            last = 0 if keyed is None else keyed.position
            if positions != list(range(last - len(expired) + 1, last + 1)):
                self._find("acknowledged but absent", call, f"the key is at {last}, the expiries are at {positions}")

    def _check_report(self, call: Call, result: Result) -> None:
        """The row at the position is of the right kind, and about the miner or the job of the call."""
        request, event = call.request, self._event(result.position)
        about = ("miner_ss58", request.miner) if request.job is None else ("job_uuid", request.job)
        if event.get("type") != TYPES_OF_REPORTS[request.operation] or event.get(about[0]) != about[1]:
            self._find("acknowledged but absent", call, f"position {result.position} is {event}")

    def _check_claim(self, call: Call, result: Result) -> None:
        request = call.request
        row = self._by_position.get(result.reservation_id >> ID_BITS)
        requests = self._requests_by_id[result.reservation_id]
        requests.add((request.job, request.key))
        if len(requests) > 1:
            self._find("id twice", call, f"{result.reservation_id} was returned to {requests}")
        if row is None or row.reservation_id != result.reservation_id:
            self._find("acknowledged but absent", call, f"no reservation has the id {result.reservation_id}")
            return
        event = row.event
        blocks = [n for first, last in event.get("blocks", []) for n in range(first, last + 1)]
        if (row.job_uuid, row.key) != (request.job, request.key) or blocks != result.blocks:
            self._find("acknowledged but absent", call, f"position {row.position} is {row}")
        if event["amount_ns"] != round(request.amount * 10**9) or row.stream.partition("\t")[0] != result.miner:
            self._find("acknowledged but absent", call, f"position {row.position} is {row}")

    def _check_refusal(self, call: Call, refused: str) -> None:
        request = call.request
        status, _ = self._status_of(request.reservation_id)
        if refused in STATUS_BY_REFUSAL and status != STATUS_BY_REFUSAL[refused]:
            self._find("false refusal", call, f"{refused}, but the log says {status}")
        if refused == "ReservationNotFound":
            self._find("acknowledged but absent", call, "the reservation is not found")
        if refused == "JobAlreadySpent" and not self._is_spent(request):
            self._find("false refusal", call, f"{refused}, but no reservation of the job is spent")
        if request.alone and refused != "JobAlreadySpent" and self._is_done(request):
            self._find("refused but done", call, refused)

    def _status_of(self, reservation_id: int) -> tuple[str, Stored | None]:
        """Return the status of a reservation according to the log, and the row that settled it."""
        return self.replay.settlements.get(reservation_id >> ID_BITS, ("reserved", None))

    def _is_done(self, request: Request) -> bool:
        """Whether the log contains an event that only this call can have appended."""
        if (request.job, request.key) in self._maybe_done:
            return False
        if request.key is not None:
            return request.key in self.replay.by_key
        return bool(self.replay.by_job.get(str(request.job)))

    def _is_spent(self, request: Request) -> bool:
        rows = self.replay.by_job.get(str(request.job), [])
        return any(self.replay.settlements.get(row.position, ("",))[0] == "spent" for row in rows)

    def _event(self, position: int) -> dict[str, object]:
        row = self._by_position.get(position)
        return {} if row is None else row.event
