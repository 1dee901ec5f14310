"""Views of the past return what the ledger returned then; routing decisions can be explained from the log alone.

`PAST_SEED` and `PAST_STORIES` set the first seed and the number of the random stories.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from projections import Availability
from routing import (
    Allowance,
    AllowanceException,
    Explanation,
    InvalidInput,
    JobRoutingException,
    PositionOutOfRange,
    ReservationNotFound,
    Routing,
    Settings,
)
from routing.pick import Pick
from tests.support.small import GPU, START, VALIDATOR, Clock, job, miner, record_blocks, small_ledger
from tests.support.stories import CLASSES, MINERS, SETTINGS, Story, events_of, project, seed_shown, utc

FIRST_SEED = int(os.environ.get("PAST_SEED", "1"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("PAST_STORIES", "3")))
EVERYTHING_S = 1e-9


# Views of the past


class Queried(NamedTuple):
    """The latest reservations and jobs, to query each of them."""

    reservations: tuple[int, ...]
    jobs: tuple[str, ...]


def latest(story: Story) -> Queried:
    numbers = range(max(1, story.jobs - 4), story.jobs + 1)
    return Queried(tuple(story.made[-8:]), tuple(f"job-{number}" for number in numbers))


async def all_results(ledger: Any, queried: Queried) -> dict[str, Any]:
    """Return the results of all queries, errors included."""

    async def or_error(query: Awaitable[Any]) -> Any:
        try:
            return await query
        except (AllowanceException, JobRoutingException) as error:
            return type(error).__name__, error.to_dict()

    newest = await ledger.current_block()
    found = {
        "block": newest,
        "miners": await ledger.miners(),
        "manifests": await ledger.manifests(),
        "settings": await ledger.settings(),
        "head": await ledger.head(),
        "overview": await ledger.overview(),
        "why": await ledger.why(MINERS[0], CLASSES[0]),
        "history": await ledger.history(limit=7),
        "reserved": await ledger.history(status="reserved"),
        "expired": await ledger.history(status="expired", newest_first=False, limit=5),
    }
    for executor_class in CLASSES:
        found[executor_class] = await or_error(ledger.find_miners(EVERYTHING_S, executor_class, newest or 1))
    for reservation_id in queried.reservations:
        found[f"reservation {reservation_id}"] = await or_error(ledger.reservation(reservation_id))
    for job_uuid in queried.jobs:
        found[job_uuid] = await or_error(ledger.reservation_for_job(job_uuid))
    return found


class Moment(NamedTuple):
    """The results of a ledger at one moment, and the reservations and jobs that were queried."""

    position: int
    at_ns: int
    queried: Queried
    results: dict[str, Any]


class Moments:
    """The results of a ledger after each step of its story, by position and by clock."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.by_position: dict[int, Moment] = {}
        self.by_time: list[Moment] = []

    async def record(self) -> None:
        """Query with the clock that decided the last event, and sometimes with the clock as it is."""
        story, clock = self.story, self.story.clock
        head = await story.ledger.head()
        now_ns = clock.now_ns
        clock.now_ns = await decided_at_ns(story.ledger, head.position)
        self.by_position[head.position] = await self.moment(head.position)
        clock.now_ns = max(now_ns, head.recorded_at_ns)
        if story.draw.random() < 0.3:
            self.by_time.append(await self.moment(head.position))
            clock.advance(0.000_001)
        else:
            clock.now_ns = now_ns

    async def moment(self, position: int) -> Moment:
        queried = latest(self.story)
        return Moment(position, self.story.clock.now_ns, queried, await all_results(self.story.ledger, queried))


async def decided_at_ns(ledger: Allowance, position: int) -> int:
    """Return the clock that decided an event, read from its stored text."""
    row = (await events_of(ledger))[position - 1]
    return int(json.loads(row.payload).get("decided_at_ns", row.recorded_at_ns))


async def run_story(ledger: Allowance, clock: Clock, seed: int, steps: int) -> Moments:
    story = Story(ledger, clock, seed)
    moments = Moments(story)
    await story.goes_on(0)
    for _ in range(steps):
        await story.goes_on(1)
        await moments.record()
    return moments


