"""The ranking that follows the log, compared with one that measures every account, and how many accounts it measures.

`RANKING_SEED` sets the first seed of the random logs, `RANKING_LOGS` their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from random import Random
from typing import Any

import pytest

from ledger import Account, Chain, RecordedSettings, Row
from ledger.domain.account import Claim
from ledger.domain.chain import Metagraph, block_to_return_to, decide_block, decide_manifests, metagraph_difference
from ledger.errors import ConflictingFact, ImplausibleFact
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    AllowanceReserved,
    BlockWithdrawn,
    Event,
    ExpiryRecorded,
    LedgerOpened,
    ManifestsWithdrawn,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
)
from projections import Availability, RankedAccount
from projections.measured import rank_accounts
from projections.ranking import Ranking
from tests.support.stories import seed_shown

SEED = int(os.environ.get("RANKING_SEED", "1"))
LOGS = int(os.environ.get("RANKING_LOGS", "40"))
EVENTS = 400
GPU, VALIDATOR = "always_on.gpu-24gb", "5Validator"
MINERS = [f"5Miner{number:02}" for number in range(24)]
AXON = ("192.0.2.7", 4, 8000)
S = 10**9
START_NS = 1_704_067_200 * S


class RandomLedger:
    """A state that random events change: mostly ordinary ones, and some that only a forged log has."""

    def __init__(self, draw: Random, settings: RecordedSettings | None = None, count: int | None = None) -> None:
        self.draw = draw
        self.now_ns = START_NS
        self.block_ns = 12 * S if settings else draw.choice([12 * S, 12 * S, 40])
        """Blocks of 40 ns make the whole window shorter than the unit in which shares are counted."""
        self.state = Availability()
        self.miners = dict.fromkeys(MINERS, AXON)
        self.stakes = {VALIDATOR: S, "5Other": S}
        self.offered: dict[str, dict[str, int]] = {}
        self.metagraphs: dict[int, Metagraph] = {}
        self.append(SETTINGS_STREAM, LedgerOpened(VALIDATOR, settings or self.settings()))
        self.sync(MINERS, count)
        for number in range(1, 15):
            self.block(number)

    @property
    def chain(self) -> Chain:
        return self.state.chain

    @property
    def newest(self) -> int:
        return self.chain.blocks.newest

    def append(self, stream: str, event: Event, **columns: Any) -> Row:
        """Apply an event as the next row."""
        position, recorded_at_ns = self.state.position + 1, max(self.now_ns, self.state.recorded_at_ns)
        event_hash = self.draw.randbytes(32)
        row = Row(position, stream, self.state.version(stream) + 1, recorded_at_ns, None, None, None, None, b"", b"")
        row = row._replace(hash=event_hash, **columns)
        self.state.evolve(row, event)
        return row

    def settings(self) -> RecordedSettings:
        return RecordedSettings(
            block_expiry_blocks=self.draw.choice([0, 1, 8, 20, 20, 60]),
            executors_max_per_class=self.draw.choice([{}, {}, {GPU: 2}]),
            respect_executor_count=self.draw.random() < 0.8,
        )

    def append_random_event(self) -> None:
        weights = {
            self.next_block: 40,
            self.a_claim: 60,
            self.an_odd_claim: 2,
            self.a_settlement: 50,
            self.a_sync: 3,
            self.another_metagraph: 4,
            self.a_leap: 1,
            self.a_late_block: 3,
            self.a_withdrawn_block: 1,
            self.a_withdrawn_sync: 1,
            self.other_settings: 1,
        }
        (append,) = self.draw.choices(list(weights), list(weights.values()))
        append()
        self.now_ns += self.draw.choice([0, 0, S, 30 * S, -40 * S, self.block_ns])

    def next_block(self) -> None:
        self.block(self.newest + 1)

    def a_leap(self) -> None:
        """Leave blocks out, sometimes so many that nothing in the window is granted any more."""
        self.block(self.newest + self.draw.choice([2, 3, 9, 70]))

    def a_late_block(self) -> None:
        self.block(max(1, self.newest - self.draw.randrange(12)))

    def block(self, number: int) -> None:
        """Record a block a few ns late, so that some shares differ by less than a billionth."""
        created_at_ns = START_NS + self.block_ns * number + self.draw.choice([0, 0, 0, 1, 3])
        metagraph = Metagraph(dict(self.miners), dict(self.stakes))
        try:
            event = decide_block(self.chain, number, created_at_ns, metagraph, confirm=True)
        except ConflictingFact:
            return
        if not isinstance(event, int):
            self.append(CHAIN_STREAM, event)
            self.metagraphs[number] = metagraph

    def another_metagraph(self) -> None:
        """Let a miner leave or return, or the own stake change, with the next block."""
        hotkey = self.draw.choice(MINERS)
        if self.draw.random() < 0.5:
            self.miners = {each: AXON for each in MINERS if (each in self.miners) != (each == hotkey)}
        else:
            self.stakes[VALIDATOR] = self.draw.choice([0, 1, 1, S, 3 * S])

    def a_sync(self) -> None:
        draw = self.draw
        self.sync(draw.sample(MINERS, draw.choice([1, 2, len(MINERS)])))

    def sync(self, changed: list[str], count: int | None = None, block: int | None = None) -> None:
        for hotkey in changed:
            self.offered[hotkey] = {GPU: self.draw.choice([0, 1, 2, 2, 3]) if count is None else count}
        block = block or max(1, self.newest + self.draw.choice([1, 1, 0, -1, -5, 3]))
        manifests = {hotkey: counts for hotkey, counts in self.offered.items() if count or self.draw.random() < 0.99}
        try:
            event = decide_manifests(self.chain, block, manifests, confirm=True)
        except (ConflictingFact, ImplausibleFact):
            return
        if not isinstance(event, int):
            self.append(MANIFESTS_STREAM, event)

    def other_settings(self) -> None:
        self.append(SETTINGS_STREAM, SettingsChanged(self.settings()))

    def a_claim(self) -> None:
        """Claim as the ledger does, mostly on the miners that rank first."""
        account, start = self._an_account(), self.state.window_start(self.newest + self.draw.choice([0, 0, 0, 2]))
        amount_ns = self.block_ns * self.draw.choice([1, 1, 2, 5]) // 2
        claim = account.claim(self.chain.blocks, start, amount_ns, self.now_ns)
        if claim is not None:
            for overdue in claim.overdue:
                self._settle(overdue.reservation_id, ExpiryRecorded)
            self._reserve(account, claim)

    def an_odd_claim(self) -> None:
        """Claim a run anywhere, also of blocks that are not granted yet."""
        account, first = self._an_account(), max(1, self.newest - self.draw.randrange(-3, 12))
        last = first + self.draw.randrange(4)
        if not account.taken.overlaps(first, last):
            self._reserve(account, Claim([(first, last)], []))

    def a_settlement(self) -> None:
        if self.state.active:
            kind = self.draw.choice([ReservationSpent, ReservationReleased, ReservationReleased, ExpiryRecorded])
            self._settle(self.draw.choice(list(self.state.active)), kind)

    def a_withdrawn_block(self) -> None:
        number = self.newest - self.draw.choice([0, 0, 1, 4])
        if number < 1 or number not in self.chain.blocks:
            return
        returns_to = block_to_return_to(self.chain, number)
        fields = metagraph_difference(self.chain.last_metagraph, self.metagraphs[returns_to]) if returns_to else ()
        self.append(CHAIN_STREAM, BlockWithdrawn(number, "a mistake", returns_to, *fields))

    def a_withdrawn_sync(self) -> None:
        """Withdraw a sync; the fold applies whatever steps and invalidated blocks the event names."""
        if not self.chain.sync_blocks:
            return
        block, account = self.draw.choice(self.chain.sync_blocks), self._an_account()
        steps = [(0, self.draw.randrange(3)), (block, self.draw.randrange(3))]
        below = {account.stream: self.draw.choice([0, max(0, self.newest - 3)])}
        event = ManifestsWithdrawn(block, "a mistake", counts={account.stream: steps}, invalidated_below=below)
        self.append(MANIFESTS_STREAM, event)

    def _an_account(self) -> Account:
        ranked = self.state.ranking(GPU, self.now_ns)
        if ranked and self.draw.random() < 0.6:
            return ranked[self.draw.randrange(min(3, len(ranked)))].account
        return self.draw.choice(list(self.chain.classes[GPU].values()))

    def _reserve(self, account: Account, claim: Claim) -> None:
        expires_at_ns = self.now_ns + self.draw.choice([5, 60, 300]) * S
        self.append(account.stream, AllowanceReserved(S, claim.blocks, max(1, self.newest), expires_at_ns))

    def _settle(self, active_id: int, kind: Any) -> None:
        active = self.state.active[active_id]
        self.append(active.account.stream, kind(active_id), settles=active.position)


def plain_groups(entries: list[RankedAccount], amount_ns: int) -> list[list[RankedAccount]]:
    """Return the entries of equal rank that have the amount, by the definitions."""
    groups = [list(equals) for _, equals in groupby(entries, key=lambda entry: entry[:2])]
    enough = [[entry for entry in equals if entry.available_ns >= amount_ns] for equals in groups]
    return [equals for equals in enough if equals]


def compare(ledger: RandomLedger) -> None:
    """Compare the ranking, its public form and its groups with accounts that are all measured."""
    state, now_ns = ledger.state, ledger.now_ns
    expected = rank_accounts(state, GPU, state.window_start(state.chain.blocks.newest), now_ns)
    some_ns = [
        0,
        1,
        ledger.block_ns,
        *(entry.available_ns + ledger.draw.choice([0, 1]) for entry in expected[:2] + expected[-2:]),
    ]
    for amount_ns in some_ns:
        groups = state.groups_of_equals(GPU, amount_ns, now_ns)
        found = [[(e.hotkey_ss58, e.busy) for e in each[at : at + size]] for each, at, size in groups if size]
        wanted = [[(e.hotkey_ss58, e.busy) for e in each] for each in plain_groups(expected, amount_ns)]
        assert found == wanted, amount_ns
    if ledger.draw.random() < 0.7:  # Otherwise the ranking never makes these lists.
        assert state.ranking(GPU, now_ns) == expected
        if expected:
            candidates = [entry.candidate() for entry in expected]
            assert state.candidates(0, GPU, state.chain.blocks.newest, now_ns) == candidates


@pytest.mark.parametrize("seed", range(SEED, SEED + LOGS))
def test_the_ranking_equals_one_that_measures_every_account(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After random events, read or not in between, order, amounts, groups of equals and busyness are those measured.

    Catches, among others: an account that is not measured when its free blocks leave the window, when its taken blocks
    end at the newest, when a sync, a metagraph, a correction or a late block changes it; shares that are compared
    before they are rounded down; equal shares of accounts that have not taken the same.
    """
    draw = Random(seed)
    # Mostly without the shortcut of measuring all if many changed, which would hide what is not measured by itself.
    monkeypatch.setattr("projections.ranking.MOST_STALE_SHARE", draw.choice([1, 1, 8]))
    ledger = RandomLedger(draw)
    read = draw.choice([0.2, 0.9])
    with seed_shown(seed):
        for _ in range(EVENTS):
            ledger.append_random_event()
            if draw.random() < read:
                compare(ledger)
        compare(ledger)


