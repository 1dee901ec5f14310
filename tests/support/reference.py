"""A reference model: the rules of allowance written a second time, as plainly as possible, to compare the product with.

The model stores lists of recorded facts and reservations, and loops over all of them for every query. It shares no code
with the product on purpose, and is neither fast nor clever. Amounts and instants are whole nanoseconds, and the time is
an argument. A refusal names the class of the error that the product raises.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

from .reference_miner_facts import Fact, MinerFacts
from .reference_reliability import draw, weight
from .refusal import Refused

SECOND_NS = 10**9
IMPLAUSIBLE_AFTER_BLOCKS = 100_000
IMPLAUSIBLE_SYNC_AFTER_BLOCKS = 7200
FEW = 10
"""Fewer miners or validators than this may all leave at once."""

Counts = dict[str, dict[str, int]]
"""`{miner: {executor_class: executors}}`."""

Account = tuple[str, str, str]
"""`(validator, miner, executor_class)`."""


def nanoseconds(seconds: float) -> int:
    """Convert seconds (or stake) to whole billionths: half-even, from the shortest decimal that denotes the float."""
    return int((Decimal(repr(seconds)).scaleb(9)).to_integral_value(ROUND_HALF_EVEN))


def seconds(amount_ns: int) -> float:
    """Convert nanoseconds to the nearest float of seconds."""
    return amount_ns / SECOND_NS


@dataclass(frozen=True)
class Rules:
    """The settings in public units, with their defaults. Source of the defaults: ComputeHorde's validator."""

    block_expiry_blocks: int = 722
    reservation_margin_seconds: float = 100.0
    longest_job_seconds: float = 3600.0
    long_block_seconds: float = 12.5
    long_block_counts_as_seconds: float = 12.0
    allowance_multiplier: Fraction = Fraction(1)
    executors_max_per_class: dict[str, int] = field(default_factory=dict)
    validation_leeway_lower_blocks: int = 15
    validation_leeway_upper_blocks: int = 0
    respect_executor_count: bool = True
    newest_block_max_age_seconds: float | None = None
    newest_manifests_max_age_blocks: int | None = None
    tie_break: str = "uuid_and_hash"
    minimum_collateral_wei: int = 0
    routing_order: str = "allowance"
    reliability_window_hours: float = 24.0
    reliability_soft_cutoff: float = -50.0
    reliability_separation: float = 5.0

    def capped(self, executor_class: str, count: int) -> int:
        """Return a count, limited to the configured maximum of the class."""
        if executor_class in self.executors_max_per_class:
            return min(count, self.executors_max_per_class[executor_class])
        return count

    def counted_ns(self, duration_ns: int) -> int:
        """Return the duration that counts for a grant: a long block counts as a fixed duration.

        Source: ComputeHorde's validator.
        """
        if duration_ns > nanoseconds(self.long_block_seconds):
            return nanoseconds(self.long_block_counts_as_seconds)
        return duration_ns


@dataclass(frozen=True)
class Axon:
    """A registered miner and its address."""

    hotkey: str
    address: str
    ip_version: int
    port: int


@dataclass(frozen=True)
class Block:
    """A recorded block; stakes are in billionths, the hash is in lower-case digits, empty if it was not given."""

    number: int
    created_at_ns: int
    axons: frozenset[Axon]
    stakes: dict[str, int]
    block_hash: str = ""

    def is_same(self, other: Block) -> bool:
        """Whether the content is the same; a hash that one of the two lacks makes no difference."""
        one, two = replace(self, block_hash=""), replace(other, block_hash="")
        return one == two and (self.block_hash == other.block_hash or "" in (self.block_hash, other.block_hash))


@dataclass(frozen=True)
class Sync:
    """The executors that miners offered at a block, as recorded, without the cap; it covers all but `uncovered`."""

    block: int
    counts: Counts
    uncovered: frozenset[str]
    rules: Rules
    """Those in force when the sync was recorded; they have the caps by which it is compared."""


@dataclass(frozen=True)
class Finalized:
    """The values that determine a block's grants, fixed when its end became known; counts are capped."""

    number: int
    duration_ns: int
    multiplier: Fraction
    counts: Counts
    stakes: dict[str, int]
    registered: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """A miner offered less of a class at `block`, which invalidates all its earlier blocks in that class."""

    block: int
    miner: str
    executor_class: str


@dataclass(frozen=True)
class Reservation:
    """Whole blocks of one of our accounts, reserved for one job."""

    reservation_id: int
    status: str
    miner: str
    executor_class: str
    job_uuid: str | None
    amount_ns: int
    blocks: tuple[int, ...]
    job_start_block: int
    reserved_at_ns: int
    expires_at_ns: int
    settled_at_ns: int | None
    axon: Axon | None

    def is_overdue(self, now_ns: int) -> bool:
        """Whether it is active and its due time has passed."""
        return self.status == "reserved" and now_ns >= self.expires_at_ns


