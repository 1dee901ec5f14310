"""One account, without a log: which blocks a claim takes, what is available, and what expires on the way."""

from __future__ import annotations

from ledger.domain.account import Account, AccountAllowance, ActiveReservation
from ledger.domain.block_table import CHUNK, BlockTable
from ledger.domain.blocks import END
from ledger.events import Run

FROM_THE_START = 0
NOW_NS = 1000


def granting(*units_ns: int) -> BlockTable:
    """Blocks 1, 2, 3 …, each finalized with its unit."""
    table = BlockTable()
    for block, unit_ns in enumerate(units_ns, start=1):
        table.record(block, 12 * block, block, bytes(16))
        table.finalize(block, unit_ns)
    return table


def account_with(count: int = 1) -> Account:
    account = Account("5Anna", "gpu")
    account.counts.assign(0, END, count)
    return account


def reserve(account: Account, number: int, first: int, last: int, *, due_ns: int = NOW_NS + 1) -> ActiveReservation:
    """An active reservation of a run of blocks."""
    active = ActiveReservation(number, number, account, 1, [(first, last)], 1, 0, due_ns, None, None, None)
    account.taken.add(first, last)
    account.add_active(active)
    return active


def claimed(
    account: Account, units: BlockTable, amount_ns: int, window_start: int = FROM_THE_START
) -> list[Run] | None:
    claim = account.claim(units, window_start, amount_ns, NOW_NS)
    return None if claim is None else claim.blocks


def test_a_claim_takes_the_earliest_blocks() -> None:
    """Of four equal blocks, an amount of two takes the first two."""
    assert claimed(account_with(), granting(6, 6, 6, 6), 12) == [(1, 2)]


def test_a_claim_takes_whole_blocks() -> None:
    """An amount of one block and one nanosecond takes two blocks."""
    account, units = account_with(), granting(6, 6, 6, 6)
    assert claimed(account, units, 6) == [(1, 1)]
    assert claimed(account, units, 7) == [(1, 2)]


def test_the_count_multiplies_what_a_block_grants() -> None:
    """With three executors, one block of 6 ns covers 18 ns, and 19 ns take a second one."""
    account, units = account_with(count=3), granting(6, 6, 6)
    assert claimed(account, units, 18) == [(1, 1)]
    assert claimed(account, units, 19) == [(1, 2)]


def test_a_claim_of_more_than_there_is_is_none() -> None:
    """All that is free can be claimed, and not one nanosecond more."""
    account, units = account_with(), granting(6, 6)
    assert claimed(account, units, 12) == [(1, 2)]
    assert claimed(account, units, 13) is None


def test_a_claim_leaves_out_taken_blocks() -> None:
    """An active reservation in the middle splits the claim into two runs."""
    account = account_with()
    reserve(account, 1, 2, 3)
    assert claimed(account, granting(6, 6, 6, 6, 6), 12) == [(1, 1), (4, 4)]


def test_a_claim_leaves_out_blocks_that_grant_nothing() -> None:
    """A block with a unit of 0 is part of no claim, not even between two others."""
    assert claimed(account_with(), granting(0, 6, 0, 6), 12) == [(2, 2), (4, 4)]


def test_a_claim_is_joined_across_chunks() -> None:
    """Blocks on both sides of a chunk's border form one run."""
    units = granting(*[0] * (CHUNK - 3), *[6] * 6)
    assert claimed(account_with(), units, 36) == [(CHUNK - 2, CHUNK + 3)]


def test_a_claim_begins_in_the_window() -> None:
    """Blocks before the window's start are too old; its first block is not."""
    assert claimed(account_with(), granting(6, 6, 6, 6), 6, window_start=3) == [(3, 3)]


def test_a_claim_leaves_out_invalidated_blocks() -> None:
    """Blocks below the drop are invalidated; the drop's own block is not."""
    account = account_with()
    account.invalidated_below = 3
    assert claimed(account, granting(6, 6, 6, 6), 6) == [(3, 3)]
    assert claimed(account, granting(6, 6, 6, 6), 6, window_start=4) == [(4, 4)]


def test_a_claim_counts_each_block_with_its_own_count() -> None:
    """Two executors for blocks 1 and 2, none for block 3, one from block 4 on."""
    account, units = account_with(count=2), granting(6, 6, 6, 6, 6)
    account.counts.assign(3, 4, 0)
    account.counts.assign(4, END, 1)
    assert claimed(account, units, 24) == [(1, 2)]
    assert claimed(account, units, 30) == [(1, 2), (4, 4)]
    assert claimed(account, units, 37) is None


def test_a_run_goes_on_where_the_count_changes() -> None:
    """Adjacent blocks with different counts are one run of the claim."""
    account = account_with(count=2)
    account.counts.assign(2, END, 1)
    assert claimed(account, granting(6, 6, 6), 24) == [(1, 3)]


def test_a_claim_expires_the_overdue_reservations_whose_blocks_it_takes() -> None:
    """It takes block 1 of one overdue reservation; the other one keeps its blocks and does not expire."""
    account = account_with()
    taken_from = reserve(account, 1, 1, 2, due_ns=NOW_NS)
    reserve(account, 2, 3, 4, due_ns=NOW_NS)
    claim = account.claim(granting(6, 6, 6, 6), FROM_THE_START, 6, NOW_NS)
    assert claim is not None
    assert (claim.blocks, claim.overdue) == ([(1, 1)], [taken_from])


def test_a_reservation_is_overdue_from_its_due_time_on() -> None:
    """One nanosecond before the due time its blocks are not available; at the due time they are."""
    account, units = account_with(), granting(6)
    reserve(account, 1, 1, 1, due_ns=NOW_NS)
    assert account.claim(units, FROM_THE_START, 6, NOW_NS - 1) is None
    assert account.claim(units, FROM_THE_START, 6, NOW_NS) is not None


def test_a_claim_changes_nothing() -> None:
    """Overdue blocks stay taken until the expiry is recorded; a second claim gets the same answer."""
    account, units = account_with(), granting(6, 6)
    reserve(account, 1, 1, 2, due_ns=NOW_NS)
    first = account.claim(units, FROM_THE_START, 6, NOW_NS)
    assert account.claim(units, FROM_THE_START, 6, NOW_NS) == first
    assert (account.taken.overlaps(1, 1), list(account.active)) == (True, [1])


def test_available_is_free_total_is_usable_and_unspent_includes_active() -> None:
    """Four usable blocks: one active, one spent, two free."""
    account, units = account_with(), granting(6, 6, 6, 6)
    reserve(account, 1, 1, 1)
    account.taken.add(2, 2)
    assert account.measure(units, FROM_THE_START, NOW_NS) == AccountAllowance(24, 12, earliest_block=3)
    assert account.unspent_ns(units, FROM_THE_START) == 18


def test_the_earliest_block_is_one_that_grants() -> None:
    """Blocks that grant nothing are not the earliest; without a free block it is 0."""
    account = account_with()
    assert account.measure(granting(0, 0, 6), FROM_THE_START, NOW_NS).earliest_block == 3
    assert account.measure(granting(0, 0), FROM_THE_START, NOW_NS) == AccountAllowance(0, 0, 0)


def test_the_first_due_time_follows_the_active_reservations() -> None:
    """When the reservation that is due first is removed, the next one's due time counts."""
    account = account_with()
    first = reserve(account, 1, 1, 1, due_ns=5)
    reserve(account, 2, 2, 2, due_ns=7)
    account.remove_active(first)
    assert account.first_due_ns == 7
    assert [active.reservation_id for active in account.overdue(7)] == [2]
