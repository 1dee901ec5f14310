"""`events` and `follow`: every event of the log, in order, each once, resumable by position."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import msgspec
import pytest

import routing.sync
from ledger.codec import EVENT_TAGS
from routing import Allowance, CorruptLedger, InvalidInput, LogWentBack, PositionOutOfRange, Routing, StoredEvent
from routing.service.events import json_schema
from tests.support.engines import statement
from tests.support.small import GPU, VALIDATOR, Clock, job, small_ledger

BLOCKS = 11
HEAD = 1 + 1 + BLOCKS
"""The opening, one sync, and the blocks of a small ledger."""


async def test_all_events_come_in_order(any_url: str) -> None:
    """Positions are dense, versions are dense within each stream, and the columns belong to their event."""
    async with small_ledger(url=any_url) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("a-job"))
        await ledger.spend(route.allowance_reservation_id or 0)
        found = [stored async for stored in ledger.events()]
    assert [stored.position for stored in found] == list(range(1, HEAD + 3))
    for _, of_stream in itertools.groupby(sorted(found, key=lambda each: each.stream), lambda each: each.stream):
        versions = [stored.version for stored in of_stream]
        assert versions == list(range(1, len(versions) + 1))
    reserved, spent = found[-2:]
    assert (reserved.type, reserved.job_uuid) == ("allowance-reserved", "a-job")
    assert reserved.reservation_id == spent.reservation_id == route.allowance_reservation_id
    assert spent.type == "reservation-spent"
    assert found[0].reservation_id is None


async def test_a_range_can_be_resumed_at_every_position() -> None:
    """For every split of the log, what comes before and what comes after are together the whole log."""
    async with small_ledger() as ledger:
        whole = [stored async for stored in ledger.events()]
        for split in range(HEAD + 1):
            before = [stored async for stored in ledger.events(until=split)]
            after = [stored async for stored in ledger.events(after=split)]
            assert (before, after) == (whole[:split], whole[split:])


async def test_a_view_of_the_past_ends_at_its_position() -> None:
    """The events of a view are those recorded by then; a later position is out of its range."""
    async with small_ledger() as ledger:
        view = ledger.at(position=5)
        assert [stored.position async for stored in view.events()] == [1, 2, 3, 4, 5]
        with pytest.raises(PositionOutOfRange):
            await anext(view.events(until=6))


@pytest.mark.parametrize(("after", "until"), [(HEAD + 1, None), (0, HEAD + 1)])
async def test_a_position_beyond_the_head_is_refused(after: int, until: int | None) -> None:
    """A position that the log does not have is an error, since a caller may have resumed on the wrong log."""
    async with small_ledger() as ledger:
        with pytest.raises(PositionOutOfRange):
            await anext(ledger.events(after=after, until=until))
        with pytest.raises(PositionOutOfRange):
            await anext(ledger.follow(after=HEAD + 1))
        with pytest.raises(InvalidInput):
            await anext(ledger.events(after=-1))


async def test_a_follower_sees_what_other_openings_append(shared_url: str) -> None:
    """Two openings append from a barrier; a third one, which only reads, follows and is resumed after every event.

    Each event comes once and in order, whoever appended it. Catches a follower that starts at the head that it sees, or
    that resumes after the next position instead of the last one.
    """
    async with small_ledger(url=shared_url) as first:
        second = Allowance.open(shared_url, validator_ss58=VALIDATOR, clock_ns=Clock())
        reader = Allowance.open(shared_url, validator_ss58=VALIDATOR, read_only=True)
        async with second, reader:
            barrier = asyncio.Barrier(2)

            async def append(ledger: Allowance, miner_ss58: str) -> None:
                await barrier.wait()
                for _ in range(5):
                    made = await ledger.reserve(miner_ss58, GPU, 6.0, BLOCKS)
                    await ledger.release(made.reservation_id)

            writing = asyncio.gather(append(first, "5Anna"), append(second, "5Bert"))
            seen: list[StoredEvent] = []
            while len(seen) < HEAD + 20:
                seen.append(await anext(reader.follow(after=len(seen))))
            await writing
            assert seen == [stored async for stored in first.events()]


async def test_a_follower_refuses_a_log_that_lost_what_it_has_seen(any_url: str) -> None:
    """After the tail is cut off, and also after another tail has grown in its place, the follower raises.

    Catches a follower that waits silently for a position that already had another event, and one that goes on with the
    new tail: its reader would have seen two different events of one position.
    """
    async with small_ledger(url=any_url):
        pass
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, read_only=True) as reader:
        for tail in ("absent", "other"):
            followed = reader.follow(after=HEAD - 2)
            assert [(await anext(followed)).position for _ in range(2)] == [HEAD - 1, HEAD]
            await asyncio.to_thread(_cut_off, any_url, HEAD - 1)
            if tail == "other":
                await _append_others(any_url, "5Bert")
            with pytest.raises(LogWentBack) as refused:
                await anext(followed)
            assert refused.value.acknowledged_position == HEAD
            if tail == "absent":
                await _append_others(any_url, "5Carl")
                await asyncio.to_thread(_cut_off, any_url, HEAD)


async def test_a_follower_refuses_an_event_that_does_not_continue_the_log(url: str) -> None:
    """The first event of a page must continue the last one seen; catches a follower that trusts positions."""
    async with small_ledger(url=url):
        pass
    _run_unguarded(url, "UPDATE allowance_events SET hash = zeroblob(32) WHERE position = 7")
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as reader:
        followed: AsyncIterator[StoredEvent] = reader.follow(after=6)
        with pytest.raises(CorruptLedger) as refused:
            await anext(followed)
    assert refused.value.position == 7


def test_blocking_iterators_yield_the_same(url: str) -> None:
    """`routing.sync` iterates over the same events, and a follower of it sees new ones."""
    asyncio.run(_make(url))
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert [stored.position for stored in ledger.events()] == list(range(1, HEAD + 1))
        followed = ledger.follow(after=HEAD)
        reservation = ledger.reserve("5Anna", GPU, 6.0, BLOCKS)
        assert next(followed).reservation_id == reservation.reservation_id


async def test_the_schema_describes_every_event() -> None:
    """The JSON Schema names all stored types, and an event's document is JSON as it stands."""
    definitions = json_schema()["$defs"]
    tags = {tag for each in definitions.values() for tag in each["properties"].get("type", {}).get("enum", ())}
    assert tags == set(EVENT_TAGS)
    async with small_ledger() as ledger:
        async for stored in ledger.events():
            document = json.loads(json.dumps(stored.to_dict()))
            assert msgspec.convert(document, StoredEvent) == stored
            assert document["event"]["type"] == stored.type


async def _make(url: str) -> None:
    async with small_ledger(url=url):
        pass


async def _append_others(url: str, miner_ss58: str) -> None:
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock()) as ledger:
        for _ in range(2):
            await ledger.reserve(miner_ss58, GPU, 6.0, BLOCKS)


def _cut_off(url: str, position: int) -> None:
    """Remove the events after a position, as restoring an older backup does."""
    _run_unguarded(url, f"DELETE FROM allowance_events WHERE position > {position}")
    last = f"SELECT hash FROM allowance_events WHERE position = {position}"
    _run_unguarded(url, f"UPDATE allowance_ledgers SET position = {position}, hash = ({last})")
    versions = "SELECT coalesce(max(version), 0) FROM allowance_events AS event WHERE event.stream = moved.stream"
    _run_unguarded(url, f"UPDATE allowance_streams AS moved SET version = ({versions})")


def _run_unguarded(url: str, sql: str) -> None:
    """Run a statement that the triggers would refuse."""
    if url.startswith("postgresql"):
        statement(url, f"SET session_replication_role = replica; {sql}")
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for trigger, _ in triggers:
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(sql)
        for _, creation in triggers:
            connection.execute(creation)
        connection.commit()