def block_of(row: Any) -> int:
    """Return the block that a stored event is about; 0 if it is about none."""
    event = json.loads(row.payload)
    return int(event.get("number", 0) if event["type"] == "block-recorded" else event.get("block", 0))


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_view_of_the_past_returns_what_the_ledger_returned_then(any_url: str, seed: int) -> None:
    """By position, by time and by block, every field of every result is the same as at that moment."""
    clock = Clock()
    with seed_shown(seed):
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            moments = await run_story(ledger, clock, seed, steps=40)
            await project(ledger)
        async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock, read_only=True) as ledger:
            rows = await events_of(ledger)
            await positions_agree(ledger, moments)
            assert await times_agree(ledger, moments, rows) >= 5
            assert await blocks_agree(ledger, moments, rows) >= 5


async def agrees(view: Any, moment: Moment) -> None:
    """Assert that a view returns the results of a moment."""
    found = await all_results(view, moment.queried)
    for name, result in moment.results.items():
        assert found[name] == result, f"{name} at position {moment.position}"


async def positions_agree(ledger: Allowance, moments: Moments) -> None:
    for position, moment in moments.by_position.items():
        await agrees(ledger.at(position=position), moment)


async def times_agree(ledger: Allowance, moments: Moments, rows: list[Any]) -> int:
    """Return how many moments were compared. After the clock went back, later events have earlier recorded times."""
    compared = 0
    for moment in moments.by_time:
        if max(row.position for row in rows if row.recorded_at_ns <= moment.at_ns) == moment.position:
            await agrees(ledger.at(time=utc(moment.at_ns)), moment)
            compared += 1
    return compared


async def blocks_agree(ledger: Allowance, moments: Moments, rows: list[Any]) -> int:
    """Return how many moments were compared: those just before the first event about a higher block."""
    compared = 0
    for block in range(1, max(map(block_of, rows)) + 1):
        higher = next((row.position for row in rows if block_of(row) > block), len(rows) + 1)
        if higher - 1 in moments.by_position:
            await agrees(ledger.at(block=block), moments.by_position[higher - 1])
            compared += 1
    return compared


async def test_the_clock_of_a_view_by_time_is_that_time(url: str) -> None:
    """A reservation that came due between the last event and the given time is overdue in the view, and not before."""
    clock = Clock(START + timedelta(seconds=200))
    async with small_ledger(url=url, clock=clock) as ledger:
        made = await ledger.reserve("5Anna", GPU, 6.0, 11)
        due_at = made.expires_at
        position = (await ledger.head()).position

        assert (await ledger.at(position=position).overview()).overdue == 0
        assert (await ledger.at(time=due_at - timedelta(microseconds=1)).overview()).overdue == 0
        assert (await ledger.at(time=due_at).overview()).overdue == 1
        assert (await ledger.at(time=due_at).overview()).at == due_at
        assert (await ledger.at(time=due_at).reservation(made.reservation_id)).status == "reserved"


async def test_a_view_by_block_ends_before_the_first_event_about_a_higher_block(url: str) -> None:
    """A sync at a higher block is such an event too; later events about lower blocks are not in the view."""
    async with small_ledger(url=url, blocks=3) as ledger:
        await ledger.record_manifests(5, {"5Anna": {GPU: 1}})
        await record_blocks(ledger, 4, 4, ["5Anna"])
        assert (await ledger.at(block=3).overview()).newest_block == 3
        assert (await ledger.at(block=4).overview()).newest_block == 3
        assert (await ledger.at(block=5).overview()).newest_block == 4
        assert await ledger.at(block=2).current_block() == 2


async def test_a_view_by_block_begins_at_the_newest_snapshot_without_a_higher_block(url: str) -> None:
    """The events before that snapshot are not folded again, and the result is the same.

    Catches a snapshot that knows a higher block already, or a block that was withdrawn only after it.
    """
    async with small_ledger(url=url, blocks=3) as ledger:
        handle = await ledger._lifecycle.handle()
        for block in (4, 5, 6):
            await handle.runtime.run(handle.upkeep.seal_if_due(1))
            await record_blocks(ledger, block, block, ["5Anna"])
        await handle.runtime.run(handle.upkeep.seal_if_due(1))
        views = {block: await ledger.at(block=block).overview() for block in (2, 3, 4, 5, 6)}
        assert {block: view.newest_block for block, view in views.items()} == {block: block for block in views}
        seen: list[tuple[int, int]] = []
        await ledger.at(block=6).fold(lambda done, total: seen.append((done, total)))
        assert len(seen) == 1
        read = await rows_read(handle.store, lambda: ledger.at(block=5).overview())
        assert read <= 6
        await ledger.withdraw_block(6, "mistaken")
        assert (await ledger.at(block=5).overview()).position == (await ledger.head()).position
        with pytest.raises(PositionOutOfRange):
            await ledger.at(block=6).overview()


