"""The decision of one pick, without a store: given a state, when decided, then a route or a refusal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ledger import (
    BlockFact,
    FactValidator,
    ManifestsFact,
    RecordFacts,
    RecordSettings,
    Reserve,
    UnitOfWork,
)
from ledger.domain.lookup import LookupResult
from projections import Availability
from routing import AllMinersBusy, JobRequestConflict, JobRoute, NotEnoughAllowanceException
from routing.pick import Pick
from tests.support.small import GPU, START, VALIDATOR, Clock, miner

NOW_NS = Clock(START + timedelta(seconds=12 * 11)).now_ns
S = 10**9


def given(**executors: int) -> Availability:
    """Blocks 1 to 11 of 12 s: each of the first ten grants every executor 12 s."""
    hotkeys = {f"5{miner_name}": count for miner_name, count in executors.items()}
    registered = [miner(hotkey) for hotkey in hotkeys]
    facts: list[BlockFact | ManifestsFact] = [
        ManifestsFact(1, {hotkey: {GPU: count} for hotkey, count in hotkeys.items()})
    ]
    for number in range(1, 12):
        facts.append(BlockFact(number, START + timedelta(seconds=12 * number), registered, {VALIDATOR: 1.0}))
    contents, _ = FactValidator().contents(facts)
    state = Availability()
    decided(state, RecordSettings(VALIDATOR, None))
    decided(state, RecordFacts(contents, confirm=False))
    return state


def decided(state: Availability, command: Any, *, now_ns: int = NOW_NS) -> Any:
    """Decide a command on the state, which moves on by its events."""
    return command.decide(UnitOfWork(state, LookupResult(), now_ns))


def reserved(state: Availability, miner_ss58: str, amount_s: int) -> Any:
    return decided(state, Reserve(miner_ss58, GPU, amount_s * S, 11, None, None))


def reverted(state: Availability, pick: Pick) -> JobRoute:
    """Decide a pick and take it back, as the writer does if the head has moved."""
    unit_of_work = UnitOfWork(state, LookupResult(), NOW_NS)
    route = pick.decide(unit_of_work)
    unit_of_work.revert()
    return route


def test_the_first_candidate_is_claimed_from_its_earliest_blocks() -> None:
    """The miner with the earliest free block comes first; its blocks are reserved whole."""
    state = given(Anna=2, Bert=1)
    reserved(state, "5Anna", 12)

    route = decided(state, Pick("job", GPU, 13 * S))

    assert (route.miner, route.allowance_blocks) == (miner("5Bert"), [1, 2])
    assert route.allowance_job_value == 13.0
    assert state.jobs["job"].reservation_id == route.allowance_reservation_id


def test_a_busy_candidate_is_skipped() -> None:
    """A miner that runs as many jobs as it has executors is skipped, although it has the earlier blocks."""
    state = given(Anna=1, Bert=2)
    reserved(state, "5Bert", 48)
    reserved(state, "5Anna", 12)
    assert state.ranking(GPU, NOW_NS)[0].hotkey_ss58 == "5Anna"

    assert decided(state, Pick("job", GPU, 12 * S)).miner == miner("5Bert")


def test_all_candidates_busy_is_refused_with_their_number() -> None:
    """`AllMinersBusy` counts the busy candidates; the pick lost none, and appends nothing."""
    state = given(Anna=1, Bert=1)
    reserved(state, "5Anna", 12)
    reserved(state, "5Bert", 12)
    position = state.position

    with pytest.raises(AllMinersBusy) as refused:
        decided(state, Pick("job", GPU, 12 * S))

    assert (refused.value.busy, refused.value.lost) == (2, 0)
    assert state.position == position


def test_a_miner_without_enough_allowance_is_no_candidate() -> None:
    """Nobody with the amount is another refusal than everybody busy."""
    with pytest.raises(NotEnoughAllowanceException):
        decided(given(Anna=1), Pick("job", GPU, 121 * S))


def test_a_pick_decided_again_keeps_its_miner_while_that_qualifies() -> None:
    """Another claim on the chosen miner makes the other one first; the pick keeps its miner and records that."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen = reverted(state, pick).miner
    reserved(state, chosen.hotkey_ss58, 24)
    assert state.ranking(GPU, NOW_NS)[0].hotkey_ss58 != chosen.hotkey_ss58

    unit_of_work = UnitOfWork(state, LookupResult(), NOW_NS)

    assert pick.decide(unit_of_work).miner == chosen
    assert getattr(unit_of_work.events[-1], "kept") is True  # noqa: B009 - only this event has the field
    assert unit_of_work.moved_picks == 0


def test_a_pick_decided_again_leaves_a_miner_that_no_longer_qualifies() -> None:
    """If other claims took all of the chosen miner's allowance, the next candidate is claimed, and counted as moved."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen = reverted(state, pick).miner
    reserved(state, chosen.hotkey_ss58, 240)

    unit_of_work = UnitOfWork(state, LookupResult(), NOW_NS)

    assert pick.decide(unit_of_work).miner != chosen
    assert unit_of_work.moved_picks == 1


def test_a_pick_that_lost_its_only_miner_reports_all_busy() -> None:
    """It had a candidate with enough allowance, so `NotEnoughAllowanceException` would be wrong."""
    state, pick = given(Anna=2), Pick("job", GPU, 12 * S)
    reverted(state, pick)
    reserved(state, "5Anna", 240)

    with pytest.raises(AllMinersBusy) as refused:
        decided(state, pick)

    assert (refused.value.busy, refused.value.lost) == (0, 1)


def test_the_active_reservation_of_the_job_is_returned_even_if_overdue() -> None:
    """Routing a job again appends nothing and returns its route, however late."""
    state = given(Anna=1)
    first = decided(state, Pick("job", GPU, 12 * S))
    position = state.position

    assert decided(state, Pick("job", GPU, 12 * S), now_ns=NOW_NS + 10_000 * S) == first
    assert state.position == position


@pytest.mark.parametrize(("executor_class", "amount_s"), [(GPU, 13), ("other class", 12)])
def test_another_request_for_the_same_job_is_refused(executor_class: str, amount_s: int) -> None:
    """A job uuid identifies one request: amount and executor class must be the same."""
    state = given(Anna=1)
    decided(state, Pick("job", GPU, 12 * S))

    with pytest.raises(JobRequestConflict):
        decided(state, Pick("job", executor_class, amount_s * S))
