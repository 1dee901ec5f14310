"""Metrics: what is counted, what is read at a scrape, and how many series there can be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ledger import observers
from ledger.observers import Operation
from routing import AllMinersBusy, Allowance, InvalidInput, NotEnoughAllowanceException, Routing, configure, reset
from routing import allowance as process_wide
from routing import sync as blocking
from routing.metrics import LedgerCollector, disable, enable, exposition, recording
from routing.service.outcomes import OUTCOMES
from tests.support.scrapes import Samples, names, scraped, value
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks, small_ledger

PICK = "pick_miner_for_job_request"


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    enable(registry=CollectorRegistry(), computehorde_names=True)
    yield
    disable()


async def scrape(*ledgers: Any, **options: Any) -> Samples:
    """Scrape from another thread, after the batches that have ended were counted."""
    for ledger in ledgers:
        if isinstance(ledger, Allowance):
            await (await ledger._lifecycle.handle()).runtime.run(asyncio.sleep(0))
    return await asyncio.to_thread(scraped, ledgers, **options)


class Growth:
    """By how much samples have grown: other tests of the process have counted before."""

    def __init__(self, before: Samples) -> None:
        self._before = before
        self._after: Samples = {}

    @classmethod
    async def since_now(cls, ledger: Allowance) -> Growth:
        return cls(await scrape(ledger))

    async def measure(self, ledger: Allowance) -> None:
        self._after = await scrape(ledger)

    def of(self, name: str, **labels: str) -> float:
        return (value(self._after, name, **labels) or 0.0) - (value(self._before, name, **labels) or 0.0)


async def test_picks_are_counted_by_class_and_outcome() -> None:
    """Routed, repeated, refused: each pick is counted once, and timed; so is each settlement."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        router, growth = Routing(ledger), await Growth.since_now(ledger)
        await router.pick_miner_for_job_request(job("a"))
        route = await router.pick_miner_for_job_request(job("a"))
        with pytest.raises(AllMinersBusy):
            await router.pick_miner_for_job_request(job("b"))
        with pytest.raises(NotEnoughAllowanceException):
            await router.pick_miner_for_job_request(job("c", 3600.0))
        with pytest.raises(InvalidInput):
            await router.pick_miner_for_job_request(job("d", -1.0))
        await ledger.spend(route.allowance_reservation_id or 0)
        await growth.measure(ledger)
    outcomes = {"routed": 1, "repeated": 1, "all_busy": 1, "no_allowance": 1}
    assert {each: growth.of("allowance_picks_total", executor_class=GPU, outcome=each) for each in outcomes} == outcomes
    assert growth.of("allowance_picks_total", executor_class="other", outcome="invalid") == 1
    seconds = "allowance_operation_duration_seconds"
    assert growth.of(f"{seconds}_count", operation=PICK, outcome="routed") == 1
    assert 0 < growth.of(f"{seconds}_sum", operation=PICK, outcome="routed") < 60
    assert growth.of(f"{seconds}_count", operation="spend", outcome="done") == 1
    assert growth.of("allowance_settlements_total", status="spent") == 1


async def test_group_commits_are_counted() -> None:
    """Commands per batch, waits for the write lock and times of commits: one of each per batch of a lone writer."""
    async with small_ledger() as ledger:
        growth = await Growth.since_now(ledger)
        for number in range(3):
            await Routing(ledger).pick_miner_for_job_request(job(f"j-{number}"))
        await growth.measure(ledger)
    assert growth.of("allowance_batch_commands_count") == growth.of("allowance_batch_commands_sum") == 3
    assert growth.of("allowance_write_lock_wait_seconds_count") == growth.of("allowance_commit_seconds_count") == 3
    assert growth.of("allowance_conflicts_total") == growth.of("allowance_retries_total") == 0


async def test_group_commits_on_postgres_are_counted(postgres_url: str) -> None:
    """An optimistic append takes no lock: its commit is timed, and there is no wait."""
    async with small_ledger(url=postgres_url) as ledger:
        growth = await Growth.since_now(ledger)
        await Routing(ledger).pick_miner_for_job_request(job("j"))
        await growth.measure(ledger)
    assert growth.of("allowance_commit_seconds_count") == 1
    assert growth.of("allowance_write_lock_wait_seconds_count") == 0


