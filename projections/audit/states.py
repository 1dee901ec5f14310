"""States that were folded elsewhere, held byte for byte against the one that the audit's own books come to.

A snapshot, or the state of a process that has the ledger open: whoever decided on one that differs decided on
something else than the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from ledger import CHAIN_STREAM, MANIFESTS_STREAM, SETTINGS_STREAM, Head, Held, LedgerState, dump, load

from ..envelope import Envelope
from ..rules import Findings, Rule
from ..snapshots import Taken
from .books import Standing, World

FACT_STREAMS = (SETTINGS_STREAM, CHAIN_STREAM, MANIFESTS_STREAM)
MOST_NAMED = 10


class States:
    """Waits for the positions at which the states were taken."""

    def __init__(self, waiting: Sequence[tuple[Rule, Taken]], findings: Findings) -> None:
        self._waiting = waiting
        """Each with the rule that it is held to: one of a snapshot, or one of a live state."""
        self.positions = frozenset(taken.position for _, taken in waiting)
        self.compared: dict[Rule, int] = dict.fromkeys((Rule.SNAPSHOTS, Rule.LIVE_STATE), 0)
        self._findings = findings

    def compare(self, world: World, envelope: Envelope, recorded_at_ns: int) -> None:
        """Compares what was taken at the position that the replay has come to."""
        expected = dumped(world, envelope, recorded_at_ns)
        for rule, taken in self._waiting:
            if taken.position == envelope.position:
                self.compared[rule] += 1
                if (taken.hash, taken.payload) != (envelope.hash, expected):
                    self._note(rule, taken, Taken(taken.position, envelope.hash, expected))

    def end(self, position: int) -> None:
        """The log ends here: nothing can have been taken further on."""
        for rule, taken in self._waiting:
            if taken.position > position:
                message = f"a state was taken where the log, which ends at {position}, has no event"
                self._findings.add(taken.position, rule, message)

    def _note(self, rule: Rule, taken: Taken, expected: Taken) -> None:
        details = {
            "hash": taken.hash.hex(),
            "expected_hash": expected.hash.hex(),
            "digest": _digest(taken.payload),
            "expected_digest": _digest(expected.payload),
            "differs_in": [name for name, _ in zip(_differing(taken, expected), range(MOST_NAMED), strict=False)],
        }
        self._findings.add(taken.position, rule, "the state is not what the log comes to here", **details)


def dumped(world: World, envelope: Envelope, recorded_at_ns: int) -> bytes:
    """The bytes of the state that the books come to."""
    state = LedgerState()
    state.position, state.hash, state.recorded_at_ns = Head(envelope.position, envelope.hash, recorded_at_ns)
    state.chain = world.chain
    state.versions = {stream: envelope.version(stream) for stream in FACT_STREAMS}
    for stream, account in world.chain.accounts.items():
        account.version, account.taken = envelope.version(stream), world.book(stream).taken
        account.held.clear()
    for standing in world.standing.values():
        if standing.book.stream in world.chain.accounts:
            state.hold(_held(standing))
    return dump(state)


def _held(standing: Standing) -> Held:
    row, event = standing.row, standing.event
    return Held(
        standing.reservation_id,
        row.position,
        standing.book.account,
        event.amount_ns,
        event.blocks,
        event.job_start_block,
        row.recorded_at_ns,
        event.expires_at_ns,
        row.job_uuid,
        row.attempt,
        event.axon,
    )


def _differing(taken: Taken, expected: Taken) -> Iterator[str]:
    """What the states differ in, as far as they can be read."""
    found, right = LedgerState(), LedgerState()
    try:
        load(taken.payload, found)
        load(expected.payload, right)
    except Exception:  # Whatever bytes it is, they are no state of this release.
        yield "it cannot be read"
        return
    for name in ("position", "recorded_at_ns", "versions"):
        if getattr(found, name) != getattr(right, name):
            yield name
    for name in ("settings", "manifests", "sync_blocks"):
        if getattr(found.chain, name) != getattr(right.chain, name):
            yield name
    if found.held.keys() != right.held.keys():
        yield "the standing reservations"
    for stream in sorted(found.chain.accounts.keys() | right.chain.accounts.keys()):
        if _account_facts(found, stream) != _account_facts(right, stream):
            yield f"the account {' '.join(stream.split(chr(9)))}"


def _account_facts(state: LedgerState, stream: str) -> object:
    account = state.chain.accounts.get(stream)
    if account is None:
        return None
    steps = [(each.starts, each.values) for each in (account.offered, account.counts)]
    return account.version, account.floor, account.taken.to_bytes(), steps


def _digest(payload: bytes) -> str:
    return blake2b(payload, digest_size=32).hexdigest()
