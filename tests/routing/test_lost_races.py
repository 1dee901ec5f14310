"""A pick that was decided on a head which then moved: what it keeps, what it leaves, and how that is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from ledger import Head, Row
from routing import Allowance, Explanation, Routing
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

Outrunner = Callable[[Allowance, str], Awaitable[Any]]


@asynccontextmanager
async def outrun(url: str, by: Outrunner, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Allowance]:
    """Anna and Bert with 60 s for each of two executors; another process comes before the next pick is appended.

    What it does is up to `by`, given its ledger and the miner that the pick has chosen.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with (
        small_ledger(url=url, offers={"5Anna": 2, "5Bert": 2}, clock=clock) as ledger,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as other,
    ):
        assert ledger._lifecycle.open_handle is not None
        store: Any = ledger._lifecycle.open_handle.store
        append = store.compare_and_append

        async def outrun_once(head: Head, rows: list[Row]) -> bool:
            monkeypatch.setattr(store, "compare_and_append", append)
            await by(other, rows[-1].stream.partition("\t")[0])
            appended: bool = await append(head, rows)
            return appended

        monkeypatch.setattr(store, "compare_and_append", outrun_once)
        yield ledger


async def picked(ledger: Allowance) -> tuple[Explanation, dict[str, int]]:
    """Routes a job; how that is explained, and what the process counted."""
    route = await Routing(ledger).pick_miner_for_job_request(job("job"))
    explanation = await ledger.explain("job")
    assert explanation.reservation.miner_ss58 == route.miner.hotkey_ss58
    assert (await ledger.audit()).findings == []
    return explanation, await ledger.counters()


async def test_a_pick_stays_on_its_miner_while_that_qualifies(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another claim there makes the other miner come first; the pick is decided again, stays, and says that it did.

    Catches a pick that runs to whoever comes first now, and a `kept` that is not recorded.
    """
    chosen = []

    async def by(other: Allowance, miner_ss58: str) -> None:
        chosen.append(miner_ss58)
        await other.reserve(miner_ss58, GPU, 6.0, 11)

    async with outrun(postgres_url, by, monkeypatch) as ledger:
        explanation, counters = await picked(ledger)
    assert explanation.reservation.miner_ss58 == chosen[0]
    assert explanation.kept
    assert [each.verdict for each in explanation.candidates] == ["outrun", "claimed"]
    assert (counters["conflicts"], counters["retries"], counters["moved_picks"]) == (1, 1, 0)


async def test_a_pick_leaves_a_miner_that_qualifies_no_more(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the other claim takes all that the miner had, the job goes to the next one, and that is counted."""
    chosen = []

    async def by(other: Allowance, miner_ss58: str) -> None:
        chosen.append(miner_ss58)
        await other.reserve(miner_ss58, GPU, 120.0, 11)

    async with outrun(postgres_url, by, monkeypatch) as ledger:
        explanation, counters = await picked(ledger)
    assert explanation.reservation.miner_ss58 != chosen[0]
    assert not explanation.kept
    assert [each.verdict for each in explanation.candidates] == ["claimed"]
    assert (counters["conflicts"], counters["moved_picks"]) == (1, 1)


async def test_a_drop_is_not_outrun(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that drops the chosen miner's executors comes first: its blocks are claimed no more.

    Catches a claim that is decided again only where its own account moved.
    """
    chosen = []

    async def by(other: Allowance, miner_ss58: str) -> None:
        chosen.append(miner_ss58)
        counts = {"5Anna": {GPU: 2}, "5Bert": {GPU: 2}, miner_ss58: {GPU: 1}}
        await other.record_manifests(11, counts)

    async with outrun(postgres_url, by, monkeypatch) as ledger:
        explanation, counters = await picked(ledger)
    assert explanation.reservation.miner_ss58 != chosen[0]
    assert (counters["conflicts"], counters["moved_picks"]) == (1, 1)
