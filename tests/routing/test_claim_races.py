"""Processes that claim one account at one version, from a barrier: exactly one wins, and nobody else is disturbed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from routing import Allowance, StreamVersionConflict
from routing.sync import Allowance as BlockingAllowance
from tests.support.small import GPU, VALIDATOR, small_ledger

RACERS = 2
ROUNDS, MANY_ROUNDS = 30, 1000
BARRIER_SECONDS = 120.0
"""Only a process that has failed makes the others wait as long."""


def race(url: str, barrier: Barrier, results: Any, number: int, rounds: int) -> None:
    """Claim Anna's next version again and again, from a barrier; put who won which round. Runs in its own process."""
    won: list[int] = []
    lost: list[tuple[int, int]] = []
    with BlockingAllowance.open(url, validator_ss58=VALIDATOR) as ledger:
        for round_number in range(rounds):
            # The winner of each round reserves and releases, so the version is known without looking.
            expected_version = 2 * round_number
            barrier.wait(BARRIER_SECONDS)
            try:
                claimed = ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=expected_version)
            except StreamVersionConflict as conflict:
                lost.append((conflict.expected_version, conflict.actual_version))
                claimed = None
            # The loser must have been told before the winner moves the stream again.
            barrier.wait(BARRIER_SECONDS)
            if claimed is not None:
                won.append(round_number)
                ledger.release(claimed.reservation_id)
        results.put((number, won, lost, ledger.counters()))


def claim_elsewhere(url: str, barrier: Barrier, results: Any, number: int, rounds: int) -> None:
    """Claim Bert's allowance in each round of the others' race, expecting nothing. Runs in its own process."""
    with BlockingAllowance.open(url, validator_ss58=VALIDATOR) as ledger:
        ledger.head()
        before = Counter(ledger.counters())
        for _ in range(rounds):
            barrier.wait(BARRIER_SECONDS)
            ledger.release(ledger.reserve("5Bert", GPU, 6.0, 11).reservation_id)
            barrier.wait(BARRIER_SECONDS)
        after = ledger.counters()
        results.put((number, [], [], {name: after[name] - before[name] for name in after}))


def run(target: Any, url: str, barrier: Barrier, results: Any, number: int, rounds: int) -> None:
    """Run one of the above; if it fails, let the other processes fail at once, too."""
    try:
        target(url, barrier, results, number, rounds)
    except BaseException as error:
        barrier.abort()
        results.put((number, [], [(-1, -1)], {"failed": repr(error)}))
        raise


@contextmanager
def processes(url: str, rounds: int) -> Iterator[Any]:
    """Start the racers and the process that claims elsewhere; yield the queue of their results."""
    context = get_context("spawn")
    barrier, results = context.Barrier(RACERS + 1), context.Queue()
    targets = [*[race] * RACERS, claim_elsewhere]
    started = [
        context.Process(target=run, args=(target, url, barrier, results, number, rounds))
        for number, target in enumerate(targets)
    ]
    for process in started:
        process.start()
    try:
        yield results
    finally:
        for process in started:
            process.join(BARRIER_SECONDS)
            process.kill()


async def race_at_one_version(url: str, rounds: int) -> None:
    """Let the processes race; check who won, what the third caller's decisions cost, and the log."""
    async with small_ledger(url=url):
        pass
    with processes(url, rounds) as results:
        told = sorted(results.get(timeout=BARRIER_SECONDS) for _ in range(RACERS + 1))
    assert not [counters["failed"] for *_, counters in told if "failed" in counters]
    assert sorted(round_number for _, won, *_ in told for round_number in won) == list(range(rounds))
    assert sorted(each for *_, lost, _ in told for each in lost) == [(2 * each, 2 * each + 1) for each in range(rounds)]
    elsewhere = told[RACERS][-1]
    assert elsewhere["commands"] == elsewhere["attempts"] == 2 * rounds
    assert elsewhere["conflicts"] == elsewhere["retries"] == 0
    if url.startswith("postgresql"):
        # The winner of the round before has appended since this process did.
        assert elsewhere["renumbered"] >= rounds - 1
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert (await ledger.audit()).findings == []
        versions = {each.hotkey_ss58: each.stream_version for each in await ledger.find_miners(6.0, GPU, 11)}
    assert (versions["5Anna"], versions["5Bert"]) == (2 * rounds, 2 * rounds)


async def test_of_two_processes_that_claim_at_one_version_exactly_one_wins(any_url: str) -> None:
    """The other gets `StreamVersionConflict`; a third process, on another account, decides every command once.

    Catches an append that does not compare the version of the account's stream, and one that compares the head of the
    whole log or repeats a decision because of it.
    """
    await race_at_one_version(any_url, ROUNDS)


@pytest.mark.long
async def test_of_two_processes_that_claim_at_one_version_exactly_one_wins_a_thousand_times(any_url: str) -> None:
    """The same, as often as it takes for rare interleavings to happen."""
    await race_at_one_version(any_url, MANY_ROUNDS)
