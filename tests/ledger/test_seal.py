"""The digest that a seal records: it covers everything that decides, and is frozen for each version."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from ledger import Account, LedgerState, Metagraph, RecordedSettings, encode_state, state_digest
from ledger.domain import byte_order
from ledger.domain.block_table import BlockTable, Chunk
from ledger.domain.chain import Chain, CountInputs, RecordedSync
from ledger.domain.miner_facts import Collateral, Exclusion, JobElsewhere, MinerFacts
from ledger.domain.state_codec import decode_state
from ledger.events import (
    CHAIN_STREAM,
    COLLATERAL_STREAM,
    ELSEWHERE_STREAM,
    EXCLUSIONS_STREAM,
    INCIDENTS_STREAM,
    MANIFESTS_STREAM,
    SEALS_STREAM,
    BlockWithdrawn,
    CollateralRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    ManifestsRecorded,
    ManifestsWithdrawn,
    MinerExcluded,
    MinerReadmitted,
    ReservationReleased,
    ReservationSpent,
    StateSealed,
    account_stream,
    elsewhere_stream,
)
from ledger.settings import UUID_AND_HASH
from tests.support.log_builder import ANNA, BERT, CARL, LogBuilder, axon, created_at_ns

SEALED = {
    LedgerState: {"position", "hash", "recorded_at_ns", "chain", "versions", "active", "miner_facts"},
    MinerFacts: {"exclusions", "collateral", "elsewhere", "incidents"},
    Chain: {
        "validator_ss58",
        "settings",
        "blocks",
        "metagraph",
        "last_metagraph",
        "unfinalized",
        "sync_blocks",
        "syncs",
        "manifests",
        "last_manifests",
        "registered",
        "uncovered",
        "named",
        "last_uncovered",
        "withdrawn_blocks",
        "withdrawn_syncs",
        "accounts",
        "oldest_inputs",
        "newest_inputs",
    },
    BlockTable: {"chunks", "chunk_numbers", "newest", "first_finalized", "last_finalized"},
    Chunk: {"created_at_ns", "positions", "units_ns", "digests", "hashes"},
    Account: {
        "miner_ss58",
        "executor_class",
        "version",
        "offered",
        "counts",
        "invalidated_below",
        "taken",
    },
}
"""The attributes that the digest covers."""
DERIVED = {
    LedgerState: {"jobs", "due_queue", "sealed_position"},
    MinerFacts: {"boundaries", "incident_times"},
    Chain: {
        "multiplier",
        "revision",
        "changed_accounts",
        "classes",
        "_by_miner",
        "_encoded_miners",
        "_encoded_manifests",
    },
    BlockTable: {"before_ns", "first", "sums_before_ns"},
    Chunk: {"sums"},
    Account: {"stream", "active", "first_due_ns"},
}
"""The attributes that follow from the sealed ones, or decide nothing."""


def a_log() -> LogBuilder:
    """Return a log with each kind of reservation, a drop, a late block, settings with a cap, and two corrections.

    Of its blocks two have a hash, and so has one that was withdrawn.
    """
    caps = {"b": 3, "a": 2}
    log = LogBuilder(RecordedSettings(block_expiry_blocks=60, executors_max_per_class=caps, tie_break=UUID_AND_HASH))
    log.route("job-1", ANNA, 6, (1, 1))
    log.settle(log.reserve(BERT, 6, (1, 2)), ReservationSpent)
    log.settle(log.reserve(CARL, 6, (1, 1)), ReservationReleased)
    log.sync(9, {BERT: {"always_on.gpu-24gb": 1}}, [CARL])
    log.block(14, block_hash="14" * 32)
    log.block(13, deregistered=[CARL])
    log.reserve(ANNA, 6, (4, 4))
    log.block(15, block_hash="15" * 32)
    log.append(CHAIN_STREAM, BlockWithdrawn(15, "mistyped", 14, {CARL: axon(CARL)}))
    log.append(MANIFESTS_STREAM, ManifestsRecorded(10, uncovered=[CARL]))
    log.append(MANIFESTS_STREAM, ManifestsWithdrawn(10, "mistyped"))
    log.block(15, created_at_ns=created_at_ns(15) + 1, block_hash="51" * 32)
    return log


def folded(log: LogBuilder, rows: int | None = None) -> LedgerState:
    state = LedgerState()
    state.fold(log.rows[:rows])
    return state


GOLDEN = {
    0: "d3c8a304e09d822d23e486b4ed4160ecefd21353d29a67bfc6475572b3a0f61e",
    13: "5ce89f66d26085e125de5bc3b55704bbeb65533632aafe9a6a78086555d96535",
    27: "052d0116369e92a9dccaedbbc60d5645c6471b2d8fa41bb8f62d377bee2bd27a",
}
"""Digests of version 2, by the number of rows of `a_log` that are folded. They never change.

