"""The history's status `overdue`: reserved, and due by the clock of the query, now and in the past."""

from __future__ import annotations

from datetime import timedelta

import pytest

from routing import InvalidInput
from tests.support.small import GPU, START, Clock, small_ledger
from tests.support.stories import project

BLOCKS = 11
DUE_SECONDS = 106
"""6 s of allowance and the margin of 100 s."""


@pytest.mark.parametrize("projected", [False, True])
async def test_overdue_are_the_reserved_ones_that_are_due(any_url: str, projected: bool) -> None:
    """From the due time itself on; neither settled nor expired ones, whether SQL or the log's tail shows them.

    Catches: a filter that forgets the clock, and one that shows a spent reservation because its due time has passed.
    """
    clock = Clock(START + timedelta(seconds=12 * BLOCKS))
    async with small_ledger(url=any_url, blocks=BLOCKS, clock=clock) as ledger:
        forgotten = await ledger.reserve("5Anna", GPU, 6.0, BLOCKS, job_uuid="job-1")
        spent = await ledger.reserve("5Anna", GPU, 6.0, BLOCKS)
        await ledger.spend(spent.reservation_id)
        clock.advance(10)
        later = await ledger.reserve("5Bert", GPU, 6.0, BLOCKS)
        if projected:
            await project(ledger)

        async def overdue(**filters: str) -> list[int]:
            page = await ledger.history(status="overdue", newest_first=False, **filters)  # type: ignore[arg-type]
            assert all(each.status == "reserved" for each in page.items)
            return [each.reservation_id for each in page.items]

        clock.advance(DUE_SECONDS - 10 - 1)
        assert await overdue() == []
        clock.advance(1)
        assert await overdue() == await overdue(job_uuid="job-1") == [forgotten.reservation_id]
        assert (await ledger.health()).overdue == 1
        clock.advance(10)
        assert await overdue() == [forgotten.reservation_id, later.reservation_id]
        assert await overdue(miner_ss58="5Bert") == [later.reservation_id]
        (expired, _) = await ledger.expire_due()
        assert (expired.reservation_id, await overdue()) == (forgotten.reservation_id, [])


async def test_a_view_of_the_past_has_its_own_clock(url: str) -> None:
    """What was overdue then, although it expired since; a view of a position stands at that event's time."""
    clock = Clock(START + timedelta(seconds=12 * BLOCKS))
    async with small_ledger(url=url, blocks=BLOCKS, clock=clock) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, BLOCKS)
        reserved_at = (await ledger.head()).position
        clock.advance(DUE_SECONDS)
        await ledger.reserve("5Bert", GPU, 6.0, BLOCKS)
        before = (await ledger.head()).position
        await ledger.expire_due()
        assert len((await ledger.at(position=before).history(status="overdue")).items) == 1
        assert (await ledger.at(position=reserved_at).history(status="overdue")).items == []
        at_due = START + timedelta(seconds=12 * BLOCKS + DUE_SECONDS)
        assert len((await ledger.at(time=at_due - timedelta(seconds=1)).history(status="overdue")).items) == 0


async def test_another_status_is_refused_with_the_right_ones(url: str) -> None:
    """The error lists `overdue` among them."""
    async with small_ledger(url=url) as ledger:
        with pytest.raises(InvalidInput, match="reserved, spent, released, expired, overdue"):
            await ledger.history(status="late")  # type: ignore[arg-type]
