"""The audit's ranking, which follows the log, compared with one measured from scratch by the definitions.

`AUDIT_SEED` sets the first seed of the random logs, `AUDIT_HISTORIES` their number.
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
from projections.audit.tie_break import indexes, tie_break_number
from tests.support.log_builder import ANNA, GPU, SECOND_NS, VALIDATOR, LogBuilder, created_at_ns
from tests.support.stories import seed_shown

SEED = int(os.environ.get("AUDIT_SEED", "1"))
HISTORIES = int(os.environ.get("AUDIT_HISTORIES", "60"))
EVENTS = 250
MINERS = tuple(f"5Miner{number}" for number in range(9))
AXON: Axon = ("192.0.2.7", 4, 8000)


class Measured(NamedTuple):
    """An account measured by the definitions; sorting gives the ranking."""

    earliest_block: int
    minus_share: int
    minus_available_ns: int
    hotkey_ss58: str


class RandomLog(LogBuilder):
    """A log of random events, likely or not, right or wrong: the audit applies also events that break a rule."""

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

    def append_random_event(self) -> None:
        """Append one event and let time pass, sometimes backwards."""
        weights = {
            self.next_block: 30,
            self.a_claim: 40,
            self.a_routed_claim: 30,
            self.an_odd_claim: 4,
            self.a_settlement: 28,
            self.a_sync: 4,
            self.a_block_beyond: 2,
            self.a_late_block: 5,
            self.other_settings: 1,
        }
        (append,) = self.draw.choices(list(weights), list(weights.values()))
        append()
        self.now_ns += self.draw.choice([0, 0, 1, 2 * SECOND_NS])
        if self.draw.random() < 0.03:
            self.now_ns -= self.draw.choice([1, 5, 30]) * SECOND_NS

    def next_block(self) -> None:
        self.a_block_at(self.newest + 1)

    def a_block_beyond(self) -> None:
        """Leave blocks out, sometimes so many that the whole window passes."""
        self.a_block_at(self.newest + self.draw.choice([2, 3, 3, 40]))

    def a_late_block(self) -> None:
        """Record a block that was left out, or one that was recorded before."""
        self.a_block_at(max(1, self.newest - self.draw.randrange(12)))

    def a_block_at(self, number: int) -> None:
        """Record a block, sometimes with another metagraph; a few ns late, so that shares differ by less than 10^-9."""
        draw = self.draw
        changes: dict[str, Any] = {}
        if draw.random() < 0.15:
            hotkey = draw.choice(MINERS)
            changes = {"deregistered": [hotkey]} if hotkey in self.registered else {"registered": {hotkey: AXON}}
            self.registered ^= {hotkey}
        elif draw.random() < 0.1:
            changes = {"staked": {VALIDATOR: draw.choice([0, 1, SECOND_NS, SECOND_NS, 3 * SECOND_NS])}}
        self.block(number, created_at_ns=created_at_ns(number) + draw.choice([0, 0, 0, 2, 4]), **changes)
        self.newest = max(self.newest, number)

    def a_sync(self) -> None:
        draw = self.draw
        offered = {hotkey: {GPU: draw.choice([0, 1, 2, 2, 3])} for hotkey in MINERS if draw.random() < 0.4}
        changed = {hotkey: counts for hotkey, counts in offered.items() if self.offered.get(hotkey) != counts}
        self.offered |= changed
        self.sync(max(1, self.newest - draw.choice([-1, 0, 0, 1, 5])), changed)

    def other_settings(self) -> None:
        settings = RecordedSettings(
            block_expiry_blocks=self.draw.choice([4, 8, 16, 30]),
            reservation_margin_ns=self.margin_ns,
            executors_max_per_class=self.draw.choice([{}, {}, {GPU: 1}, {GPU: 2}]),
        )
        self.settings = settings
        self.append(SETTINGS_STREAM, SettingsChanged(settings))

    def a_claim(self) -> None:
        """Claim a few blocks near the window's start, where most claims are."""
        first = max(1, self.newest - self.settings.block_expiry_blocks) + self.draw.choice([0, 0, 0, 1, 1, 2, 5, 9])
        self._claim((first, first + self.draw.choice([0, 0, 1, 2, 6])))

    def a_routed_claim(self) -> None:
        """Claim mostly from an account's first free block on, up to the next taken one or less far."""
        hotkey, seconds = self.draw.choice(MINERS[:6]), self.draw.choice([1, 8, 8, 60])
        account = self.replay.state.account(account_stream(hotkey, GPU))
        found = measured(self.replay, account)
        first = (found.earliest_block if found else self.newest) + self.draw.choice([0, 0, 0, 1])
        reach = next(n for n in range(1, 10) if n == 9 or account.taken.overlaps(first, first + n))
        run = first, first + self.draw.choice([0, 1, reach - 1, reach])
        columns = {"job_uuid": f"job {self.position}", "attempt": 1}
        self.made.append(self.reserve(hotkey, seconds, run, start=self.newest, columns=columns, axon=AXON))

    def an_odd_claim(self) -> None:
        """Claim two runs anywhere, sometimes with blocks that are not granted yet."""
        first = max(1, self.newest - self.draw.randrange(-4, 12))
        self._claim((first, first + self.draw.randrange(4)), (first + 5, first + 5 + self.draw.randrange(3)))

    def a_settlement(self) -> None:
        """Settle any of the last reservations, even if it is settled already."""
        if self.made:
            kind = self.draw.choice([ReservationSpent, ReservationReleased, ReservationReleased, ExpiryRecorded])
            self.settle(self.draw.choice(self.made[-9:]), kind)

    def _claim(self, *runs: Run) -> None:
        seconds = self.draw.choice([1, 8, 8, 60])
        self.made.append(self.reserve(self.draw.choice(MINERS[:6]), seconds, *runs, start=self.newest))