async def test_expiries_of_a_claim_are_settlements() -> None:
    """A claim that takes an overdue reservation's blocks expires it: no call named `expire`, one settlement more.

    Catches settlements that are counted by the calls that name them.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(offers={"5Anna": 1}, clock=clock) as ledger:
        await Routing(ledger).pick_miner_for_job_request(job("a", 60.0))
        clock.advance(3600)
        growth = await Growth.since_now(ledger)
        await Routing(ledger).pick_miner_for_job_request(job("b", 60.0))
        await growth.measure(ledger)
    assert growth.of("allowance_settlements_total", status="expired") == 1


async def test_a_lost_race_is_a_conflict_and_a_retry(postgres_url: str) -> None:
    """If another process moves the account first, the append is refused, and the command is decided again."""
    other = Allowance.open(postgres_url, validator_ss58=VALIDATOR)
    async with small_ledger(url=postgres_url, offers={"5Anna": 2}) as ledger, other:
        await other.current_block()
        growth = await Growth.since_now(ledger)
        # Both know the same head, and there is only one account to claim on.
        await Routing(other).pick_miner_for_job_request(job("a"))
        await Routing(ledger).pick_miner_for_job_request(job("b"))
        await growth.measure(ledger)
    assert growth.of("allowance_conflicts_total") == 1
    assert growth.of("allowance_retries_total") == 1


async def test_invented_classes_make_no_series() -> None:
    """A thousand jobs of invented classes are one series: whoever sends jobs cannot fill the memory."""
    async with small_ledger() as ledger:
        router = Routing(ledger)
        for number in range(1000):
            with pytest.raises(NotEnoughAllowanceException):
                await router.pick_miner_for_job_request(job(f"j-{number}", executor_class=f"invented-{number}"))
        samples = await scrape(ledger)
    classes = {dict(labels).get("executor_class") for name, labels in samples if name == "allowance_picks_total"}
    assert "other" in classes
    assert not [each for each in classes if each and each.startswith("invented")]
    assert len(recording._recorder._found) < 100


def test_the_classes_of_a_ledger_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Miners choose what they offer: beyond a hundred classes, further ones share a label."""
    recorder = recording._Recorder()
    for number in range(300):
        recorder.operation_ended(Operation(PICK, "routed", VALIDATOR, f"offered-{number}", True))
    labels = {recorder._label(f"offered-{number}") for number in range(300)}
    assert len(labels) == recording.MOST_CLASSES + 1
    for labelled in list(labels):
        recording.PICKS.remove(labelled, "routed")


async def test_a_scrape_names_no_miner_and_no_job() -> None:
    """No hotkey of a miner and no job is in a label, unless ComputeHorde's names are asked for."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        await Routing(ledger).pick_miner_for_job_request(job("secret-job"))
        body, _ = await asyncio.to_thread(exposition, [ledger])
    assert VALIDATOR in body.decode()
    for hidden in ("5Anna", "secret-job"):
        assert hidden not in body.decode()


async def test_gauges_say_what_the_ledger_is_like() -> None:
    """Blocks, ages, lag, reservations by status, overdue ones, and allowance by class, as of the scrape."""
    clock = Clock(START + timedelta(seconds=12 * 11 + 30))
    async with small_ledger(offers={"5Anna": 2}, clock=clock) as ledger:
        router = Routing(ledger)
        routes = [await router.pick_miner_for_job_request(job(each)) for each in "ab"]
        await ledger.spend(routes[0].allowance_reservation_id or 0)
        samples = await scrape(ledger)
        gauges = {
            "ledger_up": 1,
            "position": (await ledger.head()).position,
            "newest_block": 11,
            "newest_block_age_seconds": 30,
            "newest_manifests_age_blocks": 10,
            "overdue_reservations": 0,
            "queue_length": 0,
            "problems": 0,
        }
        for name, expected in gauges.items():
            assert value(samples, f"allowance_{name}", validator_ss58=VALIDATOR) == expected, name
        assert statuses(samples) == {"reserved": 1, "spent": 1, "released": 0, "expired": 0}
        labels = {"validator_ss58": VALIDATOR, "executor_class": GPU}
        assert value(samples, "allowance_total_seconds", **labels) == 120
        assert value(samples, "allowance_available_seconds", **labels) == 96
        clock.advance(3600)
        samples = await scrape(ledger)
        assert value(samples, "allowance_overdue_reservations", validator_ss58=VALIDATOR) == 1


def statuses(samples: Samples) -> dict[str, float]:
    return {
        dict(labels)["status"]: number for (name, labels), number in samples.items() if name == "allowance_reservations"
    }


async def test_statuses_are_right_at_any_lag(database_url: str) -> None:
    """Settlements before and after the history's checkpoint are counted, each once.

    Catches a count of the read model alone, or one that counts the tail from its beginning.
    """
    async with small_ledger(url=database_url, offers={"5Anna": 9}) as ledger:
        router = Routing(ledger)
        ids = [(await router.pick_miner_for_job_request(job(f"j-{n}"))).allowance_reservation_id or 0 for n in range(6)]
        await ledger.spend(ids[0])
        handle = await ledger._lifecycle.handle()
        await handle.runtime.run(handle.history.project((await ledger.head()).position))
        await ledger.spend(ids[1])
        await ledger.release(ids[2])
        samples = await scrape(ledger)
    assert statuses(samples) == {"reserved": 3, "spent": 2, "released": 1, "expired": 0}


async def test_a_verification_has_a_position_and_an_age() -> None:
    """Both are missing until the first one, so that an alert sees that there was none."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(clock=clock) as ledger:
        samples = await scrape(ledger)
        assert value(samples, "allowance_verified_age_seconds", validator_ss58=VALIDATOR) is None
        await ledger.verify()
        clock.advance(90)
        samples = await scrape(ledger)
        position = value(samples, "allowance_verified_position", validator_ss58=VALIDATOR)
        assert position == (await ledger.head()).position
    assert value(samples, "allowance_verified_age_seconds", validator_ss58=VALIDATOR) == pytest.approx(90)


