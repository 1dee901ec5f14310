"""A replay of the log that shares no code with the product: rows are tuples, and payloads are plain JSON.

It is slow on purpose: a dictionary entry for each taken block, and loops over everything at each step. Its `findings`
say what is wrong with the log.
"""

from __future__ import annotations

import json
from collections import defaultdict
from hashlib import sha256
from struct import pack
from typing import Any, NamedTuple

NANOSECONDS = 10**9
ID_BITS = 20


class Stored(NamedTuple):
    """A row of the events table, without its ledger."""

    position: int
    stream: str
    version: int
    recorded_at_ns: int
    key: str | None
    job_uuid: str | None
    attempt: int | None
    settles: int | None
    payload: bytes
    hash: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The decoded payload."""
        event: dict[str, Any] = json.loads(self.payload)
        return event

    @property
    def reservation_id(self) -> int:
        """The id of the reservation that the row makes: its position, then the highest bits of its hash."""
        return self.position << ID_BITS | int.from_bytes(self.hash, "big") >> 256 - ID_BITS


class Finding(NamedTuple):
    """One thing that is wrong: a kind, which tests compare, and the details."""

    kind: str
    detail: str


class Replay:
    """Folds the rows in order, and checks each against the rows before it."""

    def __init__(self, rows: list[Stored]) -> None:
        self.rows = rows
        self.findings: list[Finding] = []
        self.settlements: dict[int, tuple[str, Stored]] = {}
        """By the position of a reservation: how it was settled, and by which row."""
        self.by_key: dict[str, Stored] = {}
        self.by_job: dict[str, list[Stored]] = defaultdict(list)
        self._hash = bytes(32)
        self._versions: dict[str, int] = defaultdict(int)
        self._active: dict[int, Stored] = {}
        self._jobs: dict[str, int] = {}
        self._taken: dict[str, dict[int, int]] = defaultdict(dict)
        self._facts = _Facts()
        self._excluded: set[str] = set()
        self._reported: dict[tuple[str, str | None, str], int] = {}
        for expected, row in enumerate(rows, 1):
            self._check_row(expected, row)
            self._fold(row)

    def find(self, kind: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, detail))

    def _check_row(self, expected: int, row: Stored) -> None:
        if row.position != expected:
            self.find("positions", f"position {row.position} instead of {expected}")
        self._versions[row.stream] += 1
        if row.version != self._versions[row.stream]:
            self.find("versions", f"{row.stream!r}: {row.version} instead of {self._versions[row.stream]}")
        if row.hash != chained(self._hash, row):
            self.find("hash chain", f"position {row.position} does not follow the row before it")
        self._hash = row.hash
        if row.key is not None:
            if row.key in self.by_key:
                self.find("key twice", f"{row.key} at {self.by_key[row.key].position} and {row.position}")
            self.by_key.setdefault(row.key, row)

    def _fold(self, row: Stored) -> None:
        event = row.event
        match event["type"]:
            case "allowance-reserved":
                self._reserve(row, event)
            case "reservation-spent" | "reservation-released" | "reservation-expired":
                self._settle(row, event["type"].removeprefix("reservation-"))
            case "block-recorded":
                self._facts.block(event)
            case "manifests-recorded":
                self._facts.sync(event)
            case "ledger-opened" | "settings-changed":
                self._facts.settings = event["settings"]
            case "miner-excluded":
                self._excluded.add(event["miner_ss58"])
            case "miner-readmitted":
                if event["miner_ss58"] not in self._excluded:
                    self.find("readmitted without an exclusion", f"{event['miner_ss58']} at {row.position}")
                self._excluded.discard(event["miner_ss58"])
            case "job-elsewhere-recorded" | "job-elsewhere-ended" | "incident-reported":
                self._report_once(row, event)

    def _report_once(self, row: Stored, event: dict[str, Any]) -> None:
        about = event["type"], event.get("miner_ss58"), event["job_uuid"]
        if about in self._reported:
            self.find("reported twice", f"{about} at {self._reported[about]} and {row.position}")
        self._reported[about] = row.position
        ended = ("job-elsewhere-ended", None, event["job_uuid"]) in self._reported
        if event["type"] == "job-elsewhere-recorded" and event.get("ended", False) != ended:
            self.find("wrong end", f"the job elsewhere at {row.position}")

    def _reserve(self, row: Stored, event: dict[str, Any]) -> None:
        taken, granted_sum_ns = self._taken[row.stream], 0
        for block in (block for first, last in event["blocks"] for block in range(first, last + 1)):
            if block in taken:
                self.find("block taken twice", f"{row.stream!r} block {block}: by {taken[block]} and {row.position}")
            taken[block] = row.position
            if block < self._facts.floors[row.stream]:
                self.find("invalidated block claimed", f"{row.stream!r} block {block} at {row.position}")
            granted_ns = self._facts.granted_ns(row.stream, block)
            if granted_ns == 0:
                self.find("block without a grant", f"{row.stream!r} block {block} at {row.position}")
            granted_sum_ns += granted_ns
        if granted_sum_ns < event["amount_ns"]:
            self.find("underpaid", f"position {row.position}: {granted_sum_ns} ns for {event['amount_ns']} ns")
        if event.get("axon") is not None and row.stream.partition("\t")[0] in self._excluded:
            self.find("excluded miner claimed", f"position {row.position}")
        self._active[row.position] = row
        if row.job_uuid is not None:
            if row.job_uuid in self._jobs:
                self.find("job twice", f"{row.job_uuid} at {self._jobs[row.job_uuid]} and {row.position}")
            self._jobs[row.job_uuid] = row.position
            self.by_job[row.job_uuid].append(row)

    def _settle(self, row: Stored, how: str) -> None:
        position = row.settles or 0
        reserved = self._active.pop(position, None)
        if reserved is None or reserved.stream != row.stream:
            self.find("settled twice", f"position {row.position} settles {position}, which is not active")
            return
        self.settlements[position] = (how, row)
        if reserved.job_uuid is not None and self._jobs.get(reserved.job_uuid) == position:
            del self._jobs[reserved.job_uuid]
        if how != "spent":
            taken = self._taken[row.stream]
            for block in [block for block, by in taken.items() if by == position]:
                del taken[block]


class _Facts:
    """The chain's facts: the grant of each block to each account, and the blocks that drops invalidated."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.floors: dict[str, int] = defaultdict(int)
        """By account: the block below which all blocks are invalidated."""
        self._axons: dict[str, Any] = {}
        self._stakes: dict[str, int] = {}
        self._blocks: dict[int, tuple[int, frozenset[str], dict[str, int]]] = {}
        self._manifests: dict[str, dict[str, int]] = {}
        self._syncs: dict[int, dict[str, int]] = {}
        self._granted: dict[int, dict[str, int]] = {}

    def granted_ns(self, account: str, block: int) -> int:
        """Return the grant of a block, fixed when it was finalized; 0 before that."""
        return self._granted.get(block, {}).get(account, 0)

    def block(self, event: dict[str, Any]) -> None:
        """Fold a block. Its event holds only the difference to the block before it in the log."""
        self._axons = _changed(self._axons, event.get("registered", {}), event.get("deregistered", []))
        self._stakes = _changed(self._stakes, event.get("staked", {}), event.get("unstaked", []))
        number = event["number"]
        self._blocks[number] = (event["created_at_ns"], frozenset(self._axons), self._stakes)
        for candidate in (number - 1, number):
            if candidate in self._blocks and candidate + 1 in self._blocks and candidate not in self._granted:
                self._granted[candidate] = self._grants(candidate)

    def sync(self, event: dict[str, Any]) -> None:
        """Fold a sync. Its event holds only the difference to the sync before it in the log."""
        block = event["block"]
        self._manifests = _changed(self._manifests, event.get("offered", {}), event.get("absent", []))
        counts = _counts(self._manifests)
        before = self._sync_at(block - 1)
        for account, count in before.items():
            if counts.get(account, 0) < count:
                self.floors[account] = max(self.floors[account], block)
        self._syncs[block] = counts

    def _sync_at(self, block: int) -> dict[str, int]:
        return self._syncs[max(each for each in self._syncs if each <= block)] if self._has_sync(block) else {}

    def _has_sync(self, block: int) -> bool:
        return any(each <= block for each in self._syncs)

    def _grants(self, number: int) -> dict[str, int]:
        created_at_ns, miners, stakes = self._blocks[number]
        duration_ns = self._blocks[number + 1][0] - created_at_ns
        multiplier = str(self.settings["allowance_multiplier"])
        numerator, _, denominator = multiplier.partition("/")
        ours = duration_ns * int(numerator) * stakes.get("validator-of-ours", 0)
        unit_ns = ours // (int(denominator or 1) * sum(stakes.values()))
        return {
            account: count * unit_ns
            for account, count in self._sync_at(number).items()
            if account.partition("\t")[0] in miners and count * unit_ns
        }


def chained(before: bytes, row: Stored) -> bytes:
    """Return the correct hash of a row, given the hash of the row before it."""
    numbers = pack(">qqqqq", row.position, row.version, row.recorded_at_ns, row.attempt or 0, row.settles or 0)
    texts = [None if text is None else text.encode() for text in (row.stream, row.key, row.job_uuid)]
    sized = [pack(">i", -1) if part is None else pack(">i", len(part)) + part for part in (*texts, row.payload)]
    return sha256(before + numbers + b"".join(sized)).digest()


def _counts(manifests: dict[str, dict[str, int]]) -> dict[str, int]:
    return {f"{miner}\t{each}": count for miner, offers in manifests.items() for each, count in offers.items()}


def _changed(last: dict[str, Any], changed: dict[str, Any], removed: list[str]) -> dict[str, Any]:
    return {key: value for key, value in {**last, **changed}.items() if key not in removed}
