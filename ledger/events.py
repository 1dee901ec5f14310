"""The events of the log: past-tense facts, one tagged union of frozen structs.

The tag is the stored name and outlives the class. A field that is added later has a default, and the meaning of a
field never changes, so that every log ever written stays readable. The payload does not repeat the other columns of
its row (stream, job, …).
"""

from __future__ import annotations

import msgspec

from .settings import RecordedSettings

SETTINGS_STREAM = "settings"
CHAIN_STREAM = "chain"
MANIFESTS_STREAM = "manifests"
SEALS_STREAM = "seals"
EXCLUSIONS_STREAM = "exclusions"
COLLATERAL_STREAM = "collateral"
INCIDENTS_STREAM = "incidents"
ELSEWHERE_STREAM = "jobs-elsewhere"
"""The ends of jobs elsewhere that the log does not know; those of an account are in `elsewhere_stream`."""
FACT_STREAMS = (SETTINGS_STREAM, CHAIN_STREAM, MANIFESTS_STREAM)
"""The streams of the facts and settings, on which every claim is decided beside its account's stream."""

INCIDENT_KINDS = ("rejected", "failed", "horde_failed")
"""The miner refused the job; the job failed on it; or it failed, and others found the miner at fault. Source:
ComputeHorde's validator, which counts the three alike."""

MOST_EVENTS_SINCE_CHOICE = 10_000
"""How far before a claim the position may be at which its miner was chosen (`AllowanceReserved.chosen_at`)."""

Axon = tuple[str, int, int]
"""The network address of a miner: address, ip version (4 or 6), port."""
Run = tuple[int, int]
"""Consecutive blocks: the first and the last, both included."""


