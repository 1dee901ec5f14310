"""Routing one job: the decision of which miner runs it, and the claim that makes the decision stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ledger import (
    AllMinersBusy,
    ChainFeedStale,
    Draft,
    Held,
    JobRequestConflict,
    Lookup,
    Miner,
    Row,
    check_amount,
    need_job,
    next_attempt,
    numbers,
    refuse_other_content,
    seconds,
    standing_reservation,
)
from projections import Availability, Entry, drawn


@dataclass(frozen=True, slots=True)
class JobRoute:
    """Where a job runs and what it is paid with.

    `allowance_blocks` ascend; `allowance_job_value` is the amount reserved, in executor-seconds. A debug route has
    no blocks, no reservation and no value; a trusted route has None for all three.
    """

    miner: Miner
    allowance_blocks: list[int] | None
    allowance_reservation_id: int | None
    allowance_job_value: float | None


class Pick:
    """Claims the amount on the first candidate that is not busy; gives back the claim that a job has already."""

    operation = "pick_miner_for_job_request"
    key = None
    revertible = True

    def __init__(self, job_uuid: str, executor_class: str, amount_ns: int) -> None:
        self.job_uuid = job_uuid
        self.executor_class = executor_class
        self.amount_ns = amount_ns
        self._first_chosen: str | None = None
        self._chosen: str | None = None
        """The miner that was chosen when the pick was decided before, on a head that then moved."""

    def needs(self, state: Availability, lookup: Lookup) -> None:
        need_job(self.job_uuid, state, lookup)

    def told_by(self, row: Row) -> str:
        return self.job_uuid

    def execute(self, draft: Draft[Availability]) -> JobRoute:
        standing = standing_reservation(draft, self.job_uuid)
        if standing is not None:
            refuse_other_content(standing, self.amount_ns, self.executor_class)
            return self._route(standing, draft.state)
        state, now_ns = draft.state, draft.now_ns
        check_amount(self.amount_ns, state.chain.settings)
        refuse_stale_feed(state, now_ns)
        newest = state.chain.blocks.newest
        entry, kept = self._choose(state, now_ns)
        account = entry.account
        claim = account.claim(state.chain.blocks, state.window_start(newest), self.amount_ns, now_ns)
        if claim is None:
            raise AssertionError(f"{account.stream!r} ranks with an amount that it does not have")
        held = draft.reserve(
            account,
            claim,
            amount_ns=self.amount_ns,
            job_start_block=newest,
            job=next_attempt(draft, self.job_uuid),
            axon=state.chain.metagraph.miners[account.miner_ss58],
            kept=kept,
        )
        self._chosen = account.miner_ss58
        self._first_chosen = self._first_chosen or self._chosen
        draft.moved_picks += self._chosen != self._first_chosen
        return self._route(held, state)

    def _choose(self, state: Availability, now_ns: int) -> tuple[Entry, bool]:
        """The first candidate that is not busy; or the one chosen before, if the head moved and it still is one.

        Says as well whether it was kept although another comes first now.
        """
        busy = 0
        first: Entry | None = None
        for entry in self.candidates(state, now_ns):
            if entry.busy:
                busy += 1
            elif first is None and self._chosen in (None, entry.hotkey_ss58):
                return entry, False
            elif entry.hotkey_ss58 == self._chosen:
                return entry, True
            else:
                first = first or entry
        if first is not None:
            return first, False
        lost = 0 if self._first_chosen is None else 1
        if busy or lost:
            raise AllMinersBusy(self.job_uuid, busy, lost)
        raise state.not_enough(self.executor_class, state.chain.blocks.newest, now_ns)

    def candidates(self, state: Availability, now_ns: int) -> Iterator[Entry]:
        """The miners with enough allowance at the newest block, in the order in which this job tries them."""
        return drawn(state.ranking(self.executor_class, now_ns), self.amount_ns, self.job_uuid)

    def _route(self, held: Held, state: Availability) -> JobRoute:
        miner_ss58 = held.account.miner_ss58
        # A reservation made by hand has no route of its own: it goes to where the miner listens now.
        axon = held.axon or state.chain.metagraph.miners.get(miner_ss58)
        if axon is None:
            raise JobRequestConflict(
                self.job_uuid, held.reservation_id, {"miner_ss58": (miner_ss58, "a registered miner")}
            )
        return JobRoute(
            Miner(*axon, hotkey_ss58=miner_ss58), numbers(held.blocks), held.reservation_id, seconds(held.amount_ns)
        )


def refuse_stale_feed(state: Availability, now_ns: int) -> None:
    """Refuses to route on blocks that are older than the settings allow."""
    most_ns = state.chain.settings.newest_block_max_age_ns
    blocks = state.chain.blocks
    if most_ns is None or not blocks.newest:
        return
    age_ns = now_ns - blocks.created_at_ns(blocks.newest)
    if age_ns > most_ns:
        raise ChainFeedStale(blocks.newest, seconds(age_ns), seconds(most_ns))
