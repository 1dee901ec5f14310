"""The product agrees with the reference model, whatever happens to a ledger.

Two drivers use a `Pair` of ledger and model. The first is a state machine that Hypothesis shrinks, on a SQLite file
that is closed, opened again, and opened twice. The second is a long seeded run with more history, in memory.

`REFERENCE_EXAMPLES`, `REFERENCE_STEPS` and `REFERENCE_SEED` set the number, the length and the seed of the runs.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from routing import Allowance, AllowanceException, JobRoute, JobRoutingException, Miner, Routing, Settings
from tests.support import strategies
from tests.support.reference import (
    SECOND_NS,
    Axon,
    Block,
    Candidate,
    Counts,
    Ledger,
    Reservation,
    RouteChoices,
    Rules,
    Sync,
    nanoseconds,
    seconds,
)
from tests.support.reference_miner_facts import (
    Collateral,
    EndElsewhere,
    Exclusion,
    Fact,
    Incident,
    JobElsewhere,
    Readmission,
)
from tests.support.refusal import Refused
from tests.support.small import hash_of
from tests.support.strategies import CLASSES, ME, MINERS, JobRequest, MakeFact, Metagraph

T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SMALLEST_AMOUNT_S = 1e-9
DISTINGUISHED_ERRORS = (
    "InvalidInput",
    "NotEnoughAllowanceException",
    "CannotReserveAllowanceException",
    "ReservationAlreadyReleased",
    "ReservationExpired",
    "ReservationNotFound",
    "ReservationAlreadySpent",
    "IdempotencyConflict",
    "ConflictingFact",
    "ImplausibleFact",
    "AllMinersBusy",
    "NotEnoughCollateralException",
    "JobAlreadySpent",
    "JobRequestConflict",
    "ChainFeedStale",
    "ManifestsStale",
    "FactNotRecorded",
    "BlockInUse",
)


class Pair:
    """A ledger and its reference model. Every method calls both, and compares the results."""

    def __init__(self, database_url: str, rules: Rules | None) -> None:
        self.database_url = database_url
        self.clock = strategies.Clock()
        self.loop = asyncio.new_event_loop()
        self.ledgers: list[Any] = []
        self.model = Ledger(ME, rules or Rules(), self.clock.now_ns)
        self.ids: dict[int, int] = {}
        self.picked: set[int] = set()
        self.positions: dict[tuple[str, int], int] = {}
        self.pasts: list[tuple[int, Ledger]] = []
        self.turns = 0
        self.open(rules)

    # The process.

    @property
    def now_ns(self) -> int:
        return self.clock.now_ns

    @property
    def ledger(self) -> Any:
        """The next of the open ledgers: they alternate, so that each must read the events that the others appended."""
        return self.ledgers[self.turns % len(self.ledgers)]

    def run(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self.loop.run_until_complete(wait())

    def open(self, rules: Rules | None) -> None:
        opening = Allowance.open(
            self.database_url,
            validator_ss58=ME,
            settings=None if rules is None else settings_of(rules),
            clock_ns=self.clock,
        )
        self.ledgers.append(self.run(opening.__aenter__()))
        if rules is not None:
            # Opening changes every setting but the tie-break.
            self.model.change_rules(replace(rules, tie_break=self.model.rules.tie_break), self.now_ns)

    def close(self) -> None:
        while self.ledgers:
            self.run(self.ledgers.pop().__aexit__(None, None, None))

    def restart(self, rules: Rules | None) -> None:
        self.close()
        self.open(rules)

    def finish(self, *, audit: bool) -> None:
        """Audit the ledger if wanted, and close everything."""
        try:
            if audit:
                report = self.run(self.ledger.audit())
                assert not report.findings, report.findings
        finally:
            self.close()
            self.loop.close()

    # Facts.

    def near(self, offset: int) -> int:
        """Return a block number near the newest block."""
        newest = self.model.newest_block()
        return max(1, (1 if newest is None else newest.number) + offset)

    def record_block(
        self, number: int, late_s: float, graph: Metagraph, *, fork: str | None = "", confirm: bool = False
    ) -> None:
        """Record a block with the hash that it has on a fork; every fourth has none, nor has any if `fork` is None."""
        block_hash = "" if fork is None or number % 4 == 0 else hash_of(number, fork)
        created_at_ns = strategies.nominal_ns(number) + nanoseconds(late_s)
        stakes = dict(graph.stakes)
        self._record(
            ("block", number),
            lambda: self.model.record_block(
                number, created_at_ns, graph.axons, stakes, self.now_ns, block_hash=block_hash, confirm=confirm
            ),
            lambda: self.ledger.record_block(
                number,
                instant(created_at_ns),
                map(miner_of, graph.axons),
                stakes,
                block_hash=block_hash or None,
                confirm=confirm,
            ),
        )

    def change_settings(self, named: dict[str, object]) -> None:
        """Change the named settings; all others stay as whoever changed them last left them."""
        positions = len(self.run(self.ledger.settings_changes()))
        changed = self.model.change_named_rules(named, self.now_ns)
        settings = self.run(self.ledger.change_settings(**named))
        assert settings == self.run(self.ledger.settings()) == settings_of(self.model.rules)
        assert len(self.run(self.ledger.settings_changes())) == positions + changed

    def respell_block(self, block: Block) -> None:
        """Record the same block again, in other words: order, time zone, integer stakes, and the hash in capitals.

        A block without a hash is given one, which is no difference and changes nothing.
        """
        zone = timezone(timedelta(hours=5, minutes=30))
        axons = sorted(block.axons, key=lambda axon: axon.hotkey, reverse=True)
        stakes = {
            validator: int(seconds(stake)) if stake % SECOND_NS == 0 else seconds(stake)
            for validator, stake in reversed(block.stakes.items())
        }
        created_at = instant(block.created_at_ns).astimezone(zone)
        block_hash = f"0x{(block.block_hash or hash_of(block.number)).upper()}"
        axons_again = map(miner_of, axons)
        position = self.run(
            self.ledger.record_block(block.number, created_at, axons_again, stakes, block_hash=block_hash)
        )
        assert position == self.positions["block", block.number]

    def record_manifests(self, block: int, counts: Counts, *, confirm: bool = False) -> None:
        self._record(
            ("manifests", block),
            lambda: self.model.record_manifests(block, counts, self.now_ns, confirm=confirm),
            lambda: self.ledger.record_manifests(block, counts, confirm=confirm),
        )

    def withdraw_block(self, number: int, reason: str) -> None:
        self._record(
            ("withdrawn block", number),
            lambda: self.model.withdraw_block(number, self.now_ns),
            lambda: self.ledger.withdraw_block(number, reason),
        )

    def withdraw_manifests(self, block: int, reason: str) -> None:
        self._record(
            ("withdrawn manifests", block),
            lambda: self.model.withdraw_manifests(block, self.now_ns),
            lambda: self.ledger.withdraw_manifests(block, reason),
        )

    def _record(
        self,
        fact: tuple[str, int],
        in_model: Callable[[], bool],
        in_ledger: Callable[[], Awaitable[int]],
    ) -> None:
        expected, position = self.both(in_model, in_ledger)
        if isinstance(expected, Refused):
            return
        if expected:
            assert position > max(self.positions.values(), default=0)
            self.positions[fact] = position
            self.pasts.append((position, self.model.copy()))
        assert position == self.positions[fact]

    def record_miner_fact(self, fact: Fact, key: str | None = None) -> None:
        """Record what a router knows about miners; a repeat returns the position of the first."""
        known = len(self.model.miner_facts.facts)
        number, position = self.both(
            lambda: self.model.record_miner_fact(fact, self.now_ns, key), lambda: told(self.ledger, fact, key)
        )
        if isinstance(number, Refused):
            return
        if number > known:
            assert position > max(self.positions.values(), default=0)
            self.positions["miner fact", number] = position
            self.pasts.append((position, self.model.copy()))
        assert position == self.positions["miner fact", number]

    # Queries.

    def find_miners(self, amount_s: float, executor_class: str, start: int) -> None:
        expected, found = self.both(
            lambda: self.model.find_miners(amount_s, executor_class, start, self.now_ns),
            lambda: self.ledger.find_miners(amount_s, executor_class, start),
        )
        if not isinstance(expected, Refused):
            assert list(map(candidate_facts, found)) == list(map(expected_candidate_facts, expected))
            versions = [self.model.version(each.hotkey_ss58, executor_class) for each in found]
            assert [each.stream_version for each in found] == versions

    def look_back(self, past: int, executor_class: str) -> None:
        """The result at the position of an earlier fact is the same as it was right after that fact."""
        position, model = self.pasts[past % len(self.pasts)]
        newest = model.newest_block()
        start = 1 if newest is None else newest.number
        view = self.ledger.at(position=position)
        expected, found = self.both(
            lambda: model.find_miners(SMALLEST_AMOUNT_S, executor_class, start, model.decided_ns),
            lambda: view.find_miners(SMALLEST_AMOUNT_S, executor_class, start),
        )
        if not isinstance(expected, Refused):
            assert list(map(candidate_facts, found)) == list(map(expected_candidate_facts, expected))

    def history(
        self,
        *,
        miner: str | None = None,
        status: str | None = None,
        block: int | None = None,
        newest_first: bool = True,
        limit: int = 100,
    ) -> None:
        """The history pages contain every reservation that passes the filters, in the order of the log."""
        expected = [
            self.ids[each.reservation_id]
            for each in self.model.reservations
            if miner in (None, each.miner) and status in (None, each.status) and (block is None or block in each.blocks)
        ]
        wanted = {"miner_ss58": miner, "status": status, "block": block}
        filters = {name: value for name, value in wanted.items() if value is not None}
        items: list[Any] = []
        after = None
        while True:
            page = self.run(self.ledger.history(**filters, newest_first=newest_first, limit=limit, after=after))
            items.extend(page.items)
            after = page.next
            if after is None:
                break
            assert len(page.items) == limit
        assert [item.reservation_id for item in items] == (expected[::-1] if newest_first else expected)
        for item in items:
            self.assert_same(self.model.reservation(self.model_id(item.reservation_id)), item)

    def agree(self) -> None:
        """All queries that work at any time return the same as the model, from each open ledger in turn."""
        self.turns += 1
        self.facts_agree()
        self.reservations_agree()
        for executor_class in CLASSES:
            self.find_miners(SMALLEST_AMOUNT_S, executor_class, self.near(0))
        self.find_miners(self.model.rules.longest_job_seconds, CLASSES[0], self.near(0))

    def facts_agree(self) -> None:
        newest, sync = self.model.newest_block(), self.model.newest_sync()
        assert self.run(self.ledger.current_block()) == (None if newest is None else newest.number)
        registered = [] if newest is None else sorted(map(axon_facts, newest.axons))
        assert sorted(map(miner_facts, self.run(self.ledger.miners()))) == registered
        assert self.run(self.ledger.manifests()) == ({} if sync is None else sync.counts)

    def reservations_agree(self) -> None:
        """Each reservation equals the model's, and the ledger's reservations take no block of an account twice."""
        taken: set[tuple[str, str, int]] = set()
        for expected in self.model.reservations:
            actual = self.run(self.ledger.reservation(self.ids[expected.reservation_id]))
            self.assert_same(expected, actual)
            if actual.status in ("reserved", "spent"):
                blocks = {(actual.miner_ss58, actual.executor_class, number) for number in actual.blocks}
                assert not blocks & taken
                taken |= blocks

    def job_agrees(self, job_uuid: str) -> None:
        expected, actual = self.both(
            lambda: self.model.reservation_for_job(job_uuid), lambda: self.ledger.reservation_for_job(job_uuid)
        )
        if not isinstance(expected, Refused):
            self.assert_same(expected, actual)

    # Reservations.

    def reserve(
        self,
        miner: str,
        executor_class: str,
        amount_s: float,
        start: int,
        *,
        version: int | None = None,
        job_uuid: str | None = None,
        key: str | None = None,
    ) -> None:
        if self.is_undefined(amount_s, job_uuid):
            return
        known = len(self.model.reservations)
        wanted: tuple[str, str, float, int] = miner, executor_class, amount_s, start
        expected, reserved = self.both(
            lambda: self.model.reserve(*wanted, self.now_ns, expected_version=version, job_uuid=job_uuid, key=key),
            lambda: self.ledger.reserve(*wanted, expected_version=version, job_uuid=job_uuid, idempotency_key=key),
        )
        if isinstance(expected, Refused):
            return
        if len(self.model.reservations) > known:
            self.learn_id(expected, reserved.reservation_id)
        if key is None or len(self.model.reservations) > known:
            self.assert_same(expected, reserved)
        assert (reserved.reservation_id, list(reserved.blocks)) == (
            self.ids[expected.reservation_id],
            list(expected.blocks),
        )

    def settle(self, reservation_id: int, how: str, *, key: str | None = None) -> None:
        """Spend or release by the model's id; an id that the model does not know is unknown to both."""
        ledger_id = self.ids.get(reservation_id, reservation_id)
        by_model = self.model.spend if how == "spend" else self.model.release
        expected, settled = self.both(
            lambda: by_model(reservation_id, self.now_ns, key=key),
            lambda: getattr(self.ledger, how)(ledger_id, idempotency_key=key),
        )
        if not isinstance(expected, Refused):
            self.assert_same(expected, settled)

    def expire_due(self) -> None:
        expected = self.model.expire_due(self.now_ns)
        expired = self.run(self.ledger.expire_due())
        assert [each.expires_at for each in expired] == sorted(each.expires_at for each in expired)
        by_id = {each.reservation_id: each for each in expired}
        assert len(expired) == len(by_id) == len(expected)
        for each in expected:
            self.assert_same(each, by_id[self.ids[each.reservation_id]])

    def pick(self, request: JobRequest) -> None:
        """Pick a miner. Nobody disturbs the product, so it chooses the first of the equally good ones."""
        if self.is_undefined(sum(request.limits_seconds), request.uuid, routed=True):
            return
        expected, route = self.both(
            lambda: self.model.route_choices(request.uuid, request.executor_class, request.limits_seconds, self.now_ns),
            lambda: Routing(self.ledger).pick_miner_for_job_request(request),
        )
        if isinstance(expected, Refused):
            return
        chosen = route.miner.hotkey_ss58
        assert chosen == expected.first
        claimed = expected.active
        if claimed is None:
            claimed = self.model.claim_route(expected, chosen, request.uuid, request.executor_class, self.now_ns)
            self.learn_id(claimed, route.allowance_reservation_id)
            self.picked.add(claimed.reservation_id)
            self.explanation_agrees(expected, request)
        self.assert_route(claimed, route)

    def explanation_agrees(self, expected: RouteChoices, request: JobRequest) -> None:
        """A job's explanation has the candidates in order, and then the miners that were none, with verdicts."""
        explained = self.run(self.ledger.explain(request.uuid)).candidates
        assert [each.hotkey_ss58 for each in explained] == [*expected.tried, *sorted(expected.unfit)]
        for each in explained:
            if each.hotkey_ss58 in expected.unfit:
                assert each.verdict == expected.unfit[each.hotkey_ss58]
            elif each.verdict != "claimed":
                tried_before = expected.tried.index(each.hotkey_ss58) < expected.tried.index(expected.first)
                assert each.verdict == ("busy" if tried_before else "not reached")

    def is_undefined(self, amount_s: float, job_uuid: str | None, *, routed: bool = False) -> bool:
        """Whether the rules do not define the result.

        Either the job has a reservation, and its amount is more than newer settings allow; or the job is routed again,
        but its reservation was made without routing, on a miner without an axon.
        """
        for each in self.model.reservations:
            if job_uuid is not None and each.job_uuid == job_uuid and each.status != "released":
                too_long = amount_s > self.model.rules.longest_job_seconds
                if too_long or (routed and each.axon is None):
                    return True
        return False

    # Comparing.

    def both(self, in_model: Callable[[], T], in_ledger: Callable[[], Awaitable[Any]]) -> tuple[T | Refused, Any]:
        """Call both, and return both results. If the model refuses, the ledger must refuse with the same fields."""
        expected: T | Refused
        try:
            expected = in_model()
        except Refused as refused:
            expected = refused
        self.turns += 1
        try:
            actual = self.run(in_ledger())
        except (AllowanceException, JobRoutingException) as error:
            if not isinstance(expected, Refused):
                raise AssertionError(f"refused, but expected {expected}") from error
            assert_same_refusal(expected, error, self.ids)
            return expected, None
        assert not isinstance(expected, Refused), f"returned {actual}, but expected a refusal: {expected}"
        return expected, actual

    def learn_id(self, reservation: Reservation, reservation_id: Any) -> None:
        """Record the id that the ledger assigned. Ids ascend, and fit into 63 bits, which every database can store."""
        assert isinstance(reservation_id, int)
        assert max(self.ids.values(), default=0) < reservation_id < 2**63
        self.ids[reservation.reservation_id] = reservation_id

    def model_id(self, reservation_id: int) -> int:
        return next(ours for ours, ledger_id in self.ids.items() if ledger_id == reservation_id)

    def assert_same(self, expected: Reservation, actual: Any) -> None:
        """The ledger's reservation equals the model's in every field."""
        assert (
            actual.reservation_id,
            actual.status,
            actual.validator_ss58,
            actual.miner_ss58,
            actual.executor_class,
            actual.job_uuid,
            actual.allowance_seconds,
            actual.blocks,
            actual.job_start_block,
        ) == (
            self.ids[expected.reservation_id],
            expected.status,
            ME,
            expected.miner,
            expected.executor_class,
            expected.job_uuid,
            seconds(expected.amount_ns),
            list(expected.blocks),
            expected.job_start_block,
        )
        assert_instant(actual.reserved_at, expected.reserved_at_ns)
        assert_instant(actual.expires_at, expected.expires_at_ns)
        if expected.settled_at_ns is None:
            assert actual.settled_at is None
        else:
            assert_instant(actual.settled_at, expected.settled_at_ns)

    def assert_route(self, claimed: Reservation, route: JobRoute) -> None:
        """The route belongs to the reservation, and has the miner's address at the time of the claim."""
        assert route.allowance_reservation_id == self.ids[claimed.reservation_id]
        assert route.allowance_blocks == list(claimed.blocks)
        assert route.allowance_job_value == seconds(claimed.amount_ns)
        assert route.miner.hotkey_ss58 == claimed.miner
        if claimed.reservation_id in self.picked:
            assert claimed.axon is not None
            assert route.miner == miner_of(claimed.axon)


