"""What the log says: past-tense facts, one tagged union of frozen structs.

The tag is the stored name and outlives the class. A field that is added later has a default; a field's meaning
never changes. What stands beside the payload in its row (stream, job, …) is not repeated inside it.
"""

from __future__ import annotations

import msgspec

from .settings import RecordedSettings

SETTINGS_STREAM = "settings"
CHAIN_STREAM = "chain"
MANIFESTS_STREAM = "manifests"

Axon = tuple[str, int, int]
"""Where a miner listens: address, ip version, port."""
Run = tuple[int, int]
"""Consecutive blocks, first and last of them."""


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What all events share: a field that this release does not know is never passed over in silence.

    Events hold plain values and are in no cycle, so that the collector need not look at them (`gc`).
    """


class LedgerOpened(_Event, frozen=True, tag="ledger-opened"):
    """A validator's ledger began, under these settings; the first event, and the only one that names it."""

    validator_ss58: str
    settings: RecordedSettings


class SettingsChanged(_Event, frozen=True, tag="settings-changed"):
    """From here on these settings apply."""

    settings: RecordedSettings


class BlockRecorded(_Event, frozen=True, tag="block-recorded"):
    """A block and its metagraph, told as the difference to the block recorded just before it in this log.

    `registered` are miners new or moved, `deregistered` those gone; `staked` are validators' stakes in
    billionths, new or changed, `unstaked` those gone. `request` stands where the call had an idempotency key, on the
    last fact that it recorded: the digest of all that it asked to record.
    """

    number: int
    created_at_ns: int
    registered: dict[str, Axon] = {}
    deregistered: list[str] = []
    staked: dict[str, int] = {}
    unstaked: list[str] = []
    request: str = ""


class ManifestsRecorded(_Event, frozen=True, tag="manifests-recorded"):
    """A manifest sync, told as the difference to the sync recorded just before it in this log.

    `offered` has the whole `{executor_class: count}` of each miner that is new or differs, `missing_event` the miners
    that are gone. `request` as for a block.
    """

    block: int
    offered: dict[str, dict[str, int]] = {}
    absent: list[str] = []
    request: str = ""


class AllowanceReserved(_Event, frozen=True, tag="allowance-reserved"):
    """Blocks of the stream's account were set aside for one job.

    `axon` stands where a router claimed: the route as it was given. `decided_at_ns` is the clock that decided
    what was overdue, where it differs from the recorded time. `kept` says that the miner was chosen on an earlier
    position, lost the race to be next in the log, and was kept because it still qualified.
    """

    amount_ns: int
    blocks: list[Run]
    job_start_block: int
    expires_at_ns: int
    axon: Axon | None = None
    decided_at_ns: int | None = None
    kept: bool = False


class ReservationSpent(_Event, frozen=True, tag="reservation-spent"):
    """The job ran; its blocks are used up."""

    reservation_id: int


class ReservationReleased(_Event, frozen=True, tag="reservation-released"):
    """The job did not run; its blocks are free again."""

    reservation_id: int


class ExpiryRecorded(_Event, frozen=True, tag="reservation-expired"):
    """Nobody spoke for the reservation until after it was due; its blocks are free again.

    `swept` stands in the last expiry of a sweep that ended all that was overdue: how many the sweep ended, this one
    included. The expiries that a claim brings have none.
    """

    reservation_id: int
    swept: int = 0


Fact = LedgerOpened | SettingsChanged | BlockRecorded | ManifestsRecorded
Settlement = ReservationSpent | ReservationReleased | ExpiryRecorded
Event = Fact | AllowanceReserved | Settlement


def account_stream(miner_ss58: str, executor_class: str) -> str:
    """The name of an account's stream; a tab is not printable, so no two accounts share a name."""
    return f"{miner_ss58}\t{executor_class}"


def account_of(stream: str) -> tuple[str, str]:
    """The miner and executor class whose account the stream is."""
    miner_ss58, _, executor_class = stream.partition("\t")
    return miner_ss58, executor_class
