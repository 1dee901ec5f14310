"""The optimistic append: which decisions stand when others have appended, and their rows behind another head."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from ledger import Head, Row
from ledger.codec import decode, encode, row_hash
from ledger.domain.renumbering import ChoiceTooOld, Decision, Renumbering
from ledger.events import MOST_EVENTS_SINCE_CHOICE, AllowanceReserved, Event, ReservationReleased
from routing import Allowance, Routing
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks
from tests.support.stalling import queued, stalled
from tests.support.stories import events_of

CPU = "always_on.cpu"


@asynccontextmanager
async def two_processes(url: str) -> AsyncIterator[tuple[Allowance, Allowance]]:
    """Open a ledger twice; Anna, Bert and Carl each offer two classes, with 6 s a block."""
    clock = Clock(START + timedelta(seconds=132))
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as ledger:
        miners = ["5Anna", "5Bert", "5Carl"]
        await ledger.record_manifests(1, {miner: {GPU: 1, CPU: 1} for miner in miners})
        await record_blocks(ledger, 1, 11, miners)
        await ledger.find_miners(1.0, GPU, 11)
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as other:
            yield ledger, other


async def raced(
    ledger: Allowance, calls: list[Coroutine[Any, Any, Any]], *, by: Coroutine[Any, Any, Any]
) -> tuple[list[Any], Mapping[str, int]]:
    """Make calls in one batch, before whose append another process appends; return results and what was counted."""
    async with stalled(ledger) as opened:
        tasks = []
        for number, call in enumerate(calls, 1):
            tasks.append(asyncio.create_task(call))
            await queued(opened, number)
        store: Any = opened.store
        append = store.append

        async def append_after_the_other(*arguments: Any, **more: Any) -> Any:
            store.append = append
            await by
            return await append(*arguments, **more)

        store.append = append_after_the_other
        before = opened.writer.counters.to_dict()
        # Also after the race of another test: try to append at the known head.
        opened.writer._optimistic._batches_behind = 0
    results = await asyncio.gather(*tasks)
    after = await ledger.counters()
    assert (await ledger.audit()).findings == []
    return results, {name: after[name] - before[name] for name in after}


def counted(counts: Mapping[str, int]) -> tuple[int, int, int]:
    """Return the numbers of refused appends, of renumbered commands, and of repeated decisions."""
    return counts["conflicts"], counts["renumbered"], counts["retries"]


async def test_a_decision_stands_if_only_other_streams_have_moved(postgres_url: str) -> None:
    """A claim on Anna is decided once although another process claims on Bert meanwhile, and its result is the log's.

    Catches a writer that repeats a decision because the head has moved, and one that returns the number from before.
    """
    async with two_processes(postgres_url) as (ledger, other):
        by = other.reserve("5Bert", GPU, 6.0, 11)
        (reserved,), counts = await raced(ledger, [ledger.reserve("5Anna", GPU, 6.0, 11)], by=by)
        assert await ledger.reservation(reserved.reservation_id) == reserved
        settled = ledger.spend(reserved.reservation_id)
        (spent,), counts_of_spend = await raced(ledger, [settled], by=other.reserve("5Bert", GPU, 6.0, 11))
        assert await ledger.reservation(reserved.reservation_id) == spent
    assert counted(counts) == counted(counts_of_spend) == (0, 1, 0)


async def test_a_renumbered_route_names_the_position_of_its_choice(postgres_url: str) -> None:
    """`chosen_at` is the head that the pick saw, and the route's reservation is found by its id."""
    async with two_processes(postgres_url) as (ledger, other):
        head = await ledger.head()
        pick = Routing(ledger).pick_miner_for_job_request(job("job"))
        (route,), counts = await raced(ledger, [pick], by=other.reserve("5Carl", CPU, 6.0, 11))
        reserved = (await events_of(ledger))[-1]
        assert (await ledger.reservation_for_job("job")).reservation_id == route.allowance_reservation_id
    event = decode(reserved.position, reserved.payload)
    assert isinstance(event, AllowanceReserved)
    assert (event.chosen_at, reserved.position) == (head.position, head.position + 2)
    assert counted(counts) == (0, 1, 0)


async def test_of_a_batch_what_depends_on_an_earlier_command_is_decided_again(postgres_url: str) -> None:
    """Claims in two classes stand; the third is in the class of the first, whose claim it has seen.

    Catches a batch of which everything stands, and one that is decided again as a whole.
    """
    async with two_processes(postgres_url) as (ledger, other):
        calls = [
            ledger.reserve("5Anna", GPU, 6.0, 11),
            ledger.reserve("5Anna", CPU, 6.0, 11),
            ledger.reserve("5Bert", GPU, 6.0, 11),
        ]
        reserved, counts = await raced(ledger, calls, by=other.reserve("5Carl", GPU, 6.0, 11))
        for each in reserved:
            assert await ledger.reservation(each.reservation_id) == each
    assert counted(counts) == (0, 2, 1)


async def test_only_the_command_whose_stream_has_moved_is_decided_again(postgres_url: str) -> None:
    """The other process claims on one of two accounts: that claim gets the next block, the other stands."""
    async with two_processes(postgres_url) as (ledger, other):
        calls = [ledger.reserve("5Anna", GPU, 6.0, 11), ledger.reserve("5Anna", CPU, 6.0, 11)]
        (gpu, cpu), counts = await raced(ledger, calls, by=other.reserve("5Anna", CPU, 6.0, 11))
    assert (gpu.blocks, cpu.blocks) == ([1], [2])
    assert counted(counts) == (1, 1, 1)


