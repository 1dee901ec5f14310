"""`health` says what is wrong: damage, dead feeds, a clock that is behind, a history that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from ledger import SCHEMA_VERSION
from routing import Allowance, Settings
from routing.service.health import OLDEST_BLOCK_SECONDS, OLDEST_SYNC_BLOCKS, Health
from tests.storage.test_damage import damage
from tests.support.engines import derived_statement, statement
from tests.support.small import GPU, START, VALIDATOR, Clock, record_blocks, small_ledger
from tests.support.stories import project

BLOCKS = 11


def clock_at(seconds: float) -> Clock:
    """A clock so many seconds after block 0."""
    return Clock(START + timedelta(seconds=seconds))


@asynccontextmanager
async def healthy_ledger(url: str, settings: Settings | None = None) -> AsyncIterator[tuple[Allowance, Clock]]:
    """A ledger at its newest block, and its clock."""
    clock = clock_at(12 * BLOCKS)
    async with small_ledger(url=url, blocks=BLOCKS, clock=clock, settings=settings) as ledger:
        yield ledger, clock


async def test_a_healthy_ledger_is_ok(any_url: str) -> None:
    """Every field of the face is there, and the status is `ok`; the result is ready for JSON."""
    async with healthy_ledger(any_url) as (ledger, _):
        await ledger.reserve("5Anna", GPU, 6.0, BLOCKS)
        health = await ledger.health()
        assert (health.status, health.problems) == ("ok", [])
        assert health.validator_ss58 == VALIDATOR
        assert (health.schema_version, health.position) == (SCHEMA_VERSION, BLOCKS + 3)
        assert (health.newest_block, health.newest_block_age_seconds) == (BLOCKS, 0.0)
        assert (health.newest_sync, health.newest_sync_age_blocks) == (1, BLOCKS - 1)
        assert health.newest_sync_age_seconds == 12.0 * (BLOCKS - 1)
        assert (health.reserved, health.overdue, health.log_ahead_seconds) == (1, 0, 0.0)
        assert (health.verified_position, health.verified_at) == (None, None)
        assert health.missing_triggers == []
        if any_url.startswith("postgresql"):
            assert health.database_url == "postgresql://…"
        else:
            assert health.database_url == any_url
        await ledger.verify()
        verified = await ledger.health()
        assert verified.verified_position == verified.position
        assert verified.verified_at is not None
        assert msgspec.json.decode(msgspec.json.encode(verified.to_dict()))["status"] == "ok"


async def test_a_new_ledger_has_no_facts(any_url: str) -> None:
    """Without a block or manifests nothing can be routed."""
    async with Allowance.open(any_url, validator_ss58=VALIDATOR) as ledger:
        health = await ledger.health()
    assert health.problems == ["no block is recorded", "no manifests are recorded"]


@pytest.mark.parametrize(("most_seconds", "limit"), [(None, OLDEST_BLOCK_SECONDS), (30.0, 30)])
async def test_a_dead_feed_of_blocks_is_not_ok(url: str, most_seconds: float | None, limit: int) -> None:
    """The limit is that of the router, or a fixed one if no setting was chosen: picks then go on, but not unnoticed.

    Catches a `health` that is content while nobody feeds the ledger.
    """
    settings = Settings(newest_block_max_age_seconds=most_seconds)
    async with healthy_ledger(url, settings) as (ledger, clock):
        clock.advance(limit)
        assert (await ledger.health()).status == "ok"
        clock.advance(1)
        assert "feed of blocks" in (await ledger.health()).status


@pytest.mark.parametrize(("most_blocks", "limit"), [(None, OLDEST_SYNC_BLOCKS), (100, 100)])
async def test_a_dead_feed_of_manifests_is_not_ok(url: str, most_blocks: int | None, limit: int) -> None:
    """Nothing else watches the manifests if the router does not refuse."""
    settings = Settings(newest_manifests_max_age_blocks=most_blocks)
    async with healthy_ledger(url, settings) as (ledger, clock):
        health = await ledger.health()
        for newest, is_ok in ((limit + 1, True), (limit + 2, False)):
            await record_blocks(ledger, newest, newest, ["5Anna"])
            clock.now_ns = clock_at(12 * newest).now_ns
            health = await ledger.health()
            assert health.newest_sync_age_blocks == newest - 1
            assert (health.status == "ok") is is_ok, health.status
        assert "feed of manifests" in health.status


async def test_a_log_ahead_of_the_clock_is_not_ok(url: str) -> None:
    """After a clock jumped ahead and back, recorded times stay ahead; `health` reports by how much."""
    async with healthy_ledger(url) as (ledger, clock):
        clock.advance(90)
        await ledger.reserve("5Anna", GPU, 6.0, BLOCKS)
        clock.advance(-60)
        health = await ledger.health()
        assert (health.log_ahead_seconds, health.status) == (60.0, "ok")
        clock.advance(-1)
        health = await ledger.health()
        assert health.log_ahead_seconds == 61.0
        assert "61 s ahead of the clock" in health.status


async def test_damage_under_a_running_process_is_not_ok(any_url: str) -> None:
    """The stored rows are read again at each call, although the state in memory was folded before the damage.

    Catches a damaged log that keeps serving with a green `health`.
    """
    async with healthy_ledger(any_url) as (ledger, _):
        assert (await ledger.health()).status == "ok"
        await damage(any_url, "UPDATE allowance_events SET recorded_at_ns = recorded_at_ns + 1 WHERE position = 7")
        health = await ledger.health()
        assert "damaged at position 7" in health.status
        await ledger.verify()
        assert "`allowance verify` found damage at position 7" in (await ledger.health()).problems


@pytest.mark.parametrize("table", ["allowance_checkpoints", "allowance_verifications"])
async def test_a_lost_derived_table_is_not_ok(any_url: str, table: str) -> None:
    """`health` itself goes on, and names the way out."""
    async with healthy_ledger(any_url) as (ledger, _):
        execute = statement if table == "allowance_verifications" else derived_statement
        await project(ledger)
        await asyncio.to_thread(execute, any_url, f"DROP TABLE {table}")
        health = await ledger.health()
        assert table in health.status
        assert "allowance rebuild" in health.status
        await ledger.rebuild()
        assert (await ledger.health()).status == "ok"


async def test_a_missing_trigger_is_reported_and_no_problem(any_url: str) -> None:
    """A trigger that somebody dropped is named; nothing depends on it, so the status stays `ok`.

    Catches a `health` that reports what the creation did, and one that calls for help.
    """
    async with healthy_ledger(any_url) as (ledger, _):
        table = "" if any_url.startswith("sqlite") else " ON allowance_streams"
        await asyncio.to_thread(statement, any_url, f"DROP TRIGGER allowance_streams_no_rename{table}")
        health = await ledger.health()
        assert (health.missing_triggers, health.status) == (["allowance_streams_no_rename"], "ok")


HEALTHY = Health(
    "sqlite", SCHEMA_VERSION, 500, "500:00", 20, None, 11, None, 90.0, 3, 2, "sqlite:///a.db", VALIDATOR, 11, 0, 90.0,
    0.0, None, 400, START, [], "ok", [],
)  # fmt: skip
"""Measures that limits of the tests are compared with: a lag of 20 events, a block 90 s old, two overdue."""


@pytest.mark.parametrize(
    ("within", "beyond", "sentence"),
    [
        ({"max_block_age_seconds": 90}, {"max_block_age_seconds": 89}, "the newest block is 90 s old, more than 89"),
        ({"max_lag_events": 20}, {"max_lag_events": 19}, "the history is 20 events behind, more than 19"),
        ({"max_overdue": 2}, {"max_overdue": 0}, "there are 2 overdue reservations, more than 0"),
        (
            {"max_unverified_seconds": 60},
            {"max_unverified_seconds": 59},
            "the last verification is 60 s old, more than 59",
        ),
    ],
    ids=str,
)
def test_a_limit_is_exceeded_only_beyond_it(within: dict[str, Any], beyond: dict[str, Any], sentence: str) -> None:
    """Each limit alone. Catches: a comparison that also refuses the limit itself, and two limits mixed up."""
    now = START + timedelta(seconds=60)
    assert HEALTHY.exceeded(**within, now=now) == []
    assert HEALTHY.exceeded(**beyond, now=now) == [sentence]
    assert HEALTHY.exceeded(now=now) == HEALTHY.failures() == []


def test_without_a_measure_every_limit_is_exceeded() -> None:
    """A ledger without a block, or one that was never verified, is not within any limit."""
    unknown = msgspec.structs.replace(HEALTHY, newest_block=None, newest_block_age_seconds=None, verified_at=None)
    assert len(unknown.exceeded(max_block_age_seconds=1e9, max_unverified_seconds=1e9)) == 2
    assert unknown.exceeded(max_lag_events=20, max_overdue=2) == []


async def test_a_limit_for_the_block_replaces_the_usual_one(url: str) -> None:
    """Catches: a `health --max-block-age 3600` that fails after 600 s, the age at which `problems` names the feed."""
    async with healthy_ledger(url) as (ledger, clock):
        clock.advance(OLDEST_BLOCK_SECONDS + 1)
        health = await ledger.health()
        assert health.failures() == health.problems != []
        assert health.failures(max_block_age_seconds=3600.0) == []
        assert len(health.failures(max_block_age_seconds=60.0)) == 1
        assert health.failures(max_block_age_seconds=3600.0, max_overdue=0) == []