@contextmanager
def measured_accounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the miners whose accounts rankings measure."""
    measured: list[str] = []
    original = Ranking._measure

    def measure(ranking: Ranking, state: Any, account: Account, now_ns: int) -> Any:
        measured.append(account.miner_ss58)
        return original(ranking, state, account, now_ns)

    with monkeypatch.context() as patch:
        patch.setattr(Ranking, "_measure", measure)
        yield measured


def steady() -> RandomLedger:
    """Return a ledger whose blocks have begun to leave the window, and whose ranking is up to date."""
    ledger = RandomLedger(Random(SEED), RecordedSettings(block_expiry_blocks=8), count=2)
    for _ in range(12):
        ledger.next_block()
    compare(ledger)
    return ledger


def claim(ledger: RandomLedger, hotkey: str, *run: int) -> int:
    """Reserve a run of blocks of a miner; return the reservation's id."""
    ledger._reserve(ledger.chain.classes[GPU][hotkey], Claim([(run[0], run[-1])], []))
    return max(ledger.state.active)


def test_a_block_measures_no_account_if_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that every account gains, and one that leaves the window of every account, measure no account.

    Catches a ranking that measures its accounts at each block: here 24 for each.
    """
    ledger = steady()
    claim(ledger, MINERS[0], ledger.newest - 8, ledger.newest - 6)
    compare(ledger)
    with measured_accounts(monkeypatch) as measured:
        for _ in range(30):
            ledger.next_block()
            compare(ledger)
    assert measured == []


def test_a_block_measures_the_accounts_for_which_something_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured are the miner whose free blocks leave the window, and the one that had nothing left, each once."""
    ledger = steady()
    oldest = ledger.newest - 8
    claim(ledger, MINERS[3], oldest + 2, oldest + 3)
    claim(ledger, MINERS[5], oldest, ledger.newest - 1)
    compare(ledger)
    by_block = []
    for _ in range(6):
        with measured_accounts(monkeypatch) as measured:
            ledger.next_block()
            compare(ledger)
        by_block.append(measured)
    assert by_block == [[MINERS[5]], [MINERS[3]], [], [], [], []]


