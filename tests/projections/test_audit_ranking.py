"""The audit's ranking, which follows the log, held against one measured anew: block by block, as the definitions say.

`AUDIT_SEED` sets which histories are told, `AUDIT_HISTORIES` how many.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from math import gcd
from random import Random
from typing import Any, NamedTuple

import pytest

from ledger import Account, RecordedSettings, Row
from ledger.events import (
    SETTINGS_STREAM,
    Axon,
    ExpiryRecorded,
    ReservationReleased,
    ReservationSpent,
    Run,
    SettingsChanged,
    account_stream,
)
from projections.audit.ranking import AuditRanking
from projections.audit.replay import Replay
from projections.audit.state import AccountState
from tests.support.log_builder import ANNA, GPU, SECOND_NS, VALIDATOR, LogBuilder, created_at_ns
from tests.support.stories import told

SEED = int(os.environ.get("AUDIT_SEED", "1"))
HISTORIES = int(os.environ.get("AUDIT_HISTORIES", "60"))
EVENTS = 250
MINERS = tuple(f"5Miner{number}" for number in range(9))
AXON: Axon = ("192.0.2.7", 4, 8000)


class Measured(NamedTuple):
    """An account as the definitions say; they sort as they are ranked."""

    earliest_block: int
    minus_share: int
    minus_available_ns: int
    hotkey_ss58: str


class History(LogBuilder):
    """Whatever a log may tell, likely or not: the audit's books follow also what breaks a rule."""

    def __init__(self, draw: Random, replay: Replay) -> None:
        self.draw = draw
        self.replay = replay
        self.registered = set(MINERS)
        self.offered: dict[str, dict[str, int]] = {}
        self.newest = 11
        self.made: list[Row] = []
        self.margin_ns = draw.choice([9, 60, 300]) * SECOND_NS
        settings = RecordedSettings(block_expiry_blocks=draw.choice([8, 16, 30]), reservation_margin_ns=self.margin_ns)
        super().__init__(settings, offers={})
        self.block(12, registered=dict.fromkeys(MINERS, AXON))
        self.newest = 12
        self.a_sync()

    def goes_on(self) -> None:
        """One thing happens, and time passes, sometimes backwards."""
        happenings = {
            self.next_block: 30,
            self.a_claim: 40,
            self.a_routed_claim: 30,
            self.any_claim: 4,
            self.an_end: 28,
            self.a_sync: 4,
            self.a_block_beyond: 2,
            self.a_late_block: 5,
            self.other_settings: 1,
        }
        (happening,) = self.draw.choices(list(happenings), list(happenings.values()))
        happening()
        self.now_ns += self.draw.choice([0, 0, 1, 2 * SECOND_NS])
        if self.draw.random() < 0.03:
            self.now_ns -= self.draw.choice([1, 5, 30]) * SECOND_NS

    def next_block(self) -> None:
        self.a_block_at(self.newest + 1)

    def a_block_beyond(self) -> None:
        """A hole is left, now and then one in which the whole window ages."""
        self.a_block_at(self.newest + self.draw.choice([2, 3, 3, 40]))

    def a_late_block(self) -> None:
        """One that was left out, or is told again."""
        self.a_block_at(max(1, self.newest - self.draw.randrange(12)))

    def a_block_at(self, number: int) -> None:
        """Few nanoseconds early or late, so that shares differ by less than a billionth; now and then other people."""
        draw = self.draw
        told_of: dict[str, Any] = {}
        if draw.random() < 0.15:
            mover = draw.choice(MINERS)
            told_of = {"deregistered": [mover]} if mover in self.registered else {"registered": {mover: AXON}}
            self.registered ^= {mover}
        elif draw.random() < 0.1:
            told_of = {"staked": {VALIDATOR: draw.choice([0, 1, SECOND_NS, SECOND_NS, 3 * SECOND_NS])}}
        self.block(number, created_at_ns=created_at_ns(number) + draw.choice([0, 0, 0, 2, 4]), **told_of)
        self.newest = max(self.newest, number)

    def a_sync(self) -> None:
        draw = self.draw
        offered = {hotkey: {GPU: draw.choice([0, 1, 2, 2, 3])} for hotkey in MINERS if draw.random() < 0.4}
        told_of = {hotkey: counts for hotkey, counts in offered.items() if self.offered.get(hotkey) != counts}
        self.offered |= told_of
        self.sync(max(1, self.newest - draw.choice([-1, 0, 0, 1, 5])), told_of)

    def other_settings(self) -> None:
        settings = RecordedSettings(
            block_expiry_blocks=self.draw.choice([4, 8, 16, 30]),
            reservation_margin_ns=self.margin_ns,
            executors_max_per_class=self.draw.choice([{}, {}, {GPU: 1}, {GPU: 2}]),
        )
        self.settings = settings
        self.append(SETTINGS_STREAM, SettingsChanged(settings))

    def a_claim(self) -> None:
        """A few blocks from somewhere near the window's beginning on, most often where many others claim too."""
        first = max(1, self.newest - self.settings.block_expiry_blocks) + self.draw.choice([0, 0, 0, 1, 1, 2, 5, 9])
        self._claim((first, first + self.draw.choice([0, 0, 1, 2, 6])))

    def a_routed_claim(self) -> None:
        """From an account's first free block on, most often, up to the next taken one or not so far."""
        hotkey, seconds = self.draw.choice(MINERS[:6]), self.draw.choice([1, 8, 8, 60])
        account_state = self.replay.state.account(account_stream(hotkey, GPU))
        found = measured(self.replay, account_state)
        first = (found.earliest_block if found else self.newest) + self.draw.choice([0, 0, 0, 1])
        reach = next(n for n in range(1, 10) if n == 9 or account_state.taken.overlaps(first, first + n))
        run = first, first + self.draw.choice([0, 1, reach - 1, reach])
        columns = {"job_uuid": f"job {self.position}", "attempt": 1}
        self.made.append(self.reserve(hotkey, seconds, run, start=self.newest, columns=columns, axon=AXON))

    def any_claim(self) -> None:
        """Runs anywhere, blocks that nobody was granted yet among them."""
        first = max(1, self.newest - self.draw.randrange(-4, 12))
        self._claim((first, first + self.draw.randrange(4)), (first + 5, first + 5 + self.draw.randrange(3)))

    def an_end(self) -> None:
        """Of whichever reservation, also when it has ended before."""
        if self.made:
            kind = self.draw.choice([ReservationSpent, ReservationReleased, ReservationReleased, ExpiryRecorded])
            self.settle(self.draw.choice(self.made[-9:]), kind)

    def _claim(self, *runs: Run) -> None:
        seconds = self.draw.choice([1, 8, 8, 60])
        self.made.append(self.reserve(self.draw.choice(MINERS[:6]), seconds, *runs, start=self.newest))


