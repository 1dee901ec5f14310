"""A state that is not the log's, planted under the lock: the store compares versions and refuses what it decided."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from ledger import Store
from projections import Availability
from routing import Allowance, CorruptLedger, StorageUnavailable
from tests.support.small import GPU, START, VALIDATOR, Clock, small_ledger
from tests.support.stories import events_of


@asynccontextmanager
async def behind_another(url: str) -> AsyncIterator[tuple[Allowance, Allowance, Any]]:
    """Yield a ledger, another opening of its log, and the live state of the first."""
    clock = Clock(START + timedelta(seconds=132))
    async with (
        small_ledger(url=url, clock=clock) as ledger,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as other,
    ):
        assert ledger._lifecycle.open_handle is not None
        yield ledger, other, ledger._lifecycle.open_handle.writer._live


def plant(live: Any, store: Store, monkeypatch: pytest.MonkeyPatch, is_stale: Callable[[], bool]) -> None:
    """Let the state not follow the log under the lock, as long as `is_stale`."""
    catch_up = live.catch_up

    async def stay_behind(source: Any) -> Any:
        if source is not store and live.current is not None and is_stale():
            return live.current
        return await catch_up(source)

    monkeypatch.setattr(live, "catch_up", stay_behind)


async def test_what_a_stale_state_decides_is_refused_and_decided_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim gets the blocks behind those that the other process took, and is acknowledged only then.

    Catches a store that compares no versions under the lock, and a writer that keeps the state that was refused.
    """
    stale = [True]
    async with behind_another(url) as (ledger, other, live):
        assert (await other.reserve("5Anna", GPU, 6.0, 11)).blocks == [1]
        before = await ledger.counters()
        plant(live, live._store, monkeypatch, lambda: bool(stale) and stale.pop())
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]
        assert (await ledger.reserve("5Anna", GPU, 18.0, 11)).blocks == [3, 4]
        after = await ledger.counters()
        assert (await ledger.audit()).findings == []
    assert not stale
    assert [after[name] - before[name] for name in ("conflicts", "retries", "attempts", "commands")] == [1, 1, 3, 2]


async def test_a_state_that_is_stale_again_fails_its_call(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the second conflict the call raises `CorruptLedger`, which names the stream, and nothing is appended.

    Catches a writer that decides on such a state for ever, and one that acknowledges it.
    """
    async with behind_another(url) as (ledger, other, live):
        old_rows = await events_of(ledger)
        await other.reserve("5Anna", GPU, 6.0, 11)
        head = await other.head()

        async def fold_old_rows(_source: object) -> Availability:
            state = live.current = Availability()
            state.fold(old_rows)
            return state

        with monkeypatch.context() as planted:
            planted.setattr(live, "catch_up", fold_old_rows)
            with pytest.raises(CorruptLedger, match="5Anna"):
                await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert await other.head() == head
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]
        assert (await ledger.audit()).findings == []


async def test_a_stale_state_whose_own_streams_are_current_is_not_acknowledged(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that do not follow the head are refused as well, although the versions of their streams do."""
    async with behind_another(url) as (ledger, other, live):
        await other.reserve("5Bert", GPU, 6.0, 11)
        head = await other.head()
        with monkeypatch.context() as planted:
            plant(live, live._store, planted, lambda: True)
            with pytest.raises(StorageUnavailable):
                await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert await other.head() == head
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.audit()).findings == []