async def test_several_ledgers_are_told_apart_and_one_may_be_down() -> None:
    """Each has a label; one that cannot be read is down, and the others are in the same scrape."""
    async with small_ledger() as ledger:
        other = Allowance.open("sqlite://", validator_ss58="5Empty")
        closed = Allowance.open("sqlite://", validator_ss58="5Closed")
        await closed.close()
        samples = await asyncio.to_thread(scraped, [ledger, other, closed])
        await other.close()
    up = {dict(labels)["validator_ss58"]: up for (name, labels), up in samples.items() if name == "allowance_ledger_up"}
    assert up == {VALIDATOR: 1, "5Empty": 1, "5Closed": 0}
    assert value(samples, "allowance_newest_block", validator_ss58="5Empty") is None
    assert value(samples, "allowance_position", validator_ss58="5Closed") is None


async def test_a_ledger_that_hangs_does_not_hang_the_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not respond costs a scrape the time limit, once for all ledgers together."""
    from routing.metrics import collector

    async def never(_: Allowance) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(collector, "figures_of", never)
    monkeypatch.setattr(collector, "SCRAPE_SECONDS", 0.01)
    async with small_ledger() as ledger:
        samples = await asyncio.to_thread(scraped, [ledger])
    assert value(samples, "allowance_ledger_up", validator_ss58=VALIDATOR) == 0


def test_what_is_not_a_ledger_is_refused() -> None:
    """Neither something else nor two ledgers of one validator, whose series would have equal labels."""
    with pytest.raises(InvalidInput):
        LedgerCollector(["sqlite://"])  # type: ignore[list-item]
    ledgers = [Allowance.open("sqlite://", validator_ss58=VALIDATOR) for _ in range(2)]
    with pytest.raises(InvalidInput, match="different validators"):
        exposition(ledgers)


async def test_a_scrape_on_the_library_s_own_loop_is_refused() -> None:
    """It would wait for itself for ever."""
    async with small_ledger() as ledger:

        async def scrape_there() -> None:
            exposition([ledger])

        with pytest.raises(RuntimeError, match="another thread"):
            await (await ledger._lifecycle.handle()).runtime.run(scrape_there())


def test_blocking_ledgers_and_the_process_wide_one_work(tmp_path: Any) -> None:
    """A ledger of `routing.sync`, and `routing.allowance` itself, before it was ever called."""
    with blocking.Allowance.open("sqlite://", validator_ss58="5Blocking") as ledger:
        configure(database_url=f"sqlite:///{tmp_path / 'ledger.db'}", validator_ss58=VALIDATOR)
        try:
            samples = scraped([ledger, process_wide])
        finally:
            reset()
    assert value(samples, "allowance_ledger_up", validator_ss58="5Blocking") == 1
    assert value(samples, "allowance_ledger_up", validator_ss58=VALIDATOR) == 1


async def test_enabling_twice_counts_once() -> None:
    """A program and a library of it may both enable metrics."""
    registry = CollectorRegistry()
    for _ in range(2):
        enable(registry=registry)
    async with small_ledger() as ledger:
        growth = await Growth.since_now(ledger)
        await Routing(ledger).pick_miner_for_job_request(job("j"))
        await growth.measure(ledger)
    assert growth.of("allowance_picks_total", executor_class=GPU, outcome="routed") == 1
    assert "allowance_picks_total" in generate_latest(registry).decode()


def test_registering_a_collector_reads_no_ledger() -> None:
    """prometheus_client's default registry collects a collector when it is registered, unless it describes itself."""

    def never() -> Allowance:
        raise AssertionError("the ledger was read")

    registry = CollectorRegistry(auto_describe=True)
    registry.register(LedgerCollector([never]))
    with pytest.raises(ValueError, match="allowance_position"):
        registry.register(LedgerCollector([never]))