@dataclass(frozen=True)
class Candidate:
    """A miner with enough free allowance, and the numbers that rank it."""

    hotkey: str
    available_ns: int
    total_ns: int
    earliest_block: int

    @property
    def share(self) -> int:
        """The available part of its total, in billionths, rounded down."""
        return self.available_ns * SECOND_NS // self.total_ns

    @property
    def order(self) -> tuple[int, int, int, str]:
        """The sort key: earliest block, then largest share, then largest amount, then name."""
        return (self.earliest_block, -self.share, -self.available_ns, self.hotkey)


@dataclass(frozen=True)
class RouteChoices:
    """The possible routes of a job: its active reservation, else any of the equally good `miners`.

    A router that nobody disturbs chooses `first`. `tried` has all candidates, the busy ones too, in the order in which
    the job tries them; `unfit` has why other miners with the amount are none.
    """

    active: Reservation | None
    miners: tuple[str, ...]
    amount_ns: int
    first: str
    tried: tuple[str, ...] = ()
    unfit: dict[str, str] = field(default_factory=dict)


class Ledger:
    """One validator's ledger: everything recorded; each query is computed from all of it."""

    def __init__(self, validator: str, rules: Rules, now_ns: int) -> None:
        self.validator = validator
        self.rules = rules
        self.recorded_ns = now_ns
        self.decided_ns = now_ns
        self.blocks: list[Block] = []
        self.syncs: list[Sync] = []
        self.finalized: list[Finalized] = []
        self.drops: list[Drop] = []
        self.known_miners: set[str] = set()
        """Every miner that a fact has ever registered or named."""
        self.recorded_last: Block | None = None
        """The block recorded last; after a withdrawal, the one that the ledger returns to."""
        self.withdrawn: list[Block | Sync] = []
        self.reservations: list[Reservation] = []
        self.keys: dict[str, tuple[tuple[object, ...], int]] = {}
        self.miner_facts = MinerFacts()

    def copy(self) -> Ledger:
        """Return a copy that later changes of this ledger do not affect."""
        copy = Ledger(self.validator, self.rules, self.recorded_ns)
        copy.decided_ns = self.decided_ns
        copy.blocks = list(self.blocks)
        copy.syncs = list(self.syncs)
        copy.finalized = list(self.finalized)
        copy.drops = list(self.drops)
        copy.known_miners = set(self.known_miners)
        copy.recorded_last = self.recorded_last
        copy.withdrawn = list(self.withdrawn)
        copy.reservations = list(self.reservations)
        copy.keys = dict(self.keys)
        copy.miner_facts = self.miner_facts.copy()
        return copy

    # Recording facts.

    def change_rules(self, rules: Rules, now_ns: int) -> bool:
        """Apply these rules from now on; return False, and record nothing, if they are in force already."""
        if rules == self.rules:
            return False
        self.rules = rules
        self._record(now_ns)
        return True

    def change_named_rules(self, named: dict[str, object], now_ns: int) -> bool:
        """Change only the named settings; return False, and record nothing, if they are in force already."""
        return self.change_rules(replace(self.rules, **named), now_ns)  # type: ignore[arg-type]  # the names are those of fields

    def record_block(
        self,
        number: int,
        created_at_ns: int,
        axons: Iterable[Axon],
        stakes: dict[str, float],
        now_ns: int,
        *,
        block_hash: str = "",
        confirm: bool = False,
    ) -> bool:
        """Record a block and finalize the blocks whose end it determines; return False for a repeat."""
        if number < 1:
            raise Refused("InvalidInput")
        exact_stakes = {validator: nanoseconds(stake) for validator, stake in stakes.items()}
        block = Block(number, created_at_ns, frozenset(axons), exact_stakes, block_hash)
        recorded = self.block(number)
        if recorded is not None:
            if recorded.is_same(block):
                return False
            raise Refused("ConflictingFact")
        if self._is_implausible_block(block) and not confirm:
            raise Refused("ImplausibleFact")
        before, after = self.block(number - 1), self.block(number + 1)
        if before is not None and created_at_ns <= before.created_at_ns:
            raise Refused("ConflictingFact")
        if after is not None and created_at_ns >= after.created_at_ns:
            raise Refused("ConflictingFact")
        self.blocks.append(block)
        self.recorded_last = block
        self.known_miners.update(axon.hotkey for axon in block.axons)
        if before is not None:
            self._finalize(before, block)
        if after is not None:
            self._finalize(block, after)
        self._record(now_ns)
        return True

    def _is_implausible_block(self, block: Block) -> bool:
        newest, last = self.newest_block(), self.recorded_last
        if newest is not None and block.number > newest.number + IMPLAUSIBLE_AFTER_BLOCKS:
            return True
        if last is not None and len(last.axons) >= FEW and len(block.axons) * 10 < len(last.axons):
            return True
        if last is not None and len(last.stakes) >= FEW and len(block.stakes) * 10 < len(last.stakes):
            return True
        return any(isinstance(each, Block) and each.is_same(block) for each in self.withdrawn)

    def record_manifests(self, block: int, counts: Counts, now_ns: int, *, confirm: bool = False) -> bool:
        """Record a sync and its drops; return False for a repeat."""
        if block < 1:
            raise Refused("InvalidInput")
        for sync in self.syncs:
            if sync.block == block:
                if sync.counts == counts:
                    return False
                raise Refused("ConflictingFact")
        if self._is_implausible_sync(block, counts) and not confirm:
            raise Refused("ImplausibleFact")
        given = {miner: dict(classes) for miner, classes in counts.items()}
        sync = Sync(block, given, self._uncovered(block, given), self.rules)
        self.drops.extend(_drops(sync, self.syncs))
        self.syncs.append(sync)
        self.known_miners.update(given)
        self._record(now_ns)
        return True

    def _is_implausible_sync(self, block: int, counts: Counts) -> bool:
        newest, before = self.newest_block(), self.newest_sync(at_most=block - 1)
        if newest is not None and block > newest.number + IMPLAUSIBLE_SYNC_AFTER_BLOCKS:
            return True
        if before is not None and _executors(counts) * 10 < _executors(before.counts):
            return True
        return any(isinstance(each, Sync) and (each.block, each.counts) == (block, counts) for each in self.withdrawn)

    def _uncovered(self, block: int, counts: Counts) -> frozenset[str]:
        """Return the known miners that the sync does not name and that were not registered at its block."""
        below = [each for each in self.blocks if each.number <= block]
        if not below:
            return frozenset()
        newest = max(below, key=lambda each: each.number)
        registered = {axon.hotkey for axon in newest.axons}
        return frozenset(each for each in self.known_miners if each not in registered and each not in counts)

    # Withdrawing facts.

    def withdraw_block(self, number: int, now_ns: int) -> bool:
        """Withdraw a block: as if it had never been recorded; return False if it is withdrawn already."""
        if number < 1:
            raise Refused("InvalidInput")
        block = self.block(number)
        if block is None:
            if any(isinstance(each, Block) and each.number == number for each in self.withdrawn):
                return False
            raise Refused("FactNotRecorded")
        holders = [
            each.reservation_id
            for each in self.reservations
            if each.status in ("reserved", "spent") and (number in each.blocks or number - 1 in each.blocks)
        ]
        if holders:
            raise Refused("BlockInUse", reservation_ids=holders)
        self.blocks.remove(block)
        self.finalized = [each for each in self.finalized if each.number not in (number, number - 1)]
        self.withdrawn.append(block)
        self.recorded_last = self.block(number - 1) or self.newest_block()
        self._record(now_ns)
        return True

    def withdraw_manifests(self, block: int, now_ns: int) -> bool:
        """Withdraw a sync: as if it had never been recorded; what is finalized keeps its amounts."""
        if block < 1:
            raise Refused("InvalidInput")
        for sync in self.syncs:
            if sync.block == block:
                self.syncs.remove(sync)
                self.withdrawn.append(sync)
                self.drops = [drop for at, each in enumerate(self.syncs) for drop in _drops(each, self.syncs[:at])]
                self._record(now_ns)
                return True
        if any(isinstance(each, Sync) and each.block == block for each in self.withdrawn):
            return False
        raise Refused("FactNotRecorded")

    def _finalize(self, block: Block, following: Block) -> None:
        counts = {miner: _offered(miner, block.number, self.syncs) for miner in self.known_miners}
        self.finalized.append(
            Finalized(
                number=block.number,
                duration_ns=self.rules.counted_ns(following.created_at_ns - block.created_at_ns),
                multiplier=self.rules.allowance_multiplier,
                counts={
                    miner: {name: self.rules.capped(name, count) for name, count in classes.items()}
                    for miner, classes in counts.items()
                },
                stakes=block.stakes,
                registered=tuple(axon.hotkey for axon in block.axons),
            )
        )

    def _record(self, now_ns: int) -> int:
        """Return the recorded time of an event that is decided now: recorded times never go back."""
        self.decided_ns = now_ns
        self.recorded_ns = max(self.recorded_ns, now_ns)
        return self.recorded_ns

    # Miner facts.

    def record_miner_fact(self, fact: Fact, now_ns: int, key: str | None = None) -> int:
        """Record what a router knows about miners; return the fact's number, the first one's if it is a repeat."""
        content: tuple[object, ...] = ("miner fact", repr(fact))
        if key is not None and key in self.keys:
            first_content, number = self.keys[key]
            if first_content != content:
                raise Refused("IdempotencyConflict")
            return number
        known = len(self.miner_facts.facts)
        number = self.miner_facts.record(fact, now_ns)
        if number > known:
            self._record(now_ns)
            if key is not None:
                self.keys[key] = (content, number)
        return number

    # Queries of facts.

    def block(self, number: int) -> Block | None:
        """Return the recorded block with this number."""
        for block in self.blocks:
            if block.number == number:
                return block
        return None

    def newest_block(self) -> Block | None:
        """Return the block with the highest number, regardless of the order of recording."""
        newest = None
        for block in self.blocks:
            if newest is None or block.number > newest.number:
                newest = block
        return newest

    def newest_sync(self, at_most: int | None = None) -> Sync | None:
        """Return the sync at the highest block (at most `at_most`), regardless of the order of recording."""
        newest = None
        for sync in self.syncs:
            if at_most is not None and sync.block > at_most:
                continue
            if newest is None or sync.block > newest.block:
                newest = sync
        return newest

    def registered(self) -> dict[str, Axon]:
        """Return the miners registered at the newest block."""
        newest = self.newest_block()
        return {} if newest is None else {axon.hotkey: axon for axon in newest.axons}

    def granted(self, miner: str, executor_class: str, validator: str | None = None) -> dict[int, int]:
        """Return `{block: ns}` of all grants of an account (by default ours), ascending by block."""
        validator = validator or self.validator
        grants = {}
        for block in sorted(self.finalized, key=lambda each: each.number):
            all_stakes = sum(block.stakes.values())
            if miner not in block.registered or all_stakes == 0:
                continue
            share = Fraction(block.stakes.get(validator, 0), all_stakes)
            unit_ns = math.floor(block.duration_ns * block.multiplier * share)
            amount_ns = unit_ns * block.counts.get(miner, {}).get(executor_class, 0)
            if amount_ns > 0:
                grants[block.number] = amount_ns
        return grants

    def is_invalidated(self, miner: str, executor_class: str, number: int, by: int | None = None) -> bool:
        """Whether a drop at a later block (at most `by`) invalidated this block."""
        for drop in self.drops:
            if by is not None and drop.block > by:
                continue
            if drop.miner == miner and drop.executor_class == executor_class and number < drop.block:
                return True
        return False

    # Queries of allowance.

    def usable(self, miner: str, executor_class: str, job_start_block: int) -> dict[int, int]:
        """Return the grants that are not invalidated and not too old for a job that starts at this block.

        Source of the window: ComputeHorde's validator accepts blocks of at most `block_expiry_blocks` before the start.
        """
        oldest = job_start_block - self.rules.block_expiry_blocks
        return {
            number: amount_ns
            for number, amount_ns in self.granted(miner, executor_class).items()
            if number >= oldest and not self.is_invalidated(miner, executor_class, number)
        }

    def taken(self, miner: str, executor_class: str, now_ns: int) -> set[int]:
        """Return the blocks in a spent reservation, or in an active one that is not overdue."""
        numbers: set[int] = set()
        for reservation in self._of_account(miner, executor_class):
            if reservation.status == "spent":
                numbers.update(reservation.blocks)
            if reservation.status == "reserved" and not reservation.is_overdue(now_ns):
                numbers.update(reservation.blocks)
        return numbers

    def free(self, miner: str, executor_class: str, job_start_block: int, now_ns: int) -> dict[int, int]:
        """Return the usable grants that are not taken."""
        taken = self.taken(miner, executor_class, now_ns)
        usable = self.usable(miner, executor_class, job_start_block)
        return {number: amount_ns for number, amount_ns in usable.items() if number not in taken}

    def unspent_ns(self, miner: str, executor_class: str, job_start_block: int) -> int:
        """Return the sum of the usable grants that are in no spent reservation."""
        spent = {
            number
            for reservation in self._of_account(miner, executor_class)
            if reservation.status == "spent"
            for number in reservation.blocks
        }
        usable = self.usable(miner, executor_class, job_start_block)
        return sum(amount_ns for number, amount_ns in usable.items() if number not in spent)

    def state_of(self, miner: str, executor_class: str, number: int) -> str:
        """Return the state of a granted block: spent, else reserved, else invalidated, else free."""
        if number not in self.granted(miner, executor_class):
            raise ValueError(f"block {number} has no grant")
        statuses = [
            reservation.status
            for reservation in self._of_account(miner, executor_class)
            if number in reservation.blocks
        ]
        if "spent" in statuses:
            return "spent"
        if "reserved" in statuses:
            return "reserved"
        return "invalidated" if self.is_invalidated(miner, executor_class, number) else "free"

    def find_miners(
        self, allowance_seconds: float, executor_class: str, job_start_block: int, now_ns: int
    ) -> list[Candidate]:
        """Return the registered miners with at least this much available, best first; refuse if there is none."""
        amount_ns = self._amount_ns([allowance_seconds])
        self._check_longest(amount_ns)
        _check_start(job_start_block)
        return self._find_miners(amount_ns, executor_class, job_start_block, now_ns)

    def _find_miners(self, amount_ns: int, executor_class: str, job_start_block: int, now_ns: int) -> list[Candidate]:
        candidates = []
        most_available: tuple[int, str] = (0, "")
        most_unspent: tuple[int, str] = (0, "")
        for miner in sorted(self.registered()):
            usable = self.usable(miner, executor_class, job_start_block)
            free = self.free(miner, executor_class, job_start_block, now_ns)
            available_ns = sum(free.values())
            unspent_ns = self.unspent_ns(miner, executor_class, job_start_block)
            if available_ns > most_available[0]:
                most_available = (available_ns, miner)
            if unspent_ns > most_unspent[0]:
                most_unspent = (unspent_ns, miner)
            if available_ns >= amount_ns:
                candidates.append(Candidate(miner, available_ns, sum(usable.values()), min(free)))
        if not candidates:
            raise Refused(
                "NotEnoughAllowanceException",
                highest_available_allowance=seconds(most_available[0]),
                highest_available_allowance_ss58=most_available[1],
                highest_unspent_allowance=seconds(most_unspent[0]),
                highest_unspent_allowance_ss58=most_unspent[1],
            )
        return sorted(candidates, key=lambda candidate: candidate.order)

    # Reservations.

    def reserve(
        self,
        miner: str,
        executor_class: str,
        allowance_seconds: float,
        job_start_block: int,
        now_ns: int,
        *,
        expected_version: int | None = None,
        job_uuid: str | None = None,
        key: str | None = None,
    ) -> Reservation:
        """Reserve whole free blocks, the earliest first, until their sum reaches the amount."""
        amount_ns = self._amount_ns([allowance_seconds])
        _check_start(job_start_block)
        content = ("reserve", miner, executor_class, amount_ns, job_start_block, job_uuid)
        first = self._first_outcome(key, content)
        if first is not None:
            return first
        active = self._active_reservation(job_uuid, amount_ns, executor_class, miner)
        if active is not None:
            return active
        self._check_longest(amount_ns)
        version = self.version(miner, executor_class)
        if expected_version is not None and expected_version != version:
            raise Refused(
                "StreamVersionConflict",
                stream=f"{miner}\t{executor_class}",
                expected_version=expected_version,
                actual_version=version,
            )
        reservation = self._claim(miner, executor_class, amount_ns, job_start_block, now_ns, job_uuid=job_uuid)
        self._remember_outcome(key, content, reservation)
        return reservation

    def version(self, miner: str, executor_class: str) -> int:
        """Return the number of events of an account: a reservation is one, and its settlement is another."""
        return sum(1 + (each.status != "reserved") for each in self._of_account(miner, executor_class))

    def _claim(
        self,
        miner: str,
        executor_class: str,
        amount_ns: int,
        job_start_block: int,
        now_ns: int,
        *,
        job_uuid: str | None,
    ) -> Reservation:
        free = self.free(miner, executor_class, job_start_block, now_ns)
        if sum(free.values()) < amount_ns:
            raise Refused(
                "CannotReserveAllowanceException",
                miner=miner,
                required_allowance_seconds=seconds(amount_ns),
                available_allowance_seconds=seconds(sum(free.values())),
            )
        blocks: list[int] = []
        sum_ns = 0
        for number in sorted(free):
            if sum_ns < amount_ns:
                blocks.append(number)
                sum_ns += free[number]
        at_ns = self._record(now_ns)
        for reservation in self._of_account(miner, executor_class):
            if reservation.is_overdue(now_ns) and set(reservation.blocks) & set(blocks):
                self._settle(reservation, "expired", at_ns)
        reserved = Reservation(
            reservation_id=len(self.reservations) + 1,
            status="reserved",
            miner=miner,
            executor_class=executor_class,
            job_uuid=job_uuid,
            amount_ns=amount_ns,
            blocks=tuple(blocks),
            job_start_block=job_start_block,
            reserved_at_ns=at_ns,
            expires_at_ns=now_ns + amount_ns + nanoseconds(self.rules.reservation_margin_seconds),
            settled_at_ns=None,
            axon=self.registered().get(miner),
        )
        self.reservations.append(reserved)
        return reserved

    def spend(self, reservation_id: int, now_ns: int, key: str | None = None) -> Reservation:
        """Spend a reservation; its blocks are taken for good."""
        return self._settle_once(reservation_id, "spent", now_ns, key)

    def release(self, reservation_id: int, now_ns: int, key: str | None = None) -> Reservation:
        """Release a reservation; its blocks are free again."""
        return self._settle_once(reservation_id, "released", now_ns, key)

    def expire_due(self, now_ns: int) -> list[Reservation]:
        """Expire all overdue reservations, ordered by due time."""
        due = [reservation for reservation in self.reservations if reservation.is_overdue(now_ns)]
        due.sort(key=lambda reservation: (reservation.expires_at_ns, reservation.reservation_id))
        return [self._settle(reservation, "expired", self._record(now_ns)) for reservation in due]

    def reservation(self, reservation_id: int) -> Reservation:
        """Return the reservation with this id."""
        for reservation in self.reservations:
            if reservation.reservation_id == reservation_id:
                return reservation
        raise Refused("ReservationNotFound")

    def reservation_for_job(self, job_uuid: str) -> Reservation:
        """Return the newest reservation of a job."""
        for reservation in reversed(self.reservations):
            if reservation.job_uuid == job_uuid:
                return reservation
        raise Refused("ReservationNotFound")

    def _settle_once(self, reservation_id: int, status: str, now_ns: int, key: str | None) -> Reservation:
        content = (status, reservation_id)
        first = self._first_outcome(key, content)
        if first is not None:
            return first
        reservation = self.reservation(reservation_id)
        already = {
            "spent": "ReservationAlreadySpent",
            "released": "ReservationAlreadyReleased",
            "expired": "ReservationExpired",
        }
        if reservation.status in already:
            raise Refused(
                already[reservation.status],
                reservation_id=reservation_id,
                settled_at_ns=reservation.settled_at_ns,
            )
        settled = self._settle(reservation, status, self._record(now_ns))
        self._remember_outcome(key, content, settled)
        return settled

    def _settle(self, reservation: Reservation, status: str, at_ns: int) -> Reservation:
        settled = replace(reservation, status=status, settled_at_ns=at_ns)
        self.reservations[self.reservations.index(reservation)] = settled
        return settled

    def _first_outcome(self, key: str | None, content: tuple[object, ...]) -> Reservation | None:
        if key is None or key not in self.keys:
            return None
        first_content, reservation_id = self.keys[key]
        if first_content != content:
            raise Refused("IdempotencyConflict")
        return self.reservation(reservation_id)

    def _remember_outcome(self, key: str | None, content: tuple[object, ...], reservation: Reservation) -> None:
        if key is not None:
            self.keys[key] = (content, reservation.reservation_id)

    def _of_account(self, miner: str, executor_class: str) -> list[Reservation]:
        return [
            reservation
            for reservation in self.reservations
            if reservation.miner == miner and reservation.executor_class == executor_class
        ]

    def _active_reservation(
        self, job_uuid: str | None, amount_ns: int, executor_class: str, miner: str | None = None
    ) -> Reservation | None:
        """Return the job's active reservation; refuse if it differs from the request, or if the job is spent."""
        for reservation in self.reservations:
            if job_uuid is None or reservation.job_uuid != job_uuid:
                continue
            if reservation.status == "spent":
                raise Refused("JobAlreadySpent")
            if reservation.status == "reserved":
                if (reservation.amount_ns, reservation.executor_class) != (amount_ns, executor_class):
                    raise Refused("JobRequestConflict")
                if miner is not None and reservation.miner != miner:
                    raise Refused("JobRequestConflict")
                return reservation
        return None

    def _amount_ns(self, parts_seconds: Sequence[float]) -> int:
        """Return the sum of the parts, each of which is rounded before it is summed."""
        for part_seconds in parts_seconds:
            if not math.isfinite(part_seconds):
                raise Refused("InvalidInput")
        amount_ns = sum(nanoseconds(part_seconds) for part_seconds in parts_seconds)
        if amount_ns <= 0:
            raise Refused("InvalidInput")
        return amount_ns

    def _check_longest(self, amount_ns: int) -> None:
        """Refuse an amount above the limit; the same request, made before under its key or for its job, comes first."""
        if amount_ns > nanoseconds(self.rules.longest_job_seconds):
            most = float(self.rules.longest_job_seconds)
            raise Refused("InvalidInput", f"Required allowance cannot be greater than {most} seconds")

    # Routing.

    def executors(self, miner: str, executor_class: str) -> int:
        """Return how many executors the newest sync counts, capped."""
        newest = self.newest_sync()
        count = 0 if newest is None else _offered(miner, newest.block, self.syncs).get(executor_class, 0)
        return self.rules.capped(executor_class, count)

    def is_busy(self, miner: str, executor_class: str, now_ns: int) -> bool:
        """Whether the miner has as many running jobs as executors now, each job counted once.

        Source: ComputeHorde's validator. Active reservations that are not overdue count as running jobs, and so do the
        jobs elsewhere.
        """
        running = [
            reservation
            for reservation in self._of_account(miner, executor_class)
            if reservation.status == "reserved" and not reservation.is_overdue(now_ns)
        ]
        ours = {reservation.job_uuid for reservation in running}
        theirs = self.miner_facts.running_elsewhere(miner, executor_class, now_ns) - ours
        return len(running) + len(theirs) >= self.executors(miner, executor_class)

    def route_choices(
        self, job_uuid: str, executor_class: str, limits_seconds: Sequence[float], now_ns: int
    ) -> RouteChoices:
        """Return the possible routes of a job now; this reserves nothing."""
        amount_ns = self._amount_ns(limits_seconds)
        active = self._active_reservation(job_uuid, amount_ns, executor_class)
        if active is not None:
            return RouteChoices(active, (active.miner,), amount_ns, active.miner)
        self._check_longest(amount_ns)
        newest = self.newest_block()
        if newest is not None and self._is_stale(newest, now_ns):
            raise Refused("ChainFeedStale")
        if newest is not None and self._has_stale_manifests(newest):
            raise Refused("ManifestsStale")
        start = 1 if newest is None else newest.number
        enough = self._find_miners(amount_ns, executor_class, start, now_ns)
        unfit = self._unfit(enough, now_ns)
        fit = [each for each in enough if each.hotkey not in unfit]
        tried = self._trial_order(fit, executor_class, job_uuid, now_ns)
        candidates = fit
        if self.rules.respect_executor_count:
            candidates = [each for each in fit if not self.is_busy(each.hotkey, executor_class, now_ns)]
        if not candidates:
            raise Refused("AllMinersBusy", busy=len(fit), lost=0, excluded=list(unfit.values()).count("excluded"))
        best = (candidates[0].earliest_block, candidates[0].share)
        equals = [each.hotkey for each in candidates if (each.earliest_block, each.share) == best]
        if self.rules.routing_order == "reliability":
            equals = [each.hotkey for each in candidates]
        first = next(each for each in tried if each in equals)
        return RouteChoices(None, tuple(equals), amount_ns, first, tuple(tried), unfit)

    def _unfit(self, candidates: Sequence[Candidate], now_ns: int) -> dict[str, str]:
        """Return why miners must not be chosen; refuse if the collateral of the others is too low for all of them."""
        hotkeys = sorted(each.hotkey for each in candidates)
        excluded = [each for each in hotkeys if self.miner_facts.is_excluded(each, now_ns)]
        wei = {each: self.miner_facts.collateral(each) for each in hotkeys if each not in excluded}
        minimum = self.rules.minimum_collateral_wei
        poor = [each for each in wei if wei[each] < minimum]
        if poor and len(poor) == len(wei):
            highest = min(wei, key=lambda miner: (-wei[miner], miner))
            raise Refused(
                "NotEnoughCollateralException",
                minimum_collateral_wei=minimum,
                highest_collateral_wei=wei[highest],
                highest_collateral_ss58=highest,
            )
        return dict.fromkeys(excluded, "excluded") | dict.fromkeys(poor, "collateral")

    def _trial_order(
        self, candidates: Sequence[Candidate], executor_class: str, job_uuid: str, now_ns: int
    ) -> list[str]:
        """Return the candidates in the order in which the job tries them."""
        newest = self.newest_block()
        text = job_uuid.encode()
        if newest is not None and newest.block_hash and self.rules.tie_break == "uuid_and_hash":
            text += b"\x00" + bytes.fromhex(newest.block_hash)
        digest = hashlib.blake2b(text, digest_size=16)
        if self.rules.routing_order == "reliability":
            return draw(
                [(each.hotkey, self._weight(each.hotkey, executor_class, now_ns)) for each in candidates],
                digest.digest(),
            )
        seed = int(digest.hexdigest(), 16)
        order = []
        for _, group in itertools.groupby(candidates, lambda each: (each.earliest_block, each.share)):
            equals = [each.hotkey for each in group]
            size = len(equals)
            step = (seed // size) % size
            while math.gcd(step, size) != 1:
                step += 1
            order += [equals[(seed % size + turn * step) % size] for turn in range(size)]
        return order

    def _weight(self, miner: str, executor_class: str, now_ns: int) -> int:
        rules = self.rules
        window_ns = 3600 * nanoseconds(rules.reliability_window_hours)
        incidents = self.miner_facts.incidents(miner, executor_class, window_ns, now_ns)
        executors = self.executors(miner, executor_class)
        return weight(incidents, executors, rules.reliability_soft_cutoff, rules.reliability_separation)

    def claim_route(
        self, choices: RouteChoices, miner: str, job_uuid: str, executor_class: str, now_ns: int
    ) -> Reservation:
        """Reserve on one of the equally good miners; the product may choose any of them."""
        newest = self.newest_block()
        if newest is None or choices.active is not None or miner not in choices.miners:
            raise ValueError(f"{miner} is not among {choices}")
        return self._claim(miner, executor_class, choices.amount_ns, newest.number, now_ns, job_uuid=job_uuid)

    def _has_stale_manifests(self, newest: Block) -> bool:
        most, sync = self.rules.newest_manifests_max_age_blocks, self.newest_sync()
        return most is not None and sync is not None and newest.number - sync.block > most

    def _is_stale(self, newest: Block, now_ns: int) -> bool:
        max_age_seconds = self.rules.newest_block_max_age_seconds
        if max_age_seconds is None:
            return False
        return now_ns - newest.created_at_ns > nanoseconds(max_age_seconds)


@dataclass(frozen=True)
class ReceiptOutcome:
    """The classification of a receipt's blocks: each block is in one tuple; tuples are ascending."""

    accepted: bool
    outside_range: tuple[int, ...] = ()
    double_spent: tuple[int, ...] = ()
    invalidated: tuple[int, ...] = ()
    without_grant: tuple[int, ...] = ()
    spendable: tuple[int, ...] = ()


class Bookkeeper:
    """Checks receipts of other validators in order of arrival; our own reservations do not matter to it.

    With bounds, it refuses jobs that start below the first of them, or at the second or later.
    """

    def __init__(self, ledger: Ledger, bounds: tuple[int, int] | None = None) -> None:
        self.ledger = ledger
        self.bounds = bounds
        self.spent: list[tuple[Account, int]] = []

    def receive(
        self,
        account: Account,
        started_at_ns: int,
        amount_ns: int,
        offered: Iterable[int],
    ) -> ReceiptOutcome:
        """Spend the spendable blocks of a receipt if their sum reaches its amount; otherwise spend nothing."""
        start = self._newest_block_at(started_at_ns)
        if self.bounds is not None and not self.bounds[0] <= start < self.bounds[1]:
            raise Refused("JobOutOfBounds")
        validator, miner, executor_class = account
        grants = self.ledger.granted(miner, executor_class, validator)
        lists: dict[str, list[int]] = {
            "outside_range": [],
            "double_spent": [],
            "invalidated": [],
            "without_grant": [],
            "spendable": [],
        }
        for number in sorted(set(offered)):
            lists[self._classify(account, number, start, grants)].append(number)
        accepted = sum(grants[number] for number in lists["spendable"]) >= amount_ns
        if accepted and amount_ns > 0:
            self.spent.extend((account, number) for number in lists["spendable"])
        return ReceiptOutcome(accepted, **{name: tuple(numbers) for name, numbers in lists.items()})

    def _classify(
        self,
        account: Account,
        number: int,
        start: int,
        grants: dict[int, int],
    ) -> str:
        rules = self.ledger.rules
        _, miner, executor_class = account
        oldest = start - rules.block_expiry_blocks - rules.validation_leeway_lower_blocks
        if not oldest <= number <= start + rules.validation_leeway_upper_blocks:
            return "outside_range"
        if (account, number) in self.spent:
            return "double_spent"
        if self.ledger.is_invalidated(miner, executor_class, number, by=start):
            return "invalidated"
        return "spendable" if number in grants else "without_grant"

    def _newest_block_at(self, at_ns: int) -> int:
        known = sorted(self.ledger.blocks, key=lambda block: block.number)
        if not known or at_ns < known[0].created_at_ns or at_ns >= known[-1].created_at_ns:
            raise Refused("TimeOutOfRange")
        return max(block.number for block in known if block.created_at_ns <= at_ns)


def _check_start(job_start_block: int) -> None:
    if job_start_block < 1:
        raise Refused("InvalidInput")


def _executors(counts: Counts) -> int:
    return sum(count for classes in counts.values() for count in classes.values())


def _offered(miner: str, block: int, syncs: Sequence[Sync]) -> dict[str, int]:
    """Return what a miner offers at a block: what the newest sync at or below it says that covers the miner."""
    covering = [each for each in syncs if each.block <= block and miner not in each.uncovered]
    if not covering:
        return {}
    return max(covering, key=lambda each: each.block).counts.get(miner, {})


def _drops(sync: Sync, earlier: Sequence[Sync]) -> list[Drop]:
    """Return the drops of a sync, given those that were recorded before it."""
    drops = []
    for miner in sorted({miner for each in earlier for miner in each.counts}):
        if miner in sync.uncovered:
            continue
        for executor_class, count_before in _offered(miner, sync.block - 1, earlier).items():
            count = sync.counts.get(miner, {}).get(executor_class, 0)
            if sync.rules.capped(executor_class, count) < sync.rules.capped(executor_class, count_before):
                drops.append(Drop(sync.block, miner, executor_class))
    return drops