async def rows_read(store: Any, query: Callable[[], Awaitable[object]]) -> int:
    """Return how many rows a query reads in pages."""
    counts: list[int] = []
    read = store.read

    async def counted(after: int, limit: int | None = None) -> Any:
        rows = await read(after, limit)
        counts.append(len(rows))
        return rows

    store.read = counted
    try:
        await query()
    finally:
        store.read = read
    return sum(counts)


@pytest.mark.parametrize(
    "moment",
    [
        {"position": 0},
        {"position": 14},
        {"block": 12},
        {"block": 0},
        {"time": START},
        {"time": datetime.fromisoformat("1970-01-01T00:00:00Z")},
    ],
    ids=str,
)
async def test_a_moment_out_of_range_is_refused(url: str, moment: dict[str, Any]) -> None:
    """The log has positions 1 to 13 and blocks 1 to 11; there is no state before its first event."""
    async with small_ledger(url=url) as ledger:
        assert (await ledger.head()).position == 13
        view = ledger.at(**moment)
        for _ in range(2):
            with pytest.raises(PositionOutOfRange):
                await view.miners()
        with pytest.raises(PositionOutOfRange):
            await view.history()


async def test_a_block_out_of_range_is_refused_with_the_recorded_range(url: str) -> None:
    """The error names the newest block, the first block, or that nothing is recorded yet."""
    async with small_ledger(url=url) as ledger:
        with pytest.raises(PositionOutOfRange, match=r"^block 12 is out of range: the last recorded is 11$"):
            await ledger.at(block=12).miners()
        with pytest.raises(PositionOutOfRange, match=r"^block 0 is out of range: the first recorded is 1$"):
            await ledger.at(block=0).miners()
    async with Allowance.open("sqlite://", validator_ss58="5Empty") as empty:
        with pytest.raises(PositionOutOfRange, match=r"^block 5 is out of range: nothing is recorded yet$"):
            await empty.at(block=5).miners()


@pytest.mark.parametrize(
    "moment",
    [
        {},
        {"position": 1, "block": 1},
        {"position": -1},
        {"position": "1"},
        {"position": True},
        {"block": 1.0},
        {"time": datetime(2024, 1, 1)},  # noqa: DTZ001 - has no time zone
        {"time": 7},
    ],
    ids=str,
)
async def test_a_malformed_moment_is_refused(url: str, moment: dict[str, Any]) -> None:
    """Exactly one valid argument is needed; the refusal comes before anything is read."""
    async with small_ledger(url=url) as ledger:
        with pytest.raises(InvalidInput):
            ledger.at(**moment)


async def test_a_view_of_the_past_does_not_change(url: str) -> None:
    """Events after its moment are not in it, whether it was queried before or after them."""
    async with small_ledger(url=url) as ledger:
        position = (await ledger.head()).position
        queried, not_queried = ledger.at(position=position), ledger.at(position=position)
        before = await queried.find_miners(6.0, GPU, 11)
        made = await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.spend(made.reservation_id)
        await record_blocks(ledger, 12, 13, ["5Anna"])
        for view in (queried, not_queried):
            assert await view.find_miners(6.0, GPU, 11) == before
            assert (await view.history()).items == []
            assert await view.current_block() == 11
            with pytest.raises(ReservationNotFound):
                await view.reservation(made.reservation_id)
        between = ledger.at(position=position + 1)
        assert (await between.reservation(made.reservation_id)).status == "reserved"
        assert [each.status for each in (await between.history()).items] == ["reserved"]
        assert (await between.history(status="spent")).items == []