def settings_of(rules: Rules) -> Settings:
    return Settings(**{each.name: getattr(rules, each.name) for each in fields(rules)})


def told(ledger: Any, fact: Fact, key: str | None) -> Awaitable[int]:
    """Tell a ledger a miner fact."""
    call: Awaitable[int]
    match fact:
        case Exclusion(miner, reason, until_ns):
            until = None if until_ns is None else instant(until_ns)
            call = ledger.exclude_miner(miner, reason, until=until, idempotency_key=key)
        case Readmission(miner, reason):
            call = ledger.readmit_miner(miner, reason, idempotency_key=key)
        case Collateral(wei):
            call = ledger.record_collateral(wei, idempotency_key=key)
        case JobElsewhere(miner, executor_class, job_uuid, started_at_ns, ttl_ns):
            job = miner, executor_class, job_uuid, instant(started_at_ns), seconds(ttl_ns)
            call = ledger.record_job_elsewhere(*job, idempotency_key=key)
        case EndElsewhere(job_uuid):
            call = ledger.end_job_elsewhere(job_uuid, idempotency_key=key)
        case Incident(miner, executor_class, kind, job_uuid):
            call = ledger.report_incident(miner, executor_class, kind, job_uuid, idempotency_key=key)
    return call


def instant(at_ns: int) -> datetime:
    return EPOCH + timedelta(microseconds=at_ns // 1000)


def assert_instant(actual: datetime, expected_ns: int) -> None:
    """A public time is aware and in UTC, and exact to the microsecond that a `datetime` can show."""
    assert actual.utcoffset() == timedelta(0)
    assert abs((actual - EPOCH) // timedelta(microseconds=1) * 1000 - expected_ns) < 1000


def miner_of(axon: Axon) -> Miner:
    return Miner(axon.address, axon.ip_version, axon.port, axon.hotkey)


def miner_facts(miner: Miner) -> tuple[str, str, int, int]:
    return (miner.hotkey_ss58, miner.address, miner.ip_version, miner.port)


def axon_facts(axon: Axon) -> tuple[str, str, int, int]:
    return (axon.hotkey, axon.address, axon.ip_version, axon.port)


def candidate_facts(actual: Any) -> tuple[str, float, float, int]:
    return (actual.hotkey_ss58, actual.available_seconds, actual.total_seconds, actual.earliest_block)


def expected_candidate_facts(candidate: Candidate) -> tuple[str, float, float, int]:
    return (
        candidate.hotkey,
        seconds(candidate.available_ns),
        seconds(candidate.total_ns),
        candidate.earliest_block,
    )


def assert_same_refusal(expected: Refused, error: Exception, ids: dict[int, int]) -> None:
    """The class of the error, or its nearest documented ancestor, is the model's; so are the fields."""
    names = [each.__name__ for each in type(error).__mro__]
    actual = next((name for name in names if name in DISTINGUISHED_ERRORS), names[0])
    assert actual == expected.error, f"{error!r} instead of {expected}"
    assert expected.says in str(error)
    for name, value in expected.fields.items():
        if name == "settled_at_ns":
            assert isinstance(value, int)
            assert_instant(error.settled_at, value)  # type: ignore[attr-defined]
        elif name == "reservation_ids":
            assert isinstance(value, list)
            assert getattr(error, name) == [ids[each] for each in value]
        elif name == "reservation_id":
            assert isinstance(value, int)
            assert getattr(error, name) == ids[value]
        else:
            assert getattr(error, name) == value
    if expected.error == "NotEnoughAllowanceException":
        assert error.to_dict() == expected.fields  # type: ignore[attr-defined]


# Random runs by Hypothesis, which shrinks a failing run to the smallest one.

indices = st.integers(0, 1_000)
"""Numbers that `one_of` reduces to an index of a list, whatever its length."""
jobs = st.sampled_from([f"job-{number}" for number in range(6)])
classes = st.sampled_from([*CLASSES, CLASSES[0], strategies.UNKNOWN_CLASS])
reasons = st.sampled_from(["mistyped", "a fork of the chain", "täglich"])
amounts_s = st.sampled_from(strategies.AMOUNTS_S) | st.integers(1, 60_000).map(lambda ms: ms / 1000)
lateness_s = st.sampled_from(strategies.LATENESS_S)
keys = st.sampled_from(["key-1", "key-6", "key-7"])


class LedgerMachine(RuleBasedStateMachine):
    """Everything that can happen to a validator's process, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="allowance-")
        self.opened: Pair | None = None

    @property
    def pair(self) -> Pair:
        assert self.opened is not None
        return self.opened

    @initialize(
        rules=st.none() | st.just(strategies.SMALL_RULES) | strategies.rules() | strategies.rules(),
        first=st.sampled_from([1, 8, 1000]),
        length=st.sampled_from([12, 9, 6, 14, 10, 12, 0]),
        offered=strategies.full_counts() | strategies.full_counts() | strategies.full_counts() | strategies.counts(),
    )
    def begin(self, rules: Rules | None, first: int, length: int, offered: Counts) -> None:
        path = Path(self.directory.name) / "allowance.db"
        self.opened = Pair(f"sqlite:///{path}", rules)
        self.pair.record_manifests(first, offered)
        for number in range(first, first + length):
            self.pair.record_block(number, 0.0, strategies.WHOLE_NETWORK)

    @rule(late=st.lists(st.just(0.0) | lateness_s, min_size=1, max_size=6), graph=strategies.metagraphs())
    def blocks_come(self, late: list[float], graph: Metagraph) -> None:
        for late_s in late:
            self.pair.record_block(self.pair.near(1), late_s, graph)

    @rule(
        offset=st.integers(-14, 3),
        late_s=lateness_s,
        graph=strategies.metagraphs(),
        fork=st.sampled_from(["", "", None, "other"]),
        confirm=st.booleans(),
    )
    def a_block_comes_late(self, offset: int, late_s: float, graph: Metagraph, fork: str | None, confirm: bool) -> None:
        self.pair.record_block(self.pair.near(offset), late_s, graph, fork=fork, confirm=confirm)

    @rule(length=st.integers(2, 6), offset=st.integers(-14, 8), graph=strategies.metagraphs())
    def a_backfill_runs_backwards(self, length: int, offset: int, graph: Metagraph) -> None:
        top = self.pair.near(offset)
        for number in range(top, max(0, top - length), -1):
            if self.pair.model.block(number) is None:
                self.pair.record_block(number, 0.0, graph)

    @precondition(lambda self: self.pair.model.blocks)
    @rule(beyond=st.sampled_from([100_001, 100_001, 100_000]), seldom=st.integers(0, 9))
    def a_block_comes_from_far_ahead(self, beyond: int, seldom: int) -> None:
        """Record a block far ahead: mostly a refused one, because an accepted one makes all earlier blocks too old."""
        if beyond > 100_000 or seldom == 0:
            confirm = beyond > 100_000 and seldom == 0
            self.pair.record_block(self.pair.near(beyond), 0.0, strategies.WHOLE_NETWORK, confirm=confirm)

    @precondition(lambda self: self.pair.model.blocks)
    @rule(index=indices)
    def a_block_comes_again(self, index: int) -> None:
        self.pair.respell_block(one_of(self.pair.model.blocks, index))

    @rule(offset=st.integers(-12, 2), offered=strategies.counts(), confirm=st.booleans())
    def manifests_come(self, offset: int, offered: Counts, confirm: bool) -> None:
        self.pair.record_manifests(self.pair.near(offset), offered, confirm=confirm)

    @precondition(lambda self: self.pair.model.syncs)
    @rule(
        miner=st.sampled_from(MINERS),
        executor_class=st.sampled_from(CLASSES),
        count=st.integers(0, 4),
        offset=st.integers(-8, 1),
    )
    def one_count_changes(self, miner: str, executor_class: str, count: int, offset: int) -> None:
        block = self.pair.near(offset)
        before = self.pair.model.newest_sync(at_most=block - 1) or self.pair.model.syncs[0]
        offered = {name: dict(named) for name, named in before.counts.items()}
        offered.setdefault(miner, {})[executor_class] = count
        self.pair.record_manifests(block, offered)

    @precondition(lambda self: self.pair.model.newest_sync(at_most=self.pair.near(0)))
    @rule(fewer=st.sampled_from([1, 1, 0]))
    def a_poll_reaches_few(self, fewer: int) -> None:
        """Record a sync with a tenth of the executors, which is plausible, or with one fewer, which is not."""
        before = self.pair.model.newest_sync(at_most=self.pair.near(0))
        assert before is not None
        executors = sum(sum(offered.values()) for offered in before.counts.values())
        few = max(0, (executors + 9) // 10 - fewer)
        self.pair.record_manifests(self.pair.near(1), {MINERS[0]: {CLASSES[0]: few}})

    @precondition(lambda self: self.pair.model.syncs)
    @rule(index=indices)
    def manifests_come_again(self, index: int) -> None:
        sync: Sync = one_of(self.pair.model.syncs, index)
        self.pair.record_manifests(sync.block, sync.counts)

    @rule(
        miner=st.sampled_from([*MINERS, *MINERS, strategies.STRANGER]),
        executor_class=classes,
        amounts=st.lists(amounts_s, min_size=1, max_size=4),
        offset=st.integers(-12, 12),
    )
    def reserve(self, miner: str, executor_class: str, amounts: list[float], offset: int) -> None:
        for amount_s in amounts:
            self.pair.reserve(miner, executor_class, amount_s, self.pair.near(offset))

    @rule(
        miner=st.sampled_from(MINERS[:2]),
        executor_class=st.sampled_from(CLASSES),
        amount_s=st.sampled_from([0.5, 6.0]),
        uuids=st.lists(jobs, min_size=1, max_size=3),
    )
    def reserve_for_jobs(self, miner: str, executor_class: str, amount_s: float, uuids: list[str]) -> None:
        for job_uuid in uuids:
            self.pair.reserve(miner, executor_class, amount_s, self.pair.near(0), job_uuid=job_uuid)

    @rule(
        miner=st.sampled_from(MINERS),
        executor_class=st.sampled_from(CLASSES),
        blocks=st.integers(1, 5),
        more_ns=st.sampled_from([0, 0, -1, 1]),
    )
    def reserve_to_the_nanosecond(self, miner: str, executor_class: str, blocks: int, more_ns: int) -> None:
        """Reserve the sum of the first few free blocks, or one nanosecond less or more."""
        start = self.pair.near(0)
        free = self.pair.model.free(miner, executor_class, start, self.pair.now_ns)
        amount_ns = sum(list(free.values())[:blocks]) + more_ns
        self.pair.reserve(miner, executor_class, seconds(max(1, amount_ns)), start)

    @rule(
        miner=st.sampled_from(MINERS[:2]),
        executor_class=st.sampled_from(CLASSES),
        amount_s=st.sampled_from([6.0, 500.0]),
        more=st.sampled_from([-1, 0, 0, 1]),
        job_uuid=st.none() | jobs,
        key=st.none() | st.sampled_from(["key-1", "key-4"]),
    )
    def reserve_at_a_version(
        self, miner: str, executor_class: str, amount_s: float, more: int, job_uuid: str | None, key: str | None
    ) -> None:
        """Expect the version of the account, or one before or after it."""
        version = max(0, self.pair.model.version(miner, executor_class) + more)
        start = self.pair.near(0)
        self.pair.reserve(miner, executor_class, amount_s, start, version=version, job_uuid=job_uuid, key=key)

    @rule(
        miner=st.sampled_from(MINERS),
        executor_class=st.sampled_from(CLASSES),
        amount_s=st.sampled_from([1.0, 6.0]),
        key=st.sampled_from(["key-1", "key-2", "key-3"]),
    )
    def reserve_under_a_key(self, miner: str, executor_class: str, amount_s: float, key: str) -> None:
        self.pair.reserve(miner, executor_class, amount_s, 1, key=key)

    @rule(
        away=st.sampled_from(MINERS),
        offered=strategies.full_counts(),
        late=st.none() | strategies.full_counts(),
        blocks_before_sync=st.integers(1, 2),
    )
    def a_miner_is_off_the_metagraph_for_a_block(
        self, away: str, offered: Counts, late: Counts | None, blocks_before_sync: int
    ) -> None:
        """A sync for that block does not name the miner; a late one for the block below may."""
        first = self.pair.near(1)
        whole = strategies.WHOLE_NETWORK
        others = Metagraph(tuple(axon for axon in whole.axons if axon.hotkey != away), whole.stakes)
        for number in range(first, first + 4):
            self.pair.record_block(number, 0.0, others if number == first else whole)
            if number == first + blocks_before_sync - 1:
                named = {miner: classes for miner, classes in offered.items() if miner != away}
                self.pair.record_manifests(first, named, confirm=True)
                if late is not None and first > 1:
                    self.pair.record_manifests(first - 1, late, confirm=True)

    @precondition(lambda self: self.pair.model.blocks)
    @rule(count=st.integers(1, 3), late_s=st.sampled_from([0.25, 0.5]), graph=strategies.metagraphs())
    def the_newest_blocks_are_replaced(self, count: int, late_s: float, graph: Metagraph) -> None:
        newest = self.pair.near(0)
        for number in range(newest, max(0, newest - count), -1):
            self.pair.withdraw_block(number, "a fork of the chain")
        for number in range(max(1, newest - count + 1), newest + 2):
            self.pair.record_block(number, late_s, graph)

    @precondition(lambda self: self.pair.model.syncs)
    @rule(offered=strategies.full_counts(), graph=strategies.metagraphs())
    def the_newest_sync_is_replaced(self, offered: Counts, graph: Metagraph) -> None:
        newest = self.pair.model.newest_sync()
        assert newest is not None
        self.pair.withdraw_manifests(newest.block, "mistyped")
        self.pair.record_manifests(newest.block, offered, confirm=True)
        self.pair.record_block(self.pair.near(1), 0.0, graph)

    @rule(offset=st.integers(-12, 1), reason=reasons)
    def a_block_is_withdrawn(self, offset: int, reason: str) -> None:
        self.pair.withdraw_block(self.pair.near(offset), reason)

    @precondition(lambda self: self.pair.model.syncs)
    @rule(index=indices, off=st.sampled_from([0, 0, 0, 1]), reason=reasons)
    def manifests_are_withdrawn(self, index: int, off: int, reason: str) -> None:
        """Mostly those of a recorded sync."""
        self.pair.withdraw_manifests(one_of(self.pair.model.syncs, index).block + off, reason)

    @precondition(lambda self: self.pair.model.withdrawn)
    @rule(index=indices, fork=st.sampled_from(["", None, "other"]), confirm=st.booleans())
    def a_withdrawn_fact_comes_again(self, index: int, fork: str | None, confirm: bool) -> None:
        """Unless it was recorded again, or has another hash, it needs a confirmation."""
        withdrawn = one_of(self.pair.model.withdrawn, index)
        if isinstance(withdrawn, Sync):
            self.pair.record_manifests(withdrawn.block, withdrawn.counts, confirm=confirm)
            return
        late_s = seconds(withdrawn.created_at_ns - strategies.nominal_ns(withdrawn.number))
        stakes = tuple((validator, seconds(stake)) for validator, stake in withdrawn.stakes.items())
        graph = Metagraph(tuple(sorted(withdrawn.axons, key=lambda axon: axon.hotkey)), stakes)
        self.pair.record_block(withdrawn.number, late_s, graph, fork=fork, confirm=confirm)

    @precondition(lambda self: bool(self.pair.ids))
    @rule(settled=st.lists(st.tuples(indices, st.sampled_from(["spend", "spend", "release"])), min_size=1, max_size=3))
    def settle(self, settled: list[tuple[int, str]]) -> None:
        for index, how in settled:
            self.pair.settle(one_of(self.pair.model.reservations, index).reservation_id, how)

    @precondition(lambda self: bool(active_reservations(self.pair)))
    @rule(index=indices, how=st.sampled_from(["spend", "release"]))
    def settle_an_active_reservation(self, index: int, how: str) -> None:
        self.pair.settle(one_of(active_reservations(self.pair), index).reservation_id, how)

    @precondition(lambda self: bool(self.pair.ids))
    @rule(
        index=indices,
        how=st.sampled_from(["spend", "release"]),
        key=st.sampled_from(["key-1", "key-4", "key-5"]),
    )
    def settle_under_a_key(self, index: int, how: str, key: str) -> None:
        self.pair.settle(one_of(self.pair.model.reservations, index).reservation_id, how, key=key)

    @rule()
    def expire_due(self) -> None:
        self.pair.expire_due()

    @rule(uuid=jobs, executor_class=classes, limits=strategies.limits_s())
    def pick(self, uuid: str, executor_class: str, limits: tuple[float, float, float]) -> None:
        self.pair.pick(JobRequest(uuid, executor_class, *limits))

    @rule(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=4), executor_class=st.sampled_from(CLASSES))
    def several_jobs_arrive(self, numbers: list[int], executor_class: str) -> None:
        for number in numbers:
            self.pair.pick(JobRequest(f"crowd-{number}", executor_class, 0.5, 2.0, 0.5))

    @precondition(lambda self: self.pair.picked)
    @rule(index=indices, more_s=st.sampled_from([0.0, 0.0, 0.5]))
    def a_job_is_routed_again(self, index: int, more_s: float) -> None:
        reservation = self.pair.model.reservation(one_of(sorted(self.pair.picked), index))
        assert reservation.job_uuid is not None
        amount_s = seconds(reservation.amount_ns)
        self.pair.pick(JobRequest(reservation.job_uuid, reservation.executor_class, more_s, amount_s, 0.0))

    @rule(facts=st.lists(strategies.miner_facts(), min_size=1, max_size=5), key=st.none() | st.none() | keys)
    def a_router_learns_about_miners(self, facts: list[MakeFact], key: str | None) -> None:
        for make in facts:
            self.pair.record_miner_fact(make(self.pair.now_ns), key)

    @precondition(lambda self: self.pair.model.miner_facts.facts)
    @rule(index=indices, key=st.none() | keys)
    def a_miner_fact_comes_again(self, index: int, key: str | None) -> None:
        fact, _ = one_of(self.pair.model.miner_facts.facts, index)
        self.pair.record_miner_fact(fact, key)

    @precondition(lambda self: self.pair.model.miner_facts.instants())
    @rule(
        index=indices,
        off_ns=st.sampled_from([0, 0, -1]),
        uuid=jobs,
        executor_class=st.sampled_from(CLASSES),
        window=st.booleans(),
    )
    def a_job_arrives_when_a_miner_fact_changes(
        self, index: int, off_ns: int, uuid: str, executor_class: str, window: bool
    ) -> None:
        """The clock meets the end of an exclusion, the start or end of a job elsewhere, or the end of a window."""
        at_ns = one_of(self.pair.model.miner_facts.instants(), index) + off_ns
        if window:
            at_ns += 3600 * nanoseconds(self.pair.model.rules.reliability_window_hours)
        self.pair.clock.now_ns = at_ns
        self.pair.pick(JobRequest(uuid, executor_class, 0.5, 1.0, 0.0))

    @precondition(lambda self: bool(active_reservations(self.pair)))
    @rule(index=indices, ttl_ns=st.sampled_from([SECOND_NS, 200 * SECOND_NS]))
    def a_receipt_of_our_own_job_comes_back(self, index: int, ttl_ns: int) -> None:
        """Our job counts once, although a job elsewhere has its uuid, and for as long as one of the two runs."""
        ours = one_of(active_reservations(self.pair), index)
        if ours.job_uuid is not None:
            started_at_ns = self.pair.now_ns // 1000 * 1000
            fact = JobElsewhere(ours.miner, ours.executor_class, ours.job_uuid, started_at_ns, ttl_ns)
            self.pair.record_miner_fact(fact)

    @rule(amount_s=amounts_s, executor_class=classes, offset=st.integers(-30, 30))
    def find_miners(self, amount_s: float, executor_class: str, offset: int) -> None:
        self.pair.find_miners(amount_s, executor_class, self.pair.near(offset))

    @rule(
        amount_s=st.sampled_from(strategies.MALFORMED_AMOUNTS_S),
        start=st.sampled_from([0, -1]),
        how=st.sampled_from(["spend", "release"]),
        unknown=st.sampled_from([2**62 + 1, 2**63 - 1]),
    )
    def invalid_input_is_refused(self, amount_s: float, start: int, how: str, unknown: int) -> None:
        self.pair.find_miners(amount_s, CLASSES[0], 1)
        self.pair.find_miners(1.0, CLASSES[0], start)
        self.pair.reserve(MINERS[0], CLASSES[0], amount_s, 1)
        self.pair.reserve(MINERS[0], CLASSES[0], 1.0, start)
        self.pair.pick(JobRequest("malformed", CLASSES[0], 0.0, amount_s, 0.0))
        self.pair.record_block(start, 0.0, strategies.WHOLE_NETWORK)
        self.pair.settle(unknown, how)

    @rule(step_s=st.sampled_from(strategies.CLOCK_STEPS_S))
    def the_clock_moves(self, step_s: float) -> None:
        self.pair.clock.now_ns += nanoseconds(step_s)

    @rule(years=st.sampled_from([-1, 1, 1, 30]))
    def the_clock_is_wrong_for_a_moment(self, years: int) -> None:
        """Something is recorded with a clock far away, and then the clock is right again."""
        right_ns = self.pair.clock.now_ns
        self.pair.clock.now_ns += years * 365 * 86_400 * SECOND_NS
        self.pair.record_manifests(self.pair.near(0), {miner: dict.fromkeys(CLASSES, 2) for miner in MINERS})
        self.pair.record_block(self.pair.near(1), 0.0, strategies.WHOLE_NETWORK)
        self.pair.clock.now_ns = right_ns

    @rule(named=strategies.named_rules())
    def settings_change(self, named: dict[str, object]) -> None:
        self.pair.change_settings(named)

    @precondition(lambda self: bool(active_reservations(self.pair)))
    @rule(index=indices, off_ns=st.sampled_from([0, 0, -1]))
    def the_clock_meets_a_due_time(self, index: int, off_ns: int) -> None:
        self.pair.clock.now_ns = one_of(active_reservations(self.pair), index).expires_at_ns + off_ns

    @rule(rules=st.none() | st.none() | strategies.rules())
    def the_process_restarts(self, rules: Rules | None) -> None:
        self.pair.restart(rules)

    @precondition(lambda self: len(self.pair.ledgers) == 1)
    @rule(rules=st.none() | st.none() | strategies.rules())
    def a_second_process_opens_the_ledger(self, rules: Rules | None) -> None:
        self.pair.open(rules)

    @precondition(lambda self: self.pair.pasts)
    @rule(index=indices, executor_class=st.sampled_from(CLASSES))
    def the_past_is_queried(self, index: int, executor_class: str) -> None:
        self.pair.look_back(index, executor_class)

    @rule(
        miner=st.none() | st.sampled_from(MINERS),
        status=st.none() | st.sampled_from(["reserved", "spent", "released", "expired"]),
        offset=st.none() | st.integers(-12, 0),
        newest_first=st.booleans(),
        limit=st.sampled_from([1, 3, 100]),
    )
    def the_history_is_read(
        self, miner: str | None, status: str | None, offset: int | None, newest_first: bool, limit: int
    ) -> None:
        block = None if offset is None else self.pair.near(offset)
        self.pair.history(miner=miner, status=status, block=block, newest_first=newest_first, limit=limit)

    @invariant()
    def ledger_and_model_agree(self) -> None:
        self.pair.agree()

    def teardown(self) -> None:
        """Audit, unless the run has failed already: a second failure would hide the first one."""
        failed = sys.exc_info()[0] is not None
        try:
            if self.opened is not None:
                if not failed:
                    for number in range(6):
                        self.opened.job_agrees(f"job-{number}")
                self.opened.finish(audit=not failed)
        finally:
            self.directory.cleanup()


def active_reservations(pair: Pair) -> list[Reservation]:
    """Return the active reservations of the model."""
    return [each for each in pair.model.reservations if each.status == "reserved"]


def one_of(items: Sequence[T], index: int) -> T:
    """Return an item; the index may be larger than the list."""
    return items[index % len(items)]


def run_machine(*, examples: int, steps: int, run_seed: int) -> None:
    """Run the state machine. A failure shows its seed, the smallest failing run, and the blob that repeats it."""
    size = settings(
        max_examples=int(os.environ.get("REFERENCE_EXAMPLES", examples)),
        stateful_step_count=int(os.environ.get("REFERENCE_STEPS", steps)),
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    with seed_shown(run_seed):
        run_state_machine_as_test(seed(run_seed)(LedgerMachine), settings=size)


@contextmanager
def seed_shown(used: int) -> Iterator[None]:
    """Add the seed to the message of any failure, so that it can be repeated."""
    try:
        yield
    except BaseException as failure:
        failure.add_note(f"repeat with REFERENCE_SEED={used}")
        raise


def chosen_seed(default: int) -> int:
    """Return `REFERENCE_SEED` from the environment, or a default."""
    return int(os.environ.get("REFERENCE_SEED", default))


@pytest.mark.slow
@pytest.mark.timeout(900)  # Shrinking a failing run takes up to five minutes, and is worth it.
def test_random_runs_agree_with_the_reference() -> None:
    """After facts, claims, settlements, restarts and clock jumps in any order, ledger and model agree."""
    run_machine(examples=50, steps=45, run_seed=chosen_seed(1))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_random_runs_agree_with_the_reference() -> None:
    """The same for many more and longer runs, with another seed each time."""
    run_machine(examples=1500, steps=60, run_seed=chosen_seed(secrets.randbits(32)))


# One longer history.


class History:
    """A long random history: blocks, syncs, jobs and settlements that follow from a seed."""

    def __init__(self, pair: Pair, rng: random.Random) -> None:
        self.pair = pair
        self.rng = rng
        self.jobs = 0

    def step(self) -> None:
        """Move the clock, take one step, and sometimes compare all queries."""
        steps, weights = zip(
            (self.a_block_comes, 30),
            (self.a_hole_is_filled, 3),
            (self.manifests_come, 3),
            (self.a_block_is_withdrawn, 2),
            (self.manifests_are_withdrawn, 1),
            (self.a_job_arrives, 25),
            (self.a_reservation_is_made, 6),
            (self.a_job_ends, 20),
            (self.a_router_learns_about_a_miner, 12),
            (self.settings_of_the_router_change, 0.3),
            (self.pair.expire_due, 1),
            (self.miners_are_searched, 8),
            (self.the_past_is_queried, 1),
            strict=True,
        )
        self.pair.clock.now_ns += self.rng.randrange(20 * SECOND_NS)
        if self.rng.random() < 0.02:
            self.pair.clock.now_ns -= self.rng.randrange(300 * SECOND_NS)
        if self.rng.random() < 0.005:
            self.pair.clock.now_ns += self.rng.choice([-3600, 3600, 86_400]) * SECOND_NS
        self.rng.choices(steps, weights)[0]()
        if self.rng.random() < 0.05:
            self.pair.agree()

    def graph(self) -> Metagraph:
        away = self.rng.choice([None, None, None, None, *MINERS])
        stakes = tuple((validator, self.rng.choice([1.0, 2.5, 7.0])) for validator in strategies.VALIDATORS)
        axons = tuple(axon for axon in strategies.WHOLE_NETWORK.axons if axon.hotkey != away)
        return Metagraph(axons, stakes)

    def a_block_comes(self) -> None:
        number = self.pair.near(self.rng.choice([1, 1, 1, 1, 1, 2]))
        self.pair.record_block(number, self.rng.choice([0.0, 0.1, 0.4, 0.7]), self.graph())

    def a_hole_is_filled(self) -> None:
        number = self.pair.near(-self.rng.randrange(1, 40))
        if self.pair.model.block(number) is None:
            self.pair.record_block(number, 0.0, self.graph())

    def manifests_come(self) -> None:
        offered = {
            miner: {name: self.rng.choice([1, 2, 2, 3, 3]) for name in CLASSES}
            for miner in MINERS
            if self.rng.random() < 0.9
        }
        self.pair.record_manifests(self.pair.near(self.rng.randrange(-30, 2)), offered)

    def a_block_is_withdrawn(self) -> None:
        self.pair.withdraw_block(self.pair.near(-self.rng.randrange(0, 40)), "a test")

    def manifests_are_withdrawn(self) -> None:
        if self.pair.model.syncs:
            self.pair.withdraw_manifests(self.rng.choice(self.pair.model.syncs).block, "a test")

    def a_job_arrives(self) -> None:
        self.jobs += 1
        number = self.jobs if self.rng.random() < 0.9 else self.rng.randrange(1, self.jobs + 1)
        limit_s = self.rng.choice([0.25, 5.0, 33.3, 70.0])
        self.pair.pick(JobRequest(f"job-{number}", self.rng.choice(CLASSES), 0.5, limit_s, 1.5))

    def a_reservation_is_made(self) -> None:
        amount_s = self.rng.randrange(1, 90_000) / 1000
        start = self.pair.near(self.rng.randrange(-70, 10))
        account = self.rng.choice(MINERS), self.rng.choice(CLASSES)
        version = self.rng.choice([None, None, self.pair.model.version(*account) + self.rng.choice([0, 0, 0, 1])])
        self.pair.reserve(*account, amount_s, start, version=version)

    def a_job_ends(self) -> None:
        known = len(self.pair.model.reservations)
        if known:
            reservation_id = self.rng.randrange(max(1, known - 20), known + 1)
            self.pair.settle(reservation_id, self.rng.choice(["spend", "spend", "release"]))

    def a_router_learns_about_a_miner(self) -> None:
        facts = self.pair.model.miner_facts.facts
        if facts and self.rng.random() < 0.1:
            self.pair.record_miner_fact(self.rng.choice(facts)[0])
        else:
            self.pair.record_miner_fact(self.a_miner_fact(uuids=400))

    def a_miner_fact(self, uuids: int) -> Fact:
        rng, now_ns = self.rng, self.pair.now_ns // 1000 * 1000
        miner, executor_class = rng.choice(MINERS), rng.choice(CLASSES)
        uuid = f"job-{rng.randrange(uuids)}"
        begin_ns, ttl_ns = now_ns + rng.choice([0, 0, 10, -10]) * SECOND_NS, rng.choice([20, 90]) * SECOND_NS
        kinds: list[Callable[[], Fact]] = [
            lambda: Exclusion(miner, "slow", now_ns + rng.choice([-1, 30, 300]) * SECOND_NS),
            lambda: Exclusion(miner, "slow", None),
            lambda: Readmission(miner, "fast again"),
            lambda: Collateral({each: rng.choice([7, 5, 5, 3]) for each in MINERS if rng.random() < 0.5} or {miner: 7}),
            lambda: JobElsewhere(miner, executor_class, uuid, begin_ns, ttl_ns),
            lambda: EndElsewhere(uuid),
            lambda: Incident(miner, executor_class, rng.choice(strategies.KINDS), uuid),
        ]
        return rng.choices(kinds, [2, 1, 5, 2, 6, 4, 9])[0]()

    def settings_of_the_router_change(self) -> None:
        named: dict[str, list[object]] = {
            "minimum_collateral_wei": [0, 5],
            "routing_order": ["allowance", "reliability"],
            "reliability_soft_cutoff": [-50.0, -2.0],
            "reliability_window_hours": [24.0, 0.05],
        }
        field = self.rng.choice(sorted(named))
        self.pair.change_settings({field: self.rng.choice(named[field])})

    def miners_are_searched(self) -> None:
        amount_s = self.rng.choice([SMALLEST_AMOUNT_S, 10.0, 60.0, 199.5])
        start = self.pair.near(self.rng.randrange(-80, 80))
        self.pair.find_miners(amount_s, self.rng.choice(CLASSES), start)

    def the_past_is_queried(self) -> None:
        if self.pair.pasts:
            self.pair.look_back(self.rng.randrange(len(self.pair.pasts)), self.rng.choice(CLASSES))


class RouterHistory(History):
    """A short history in which miner facts decide most picks: few executors, and a clock that meets the facts."""

    def step(self) -> None:
        """Take one step."""
        steps, weights = zip(
            (self.a_miner_fact_is_recorded, 30),
            (self.a_receipt_of_our_own_job_comes_back, 5),
            (self.the_clock_meets_a_fact, 15),
            (self.a_job_arrives, 30),
            (self.a_job_ends, 15),
            (self.executors_change, 2),
            (self.a_block_comes, 1),
            (self.settings_of_the_router_change, 3),
            (self.the_clock_is_wrong_for_a_moment, 0.5),
            strict=True,
        )
        self.pair.clock.now_ns += self.rng.choice([0, SECOND_NS, 5 * SECOND_NS])
        self.rng.choices(steps, weights)[0]()

    def a_miner_fact_is_recorded(self) -> None:
        self.pair.record_miner_fact(self.a_miner_fact(uuids=12), self.rng.choice([None, None, "key-1", "key-2"]))

    def a_receipt_of_our_own_job_comes_back(self) -> None:
        active = active_reservations(self.pair)
        if active:
            ours = self.rng.choice(active)
            receipt = ours.miner, ours.executor_class, str(ours.job_uuid), self.pair.now_ns // 1000 * 1000
            self.pair.record_miner_fact(JobElsewhere(*receipt, self.rng.choice([5, 500]) * SECOND_NS))

    def the_clock_meets_a_fact(self) -> None:
        instants = self.pair.model.miner_facts.instants()
        if instants:
            window_ns = 3600 * nanoseconds(self.pair.model.rules.reliability_window_hours)
            at_ns = self.rng.choice(instants) + self.rng.choice([0, window_ns])
            if abs(at_ns - self.pair.now_ns) < 600 * SECOND_NS:
                self.pair.clock.now_ns = at_ns + self.rng.choice([-1, 0, 0])
        self.a_job_arrives()

    def a_job_arrives(self) -> None:
        uuid = f"job-{self.rng.randrange(12)}"
        self.pair.pick(JobRequest(uuid, self.rng.choice(CLASSES), 0.5, self.rng.choice([1.0, 9.0]), 0.0))

    def executors_change(self) -> None:
        offered = {miner: {name: self.rng.choice([1, 2, 2]) for name in CLASSES} for miner in MINERS}
        self.pair.record_manifests(self.pair.near(self.rng.choice([0, 1])), offered)

    def the_clock_is_wrong_for_a_moment(self) -> None:
        """The recorded time is ahead from then on."""
        right_ns = self.pair.now_ns
        self.pair.clock.now_ns += self.rng.choice([400, 86_400 * 365]) * SECOND_NS
        self.pair.record_miner_fact(self.a_miner_fact(uuids=12))
        self.pair.clock.now_ns = right_ns


def run_router_histories(*, seeds: int, steps: int, run_seed: int) -> None:
    for number in range(seeds):
        rng = random.Random(run_seed * 100_000 + number)
        with seed_shown(run_seed):
            run_router_history(rng, steps)


def run_router_history(rng: random.Random, steps: int) -> None:
    rules = replace(
        strategies.SMALL_RULES,
        block_expiry_blocks=60,
        minimum_collateral_wei=rng.choice([0, 0, 5]),
        routing_order=rng.choice(["allowance", "reliability"]),
        reliability_window_hours=0.05,
        reliability_soft_cutoff=rng.choice([-50.0, -4.0, -1.0]),
        reliability_separation=rng.choice([5.0, 0.5]),
    )
    pair = Pair("sqlite://", rules)
    completed = False
    try:
        pair.record_manifests(1000, {miner: dict.fromkeys(CLASSES, rng.choice([1, 2])) for miner in MINERS})
        for number in range(1000, 1016):
            pair.record_block(number, 0.0, strategies.WHOLE_NETWORK)
        history = RouterHistory(pair, rng)
        for _ in range(steps):
            history.step()
        pair.agree()
        completed = True
    finally:
        pair.finish(audit=completed)


def run_history(*, steps: int, run_seed: int) -> None:
    caps = {CLASSES[1]: 1}
    rules = replace(strategies.SMALL_RULES, block_expiry_blocks=60, executors_max_per_class=caps)
    with seed_shown(run_seed):
        pair = Pair("sqlite://", rules)
        completed = False
        try:
            history = History(pair, random.Random(run_seed))
            pair.record_manifests(1000, {miner: dict.fromkeys(CLASSES, 2) for miner in MINERS})
            pair.record_block(1000, 0.0, strategies.WHOLE_NETWORK)
            for _ in range(steps):
                history.step()
            pair.agree()
            completed = True
        finally:
            pair.finish(audit=completed)


def test_thresholds_of_syncs_ahead_and_of_lost_miners_are_exact() -> None:
    """A sync 7,200 blocks ahead is plausible, and so is a block with a tenth of the miners, or after one with 9."""
    pair = Pair("sqlite://", strategies.SMALL_RULES)
    try:
        axons = tuple(Axon(f"miner-{index:02}", "192.0.2.1", 4, 8000) for index in range(11))
        stakes = tuple((f"validator-{index:02}", 1.0) for index in range(11))
        for number, (miners, validators) in enumerate([(9, 9), (0, 0), (11, 11), (1, 11), (2, 11), (10, 10), (1, 1)]):
            pair.record_block(1000 + number, 0.0, Metagraph(axons[:miners], stakes[:validators]))
        pair.record_block(1006, 0.0, Metagraph(axons[:10], stakes[:0]))
        pair.record_manifests(pair.near(7201), {})
        pair.record_manifests(pair.near(7200), {})
        pair.agree()
    finally:
        pair.finish(audit=sys.exc_info()[0] is None)


def test_thresholds_are_exact() -> None:
    """A tenth of the executors, and 100,000 blocks ahead, are plausible; one fewer, and one more, are not."""
    pair = Pair("sqlite://", strategies.SMALL_RULES)
    try:
        pair.record_manifests(1000, {MINERS[0]: {CLASSES[0]: 15}, MINERS[1]: {CLASSES[1]: 5}})
        pair.record_manifests(1001, {MINERS[0]: {CLASSES[0]: 1}})
        pair.record_manifests(1001, {MINERS[0]: {CLASSES[0]: 1, CLASSES[1]: 1}})
        pair.record_manifests(1002, {}, confirm=True)
        for number in (1000, 101_001, 101_000):
            pair.record_block(number, 0.0, strategies.WHOLE_NETWORK)
        pair.agree()
    finally:
        pair.finish(audit=sys.exc_info()[0] is None)


@pytest.mark.slow
def test_a_history_agrees_with_the_reference() -> None:
    """Ledger and model agree over some hundred blocks and jobs, with missing blocks, drops and clock jumps."""
    run_history(steps=1000, run_seed=chosen_seed(1))


@pytest.mark.slow
def test_histories_of_miner_facts_agree_with_the_reference() -> None:
    """Exclusions, collateral, jobs elsewhere and incidents decide as the model says, to the nanosecond.

    Catches an exclusion that lasts a nanosecond too long, a job that counts twice, a forgotten end, a window that
    ignores the clock, and a draw with other weights.
    """
    run_router_histories(seeds=25, steps=120, run_seed=chosen_seed(1))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_histories_of_miner_facts_agree_with_the_reference() -> None:
    """The same for many more of them, with another seed each time."""
    run_router_histories(seeds=2000, steps=150, run_seed=chosen_seed(secrets.randbits(32)))


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_long_history_agrees_with_the_reference() -> None:
    """The same for thousands of them, with another seed each time."""
    run_history(steps=6000, run_seed=chosen_seed(secrets.randbits(32)))
