"""The oracle: judges a finished world by the diary and the rows of its log. It shares no rule with the product.

It decodes payloads as plain JSON, hashes rows by its own code, and replays the reservations in plain dicts.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec

from ledger import Row
from projections import Snapshot
from tests.simulation.diary import Call, Request
from tests.simulation.forgeries import rows_as_state
from tests.simulation.miner_facts import JudgedFacts, is_what_was_reported
from tests.simulation.world import World

SETTLEMENTS = {"reservation-spent": "spent", "reservation-released": "released", "reservation-expired": "expired"}
REFUSED_AS = {
    "ReservationAlreadySpent": "spent",
    "ReservationAlreadyReleased": "released",
    "ReservationExpired": "expired",
}


@dataclass
class Held:
    """A reservation in the log."""

    row: Row
    event: dict[str, Any]
    blocks: list[int]
    status: str = "reserved"
    settled_by: Row | None = None

    @property
    def number(self) -> int:
        """The reservation's id, worked out from the position and the hash."""
        return self.row.position << 20 | int.from_bytes(self.row.hash[:3], "big") >> 4


@dataclass
class Log:
    """The rows, replayed."""

    events: list[dict[str, Any]] = field(default_factory=list)
    held: dict[int, Held] = field(default_factory=dict)
    by_key: dict[str, Row] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)
    """The blocks that are recorded and not withdrawn."""
    margin_ns: int = 0
    minimum_wei: int = 0
    miner_facts: JudgedFacts = field(default_factory=JudgedFacts)