@dataclass
class State:
    newest_block: int | None = 17
    recorded_blocks: int = 5
    recorded_syncs: int = 2
    retries: int = 3
    failures: int = 1
    missing_blocks: int = 4
    last_success_at: datetime | None = None
    last_error: str | None = None


class Feeder:
    def __init__(self, state: State) -> None:
        self._state = state

    def state(self) -> State:
        return self._state


def test_feeders_are_in_the_scrape() -> None:
    """Each feeder has a number; what it has not done yet is missing."""
    at = datetime(2024, 1, 1, tzinfo=UTC)
    feeds = [Feeder(State(last_success_at=at)), Feeder(State(newest_block=None, last_error="no"))]
    samples = scraped([], feeds=feeds)
    expected = {
        "newest_block": 17,
        "recorded_blocks_total": 5,
        "recorded_syncs_total": 2,
        "retries_total": 3,
        "failures_total": 1,
        "missing_blocks": 4,
        "last_success_timestamp_seconds": at.timestamp(),
        "failing": 0,
    }
    for name, number in expected.items():
        assert value(samples, f"allowance_feed_{name}", feed="1") == number, name
    assert value(samples, "allowance_feed_failing", feed="2") == 1
    for name in ("newest_block", "last_success_timestamp_seconds"):
        assert value(samples, f"allowance_feed_{name}", feed="2") is None


COMPUTEHORDE = {
    "validator_reserve_allowance_duration_seconds": set[str](),
    "validator_undo_allowance_reservation_duration_seconds": set[str](),
    "validator_block_allowance_processing_duration_seconds": set[str](),
    "validator_block_allowance_checkpoint_seconds": {"miner_hotkey", "validator_hotkey", "executor_class"},
    "validator_stake_share_fraction": {"validator_hotkey"},
    "validator_miner_manifest_count": {"miner_hotkey", "executor_class"},
    "validator_block_duration_seconds": set[str](),
}


async def test_computehorde_s_names_labels_and_values() -> None:
    """A dashboard that was made for ComputeHorde's validator finds all seven, with its labels."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        await ledger.release((await Routing(ledger).pick_miner_for_job_request(job("j"))).allowance_reservation_id or 0)
        await record_blocks(ledger, 12, 12, ["5Anna"])
        samples = await scrape(ledger, computehorde_names=True)
    for metric, labels in COMPUTEHORDE.items():
        name = f"{metric}_count" if metric.count("_duration_seconds") and "block_duration" not in metric else metric
        found = [(set(dict(each)), number) for (sample, each), number in samples.items() if sample == name]
        assert found, name
        assert {frozenset(each) for each, _ in found} == {frozenset(labels)}
        assert all(number > 0 for _, number in found), name
    account = {"miner_hotkey": "5Anna", "validator_hotkey": VALIDATOR, "executor_class": GPU}
    assert value(samples, "validator_block_allowance_checkpoint_seconds", **account) == 132
    assert value(samples, "validator_stake_share_fraction", validator_hotkey=VALIDATOR) == 0.5
    assert value(samples, "validator_miner_manifest_count", miner_hotkey="5Anna", executor_class=GPU) == 2
    assert value(samples, "validator_block_duration_seconds") == 12


def test_nothing_of_computehorde_is_there_unless_asked_for() -> None:
    """The names of another product appear by choice only."""
    assert not [name for name in names(exposition([])[0].decode()) if name.startswith("validator_")]


async def test_outcomes_are_a_closed_list() -> None:
    """Every outcome that was counted is documented."""
    async with small_ledger() as ledger:
        samples = await scrape(ledger)
    counted = {dict(labels)["outcome"] for _, labels in samples if "outcome" in dict(labels)}
    assert counted <= set(OUTCOMES)


def test_disabling_ends_it() -> None:
    """Nothing observes afterwards, so calls cost nothing again."""
    disable()
    assert observers.registered == ()