async def test_a_command_depends_on_an_earlier_one_of_its_job(postgres_url: str) -> None:
    """A job is released in one class and reserved in another, in one batch: the second attempt does not stand alone."""
    async with two_processes(postgres_url) as (ledger, other):
        first = await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="job")
        calls = [ledger.release(first.reservation_id), ledger.reserve("5Anna", CPU, 6.0, 11, job_uuid="job")]
        (released, again), counts = await raced(ledger, calls, by=other.reserve("5Carl", GPU, 6.0, 11))
        assert (released.status, again.status) == ("released", "reserved")
        assert [row.attempt for row in await events_of(ledger) if row.job_uuid == "job"] == [1, 2]
    # The second one is decided three times: an index refuses its first attempt at a number that only a look-up gives.
    assert counted(counts) == (0, 1, 2)


async def test_a_recorded_fact_lets_no_claim_stand(postgres_url: str) -> None:
    """The claim reads the chain: a block that another process records is a conflict, and the claim is decided again."""
    async with two_processes(postgres_url) as (ledger, other):
        by = record_blocks(other, 12, 12, ["5Anna", "5Bert", "5Carl"])
        _, counts = await raced(ledger, [ledger.reserve("5Anna", GPU, 6.0, 11)], by=by)
        released = ledger.release((await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id)
        by = record_blocks(other, 13, 13, ["5Anna", "5Bert", "5Carl"])
        _, counts_of_release = await raced(ledger, [released], by=by)
    assert counted(counts) == (1, 0, 1)
    # A settlement reads no fact.
    assert counted(counts_of_release) == (0, 1, 0)


# Behind another head

DECIDED_AT = Head(10, bytes([1]) * 32, 1_000)


def decision(event: Event, clock_ns: int) -> Decision:
    """Return a decision of one event at `DECIDED_AT`, by a clock."""
    row = Row(11, "5Anna\tgpu", 5, max(1_000, clock_ns), None, None, None, None, encode(event), b"")
    return Decision([row._replace(hash=row_hash(DECIDED_AT.hash, row))], [event], frozenset())


def renumbered(event: Event, clock_ns: int, head: Head) -> tuple[Row, Event]:
    """Return the row behind a head, and its event."""
    (row,) = Renumbering(DECIDED_AT, [decision(event, clock_ns)]).rows_behind(head)
    assert (row.position, row.version, row.hash) == (head.position + 1, 5, row_hash(head.hash, row))
    return row, decode(row.position, row.payload)


def reserved(**fields: Any) -> AllowanceReserved:
    return AllowanceReserved(1, [(1, 1)], 1, 2_000, **fields)


@pytest.mark.parametrize(("clock_ns", "recorded_at_ns"), [(3_000, 3_000), (2_500, 2_500), (2_499, 2_500)])
def test_a_log_that_is_ahead_of_the_clock_lets_the_event_name_its_clock(clock_ns: int, recorded_at_ns: int) -> None:
    """The due time counts from the clock that decided, even if the log's time has passed it meanwhile."""
    row, event = renumbered(reserved(), clock_ns, Head(20, bytes(32), 2_500))
    assert row.recorded_at_ns == recorded_at_ns
    ahead = clock_ns != recorded_at_ns
    assert event == reserved(decided_at_ns=clock_ns if ahead else None, due_by_clock=ahead)


def test_an_event_that_named_its_clock_still_names_it() -> None:
    """The recorded time stays ahead of the clock."""
    event = ReservationReleased(1, decided_at_ns=900)
    row, same = renumbered(event, 900, Head(20, bytes(32), 2_500))
    assert (row.recorded_at_ns, same) == (2_500, event)


@pytest.mark.parametrize(
    ("fields", "position", "chosen_at"),
    [
        ({}, 20, None),
        ({"axon": ("::1", 6, 1)}, 10, None),
        ({"axon": ("::1", 6, 1)}, 20, 10),
        ({"axon": ("::1", 6, 1), "chosen_at": 7}, 20, 7),
        ({"axon": ("::1", 6, 1)}, 10 + MOST_EVENTS_SINCE_CHOICE - 1, 10),
    ],
    ids=["no router", "directly before", "earlier", "kept", "as far as allowed"],
)
def test_a_routed_claim_names_its_choice_unless_it_is_directly_behind(
    fields: dict[str, Any], position: int, chosen_at: int | None
) -> None:
    """`chosen_at` is filled in only if a router chose, and only once."""
    _, event = renumbered(reserved(**fields), 3_000, Head(position, bytes(32), 1_000))
    assert isinstance(event, AllowanceReserved)
    assert event.chosen_at == chosen_at


def test_a_choice_that_is_too_old_does_not_stand() -> None:
    """The router must choose anew. Catches a claim whose choice the audit would not repeat."""
    head = Head(10 + MOST_EVENTS_SINCE_CHOICE, bytes(32), 1_000)
    with pytest.raises(ChoiceTooOld):
        renumbered(reserved(axon=("::1", 6, 1)), 3_000, head)