async def test_folding_to_a_moment_reports_progress(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress counts events, and ends at the moment."""
    monkeypatch.setattr("ledger.store.sqlite.store.PAGE_ROWS", 5)
    async with small_ledger(url=url) as ledger:
        by_position: list[tuple[int, int]] = []
        past = ledger.at(position=12)
        await past.fold(lambda done, total: by_position.append((done, total)))
        assert by_position == [(5, 12), (10, 12), (12, 12)]
        assert (await past.overview()).position == 12
        by_block: list[tuple[int, int]] = []
        await ledger.at(block=4).fold(lambda done, total: by_block.append((done, total)))
        assert by_block == [(5, 13)]


# Explanations of routing decisions


class Decision(NamedTuple):
    """The candidates that a router saw just before its claim, in order, with their allowance."""

    job_uuid: str
    reservation_id: int
    miner_ss58: str
    seen_at_ns: int
    candidates: list[tuple[str, int, float, float, bool]]


class WatchedStory(Story):
    """A story that records the candidates before each routing decision."""

    def __init__(self, ledger: Allowance, clock: Clock, seed: int) -> None:
        super().__init__(ledger, clock, seed)
        self.decisions: list[Decision] = []

    async def a_job(self) -> None:
        self.jobs += 1
        number = self.jobs if self.draw.random() < 0.8 else self.draw.randrange(1, self.jobs + 1)
        amount_s, executor_class = self.draw.choice([1, 5, 40]), self.draw.choice(CLASSES)
        request = job(f"job-{number}", amount_s, executor_class)
        pick = Pick(request.uuid, executor_class, amount_s * 10**9)

        def look(state: Availability, now_ns: int) -> list[tuple[str, int, float, float, bool]]:
            measured = {each.hotkey_ss58: each for each in state.ranking(executor_class, now_ns)}
            order = [measured[each.hotkey_ss58] for each in pick.candidates(state, now_ns)]
            return [
                (each.hotkey_ss58, each.earliest_block, each.available_ns / 1e9, each.total_ns / 1e9, each.busy)
                for each in order
            ]

        candidates = await self.ledger._read_state(look)
        made_before = set(self.made)
        route = await self.unless_refused(Routing(self.ledger).pick_miner_for_job_request(request))
        if route is None or route.allowance_reservation_id in made_before:
            return
        assert route.allowance_reservation_id is not None
        self.made.append(route.allowance_reservation_id)
        self.decisions.append(
            Decision(
                request.uuid,
                route.allowance_reservation_id,
                route.miner.hotkey_ss58,
                self.clock.now_ns,
                candidates,
            )
        )


def explains(explanation: Explanation, decision: Decision) -> None:
    """Assert that an explanation equals the recorded decision."""
    assert explanation.reservation.reservation_id == decision.reservation_id
    assert explanation.routed
    assert (explanation.kept, explanation.chosen_at) == (False, None)
    assert explanation.decided_at == utc(decision.seen_at_ns)
    seen = [
        (each.hotkey_ss58, each.earliest_block, each.available_seconds, each.total_seconds)
        for each in explanation.candidates
    ]
    assert seen == [candidate[:4] for candidate in decision.candidates]
    rank = [candidate[0] for candidate in decision.candidates].index(decision.miner_ss58)
    verdicts = [each.verdict for each in explanation.candidates]
    assert all(busy for *_, busy in decision.candidates[:rank])
    assert not decision.candidates[rank][-1]
    assert verdicts == ["busy"] * rank + ["claimed"] + ["not reached"] * (len(verdicts) - rank - 1)
    for each in explanation.candidates[:rank]:
        assert each.running >= each.executors
    claimed = explanation.candidates[rank]
    assert claimed.running < claimed.executors


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_route_is_explained_as_it_was_decided(url: str, seed: int) -> None:
    """The random stories have busy miners, expiries by claims, and jobs that were released and routed again."""
    clock = Clock()
    with seed_shown(seed):
        async with Allowance.open(url, validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
            story = WatchedStory(ledger, clock, seed)
            await story.goes_on(250)
            for decision in story.decisions:
                then = ledger.at(position=decision.reservation_id >> 20)
                explains(await then.explain(decision.job_uuid), decision)
            last = {decision.job_uuid: decision for decision in story.decisions}
            for decision in last.values():
                explains(await ledger.explain(decision.job_uuid), decision)
            rows = await events_of(ledger)
            picked = {decision.reservation_id >> 20 for decision in story.decisions}
            expired_by_claims = [
                row
                for row, after in pairwise(rows)
                if b'"reservation-expired"' in row.payload and after.position in picked
            ]
            assert len(story.decisions) > 30
            assert len(last) < len(story.decisions)
            assert expired_by_claims
            assert any(decision.candidates[0][-1] for decision in story.decisions)


async def test_an_expiry_recorded_before_the_claim_counts_as_seen(url: str) -> None:
    """If the clock goes back after an expiry, the router saw the blocks free, and so does the explanation."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, clock=clock, offers={"5Anna": 1}) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        clock.advance(3600)
        assert len(await ledger.expire_due()) == 1
        clock.advance(-3600)
        route = await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        assert route.allowance_blocks == [1]

        explanation = await ledger.explain("job-1")

        assert [(each.verdict, each.earliest_block, each.running) for each in explanation.candidates] == [
            ("claimed", 1, 0)
        ]
        assert explanation.position == (await ledger.head()).position - 1


async def test_a_reservation_without_a_router_has_no_candidates(url: str) -> None:
    """`Allowance.reserve` chooses no miner, so the explanation has the reservation and no candidates."""
    async with small_ledger(url=url) as ledger:
        made = await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="by-hand")
        explanation = await ledger.explain("by-hand")
        assert (explanation.routed, explanation.candidates) == (False, [])
        assert explanation.reservation == made