class _Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The base of all events.

    `decided_at_ns` is the reading of the clock by which the event was decided; None if it equals the recorded time.
    They differ while the recorded time, which never decreases, is ahead of the clock.

    Unknown fields are refused: an older release that skipped a newer field would fold the event wrongly in silence.
    Events hold plain values and form no cycles, so the garbage collector does not track them (`gc=False`).
    """

    decided_at_ns: int | None = None


class LedgerOpened(_Event, frozen=True, tag="ledger-opened"):
    """A ledger was created with these settings; the first event, and the only one that names the validator."""

    validator_ss58: str
    settings: RecordedSettings


class SettingsChanged(_Event, frozen=True, tag="settings-changed"):
    """These settings apply to everything that is finalized or claimed after this event.

    If the call had an idempotency key, `request` is the digest of the values that it named.
    """

    settings: RecordedSettings
    request: str = ""


class BlockRecorded(_Event, frozen=True, tag="block-recorded"):
    """A block was recorded; its metagraph is stored as the difference to the block recorded just before it in this log.

    `registered` has the miners that are new or have a new axon, `deregistered` the ones that left. `staked` has the
    new or changed stakes by validator, in billionths, `unstaked` the validators that left. If the call had an
    idempotency key, the last fact that it recorded carries `request`, the digest of all facts in the call.
    `block_hash` is the chain's hash of the block, 64 lower-case hexadecimal digits; empty if it was not given.
    """

    number: int
    created_at_ns: int
    registered: dict[str, Axon] = {}
    deregistered: list[str] = []
    staked: dict[str, int] = {}
    unstaked: list[str] = []
    request: str = ""
    block_hash: str = ""


class ManifestsRecorded(_Event, frozen=True, tag="manifests-recorded"):
    """A manifest sync was recorded; it is stored as the difference to the sync recorded just before it in this log.

    `offered` has the complete `{executor_class: count}` of each miner that is new or changed, `absent` the miners
    that are no longer named. `request` has the same meaning as in `BlockRecorded`.

    A sync need not cover every miner that an earlier sync named. `uncovered` has the known miners that this sync does
    not cover although the sync recorded just before it did; `covered` those that it covers although that one did not.
    So syncs that were recorded before these fields existed cover all miners.
    """

    block: int
    offered: dict[str, dict[str, int]] = {}
    absent: list[str] = []
    request: str = ""
    uncovered: list[str] = []
    covered: list[str] = []


class BlockWithdrawn(_Event, frozen=True, tag="block-withdrawn"):
    """A block was recorded by mistake; from here on it counts as never recorded.

    The block and its predecessor are then no longer finalized. `returns_to` is the predecessor if it is recorded, else
    the newest block that remains, else 0. The other fields give the metagraph of `returns_to` as the difference to the
    metagraph of the last event that has one, as in `BlockRecorded`; the next difference is to that of `returns_to`, or
    to an empty one.
    """

    number: int
    reason: str
    returns_to: int = 0
    registered: dict[str, Axon] = {}
    deregistered: list[str] = []
    staked: dict[str, int] = {}
    unstaked: list[str] = []


class ManifestsWithdrawn(_Event, frozen=True, tag="manifests-withdrawn"):
    """A manifest sync was recorded by mistake; it counts as never recorded for blocks finalized from here on.

    `offered` and `absent` give the manifests of the highest sync that remains, as the difference to those of the last
    event that has manifests. `counts` has, for each account that the withdrawal changes, by stream, its executors as
    steps (first block, count); `invalidated_below` its first block that is not invalidated, if that changes.
    """

    block: int
    reason: str
    offered: dict[str, dict[str, int]] = {}
    absent: list[str] = []
    counts: dict[str, list[tuple[int, int]]] = {}
    invalidated_below: dict[str, int] = {}


class StateSealed(_Event, frozen=True, tag="state-sealed"):
    """The state at `position`, which is below the event's own, has this digest.

    `version` is that of the canonical encoding and the folding rules; `digest` is in hexadecimal digits. A snapshot
    counts only if the log has its seal.
    """

    position: int
    version: int
    digest: str


class AllowanceReserved(_Event, frozen=True, tag="allowance-reserved"):
    """Blocks of the stream's account were reserved for one job.

    `axon` is the miner's address as the router returned it; None if no router made the claim. `chosen_at` is the
    position whose state the router's choice saw; None if that is directly before the claim and the expiries appended
    with it. Earlier releases wrote no `chosen_at` but `kept`, which is True if the router chose the miner at an earlier
    position, which nothing names, and stayed on it although another one ranked first by then. `due_by_clock` is True
    if the due time counts from `decided_at_ns`; earlier releases counted it from the recorded time, and never set it.
    `imported` is True if another system had made the reservation, and this ledger took it over as it was, with its due
    time; `reserved_at_ns` is then the time at which that system says it was made.
    """

    amount_ns: int
    blocks: list[Run]
    job_start_block: int
    expires_at_ns: int
    axon: Axon | None = None
    kept: bool = False
    due_by_clock: bool = False
    chosen_at: int | None = None
    imported: bool = False
    reserved_at_ns: int | None = None


class ReservationSpent(_Event, frozen=True, tag="reservation-spent"):
    """The job ran; its blocks are used up for good."""

    reservation_id: int


class ReservationReleased(_Event, frozen=True, tag="reservation-released"):
    """The job did not run; its blocks are free again."""

    reservation_id: int


class ExpiryRecorded(_Event, frozen=True, tag="reservation-expired"):
    """The reservation was neither spent nor released before its due time passed; its blocks are free again.

    `swept` is set only in the last expiry of one `expire_due` call: the number of reservations that the call expired,
    this one included. A retry with the call's idempotency key finds its other expiries with it. An expiry that was
    appended by a claim has 0.
    """

    reservation_id: int
    swept: int = 0


class MinerExcluded(_Event, frozen=True, tag="miner-excluded"):
    """A router must not choose the miner, before `until_ns`; without it, until the miner is readmitted."""

    miner_ss58: str
    reason: str
    until_ns: int | None = None


class MinerReadmitted(_Event, frozen=True, tag="miner-readmitted"):
    """The exclusion of the miner has ended."""

    miner_ss58: str
    reason: str


class CollateralRecorded(_Event, frozen=True, tag="collateral-recorded"):
    """These miners have this collateral, in wei; only those whose amount differs from the one recorded before.

    An amount may need more than 64 bits. If the call had an idempotency key, `request` is the digest of its amounts.
    """

    changed: dict[str, int]
    request: str = ""


class JobElsewhereRecorded(_Event, frozen=True, tag="job-elsewhere-recorded"):
    """A job of another validator runs on the stream's account, according to a receipt.

    It counts as running from `started_at_ns` for `ttl_ns`. `ended` is True if its end was recorded before.
    """

    job_uuid: str
    started_at_ns: int
    ttl_ns: int
    ended: bool = False


class JobElsewhereEnded(_Event, frozen=True, tag="job-elsewhere-ended"):
    """The job of another validator has ended, for good, even if the log does not know it yet."""

    job_uuid: str


class IncidentReported(_Event, frozen=True, tag="incident-reported"):
    """A job went wrong on a miner; `kind` is one of `INCIDENT_KINDS`."""

    miner_ss58: str
    executor_class: str
    kind: str
    job_uuid: str


Correction = BlockWithdrawn | ManifestsWithdrawn
Fact = LedgerOpened | SettingsChanged | BlockRecorded | ManifestsRecorded | Correction
MinerFact = (
    MinerExcluded | MinerReadmitted | CollateralRecorded | JobElsewhereRecorded | JobElsewhereEnded | IncidentReported
)
"""A fact about miners that a router heeds beside their allowance."""
Settlement = ReservationSpent | ReservationReleased | ExpiryRecorded
Event = Fact | MinerFact | AllowanceReserved | Settlement | StateSealed


def account_stream(miner_ss58: str, executor_class: str) -> str:
    """Return the name of an account's stream; names never contain a tab, so no two accounts share a stream."""
    return f"{miner_ss58}\t{executor_class}"


def elsewhere_stream(account_stream: str) -> str:
    """Return the stream of the jobs elsewhere of an account; no account's stream begins like that."""
    return f"{ELSEWHERE_STREAM}\t{account_stream}"


def account_stream_of(elsewhere: str) -> str:
    """Return the account's stream that a stream of jobs elsewhere belongs to; empty for `ELSEWHERE_STREAM` itself."""
    return elsewhere.partition("\t")[2]


def decided_at_ns(recorded_at_ns: int, event: Event) -> int:
    """Return the reading of the clock by which an event was decided, given its recorded time."""
    return recorded_at_ns if event.decided_at_ns is None else event.decided_at_ns


def account_of(stream: str) -> tuple[str, str]:
    """Return the miner and the executor class of an account's stream."""
    miner_ss58, _, executor_class = stream.partition("\t")
    return miner_ss58, executor_class