Version 1 had no hashes of blocks. Its seals prove nothing any more, so its digests are gone.
"""


WITH_MINER_FACTS = "a58886ac9b305df14904678c3baee67c18426411fe83171ad8ce51d655f5510d"
"""The digest of version 2 of `with_miner_facts`. It never changes."""


@pytest.mark.parametrize("rows", GOLDEN)
def test_the_digests_of_version_2_never_change(rows: int) -> None:
    """Ledgers hold such digests for ever. If this fails, `SEAL_VERSION` must be increased."""
    state = folded(a_log(), rows)
    assert state.position == rows
    assert state_digest(state).hex() == GOLDEN[rows]


def test_a_state_from_a_snapshot_has_the_digest_of_the_fold() -> None:
    """At every position, although its dicts have other orders and its oldest runs stay packed."""
    log = a_log()
    for rows in range(1, len(log.rows) + 1):
        state, restored = folded(log, rows), LedgerState()
        decode_state(encode_state(state), restored)
        assert state_digest(restored) == state_digest(state)


def test_every_attribute_of_the_state_is_sealed_or_derived() -> None:
    """Catches a new part of the state that is added to neither the digest nor the list of derived ones."""
    state = folded(a_log())
    account = next(iter(state.chain.accounts.values()))
    for part in (state, state.chain, state.chain.blocks, state.chain.blocks.chunks[0], account, state.miner_facts):
        names = set(getattr(part, "__slots__", None) or vars(part))
        assert names == SEALED[type(part)] | DERIVED[type(part)]


def _first(state: LedgerState) -> Any:
    return state.chain.accounts[f"{ANNA}\talways_on.gpu-24gb"]


def _with_active(**fields: Any) -> Callable[[LedgerState], None]:
    def change(state: LedgerState) -> None:
        import msgspec

        an_id, active = next(iter(state.active.items()))
        state.active[an_id] = msgspec.structs.replace(active, **fields)

    return change


def _set(path: str, value: Any) -> Callable[[LedgerState], None]:
    def change(state: LedgerState) -> None:
        *parents, name = path.split(".")
        target: Any = state
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value(getattr(target, name)) if callable(value) else value)

    return change


CHANGES: dict[str, Callable[[LedgerState], Any]] = {
    "position": _set("position", 7),
    "hash": _set("hash", bytes(32)),
    "recorded time": _set("recorded_at_ns", 7),
    "validator": _set("chain.validator_ss58", "5Wrong"),
    "settings": _set("chain.settings", RecordedSettings(block_expiry_blocks=61)),
    "a version": lambda state: state.versions.update(chain=3),
    "another stream": lambda state: state.versions.update(other=0),
    "newest block": _set("chain.blocks.newest", 16),
    "first finalized": _set("chain.blocks.first_finalized", 2),
    "last finalized": _set("chain.blocks.last_finalized", 12),
    "a time of a block": lambda state: state.chain.blocks.chunks[0].created_at_ns.__setitem__(3, 5),
    "a position of a block": lambda state: state.chain.blocks.chunks[0].positions.__setitem__(3, 6),
    "a digest of a block": lambda state: state.chain.blocks.chunks[0].digests.__setitem__(50, 5),
    "a hash of a block": lambda state: state.chain.blocks.chunks[0].set_block_hash(14, b"5" * 32),
    "no hash of a block": lambda state: state.chain.blocks.chunks[0].set_block_hash(14, b""),
    "a unit": lambda state: state.chain.blocks.chunks[0].units_ns.__setitem__(3, 5),
    "a chunk's number": lambda state: state.chain.blocks.chunk_numbers.append(state.chain.blocks.chunk_numbers[0]),
    "metagraph": _set("chain.metagraph", Metagraph({}, {})),
    "an axon of the metagraph": _set(
        "chain.metagraph", lambda old: Metagraph({**old.miners, ANNA: ("192.0.2.8", 4, 8000)}, old.stakes)
    ),
    "a stake": _set("chain.metagraph", lambda old: Metagraph(old.miners, {**old.stakes, "5Other": 3})),
    "last metagraph": _set("chain.last_metagraph", Metagraph({}, {})),
    "an unfinalized block": lambda state: state.chain.unfinalized.update({99: (1, 2, frozenset())}),
    "miners of an unfinalized block": lambda state: state.chain.unfinalized.update(
        {15: (*state.chain.unfinalized[15][:2], frozenset([ANNA]))}
    ),
    "sync blocks": lambda state: state.chain.sync_blocks.pop(),
    "a sync": lambda state: state.chain.syncs.update({9: RecordedSync(1, b"digest", 1)}),
    "executors of a sync": lambda state: state.chain.syncs.update({9: state.chain.syncs[9]._replace(executors=99)}),
    "manifests": _set("chain.manifests", {ANNA: {"always_on.gpu-24gb": 99}}),
    "last manifests": _set("chain.last_manifests", {}),
    "a registered miner": lambda state: state.chain.registered.steps[ANNA].assign(3, 5, 0),
    "an uncovered miner": lambda state: state.chain.uncovered.steps[CARL].assign(3, 5, 1),
    "a named miner": lambda state: state.chain.named.add("5Other"),
    "whom the last sync does not cover": _set("chain.last_uncovered", frozenset()),
    "no withdrawn block": lambda state: state.chain.withdrawn_blocks.clear(),
    "a withdrawn block's digest": lambda state: state.chain.withdrawn_blocks.update(
        {15: [state.chain.withdrawn_blocks[15][0]._replace(digest=b"other")]}
    ),
    "a withdrawn block's hash": lambda state: state.chain.withdrawn_blocks.update(
        {15: [state.chain.withdrawn_blocks[15][0]._replace(block_hash=b"")]}
    ),
    "when a sync was withdrawn": lambda state: state.chain.withdrawn_syncs.update(
        {10: [state.chain.withdrawn_syncs[10][0]._replace(withdrawn_at=7)]}
    ),
    "oldest inputs": _set("chain.oldest_inputs", CountInputs(3, (), frozenset())),
    "newest inputs": _set("chain.newest_inputs", None),
    "a cap in the inputs": _set("chain.newest_inputs", lambda old: old._replace(caps=(("a", 9), ("b", 3)))),
    "another account": lambda state: state.chain.open_account("5Dora", "gpu"),
    "an account's version": lambda state: setattr(_first(state), "version", 9),
    "invalidated blocks": lambda state: setattr(_first(state), "invalidated_below", 9),
    "taken blocks": lambda state: _first(state).taken.remove(1, 1),
    "offered executors": lambda state: _first(state).offered.assign(3, 5, 9),
    "counts": lambda state: _first(state).counts.assign(3, 5, 9),
    "no active reservation": lambda state: state.active.clear(),
    "a reservation's id": _with_active(reservation_id=1),
    "a reservation's position": _with_active(position=1),
    "a reservation's amount": _with_active(amount_ns=1),
    "a reservation's blocks": _with_active(blocks=[(1, 2)]),
    "a reservation's start": _with_active(job_start_block=1),
    "a reservation's time": _with_active(reserved_at_ns=1),
    "a reservation's due time": _with_active(expires_at_ns=1),
    "a reservation's job": _with_active(job_uuid=None),
    "a reservation's attempt": _with_active(attempt=2),
    "a reservation's axon": _with_active(axon=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_any_part_changes_the_digest(change: str) -> None:
    """Catches a part that the encoding leaves out; a forged snapshot could change exactly that part."""
    state = folded(a_log())
    before = state_digest(state)
    CHANGES[change](state)
    assert state_digest(state) != before


def with_miner_facts() -> LogBuilder:
    """Return `a_log` with one miner fact of each kind, of which the job elsewhere runs."""
    log = a_log()
    account = account_stream(ANNA, "always_on.gpu-24gb")
    log.append(EXCLUSIONS_STREAM, MinerExcluded(ANNA, "slow", 7))
    log.append(EXCLUSIONS_STREAM, MinerReadmitted(BERT, "fast"))
    log.append(COLLATERAL_STREAM, CollateralRecorded({ANNA: 10**19, BERT: 0}))
    log.append(elsewhere_stream(account), JobElsewhereRecorded("theirs", log.now_ns, 60))
    log.append(ELSEWHERE_STREAM, JobElsewhereEnded("unknown"))
    log.append(INCIDENTS_STREAM, IncidentReported(ANNA, "always_on.gpu-24gb", "failed", "ours"))
    return log


def test_the_digest_of_miner_facts_never_changes() -> None:
    """Ledgers hold such digests for ever. If this fails, `SEAL_VERSION` must be increased."""
    assert state_digest(folded(with_miner_facts())).hex() == WITH_MINER_FACTS


def _fact(name: str, key: str, value: Any) -> Callable[[LedgerState], None]:
    return lambda state: getattr(state.miner_facts, name).update({key: value})


_account = f"{ANNA}\talways_on.gpu-24gb"
FACT_CHANGES: dict[str, Callable[[LedgerState], Any]] = {
    "another exclusion": _fact("exclusions", CARL, Exclusion(1, "slow", 7)),
    "no exclusion": lambda state: state.miner_facts.exclusions.pop(ANNA),
    "an exclusion's position": _fact("exclusions", ANNA, Exclusion(1, "slow", 7)),
    "an exclusion's reason": lambda state: _replace(state.miner_facts.exclusions, ANNA, reason="slower"),
    "an exclusion's end": lambda state: _replace(state.miner_facts.exclusions, ANNA, until_ns=8),
    "another collateral": _fact("collateral", CARL, Collateral(1, 0)),
    "no collateral": lambda state: state.miner_facts.collateral.pop(ANNA),
    "where a collateral was recorded": lambda state: _replace(state.miner_facts.collateral, ANNA, position=1),
    "an amount of collateral": lambda state: _replace(state.miner_facts.collateral, ANNA, wei=10**19 + 1),
    "no job elsewhere": lambda state: state.miner_facts.elsewhere.clear(),
    "a job elsewhere's name": lambda state: state.miner_facts.elsewhere.update({_account: {"x": JobElsewhere(1, 2)}}),
    "a job elsewhere's start": lambda state: _replace(state.miner_facts.elsewhere[_account], "theirs", started_at_ns=1),
    "a job elsewhere's end": lambda state: _replace(state.miner_facts.elsewhere[_account], "theirs", ends_at_ns=1),
    "a job elsewhere's account": _fact("elsewhere", "other", {"x": JobElsewhere(1, 2)}),
    "no incident": lambda state: state.miner_facts.incidents.clear(),
    "another incident": lambda state: state.miner_facts.incidents[_account].append(7),
    "an incident's time": lambda state: state.miner_facts.incidents[_account].__setitem__(0, 7),
    "an incident's account": lambda state: state.miner_facts.incidents.update(
        other=state.miner_facts.incidents.pop(_account)
    ),
}


def _replace(facts: dict[str, Any], key: str, **fields: Any) -> None:
    facts[key] = facts[key]._replace(**fields)


@pytest.mark.parametrize("change", FACT_CHANGES)
def test_a_change_of_any_miner_fact_changes_the_digest(change: str) -> None:
    """Catches a part of the miner facts that the encoding leaves out."""
    state = folded(with_miner_facts())
    FACT_CHANGES[change](state)
    assert state_digest(state).hex() != WITH_MINER_FACTS


def test_the_order_of_dicts_changes_nothing() -> None:
    """A state from a snapshot, and one whose settings name the caps in another order, are the same state."""
    state, other = folded(a_log()), folded(a_log())
    other.chain.manifests = dict(reversed(other.chain.manifests.items()))
    other.versions = dict(reversed(other.versions.items()))
    other.chain.accounts = dict(reversed(other.chain.accounts.items()))
    other.active = dict(reversed(other.active.items()))
    inputs = other.chain.newest_inputs
    assert inputs is not None
    assert len(inputs.caps) == 2
    other.chain.newest_inputs = inputs._replace(caps=inputs.caps[::-1])
    assert state_digest(other) == state_digest(state)


def test_a_field_that_a_later_release_adds_to_the_settings_changes_no_digest() -> None:
    """Fields with their default are not encoded: only a setting that somebody changed is part of the state."""
    state = folded(a_log())
    before = state_digest(state)
    state.chain.settings = RecordedSettings(
        block_expiry_blocks=60,
        executors_max_per_class={"a": 2, "b": 3},
        respect_executor_count=True,
        tie_break=UUID_AND_HASH,
    )
    assert state_digest(state) == before


def test_machines_of_the_other_byte_order_read_the_same_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a machine is imitated: its arrays' bytes are swapped by hand, as its `tobytes` would return them."""

    class Swapped(array):  # type: ignore[type-arg]  # a generic array cannot be a base class at run time
        def tobytes(self) -> bytes:
            swapped = array(self.typecode, self)
            swapped.byteswap()
            return swapped.tobytes()

    native = array("q", [1, -2, 2**40])
    assert byte_order.little_endian("q", native.tobytes()) == native.tobytes()
    packed = b"I" + array("I", [1, 2**31]).tobytes()
    assert byte_order.little_endian_runs(packed) == packed
    monkeypatch.setattr(byte_order, "SWAPS", True)
    assert byte_order.little_endian("q", Swapped("q", native).tobytes()) == native.tobytes()
    assert byte_order.little_endian_runs(b"I" + Swapped("I", [1, 2**31]).tobytes()) == packed


def test_a_fold_counts_only_seals_of_a_lower_position_and_a_known_version() -> None:
    """A forged seal of a position far above the head would otherwise keep the log from ever being sealed again."""
    log = LogBuilder()
    state = folded(log)
    for position, version, expected in ((10**9, 2, 0), (9, 99, 0), (9, 1, 0), (9, 2, 9), (5, 2, 9)):
        row = log.append(SEALS_STREAM, StateSealed(position, version, ""))
        state.fold([row])
        assert state.sealed_position == expected
    assert state.versions[SEALS_STREAM] == 5