async def test_debug_and_trusted_routes_cannot_be_explained(url: str) -> None:
    """Neither kind of route appends an event."""
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
        debugging = Routing(ledger, debug_miner=miner("5Debug"))
        assert (await debugging.pick_miner_for_job_request(job("debug-1"))).miner.hotkey_ss58 == "5Debug"
        await Routing(ledger).pick_miner_for_job_request(job("trusted-1", trusted=True))
        assert await ledger.head() == head
        for uuid in ("debug-1", "trusted-1"):
            with pytest.raises(ReservationNotFound):
                await ledger.explain(uuid)


async def test_routes_of_racing_processes_are_explained(any_url: str) -> None:
    """Each miner ranked before the claimed one was busy, at the position of the choice; and the audit agrees."""
    clock = Clock(START + timedelta(seconds=12 * 40))
    settings = Settings(respect_executor_count=True)
    offers = {f"5Miner{number}": 3 for number in range(6)}
    async with small_ledger(url=any_url, clock=clock, blocks=40, offers=offers, settings=settings) as ledger:
        async with (
            Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as second,
            Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as third,
        ):
            routers = [Routing(each) for each in (ledger, second, third)]
            jobs = [job(f"job-{number}") for number in range(18)]
            routes = await asyncio.gather(
                *(routers[at % 3].pick_miner_for_job_request(each) for at, each in enumerate(jobs))
            )
        for request, route in zip(jobs, routes, strict=True):
            explanation = await ledger.explain(request.uuid)
            verdicts = [each.verdict for each in explanation.candidates]
            rank = verdicts.index("claimed")
            assert explanation.candidates[rank].hotkey_ss58 == route.miner.hotkey_ss58
            assert verdicts[rank + 1 :] == ["not reached"] * (len(verdicts) - rank - 1)
            assert not explanation.kept
            assert verdicts[:rank] == ["busy"] * rank
            for each in explanation.candidates[:rank]:
                assert each.running >= each.executors
        report = await ledger.audit()
        assert (report.findings, report.unproved_choices) == ([], 0)


async def test_why_summarizes_an_account(url: str) -> None:
    """Two executors get 12 s per block; active, spent and released reservations count, now and in the past."""
    async with small_ledger(url=url) as ledger:
        spent = await ledger.reserve("5Anna", GPU, 24.0, 11)
        await ledger.spend(spent.reservation_id)
        released = await ledger.reserve("5Anna", GPU, 12.0, 11)
        before_release = (await ledger.head()).position
        await ledger.release(released.reservation_id)
        reserved = await ledger.reserve("5Anna", GPU, 30.0, 11)

        usage = await ledger.why("5Anna", GPU)
        assert (usage.total_seconds, usage.available_seconds, usage.unspent_seconds) == (120.0, 60.0, 96.0)
        assert [(each.reservation_id, each.status) for each in usage.reservations] == [
            (spent.reservation_id, "spent"),
            (reserved.reservation_id, "reserved"),
        ]
        then = await ledger.at(position=before_release).why("5Anna", GPU)
        assert (then.available_seconds, [each.reservation_id for each in then.reservations]) == (
            84.0,
            [spent.reservation_id, released.reservation_id],
        )
        nobody = await ledger.why("5Nobody", GPU)
        assert (nobody.total_seconds, nobody.reservations) == (0.0, [])


async def test_an_overview_summarizes_the_ledger(url: str) -> None:
    """It counts miners, blocks and syncs; the totals of a class are over its registered miners."""
    async with small_ledger(url=url) as ledger:
        await ledger.reserve("5Anna", GPU, 12.0, 11)
        await record_blocks(ledger, 12, 12, ["5Anna", "5Bert"])
        overview = await ledger.overview()
        assert (overview.newest_block, overview.blocks, overview.syncs) == (12, 12, 1)
        assert (overview.miners, overview.accounts, overview.reserved, overview.overdue) == (2, 3, 1, 0)
        (totals,) = overview.classes
        assert (totals.executor_class, totals.miners, totals.executors, totals.reserved) == (GPU, 2, 4, 1)
        assert (totals.total_seconds, totals.available_seconds, totals.unspent_seconds) == (264.0, 252.0, 264.0)
