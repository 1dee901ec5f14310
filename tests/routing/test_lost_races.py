"""A pick that loses the race for the head is decided again: on which miner, and how it is explained and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from ledger import Head, Row
from ledger.store.contract import RowsBehind
from routing import Allowance, Explanation, Routing, Settings
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

OtherProcess = Callable[[Allowance, str], Awaitable[Any]]


@asynccontextmanager
async def losing_a_race(
    url: str, by: OtherProcess, monkeypatch: pytest.MonkeyPatch, settings: Settings | None = None
) -> AsyncIterator[Allowance]:
    """A ledger of Anna and Bert, with 60 s for each of two executors; the next pick loses the race for the head.

    Just before that pick is appended, `by` is called with another process's ledger and the miner that the pick chose.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with (
        small_ledger(url=url, offers={"5Anna": 2, "5Bert": 2}, clock=clock, settings=settings) as ledger,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as other,
    ):
        if settings is not None:
            await ledger.record_collateral(dict.fromkeys(("5Anna", "5Bert"), settings.minimum_collateral_wei))
        assert ledger._lifecycle.open_handle is not None
        store: Any = ledger._lifecycle.open_handle.store
        append = store.append

        async def append_after_the_other(events: RowsBehind, expected: Any, *, at: Head) -> list[Row] | None:
            monkeypatch.setattr(store, "append", append)
            await by(other, events(at)[-1].stream.partition("\t")[0])
            appended: list[Row] | None = await append(events, expected, at=at)
            return appended

        monkeypatch.setattr(store, "append", append_after_the_other)
        yield ledger


async def picked(ledger: Allowance) -> tuple[Explanation, dict[str, int]]:
    """Route a job; return its explanation and the counters of the process."""
    route = await Routing(ledger).pick_miner_for_job_request(job("job"))
    explanation = await ledger.explain("job")
    assert explanation.reservation.miner_ss58 == route.miner.hotkey_ss58
    report = await ledger.audit()
    assert (report.findings, report.unproved_choices) == ([], 0)
    return explanation, await ledger.counters()


async def test_a_pick_keeps_its_miner_while_that_qualifies(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another claim on the chosen miner makes the other miner first; the pick keeps its miner and names its choice.

    Catches a pick that moves to the new first candidate, and a claim that does not name the position of its choice:
    `picked` then has a finding, and the explanation lists the other miner first.
    """
    chosen = []

    async def by(other: Allowance, miner_ss58: str) -> None:
        chosen.append(miner_ss58)
        await other.reserve(miner_ss58, GPU, 6.0, 11)

    async with losing_a_race(postgres_url, by, monkeypatch) as ledger:
        explanation, counters = await picked(ledger)
    assert explanation.reservation.miner_ss58 == chosen[0]
    assert explanation.chosen_at == explanation.position == 13
    assert explanation.reservation.reservation_id >> 20 == 15
    assert [each.verdict for each in explanation.candidates] == ["claimed", "not reached"]
    assert (counters["conflicts"], counters["retries"], counters["moved_picks"]) == (1, 1, 0)


async def test_a_drawn_choice_is_not_kept_when_the_order_changes(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order becomes that by allowance before the claim: the pick chooses anew, and names no position.

    Catches a choice that remembers only the order of now: at the position that it names, a later clock draws otherwise.
    """

    async def by(other: Allowance, miner_ss58: str) -> None:
        await other.reserve(miner_ss58, GPU, 6.0, 11)
        await other.change_settings(routing_order="allowance")

    async with losing_a_race(postgres_url, by, monkeypatch, Settings(routing_order="reliability")) as ledger:
        explanation, _ = await picked(ledger)
    assert explanation.chosen_at is None


async def test_a_pick_leaves_a_miner_that_no_longer_qualifies(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the other claim takes all of the miner's allowance, the job goes to the next miner and counts as moved."""
    chosen = []

    async def by(other: Allowance, miner_ss58: str) -> None:
        chosen.append(miner_ss58)
        await other.reserve(miner_ss58, GPU, 120.0, 11)

    async with losing_a_race(postgres_url, by, monkeypatch) as ledger:
        explanation, counters = await picked(ledger)
    assert explanation.reservation.miner_ss58 != chosen[0]
    assert explanation.chosen_at is None
    assert [each.verdict for each in explanation.candidates] == ["claimed"]
    assert (counters["conflicts"], counters["moved_picks"]) == (1, 1)


async def test_a_pick_does_not_claim_blocks_that_a_drop_has_invalidated(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a sync that lowers the chosen miner's count commits first, the pick cannot claim the invalidated blocks.

    Catches a claim that is decided again only if its own account moved.
    """
    chosen = []

    async def by(other: Allowance, miner_ss58: str) -> None:
        chosen.append(miner_ss58)
        counts = {"5Anna": {GPU: 2}, "5Bert": {GPU: 2}, miner_ss58: {GPU: 1}}
        await other.record_manifests(11, counts)

    async with losing_a_race(postgres_url, by, monkeypatch) as ledger:
        explanation, counters = await picked(ledger)
    assert explanation.reservation.miner_ss58 != chosen[0]
    assert (counters["conflicts"], counters["moved_picks"]) == (1, 1)
