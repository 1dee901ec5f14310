"""Makes a short ledger of any number of miners.

The same miners are in all of its blocks, and a third of each account's allowance is taken by one reservation.
"""

from __future__ import annotations

from random import Random
from uuid import UUID

from ledger import Account, FactValidator, RecordFacts, RecordSettings, Settle, UnitOfWork
from routing import BlockFact

from .bulk import Bulk
from .chain import HOTKEY, Feed, after, first_facts
from .sizes import Sizes

RESERVED_SHARE = 3
"""Of each account's allowance, one part in so many is reserved."""


async def lay_out(url: str, sizes: Sizes, miners: int) -> tuple[int, BlockFact]:
    """Make a ledger with this many miners; return its newest block, and the time after it."""
    bulk = Bulk(url)
    unit_of_work = bulk.decide()
    sync, first = first_facts(sizes, miners)
    feed = Feed(first)
    blocks = [first, *(feed.next_of_file() for _ in range(sizes.blocks - 1))]
    RecordSettings(HOTKEY, None).decide(unit_of_work)
    contents, _ = FactValidator().contents([sync, *blocks])
    RecordFacts(contents, confirm=False).decide(unit_of_work)
    unit_of_work.now_ns = after(blocks)
    random = Random(f"layout {miners}")
    for account in list(bulk.state.chain.accounts.values()):
        _reserve_a_third(unit_of_work, account, str(UUID(int=random.getrandbits(128), version=4)))
    await bulk.append(unit_of_work)
    await bulk.seal()
    return after(blocks), blocks[-1]


def _reserve_a_third(unit_of_work: UnitOfWork, account: Account, job_uuid: str) -> None:
    """Reserve the earliest third of an account's allowance, and spend it."""
    state, now_ns = unit_of_work.state, unit_of_work.now_ns
    blocks, newest = state.chain.blocks, state.chain.blocks.newest
    window_start = state.window_start(newest)
    amount_ns = account.measure(blocks, window_start, now_ns).total_ns // RESERVED_SHARE
    claim = account.claim(blocks, window_start, amount_ns, now_ns) if amount_ns else None
    if claim is not None:
        job = (job_uuid, 1)
        made = unit_of_work.reserve(account, claim, amount_ns=amount_ns, job_start_block=newest, job=job)
        Settle(made.reservation_id, "spend", None).decide(unit_of_work)
