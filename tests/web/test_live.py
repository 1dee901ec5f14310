"""Live connections: each gets every event once and in order, whatever its speed, and costs the log no reading."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from routing import Allowance, PositionOutOfRange, StoredEvent
from routing.web.live import Live
from tests.support.engines import new_database
from tests.support.served import fill, served
from tests.support.small import GPU, VALIDATOR, small_ledger

FOLLOWERS = 200


async def reserve(ledger: Allowance, count: int) -> None:
    """Append an event for each of some reservations."""
    block = await ledger.current_block() or 1
    for _ in range(count):
        await ledger.reserve("5Anna", GPU, 0.5, block)


async def positions(batches: AsyncIterator[list[StoredEvent]], until: int) -> list[int]:
    """Return the positions of the events up to one of them."""
    found: list[int] = []
    async for batch in batches:
        found += [each.position for each in batch]
        if found and found[-1] >= until:
            break
    await batches.aclose()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("kept", [1, 3, 1024])
async def test_every_follower_gets_every_event_once(kept: int) -> None:
    """Followers from different positions, some of them slow, each get all later events in order, none twice.

    `kept` is how many events are remembered: a slow follower finds its next event forgotten, and reads it from the log.
    Catches a follower that skips what was forgotten, or gets an event from the log and again from memory.
    """
    async with small_ledger(offers={"5Anna": 100}, blocks=30) as ledger:
        head = (await ledger.head()).position
        live = Live(ledger, kept=kept)
        starts = [0, head - 2, head, head]
        followers = [await live.join(start) for start in starts]
        slow = await live.join(head)
        first = asyncio.ensure_future(anext(slow))
        found = [asyncio.create_task(positions(each, head + 12)) for each in followers]
        await reserve(ledger, 12)
        for start, each in zip(starts, found, strict=True):
            assert await each == list(range(start + 1, head + 13))
        late = [each.position for each in await first]
        if late[-1] < head + 12:  # Else it was so slow that it got all at once.
            late += await positions(slow, head + 12)
        assert late == list(range(head + 1, head + 13))


async def test_many_followers_read_the_log_once() -> None:
    """However many follow, one reader follows the log, and it stops with the last of them."""
    started: list[int] = []

    class Counting(Allowance):
        async def follow(self, *, after: int = 0) -> AsyncIterator[StoredEvent]:
            started.append(after)
            async for each in super().follow(after=after):
                yield each

    async with small_ledger(offers={"5Anna": 100}, blocks=30) as ledger:
        ledger.__class__ = Counting
        head = (await ledger.head()).position
        live = Live(ledger)
        found = [asyncio.create_task(positions(await live.join(head), head + 3)) for _ in range(FOLLOWERS)]
        await reserve(ledger, 3)
        assert [await each for each in found] == [[head + 1, head + 2, head + 3]] * FOLLOWERS
        assert started == [head]
        assert await positions(await live.join(head), head + 3) == [head + 1, head + 2, head + 3]
        assert len(started) == 2


async def test_a_position_beyond_the_log_is_refused() -> None:
    """A client of another ledger, or of a log that was restored to an earlier state, learns it at once."""
    async with small_ledger() as ledger:
        with pytest.raises(PositionOutOfRange):
            await Live(ledger).join((await ledger.head()).position + 1)


async def test_an_error_of_the_log_ends_every_connection() -> None:
    """If the log cannot be followed any further, no connection waits for ever; a new one tries again."""
    async with small_ledger() as ledger:
        live = Live(ledger)
        head = (await ledger.head()).position

        async def broken(*, after: int) -> AsyncIterator[StoredEvent]:
            raise OSError("the disk is gone")
            yield  # It is a generator, as `follow` is.

        ledger.follow = broken  # type: ignore[assignment, method-assign]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                await positions(await live.join(head), head + 1)


async def test_one_more_follower_than_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A visitor cannot open connections without end; when one ends, another may follow."""
    monkeypatch.setattr("routing.web.live.MOST_FOLLOWERS", 2)
    async with small_ledger() as ledger:
        live = Live(ledger)
        following = [await live.join(0) for _ in range(2)]
        for each in following:
            await anext(each)
        with pytest.raises(HTTPException, match="2 connections follow"):
            await live.join(0)
        await following[0].aclose()  # type: ignore[attr-defined]
        await live.join(0)
        await following[1].aclose()  # type: ignore[attr-defined]


async def read_events(client: httpx.AsyncClient, until: int, **headers: str) -> list[dict[str, Any]]:
    """Follow by HTTP up to a position; the id of each message must be its event's position."""
    found: list[dict[str, Any]] = []
    async with client.stream("GET", "/events-live", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        identity = ""
        async for line in answer.aiter_lines():
            identity = line.removeprefix("id: ") if line.startswith("id: ") else identity
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
                assert found[-1]["position"] == int(identity)
                if found[-1]["position"] >= until:
                    break
    return found


@pytest.mark.slow
async def test_two_hundred_connections_get_every_event_once(tmp_path) -> None:
    """200 connections at once, half of them resumed with `Last-Event-ID`, each get every event once.

    The process that appends the events is another one than the server's. An interrupt ends the server in spite of them.
    """
    url = new_database("sqlite", tmp_path)
    await fill(url)
    limits = httpx.Limits(max_connections=FOLLOWERS + 10)
    with served(url) as (address, process):
        async with (
            Allowance.open(url, validator_ss58=VALIDATOR) as ledger,
            httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client,
        ):
            head = (await ledger.head()).position
            until = head + 20
            headers = [{"Last-Event-ID": str(head - each % 2 * 10)} for each in range(FOLLOWERS)]
            found = [asyncio.create_task(read_events(client, until, **each)) for each in headers]
            block = await ledger.current_block() or 1
            for _ in range(20):
                await ledger.reserve("5" + "Anna" * 11 + "abc", GPU, 0.1, block)
            for each, sent in zip(found, headers, strict=True):
                events = await each
                assert [event["position"] for event in events] == list(range(int(sent["Last-Event-ID"]) + 1, until + 1))
            async with client.stream("GET", "/overview-live") as answer:
                assert answer.status_code == 200
                process.send_signal(signal.SIGINT)
                assert await asyncio.to_thread(process.wait, 20) == 130
        assert not re.search("Traceback|ERROR", process.communicate()[1])