def test_a_sync_measures_the_accounts_that_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 24 miners offer another number: they are measured at each block until the window has passed the change."""
    ledger = steady()
    ledger.sync(MINERS[:2], 3, ledger.newest + 1)
    with measured_accounts(monkeypatch) as measured:
        for _ in range(30):
            ledger.next_block()
            compare(ledger)
    assert set(measured) == set(MINERS[:2])
    assert len(measured) < 2 * 15


def test_a_claim_and_the_clock_measure_one_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim, its overdue reservation, and the clock set back measure the account of the claim, each once."""
    ledger = steady()
    with measured_accounts(monkeypatch) as measured:
        claim(ledger, MINERS[1], ledger.newest - 8)
        compare(ledger)
        for step_ns in (1000 * S, -1000 * S):
            ledger.now_ns += step_ns
            compare(ledger)
    assert measured == [MINERS[1]] * 3


def test_accounts_with_less_than_a_billionth_left_are_equal() -> None:
    """Shares below a billionth count as 0 and are equal; then the available amount decides, and all that have it count.

    The two miners have only blocks left that grant next to nothing, since nearly all stake is another validator's.
    """
    ledger = RandomLedger(Random(SEED), RecordedSettings(block_expiry_blocks=30), count=2)
    first = ledger.newest
    claim(ledger, MINERS[0], 1, first - 1)
    claim(ledger, MINERS[1], 1, first - 1)
    ledger.stakes[VALIDATOR] = 1
    ledger.offered[MINERS[0]] = {GPU: 5}
    ledger.sync(MINERS[1:2], 3, ledger.newest + 1)
    for _ in range(3):
        ledger.next_block()
    claim(ledger, MINERS[0], first)
    claim(ledger, MINERS[1], first)
    compare(ledger)
    last = ledger.state.ranking(GPU, ledger.now_ns)[-2:]
    assert [entry.minus_share for entry in last] == [0, 0]