def measured(replay: Replay, account_state: AccountState) -> Measured | None:
    """An account at the newest block and the clock that decided last; None where nothing is available."""
    chain, account = replay.state.chain, account_state.chain_account
    oldest = max(chain.blocks.newest - chain.settings.block_expiry_blocks, account.invalidated_below, 1)
    overdue = [each for each in account_state.active.values() if each.due_ns <= replay._due_queue._now_ns]
    free_again = {block for each in overdue for first, last in each.own_blocks for block in range(first, last + 1)}
    total_ns = available_ns = earliest = 0
    for block in range(oldest, chain.blocks.newest + 1):
        granted_ns = chain.blocks.unit_ns(block) * account.counts.at(block)
        total_ns += granted_ns
        if granted_ns and (block in free_again or not account_state.taken.overlaps(block, block)):
            earliest = earliest or block
            available_ns += granted_ns
    if not available_ns or account_state.miner_ss58 not in chain.metagraph.members:
        return None
    return Measured(earliest, -(available_ns * 10**9 // total_ns), -available_ns, account_state.miner_ss58)


def ranking(replay: Replay) -> list[Measured]:
    """The class's accounts with anything available, best first."""
    accounts: dict[str, Account] = replay.state.chain.classes.get(GPU, {})
    account_states = (replay.state.account(account.stream) for account in accounts.values())
    return sorted(each for account_state in account_states if (each := measured(replay, account_state)) is not None)


def tried(entries: list[Measured], amount_ns: int, job_uuid: str) -> list[str]:
    """The accounts with the amount in the order in which a job tries them."""
    order: list[str] = []
    for equals in sorted({each[:2] for each in entries}):
        enough = [each for each in entries if each[:2] == equals and -each.minus_available_ns >= amount_ns]
        if enough:
            drawn, size = int(blake2b(job_uuid.encode(), digest_size=16).hexdigest(), 16), len(enough)
            step = next(step for step in range(drawn // size % size, 2 * size + 1) if gcd(step, size) == 1)
            order += [enough[(drawn + number * step) % size].hotkey_ss58 for number in range(size)]
    return order


def check(replay: Replay, ranks: AuditRanking, draw: Random) -> None:
    """Compares the two."""
    ranks.bring_up_to_date()
    entries = ranking(replay)
    available_ns = {each.hotkey_ss58: -each.minus_available_ns for each in entries}
    for hotkey in MINERS:
        account_state = replay.state.account(account_stream(hotkey, GPU))
        assert ranks.available_ns(account_state) == available_ns.get(hotkey, 0)
    for amount_ns in (1, *draw.sample(sorted(available_ns.values()), min(2, len(entries)))):
        for nearly_ns in (amount_ns, amount_ns + 1):
            job_uuid = str(draw.random())
            found = [account_state.miner_ss58 for account_state in ranks.candidates(nearly_ns, job_uuid)]
            assert found == tried(entries, nearly_ns, job_uuid)


def test_after_an_accident_everything_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim moved its account, and then could not be taken for a reason that nobody thought of."""
    draw, replay, log = Random(SEED), Replay(VALIDATOR), LogBuilder()
    ranks = replay._routes.ranking(GPU)
    for row in log.rows:
        replay.process(row)
    check(replay, ranks, draw)
    monkeypatch.setattr(replay._reservations, "apply", lambda *_, **__: 1 // 0)
    replay.process(log.route("job", ANNA, 6, (1, 1)))
    assert replay.findings.listed[-1].rule == "readable-events"
    check(replay, ranks, draw)


@pytest.mark.parametrize("share_of_events", [1.0, 0.1])
@pytest.mark.parametrize("seed", range(SEED, SEED + HISTORIES))
def test_the_ranking_is_the_one_measured_anew(seed: int, share_of_events: float) -> None:
    """After every event, or after some with what several of them changed at once.

    Catches a ranking that passes over a late block, other settings, a sync, somebody who comes or goes, the ageing of
    the window, a block granted to those who had nothing left, or a reservation that comes due, is not due any more, is
    spent overdue or given back; accounts with several counts measured once and for all, or ranked apart from the
    others; equals in another order, or told apart by less than a billionth; and a claim that moves its account at once
    although it does not begin at the first free block, fills its free run, or ends where nothing is granted yet.
    """
    with told(seed):
        draw = Random(f"{seed} {share_of_events}")
        replay = Replay(VALIDATOR)
        history = History(draw, replay)
        ranks = replay._routes.ranking(GPU)
        taken = 0
        while history.position < EVENTS:
            history.goes_on()
            for row in history.rows[taken:]:
                replay.process(row)
                taken += 1
                if draw.random() < share_of_events:
                    check(replay, ranks, draw)
        assert not [each for each in replay.findings.listed if each.rule == "readable-events"]
