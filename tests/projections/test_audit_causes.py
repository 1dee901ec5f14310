"""An audit names the first cause, marks what follows from it, and counts the findings of each rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger import Account, Chain
from ledger.events import MANIFESTS_STREAM, ManifestsWithdrawn, ReservationSpent, account_stream
from projections import Rule
from routing import AuditReport
from routing.web.audit_page import page
from tests.support.log_builder import ANNA, BERT, CARL, GPU, LogBuilder, audited


def shown(report: AuditReport) -> list[tuple[int, str, bool]]:
    """Return position, rule and mark of each finding."""
    return [(each.position, each.rule, each.follows) for each in report.findings]


async def test_a_cause_in_an_account_is_followed_only_there(tmp_path: Path) -> None:
    """After a block was taken twice, findings of the same account may follow from it; those of others do not.

    Catches a mark on everything after the first finding, and one on nothing.
    """
    log = LogBuilder()
    start = log.position
    log.reserve(ANNA, 6, (1, 1))
    log.reserve(ANNA, 6, (1, 1))
    log.reserve(BERT, 6, (2, 2))
    log.reserve(ANNA, 6, (5, 5))
    report = await audited(tmp_path, log.rows)
    assert sorted(shown(report)) == [
        (start + 2, Rule.BLOCKS_TAKEN_ONCE, False),
        (start + 2, Rule.CONSERVATION, True),
        (start + 3, Rule.BLOCKS_EARLIEST_FIRST, False),
        (start + 4, Rule.BLOCKS_EARLIEST_FIRST, True),
    ]
    assert report.first_cause is not None
    assert (report.first_cause.position, report.first_cause.rule) == (start + 2, Rule.BLOCKS_TAKEN_ONCE)
    assert report.findings_by_rule == {
        Rule.BLOCKS_EARLIEST_FIRST: 2,
        Rule.BLOCKS_TAKEN_ONCE: 1,
        Rule.CONSERVATION: 1,
    }


async def test_a_changed_row_is_followed_everywhere_but_not_by_another_one(tmp_path: Path) -> None:
    """What a changed row said is lost, so everything after it may follow; a second changed row is a second cause."""
    log = LogBuilder()
    start = log.position
    log.reserve(ANNA, 6, (1, 1))
    log.reserve(BERT, 6, (2, 2))
    log.reserve(CARL, 6, (1, 1))
    rows = [row._replace(hash=bytes(32)) if row.position in (start - 1, start + 3) else row for row in log.rows]
    report = await audited(tmp_path, rows)
    assert (start - 1, Rule.HASH_CHAIN, False) in shown(report)
    assert (start + 2, Rule.BLOCKS_EARLIEST_FIRST, True) in shown(report)
    assert (start + 3, Rule.HASH_CHAIN, False) in shown(report)
    assert report.first_cause is not None
    assert report.first_cause.position == start - 1


async def test_a_wrong_decision_that_changes_no_state_is_no_cause(tmp_path: Path) -> None:
    """A block was skipped: later decisions are made on the state that the audit has too."""
    log = LogBuilder()
    start = log.position
    log.reserve(ANNA, 6, (2, 2))
    log.reserve(ANNA, 6, (3, 3))
    report = await audited(tmp_path, log.rows)
    assert shown(report) == [
        (start + 1, Rule.BLOCKS_EARLIEST_FIRST, False),
        (start + 2, Rule.BLOCKS_EARLIEST_FIRST, False),
    ]
    assert report.first_cause == report.findings[0]


async def test_a_wrong_correction_is_a_cause(tmp_path: Path) -> None:
    """After it the audit and the writer count differently, so later claims are wrong because of it."""
    log = LogBuilder()
    log.sync(5, {ANNA: {GPU: 1}})
    counts = {account_stream(ANNA, GPU): [(0, 0), (1, 9)]}
    log.append(MANIFESTS_STREAM, ManifestsWithdrawn(5, "wrong", {ANNA: {GPU: 2}}, counts=counts))
    log.block(12)
    log.reserve(ANNA, 54, (11, 11), start=12)
    report = await audited(tmp_path, log.rows)
    assert report.first_cause is not None
    assert report.first_cause.rule == Rule.CORRECTIONS_FOLLOW
    assert [each.follows for each in report.findings if each.position > report.first_cause.position] != []
    assert all(each.follows for each in report.findings if each.position > report.first_cause.position)


async def test_rules_are_counted_beyond_the_listed_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The totals are of all findings, and add up to their count."""
    monkeypatch.setattr("projections.rules.MOST_FINDINGS", 1)
    log = LogBuilder()
    made = log.reserve(ANNA, 6, (1, 1))
    for _ in range(4):
        log.settle(made, ReservationSpent)
    report = await audited(tmp_path, log.rows)
    assert len(report.findings) == 1
    assert report.findings_by_rule[Rule.SETTLES_STANDING] == 3
    assert sum(report.findings_by_rule.values()) == report.findings_count


async def test_an_honest_log_has_no_cause(tmp_path: Path) -> None:
    """Without findings there is nothing to look at first."""
    log = LogBuilder()
    log.reserve(ANNA, 6, (1, 1))
    report = await audited(tmp_path, log.rows)
    assert (report.first_cause, report.findings_by_rule) == (None, {})


async def test_the_page_shows_the_first_cause(tmp_path: Path) -> None:
    """The page says where to look first, and marks what follows."""
    log = LogBuilder()
    log.reserve(ANNA, 6, (1, 1))
    log.reserve(ANNA, 6, (1, 1))
    html = page(await audited(tmp_path, log.rows))
    assert "First cause: position 15" in html
    assert "follows from an earlier finding" in html


async def test_an_account_that_the_fold_did_not_open_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A miner that a sync offers must have an account, although nobody has reserved from it.

    Catches comparisons that go through the accounts of the fold only.
    """
    original = Chain.open_account

    def open_account(chain: Chain, miner_ss58: str, executor_class: str) -> Account:
        account = original(chain, miner_ss58, executor_class)
        if miner_ss58 == CARL:
            del chain.accounts[account.stream]
        return account

    monkeypatch.setattr(Chain, "open_account", open_account)
    report = await audited(tmp_path, LogBuilder().rows)
    assert report.first_cause is not None
    assert report.first_cause.rule == Rule.GRANTS_FOLLOW
    assert "no account" in report.first_cause.message
    assert report.first_cause.details["miner_ss58"] == CARL