def measured(replay: Replay, account: AccountState) -> Measured | None:
    """Measure an account at the newest block and the last deciding clock; None if nothing is available."""
    chain, chain_account = replay.state.chain, account.chain_account
    oldest = max(chain.blocks.newest - chain.settings.block_expiry_blocks, chain_account.invalidated_below, 1)
    overdue = [each for each in account.active.values() if each.due_ns <= replay._due_queue._now_ns]
    free_again = {block for each in overdue for first, last in each.own_blocks for block in range(first, last + 1)}
    total_ns = available_ns = earliest = 0
    for block in range(oldest, chain.blocks.newest + 1):
        granted_ns = chain.blocks.unit_ns(block) * chain_account.counts.at(block)
        total_ns += granted_ns
        if granted_ns and (block in free_again or not account.taken.overlaps(block, block)):
            earliest = earliest or block
            available_ns += granted_ns
    if not available_ns or account.miner_ss58 not in chain.metagraph.members:
        return None
    return Measured(earliest, -(available_ns * 10**9 // total_ns), -available_ns, account.miner_ss58)


def ranking(replay: Replay) -> list[Measured]:
    """Return the class's measured accounts with anything available, best first."""
    chain_accounts: dict[str, Account] = replay.state.chain.classes.get(GPU, {})
    accounts = (replay.state.account(chain_account.stream) for chain_account in chain_accounts.values())
    return sorted(each for account in accounts if (each := measured(replay, account)) is not None)


def order_tried(entries: list[Measured], amount_ns: int, job_uuid: str) -> list[str]:
    """Return the accounts with the amount, in the order in which the job tries them."""
    order: list[str] = []
    for equals in sorted({each[:2] for each in entries}):
        enough = [each for each in entries if each[:2] == equals and -each.minus_available_ns >= amount_ns]
        if enough:
            number, size = int(blake2b(job_uuid.encode(), digest_size=16).hexdigest(), 16), len(enough)
            step = next(step for step in range(number // size % size, 2 * size + 1) if gcd(step, size) == 1)
            order += [enough[(number + tried * step) % size].hotkey_ss58 for tried in range(size)]
    return order


def check(replay: Replay, followed: AuditRanking, draw: Random) -> None:
    """Compare the followed ranking with the measured one, for amounts at and just above the available ones."""
    followed.bring_up_to_date()
    entries = ranking(replay)
    available_ns = {each.hotkey_ss58: -each.minus_available_ns for each in entries}
    for hotkey in MINERS:
        account = replay.state.account(account_stream(hotkey, GPU))
        assert followed.available_ns(account) == available_ns.get(hotkey, 0)
    for amount_ns in (1, *draw.sample(sorted(available_ns.values()), min(2, len(entries)))):
        for nearly_ns in (amount_ns, amount_ns + 1):
            job_uuid = str(draw.random())
            number = tie_break_number(job_uuid, b"")
            found = [
                equals[at].miner_ss58 for equals, _ in followed.groups(nearly_ns) for at in indexes(len(equals), number)
            ]
            assert found == order_tried(entries, nearly_ns, job_uuid)


def test_every_account_is_measured_again_after_an_unexpected_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim has updated its account's rank, and then processing it fails for an unforeseen reason."""
    draw, replay, log = Random(SEED), Replay(VALIDATOR), LogBuilder()
    followed = replay._routes.ranking(GPU)
    for row in log.rows:
        replay.process(row)
    check(replay, followed, draw)
    monkeypatch.setattr(replay._reservations, "apply", lambda *_, **__: 1 // 0)
    replay.process(log.route("job", ANNA, 6, (1, 1)))
    assert replay.findings.listed[-1].rule == "readable-events"
    check(replay, followed, draw)


@pytest.mark.parametrize("share_of_events", [1.0, 0.1])
@pytest.mark.parametrize("seed", range(SEED, SEED + HISTORIES))
def test_the_ranking_equals_one_measured_from_scratch(seed: int, share_of_events: float) -> None:
    """It does after every event, and also if it is asked only after some events, with several changes at once.

    Catches a ranking that misses a late block, other settings, a sync, a miner that is registered or deregistered, an
    advance of the window, a block granted to accounts that had nothing left, or a reservation that becomes overdue,
    stops being overdue, is spent late or is released. Also catches accounts with several counts that are measured only
    once or ranked apart from the others; equals in another order, or separated by less than a billionth; and a claim
    whose account keeps its measurement although the claim does not begin at the first free block, fills the free run,
    or ends where nothing is granted yet.
    """
    with seed_shown(seed):
        draw = Random(f"{seed} {share_of_events}")
        replay = Replay(VALIDATOR)
        log = RandomLog(draw, replay)
        followed = replay._routes.ranking(GPU)
        processed = 0
        while log.position < EVENTS:
            log.append_random_event()
            for row in log.rows[processed:]:
                replay.process(row)
                processed += 1
                if draw.random() < share_of_events:
                    check(replay, followed, draw)
        assert not [each for each in replay.findings.listed if each.rule == "readable-events"]
