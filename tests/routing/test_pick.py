"""The decision of one pick, without a store: given a state, when decided, then a route or a refusal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ledger import (
    BlockFact,
    ChangeSettings,
    FactValidator,
    ManifestsFact,
    RecordFacts,
    RecordSettings,
    Reserve,
    UnitOfWork,
)
from ledger.domain.lookup import LookupResult
from ledger.events import AllowanceReserved
from projections import Availability
from routing import AllMinersBusy, JobRequestConflict, JobRoute, NotEnoughAllowanceException
from routing.pick import Pick
from tests.support.small import GPU, START, VALIDATOR, Clock, miner

OTHER = "always_on.gpu-80gb"
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


def offers(counts: dict[str, int]) -> Any:
    """Return a sync at block 12 in which Anna and Bert offer these executors."""
    return FactValidator().contents([ManifestsFact(12, {"5Anna": counts, "5Bert": counts})])[0]


def reserved(state: Availability, miner_ss58: str, amount_s: int) -> Any:
    return decided(state, Reserve(miner_ss58, GPU, amount_s * S, 11, None, None))


def recorded(state: Availability, number: int, hotkeys: list[str]) -> None:
    """Record a block with these miners."""
    registered = [miner(hotkey) for hotkey in hotkeys]
    fact = BlockFact(number, START + timedelta(seconds=12 * number), registered, {VALIDATOR: 1.0})
    decided(state, RecordFacts(FactValidator().contents([fact])[0], confirm=False))


def claimed(state: Availability, pick: Pick, now_ns: int = NOW_NS) -> tuple[AllowanceReserved, UnitOfWork]:
    """Decide a pick; return the event of its claim, and the unit of work."""
    unit_of_work = UnitOfWork(state, LookupResult(), now_ns)
    pick.decide(unit_of_work)
    event = unit_of_work.events[-1]
    assert isinstance(event, AllowanceReserved)
    return event, unit_of_work


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


def test_a_pick_decided_again_keeps_its_miner_and_names_the_position_of_its_choice() -> None:
    """Another claim on the chosen miner makes the other one first; the pick stays on its miner.

    Catches a pick that moves to the new first candidate, and a claim that does not name what its choice saw.
    """
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen, chosen_at = reverted(state, pick).miner, state.position
    reserved(state, chosen.hotkey_ss58, 24)
    assert state.ranking(GPU, NOW_NS)[0].hotkey_ss58 != chosen.hotkey_ss58

    event, unit_of_work = claimed(state, pick)

    assert state.jobs["job"].account.miner_ss58 == chosen.hotkey_ss58
    assert (event.chosen_at, event.kept) == (chosen_at, False)
    assert unit_of_work.moved_picks == 0


def test_a_pick_whose_miner_comes_first_again_names_no_position() -> None:
    """A claim on another class or miner changes nothing for it, so its choice is that of now."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen = reverted(state, pick).miner.hotkey_ss58
    reserved(state, "5Bert" if chosen == "5Anna" else "5Anna", 24)

    event, _ = claimed(state, pick)

    assert (state.jobs["job"].account.miner_ss58, event.chosen_at) == (chosen, None)


def test_a_choice_that_is_kept_again_names_its_first_position() -> None:
    """However often the pick is decided again, the claim names what its choice saw, not what a repetition saw."""
    state, pick = given(Anna=4, Bert=4), Pick("job", GPU, 12 * S)
    chosen, chosen_at = reverted(state, pick).miner.hotkey_ss58, state.position
    for _ in range(3):
        reserved(state, chosen, 24)
        assert reverted(state, pick).miner.hotkey_ss58 == chosen

    assert claimed(state, pick)[0].chosen_at == chosen_at


@pytest.mark.parametrize(("events", "kept"), [(9_998, True), (9_999, False)])
def test_a_choice_is_kept_for_at_most_ten_thousand_events(events: int, kept: bool) -> None:
    """The claim is at most 10,000 positions after the one that it names; else the pick chooses anew."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen, chosen_at = reverted(state, pick).miner.hotkey_ss58, state.position
    reserved(state, chosen, 24)
    # As if others had appended meanwhile what does not concern this class.
    state.position += events

    event, _ = claimed(state, pick)

    assert (state.jobs["job"].account.miner_ss58 == chosen) is kept
    assert event.chosen_at == (chosen_at if kept else None)
    if kept:
        assert state.position - chosen_at == 10_000


@pytest.mark.parametrize(("blocks", "kept"), [(1, True), (2, False)])
def test_a_choice_is_kept_for_one_newest_block(blocks: int, kept: bool) -> None:
    """The claim itself always starts at the newest block."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen = reverted(state, pick).miner.hotkey_ss58
    reserved(state, chosen, 24)
    for number in range(12, 12 + blocks):
        recorded(state, number, ["5Anna", "5Bert"])

    event, _ = claimed(state, pick)

    assert event.job_start_block == 11 + blocks
    assert (event.chosen_at is not None) is kept
    assert (state.jobs["job"].account.miner_ss58 == chosen) is kept