class Oracle:
    """Judges one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows = world.server.rows if world.judged_rows is None else world.judged_rows
        self.violations = list(world.violations)
        self.log = Log()

    def judge(self) -> list[str]:
        """Return what is wrong."""
        self._check_rows()
        self._replay()
        for call in self.world.calls:
            self._check_call(call)
        for request in self.world.operations.requests:
            self._check_repeats(request)
        self._check_attribution()
        self._check_states()
        for finding in self.world.audit_findings:
            self._say(f"the audit finds {finding}")
        return self.violations

    def _say(self, violation: str) -> None:
        self.violations.append(violation)

    def _check_rows(self) -> None:
        previous, versions, recorded_at_ns = bytes(32), Counter[str](), 0
        for position, row in enumerate(self.rows, 1):
            versions[row.stream] += 1
            if row.position != position or row.version != versions[row.stream]:
                self._say(f"row {position} has position {row.position} and version {row.version} of {row.stream!r}")
            if row.hash != _hash(previous, row):
                self._say(f"the hash of row {position} does not follow the row before it")
            if row.recorded_at_ns < recorded_at_ns:
                self._say(f"the recorded time of row {position} decreases")
            if row.key is not None and row.key in self.log.by_key:
                self._say(f"two rows have the key {row.key}")
            self.log.by_key[row.key or ""] = row
            previous, recorded_at_ns = row.hash, row.recorded_at_ns
        self.log.by_key.pop("", None)

    def _replay(self) -> None:
        taken: dict[str, dict[int, int]] = defaultdict(dict)
        jobs: dict[str, Held] = {}
        for row in self.rows:
            event = msgspec.json.decode(row.payload)
            self.log.events.append(event)
            if event["type"] == "allowance-reserved":
                self._reserve(row, event, taken[row.stream], jobs)
            elif event["type"] in SETTLEMENTS:
                self._settle(row, event, taken[row.stream])
            elif event["type"] in ("ledger-opened", "settings-changed"):
                self.log.margin_ns = event["settings"]["reservation_margin_ns"]
                self.log.minimum_wei = event["settings"].get("minimum_collateral_wei", 0)
            elif self.log.miner_facts.replay(row, event, _decided_at_ns(row, event)):
                self._check_reported(row, event)
            else:
                self._replay_fact(row, event)
        self.violations += self.log.miner_facts.problems

    def _check_reported(self, row: Row, event: dict[str, Any]) -> None:
        requests = [each for each in self.world.operations.requests if each.report is not None]
        same = [each for each in requests if is_what_was_reported(event, row.stream, each)]
        self._check_requested(row, [each for each in same if row.key in (None, each.key)])

    def _replay_fact(self, row: Row, event: dict[str, Any]) -> None:
        if event["type"] == "block-recorded":
            if event["number"] in self.log.blocks:
                self._say(f"block {event['number']} is recorded again at {row.position}")
            self.log.blocks.add(event["number"])
        elif event["type"] == "block-withdrawn":
            number = event["number"]
            if number not in self.log.blocks:
                self._say(f"block {number} is withdrawn at {row.position}, but it is not recorded")
            self.log.blocks.discard(number)
            for held in self.log.held.values():
                if held.status in ("reserved", "spent") and not {number, number - 1}.isdisjoint(held.blocks):
                    self._say(f"block {number} is withdrawn at {row.position}, but {held.number} holds it")
        if "reason" in event:
            request = self.world.operations.requests[int(event["reason"].removeprefix("request ")) - 1]
            self._check_requested(row, [request])

    def _reserve(self, row: Row, event: dict[str, Any], taken: dict[int, int], jobs: dict[str, Held]) -> None:
        blocks = [block for first, last in event["blocks"] for block in range(first, last + 1)]
        held = self.log.held[row.position] = Held(row, event, blocks)
        due_at_ns = _decided_at_ns(row, event) + event["amount_ns"] + self.log.margin_ns
        if event["expires_at_ns"] != due_at_ns:
            self._say(f"the reservation at {row.position} is due at {event['expires_at_ns']}, not {due_at_ns}")
        for block in blocks:
            if not {block, block + 1} <= self.log.blocks:
                self._say(f"the reservation at {row.position} has block {block}, which is not finalized")
            if block in taken:
                self._say(
                    f"block {block} of {row.stream!r} is in the reservations at {taken[block]} and {row.position}"
                )
            taken[block] = row.position
        if event.get("axon") is not None:
            self.log.miner_facts.claim(row, _decided_at_ns(row, event), self.log.minimum_wei)
        if row.job_uuid is not None:
            before = jobs.get(row.job_uuid)
            if before is not None and before.status in ("reserved", "spent"):
                self._say(f"{row.job_uuid} is {before.status} at {before.row.position} and reserved at {row.position}")
            if row.attempt != (1 if before is None else (before.row.attempt or 0) + 1):
                self._say(f"attempt {row.attempt} of {row.job_uuid} at {row.position} does not follow")
            jobs[row.job_uuid] = held

    def _settle(self, row: Row, event: dict[str, Any], taken: dict[int, int]) -> None:
        held = self.log.held.get(row.settles or 0)
        if held is None or held.status != "reserved" or held.number != event["reservation_id"]:
            self._say(f"row {row.position} settles no active reservation")
            return
        held.status, held.settled_by = SETTLEMENTS[event["type"]], row
        if held.status == "expired" and _decided_at_ns(row, event) < held.event["expires_at_ns"]:
            self._say(f"the reservation at {held.row.position} expired at {row.position} before it was due")
        if held.status != "spent":
            for block in held.blocks:
                taken.pop(block, None)

    def _check_call(self, call: Call) -> None:
        if call.outcome == "started":
            self._say(f"{call.request.kind} never ended")
        elif call.outcome == "ok":
            kind = call.request.kind
            if kind in ("pick", "pick again"):
                self._check_route(call)
            elif kind in ("reserve", "spend", "release", "reservation"):
                self._check_reservation(call)
            elif kind == "expire_due":
                for each in call.result:
                    self._check_held(call, each.reservation_id, "expired")
            elif kind.startswith("withdraw"):
                self._check_correction(call)
            elif kind == "change_settings":
                self._check_changed_settings(call)
            elif call.request.facts:
                self._check_facts(call)
            elif call.request.report is not None:
                self._check_report(call)
        elif call.outcome == "refused":
            self._check_refusal(call)

    def _check_route(self, call: Call) -> None:
        route = call.result
        held = self._check_held(call, route.allowance_reservation_id)
        if held is None:
            return
        told = (route.miner.hotkey_ss58, route.allowance_blocks, route.allowance_job_value)
        stored = (held.row.stream.partition("\t")[0], held.blocks, held.event["amount_ns"] / 10**9)
        if told != stored or held.row.job_uuid != call.request.job_uuid:
            self._say(f"a pick returned {told}, the log has {stored} for {held.row.job_uuid}")

    def _check_reservation(self, call: Call) -> None:
        told = call.result
        status = {"spend": "spent", "release": "released"}.get(call.request.kind)
        held = self._check_held(call, told.reservation_id, status)
        if held is None:
            return
        content = (f"{told.miner_ss58}\t{told.executor_class}", told.blocks, told.allowance_seconds, told.job_uuid)
        stored = (held.row.stream, held.blocks, held.event["amount_ns"] / 10**9, held.row.job_uuid)
        if content != stored:
            self._say(f"{call.request.kind} returned {content}, the log has {stored}")
        if told.status not in ("reserved", held.status):
            self._say(f"{call.request.kind} returned the status {told.status}, the log says {held.status}")
        expected, first = call.request.expected_version, self._first_version(held)
        if call.request.kind == "reserve" and expected is not None and not first <= expected < held.row.version:
            self._say(f"reserve at version {expected} returned the reservation at version {first + 1} of its stream")
        if call.request.kind == "reserve" and held.event["amount_ns"] != call.request.amount_ns:
            self._say(
                f"{call.request.kind} of {call.request.amount_ns} returned the reservation at {held.row.position}"
            )

    def _first_version(self, held: Held) -> int:
        """Return the lowest version at which the claim can have been decided: it appends its expiries before it."""
        row = held.row
        first = row.version - 1
        while first and self._is_expiry(self.rows[row.position - 2 - (row.version - 1 - first)], row.stream):
            first -= 1
        return first

    def _is_expiry(self, row: Row, stream: str) -> bool:
        return row.stream == stream and self.log.events[row.position - 1]["type"] == "reservation-expired"

    def _check_held(self, call: Call, number: int, status: str | None = None) -> Held | None:
        """Return the reservation that a caller was told of; it was in the log when the call ended."""
        held = self.log.held.get(number >> 20)
        if held is None or held.number != number:
            self._say(f"{call.request.kind} returned the reservation {number}, which is not in the log")
            return None
        last = held.row if status is None else held.settled_by
        if last is None or (status is not None and held.status != status):
            self._say(f"{call.request.kind} returned {number} as {status}, the log says {held.status}")
        elif last.position > call.head_at_end:
            self._say(f"{call.request.kind} was acknowledged before row {last.position} was in the log")
        return held

    def _check_facts(self, call: Call) -> None:
        for position, (kind, number, created_at_ns) in zip(call.result, call.request.facts, strict=True):
            event = self.log.events[position - 1] if position <= len(self.rows) else {"type": "nothing"}
            stored = (event["type"], event.get("number", event.get("block")), event.get("created_at_ns"))
            if stored != (kind, number, created_at_ns) or position > call.head_at_end:
                self._say(f"{call.request.kind} {number} was acknowledged at {position}, where the log has {stored}")

    def _check_report(self, call: Call) -> None:
        """The row at the position that a caller was told has its report, of this call or of an earlier one."""
        position = call.result
        row = self.rows[position - 1] if 0 < position <= call.head_at_end else None
        if row is None:
            self._say(f"{call.request.kind} was acknowledged at {position}, before it was in the log")
        elif not is_what_was_reported(self.log.events[position - 1], row.stream, call.request):
            self._say(f"{call.request} was acknowledged at {position}, where the log has {row}")

    def _check_correction(self, call: Call) -> None:
        kind = {"withdraw_block": "block-withdrawn", "withdraw_manifests": "manifests-withdrawn"}[call.request.kind]
        if call.result > call.head_at_end or self.log.events[call.result - 1]["type"] != kind:
            self._say(f"{call.request.kind} was acknowledged at {call.result}, where the log has no {kind}")

    def _check_changed_settings(self, call: Call) -> None:
        told = msgspec.to_builtins(call.result.to_recorded())
        if all(event.get("settings") != told for event in self.log.events[: call.head_at_end]):
            self._say(f"change_settings returned {told}, which the log does not have")

    def _check_refusal(self, call: Call) -> None:
        error, kind = call.error, call.label
        status = REFUSED_AS.get(kind)
        if status is not None:
            self._check_held(call, error.reservation_id, status)  # type: ignore[union-attr]
        elif kind == "StreamVersionConflict":
            expected, actual = error.expected_version, error.actual_version  # type: ignore[union-attr]
            if expected != call.request.expected_version or actual == expected:
                self._say(f"reserve at version {call.request.expected_version} raised {error!r}")
        elif kind == "JobAlreadySpent":
            self._check_held(call, error.reservation_id, "spent")  # type: ignore[union-attr]
        elif kind == "ReservationNotFound":
            held = self.log.held.get(call.request.reservation_id >> 20)
            if held is not None and held.number == call.request.reservation_id:
                self._say(f"{call.request.kind} of a reservation in the log raised {error!r}")
        elif kind in (
            "CorruptLedger",
            "SealConflict",
            "LogWentBack",
            "IdempotencyConflict",
            "NewerLedger",
            "InvalidInput",
            "ReadOnlyLedger",
        ):
            if kind == "InvalidInput" and call.request.kind == "exclude_miner":
                return  # Its end had passed when it was decided.
            self._say(f"{call.request.kind} raised {error!r}")

    def _check_attribution(self) -> None:
        """Every row was requested by a call that was not refused, and by no more calls than there are rows."""
        by_amount = {request.amount_ns: request for request in self._requests("pick", "reserve")}
        counts: Counter[int] = Counter()
        for held in self.log.held.values():
            request = by_amount.get(held.event["amount_ns"])
            if request is None:
                self._say(f"nobody requested the reservation at {held.row.position}")
                continue
            counts[request.number] += 1
            self._check_requested(held.row, self._same_job(request))
        for request in by_amount.values():
            self._check_count(request, counts[request.number])
        self._check_settlements()
        self._check_recorded_facts()

    def _same_job(self, request: Request) -> list[Request]:
        if request.kind != "pick":
            return [request]
        return [each for each in self._requests("pick", "pick again") if each.job_uuid == request.job_uuid]

    def _check_requested(self, row: Row, requests: list[Request]) -> None:
        if not any(each.may_have_happened for each in requests):
            told = [call.label for each in requests for call in each.calls]
            self._say(f"row {row.position} is in the log, but its callers were told {told}")

    def _check_count(self, request: Request, rows: int) -> None:
        tries = sum(call.outcome != "refused" for each in self._same_job(request) for call in each.calls)
        has_key = request.kind == "reserve" and request.key is not None and request.key.startswith("key-")
        most = min(tries, 1) if has_key else tries
        if rows > most:
            self._say(
                f"request {request.number} ({request.kind}) has {rows} rows after {tries} calls that may have worked"
            )

    def _check_repeats(self, request: Request) -> None:
        """Every call with one key gets the first outcome."""
        if request.key is None or request.kind in ("pick", "pick again", "expire_due"):
            return
        # A call that has nothing to do, such as a repeated correction, does not store its key.
        stored = self.log.by_key.get(request.key)
        least = len(self.rows) if stored is None else stored.position
        told = [call.result for call in request.calls if call.outcome == "ok" and call.head_at_end >= least]
        names = {repr(getattr(result, "reservation_id", result)) for result in told}
        if len(names) > 1 and request.key.startswith("key-"):
            self._say(f"{request.kind} with the key {request.key} returned {names}")
        if request.key in self.log.by_key and request.calls[-1].label in (*REFUSED_AS, "ReservationNotFound"):
            self._say(f"{request.kind} is stored under {request.key}, but was told {request.calls[-1].label}")

    def _check_settlements(self) -> None:
        requests: dict[int, list[Request]] = defaultdict(list)
        for request in self._requests("spend", "release"):
            requests[request.reservation_id].append(request)
        for held in self.log.held.values():
            row = held.settled_by
            kind = {"spent": "spend", "released": "release"}.get(held.status)
            if row is None or kind is None:
                continue
            of_kind = [each for each in requests[held.number] if each.kind == kind]
            self._check_requested(row, [each for each in of_kind if row.key in (None, each.key)])
            told = [each for each in of_kind if any(call.outcome == "ok" for call in each.calls)]
            if len(told) > 1:
                self._say(f"{len(told)} requests were told that they {held.status} {held.number}")

    def _check_recorded_facts(self) -> None:
        requested: dict[tuple[str, Any, Any], bool] = defaultdict(bool)
        for request in self.world.operations.requests:
            for index, fact in enumerate(request.facts):
                # Of a refused call the facts before the refused one are recorded.
                partly = any(index < getattr(call.error, "fact_index", 0) for call in request.calls)
                requested[fact] |= request.may_have_happened or partly
        for row, event in zip(self.rows, self.log.events, strict=True):
            if event["type"] in ("block-recorded", "manifests-recorded"):
                recorded = (event["type"], event.get("number", event.get("block")), event.get("created_at_ns"))
                if not requested[recorded]:
                    self._say(f"row {row.position} records {recorded}, which nobody was told")

    def _check_states(self) -> None:
        folded: dict[int, Snapshot] = {}
        for least_position, state in self.world.live_states:
            at = state.position
            folded[at] = folded.get(at) or rows_as_state(self.rows[:at])
            if state != folded[at] or at < least_position:
                self._say(f"a process decides on a state at {at} that is not the log's at {least_position} or later")
        self._check_settings()
        newest = max(self.log.blocks, default=None)
        if self.world.final_newest != newest:
            self._say(f"the newest block is {self.world.final_newest}, but by the log it is {newest}")

    def _check_settings(self) -> None:
        recorded = [event["settings"] for event in self.log.events if "settings" in event]
        now = self.world.final_settings
        if now is not None and msgspec.to_builtins(now.to_recorded()) != recorded[-1]:
            self._say("the settings in force are not those recorded last")
        for process in self.world.incarnations:
            told = [call for call in self.world.calls if call.process is process and call.outcome == "ok"]
            if told and process.settings is not None:
                # Opening leaves the tie-break as it is recorded.
                given = msgspec.to_builtins(process.settings.to_recorded()) | {"tie_break": None}
                if given not in [each | {"tie_break": None} for each in recorded]:
                    self._say(f"process {process.number} opened with settings that were never recorded")

    def _requests(self, *kinds: str) -> list[Request]:
        return [request for request in self.world.operations.requests if request.kind in kinds]


def _decided_at_ns(row: Row, event: dict[str, Any]) -> int:
    decided: int | None = event.get("decided_at_ns")
    return row.recorded_at_ns if decided is None else decided


def _hash(previous: bytes, row: Row) -> bytes:
    """Hash a row as the documentation of the format says."""
    numbers = (row.position, row.version, row.recorded_at_ns, row.attempt or 0, row.settles or 0)
    digest = sha256(previous + struct.pack(">qqqqq", *numbers))
    for text in (row.stream, row.key, row.job_uuid):
        stored = None if text is None else text.encode()
        digest.update(struct.pack(">i", -1) if stored is None else struct.pack(">i", len(stored)) + stored)
    digest.update(struct.pack(">i", len(row.payload)) + row.payload)
    return digest.digest()