@pytest.mark.parametrize(("later_ns", "kept"), [(112 * S - 1, True), (112 * S, False), (-1, False)])
def test_a_choice_is_kept_while_the_clock_gives_the_same_order(later_ns: int, kept: bool) -> None:
    """When a reservation became due since, or the clock went back, the state of then may give another order by now.

    The audit repeats the choice with the clock of the claim. Catches a pick that stays on its miner nevertheless: an
    honest log would have a finding.
    """
    state, pick = given(Anna=4, Bert=4), Pick("job", GPU, 12 * S)
    reserved(state, "5Anna", 12)
    reserved(state, "5Bert", 12)
    chosen = reverted(state, pick).miner.hotkey_ss58
    reserved(state, chosen, 24)

    event, _ = claimed(state, pick, NOW_NS + later_ns)

    assert (event.chosen_at is not None) is kept


def test_a_choice_that_saw_uncommitted_rows_of_its_class_is_not_kept() -> None:
    """A batch that is reverted never existed for others; a choice on it cannot be repeated from the log."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    unit_of_work = UnitOfWork(state, LookupResult(), NOW_NS)
    first = Pick("first", GPU, 12 * S).decide(unit_of_work).miner.hotkey_ss58
    chosen = pick.decide(unit_of_work).miner.hotkey_ss58
    assert chosen != first
    unit_of_work.revert()
    reserved(state, chosen, 24)

    event, _ = claimed(state, pick)

    assert (state.jobs["job"].account.miner_ss58, event.chosen_at) == (first, None)


def test_a_choice_that_saw_an_uncommitted_fact_is_not_kept() -> None:
    """A batch with facts or settings cannot be reverted: after a failure the state is folded anew, without them."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    unit_of_work = UnitOfWork(state, LookupResult(), NOW_NS)
    ChangeSettings({"respect_executor_count": False}).decide(unit_of_work)
    chosen = pick.decide(unit_of_work).miner.hotkey_ss58
    folded_anew = given(Anna=2, Bert=2)
    reserved(folded_anew, chosen, 24)

    event, _ = claimed(folded_anew, pick)

    assert event.chosen_at is None
    assert folded_anew.jobs["job"].account.miner_ss58 != chosen


def test_uncommitted_rows_of_another_class_do_not_disturb_a_choice() -> None:
    """The head is the position whose state the choice saw, as far as its class is concerned."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    decided(state, RecordFacts(offers({OTHER: 2, GPU: 2}), confirm=False))
    recorded(state, 12, ["5Anna", "5Bert"])
    recorded(state, 13, ["5Anna", "5Bert"])
    head = state.position
    unit_of_work = UnitOfWork(state, LookupResult(), NOW_NS)
    Pick("first", OTHER, 1 * S).decide(unit_of_work)
    chosen = pick.decide(unit_of_work).miner.hotkey_ss58
    unit_of_work.revert()
    reserved(state, chosen, 24)

    assert claimed(state, pick)[0].chosen_at == head


def test_a_pick_decided_again_leaves_a_miner_that_no_longer_qualifies() -> None:
    """If other claims took all of the chosen miner's allowance, the next candidate is claimed, and counted as moved."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen = reverted(state, pick).miner
    reserved(state, chosen.hotkey_ss58, 240)

    unit_of_work = UnitOfWork(state, LookupResult(), NOW_NS)

    assert pick.decide(unit_of_work).miner != chosen
    assert unit_of_work.moved_picks == 1


@pytest.mark.parametrize("reason", ["busy", "left"])
def test_a_pick_decided_again_leaves_a_miner_that_is_busy_or_has_left(reason: str) -> None:
    """The amount is not enough to qualify: a miner at capacity, or off the metagraph, cannot run the job."""
    state, pick = given(Anna=2, Bert=2), Pick("job", GPU, 12 * S)
    chosen = reverted(state, pick).miner.hotkey_ss58
    other = "5Bert" if chosen == "5Anna" else "5Anna"
    if reason == "busy":
        reserved(state, chosen, 12)
        reserved(state, chosen, 12)
    else:
        recorded(state, 12, [other])

    event, unit_of_work = claimed(state, pick)

    assert (state.jobs["job"].account.miner_ss58, event.chosen_at, unit_of_work.moved_picks) == (other, None, 1)


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
